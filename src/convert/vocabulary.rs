//! SentencePiece vocabularies: tokens, scores and types from tokenizer.model, or from tokenizer.json alone.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::byte_level::{ByteLevel, SpecialTokens};
use super::fault::Fault;
use crate::checkpoint::{Checkpoint, PieceKind, SentencePiece, TokenizerFiles};
use crate::gguf::{Array, Metadata, Value};
use crate::text::Tokenizer;

/// Token types as GGUF numbers them (`llama_token_type`).
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The score of an id without a token.
const PADDING_SCORE: f32 = -10000.0;
/// The score of an added token: it is found as a whole and never merged.
const ADDED_SCORE: f32 = -1000.0;

/// Tokens by id.
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
}

impl Vocabulary {
    /// Collects the vocabulary of `checkpoint`, filled up to config.json's `vocab_size`.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Fault> {
        let files = checkpoint.tokenizer();
        let size = checkpoint.config().vocab_size as usize;
        let mut vocabulary = Self {
            tokens: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            scores: vec![PADDING_SCORE; size],
            types: vec![token_type::UNUSED; size],
        };
        match (&files.model, &files.json) {
            // Without a tokenizer.json the scores are all there is, and they are not those of merges.
            (Some(model), None) if !model.is_bpe => {
                return Err(Fault::TokenizerKind("UNIGRAM, by its tokenizer.model".to_owned()));
            }
            (Some(model), _) => vocabulary.take_model(model)?,
            (None, Some(json)) => vocabulary.take_json(json)?,
            (None, None) => return Err(Fault::NoTokenizer),
        }
        vocabulary.take_added_tokens(files)?;
        Ok(vocabulary)
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Writes `tokenizer.ggml.{model,pre,tokens,scores,token_type}`.
    pub fn write(self, metadata: &mut Metadata) {
        metadata.set("tokenizer.ggml.model", Value::from("llama"));
        metadata.set("tokenizer.ggml.pre", Value::from("default"));
        metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(self.tokens)));
        metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(self.scores)));
        metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(self.types)));
    }

    fn set(&mut self, id: u64, token: &str, score: f32, kind: i32) -> Result<(), Fault> {
        let size = self.tokens.len();
        let at = usize::try_from(id).ok().filter(|at| *at < size);
        let at = at.ok_or_else(|| Fault::TokenId { token: token.to_owned(), id, vocab_size: size as u64 })?;
        self.tokens[at] = token.to_owned();
        self.scores[at] = score;
        self.types[at] = kind;
        Ok(())
    }

    fn take_model(&mut self, model: &SentencePiece) -> Result<(), Fault> {
        for (id, piece) in model.pieces.iter().enumerate() {
            let kind = match piece.kind {
                PieceKind::Unknown => token_type::UNKNOWN,
                PieceKind::Control => token_type::CONTROL,
                PieceKind::Unused => token_type::UNUSED,
                PieceKind::Byte => token_type::BYTE,
                PieceKind::Normal | PieceKind::UserDefined => token_type::NORMAL,
            };
            self.set(id as u64, &piece.text, piece.score, kind)?;
        }
        Ok(())
    }

    /// tokenizer.json has merges where SentencePiece has scores. The n-th token that a merge makes gets the score
    /// -n, so that the merges derived from the scores come in the file's order; tokens that no merge makes come
    /// after those.
    fn take_json(&mut self, json: &Json) -> Result<(), Fault> {
        let model = json.get("model").ok_or(Fault::TokenizerJson("it has no \"model\""))?;
        let kind = model.get("type").and_then(Json::as_str).unwrap_or("BPE");
        if kind != "BPE" {
            return Err(Fault::TokenizerKind(kind.to_owned()));
        }
        if model.get("byte_fallback").and_then(Json::as_bool) != Some(true) {
            return Err(Fault::TokenizerKind("BPE, neither byte-level nor with byte_fallback".to_owned()));
        }
        let vocab = model.get("vocab").and_then(Json::as_object);
        let vocab = vocab.ok_or(Fault::TokenizerJson("it has no \"vocab\""))?;
        let unknown = model.get("unk_token").and_then(Json::as_str);
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (left, right) in merges(model)? {
            let next = ranks.len();
            ranks.entry(format!("{left}{right}")).or_insert(next);
        }
        let mut tokens: Vec<(&String, u64)> = Vec::with_capacity(vocab.len());
        for (token, id) in vocab {
            tokens.push((
                token,
                id.as_u64().ok_or(Fault::TokenizerJson("an id in its vocab is no whole number"))?,
            ));
        }
        tokens.sort_by_key(|(_, id)| *id);
        let added = json.get("added_tokens").and_then(Json::as_array).into_iter().flatten();
        let added: HashSet<u64> = added.filter_map(|token| token.get("id")?.as_u64()).collect();
        let mut last_rank = ranks.len();
        for (token, id) in tokens {
            let (score, kind) = if Some(token.as_str()) == unknown {
                (0.0, token_type::UNKNOWN)
            } else if is_byte(token) {
                (0.0, token_type::BYTE)
            } else if let Some(rank) = ranks.get(token) {
                (-(*rank as f32), token_type::NORMAL)
            } else if added.contains(&id) {
                // Replaced below.
                (0.0, token_type::CONTROL)
            } else {
                last_rank += 1;
                (-((last_rank - 1) as f32), token_type::NORMAL)
            };
            self.set(id, token, score, kind)?;
        }
        Ok(())
    }

    /// Added tokens replace what stands at their ids: those of added_tokens.json, then of tokenizer_config.json,
    /// then of tokenizer.json.
    fn take_added_tokens(&mut self, files: &TokenizerFiles) -> Result<(), Fault> {
        if let Some(added) = files.added_tokens.as_ref().and_then(Json::as_object) {
            for (token, id) in added {
                let id = id.as_u64().ok_or_else(|| Fault::AddedToken { token: token.clone() })?;
                // Ids that the model has no row for are ignored there, as others do.
                if id < self.tokens.len() as u64 {
                    self.set(id, token, ADDED_SCORE, token_type::USER_DEFINED)?;
                }
            }
        }
        let decoder = files.config.as_ref().and_then(|config| config.get("added_tokens_decoder"));
        for (id, token) in decoder.and_then(Json::as_object).into_iter().flatten() {
            let number = id.parse::<u64>().map_err(|_| Fault::AddedToken { token: id.clone() })?;
            self.take_added_token(number, token)?;
        }
        let added = files.json.as_ref().and_then(|json| json.get("added_tokens"));
        for token in added.and_then(Json::as_array).into_iter().flatten() {
            let id = token.get("id").and_then(Json::as_u64);
            self.take_added_token(id.ok_or_else(|| Fault::AddedToken { token: token.to_string() })?, token)?;
        }
        Ok(())
    }

    fn take_added_token(&mut self, id: u64, token: &Json) -> Result<(), Fault> {
        let content = token.get("content").and_then(Json::as_str);
        let content = content.ok_or_else(|| Fault::AddedToken { token: id.to_string() })?;
        let special = token.get("special").and_then(Json::as_bool) == Some(true);
        let kind = if special { token_type::CONTROL } else { token_type::USER_DEFINED };
        self.set(id, content, ADDED_SCORE, kind)
    }
}

