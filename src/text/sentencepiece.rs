//! SentencePiece BPE vocabularies (`tokenizer.ggml.model` = "llama"): how text is prepared and which merges there are.
//!
//! A GGUF file has the tokens and their scores, tokenizer.json has merges. The merges are what every converter to
//! tokenizer.json derives from the scores: each way to cut a token into two tokens is a merge; better scores come first,
//! and among the cuts of one token those whose left, then right part has the lower id.

use super::Fault;
use super::bpe::{Merge, NONE, Rules};
use super::vocabulary::{TokenKind, Vocabulary, byte_of};

/// SentencePiece's sign for a space, U+2581.
pub(crate) const SPACE: char = '\u{2581}';

/// Where a `▁` is put before a piece of text between added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// Nowhere.
    Never,
    /// Before each piece (tokenizer.json's normalizer `Prepend`).
    Always,
    /// Before each piece that does not start with one (`Metaspace`, "always").
    Missing,
    /// The same, but only before the text's first piece (`Metaspace`, "first").
    MissingAtStart,
}

/// How text becomes the characters that are merged, and tokens become text again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Framing {
    pub prefix: Prefix,
    /// Whether no merge may cross into a `▁` (`Metaspace` with `split`).
    pub split_words: bool,
    /// Spaces removed from the start of a decoded text, at most.
    pub strip: usize,
}

impl Framing {
    /// That of Llama's and Phi-3's tokenizer.json.
    pub const LLAMA: Self = Self { prefix: Prefix::Always, split_words: false, strip: 1 };
}

/// The rules that tokens and scores imply. `scores` is as long as the vocabulary.
pub(crate) fn rules_from_scores(
    vocabulary: &Vocabulary,
    scores: &[f32],
    unknown: Option<u32>,
) -> Result<Rules, Fault> {
    // Added tokens are found in the text before anything is merged, so they are no parts of merges.
    let by_text = vocabulary.by_text(|kind| kind == TokenKind::Normal);
    let mut merges = Vec::with_capacity(vocabulary.len() * 2);
    for product in vocabulary.ids().filter(|id| vocabulary.kind(*id) == TokenKind::Normal) {
        let piece = vocabulary.piece(product);
        // 16 KiB is far beyond any real token and keeps a crafted one from costing its square.
        if piece.len() > 1 << 14 {
            return Err(Fault::Unsupported(format!(
                "token {product} of the vocabulary is {} bytes long; expected at most 16384",
                piece.len()
            )));
        }
        let from = merges.len();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let Some(left) = by_text.get(left)
                && let Some(right) = by_text.get(right)
            {
                merges.push(Merge { left: *left, right: *right, product });
            }
        }
        merges[from..].sort_unstable_by_key(|merge| (merge.left, merge.right));
    }
    let score = |merge: &Merge| scores.get(merge.product as usize).copied().unwrap_or(f32::NEG_INFINITY);
    merges.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let mut bytes = vec![NONE; 256];
    for id in vocabulary.ids().filter(|id| vocabulary.kind(*id) == TokenKind::Byte) {
        if let Some(byte) = byte_of(vocabulary.piece(id)) {
            bytes[usize::from(byte)] = id;
        }
    }
    Ok(Rules {
        chars: single_characters(by_text.iter().map(|(text, id)| (*text, *id))),
        bytes,
        unknown,
        fuse_unknown: true,
        merges,
        rank_by_product: false,
    })
}

/// The tokens of one character, ascending by character.
pub(crate) fn single_characters<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Vec<(char, u32)> {
    let single = |text: &str| {
        let mut chars = text.chars();
        chars.next().filter(|_| chars.next().is_none())
    };
    let mut chars: Vec<_> = tokens.filter_map(|(text, id)| Some((single(text)?, id))).collect();
    chars.sort_unstable();
    chars
}
