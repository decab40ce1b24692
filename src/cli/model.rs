//! How `-m MODEL` becomes a model.

use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;

use crate::gguf::{Gguf, TensorType};
use crate::text::{ChatTemplate, Tokenizer};
use crate::{Error, Result};

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    F16,
    F32,
}

impl From<CacheType> for TensorType {
    fn from(kind: CacheType) -> Self {
        match kind {
            CacheType::F16 => Self::F16,
            CacheType::F32 => Self::F32,
        }
    }
}

/// Which model.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A GGUF file, the first of a split model, or a checkpoint folder [default: the small model in the box]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// What to quantize a checkpoint folder to, in memory
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M")]
    pub quantize: String,
}

/// Opens the model that the command line names.
pub fn open(args: &ModelArgs) -> Result<Arc<Gguf>> {
    let gguf = match &args.model {
        None => unimplemented!(),
        Some(path) if path.is_dir() => unimplemented!(),
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
