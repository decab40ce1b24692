//! Added tokens: the ones that are found in the text before anything else happens to it.
//!
//! The rules are those of tokenizer.json's `added_tokens`, applied in the order in which the `tokenizers` package applies
//! them: the longest token at the leftmost place wins; `single_word` drops a match that touches a word character; `lstrip`
//! and `rstrip` let the token swallow the whitespace before and after it.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

/// Bit flags of an added token, as stored in the GGUF key `phi.tokenizer.added.flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddedFlags(pub u32);

impl AddedFlags {
    /// Swallows the whitespace before it.
    pub const LSTRIP: u32 = 1;
    /// Swallows the whitespace after it.
    pub const RSTRIP: u32 = 2;
    /// Is looked for in the normalised text.
    pub const NORMALIZED: u32 = 4;
    /// Matches only where no word character touches it.
    pub const SINGLE_WORD: u32 = 8;
    /// Is left out of decoded text unless asked for.
    pub const SPECIAL: u32 = 16;

    /// Whether all of `flags` are set.
    pub fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }
}

/// A token that is matched in the text as it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AddedToken {
    pub id: u32,
    pub content: String,
    pub flags: AddedFlags,
    /// Never matched inside text that is only text (a user's message).
    pub control: bool,
}

/// A set of added tokens that can be found in a text.
#[derive(Default)]
pub(crate) struct Matcher {
    tokens: Vec<AddedToken>,
    /// A trie over bytes; node 0 is the root.
    nodes: Vec<Node>,
    /// Whether a token starts with the byte.
    starts: Vec<bool>,
}

#[derive(Default)]
struct Node {
    /// Ascending by byte.
    children: Vec<(u8, u32)>,
    /// The index in `tokens` of the token that ends here.
    token: Option<u32>,
}

/// A stretch of the text: an added token, or the text in between (`token` is `None`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Split {
    pub token: Option<u32>,
    pub range: Range<usize>,
}

impl Matcher {
    /// Tokens with empty content are ignored; of two with the same content the later one counts.
    pub fn new(tokens: Vec<AddedToken>) -> Self {
        let mut matcher = Self { nodes: vec![Node::default()], starts: vec![false; 256], tokens: Vec::new() };
        for token in tokens {
            let Some(first) = token.content.as_bytes().first() else { continue };
            matcher.starts[usize::from(*first)] = true;
            let mut node = 0;
            for byte in token.content.bytes() {
                node = matcher.child_or_new(node, byte);
            }
            matcher.nodes[node].token = Some(matcher.tokens.len() as u32);
            matcher.tokens.push(token);
        }
        matcher
    }

    /// The tokens in the order given.
    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let children = &self.nodes[node].children;
        children.binary_search_by_key(&byte, |child| child.0).ok().map(|at| children[at].1 as usize)
    }

    fn child_or_new(&mut self, node: usize, byte: u8) -> usize {
        match self.nodes[node].children.binary_search_by_key(&byte, |child| child.0) {
            Ok(at) => self.nodes[node].children[at].1 as usize,
            Err(at) => {
                let fresh = self.nodes.len();
                self.nodes[node].children.insert(at, (byte, fresh as u32));
                self.nodes.push(Node::default());
                fresh
            }
        }
    }

    /// Whether any of the tokens starts at byte `at` of `text`.
    pub fn starts_at(&self, text: &str, at: usize) -> bool {
        self.longest_at(text, at, &|_, _| true).is_some()
    }

    /// The longest permitted token that starts at `start`, and where it ends.
    fn longest_at(
        &self,
        text: &str,
        start: usize,
        permitted: &impl Fn(&AddedToken, Range<usize>) -> bool,
    ) -> Option<(&AddedToken, usize)> {
        let (mut node, mut found) = (0, None);
        for (at, byte) in (start..).zip(&text.as_bytes()[start..]) {
            node = match self.child(node, *byte) {
                Some(child) => child,
                None => break,
            };
            if let Some(index) = self.nodes[node].token {
                let token = &self.tokens[index as usize];
                if permitted(token, start..at + 1) {
                    found = Some((token, at + 1));
                }
            }
        }
        found
    }

    /// Splits `text` at the added tokens in it that `permitted` accepts; the splits cover the text.
    pub fn split(&self, text: &str, permitted: impl Fn(&AddedToken, Range<usize>) -> bool) -> Vec<Split> {
        let mut splits = Vec::new();
        let mut covered = 0;
        let mut at = 0;
        while let Some(skipped) =
            text.as_bytes()[at..].iter().position(|byte| self.starts.get(usize::from(*byte)) == Some(&true))
        {
            let start = at + skipped;
            let Some((token, stop)) = self.longest_at(text, start, &permitted) else {
                at = start + 1;
                continue;
            };
            at = stop;
            if token.flags.has(AddedFlags::SINGLE_WORD) && touches_word(text, start, stop) {
                continue;
            }
            let (mut start, mut stop) = (start, stop);
            if token.flags.has(AddedFlags::LSTRIP) {
                start = text[..start].trim_end_matches(char::is_whitespace).len().max(covered);
            }
            if token.flags.has(AddedFlags::RSTRIP) {
                stop = text.len() - text[stop..].trim_start_matches(char::is_whitespace).len();
            }
            if covered < start {
                splits.push(Split { token: None, range: covered..start });
            }
            splits.push(Split { token: Some(token.id), range: start..stop });
            covered = stop;
        }
        if covered < text.len() {
            splits.push(Split { token: None, range: covered..text.len() });
        }
        splits
    }
}

