//! `phi bench`: how fast models run here, beside what the machine could do at best.

mod list;
mod report;
mod subject;

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::ArgAction;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::list::{Numbers, Pair};
use self::report::{Format, Report, Row, Setup, test_name};
use self::subject::{Origin, Subject};
use super::model::{self, CacheType, NumaArg};
use super::offload::{self, DeviceArgs, GpuLayers, Wanted};
use crate::backend::cpu::Cpu;
use crate::bench::{Limits, SHAPES, Shape, Test, measure};
use crate::engine::{Engine, EngineOptions, KvType};
use crate::machine::{Numa, default_threads};
use crate::quant::recipe::FileType;
use crate::text::format_utc;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Options that take numbers take several, separated by commas or given again, and ranges
(FIRST-LAST, FIRST-LAST+STEP, FIRST-LAST*FACTOR); every combination is a test. Without -m a model
is made up in memory: the shape and the tensor types of a real one, filled with noise.

t/s is mean ± standard deviation; GB/s are the weights and the cached keys and values that had to
be read, GMAC/s the multiplications made. What the machine does at best with so many threads,
reading from memory and multiplying int8 and f32 numbers, is measured first: \"of limit\" is the
share of the time that it explains.

Examples
  phi bench                                      a Phi-3.5-mini in Q4_K_M, made up in memory
  phi bench -m phi-q4.gguf -p 512,2048 -n 64 -d 0,4096
  phi bench --type Q4_0,Q4_K_M,Q8_0 -t 1,2 -o json > results.json
  phi bench -m phi-q4.gguf -p 0 -n 32 -np 1-8*2   1, 2, 4 and 8 sequences at once
";

/// Measure how fast models run, beside what the machine could do at best
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file or a checkpoint folder; may be repeated [default: a model made up in memory]
    #[arg(short, long, value_name = "MODEL", action = ArgAction::Append, help_heading = "Model")]
    model: Vec<PathBuf>,
    /// Shape of the model made up in memory
    #[arg(long, value_name = "NAME", value_parser = shape, value_delimiter = ',', help_heading = "Model")]
    #[arg(default_value = "phi-3.5-mini", action = ArgAction::Append, long_help = shapes_help())]
    shape: Vec<Shape>,
    /// What the model made up in memory, or a checkpoint folder, is quantized to
    #[arg(long = "type", value_name = "TYPE", value_parser = model::file_type, help_heading = "Model")]
    #[arg(value_delimiter = ',', default_value = "Q4_K_M", action = ArgAction::Append)]
    kind: Vec<FileType>,

    #[command(flatten)]
    tests: TestArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Tests")]
