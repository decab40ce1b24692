//! `phi quantize`: a GGUF file or a checkpoint folder to a smaller GGUF file.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::checkpoint::Checkpoint;
use crate::convert::{self, Conversion, OutType};
use crate::fs::{AtomicFile, ensure_distinct, human_bytes};
use crate::gguf::{Gguf, Output, Source, TensorType, Value};
use crate::quant::recipe::{FileType, Recipe};
use crate::quantize::report::Report;
use crate::quantize::split::parse_size;
use crate::quantize::{
    self, Budget, Imatrix, Options, Plan, Planned, Progress, Sink, Summary, parse_key_value, parse_kind,
    parse_layers, parse_tensor_type, parse_tensor_type_file,
};
use crate::{Error, Result};

/// Make a model smaller: tensor types and bytes exactly as llama-quantize makes them.
#[derive(clap::Args, Debug)]
#[command(
    after_help = types_help(),
    override_usage = "phi quantize [OPTIONS] IN [OUT] TYPE [THREADS]\n       phi quantize [OPTIONS] --target-size SIZE IN [OUT] [THREADS]"
)]
pub struct Args {
    /// IN [OUT] TYPE [THREADS]: a GGUF file (any part of a split one) or a checkpoint folder; the file to
    /// write [default: ggml-model-TYPE.gguf beside IN]; a type of the list below; threads [default: all]
    #[arg(value_name = "IN [OUT] TYPE [THREADS]", num_args = 1..=4, required = true)]
    positional: Vec<String>,
    /// Make all tensors the type's base type, without a mix
    #[arg(long)]
    pure: bool,
    /// Keep output.weight as it is
    #[arg(long)]
    leave_output_tensor: bool,
    /// Type of output.weight
    #[arg(long, value_name = "TYPE", value_parser = kind)]
    output_tensor_type: Option<TensorType>,
    /// Type of the token embedding
    #[arg(long, value_name = "TYPE", value_parser = kind)]
    token_embedding_type: Option<TensorType>,
    /// Type of the tensors whose name matches a regular expression; may be repeated, the first match counts
    #[arg(long, value_name = "NAME=TYPE")]
    tensor_type: Vec<String>,
    /// A file of NAME=TYPE entries
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Vec<PathBuf>,
    /// Quantize tensors again that are quantized already; loses more than quantizing from F16 or F32
    #[arg(long)]
    allow_requantize: bool,
    /// Importance matrix as `phi imatrix` and llama-imatrix make it (GGUF or .dat)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Use the importance matrix only for tensors whose name contains this; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "exclude_weights")]
    include_weights: Vec<String>,
    /// Do not use the importance matrix for tensors whose name contains this; may be repeated
    #[arg(long, value_name = "NAME")]
    exclude_weights: Vec<String>,
    /// Leave these layers out
    #[arg(long, value_name = "L0,L1,…")]
    prune_layers: Option<String>,
    /// Set a metadata value: int, float, bool or str; may be repeated
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    override_kv: Vec<String>,
    /// Write the parts that the input has instead of one file
    #[arg(long)]
    keep_split: bool,
    /// Instead of TYPE: choose each tensor's type so that the file is at most this large: 2.2GiB, 900M
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["target_bpw", "pure"], value_parser = parse_size)]
    target_size: Option<u64>,
    /// Instead of TYPE: choose each tensor's type so that an element takes at most this many bits on average
    #[arg(long, value_name = "BITS", conflicts_with = "pure")]
    target_bpw: Option<f64>,
    /// Write a report of types and errors by tensor: a .json or .html file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Only show what would be made
    #[arg(long)]
    dry_run: bool,
    /// Memory for tensor rows being worked on
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_buffer_size: u64,
    /// Show a line for every tensor
    #[arg(short, long)]
    verbose: bool,
}

fn kind(text: &str) -> Result<TensorType> {
    parse_kind(text)
}

