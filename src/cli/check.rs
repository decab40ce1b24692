//! `phi check`: is a model file whole and sound?

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::progress;
use super::signal::Watch;
use crate::check::{self, Report, Severity};
use crate::fs::human_bytes;
use crate::kernel::pool::default_threads;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples
  phi check phi-q4.gguf                     a line if all is well, else a list
  phi check phi-00001-of-00003.gguf         all parts of a split model
  phi check phi-q4.gguf --json

The exit code is 1 if there are errors; warnings alone do not count.
";

/// Look for damage: structure, values, tensors, vocabulary
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file, or any part of a split one
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Threads [default: one a core that this process may use]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.model.is_dir() {
        let model = args.model.display();
        return Err(Error::Usage(format!(
            "{model} is a folder; GGUF files can be checked, and `phi convert` checks a checkpoint folder as it goes"
        ))
        .into());
    }
    let start = Instant::now();
    let report = look(&args)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", to_json(&report, seconds))?;
    } else {
        write!(out, "{}", to_text(&args, &report, seconds))?;
    }
    out.flush()?;
    match report.count(Severity::Error) {
        0 => Ok(()),
        count => {
            let errors = plural(count, "error");
            Err(anyhow::anyhow!("{}: {errors} found", args.model.display()))
        }
    }
}

fn look(args: &Args) -> Result<Report> {
    let bar = progress::bytes("checking");
    let watch = Watch::start();
    let report =
        check::check(&args.model, args.threads.unwrap_or_else(default_threads), &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            if watch.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    bar.finish_and_clear();
    report
}

/// The verdict in a line, then what was found.
fn to_text(args: &Args, report: &Report, seconds: f64) -> String {
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let verdict = match (errors, warnings) {
        (0, 0) => "sound".to_owned(),
        (0, _) => format!("sound, with {}", plural(warnings, "warning")),
        (_, 0) => format!("NOT SOUND: {}", plural(errors, "error")),
        _ => format!("NOT SOUND: {} and {}", plural(errors, "error"), plural(warnings, "warning")),
    };
    let rate = human_bytes((report.bytes as f64 / seconds.max(1e-3)) as u64);
    let mut text = format!(
        "{}: {verdict} ({}, {} in {}, {seconds:.1} s, {rate}/s)\n",
        args.model.display(),
        report.architecture.as_deref().unwrap_or("no architecture"),
        plural(report.tensors, "tensor"),
        human_bytes(report.bytes),
    );
    for problem in &report.problems {
        text += &format!("  {}: {}: {}\n", name(problem.severity), problem.area, problem.message);
    }
    text
}

fn to_json(report: &Report, seconds: f64) -> String {
    let problems = report.problems.iter().map(|problem| {
        json!({ "severity": name(problem.severity), "area": problem.area, "message": problem.message })
    });
    let report = json!({
        "sound": report.is_sound(),
        "errors": report.count(Severity::Error),
        "warnings": report.count(Severity::Warning),
        "problems": problems.collect::<Vec<_>>(),
        "architecture": report.architecture,
        "files": report.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "tensors": report.tensors,
        "bytes": report.bytes,
        "seconds": seconds,
    });
    format!("{report:#}")
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
