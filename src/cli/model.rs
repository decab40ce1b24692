//! How `-m MODEL` becomes a model: a GGUF file, a checkpoint folder, or the small model in the box.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;

use super::hub::{Found, HubArgs, Model, Spec};
use super::progress;
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
    #[arg(short, long, value_name = "MODEL", conflicts_with = "hf_repo")]
    pub model: Option<PathBuf>,
    /// What a checkpoint folder is quantized to, in memory
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M", value_parser = file_type)]
    pub quantize: FileType,
    #[command(flatten)]
    pub hub: HubArgs,
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
    let gguf = match (&args.model, &args.hub.hf_repo) {
        (None, None) => in_the_box()?,
        (None, Some(spec)) => from_hub(args, spec)?,
        (Some(folder), _) if folder.is_dir() => {
            in_memory(&Checkpoint::open(folder)?, args.quantize, &folder.to_string_lossy(), None)?
        }
        (Some(path), _) => Gguf::open(path)?,
    };
    Ok(Arc::new(gguf))
}

/// Opens a model of the hub; what is quantized from a checkpoint is kept for the next time.
fn from_hub(args: &ModelArgs, spec: &Spec) -> Result<Gguf> {
    let found = Found::look_up(&args.hub.access, &spec.repo)?;
    let (files, kind) = match found.model(spec, args.hub.hf_file.as_deref())? {
        Model::Gguf(path) => return Gguf::open(&path),
        Model::Checkpoint(files, kind) => (files, kind.unwrap_or(args.quantize)),
    };
    let path = found.made_path(kind);
    if !path.is_file() {
        let checkpoint = found.open_checkpoint(&files)?;
        let folder = path.parent().unwrap_or(&path);
        let made = std::fs::create_dir_all(folder)
            .map_err(|error| Error::io("create the folder", folder, error))
            .and_then(|()| quantize(&checkpoint, kind, Sink::File(&path), None));
        match made {
            Ok(_) => eprintln!("phi: the model quantized to {} is kept in {}", kind.name(), path.display()),
            Err(error @ (Error::Io { .. } | Error::Resources(_))) => {
                eprintln!("phi: {error}; going on in memory");
                return in_memory(&checkpoint, kind, &spec.repo.to_string(), None);
            }
            Err(error) => return Err(error),
        }
    }
    Gguf::open(&path)
}

/// The model's tokenizer.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    Tokenizer::from_gguf(gguf.metadata()).map_err(|fault| Error::invalid(gguf.path(), fault))
}

/// The model's chat template, if it has one.
pub fn chat_template(gguf: &Gguf) -> Result<Option<ChatTemplate>> {
    ChatTemplate::from_gguf(gguf.metadata()).map_err(|fault| Error::invalid(gguf.path(), fault))
}

/// Converts and quantizes a checkpoint in memory; `label` stands for the model in messages.
fn in_memory(
    checkpoint: &Checkpoint,
    file_type: FileType,
    label: &str,
    model_name: Option<&str>,
) -> Result<Gguf> {
    match quantize(checkpoint, file_type, Sink::Memory(label), model_name)? {
        Some(Output::Memory(image)) => Gguf::from_bytes(image, label),
        _ => unreachable!("one output was asked for, in memory"),
    }
}

/// Converts and quantizes a checkpoint, with a bar on a terminal.
fn quantize(
    checkpoint: &Checkpoint,
    file_type: FileType,
    sink: Sink<'_>,
    model_name: Option<&str>,
) -> Result<Option<Output>> {
    let model_name = model_name.map(str::to_owned);
    let options = convert::Options { outtype: OutType::Stored, model_name, ..convert::Options::default() };
    let conversion = Conversion::plan(checkpoint, &options)?;
    let options = quantize::Options::new(Some(Recipe::new(file_type)));
    let bar = progress::bytes("quantizing");
    let mut progress = |event: Progress<'_>| {
        if let Progress::Bytes { done, total } = event {
            bar.set_length(total);
            bar.set_position(done);
        }
        ControlFlow::Continue(())
    };
    let summary = quantize::run(&conversion, sink, &options, &mut progress);
    bar.finish_and_clear();
    Ok(summary?.outputs.pop())
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
    in_memory(&Checkpoint::open(&named)?, FileType::F16, BOXED, Some(BOXED))
}
