//! Tokens to text, one at a time.

use super::Tokenizer;
use super::byte_level;
use super::tokenizer::Surface;
use super::vocabulary::byte_of;

/// Puts the text of a stream of tokens together, without ever cutting a character.
///
/// What [`push`](Self::push) and [`finish`](Self::finish) return, concatenated, is what the `tokenizers` package decodes
/// from all the tokens at once: the space that begins a text is dropped, and byte tokens in a row count as UTF-8 only if
/// the whole row is valid; otherwise each of its bytes becomes U+FFFD. A row of byte tokens is therefore held back until
/// a token of another kind ends it. With a byte-level vocabulary, the bytes of a character that is not complete yet are
/// held back, and bytes that can belong to none become U+FFFD.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    show_special: bool,
    /// Spaces still to be dropped from the text's start.
    strip: usize,
    /// Byte tokens whose row has not ended.
    bytes: Vec<u8>,
}

impl<'a> Detokenizer<'a> {
    /// For tokens that begin a text. Special tokens are left out unless `show_special`.
    pub fn new(tokenizer: &'a Tokenizer, show_special: bool) -> Self {
        let strip = match &tokenizer.surface {
            Surface::SentencePiece(framing) => framing.strip,
            Surface::ByteLevel(_) => 0,
        };
        Self { tokenizer, show_special, strip, bytes: Vec::new() }
    }

    /// For tokens that go on where other text ends: a leading space is kept.
    pub fn continuing(tokenizer: &'a Tokenizer, show_special: bool) -> Self {
        Self { strip: 0, ..Self::new(tokenizer, show_special) }
    }

    /// The text that is certain now that `id` follows the tokens before.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_hidden(id, self.show_special) {
            return String::new();
        }
        let framing = match &self.tokenizer.surface {
            Surface::SentencePiece(framing) => framing,
            Surface::ByteLevel(_) => {
                self.bytes.extend(byte_level::bytes_of(self.tokenizer.piece(id)));
                return self.take_characters();
            }
        };
        if let Some(byte) = byte_of(self.tokenizer.piece(id)) {
            self.bytes.push(byte);
            return String::new();
        }
        let text = self.take_bytes() + &self.tokenizer.shown(framing, id);
        self.stripped(text)
    }

    /// The text of the byte tokens held back; the detokenizer can go on after it.
    pub fn finish(&mut self) -> String {
        if matches!(self.tokenizer.surface, Surface::ByteLevel(_)) {
            return String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        }
        let text = self.take_bytes();
        self.stripped(text)
    }

    /// What is complete of the bytes held back.
    fn take_characters(&mut self) -> String {
        let incomplete = match self.bytes.utf8_chunks().last() {
            // At most three bytes that begin a character; anything longer or wrong is decided already.
            Some(last) => {
                let invalid = last.invalid();
                match std::str::from_utf8(invalid) {
                    Err(error) if error.error_len().is_none() => invalid.len(),
                    _ => 0,
                }
            }
            None => 0,
        };
        let held = self.bytes.split_off(self.bytes.len() - incomplete);
        let complete = std::mem::replace(&mut self.bytes, held);
        String::from_utf8_lossy(&complete).into_owned()
    }

    fn take_bytes(&mut self) -> String {
        let bytes = std::mem::take(&mut self.bytes);
        let count = bytes.len();
        String::from_utf8(bytes).unwrap_or_else(|_| "\u{FFFD}".repeat(count))
    }

    fn stripped(&mut self, text: String) -> String {
        let spaces = text.bytes().take(self.strip).take_while(|byte| *byte == b' ').count();
        self.strip = if spaces == text.len() { self.strip - spaces } else { 0 };
        text[spaces..].to_owned()
    }
}

impl Tokenizer {
    /// The text of all of `ids`.
    pub fn decode(&self, ids: &[u32], show_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(self, show_special);
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }
}
