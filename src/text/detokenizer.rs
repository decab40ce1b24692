//! Tokens to text, one at a time.

use super::Tokenizer;
use super::vocabulary::byte_of;

/// Puts the text of a stream of tokens together, without ever cutting a character.
///
/// What [`push`](Self::push) and [`finish`](Self::finish) return, concatenated, is what the `tokenizers` package decodes
/// from all the tokens at once: the space that begins a text is dropped, and byte tokens in a row count as UTF-8 only if
/// the whole row is valid; otherwise each of its bytes becomes U+FFFD. A row of byte tokens is therefore held back until
/// a token of another kind ends it.
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
        Self { tokenizer, show_special, strip: tokenizer.framing.strip, bytes: Vec::new() }
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
        if let Some(byte) = byte_of(self.tokenizer.piece(id)) {
            self.bytes.push(byte);
            return String::new();
        }
        let text = self.take_bytes() + &self.tokenizer.shown(id);
        self.stripped(text)
    }

    /// The text of the byte tokens held back; the detokenizer can go on after it.
    pub fn finish(&mut self) -> String {
        let text = self.take_bytes();
        self.stripped(text)
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
