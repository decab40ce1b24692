//! `phi imatrix`: measures on text which input columns of the weights matter.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;

use super::hub::HubArgs;
use super::model::{self, ModelArgs};
use super::offload::{self, OffloadArgs};
use super::signal::Watch;
use super::{input, progress};
use crate::engine::KvType;
use crate::engine::evaluate::caches;
use crate::engine::score::Likelihood;
use crate::fs::ensure_distinct;
use crate::gguf::Gguf;
use crate::imatrix::{self, Format, Options, Statistics};
use crate::model::Model;
use crate::quant::recipe::FileType;
use crate::text::Special;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples
  phi imatrix -m phi-f16.gguf -f text.txt -o phi.imatrix.gguf
  phi imatrix -m phi-f16.gguf -f text.txt -o phi.imatrix.gguf --resume      goes on after Ctrl-C
  phi imatrix --in-file one.gguf --in-file two.gguf -o both.gguf            adds two up
  phi imatrix --in-file phi.imatrix.gguf --show-statistics
  phi quantize --imatrix phi.imatrix.gguf phi-f16.gguf phi-q4.gguf Q4_K_M
";

/// Measure on text which weights matter, for `phi quantize --imatrix`
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file, best of type F16, BF16 or F32, or a checkpoint folder
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The text to measure on: a few hundred kB of what the model is for
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The file to write
    #[arg(short, long, visible_alias = "output-file", value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// gguf, or dat: the older format, without counts by expert
    #[arg(long, value_name = "FORMAT", default_value = "gguf", value_parser = ["gguf", "dat"])]
    output_format: String,
    /// An earlier importance matrix to add to; may be repeated; without a text they are only added up
    #[arg(long, value_name = "FILE")]
    in_file: Vec<PathBuf>,
    /// Go on with what an interrupted run of the same command left in the output
    #[arg(long)]
    resume: bool,
    /// Tokens of a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    ctx_size: u32,
    /// Chunks to measure at most [-1: all]
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    chunks: i64,
    /// Leave out the first N chunks
    #[arg(long, visible_alias = "from-chunk", value_name = "N", default_value_t = 0)]
    chunk: usize,
    /// -ofreq: save after every N chunks
    #[arg(long, value_name = "N", default_value_t = 10)]
    output_frequency: usize,
    /// Save a copy, OUT.at_CHUNKS, after every N chunks [0: never]
    #[arg(long, value_name = "N", default_value_t = 0)]
    save_frequency: usize,
    /// Measure output.weight, too; it is better quantized without
    #[arg(long)]
    process_output: bool,
    /// Do not compute the perplexity of the text
    #[arg(long, overrides_with = "ppl")]
    no_ppl: bool,
    /// Compute it, as is the default
    #[arg(long)]
    ppl: bool,
    /// Recognize control tokens in the text
    #[arg(long)]
    parse_special: bool,
    /// Print figures over the one --in-file, by tensor and by layer
    #[arg(long)]
    show_statistics: bool,
    #[command(flatten)]
    offload: OffloadArgs,
    /// Threads [default: one a core that this process may use]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens taken at once, at most: several chunks if they fit
    #[arg(short, long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// -ub: tokens computed at once, at most
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    ubatch_size: u32,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.show_statistics {
        return show_statistics(&args.in_file);
    }
    for input in args.model.iter().chain(&args.file) {
        ensure_distinct(&args.output, [input.as_path()])?;
    }
    let mut statistics = Statistics { chunk_size: args.ctx_size, ..Statistics::default() };
    for path in &args.in_file {
        let other = Statistics::open(path)?;
        statistics.merge(&other, args.ctx_size).map_err(|fault| Error::invalid(path, fault))?;
    }
    match (&args.model, &args.file) {
        (Some(model), Some(text)) => measure(&args, model, text, statistics),
        (_, None) if !args.in_file.is_empty() => {
            args.save(&statistics, &args.output)?;
            eprintln!(
                "{}: {} entries, {} chunks",
                args.output.display(),
                statistics.entries.len(),
                statistics.chunks
            );
            Ok(())
        }
        (None, _) => Err(Error::Usage("-m MODEL is missing: which model is to be measured?".into()).into()),
        (_, None) => Err(Error::Usage(
            "-f TEXT is missing: the text to measure on (or importance matrices to add up: --in-file)".into(),
        )
        .into()),
    }
}

