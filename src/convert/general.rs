//! The `general.*` keys: what the model is called, from its card, its config.json and its folder's name.
//!
//! Same keys and values as convert_hf_to_gguf.py (the gguf package's `Metadata.load`), in the same order.

use serde_json::Value as Json;

use super::model_id::{ModelId, title};
use crate::checkpoint::{Card, CardValue, Checkpoint};
use crate::gguf::{Array, Metadata, Value};

/// A model's name and its parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Naming {
    pub name: String,
    pub author: Option<String>,
    pub version: Option<String>,
    pub organization: Option<String>,
    pub finetune: Option<String>,
    pub basename: Option<String>,
    pub description: Option<String>,
    pub size_label: Option<String>,
}

impl Naming {
    /// The card's word goes before config.json's `_name_or_path`, and that before the folder's name.
    /// `parameters` is 0 if unknown; `label` is the size that the weights have; `model_name` replaces the name.
    pub fn of(
        checkpoint: &Checkpoint,
        parameters: u64,
        label: Option<String>,
        model_name: Option<&str>,
    ) -> Self {
        let card = checkpoint.card();
        let first = |keys: &[&str]| keys.iter().find_map(|key| card.text(key)).map(str::to_owned);
        let mut id = ModelId {
            name: first(&["name", "model_name"]),
            organization: first(&["organization", "model_organization"]),
            basename: first(&["basename", "model_basename", "model_type"]),
            finetune: first(&["finetune", "model_finetune"]),
            version: first(&["version", "model_version"]),
            size_label: first(&["size_label", "model_size_label"]),
        };
        let config_name = checkpoint.config_json().get("_name_or_path").and_then(Json::as_str);
        // More than one slash means a path on somebody's machine.
        if let Some(name) = config_name.filter(|name| name.matches('/').count() <= 1) {
            fill(&mut id, ModelId::parse(name, parameters));
        }
        let folder = checkpoint.folder_name();
        fill(&mut id, ModelId::parse(&folder, parameters));
        Self {
            name: model_name.map(str::to_owned).or(id.name).unwrap_or(folder),
            author: first(&["author", "model_author", "model_creator"]),
            version: id.version,
            organization: id.organization,
            finetune: id.finetune,
            basename: id.basename,
            description: first(&["description", "model_description"]),
            size_label: id.size_label.or(label),
        }
    }

    /// The name that a file gets by default, without ".gguf": "Phi-3.5-mini-instruct-F16".
    /// `encoding` is `None` for a file with a vocabulary only.
    pub fn file_stem(&self, encoding: Option<&str>) -> String {
        let base = self.basename.as_ref().unwrap_or(&self.name).trim().replace([' ', '/'], "-");
        let mut stem = base;
        let size = self.size_label.as_ref().filter(|_| encoding.is_some()).cloned();
        let dashed = |text: &Option<String>| text.as_ref().map(|text| text.trim().replace(' ', "-"));
        let kind = if encoding.is_none() { Some("vocab".to_owned()) } else { None };
        let parts = [size, dashed(&self.finetune), dashed(&self.version), encoding.map(str::to_owned), kind];
        for part in parts.into_iter().flatten() {
            stem.push('-');
            stem.push_str(&part);
        }
        stem
    }

    /// Writes `general.type`, the sampling settings of `checkpoint`, the naming and what its card says.
    pub fn write(&self, checkpoint: &Checkpoint, parameters: u64, metadata: &mut Metadata) {
        metadata.set("general.type", Value::from("model"));
        sampling(checkpoint.generation_config(), metadata);
        let mut text = |key: &str, value: Option<&str>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                metadata.set(key, Value::from(value));
            }
        };
        text("general.name", Some(&self.name));
        text("general.author", self.author.as_deref());
        text("general.version", self.version.as_deref());
        text("general.organization", self.organization.as_deref());
        text("general.finetune", self.finetune.as_deref());
        text("general.basename", self.basename.as_deref());
        text("general.description", self.description.as_deref());
        text("general.size_label", self.size_label.as_deref());
        card_keys(checkpoint.card(), parameters, metadata);
    }
}

/// Takes from `other` what `id` does not know yet; names get capitals.
fn fill(id: &mut ModelId, other: ModelId) {
    let take = |into: &mut Option<String>, from: Option<String>| {
        if into.is_none() {
            *into = from;
        }
    };
    take(&mut id.name, other.name.as_deref().map(title));
    take(&mut id.organization, other.organization.as_deref().map(title));
    take(&mut id.basename, other.basename);
    take(&mut id.finetune, other.finetune);
    take(&mut id.version, other.version);
    take(&mut id.size_label, other.size_label);
}

