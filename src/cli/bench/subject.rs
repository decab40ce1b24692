//! What is measured: a model from a file or folder, or one made up in memory.

use crate::cli::hub::HubArgs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bench::{Shape, synthetic};
use crate::cli::model::{self, ModelArgs};
use crate::gguf::{Gguf, TensorInfo};
use crate::quant::recipe::FileType;
use crate::{Error, Result};

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A GGUF file.
    File(PathBuf),
    /// A checkpoint folder and what it is quantized to.
    Folder(PathBuf, FileType),
    Synthetic(Shape, FileType),
}

impl Origin {
    /// All models that the command line names.
    pub fn all(models: &[PathBuf], shapes: &[Shape], types: &[FileType]) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for path in models.iter().flat_map(|path| paths(path)) {
            if path.is_dir() {
                all.extend(types.iter().map(|&kind| Self::Folder(path.clone(), kind)));
            } else if path.exists() {
                all.push(Self::File(path));
            } else {
                return Err(Error::io("open", &path, std::io::ErrorKind::NotFound.into()));
            }
        }
        if models.is_empty() {
            let pairs = shapes.iter().flat_map(|&shape| types.iter().map(move |&kind| (shape, kind)));
            all.extend(pairs.map(|(shape, kind)| Self::Synthetic(shape, kind)));
        }
        Ok(all)
    }

    /// Opens or makes it.
    pub fn open(&self) -> Result<Arc<Gguf>> {
        let args = |path: &Path, quantize| ModelArgs {
            model: Some(path.to_owned()),
            quantize,
            hub: HubArgs::default(),
        };
        match self {
            Self::File(path) => model::open(&args(path, FileType::Q4_K_M)),
            Self::Folder(path, kind) => model::open(&args(path, *kind)),
            Self::Synthetic(shape, kind) => synthetic(shape, *kind).map(Arc::new),
        }
    }
}

/// A path, or several with commas between them.
fn paths(path: &Path) -> Vec<PathBuf> {
    match path.to_str() {
        Some(text) if !path.exists() => text.split(',').map(PathBuf::from).collect(),
        _ => vec![path.to_owned()],
    }
}

/// What a report says about a model.
pub struct Subject {
    pub filename: String,
    /// Architecture or shape, size, type.
    pub description: String,
    /// Of all tensors.
    pub bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
}

impl Subject {
    pub fn new(gguf: &Gguf) -> Self {
        let parameters: u64 = gguf.tensors().iter().map(TensorInfo::elements).sum();
        let text = |key: &str| gguf.metadata().string(key).ok().flatten();
        let file_type = gguf.metadata().u32("general.file_type").ok().flatten().and_then(FileType::from_id);
        let name = text("general.architecture").unwrap_or("?");
        let size = if parameters < 999_500_000 {
            format!("{:.0}M", parameters as f64 / 1e6)
        } else {
            format!("{:.1}B", parameters as f64 / 1e9)
        };
        Self {
            filename: gguf.path().display().to_string(),
            description: format!("{name} {size} {}", file_type.map_or("", FileType::name)).trim().to_owned(),
            bytes: gguf.tensors().iter().map(TensorInfo::bytes).sum(),
            parameters,
        }
    }
}