struct TestArgs {
    /// Prompt tokens to read; 0 for none [default: 512]
    #[arg(short = 'p', long, value_name = "N", action = ArgAction::Append)]
    n_prompt: Vec<Numbers>,
    /// Tokens to generate; 0 for none [default: 128]
    #[arg(short = 'n', long, value_name = "N", action = ArgAction::Append)]
    n_gen: Vec<Numbers>,
    /// -pg: a prompt and generation after it, timed together; -p and -n are 0 then unless given
    #[arg(long = "pg", value_name = "PROMPT,GEN", action = ArgAction::Append)]
    both: Vec<Pair>,
    /// Tokens that are in the context before [default: 0]
    #[arg(short = 'd', long, value_name = "N", action = ArgAction::Append)]
    n_depth: Vec<Numbers>,
    /// -np: sequences generated at once, sharing each pass over the weights [default: 1]
    #[arg(long, value_name = "N", action = ArgAction::Append)]
    parallel: Vec<Numbers>,
    /// Threads [default: one a physical core that this process may use]
    #[arg(short, long, value_name = "N", action = ArgAction::Append)]
    threads: Vec<Numbers>,
    /// Prompt tokens read at once, at most [default: 2048]
    #[arg(short, long, value_name = "N", action = ArgAction::Append)]
    batch_size: Vec<Numbers>,
    /// -ub: prompt tokens computed at once, at most [default: 512, with AMX 1024]
    #[arg(long, value_name = "N", action = ArgAction::Append)]
    ubatch_size: Vec<Numbers>,
    /// -ctk: element type of the cached keys
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "f16", action = ArgAction::Append)]
    cache_type_k: Vec<CacheType>,
    /// -ctv: element type of the cached values
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "f16", action = ArgAction::Append)]
    cache_type_v: Vec<CacheType>,
    /// Spread threads and memory over the memory nodes of the machine, or keep to one
    #[arg(long, value_name = "HOW")]
    numa: Option<NumaArg>,
    /// -ngl: layers to put on GPUs, counted from the last: numbers, all, or auto [default: auto]
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N", value_delimiter = ',')]
    #[arg(allow_negative_numbers = true, action = ArgAction::Append)]
    #[arg(env = "PHI_GPU_LAYERS", hide_env_values = true)]
    gpu_layers: Vec<GpuLayers>,
    #[command(flatten)]
    devices: DeviceArgs,
    /// Times that each test is repeated
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Do not run each test once unmeasured before
    #[arg(long)]
    no_warmup: bool,
    /// Seconds to wait before each test
    #[arg(long, value_name = "S", default_value_t = 0)]
    delay: u64,
    /// Priority of the process: -1 low, 0 normal, 1 medium, 2 high, 3 highest
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i8).range(-1..=3))]
    prio: i8,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// What to print on stdout
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
    /// -oe: what to print on stderr besides
    #[arg(long, value_name = "FORMAT")]
    output_err: Option<Format>,
    /// Say on stderr what is being measured, a line a repetition
    #[arg(long)]
    progress: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.tests.devices.listed() {
        return Ok(());
    }
    let setups = args.tests.setups()?;
    let origins = Origin::all(&args.model, &args.shape, &args.kind)?;
    model::announce(args.tests.numa);
    set_priority(args.tests.prio);
    let mut bench = Bench {
        out: Report::new(io::stdout().lock(), args.output.output),
        err: args.output.output_err.map(|format| Report::new(io::stderr(), format)),
        cpu: cpu_name(),
        limits: HashMap::new(),
        narrator: Narrator::new(args.output.progress, origins.len() * setups.len()),
        args: args.tests,
    };
    for origin in &origins {
        bench.run(origin, &setups)?;
    }
    bench.narrator.finish();
    bench.out.finish()?;
    if let Some(err) = bench.err {
        err.finish()?;
    }
    Ok(())
}

struct Bench<W> {
    out: Report<W>,
    err: Option<Report<io::Stderr>>,
    cpu: String,
    /// By number of threads.
    limits: HashMap<usize, Limits>,
    narrator: Narrator,
    args: TestArgs,
}

impl<W: Write> Bench<W> {
    /// All tests of one model.
    fn run(&mut self, origin: &Origin, setups: &[Setup]) -> anyhow::Result<()> {
        self.narrator.say("opening the model");
        let gguf = origin.open()?;
        let subject = Subject::new(&gguf);
        let mut engine: Option<(Setup, Engine, Wanted)> = None;
        for setup in setups {
            let limits = self.limits(setup.threads);
            std::thread::sleep(Duration::from_secs(self.args.delay));
            if engine.as_ref().is_none_or(|(held, ..)| !held.same_engine(setup)) {
                // One engine at a time: idle threads of another would wait in the way.
                drop(engine.take());
                let types = (setup.type_k, setup.type_v);
                let wanted = self.args.devices.plan(setup.gpu_layers, setup.test.context(), types)?;
                let options = EngineOptions {
                    offload: wanted.offload.clone(),
                    ..setup.engine_options(self.args.numa.map(Numa::from))
                };
                let made = self.narrator.bar.suspend(|| offload::engine(gguf.clone(), options, &wanted))?;
                engine = Some((setup.clone(), made, wanted));
            }
            let (_, engine, wanted) = engine.as_ref().expect("it was just made");
            let name = format!("{}, {}", subject.description, test_name(&setup.test));
            let (repetitions, warm_up) = (self.args.repetitions.max(1), !self.args.no_warmup);
            let narrator = &mut self.narrator;
            let mut progress = |repetition| narrator.repetition(&name, repetition, repetitions);
            let measurement = measure(engine, &setup.test, repetitions, warm_up, &limits, &mut progress)?;
            let row = Row {
                subject: &subject,
                setup,
                measurement: &measurement,
                limits: &limits,
                cpu: &self.cpu,
                gpu: wanted.names(engine.offloaded()),
                gpu_layers: engine.offloaded().count() + usize::from(engine.offloaded().head),
                time: now(),
            };
            self.narrator.bar.suspend(|| -> io::Result<()> {
                self.out.row(&row)?;
                self.err.as_mut().map_or(Ok(()), |err| err.row(&row))
            })?;
            self.narrator.bar.inc(1);
        }
        Ok(())
    }

