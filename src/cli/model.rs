//! How `-m MODEL` becomes a model: a GGUF file, a checkpoint folder, or the small model in the box.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::checkpoint::Checkpoint;
use crate::convert::{self, Conversion, OutType};
use crate::engine::KvType;
use crate::gguf::{Gguf, Output};
use crate::machine::{self, Numa};
use crate::quant::recipe::{FileType, Recipe};
use crate::quantize::{self, Progress, Sink};
use crate::text::{ChatTemplate, Tokenizer};
use crate::{Error, Result};

/// Which model.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A GGUF file, the first of a split model, or a checkpoint folder [default: the small model in the box]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// What a checkpoint folder is quantized to, in memory
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M", value_parser = file_type)]
    pub quantize: FileType,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum CacheType {
    F16,
    F32,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

/// How threads and memory are laid over memory nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumaArg {
    Distribute,
    Isolate,
    Numactl,
}

impl From<NumaArg> for Numa {
    fn from(how: NumaArg) -> Self {
        match how {
            NumaArg::Distribute => Self::Distribute,
            NumaArg::Isolate => Self::Isolate,
            NumaArg::Numactl => Self::Numactl,
        }
    }
}

/// Says so if placing threads will change nothing.
pub fn announce(numa: Option<NumaArg>) {
    if numa.is_some() && machine::memory_nodes() < 2 {
        eprintln!("phi: --numa changes nothing: this process has the processors of one memory node only");
    }
}

impl From<CacheType> for KvType {
    fn from(kind: CacheType) -> Self {
        match kind {
            CacheType::F32 => Self::F32,
            CacheType::F16 => Self::F16,
            CacheType::Bf16 => Self::Bf16,
            CacheType::Q8_0 => Self::Q8_0,
            CacheType::Q4_0 => Self::Q4_0,
        }
    }
}

/// The file type with this name, for clap.
pub fn file_type(name: &str) -> Result<FileType, String> {
    FileType::from_name(name).ok_or_else(|| {
        let names: Vec<_> = FileType::all().map(FileType::name).collect();
        format!("the types are {}", names.join(", "))
    })
}

/// Opens the model that the command line names.
pub fn open(args: &ModelArgs) -> Result<Arc<Gguf>> {
    let gguf = match &args.model {
        None => in_the_box()?,
        Some(folder) if folder.is_dir() => {
            from_folder(folder, args.quantize, &folder.to_string_lossy(), None)?
        }
        Some(path) => Gguf::open(path)?,
    };
    Ok(Arc::new(gguf))
}

/// The model's tokenizer.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    Tokenizer::from_gguf(gguf.metadata()).map_err(|fault| Error::invalid(gguf.path(), fault))
}

/// The model's chat template, if it has one.
pub fn chat_template(gguf: &Gguf) -> Result<Option<ChatTemplate>> {
    ChatTemplate::from_gguf(gguf.metadata()).map_err(|fault| Error::invalid(gguf.path(), fault))
}

/// Converts and quantizes a checkpoint folder in memory; `label` stands for the model in messages.
fn from_folder(folder: &Path, file_type: FileType, label: &str, model_name: Option<&str>) -> Result<Gguf> {
    let checkpoint = Checkpoint::open(folder)?;
    let model_name = model_name.map(str::to_owned);
    let options = convert::Options { outtype: OutType::Stored, model_name, ..convert::Options::default() };
    let conversion = Conversion::plan(&checkpoint, &options)?;
    let options = quantize::Options::new(Some(Recipe::new(file_type)));
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("quantizing {wide_bar} {bytes}/{total_bytes} {eta}");
    bar.set_style(style.expect("the template is well-formed"));
    let mut progress = |event: Progress<'_>| {
        if let Progress::Bytes { done, total } = event {
            bar.set_length(total);
            bar.set_position(done);
        }
        ControlFlow::Continue(())
    };
    let summary = quantize::run(&conversion, Sink::Memory(label), &options, &mut progress);
    bar.finish_and_clear();
    match summary?.outputs.pop() {
        Some(Output::Memory(image)) => Gguf::from_bytes(image, label),
        _ => unreachable!("one output was asked for, in memory"),
    }
}

/// Name of the model in the box.
const BOXED: &str = "phi-tiny";

/// The files of models/phi-tiny, and what they hold.
macro_rules! boxed_files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../models/phi-tiny/", $name)))),*]
    };
}

const BOXED_FILES: &[(&str, &[u8])] = boxed_files![
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
];

/// The model that is part of the binary.
fn in_the_box() -> Result<Gguf> {
    eprintln!(
        "phi: no model was given with -m, so {BOXED} answers, the small demonstration model in the box"
    );
    let failed = |error| Error::io("write to", std::env::temp_dir(), error);
    let folder = tempfile::Builder::new().prefix("phi-").tempdir().map_err(failed)?;
    // Names are guessed from a folder's, so it is always the same.
    let named = folder.path().join(BOXED);
    std::fs::create_dir(&named).map_err(failed)?;
    for (name, content) in BOXED_FILES {
        std::fs::write(named.join(name), content).map_err(failed)?;
    }
    from_folder(&named, FileType::F16, BOXED, Some(BOXED))
}