fn types_help() -> String {
    let mut text = String::from("Types (bits an element in a typical model)\n");
    for file_type in FileType::all() {
        text += &format!("  {:2} or {:10} {}\n", file_type.id(), file_type.name(), file_type.about());
    }
    text + "     Q3_K, Q4_K, Q5_K   short for the _M of each\n           COPY        copy the tensors, change metadata only\n"
}

/// IN, OUT, TYPE and THREADS, told apart.
#[derive(Debug, PartialEq)]
struct Positional {
    input: PathBuf,
    output: Option<PathBuf>,
    /// `None` for COPY.
    file_type: Option<FileType>,
    threads: Option<usize>,
}

impl Positional {
    /// Without a TYPE, where a size is given instead.
    fn parse_untyped(words: &[String]) -> Result<Self> {
        let (input, rest) = words.split_first().ok_or_else(|| Error::Usage("IN is missing".into()))?;
        let (output, threads) = match rest {
            [] => (None, None),
            [word] if word.parse::<usize>().is_ok() => (None, Some(word)),
            [output] => (Some(output), None),
            [output, threads] => (Some(output), Some(threads)),
            [.., extra] => return Err(Error::Usage(format!("{extra:?} is one argument too many"))),
        };
        let threads = threads.map(|threads| parse_threads(threads)).transpose()?;
        let file_type = Some(FileType::Q8_0);
        Ok(Self {
            input: input.into(),
            output: output.map(PathBuf::from),
            file_type,
            threads: threads.filter(|&n| n > 0),
        })
    }

    fn parse(words: &[String]) -> Result<Self> {
        let [input, rest @ ..] = words else { return Err(Error::Usage("IN and TYPE are missing".into())) };
        let (output, rest) = match rest {
            [first, others @ ..] if target(first).is_some() && target_not_next(others) => {
                (None, (first, others))
            }
            [first, second, others @ ..] => (Some(PathBuf::from(first)), (second, others)),
            [first] => return Err(unknown_type(first)),
            [] => return Err(Error::Usage("TYPE is missing; see `phi quantize --help` for the list".into())),
        };
        let (name, rest) = rest;
        let file_type = target(name).ok_or_else(|| unknown_type(name))?;
        let threads = match rest {
            [] => None,
            [threads] => Some(parse_threads(threads)?),
            [_, extra, ..] => return Err(Error::Usage(format!("{extra:?} is one argument too many"))),
        };
        Ok(Self { input: input.into(), output, file_type, threads: threads.filter(|&n| n > 0) })
    }
}

fn parse_threads(word: &str) -> Result<usize> {
    word.parse().map_err(|_| Error::Usage(format!("THREADS is {word:?}, but a number was expected")))
}

/// The type that `name` stands for; `Some(None)` is COPY.
fn target(name: &str) -> Option<Option<FileType>> {
    if name.eq_ignore_ascii_case("COPY") { Some(None) } else { FileType::from_name(name).map(Some) }
}

/// Whether what follows a type name is no type itself, so that the name is not an oddly named OUT.
fn target_not_next(others: &[String]) -> bool {
    others.first().is_none_or(|next| target(next).is_none() || next.parse::<u32>().is_ok())
}

