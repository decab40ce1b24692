//! Hugging Face checkpoint folders: config.json, safetensors, tokenizer files.
//!
//! A leaf: what is in the files, checked, without arithmetic on tensors.

mod card;
mod config;
mod fault;
mod sentencepiece;
mod tiktoken;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

pub use card::{Card, CardValue};
pub use config::{
    Architecture, BlockSparse, Experts, ModelConfig, Phi3Small, RopeFactors, SUPPORTED, architecture,
};
pub use fault::Fault;
pub use sentencepiece::{Piece, PieceKind, SentencePiece};
pub use weights::{DataType, PYTORCH, Tensor, Weights, is_weight_file, shards};

use crate::{Error, Result};

/// Larger text files are refused; the largest tokenizer.json in use is a tenth of this.
const TEXT_LIMIT: u64 = 256 << 20;

/// Templates besides the main one are in here.
const TEMPLATES: &str = "additional_chat_templates";

/// Files that are read besides the weights.
const TEXT_FILES: &[&str] = &[
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    tiktoken::NAME,
    weights::INDEX,
];

/// Whether a file of a checkpoint is one of those read here besides the weights; `name` is its path in the folder.
pub fn is_text_file(name: &str) -> bool {
    let template = || name.strip_prefix(TEMPLATES)?.strip_prefix('/')?.strip_suffix(".jinja");
    TEXT_FILES.contains(&name) || template().is_some_and(|name| !name.contains('/'))
}

/// An opened checkpoint folder of a supported architecture.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// What the model goes by where its folder's name is none.
    name: Option<String>,
    /// config.json as it is.
    config_json: Value,
    config: ModelConfig,
    weights: Arc<Weights>,
    tokenizer: TokenizerFiles,
    /// generation_config.json, if there is a valid one.
    generation_config: Option<Value>,
    card: Card,
}

/// The files that describe a checkpoint's tokenizer; `None` for those that are missing.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// tokenizer.model.
    pub model: Option<SentencePiece>,
    /// tokenizer.json, as text and parsed.
    pub json_text: Option<String>,
    pub json: Option<Value>,
    /// *.tiktoken (Phi-3-small's cl100k_base.tiktoken): the bytes of each token, by rank.
    pub tiktoken: Option<Vec<Vec<u8>>>,
    /// tokenizer_config.json.
    pub config: Option<Value>,
    /// added_tokens.json.
    pub added_tokens: Option<Value>,
    /// chat_template.jinja, or the template in chat_template.json; with additional_chat_templates/*.jinja.
    pub chat_template: Option<String>,
    /// Name and text of each file in additional_chat_templates/.
    pub additional_chat_templates: Vec<(String, String)>,
}

impl Checkpoint {
    /// Whether `path` looks like a checkpoint folder (it has a config.json).
    pub fn is_folder(path: &Path) -> bool {
        path.join("config.json").is_file()
    }

    /// Opens the checkpoint in `folder`.
    ///
    /// Errors: an unsupported architecture (named, with those that are supported), each [`Fault`] of a file.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with(folder, true)
    }

    /// Opens the checkpoint in `folder` for its vocabulary: its weights need not be there.
    pub fn open_for_vocabulary(folder: &Path) -> Result<Self> {
        Self::open_with(folder, false)
    }

    fn open_with(folder: &Path, with_weights: bool) -> Result<Self> {
        let config_path = folder.join("config.json");
        match std::fs::metadata(folder) {
            Err(error) => return Err(Error::io("open the checkpoint folder", folder, error)),
            Ok(found) if !found.is_dir() => return Err(Error::invalid(folder, Fault::NotAFolder)),
            Ok(_) => {}
        }
        let invalid = |fault| Error::invalid(&config_path, fault);
        let config_json = config_json(folder)?;
        if !config_json.is_object() {
            return Err(invalid(Fault::Json("an object was expected".into())));
        }
        let architecture = architecture(&config_json).map_err(invalid)?;
        if !SUPPORTED.contains(&architecture) {
            return Err(Error::Unsupported(format!(
                "{}: the architecture {architecture:?} is not supported; supported: {} (the text models from Phi-1 to Phi-4 and their fine-tunes)",
                config_path.display(),
                SUPPORTED.join(", ")
            )));
        }
        let config = ModelConfig::from_json(architecture, &config_json).map_err(invalid)?;
        let weights = match Weights::open(folder) {
            Err(_) if !with_weights => Weights::from_files(Vec::new())?,
            weights => weights?,
        };
        Ok(Self {
            config,
            weights: Arc::new(weights),
            tokenizer: TokenizerFiles::read(folder)?,
            // As for transformers, a broken one only means that there are no such settings.
            generation_config: read_json_if_there(&folder.join("generation_config.json")).unwrap_or_default(),
            card: Card::read(&folder.join("README.md")),
            config_json,
            folder: folder.to_owned(),
            name: None,
        })
    }

    /// Has the model called `name`, where the folder is called something else (after a commit, for instance).
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// The folder's name, or what it was [`named`](Self::named) in its place.
    pub fn folder_name(&self) -> String {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let folder = || name(&self.folder).or_else(|| name(&self.folder.canonicalize().ok()?));
        self.name.clone().or_else(folder).unwrap_or_else(|| "model".into())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// config.json as it is.
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// The files it consists of, whether or not all of them are there: none may be written to.
    pub fn files(&self) -> Vec<PathBuf> {
        let texts = TEXT_FILES.iter().map(|name| self.folder.join(name));
        self.weights.files().map(Path::to_owned).chain(texts).collect()
    }

    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    pub fn tokenizer(&self) -> &TokenizerFiles {
        &self.tokenizer
    }

    /// generation_config.json, if there is a valid one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// The model card: README.md's front matter.
    pub fn card(&self) -> &Card {
        &self.card
    }
}

