//! The special tokens' ids, whether a text gets them, and the chat templates.
//!
//! Same keys and values as convert_hf_to_gguf.py (the gguf package's `SpecialVocab`).

use serde_json::{Map, Value as Json};

use crate::checkpoint::{Checkpoint, TokenizerFiles};
use crate::gguf::{Array, Metadata, Value};

/// The special tokens, in the order in which they are looked up.
const KINDS: &[&str] = &["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// What tokenizer files say about special tokens.
struct Special {
    /// tokenizer_config.json's fields; what tokenizer.json knows better is changed here.
    config: Map<String, Json>,
    has_config: bool,
    kinds: Vec<&'static str>,
    /// Token ids by kind, in the order found.
    ids: Vec<(&'static str, u32)>,
    /// Whether a text gets the token, by kind, in the order found.
    add: Vec<(&'static str, bool)>,
}

/// Writes `tokenizer.ggml.*_token_id`, `tokenizer.ggml.add_*_token`, the chat templates and the normalizer's flags.
pub(super) fn write(checkpoint: &Checkpoint, vocab_size: u32, metadata: &mut Metadata) {
    let files = checkpoint.tokenizer();
    let config = files.config.as_ref().and_then(Json::as_object);
    let mut special = Special {
        config: config.cloned().unwrap_or_default(),
        has_config: config.is_some(),
        kinds: KINDS.to_vec(),
        ids: Vec::new(),
        add: Vec::new(),
    };
    if let Some(json) = &files.json {
        special.read_post_processor(json);
    }
    special.read_config(files.json.as_ref(), vocab_size);
    for kind in special.kinds.clone() {
        let id = checkpoint.config_json().get(format!("{kind}_token_id"));
        special.set_id(kind, id, vocab_size);
    }
    for (kind, id) in &special.ids {
        if let Some(key) = id_key(kind) {
            metadata.set(key, Value::U32(*id));
        }
    }
    for (kind, add) in &special.add {
        if matches!(*kind, "bos" | "eos" | "sep") {
            metadata.set(format!("tokenizer.ggml.add_{kind}_token"), Value::Bool(*add));
        }
    }
    chat_templates(files, metadata);
    if let Some(normalizer) = files.json.as_ref().and_then(|json| json.get("normalizer")) {
        normalizer_flags(normalizer, metadata);
    }
}

/// The key of a kind's id ("seperator" is how the format spells it); `None` where there is none.
fn id_key(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bos" => "tokenizer.ggml.bos_token_id",
        "eos" => "tokenizer.ggml.eos_token_id",
        "unk" => "tokenizer.ggml.unknown_token_id",
        "sep" => "tokenizer.ggml.seperator_token_id",
        "pad" => "tokenizer.ggml.padding_token_id",
        "mask" => "tokenizer.ggml.mask_token_id",
        "eot" => "tokenizer.ggml.eot_token_id",
        "eom" => "tokenizer.ggml.eom_token_id",
        _ => return None,
    })
}

/// `Json` is "truthy" in Python's sense, for the types that occur here.
fn is_set(value: Option<&Json>) -> bool {
    match value {
        None | Some(Json::Null | Json::Bool(false)) => false,
        Some(Json::String(text)) => !text.is_empty(),
        Some(Json::Object(object)) => !object.is_empty(),
        Some(_) => true,
    }
}

impl Special {
    fn token(&self, kind: &str) -> Option<&Json> {
        self.config.get(&format!("{kind}_token")).filter(|value| is_set(Some(value)))
    }

    fn set_token(&mut self, kind: &str, token: Json) {
        if self.has_config {
            self.config.insert(format!("{kind}_token"), token);
        }
    }

    fn set_add(&mut self, kind: &'static str, add: bool) {
        match self.add.iter_mut().find(|(known, _)| *known == kind) {
            Some(entry) => entry.1 = add,
            None => self.add.push((kind, add)),
        }
    }

    fn set_id(&mut self, kind: &'static str, id: Option<&Json>, vocab_size: u32) {
        let id = id.and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
        if let Some(id) = id.filter(|id| *id < vocab_size)
            && self.ids.iter().all(|(known, _)| *known != kind)
        {
            self.ids.push((kind, id));
        }
    }

    /// Which tokens tokenizer.json's post-processor puts around a text.
    fn read_post_processor(&mut self, json: &Json) {
        for (missing, instead) in [("bos", "cls"), ("eos", "sep")] {
            if self.token(missing).is_none()
                && let Some(token) = self.token(instead).cloned()
            {
                self.set_token(missing, token);
            }
        }
        let Some(processor) = json.get("post_processor").filter(|value| is_set(Some(value))) else { return };
        let single = std::slice::from_ref(processor);
        let processors = processor.get("processors").and_then(Json::as_array).map_or(single, Vec::as_slice);
        for processor in processors {
            match processor.get("type").and_then(Json::as_str) {
                Some("TemplateProcessing") => self.read_template(processor),
                // Byte-level tokenizers add nothing, unless another processor says so.
                Some("ByteLevel") => ["bos", "eos"].into_iter().for_each(|kind| {
                    if self.add.iter().all(|(known, _)| *known != kind) {
                        self.add.push((kind, false));
                    }
                }),
                _ => {}
            }
        }
    }

    /// A template such as `<s> $A </s>`: its first and last entries are the tokens added.
    fn read_template(&mut self, processor: &Json) {
        let entries = |key: &str| processor.get(key).and_then(Json::as_array).cloned().unwrap_or_default();
        let (single, pair) = (entries("single"), entries("pair"));
        let special = |entry: Option<&Json>| {
            let id = entry?.get("SpecialToken")?.get("id")?.as_str()?;
            (!id.is_empty()).then(|| id.to_owned())
        };
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = special(single.first());
            if let Some(first) = &first {
                self.first_token(first);
            }
            last = special(single.last());
            if let Some(last) = &last {
                self.last_token(last);
            }
        }
        self.read_pair(&pair, first.as_deref(), last.as_deref(), special);
    }

    fn first_token(&mut self, first: &str) {
        let is = |token: Option<&Json>| token.and_then(Json::as_str) == Some(first);
        let mut known = is(self.token("bos")) || is(self.token("cls"));
        if !self.has_config {
            known = true;
        } else if !known {
            for kind in ["bos", "cls"] {
                if self.token(kind).is_none() {
                    self.set_token(kind, first.into());
                    known = true;
                }
            }
        }
        self.set_add("bos", known);
    }

    fn last_token(&mut self, last: &str) {
        let eos = self.token("eos").cloned();
        if self.has_config && eos.as_ref().and_then(Json::as_str) != Some(last) {
            // What was the end token before is now the end of a turn, or of a message.
            let free = ["eot", "eom"].into_iter().find(|kind| !self.kinds.contains(kind));
            if let Some(kind) = free {
                self.kinds.push(kind);
                self.set_token(kind, eos.unwrap_or_default());
            }
            self.set_token("eos", last.into());
        }
        self.set_add("eos", true);
    }

    /// Whether a separator stands between two texts: `A <sep> B` without the tokens at both ends.
    fn read_pair(
        &mut self,
        pair: &[Json],
        first: Option<&str>,
        last: Option<&str>,
        special: impl Fn(Option<&Json>) -> Option<String>,
    ) {
        let starts = first.is_some() && special(pair.first()).as_deref() == first;
        let ends = last.is_some() && special(pair.last()).as_deref() == last;
        let inner =
            pair.get(usize::from(starts)..pair.len().saturating_sub(usize::from(ends))).unwrap_or_default();
        let sequence = |entry: Option<&Json>| entry?.get("Sequence")?.get("id")?.as_str().map(str::to_owned);
        let between = inner.get(1..inner.len().saturating_sub(1)).unwrap_or_default();
        if sequence(inner.first()).as_deref() != Some("A")
            || sequence(inner.last()).as_deref() != Some("B")
            || between.is_empty()
        {
            return;
        }
        let is = |kind: &str, token: &Option<String>| {
            token.is_some() && self.token(kind).and_then(Json::as_str) == token.as_deref()
        };
        let separates = |token: &Option<String>| is("sep", token) || is("eos", token);
        let mut add = separates(&special(between.first())) && last.is_none();
        add |= between.len() == 2 && separates(&special(between.get(1)));
        self.set_add("sep", add);
        if add
            && self.token("sep").is_none()
            && let Some(eos) = self.token("eos").cloned()
        {
            self.set_token("sep", eos);
        }
    }

    /// tokenizer_config.json's tokens, their ids looked up in tokenizer.json's added tokens.
    fn read_config(&mut self, json: Option<&Json>, vocab_size: u32) {
        let added = json.and_then(|json| json.get("added_tokens")).and_then(Json::as_array);
        for kind in self.kinds.clone() {
            if let Some(Json::Bool(add)) = self.config.get(&format!("add_{kind}_token"))
                && self.add.iter().all(|(known, _)| *known != kind)
            {
                self.add.push((kind, *add));
            }
            let entry = self.config.get(&format!("{kind}_token"));
            let content = match entry {
                Some(Json::Object(object)) => object.get("content").and_then(Json::as_str),
                other => other.and_then(Json::as_str),
            };
            let Some(content) = content else { continue };
            let mut tokens = added.into_iter().flatten();
            let token = tokens.find(|token| token.get("content").and_then(Json::as_str) == Some(content));
            self.set_id(kind, token.and_then(|token| token.get("id")), vocab_size);
        }
    }
}