fn unknown_type(name: &str) -> Error {
    let names: Vec<_> = FileType::all().map(FileType::name).collect();
    Error::Usage(format!("{name:?} is no quantization type; there are {}, COPY", names.join(", ")))
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let words = match args.budget() {
        Some(_) => Positional::parse_untyped(&args.positional)?,
        None => Positional::parse(&args.positional)?,
    };
    let options = args.options(&words)?;
    let (source, inputs) = open(&words.input)?;
    let (source, type_name) = (source.as_ref(), args.type_name(&words));

    let plan = match args.budget() {
        Some(budget) => plan_for(source, &options, budget)?,
        None => Plan::new(source, &options)?,
    };
    if args.dry_run {
        return dry_run(&plan, &options, &type_name);
    }
    let output =
        words.output.clone().unwrap_or_else(|| default_output(&words.input, &type_name, args.keep_split));
    let output = if args.keep_split { without_suffix(&output) } else { output };
    for part in 0..plan.parts.len() {
        let inputs = inputs.iter().chain(&args.imatrix).chain(&args.tensor_type_file);
        ensure_distinct(&plan.output_path(&output, part), inputs.map(PathBuf::as_path))?;
    }
    plan.check(source, &options)?;
    let report = args.report.as_deref().map(|path| ReportFile::create(path, &inputs)).transpose()?;
    if args.imatrix.is_some() && options.imatrix.is_none() {
        eprintln!("warning: no entry of the importance matrix is used; continuing without one");
    }
    warn_of_fallbacks(&plan);

    let mut display = Display::new(args.verbose, plan.bytes_in());
    let done = quantize::execute(source, Sink::File(&output), &plan, &options, &mut |event| {
        display.show(event, plan.tensors.len());
        ControlFlow::Continue(())
    });
    display.clear();
    let summary = done.with_context(|| format!("{} was not written", output.display()))?;
    eprintln!("{}", summary_line(&summary, &type_name));
    match report {
        Some(file) => file.write(&Report::new(&file_name(&words.input), &type_name, &plan, &summary)),
        None => Ok(()),
    }
}

/// Measures candidates and chooses types, with a bar on a terminal.
fn plan_for(source: &dyn Source, options: &Options, budget: Budget) -> Result<Plan> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("measuring tensors {wide_bar} {pos}/{len}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let plan = Plan::for_budget(source, options, budget, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    plan
}

/// The report's file, started before the work so that a wrong path is known at once.
struct ReportFile {
    file: AtomicFile,
    is_html: bool,
}

impl ReportFile {
    fn create(path: &Path, inputs: &[PathBuf]) -> Result<Self> {
        ensure_distinct(path, inputs.iter().map(PathBuf::as_path))?;
        let is_html = match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("html") => true,
            Some("json") => false,
            _ => return Err(Error::Usage(format!("{} is to be a .json or a .html file", path.display()))),
        };
        Ok(Self { file: AtomicFile::create(path, 1 << 20)?, is_html })
    }

    fn write(mut self, report: &Report<'_>) -> anyhow::Result<()> {
        let text = if self.is_html { report.to_html() } else { report.to_json() };
        self.file.write_all(text.as_bytes()).map_err(|error| self.file.write_error(error))?;
        Ok(self.file.commit()?)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

impl Args {
    fn budget(&self) -> Option<Budget> {
        let size = self.target_size.map(Budget::FileBytes);
        size.or(self.target_bpw.map(Budget::BitsPerElement))
    }

    /// What messages and default names call the result.
    fn type_name(&self, words: &Positional) -> String {
        match (self.budget(), words.file_type) {
            (Some(Budget::FileBytes(bytes)), _) => human_bytes(bytes).replace(' ', ""),
            (Some(Budget::BitsPerElement(bits)), _) => format!("{bits}bpw"),
            (None, Some(file_type)) => file_type.name().to_owned(),
            (None, None) => "COPY".to_owned(),
        }
    }

    fn options(&self, words: &Positional) -> Result<Options> {
        let mut by_name =
            self.tensor_type.iter().map(|text| parse_tensor_type(text)).collect::<Result<Vec<_>>>()?;
        for file in &self.tensor_type_file {
            by_name.extend(parse_tensor_type_file(file)?);
        }
        let recipe = words.file_type.map(|file_type| Recipe {
            pure: self.pure,
            leave_output: self.leave_output_tensor,
            output: self.output_tensor_type,
            token_embedding: self.token_embedding_type,
            by_name,
            ..Recipe::new(file_type)
        });
        let overrides: Result<Vec<(String, Value)>> =
            self.override_kv.iter().map(|text| parse_key_value(text)).collect();
        Ok(Options {
            imatrix: self.read_imatrix()?,
            allow_requantize: self.allow_requantize,
            overrides: overrides?,
            prune: self.prune_layers.as_deref().map(parse_layers).transpose()?.unwrap_or_default(),
            keep_split: self.keep_split,
            threads: words.threads,
            max_buffer: self.max_buffer_size << 20,
            measure: self.report.is_some(),
            ..Options::new(recipe)
        })
    }

    fn read_imatrix(&self) -> Result<Option<Imatrix>> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        let mut imatrix = Imatrix::open(path)?;
        imatrix.include(&self.include_weights);
        imatrix.exclude(&self.exclude_weights);
        Ok(Some(imatrix).filter(|imatrix| !imatrix.is_empty()))
    }
}