impl TokenizerFiles {
    /// Reads what there is in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let model_path = folder.join("tokenizer.model");
        let model = match read_if_there(&model_path)? {
            Some(bytes) => {
                Some(SentencePiece::parse(&bytes).map_err(|fault| Error::invalid(&model_path, fault))?)
            }
            None => None,
        };
        let json_path = folder.join("tokenizer.json");
        let json_text = read_text_if_there(&json_path)?;
        let json = json_text.as_deref().map(|text| parse_json(&json_path, text)).transpose()?;
        let mut chat_template = read_text_if_there(&folder.join("chat_template.jinja"))?;
        let mut additional = Vec::new();
        if chat_template.is_some() {
            additional = additional_chat_templates(&folder.join(TEMPLATES))?;
        } else if let Some(json) = read_json_if_there(&folder.join("chat_template.json"))? {
            chat_template = json.get("chat_template").and_then(Value::as_str).map(str::to_owned);
        }
        Ok(Self {
            model,
            json_text,
            json,
            tiktoken: tiktoken::read(folder)?,
            config: read_json_if_there(&folder.join("tokenizer_config.json"))?,
            added_tokens: read_json_if_there(&folder.join("added_tokens.json"))?,
            chat_template,
            additional_chat_templates: additional,
        })
    }
}

/// Name (without .jinja) and text of each template in `folder`, sorted; none if there is no such folder.
fn additional_chat_templates(folder: &Path) -> Result<Vec<(String, String)>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut templates = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            templates.extend(read_text_if_there(&path)?.map(|text| (name, text)));
        }
    }
    templates.sort();
    Ok(templates)
}

/// The bytes of the file at `path`; `None` if there is none.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
        Ok(metadata) if metadata.len() > TEXT_LIMIT => {
            let fault = Fault::TooLarge { bytes: metadata.len(), limit: TEXT_LIMIT };
            return Err(Error::invalid(path, fault));
        }
        Ok(_) => {}
    }
    std::fs::read(path).map(Some).map_err(|error| Error::io("read", path, error))
}

fn read_text_if_there(path: &Path) -> Result<Option<String>> {
    let text = read_if_there(path)?.map(String::from_utf8).transpose();
    text.map_err(|_| Error::invalid(path, Fault::Utf8))
}

fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    read_text_if_there(path)?.map(|text| parse_json(path, &text)).transpose()
}

/// The config.json of the checkpoint in `folder`, of whatever architecture.
pub fn config_json(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Err(Error::invalid(folder, Fault::MissingFile("config.json")));
    }
    read_json(&path)
}

/// The JSON in the file at `path`, which must exist.
fn read_json(path: &Path) -> Result<Value> {
    let missing = || Error::io("read", path, std::io::ErrorKind::NotFound.into());
    read_json_if_there(path)?.ok_or_else(missing)
}

/// Parses; serde_json refuses to nest deeper than 128.
fn parse_json(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::invalid(path, Fault::Json(error.to_string())))
}
