//! `phi perplexity`: how well a model predicts a text, how far it is from another one, and multiple-choice scores.

mod report;

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::model::{self, CacheType, ModelArgs};
use super::offload::{self, OffloadArgs};
use super::signal::Watch;
use super::{input, progress};
use crate::backend::cpu::Cpu;
use crate::fs::ensure_distinct;
use crate::model::Model;
use crate::perplexity::base::{Base, BaseWriter};
use crate::perplexity::tasks::{self, Task};
use crate::perplexity::{self, Chunking, Setup, divergence};
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples
  phi perplexity -m phi-q4.gguf -f text.txt
  phi perplexity -m phi-f16.gguf -f text.txt --kl-divergence-base phi.base       the original
  phi perplexity -m phi-q4.gguf --kl-divergence-base phi.base --kl-divergence    against it
  phi perplexity -m phi-q4.gguf -f hellaswag_val_full.txt --hellaswag

The files (base, HellaSwag, Winogrande, multiple choice) are llama-perplexity's.
";

/// Measure how well a model predicts: perplexity, divergence, multiple choice
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    tasks: TaskArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Text and result")]
struct TextArgs {
    /// The text to predict, or the file of tasks
    #[arg(short, long, visible_alias = "binary-file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Tokens of a chunk; the second half of each is scored. Of tasks: what one may take
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ctx_size: u32,
    /// Chunks to score at most [-1: all]
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    chunks: i64,
    /// Score N tokens of each of many overlapping chunks [0: chunks side by side]
    #[arg(long, value_name = "N", default_value_t = 0)]
    ppl_stride: u32,
    /// A file of the base model's distributions: written, or with --kl-divergence read
    #[arg(long, visible_alias = "save-all-logits", value_name = "FILE")]
    kl_divergence_base: Option<PathBuf>,
    /// Compare with the base, whose file holds the text, too: -f is not read then
    #[arg(long, requires = "kl_divergence_base")]
    kl_divergence: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Form of the result: text or json
    #[arg(short, long, value_name = "FORM", default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Machine")]
struct MachineArgs {
    /// Threads [default: one a core that this process may use]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens taken at once, at most: several chunks if they fit
    #[arg(short, long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// -ub: tokens computed at once, at most [default: 512, with AMX 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ubatch_size: Option<u32>,
    /// -ctk: element type of the cached keys
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    cache_type_k: CacheType,
    /// -ctv: element type of the cached values
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    cache_type_v: CacheType,
    #[command(flatten)]
    offload: OffloadArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Tasks")]
struct TaskArgs {
    /// The file has HellaSwag tasks
    #[arg(long, conflicts_with_all = ["winogrande", "multiple_choice"])]
    hellaswag: bool,
    /// How many of them, chosen at random [0: all]
    #[arg(long, value_name = "N", default_value_t = 400)]
    hellaswag_tasks: usize,
    /// The file has Winogrande tasks
    #[arg(long, conflicts_with = "multiple_choice")]
    winogrande: bool,
    /// How many of them, chosen at random [0: all]
    #[arg(long, value_name = "N", default_value_t = 0)]
    winogrande_tasks: usize,
    /// The file has multiple-choice tasks in llama-perplexity's binary format
    #[arg(long)]
    multiple_choice: bool,
    /// How many of them, chosen at random [0: all]
    #[arg(long, value_name = "N", default_value_t = 0)]
    multiple_choice_tasks: usize,
}

impl TaskArgs {
    fn any(&self) -> bool {
        self.hellaswag || self.winogrande || self.multiple_choice
    }

    /// Reads the tasks in the file at `path`.
    fn read(&self, path: &Path) -> Result<Vec<Task>> {
        let tasks = if self.multiple_choice {
            let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
            tasks::parse_multiple_choice(&bytes, self.multiple_choice_tasks)
        } else if self.winogrande {
            tasks::parse_winogrande(&input::read_file(path)?, self.winogrande_tasks)
        } else {
            tasks::parse_hellaswag(&input::read_file(path)?, self.hellaswag_tasks)
        };
        tasks.map_err(|fault| Error::invalid(path, fault))
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let gguf = model::open(&args.model)?;
    let tokenizer = model::tokenizer(&gguf)?;
    let model = Model::load(gguf)?;
    let cache_types = (args.machine.cache_type_k.into(), args.machine.cache_type_v.into());
    let wanted = args.machine.offload.plan(0, cache_types)?;
    let backend = offload::backend(&model, args.machine.threads, &wanted)?;
    let setup = Setup {
        model: &model,
        backend: &backend,
        cache_types,
        batch: (args.machine.batch_size as usize)
            .min(args.machine.ubatch_size.map_or_else(Cpu::tokens_at_once, |size| size as usize)),
        bos: tokenizer.bos_to_add(),
    };
    let result = if args.tasks.any() {
        choose(&args, &setup, &tokenizer)?
    } else if args.text.kl_divergence {
        compare(&args, &setup)?
    } else {
        predict(&args, &setup, &tokenizer)?
    };
    let mut out = std::io::stdout().lock();
    if args.text.json || args.text.output == "json" {
        writeln!(out, "{:#}", result.json)?;
    } else {
        write!(out, "{}", result.text)?;
    }
    Ok(out.flush()?)
}

impl TextArgs {
    fn file(&self) -> Result<&Path> {
        self.file
            .as_deref()
            .ok_or_else(|| Error::Usage("-f FILE is missing: the text to predict, or the tasks".into()))
    }

