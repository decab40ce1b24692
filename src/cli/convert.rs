//! `phi convert`: a Hugging Face checkpoint folder to a GGUF file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::hub::{Found, HubArgs};
use crate::checkpoint::Checkpoint;
use crate::convert::{Conversion, Options, OutType};
use crate::fs::human_bytes;
use crate::gguf::Source;
use crate::{Error, Result};

/// Convert a Hugging Face checkpoint folder to a GGUF file.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  phi convert Phi-3.5-mini-instruct
      writes Phi-3.5-mini-instruct/Phi-3.5-mini-instruct-BF16.gguf
  phi convert Phi-3.5-mini-instruct --outtype f16 --outfile phi-3.5-{ftype}.gguf
      writes phi-3.5-f16.gguf
  phi convert Phi-3.5-mini-instruct --dry-run
      prints what would be written
  phi convert -hf microsoft/Phi-3.5-mini-instruct
      downloads the checkpoint, writes Phi-3.5-mini-instruct-BF16.gguf here

`phi quantize` and `phi run` take the folder directly, with no file in between.")]
pub struct Args {
    /// Folder with config.json, the .safetensors files and the tokenizer
    #[arg(value_name = "HF_DIR", required_unless_present = "hf_repo", conflicts_with = "hf_repo")]
    model: Option<PathBuf>,

    /// File to write; {ftype} stands for the type's name. A folder gets a file named after the model
    /// [default: in HF_DIR; with -hf: here]
    #[arg(long, short, value_name = "FILE")]
    outfile: Option<PathBuf>,

    /// Type of the weight matrices; auto keeps the 16-bit type that they are stored in
    #[arg(long, value_name = "TYPE", default_value = "auto", ignore_case = true,
          value_parser = ["auto", "f32", "f16", "bf16", "q8_0"])]
    outtype: String,

    /// Name of the model, in place of the one found in the checkpoint
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,

    /// Write metadata and vocabulary only, no tensors
    #[arg(long)]
    vocab_only: bool,

    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Threads that convert [default: all that this process may use]
    #[arg(long, short, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,

    #[command(flatten, next_help_heading = "Hub")]
    hub: HubArgs,
}

/// Runs the command; prints the path of the file written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let checkpoint = open(&args)?;
    let options = Options {
        outtype: OutType::from_name(&args.outtype).context("--outtype: unknown type")?,
        model_name: args.model_name,
        vocab_only: args.vocab_only,
    };
    let conversion = Conversion::plan(&checkpoint, &options)?;
    for warning in conversion.warnings() {
        eprintln!("warning: {warning}");
    }
    let here = args.model.is_none().then_some(Path::new("."));
    let path = conversion.output_path(args.outfile.as_deref().or(here));
    if args.dry_run {
        print_plan(&conversion, &path);
        return Ok(());
    }
    let threads = args.threads.map_or_else(default_threads, Into::into);
    let progress = progress_bar(conversion.tensor_bytes());
    conversion.write(&path, threads, &mut |written| progress.set_position(written))?;
    progress.finish_and_clear();
    let (bytes, seconds) = (conversion.tensor_bytes(), started.elapsed().as_secs_f64());
    if !args.vocab_only {
        eprintln!(
            "{} tensors, {} in {seconds:.1} s ({}/s)",
            conversion.tensors().len(),
            human_bytes(bytes),
            human_bytes((bytes as f64 / seconds) as u64)
        );
    }
    println!("{}", path.display());
    Ok(())
}

/// Opens the folder, or the checkpoint from the hub.
fn open(args: &Args) -> Result<Checkpoint> {
    match (&args.model, &args.hub.hf_repo) {
        (Some(folder), _) if args.vocab_only => Checkpoint::open_for_vocabulary(folder),
        (Some(folder), _) => Checkpoint::open(folder),
        (None, Some(spec)) => {
            if let Some(kind) = &spec.kind {
                return Err(Error::Usage(format!(
                    "-hf {}:{kind}: what to convert to is said by --outtype",
                    spec.repo
                )));
            }
            let found = Found::look_up(&args.hub, &spec.repo)?;
            let files = found.checkpoint_files()?;
            if args.vocab_only { found.open_vocabulary(&files) } else { found.open_checkpoint(&files) }
        }
        (None, None) => Err(Error::Usage("HF_DIR is missing".into())),
    }
}

fn print_plan(conversion: &Conversion, path: &Path) {
    for tensor in conversion.tensors() {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        println!("{:<28} {:<5} {}", tensor.name, tensor.kind, shape.join(" x "));
    }
    println!(
        "{} metadata keys, {} tensors, {}: would write {}",
        conversion.metadata().len(),
        conversion.tensors().len(),
        human_bytes(conversion.tensor_bytes()),
        path.display()
    );
}

/// The processors that this process may use (the cgroup and the affinity mask count).
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A bar on stderr; hidden unless that is a terminal.
fn progress_bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
    );
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
