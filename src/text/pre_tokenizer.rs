//! Pre-tokenizers: regular expressions that cut text into the words that no merge crosses.
//!
//! The patterns are tokenizer.json's own. Those in use end in `\s+(?!\S)|\s+`, which looks ahead; what it asks for can be
//! had without looking ahead (a run of whitespace leaves its last character to the word that follows), so they run on
//! an automaton. A pattern that needs more is run by backtracking.

use regex_automata::{Input, meta};

use super::Fault;

/// GPT-2's pattern; Phi-1 to Phi-2 have it.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// cl100k's; Phi-3-small and Phi-4 have it.
pub(crate) const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k's; Phi-4-mini has it.
pub(crate) const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Other spellings of patterns that match the same: with possessive quantifiers, whose classes are disjoint from what
/// follows, and as tiktoken writes them.
const SPELLINGS: &[(&str, &str)] = &[
    (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        CL100K,
    ),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        CL100K,
    ),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        CL100K,
    ),
];

/// `tokenizer.ggml.pre` and the pattern that it stands for; the first name of a pattern is the one that is written.
const NAMES: &[(&str, &str)] = &[("phi-2", GPT2), ("dbrx", CL100K), ("gpt-4o", O200K), ("gpt-2", GPT2)];

/// Cuts a text into words by one or several patterns, each applied to the words of the one before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PreTokenizer {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// In the spelling that is compared.
    source: String,
    /// Whether what lies between two matches is a word too, or dropped.
    keep_gaps: bool,
    engine: Engine,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.keep_gaps == other.keep_gaps
    }
}

#[derive(Clone, Debug)]
enum Engine {
    /// Pattern 0, and, if there is a pattern 1, the whitespace that it leaves.
    Automaton(meta::Regex),
    Backtracking(fancy_regex::Regex),
}

/// What ends the patterns in use.
const TRAILING_SPACE: &str = r"|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// From patterns, in order; the flag says whether what a pattern does not match is a word as well.
    pub fn new<'a>(patterns: impl IntoIterator<Item = (&'a str, bool)>) -> Result<Self, Fault> {
        let patterns = patterns.into_iter().map(|(source, keep_gaps)| Pattern::new(source, keep_gaps));
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// That which `tokenizer.ggml.pre` names.
    pub fn named(name: &str) -> Result<Self, Fault> {
        match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, pattern)) => Self::new([(*pattern, true)]),
            None => {
                let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                Err(Fault::Unsupported(format!(
                    "the pre-tokenizer \"{name}\" (tokenizer.ggml.pre) is not known; supported are {}, and any in a file that carries its tokenizer.json",
                    known.join(", ")
                )))
            }
        }
    }

    /// The name to write for it, if it has one.
    pub fn name(&self) -> Option<&'static str> {
        let [pattern] = &self.patterns[..] else { return None };
        NAMES.iter().find(|(_, source)| *source == pattern.source).map(|(name, _)| *name)
    }

    /// Calls `word` with each word of `text`, in order.
    pub fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        Self::split_by(&self.patterns, text, word);
    }

    fn split_by<'t>(patterns: &[Pattern], text: &'t str, word: &mut dyn FnMut(&'t str)) {
        match patterns.split_first() {
            None if text.is_empty() => {}
            None => word(text),
            Some((first, rest)) => first.split(text, &mut |part| Self::split_by(rest, part, word)),
        }
    }
}

impl Pattern {
    fn new(source: &str, keep_gaps: bool) -> Result<Self, Fault> {
        let source = SPELLINGS.iter().find(|(known, _)| *known == source).map_or(source, |(_, same)| same);
        // Every character belongs to one of these patterns' alternatives: there are no gaps to keep or drop.
        let keep_gaps = keep_gaps || [GPT2, CL100K, O200K].contains(&source);
        Ok(Self { source: source.to_owned(), keep_gaps, engine: Engine::new(source)? })
    }

    fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        let mut covered = 0;
        let mut at = 0;
        while at < text.len() {
            let Some((start, end)) = self.engine.find(text, at) else { break };
            if start == end {
                at = end + text[end..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            if covered < start && self.keep_gaps {
                word(&text[covered..start]);
            }
            word(&text[start..end]);
            (covered, at) = (end, end);
        }
        if covered < text.len() && self.keep_gaps {
            word(&text[covered..]);
        }
    }
}

impl Engine {
    fn new(source: &str) -> Result<Self, Fault> {
        let whole = |parts: &[&str]| meta::Regex::new_many(parts).ok().map(Self::Automaton);
        let automaton = match source.strip_suffix(TRAILING_SPACE) {
            Some(head) => whole(&[head, r"\s+"]),
            None => whole(&[source]),
        };
        if let Some(automaton) = automaton {
            return Ok(automaton);
        }
        fancy_regex::Regex::new(source).map(Self::Backtracking).map_err(|error| {
            Fault::Unsupported(format!(
                "the pre-tokenizer's pattern {source:?} is not understood ({error}); expected a regular expression as Oniguruma has them"
            ))
        })
    }

    /// The first match at or after `at`, as byte positions.
    fn find(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        match self {
            Self::Automaton(regex) => {
                let found = regex.search(&Input::new(text).range(at..))?;
                let (start, mut end) = (found.start(), found.end());
                if found.pattern().as_usize() == 1 && end < text.len() {
                    // `\s+(?!\S)`: the last of several whitespace characters goes with the word that follows.
                    let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
                    if end - last > start {
                        end -= last;
                    }
                }
                Some((start, end))
            }
            // A search that takes too many steps ends the splitting: what is left is one word.
            Self::Backtracking(regex) => {
                regex.find_from_pos(text, at).ok().flatten().map(|found| (found.start(), found.end()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(pattern: &PreTokenizer, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        pattern.split(text, &mut |word| words.push(word));
        words
    }

    #[test]
    fn whitespace_leaves_its_last_character_to_the_next_word() {
        let gpt2 = PreTokenizer::named("phi-2").unwrap();
        assert_eq!(words(&gpt2, "a  b\n\n c  "), ["a", " ", " b", "\n\n", " c", "  "]);
        assert_eq!(words(&gpt2, "it's\tfine"), ["it", "'s", "\t", "fine"]);
        let cl100k = PreTokenizer::named("dbrx").unwrap();
        assert_eq!(words(&cl100k, "x\n \n  y 12345"), ["x", "\n \n", " ", " y", " ", "123", "45"]);
        let o200k = PreTokenizer::named("gpt-4o").unwrap();
        assert_eq!(words(&o200k, "HTMLPage it'S /a//\n"), ["HTMLPage", " it'S", " /", "a", "//\n"]);
    }

    #[test]
    fn an_automaton_finds_what_backtracking_finds() {
        let texts = [
            "a  b \n\n  c'LL  ",
            "  ",
            "\u{3000}\u{a0} x",
            "'s's 's ſ'ſ",
            "1234567 ١٢٣٤",
            "e\u{301}\u{200d}👩 \r\n\r\n ",
        ];
        for source in [GPT2, CL100K, O200K] {
            let automaton = PreTokenizer::new([(source, true)]).unwrap();
            assert!(matches!(automaton.patterns[0].engine, Engine::Automaton(_)));
            let mut backtracking = automaton.clone();
            backtracking.patterns[0].engine = Engine::Backtracking(fancy_regex::Regex::new(source).unwrap());
            for text in texts {
                assert_eq!(words(&automaton, text), words(&backtracking, text), "{text:?} by {source}");
            }
        }
    }

    #[test]
    fn spellings_are_known_by_one_name() {
        for (spelling, _) in SPELLINGS {
            assert_eq!(PreTokenizer::new([(*spelling, true)]).unwrap().name(), Some("dbrx"));
        }
        assert_eq!(PreTokenizer::new([(r"\p{L}+", true)]).unwrap().name(), None);
    }

    #[test]
    fn gaps_are_kept_or_dropped() {
        assert_eq!(words(&PreTokenizer::new([(r"\d", true)]).unwrap(), "ab1c2"), ["ab", "1", "c", "2"]);
        assert_eq!(words(&PreTokenizer::new([(r"\d", false)]).unwrap(), "ab1c2"), ["1", "2"]);
        let both = PreTokenizer::new([(r"\d", true), ("b", true)]).unwrap();
        assert_eq!(words(&both, "ab1b"), ["a", "b", "1", "b"]);
    }

    #[test]
    fn unknown_names_and_broken_patterns_are_named() {
        let fault = PreTokenizer::named("klingon").unwrap_err().to_string();
        assert!(fault.contains("klingon") && fault.contains("gpt-4o"), "{fault}");
        assert!(PreTokenizer::new([("(", true)]).unwrap_err().to_string().contains("pattern"));
    }
}