/// Whether a word character stands right before `start` or right after `stop`.
fn touches_word(text: &str, start: usize, stop: usize) -> bool {
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\w$").expect("a valid pattern"));
    let word = |c: Option<char>| c.is_some_and(|c| WORD.is_match(c.encode_utf8(&mut [0; 4])));
    word(text[..start].chars().next_back()) || word(text[stop..].chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str, flags: u32) -> AddedToken {
        AddedToken { id, content: content.into(), flags: AddedFlags(flags), control: id >= 100 }
    }

    fn split(tokens: &[AddedToken], text: &str) -> Vec<(Option<u32>, String)> {
        let splits = Matcher::new(tokens.to_vec()).split(text, |_, _| true);
        splits.into_iter().map(|s| (s.token, text[s.range].to_owned())).collect()
    }

    #[test]
    fn the_longest_token_at_the_leftmost_place_wins() {
        let tokens = [token(1, "<a", 0), token(2, "<a>", 0), token(3, "a>b", 0)];
        assert_eq!(
            split(&tokens, "x<a>b<ay"),
            [
                (None, "x".into()),
                (Some(2), "<a>".into()),
                (None, "b".into()),
                (Some(1), "<a".into()),
                (None, "y".into())
            ]
        );
    }

    #[test]
    fn stripping_swallows_whitespace_on_its_side_only() {
        let tokens = [token(1, "<l>", AddedFlags::LSTRIP), token(2, "<r>", AddedFlags::RSTRIP)];
        assert_eq!(
            split(&tokens, "a \n<l> b <r>\u{a0}\t<l>c"),
            [
                (None, "a".into()),
                (Some(1), " \n<l>".into()),
                (None, " b ".into()),
                (Some(2), "<r>\u{a0}\t".into()),
                (Some(1), "<l>".into()),
                (None, "c".into())
            ]
        );
    }

    #[test]
    fn a_token_inside_swallowed_whitespace_is_still_found() {
        // The package looks for tokens first and strips afterwards, so both come out.
        let tokens = [token(1, "<r>", AddedFlags::RSTRIP), token(2, "\n\n", 0)];
        assert_eq!(
            split(&tokens, "<r> \n\n x"),
            [(Some(1), "<r> \n\n ".into()), (Some(2), "\n\n".into()), (None, " x".into())]
        );
    }

    #[test]
    fn single_words_do_not_touch_word_characters() {
        let tokens = [token(1, "up", AddedFlags::SINGLE_WORD)];
        assert_eq!(
            split(&tokens, "up, cup up_ \u{301}up -up"),
            [(Some(1), "up".into()), (None, ", cup up_ \u{301}up -".into()), (Some(1), "up".into())]
        );
    }

    #[test]
    fn what_is_not_permitted_is_text() {
        let matcher = Matcher::new(vec![token(100, "<a>", 0), token(1, "<a", 0)]);
        let splits = matcher.split("<a>", |token, _| !token.control);
        assert_eq!(splits, [Split { token: Some(1), range: 0..2 }, Split { token: None, range: 2..3 }]);
    }

    #[test]
    fn nothing_to_find_is_one_split() {
        assert_eq!(split(&[], "abc"), [(None, "abc".into())]);
        assert_eq!(split(&[token(1, "", 0)], ""), []);
    }
}