    fn most_chunks(&self) -> Option<usize> {
        usize::try_from(self.chunks).ok()
    }
}

/// The text's tokens, with the token that begins a text where the model has it so.
fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids: Vec<u32> = tokenizer.bos_to_add().into_iter().collect();
    ids.extend(tokenizer.encode(text, Special::Text));
    ids
}

fn predict(args: &Args, setup: &Setup<'_>, tokenizer: &Tokenizer) -> Result<report::Report> {
    let path = args.text.file()?;
    let context = args.text.ctx_size as usize;
    let chunking = match args.text.ppl_stride as usize {
        0 => Chunking::halves(context),
        stride if stride <= context => Chunking::strided(context, stride),
        stride => {
            return Err(Error::Usage(format!(
                "--ppl-stride {stride} is more than the {context} tokens of a chunk"
            )));
        }
    };
    let ids = tokens(tokenizer, &input::read_file(path)?);
    let count = chunking.count(ids.len(), args.text.most_chunks());
    if count == 0 {
        return Err(Error::Usage(format!(
            "{} has {} tokens and a chunk has {}: there is nothing to score; take a longer text or a smaller -c",
            path.display(),
            ids.len(),
            chunking.chunk
        )));
    }
    let mut base = args.text.kl_divergence_base.as_deref().map(|base| {
        if args.text.ppl_stride > 0 {
            return Err(Error::Usage(
                "--kl-divergence-base is for chunks side by side, without --ppl-stride".into(),
            ));
        }
        ensure_distinct(base, [path].into_iter().chain(args.model.model.as_deref()))?;
        BaseWriter::create(base, context, setup.model.vocabulary(), &ids[..count * context])
    });
    let mut base = base.take().transpose()?;
    let mut display = Display::new("scoring", count);
    let total = perplexity::perplexity(setup, &ids, chunking, count, base.as_mut(), &mut |event| {
        let perplexity = event.so_far.perplexity();
        display.show(
            event.done,
            format!("[{}]{perplexity:.4},", event.done),
            format!("perplexity {perplexity:.4}"),
        )
    })?;
    display.finish();
    if let (Some(base), Some(path)) = (base, &args.text.kl_divergence_base) {
        base.finish()?;
        eprintln!("{}: distributions of {count} chunks", path.display());
    }
    Ok(report::perplexity(&total, count, args.text.ctx_size))
}

fn compare(args: &Args, setup: &Setup<'_>) -> Result<report::Report> {
    let path = args.text.kl_divergence_base.as_deref().expect("clap asks for it");
    let base = Base::open(path)?;
    let count = args.text.most_chunks().map_or(base.chunks, |most| base.chunks.min(most));
    let mut display = Display::new("comparing", count);
    if !display.is_bar() {
        eprintln!("{}", report::DIVERGENCE_HEAD);
    }
    let result = divergence::compare(setup, &base, args.text.most_chunks(), &mut |event| {
        let mean = event.so_far.divergence().value;
        let line = report::divergence_line(event.done, event.so_far) + "\n";
        display.show(event.done, line, format!("KLD {mean:.6}"))
    })?;
    display.finish();
    Ok(report::divergence(&result, count, base.context))
}

fn choose(args: &Args, setup: &Setup<'_>, tokenizer: &Tokenizer) -> Result<report::Report> {
    let tasks = args.tasks.read(args.text.file()?)?;
    let mut display = Display::new("choosing", tasks.len());
    let tokenize = |text: &str| tokens(tokenizer, text);
    let score = tasks::run(setup, &tasks, args.text.ctx_size as usize, &tokenize, &mut |event| {
        let percent = 100.0 * event.so_far.share();
        display.show(event.done, format!("{}\t{percent:.4}\n", event.done), format!("{percent:.2} %"))
    })?;
    display.finish();
    let name = match (args.tasks.hellaswag, args.tasks.winogrande) {
        (true, _) => "HellaSwag",
        (_, true) => "Winogrande",
        _ => "multiple choice",
    };
    Ok(report::tasks(name, score))
}

/// Progress on stderr: a bar on a terminal, otherwise the figures as they come.
struct Display {
    bar: Option<ProgressBar>,
    watch: Watch,
    open_line: bool,
}

impl Display {
    fn new(name: &str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| progress::bar(name, total as u64));
        Self { bar, watch: Watch::start(), open_line: false }
    }

    fn is_bar(&self) -> bool {
        self.bar.is_some()
    }

    /// Shows `text`, or on a terminal `message` beside the bar; breaks if the user asked to stop.
    fn show(&mut self, done: usize, text: String, message: String) -> ControlFlow<()> {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done as u64);
                bar.set_message(message);
            }
            None => {
                self.open_line = !text.ends_with('\n');
                eprint!("{text}");
            }
        }
        if self.watch.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        } else if self.open_line {
            eprintln!();
        }
    }
}
