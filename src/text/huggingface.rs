//! tokenizer.json, the file format of the `tokenizers` package, as far as BPE models use it: SentencePiece-like and byte-level ones.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{SeqAccess, Visitor};
use serde_json::Value;

use super::Fault;
use super::added::{AddedFlags, AddedToken};
use super::bpe::{Merge, NONE, Rules};
use super::byte_level::{self, ByteLevel};
use super::pre_tokenizer::{self, PreTokenizer};
use super::sentencepiece::{Framing, Prefix, SPACE, single_characters};
use super::vocabulary::{byte_of, check_id};

/// The metadata key under which GGUF carries the whole file.
pub(crate) const KEY: &str = "tokenizer.huggingface.json";

/// tokenizer.json as written.
#[derive(Deserialize)]
pub(crate) struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Pair>,
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// A merge, written `["a", "b"]` or, by older versions, `"a b"`.
struct Pair(String, String);

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Pair;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge such as [\"a\", \"b\"] or \"a b\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Pair, E> {
                let (left, right) =
                    text.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Pair(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Pair, A::Error> {
                let mut part = || {
                    pair.next_element()?
                        .ok_or_else(|| serde::de::Error::custom("a merge of fewer than two parts"))
                };
                Ok(Pair(part()?, part()?))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Parses the file. A model that is not BPE is [`Fault::Unsupported`].
pub(crate) fn parse(json: &str) -> Result<File, Fault> {
    let error = match serde_json::from_str::<File>(json) {
        Ok(file) if file.model.kind.as_deref().is_none_or(|kind| kind == "BPE") => return Ok(file),
        Ok(_) => None,
        Err(error) => Some(error),
    };
    // Other models have other fields: name the model rather than the field that is missing.
    let model =
        serde_json::from_str::<Value>(json).ok().and_then(|file| Some(kind(file.get("model")?).to_owned()));
    match (error, model.filter(|model| model != "BPE")) {
        (Some(error), None) => Err(Fault::Json(error.to_string())),
        (_, model) => {
            Err(unsupported(&format!("a model of type {:?}", model.unwrap_or_default()), "\"BPE\""))
        }
    }
}

fn unsupported(what: &str, supported: &str) -> Fault {
    Fault::Unsupported(format!("tokenizer.json has {what}, which is not supported; supported is {supported}"))
}

impl File {
    /// The file's added tokens; `size` is the vocabulary's.
    pub fn added_tokens(&self, size: usize) -> Result<Vec<AddedToken>, Fault> {
        let tokens = self.added_tokens.iter().map(|added| {
            let flag = |set: bool, flag: u32| if set { flag } else { 0 };
            let flags = flag(added.lstrip, AddedFlags::LSTRIP)
                | flag(added.rstrip, AddedFlags::RSTRIP)
                | flag(added.normalized, AddedFlags::NORMALIZED)
                | flag(added.single_word, AddedFlags::SINGLE_WORD)
                | flag(added.special, AddedFlags::SPECIAL);
            let id = check_id(KEY, i64::from(added.id), size)?;
            Ok(AddedToken {
                id,
                content: added.content.clone(),
                flags: AddedFlags(flags),
                control: added.special,
            })
        });
        tokens.collect()
    }

    /// Token texts by id, where the file has one.
    pub fn pieces(&self, size: usize) -> Vec<Option<&str>> {
        let mut pieces = vec![None; size];
        for (text, id) in &self.model.vocab {
            if let Some(piece) = pieces.get_mut(*id as usize) {
                *piece = Some(text.as_str());
            }
        }
        pieces
    }

    /// The encoding rules; `size` is the vocabulary's.
    pub fn rules(&self, size: usize) -> Result<Rules, Fault> {
        let model = &self.model;
        let plain = |text: &Option<String>| text.as_deref().unwrap_or("").is_empty();
        if !plain(&model.continuing_subword_prefix)
            || !plain(&model.end_of_word_suffix)
            || model.dropout.unwrap_or(0.0) != 0.0
            || (model.ignore_merges && !self.is_byte_level())
        {
            return Err(unsupported(
                "a BPE model with a subword prefix, a word suffix, dropout or (with SentencePiece) ignore_merges",
                "a plain one",
            ));
        }
        for id in model.vocab.values() {
            check_id(KEY, i64::from(*id), size)?;
        }
        let id = |text: &str| {
            model.vocab.get(text).copied().ok_or_else(|| {
                Fault::Json(format!("its merges use {text:?}, which is not in its vocabulary"))
            })
        };
        let mut product = String::new();
        let merges = model.merges.iter().map(|Pair(left, right)| {
            product.clear();
            product.extend([left.as_str(), right.as_str()]);
            Ok(Merge { left: id(left)?, right: id(right)?, product: id(&product)? })
        });
        let merges = merges.collect::<Result<Vec<_>, Fault>>()?;
        if self.is_byte_level() {
            let bytes = byte_level::byte_tokens(|text| model.vocab.get(text).copied())?;
            return Ok(byte_level::rules(bytes, merges));
        }
        let mut bytes = if model.byte_fallback { vec![NONE; 256] } else { Vec::new() };
        for (text, id) in &model.vocab {
            if let Some(slot) = byte_of(text)
                .filter(|byte| *text == format!("<0x{byte:02X}>"))
                .and_then(|byte| bytes.get_mut(usize::from(byte)))
            {
                *slot = *id;
            }
        }
        Ok(Rules {
            merges,
            chars: single_characters(model.vocab.iter().map(|(text, id)| (text.as_str(), *id))),
            bytes,
            unknown: model.unk_token.as_deref().and_then(|text| model.vocab.get(text).copied()),
            fuse_unknown: model.fuse_unk,
            rank_by_product: false,
        })
    }

    /// Whether tokens spell bytes: then the decoder is the one that reads them.
    fn is_byte_level(&self) -> bool {
        flatten(&self.decoder, "decoders").iter().any(|step| kind(step) == "ByteLevel")
    }

    /// How text becomes words, for a byte-level model; `None` for others.
    pub fn byte_level(&self) -> Result<Option<ByteLevel>, Fault> {
        if !self.is_byte_level() {
            return Ok(None);
        }
        if let Some(step) = flatten(&self.normalizer, "normalizers").first() {
            return Err(unsupported(
                &format!("the normalizer {} before a byte-level model", kind(step)),
                "no normalizer",
            ));
        }
        let mut patterns: Vec<(&str, bool)> = Vec::new();
        let mut prefix_space = None;
        for step in flatten(&self.pre_tokenizer, "pretokenizers") {
            match kind(step) {
                // The bytes are spelled by the last step.
                _ if prefix_space.is_some() => {
                    return Err(unsupported("a pre-tokenizer after ByteLevel", "ByteLevel as the last"));
                }
                "Split" => patterns.push(split(step)?),
                "ByteLevel" => {
                    prefix_space = Some(step["add_prefix_space"].as_bool().unwrap_or(true));
                    if step["use_regex"].as_bool().unwrap_or(true) {
                        patterns.push((pre_tokenizer::GPT2, true));
                    }
                }
                other => {
                    return Err(unsupported(
                        &format!("the pre-tokenizer {other} before a byte-level model"),
                        "Split with a regular expression, and ByteLevel",
                    ));
                }
            }
        }
        if prefix_space == Some(true) && patterns.len() > 1 {
            return Err(unsupported("add_prefix_space after a Split", "add_prefix_space alone"));
        }
        Ok(Some(ByteLevel {
            words: PreTokenizer::new(patterns)?,
            prefix_space: prefix_space.ok_or_else(|| {
                unsupported("a ByteLevel decoder without a ByteLevel pre-tokenizer", "both")
            })?,
            ignore_merges: self.model.ignore_merges,
        }))
    }

    /// How text is prepared and put together again; anything but SentencePiece's ways is [`Fault::Unsupported`].
    pub fn framing(&self) -> Result<Framing, Fault> {
        let normalizers = flatten(&self.normalizer, "normalizers");
        let pre_tokenizers = flatten(&self.pre_tokenizer, "pretokenizers");
        let replaces = |step: &Value| kind(step) == "Replace" && replaced(step) == Some((" ", "▁"));
        let prepends = |step: &Value| kind(step) == "Prepend" && step["prepend"].as_str() == Some("▁");
        let (prefix, split_words) = match (normalizers.as_slice(), pre_tokenizers.as_slice()) {
            ([prepend, replace], []) if prepends(prepend) && replaces(replace) => (Prefix::Always, false),
            ([replace], []) if replaces(replace) => (Prefix::Never, false),
            ([], [step]) if kind(step) == "Metaspace" => metaspace(step)?,
            _ => {
                let names =
                    |steps: &[&Value]| steps.iter().map(|step| kind(step)).collect::<Vec<_>>().join(", ");
                let what = format!(
                    "the normalizer [{}] and the pre-tokenizer [{}]",
                    names(&normalizers),
                    names(&pre_tokenizers)
                );
                return Err(unsupported(&what, "Prepend and Replace of \"▁\", or Metaspace"));
            }
        };
        Ok(Framing { prefix, split_words, strip: self.strip()? })
    }

    /// Spaces that the decoder removes from the start.
    fn strip(&self) -> Result<usize, Fault> {
        let steps = flatten(&self.decoder, "decoders");
        let names: Vec<&str> = steps.iter().map(|step| kind(step)).collect();
        match names.as_slice() {
            ["Replace", "ByteFallback", "Fuse"] if replaced(steps[0]) == Some(("▁", " ")) => Ok(0),
            ["Replace", "ByteFallback", "Fuse", "Strip"]
                if replaced(steps[0]) == Some(("▁", " "))
                    && steps[3]["content"].as_str() == Some(" ")
                    && steps[3]["stop"].as_u64() == Some(0) =>
            {
                Ok(steps[3]["start"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0))
            }
            _ => Err(unsupported(
                &format!("the decoder [{}]", names.join(", ")),
                "[Replace, ByteFallback, Fuse, Strip]",
            )),
        }
    }

    /// The token that the file's post-processor puts before a text.
    pub fn begins_with(&self) -> Option<&str> {
        let steps = flatten(&self.post_processor, "processors");
        let template = steps.into_iter().find(|step| kind(step) == "TemplateProcessing")?;
        template.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str()
    }
}

/// A step or the steps of a `Sequence`, whose list is named `list`.
fn flatten<'a>(step: &'a Option<Value>, list: &str) -> Vec<&'a Value> {
    match step {
        Some(step) if kind(step) == "Sequence" => {
            step[list].as_array().map(|steps| steps.iter().collect()).unwrap_or_default()
        }
        Some(Value::Null) | None => Vec::new(),
        Some(step) => vec![step],
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("")
}

fn replaced(step: &Value) -> Option<(&str, &str)> {
    Some((step["pattern"]["String"].as_str()?, step["content"].as_str()?))
}

/// A `Split` step's pattern, and whether what it does not match is kept.
fn split(step: &Value) -> Result<(&str, bool), Fault> {
    let pattern = step["pattern"]["Regex"].as_str();
    let keep_gaps = match (step["behavior"].as_str(), step["invert"].as_bool().unwrap_or(false)) {
        (Some("Isolated"), _) => Some(true),
        (Some("Removed"), true) => Some(false),
        _ => None,
    };
    pattern.zip(keep_gaps).ok_or_else(|| {
        unsupported(
            "a Split that is no regular expression or that drops what it matches",
            "one that keeps what it matches (Isolated, or Removed with invert)",
        )
    })
}

fn metaspace(step: &Value) -> Result<(Prefix, bool), Fault> {
    let split = step["split"].as_bool().unwrap_or(true);
    let prefix = match step["prepend_scheme"].as_str().unwrap_or("always") {
        "always" => Prefix::Missing,
        "first" => Prefix::MissingAtStart,
        "never" => Prefix::Never,
        other => return Err(unsupported(&format!("the prepend_scheme \"{other}\""), "always, first, never")),
    };
    match step["replacement"].as_str() {
        Some(text) if text.chars().eq([SPACE]) => Ok((prefix, split)),
        _ => Err(unsupported("a Metaspace with another sign than \"▁\"", "that one")),
    }
}