/// Opens a GGUF file or a checkpoint folder, and lists the files that are read from.
fn open(path: &Path) -> Result<(Box<dyn Source>, Vec<PathBuf>)> {
    if path.is_dir() {
        let options = convert::Options { outtype: OutType::Stored, ..convert::Options::default() };
        let conversion = Conversion::plan(&Checkpoint::open(path)?, &options)?;
        for warning in conversion.warnings() {
            eprintln!("warning: {warning}");
        }
        let files = std::fs::read_dir(path).map_err(|error| Error::io("read", path, error))?;
        let files = files.filter_map(|file| Some(file.ok()?.path()));
        // A GGUF file in the folder is no input: it is where the last output went.
        let files = files.filter(|file| file.extension().is_none_or(|suffix| suffix != "gguf")).collect();
        return Ok((Box::new(conversion), files));
    }
    let gguf = Gguf::open(path)?;
    let files = gguf.files().map(Path::to_owned).collect();
    Ok((Box::new(gguf), files))
}

/// "ggml-model-TYPE.gguf" beside the input, or in it if it is a folder.
fn default_output(input: &Path, type_name: &str, split: bool) -> PathBuf {
    let suffix = if split { "" } else { ".gguf" };
    let name = format!("ggml-model-{type_name}{suffix}");
    if input.is_dir() { input.join(name) } else { input.with_file_name(name) }
}

/// What the names of a split model's parts begin with.
fn without_suffix(output: &Path) -> PathBuf {
    if output.extension().is_some_and(|suffix| suffix == "gguf") {
        output.with_extension("")
    } else {
        output.into()
    }
}

/// Prints what would be made: a line a tensor, sizes by type and in all.
fn dry_run(plan: &Plan, options: &Options, type_name: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (index, tensor) in plan.tensors.iter().enumerate() {
        writeln!(out, "{}", tensor_line(index, plan.tensors.len(), tensor))?;
    }
    let mut by_type = std::collections::BTreeMap::<TensorType, (usize, u64)>::new();
    for tensor in &plan.tensors {
        let entry = by_type.entry(tensor.kind).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.bytes());
    }
    writeln!(out)?;
    for (kind, (count, bytes)) in by_type {
        writeln!(out, "{kind:8} {count:5} tensors {:>12}", human_bytes(bytes))?;
    }
    let bits = plan.bytes_out() as f64 * 8.0 / plan.elements().max(1) as f64;
    let (from, to) = (human_bytes(plan.bytes_in()), human_bytes(plan.bytes_out()));
    writeln!(out, "{type_name}: {from} -> {to} in all, {bits:.2} bits an element")?;
    if let Some(tensor) = plan.lacks_imatrix(options) {
        eprintln!(
            "warning: {type_name} needs an importance matrix (--imatrix), for {} to begin with",
            tensor.name
        );
    }
    warn_of_fallbacks(plan);
    Ok(())
}