/// `tokenizer.chat_template`, and one key for each further, named template.
fn chat_templates(files: &TokenizerFiles, metadata: &mut Metadata) {
    let in_config = files.config.as_ref().and_then(|config| config.get("chat_template"));
    let mut default = None;
    let mut named: Vec<(String, String)> = Vec::new();
    match in_config {
        Some(Json::String(template)) => default = Some(template.clone()),
        Some(Json::Array(choices)) => {
            for choice in choices {
                let text = |key: &str| choice.get(key).and_then(Json::as_str).map(str::to_owned);
                named.extend(text("name").zip(text("template")));
            }
        }
        Some(Json::Null) | None => {
            default = files.chat_template.clone();
            named = files.additional_chat_templates.clone();
        }
        Some(_) => {}
    }
    let mut names = Vec::new();
    for (name, template) in named {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = name.chars().map(plain).collect();
        if name == "default" {
            default = Some(template);
        } else if !name.is_empty() && !template.is_empty() {
            metadata.set(format!("tokenizer.chat_template.{name}"), Value::String(template));
            names.push(name);
        }
    }
    if !names.is_empty() {
        names.sort();
        names.dedup();
        metadata.set("tokenizer.chat_templates", Value::Array(Array::String(names)));
    }
    if let Some(template) = default.filter(|template| !template.is_empty()) {
        metadata.set("tokenizer.chat_template", Value::String(template));
    }
}

/// Whether text is put in lower case or stripped of accents before it is tokenized.
fn normalizer_flags(normalizer: &Json, metadata: &mut Metadata) {
    let key = |flag: &str| format!("tokenizer.ggml.normalizer.{flag}");
    match normalizer.get("type").and_then(Json::as_str) {
        Some("Lowercase") => {
            metadata.set(key("lowercase"), Value::Bool(true));
        }
        Some("StripAccents") => {
            metadata.set(key("strip_accents"), Value::Bool(true));
        }
        Some("Sequence") => {
            let inner = normalizer.get("normalizers").and_then(Json::as_array);
            inner.into_iter().flatten().for_each(|inner| normalizer_flags(inner, metadata));
        }
        _ => {}
    }
}