/// The merges of a tokenizer.json's model: `["a", "b"]`, or "a b" in older files.
pub(super) fn merges(model: &Json) -> Result<Vec<(&str, &str)>, Fault> {
    let list =
        model.get("merges").and_then(Json::as_array).ok_or(Fault::TokenizerJson("it has no \"merges\""))?;
    let mut pairs = Vec::with_capacity(list.len());
    for merge in list {
        let found = match merge {
            Json::String(text) => text.split_once(' '),
            Json::Array(parts) => match &parts[..] {
                [Json::String(left), Json::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        pairs.push(found.ok_or(Fault::TokenizerJson("one of its merges is no pair of texts"))?);
    }
    Ok(pairs)
}

/// Whether an added token is a control token though tokenizer.json does not call it special: by its spelling, as
/// convert_hf_to_gguf.py tells (`does_token_look_special`).
pub(super) fn looks_special(token: &str) -> bool {
    let enclosed = |open: &str, close: &str| token.starts_with(open) && token.ends_with(close);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || enclosed("<|", "|>")
        || enclosed("<｜", "｜>")
        || enclosed("<unused", ">")
}

/// "<0x0A>" and its like.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Writes the keys of our own that make tokenization exact (docs/formats.md): `phi.tokenizer.added.*`,
/// `phi.generation.eos_token_ids`, and tokenizer.json itself where it says more than all other keys together.
///
/// Errors: a tokenizer.json of a kind that is not supported: nothing here could use the model.
pub(super) fn write_own_keys(checkpoint: &Checkpoint, metadata: &mut Metadata) -> Result<(), Fault> {
    let files = checkpoint.tokenizer();
    let size = checkpoint.config().vocab_size as usize;
    let (ids, flags) = added_tokens(files, size).into_iter().unzip();
    let ids: Vec<i32> = ids;
    if !ids.is_empty() {
        metadata.set("phi.tokenizer.added.ids", Value::Array(Array::I32(ids)));
        metadata.set("phi.tokenizer.added.flags", Value::Array(Array::I32(flags)));
    }
    let eos = checkpoint.generation_config().and_then(|config| config.get("eos_token_id"));
    let eos = match eos {
        Some(Json::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
        None => &[],
    };
    write_unused(files, size, metadata);
    let vocab_size = i64::from(checkpoint.config().vocab_size);
    let eos: Vec<i32> = eos
        .iter()
        .filter_map(Json::as_i64)
        .filter(|id| (0..vocab_size).contains(id))
        .map(|id| id as i32)
        .collect();
    if !eos.is_empty() {
        metadata.set("phi.generation.eos_token_ids", Value::Array(Array::I32(eos)));
    }
    let Some(text) = files.json_text.as_ref() else {
        if ByteLevel::is(files) {
            // tiktoken has no order among the ways to make a token.
            metadata.set("phi.tokenizer.rank_by_product", Value::Bool(true));
        }
        return Ok(());
    };
    if !Tokenizer::metadata_suffices(metadata, text).map_err(|fault| Fault::Tokenizer(fault.to_string()))? {
        metadata.set("tokenizer.huggingface.json", Value::String(text.clone()));
    }
    Ok(())
}

/// Writes which tokens the model never says, where its own code leaves them out: `phi.unused_token_ids`.
fn write_unused(files: &TokenizerFiles, size: usize, metadata: &mut Metadata) {
    let (None, Some(ranks)) = (&files.json, &files.tiktoken) else { return };
    let special = SpecialTokens::of(ranks.len(), size).0;
    let unused: Vec<i32> = special.iter().filter(|token| token.unused).map(|token| token.id as i32).collect();
    metadata.set("phi.unused_token_ids", Value::Array(Array::I32(unused)));
}

/// Ids of the added tokens and their flags: 1 lstrip, 2 rstrip, 4 normalized, 8 single_word, 16 special.
fn added_tokens(files: &TokenizerFiles, size: usize) -> Vec<(i32, i32)> {
    let flags = |token: &Json| {
        let names = ["lstrip", "rstrip", "normalized", "single_word", "special"];
        names.iter().enumerate().fold(0, |flags, (bit, name)| {
            let set = token.get(name).and_then(Json::as_bool) == Some(true);
            flags | i32::from(set) << bit
        })
    };
    let id = |id: u64| i32::try_from(id).ok();
    if let Some(added) =
        files.json.as_ref().and_then(|json| json.get("added_tokens")).and_then(Json::as_array)
    {
        let entry = |token: &Json| Some((id(token.get("id")?.as_u64()?)?, flags(token)));
        return added.iter().filter_map(entry).collect();
    }
    if let (true, Some(ranks)) = (ByteLevel::is(files), &files.tiktoken) {
        // All of them are special and strip nothing.
        return SpecialTokens::of(ranks.len(), size).0.iter().map(|token| (token.id as i32, 16)).collect();
    }
    let decoder = files.config.as_ref().and_then(|config| config.get("added_tokens_decoder"));
    let entries = decoder.and_then(Json::as_object).into_iter().flatten();
    entries.filter_map(|(key, token)| Some((id(key.parse().ok()?)?, flags(token)))).collect()
}