fn tensor_line(index: usize, count: usize, tensor: &Planned) -> String {
    let shape: Vec<_> = tensor.shape.iter().map(u64::to_string).collect();
    let size = human_bytes(tensor.source_row_bytes() * tensor.rows());
    let head = format!(
        "[{:4}/{count:4}] {:36} [{:>14}] {:>7}",
        index + 1,
        tensor.name,
        shape.join(", "),
        tensor.from
    );
    if tensor.is_copied() {
        format!("{head} {size:>9}")
    } else {
        format!("{head} {size:>9} -> {:7} {:>9}", tensor.kind, human_bytes(tensor.bytes()))
    }
}

fn warn_of_fallbacks(plan: &Plan) {
    let fallbacks: Vec<_> = plan.tensors.iter().filter(|tensor| tensor.instead_of.is_some()).collect();
    let Some(first) = fallbacks.first() else { return };
    let wanted = first.instead_of.unwrap_or(first.kind);
    eprintln!(
        "warning: {} of {} tensors have rows that are no whole number of blocks and get another type \
         ({}: {} elements, {} instead of {wanted})",
        fallbacks.len(),
        plan.tensors.len(),
        first.name,
        first.columns(),
        first.kind,
    );
}

fn summary_line(summary: &Summary, type_name: &str) -> String {
    let seconds = summary.time.as_secs_f64();
    let written: Vec<_> = summary
        .outputs
        .iter()
        .map(|output| match output {
            Output::File(path) => path.display().to_string(),
            Output::Memory(_) => "memory".to_owned(),
        })
        .collect();
    let written = match &written[..] {
        [first, .., last] => format!("{first} … {last}"),
        other => other.join(""),
    };
    format!(
        "{written}: {type_name}, {} -> {}, {:.2} bits an element, {seconds:.1} s ({}/s)",
        human_bytes(summary.bytes_in),
        human_bytes(summary.bytes_out),
        summary.bits_per_element(),
        human_bytes((summary.bytes_in as f64 / seconds.max(1e-3)) as u64),
    )
}

/// Progress on stderr: a bar on a terminal, and a line a tensor if asked for.
struct Display {
    bar: Option<ProgressBar>,
    verbose: bool,
}

impl Display {
    fn new(verbose: bool, bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, verbose }
    }

    fn show(&mut self, event: Progress<'_>, tensors: usize) {
        match (event, &self.bar) {
            (Progress::Tensor { index, tensor }, None) if self.verbose => {
                eprintln!("{}", tensor_line(index, tensors, tensor));
            }
            (Progress::Tensor { index, tensor }, Some(bar)) if self.verbose => {
                bar.println(tensor_line(index, tensors, tensor));
            }
            (Progress::Bytes { done, .. }, Some(bar)) => bar.set_position(done),
            _ => {}
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Positional> {
        Positional::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn out_and_threads_may_be_left_out() {
        let expect = |words, output: Option<&str>, file_type, threads| {
            let parsed = parse(words).unwrap();
            let output = output.map(PathBuf::from);
            assert_eq!(parsed, Positional { input: "in.gguf".into(), output, file_type, threads }, "{words}");
        };
        let q4 = Some(FileType::Q4_K_M);
        expect("in.gguf out.gguf q4_k_m", Some("out.gguf"), q4, None);
        expect("in.gguf out.gguf 15 2", Some("out.gguf"), q4, Some(2));
        expect("in.gguf Q4_K", None, q4, None);
        expect("in.gguf Q4_K 8", None, q4, Some(8));
        expect("in.gguf out.gguf copy", Some("out.gguf"), None, None);
        expect("in.gguf q8_0 Q4_K_M", Some("q8_0"), q4, None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for wrong in ["in.gguf", "in.gguf out.gguf", "in.gguf out.gguf q9", "in.gguf out.gguf q8_0 x"] {
            assert!(matches!(parse(wrong), Err(Error::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn parts_are_named_without_the_suffix() {
        assert_eq!(without_suffix(Path::new("a/b.gguf")), Path::new("a/b"));
        assert_eq!(default_output(Path::new("a/b.gguf"), "Q8_0", false), Path::new("a/ggml-model-Q8_0.gguf"));
    }
}