/// The sampling settings that generation_config.json recommends.
fn sampling(config: Option<&Json>, metadata: &mut Metadata) {
    let get = |key: &str| config.and_then(|config| config.get(key)).filter(|value| !value.is_null());
    let text =
        |value: Option<&Json>| value.and_then(Json::as_str).filter(|text| !text.is_empty()).map(Value::from);
    let float = |value: Option<&Json>| value.and_then(Json::as_f64).map(|number| Value::F32(number as f32));
    let integer = |value: Option<&Json>| {
        value.and_then(Json::as_i64).and_then(|number| i32::try_from(number).ok()).map(Value::I32)
    };
    let settings = [
        ("sequence", text(get("sequence"))),
        ("top_k", integer(get("top_k"))),
        ("top_p", float(get("top_p"))),
        ("min_p", float(get("min_p"))),
        ("xtc_probability", float(get("xtc_probability"))),
        ("xtc_threshold", float(get("xtc_threshold"))),
        ("temp", float(get("temperature"))),
        ("penalty_last_n", integer(get("penalty_last_n"))),
        ("penalty_repeat", float(get("penalty_repeat").or(get("repetition_penalty")))),
        ("mirostat", integer(get("mirostat"))),
        ("mirostat_tau", float(get("mirostat_tau"))),
        ("mirostat_eta", float(get("mirostat_eta"))),
    ];
    for (key, value) in settings {
        if let Some(value) = value {
            metadata.set(format!("general.sampling.{key}"), value);
        }
    }
}

/// License, sources, base models, data sets, tags and languages.
fn card_keys(card: &Card, parameters: u64, metadata: &mut Metadata) {
    let mut text = |key: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            metadata.set(key, Value::String(value));
        }
    };
    let first = |keys: &[&str]| keys.iter().find_map(|key| card.text(key)).map(str::to_owned);
    let license = match card.get("license") {
        Some(CardValue::Text(text)) => Some(text.clone()),
        Some(CardValue::List(items)) => Some(items.join(",")),
        None => None,
    };
    text("general.license", license);
    text("general.license.name", first(&["license_name"]));
    text("general.license.link", first(&["license_link"]));
    text("general.source.url", first(&["url", "model_url"]));
    text("general.source.doi", first(&["doi", "model_doi"]));
    text("general.source.uuid", first(&["uuid", "model_uuid"]));
    text("general.source.repo_url", first(&["repo_url", "model_repo_url"]));
    origins(card, &["base_model", "base_models", "base_model_sources"], "base_model", parameters, metadata);
    origins(card, &["datasets", "dataset", "dataset_sources"], "dataset", parameters, metadata);
    for (key, from) in [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])] {
        let items: Vec<String> = from.iter().flat_map(|key| items(card.get(key))).collect();
        if !items.is_empty() {
            metadata.set(format!("general.{key}"), Value::Array(Array::String(items)));
        }
    }
}

fn items(value: Option<&CardValue>) -> Vec<String> {
    match value {
        Some(CardValue::Text(text)) => vec![text.clone()],
        Some(CardValue::List(items)) => items.clone(),
        None => Vec::new(),
    }
}

/// The models or data sets that this model comes from.
fn origins(card: &Card, card_keys: &[&str], key: &str, parameters: u64, metadata: &mut Metadata) {
    let Some(value) = card_keys.iter().find_map(|key| card.get(key)) else { return };
    let ids = items(Some(value));
    metadata.set(format!("general.{key}.count"), Value::U32(ids.len() as u32));
    for (at, id) in ids.iter().enumerate() {
        let is_url = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
        let hub = ["https://huggingface.co/", "http://huggingface.co/"];
        let path = if is_url { hub.iter().find_map(|hub| id.strip_prefix(hub)) } else { Some(id.as_str()) };
        // On the hub, models are ORGANIZATION/NAME.
        let path = path.filter(|path| {
            !is_url
                || path.split('/').filter(|part| !part.is_empty()).count() == 2
                    && path.matches('/').count() == 1
        });
        let parts = path.map(|path| ModelId::parse(path, parameters)).unwrap_or_default();
        let repository = match (&parts.organization, &parts.name) {
            _ if is_url => Some(id.clone()),
            (Some(organization), Some(name)) => Some(format!("https://huggingface.co/{organization}/{name}")),
            _ => None,
        };
        let values = [
            ("name", parts.name.as_deref().map(title)),
            ("version", parts.version),
            ("organization", parts.organization.as_deref().map(title)),
            ("repo_url", repository),
        ];
        for (part, value) in values {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                metadata.set(format!("general.{key}.{at}.{part}"), Value::String(value));
            }
        }
    }
}
