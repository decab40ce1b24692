//! A model's vocabulary as GGUF stores it, and typed access to the metadata keys it is made from.

use std::collections::HashSet;

use super::Fault;
use super::hash::FastMap;
use crate::gguf::Metadata;

/// What a token is for: the numbers of `tokenizer.ggml.token_type` (SentencePiece's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_number(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Token texts, in one allocation, and kinds.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    text: String,
    /// Where each token's text ends in `text`, bytes.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    pub fn from_metadata(keys: &Keys) -> Result<Self, Fault> {
        let tokens = keys.strings("tokenizer.ggml.tokens")?.ok_or(Fault::Missing("tokenizer.ggml.tokens"))?;
        if tokens.is_empty() || tokens.len() > 1 << 24 {
            return Err(Fault::VocabularySize(tokens.len()));
        }
        let kinds = match keys.i32s("tokenizer.ggml.token_type")? {
            Some(numbers) => {
                keys.same_length("tokenizer.ggml.token_type", numbers.len(), tokens.len())?;
                numbers.iter().map(|number| TokenKind::from_number(*number)).collect()
            }
            None => vec![TokenKind::Normal; tokens.len()],
        };
        let mut text = String::with_capacity(tokens.iter().map(String::len).sum());
        let ends = tokens.iter().map(|token| {
            text.push_str(token);
            text.len()
        });
        let ends = ends.collect();
        Ok(Self { text, ends, kinds })
    }

    /// Tokens in the vocabulary.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// A token's text as stored (`▁` for a space); empty for an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> &str {
        let at = id as usize;
        let Some(end) = self.ends.get(at) else { return "" };
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..*end]
    }

    /// What a token is for; an id outside the vocabulary is unused.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// Every id.
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.len() as u32
    }

    /// Ids by text of the tokens that `wanted` accepts; of equal texts the later id counts.
    pub fn by_text(&self, wanted: impl Fn(TokenKind) -> bool) -> FastMap<&str, u32> {
        let mut map = FastMap::default();
        map.reserve(self.len());
        map.extend(self.ids().filter(|id| wanted(self.kind(*id))).map(|id| (self.piece(id), id)));
        map
    }

    /// The byte that a token such as `<0x0A>` stands for.
    pub fn byte(&self, id: u32) -> Option<u8> {
        byte_of(self.piece(id))
    }
}

/// The byte that the text `<0x0A>` stands for in a vocabulary with byte fallback.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Metadata getters with this module's faults.
pub(crate) struct Keys<'a>(pub &'a Metadata);

impl<'a> Keys<'a> {
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        self.0.string(key).map_err(|reason| fault(key, reason))
    }

    pub fn strings(&self, key: &str) -> Result<Option<&'a [String]>, Fault> {
        self.0.strings(key).map_err(|reason| fault(key, reason))
    }

    pub fn i32s(&self, key: &str) -> Result<Option<&'a [i32]>, Fault> {
        self.0.i32s(key).map_err(|reason| fault(key, reason))
    }

    pub fn f32s(&self, key: &str) -> Result<Option<&'a [f32]>, Fault> {
        self.0.f32s(key).map_err(|reason| fault(key, reason))
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.0.bool(key).map_err(|reason| fault(key, reason))
    }

    /// A token id, which must be one of `size`.
    pub fn id(&self, key: &str, size: usize) -> Result<Option<u32>, Fault> {
        // 4,294,967,295 is how some writers say "none".
        let Some(id) = self.0.u32(key).map_err(|reason| fault(key, reason))?.filter(|id| *id != u32::MAX)
        else {
            return Ok(None);
        };
        check_id(key, i64::from(id), size).map(Some)
    }

    /// Token ids, each of which must be one of `size`.
    pub fn ids(&self, key: &str, size: usize) -> Result<Option<Vec<u32>>, Fault> {
        let ids = self.i32s(key)?;
        ids.map(|ids| ids.iter().map(|id| check_id(key, i64::from(*id), size)).collect()).transpose()
    }

    /// `Fault::Length` unless `found` entries are as many as `expected`.
    pub fn same_length(&self, key: &'static str, found: usize, expected: usize) -> Result<(), Fault> {
        if found == expected { Ok(()) } else { Err(Fault::Length { key, found, expected }) }
    }
}

/// `id` as a token id, if it is one of `size`.
pub(crate) fn check_id(key: &str, id: i64, size: usize) -> Result<u32, Fault> {
    let valid = u32::try_from(id).ok().filter(|id| (*id as usize) < size);
    valid.ok_or_else(|| Fault::TokenId { key: key.to_owned(), id, size })
}

fn fault(key: &str, reason: impl std::fmt::Display) -> Fault {
    Fault::Key { key: key.to_owned(), reason: reason.to_string() }
}

/// The ids of `names` that the vocabulary has as control or user-defined tokens.
pub(crate) fn named_tokens(vocabulary: &Vocabulary, names: &[&str]) -> Vec<u32> {
    let names: HashSet<&str> = names.iter().copied().collect();
    let marked = |id: &u32| matches!(vocabulary.kind(*id), TokenKind::Control | TokenKind::UserDefined);
    vocabulary.ids().filter(marked).filter(|id| names.contains(vocabulary.piece(*id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_are_told_by_their_text() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0x8f>"), Some(0x8f));
        for text in ["<0x-1>", "<0x1>", "<0x100>", "<0xGG>", "0x0A", "<0x0A", "<0x>", "<0xé>"] {
            assert_eq!(byte_of(text), None, "{text}");
        }
    }
}