    /// The machine's limits with so many threads, measured once.
    fn limits(&mut self, threads: usize) -> Limits {
        if let Some(limits) = self.limits.get(&threads) {
            return *limits;
        }
        self.narrator.say("measuring the machine");
        let limits = Limits::measure(threads);
        self.narrator.bar.suspend(|| {
            eprintln!(
                "phi: {}, {threads} threads: reads {:.1} GB/s, multiplies {:.0} G int8 and {:.0} G f32 a second ({})",
                self.cpu,
                limits.read / 1e9,
                limits.integer / 1e9,
                limits.float / 1e9,
                crate::simd::Level::current().name(),
            );
        });
        self.limits.insert(threads, limits);
        limits
    }
}

impl TestArgs {
    /// Every combination of what was asked for, those that share an engine next to each other.
    fn setups(&self) -> Result<Vec<Setup>> {
        let tests = self.tests()?;
        let threads = Numbers::counts(&self.threads, default_threads(), "-t")?;
        let batches = Numbers::counts(&self.batch_size, 2048, "-b")?;
        let ubatches = Numbers::counts(&self.ubatch_size, Cpu::tokens_at_once(), "-ub")?;
        let layers: Vec<Option<GpuLayers>> = match &self.gpu_layers[..] {
            [] => vec![None],
            several => several.iter().copied().map(Some).collect(),
        };
        let mut setups = Vec::new();
        for &threads in &threads {
            for &batch in &batches {
                for &ubatch in &ubatches {
                    for (type_k, type_v) in self.cache_types() {
                        setups.extend(layers.iter().flat_map(|&gpu_layers| {
                            let of = move |&test: &Test| Setup {
                                test,
                                batch,
                                ubatch,
                                threads,
                                gpu_layers,
                                type_k,
                                type_v,
                            };
                            tests.iter().map(of)
                        }));
                    }
                }
            }
        }
        Ok(setups)
    }

    fn tests(&self) -> Result<Vec<Test>> {
        // As in llama-bench, -pg alone is all that is wanted.
        let unless_both = |default| if self.both.is_empty() { default } else { 0 };
        let prompts = Numbers::all(&self.n_prompt, unless_both(512));
        let generates = Numbers::all(&self.n_gen, unless_both(128));
        let parallels = Numbers::counts(&self.parallel, 1, "-np")?;
        let mut tests = Vec::new();
        for &depth in &Numbers::all(&self.n_depth, 0) {
            let prompts = prompts.iter().filter(|&&prompt| prompt > 0);
            // Prompts are read one after the other, so more of them are no other test.
            tests.extend(prompts.map(|&prompt| Test { prompt, generate: 0, depth, parallel: 1 }));
            for &parallel in &parallels {
                let generates = generates.iter().filter(|&&generate| generate > 0);
                tests.extend(generates.map(|&generate| Test { prompt: 0, generate, depth, parallel }));
                let both = self.both.iter().filter(|Pair(prompt, generate)| prompt + generate > 0);
                tests.extend(both.map(|&Pair(prompt, generate)| Test { prompt, generate, depth, parallel }));
            }
        }
        if tests.is_empty() {
            return Err(Error::Usage("there is nothing to measure: -p and -n are both 0".to_owned()));
        }
        Ok(tests)
    }

