//! Byte-level vocabularies: tokens, types and merges from tokenizer.json, or from tiktoken's file of ranks.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::fault::Fault;
use super::vocabulary::{looks_special, merges, token_type};
use crate::checkpoint::{Checkpoint, TokenizerFiles};
use crate::gguf::{Array, Metadata, Value};
use crate::text::{Tokenizer, spell_bytes};

/// Tokens by id, and the merges that make them.
pub(super) struct ByteLevel {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
    /// `tokenizer.ggml.pre`.
    pre: &'static str,
}

impl ByteLevel {
    /// Whether the checkpoint's tokenizer is of this kind.
    pub fn is(files: &TokenizerFiles) -> bool {
        let decoder = files.json.as_ref().and_then(|json| json.get("decoder"));
        let step = |step: &Json| step.get("type").and_then(Json::as_str) == Some("ByteLevel");
        let steps = decoder.and_then(|decoder| decoder.get("decoders")).and_then(Json::as_array);
        let byte_level = decoder.is_some_and(step) || steps.is_some_and(|steps| steps.iter().any(step));
        files.model.is_none() && (byte_level || (files.json.is_none() && files.tiktoken.is_some()))
    }

    /// Collects the vocabulary of `checkpoint`, filled up to config.json's `vocab_size`.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Fault> {
        let files = checkpoint.tokenizer();
        let size = checkpoint.config().vocab_size as usize;
        let mut this = Self {
            tokens: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            types: vec![token_type::UNUSED; size],
            merges: Vec::new(),
            pre: "default",
        };
        match (&files.json, &files.json_text, &files.tiktoken) {
            (Some(json), Some(text), _) => {
                // A pattern without a name is in the tokenizer.json, which then goes into the file as a whole.
                this.pre = Tokenizer::pre_tokenizer_name(text).ok().flatten().unwrap_or("default");
                this.take_json(json)?;
                this.take_added_tokens(files)?;
            }
            (_, _, Some(ranks)) => this.take_tiktoken(ranks)?,
            _ => return Err(Fault::NoTokenizer),
        }
        Ok(this)
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Writes `tokenizer.ggml.{model,pre,tokens,token_type,merges}`.
    pub fn write(self, metadata: &mut Metadata) {
        metadata.set("tokenizer.ggml.model", Value::from("gpt2"));
        metadata.set("tokenizer.ggml.pre", Value::from(self.pre));
        metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(self.tokens)));
        metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(self.types)));
        metadata.set("tokenizer.ggml.merges", Value::Array(Array::String(self.merges)));
    }

    fn set(&mut self, id: u64, token: &str, kind: i32) -> Result<(), Fault> {
        let size = self.tokens.len();
        let at = usize::try_from(id).ok().filter(|at| *at < size);
        let at = at.ok_or_else(|| Fault::TokenId { token: token.to_owned(), id, vocab_size: size as u64 })?;
        self.tokens[at] = token.to_owned();
        self.types[at] = kind;
        Ok(())
    }

    fn take_json(&mut self, json: &Json) -> Result<(), Fault> {
        let model = json.get("model").ok_or(Fault::TokenizerJson("it has no \"model\""))?;
        let vocab = model.get("vocab").and_then(Json::as_object);
        for (token, id) in vocab.ok_or(Fault::TokenizerJson("it has no \"vocab\""))? {
            let id = id.as_u64().ok_or(Fault::TokenizerJson("an id in its vocab is no whole number"))?;
            self.set(id, token, token_type::NORMAL)?;
        }
        // The older notation separates by spaces; one inside a token is spelled as byte-level vocabularies spell it.
        let plain = |part: &str| part.replace(' ', "Ġ");
        let pairs = merges(model)?;
        self.merges = pairs.iter().map(|(left, right)| format!("{} {}", plain(left), plain(right))).collect();
        Ok(())
    }

    /// tokenizer_config.json's added tokens, then tokenizer.json's.
    fn take_added_tokens(&mut self, files: &TokenizerFiles) -> Result<(), Fault> {
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
        if token.get("special").and_then(Json::as_bool) == Some(true) || looks_special(content) {
            return self.set(id, content, token_type::CONTROL);
        }
        self.set(id, &content.replace('▁', " "), token_type::USER_DEFINED)
    }

    fn take_tiktoken(&mut self, ranks: &[Vec<u8>]) -> Result<(), Fault> {
        // Where tiktoken's regular expression for cl100k is concerned, this is the name for it.
        self.pre = "dbrx";
        for (rank, token) in ranks.iter().enumerate() {
            self.set(rank as u64, &spell_bytes(token), token_type::NORMAL)?;
        }
        for special in SpecialTokens::of(ranks.len(), self.tokens.len()).0 {
            let kind = if special.unused { token_type::UNUSED } else { token_type::CONTROL };
            self.set(special.id, &special.content, kind)?;
        }
        self.merges = tiktoken_merges(ranks);
        Ok(())
    }
}