fn show_statistics(files: &[PathBuf]) -> anyhow::Result<()> {
    let [path] = files else {
        let problem = "--show-statistics looks at one importance matrix: name it with --in-file";
        return Err(Error::Usage(problem.into()).into());
    };
    let report = imatrix::report::Report::new(&Statistics::open(path)?);
    Ok(write!(std::io::stdout().lock(), "{report}")?)
}

impl Args {
    fn format(&self) -> Format {
        if self.output_format == "dat" { Format::Dat } else { Format::Gguf }
    }

    fn save(&self, statistics: &Statistics, path: &Path) -> Result<()> {
        statistics.save(path, self.format())
    }

    /// What an interrupted run left: its sums, and how many chunks it had done beyond those of `base`.
    fn resumed(&self, base: Statistics, dataset: &str) -> Result<(Statistics, usize)> {
        if !self.resume || !self.output.exists() {
            return Ok((base, 0));
        }
        let refused = |reason: String| Err(Error::invalid(&self.output, reason));
        let left = Statistics::open(&self.output)?;
        if left.chunk_size == 0 {
            return refused(
                "an importance matrix of the older format cannot be resumed: it has no exact counts".into(),
            );
        }
        if left.chunk_size != self.ctx_size {
            let (found, wanted) = (left.chunk_size, self.ctx_size);
            return refused(format!(
                "it was measured in chunks of {found} tokens, so it cannot be resumed with {wanted}"
            ));
        }
        let mut datasets = base.datasets.clone();
        datasets.push(dataset.to_owned());
        if left.datasets != datasets {
            let found = left.datasets.join(", ");
            return refused(format!(
                "it was measured on {found:?}, so another command than the one that is to be resumed; leave out --resume"
            ));
        }
        let done = left.chunks.saturating_sub(base.chunks) as usize;
        Ok((left, done))
    }
}

