//! Byte-level BPE vocabularies (`tokenizer.ggml.model` = "gpt2"): Phi-1 to Phi-2, Phi-3-small, Phi-4 and Phi-4-mini.
//!
//! Text is split into words by a regular expression and each word is merged from its UTF-8 bytes. A vocabulary writes
//! a byte as one printable character (GPT-2's table), so that tokens can be stored as text.

use std::sync::LazyLock;

use super::Fault;
use super::bpe::{Merge, NONE, Rules};
use super::hash::FastMap;
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{Keys, TokenKind, Vocabulary};

/// BOOL: neighbouring merges that make the same token have one rank, as with tiktoken.
const RANK_BY_PRODUCT_KEY: &str = "phi.tokenizer.rank_by_product";

/// How text becomes words, and tokens become text again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ByteLevel {
    pub words: PreTokenizer,
    /// Whether a piece that does not start with a space gets one.
    pub prefix_space: bool,
    /// Whether a word that is a token as a whole is not merged from bytes.
    pub ignore_merges: bool,
}

/// The character that stands for each byte.
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if printable(byte) {
            return char::from(byte);
        }
        // All others have the characters from U+0100 on, in order.
        next += 1;
        char::from_u32(next - 1).unwrap_or('\0')
    })
});

/// The byte that each character stands for.
static BYTES: LazyLock<FastMap<char, u8>> =
    LazyLock::new(|| CHARS.iter().enumerate().map(|(byte, c)| (*c, byte as u8)).collect());

/// The bytes of a token: those that its characters stand for, or its own if one of them stands for none.
pub(crate) fn bytes_of(piece: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = piece.chars().map(|c| BYTES.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
}

/// `bytes` as a byte-level vocabulary spells them: a printable character each (GPT-2's table; "Ġ" is a space).
pub fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| CHARS[usize::from(*byte)]).collect()
}

/// The tokens of single bytes, looked up by their spelling.
///
/// # Errors
/// A byte without a token: then there would be text that cannot be encoded.
pub(crate) fn byte_tokens(id: impl Fn(&str) -> Option<u32>) -> Result<Vec<u32>, Fault> {
    let token = |byte: usize| {
        id(CHARS[byte].encode_utf8(&mut [0; 4])).ok_or_else(|| {
            Fault::Unsupported(format!(
                "the byte-level vocabulary has no token for the byte 0x{byte:02X}; expected one for each of the 256"
            ))
        })
    };
    (0..256).map(token).collect()
}

/// The rules that `tokenizer.ggml.merges` spell out.
pub(crate) fn rules_from_merges(keys: &Keys, vocabulary: &Vocabulary) -> Result<Rules, Fault> {
    const KEY: &str = "tokenizer.ggml.merges";
    let spelled = keys.strings(KEY)?.ok_or(Fault::Missing(KEY))?;
    // Of tokens with equal texts the normal one is what merges make; a control token is only ever found whole.
    let mut by_text = vocabulary.by_text(|_| true);
    by_text.extend(vocabulary.by_text(|kind| kind == TokenKind::Normal));
    let id = |text: &str| by_text.get(text).copied();
    let mut product = String::new();
    let mut merges = Vec::with_capacity(spelled.len());
    for (index, merge) in spelled.iter().enumerate() {
        let parts = merge.split_once(' ').and_then(|(left, right)| {
            product.clear();
            product.extend([left, right]);
            Some(Merge { left: id(left)?, right: id(right)?, product: id(&product)? })
        });
        merges.push(parts.ok_or_else(|| Fault::Key {
            key: KEY.to_owned(),
            reason: format!("entry {index}, {merge:?}, is no pair of tokens that make a third"),
        })?);
    }
    // tiktoken's ranks belong to tokens, not to merges.
    let rank_by_product = keys.bool(RANK_BY_PRODUCT_KEY)?.unwrap_or(false);
    Ok(Rules { rank_by_product, ..rules(byte_tokens(id)?, merges) })
}

/// Rules over bytes.
pub(crate) fn rules(bytes: Vec<u32>, merges: Vec<Merge>) -> Rules {
    debug_assert!(!bytes.contains(&NONE));
    // No character has a token of its own: every one is spelled in bytes.
    Rules { chars: Vec::new(), bytes, unknown: None, fuse_unknown: false, merges, rank_by_product: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_are_one_to_one() {
        assert_eq!(BYTES.len(), 256);
        assert_eq!(spell(" A\n\0é".as_bytes()), "ĠAĊĀÃ©");
        let every: Vec<u8> = (0..=255).collect();
        let spelled: String = CHARS.iter().collect();
        assert_eq!(bytes_of(&spelled), every);
    }

    #[test]
    fn a_token_with_other_characters_is_itself() {
        assert_eq!(bytes_of("  "), b"  ");
        assert_eq!(bytes_of("日"), "日".as_bytes());
    }
}