/// Every way to cut a token into two tokens, by the rank of the token.
///
/// tiktoken merges any two neighbours that together are a token, best rank first; so each cut is a merge, and all cuts
/// of a token have the same rank (`phi.tokenizer.rank_by_product`).
fn tiktoken_merges(ranks: &[Vec<u8>]) -> Vec<String> {
    let known: HashMap<&[u8], usize> =
        ranks.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
    let mut merges = Vec::with_capacity(ranks.len() * 2);
    for token in ranks {
        let cuts = (1..token.len()).map(|at| token.split_at(at));
        for (left, right) in
            cuts.filter(|(left, right)| known.contains_key(left) && known.contains_key(right))
        {
            merges.push(format!("{} {}", spell_bytes(left), spell_bytes(right)));
        }
    }
    merges
}

/// The special tokens that Phi-3-small's tokenizer adds to cl100k's, by their distance from the ranks' end.
pub(super) struct SpecialTokens(pub Vec<SpecialToken>);

/// One of them.
pub(super) struct SpecialToken {
    pub id: u64,
    pub content: String,
    /// The model never says it.
    pub unused: bool,
}

impl SpecialTokens {
    /// Those of a vocabulary of `size` tokens, `ranks` of which tiktoken's file has.
    pub fn of(ranks: usize, size: usize) -> Self {
        const FIRST: [&str; 11] = [
            "<|dummy_id_2|>",
            "<|endoftext|>",
            "<|fim_prefix|>",
            "<|fim_middle|>",
            "<|fim_suffix|>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|dummy_id_0|>",
            "<|dummy_id_1|>",
            "<|end|>",
        ];
        let token = |offset: usize| {
            let content = match offset {
                0..11 => FIRST[offset].to_owned(),
                11..20 => format!("<|dummy_id_{}|>", offset - 8),
                20 => "<|endofprompt|>".to_owned(),
                _ => format!("<|dummy_id_{}|>", offset - 9),
            };
            let unused = ["dummy_id", "fim_", "endofprompt"].iter().any(|part| content.contains(part));
            SpecialToken { id: (ranks + offset) as u64, content, unused }
        };
        Self((0..size.saturating_sub(ranks)).map(token).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phi_3_smalls_special_tokens_are_where_its_tokenizer_has_them() {
        let tokens = SpecialTokens::of(100_256, 100_352).0;
        let id = |content: &str| tokens.iter().find(|token| token.content == content).unwrap().id;
        let published = [
            ("<|endoftext|>", 100_257),
            ("<|fim_suffix|>", 100_260),
            ("<|system|>", 100_261),
            ("<|user|>", 100_262),
            ("<|assistant|>", 100_263),
            ("<|dummy_id_0|>", 100_264),
            ("<|end|>", 100_266),
            ("<|dummy_id_2|>", 100_256),
            ("<|dummy_id_3|>", 100_267),
            ("<|dummy_id_11|>", 100_275),
            ("<|endofprompt|>", 100_276),
            ("<|dummy_id_12|>", 100_277),
            ("<|dummy_id_86|>", 100_351),
        ];
        for (content, expected) in published {
            assert_eq!(id(content), expected, "{content}");
        }
        assert_eq!(tokens.len(), 96);
        assert_eq!(tokens.iter().filter(|token| !token.unused).count(), 5);
    }

    #[test]
    fn each_cut_of_a_token_is_a_merge() {
        let ranks: Vec<Vec<u8>> =
            ["a", "b", "ab", "ba", "aba", " a"].iter().map(|t| t.as_bytes().to_vec()).collect();
        assert_eq!(tiktoken_merges(&ranks), ["a b", "b a", "a ba", "ab a"]);
    }
}