/// Measures `text` and saves the result.
fn measure(args: &Args, path: &Path, text: &Path, base: Statistics) -> anyhow::Result<()> {
    let dataset = text.to_string_lossy().into_owned();
    let (mut statistics, resumed) = args.resumed(base, &dataset)?;
    if resumed == 0 {
        statistics.datasets.push(dataset);
    }
    let gguf = model::open(&ModelArgs {
        model: Some(path.to_owned()),
        quantize: FileType::F16,
        hub: HubArgs::default(),
    })?;
    let content = input::read_file(text)?;
    let (tokens, bos) = tokenize(&gguf, &content, args.parse_special)?;
    let chunk = args.ctx_size as usize;
    let all = tokens.len() / chunk;
    let first = args.chunk.saturating_add(resumed);
    let end = usize::try_from(args.chunks).map_or(all, |most| all.min(args.chunk.saturating_add(most)));
    if args.chunk >= end {
        return Err(Error::Usage(format!(
            "{} has {} tokens, {all} chunks of {chunk}: there is nothing to measure; take a longer text or fewer \
             tokens a chunk (-c)",
            text.display(),
            tokens.len(),
        ))
        .into());
    }
    if first >= end {
        eprintln!("{}: all {} chunks were measured already", args.output.display(), end - args.chunk);
        return Ok(());
    }
    let model = Model::load(gguf)?;
    // What goes into every matrix is looked at here, so a GPU has to be asked for.
    let wanted = args.offload.plan_if_asked(chunk, (KvType::F16, KvType::F16))?;
    let backend = offload::backend(&model, args.threads, &wanted)?;
    let batch = args.batch_size.min(args.ubatch_size) as usize;
    let together = (batch / chunk).clamp(1, end - first);
    let caches = caches(&backend, &model, (KvType::F16, KvType::F16), together, chunk)?;
    let options =
        Options { chunk, bos, process_output: args.process_output, perplexity: !args.no_ppl, batch };
    let mut display = Display::new(args, resumed, end - args.chunk);
    let mut saved = 0;
    let watch = Watch::start();
    let tokens = &tokens[first * chunk..end * chunk];
    let (statistics, likelihood) =
        imatrix::run(&model, &backend, caches, tokens, statistics, &options, &mut |event| {
            display.show(&event);
            let passed = |every: usize| every > 0 && event.done / every > saved / every;
            if passed(args.output_frequency) {
                args.save(event.statistics, &args.output)?;
            }
            if passed(args.save_frequency) {
                args.save(event.statistics, &snapshot_path(&args.output, event.statistics.chunks))?;
            }
            saved = event.done;
            Ok(if watch.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    display.finish(&likelihood);
    args.save(&statistics, &args.output)?;
    finish(args, &statistics, resumed + saved, end - args.chunk)
}

/// Says what was saved.
fn finish(args: &Args, statistics: &Statistics, done: usize, of: usize) -> anyhow::Result<()> {
    for name in statistics.partial() {
        eprintln!("warning: some experts of {name} had no input; a longer text may reach them");
    }
    if done < of {
        eprintln!(
            "{}: {done} of {of} chunks were measured and saved; --resume goes on with them",
            args.output.display()
        );
        return Err(Error::Interrupted.into());
    }
    eprintln!(
        "{}: {} entries, measured on {} chunks of {} tokens",
        args.output.display(),
        statistics.entries.len(),
        statistics.chunks,
        statistics.chunk_size
    );
    Ok(())
}

/// The text's tokens, and the token that is to begin each chunk.
fn tokenize(gguf: &Arc<Gguf>, text: &str, parse_special: bool) -> Result<(Vec<u32>, Option<u32>)> {
    let tokenizer = model::tokenizer(gguf)?;
    let special = if parse_special { Special::Parse } else { Special::Text };
    let bos = tokenizer.bos_to_add();
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode(text, special));
    Ok((tokens, bos))
}

/// "OUT.at_20" for the copy after 20 chunks.
fn snapshot_path(output: &Path, chunks: u32) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(format!(".at_{chunks}"));
    name.into()
}

/// Progress on stderr: a bar on a terminal, otherwise the perplexity after each chunk.
struct Display {
    bar: Option<ProgressBar>,
    /// Chunks of earlier runs.
    before: usize,
    shown: usize,
}

impl Display {
    fn new(args: &Args, before: usize, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = progress::bar("measuring", total as u64);
            bar.set_position(before as u64);
            bar.reset_eta();
            bar
        });
        if bar.is_none() && args.no_ppl {
            eprintln!("measuring {} chunks of {} tokens", total - before, args.ctx_size);
        }
        Self { bar, before, shown: before }
    }

    fn show(&mut self, event: &imatrix::Progress<'_>) {
        match &self.bar {
            Some(bar) => {
                bar.set_position((self.before + event.done) as u64);
                if let Some(perplexity) = event.perplexity.last() {
                    bar.set_message(format!("perplexity {perplexity:.4}"));
                }
            }
            None => {
                for perplexity in event.perplexity {
                    self.shown += 1;
                    eprint!("[{}]{perplexity:.4},", self.shown);
                }
            }
        }
    }

    fn finish(self, likelihood: &Likelihood) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        } else if likelihood.count > 0 {
            eprintln!();
        }
        if let Some(error) = likelihood.perplexity_error() {
            eprintln!("Final estimate: PPL = {:.4} +/- {error:.5}", likelihood.perplexity());
        }
    }
}