    fn cache_types(&self) -> Vec<(KvType, KvType)> {
        let of = |&k: &CacheType| self.cache_type_v.iter().map(move |&v| (k.into(), v.into()));
        self.cache_type_k.iter().flat_map(of).collect()
    }
}

impl Setup {
    /// Whether an engine made for `other` will do.
    fn same_engine(&self, other: &Self) -> bool {
        let key = |setup: &Self| {
            (setup.threads, setup.batch.min(setup.ubatch), setup.gpu_layers, setup.type_k, setup.type_v)
        };
        key(self) == key(other)
    }

    fn engine_options(&self, numa: Option<Numa>) -> EngineOptions {
        EngineOptions {
            threads: Some(self.threads),
            numa,
            cache_type_k: self.type_k,
            cache_type_v: self.type_v,
            batch: self.batch.min(self.ubatch),
            ..EngineOptions::default()
        }
    }
}

/// Says on stderr what is going on: lines if asked for, else a bar on a terminal.
struct Narrator {
    lines: bool,
    bar: ProgressBar,
}

impl Narrator {
    fn new(lines: bool, tests: usize) -> Self {
        let target = if lines { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(tests as u64), target);
        let style = ProgressStyle::with_template("{pos}/{len} {msg}").expect("the template is well-formed");
        Self { lines, bar: bar.with_style(style) }
    }

    fn say(&self, what: &str) {
        if self.lines {
            eprintln!("phi: {what}");
        }
        self.bar.set_message(what.to_owned());
    }

    fn repetition(&mut self, test: &str, repetition: usize, of: usize) {
        match repetition {
            0 => self.say(&format!("{test}: warming up")),
            _ => self.say(&format!("{test}: {repetition} of {of}")),
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::find(name).ok_or_else(shapes_help)
}

fn shapes_help() -> String {
    let names: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
    format!("Shape of the model made up in memory: {}", names.join(", "))
}

fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format_utc(since.as_secs(), "%FT%TZ")
}

/// The processor's name, where the system says it.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Has the system prefer this process, or the others; says so if it must not.
fn set_priority(level: i8) {
    if level == 0 {
        return;
    }
    #[cfg(unix)]
    {
        // What llama.cpp's levels are.
        let nice = match level {
            -1 => 5,
            1 => -5,
            2 => -10,
            _ => -20,
        };
        // SAFETY: takes numbers only.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } == 0 {
            return;
        }
    }
    eprintln!("phi: the system does not allow --prio {level}, so it stays normal");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn names(line: &str) -> Vec<String> {
        let args = Line::parse_from(["bench"].into_iter().chain(line.split_whitespace())).args;
        args.tests.tests().unwrap().iter().map(test_name).collect()
    }

    #[test]
    fn every_combination_is_a_test() {
        assert_eq!(names(""), ["pp512", "tg128"]);
        assert_eq!(names("-p 1,2 -n 0"), ["pp1", "pp2"]);
        assert_eq!(names("-p 0 -n 8 --parallel 1-4*2 -d 0,5").len(), 6);
        assert_eq!(names("--pg 5,6"), ["pp5+tg6"]);
        assert_eq!(names("--pg 5,6 -p 3"), ["pp3", "pp5+tg6"]);
        let nothing = Line::parse_from(["bench", "-p", "0", "-n", "0"]).args;
        assert!(nothing.tests.tests().is_err());
        let many = Line::parse_from(["bench", "-t", "1,2", "-b", "8,9", "--cache-type-k", "f16,f32"]).args;
        let setups = many.tests.setups().unwrap();
        assert_eq!(setups.len(), 16);
        let engines = setups.windows(2).filter(|pair| !pair[0].same_engine(&pair[1])).count() + 1;
        assert_eq!(engines, 8, "tests on the same engine follow each other");
    }
}
