//! Guesses by looking up where the last few tokens were said before (prompt lookup; Saxena 2023).
//!
//! The whole context is indexed, by n-grams of each length, as it grows. The longest that was said before counts,
//! and of its places the most recent. How good a guess is depends on that length, and on whether the same followed every time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use super::{Drafter, SORTS};
use crate::{Error, Result};

/// Tokens of the longest n-grams.
const LONGEST: usize = SORTS / HISTORIES - 1;

/// How often what follows an n-gram of so many tokens follows it again, about, in texts and answers that quote from them.
const ODDS: [f64; LONGEST + 1] =
    [0.0, 0.15, 0.4, 0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9];

/// What is known of an n-gram beside its length: whether it was said once, twice or more often, and the same followed each time; or not the same.
const HISTORIES: usize = 4;
const DIFFERENT: usize = 3;

/// What the odds are multiplied by for each of these.
const BY_HISTORY: [f64; HISTORIES] = [1.0, 1.15, 1.3, 0.75];

/// The best odds that are expected.
const MOST: f64 = 0.95;

/// What was said after an n-gram.
#[derive(Clone, Copy)]
struct Place {
    /// Where what followed last begins.
    at: u32,
    /// See [`HISTORIES`].
    history: usize,
}

/// An index of n-grams.
pub struct Lookup {
    /// The text that is indexed.
    text: Vec<u32>,
    /// By length of the n-gram from `least` on and its hash. The n-gram at the text's end is not in it yet: nothing follows it.
    places: Vec<HashMap<u64, Place>>,
    least: usize,
    /// Hashes are keyed, so that no text can be made to collide; what is found is compared all the same.
    hasher: RandomState,
    /// Where the last guess begins.
    found: Option<usize>,
}

impl Lookup {
    /// Looks for the last `least` to `most` tokens.
    ///
    /// # Errors
    /// Lengths that are none: 0, above 15, or `least` above `most`.
    pub fn new(least: usize, most: usize) -> Result<Self> {
        if least == 0 || least > most || most > LONGEST {
            return Err(Error::Usage(format!(
                "n-grams of {least} to {most} tokens cannot be looked up: expected lengths from 1 to {LONGEST}, the smaller first",
            )));
        }
        let places = vec![HashMap::new(); most - least + 1];
        Ok(Self { text: Vec::new(), places, least, hasher: RandomState::new(), found: None })
    }

    /// Brings the index up to `text`.
    fn follow(&mut self, text: &[u32]) {
        let is_continued = text.len() >= self.text.len() && text[..self.text.len()] == self.text[..];
        if !is_continued {
            self.text.clear();
            self.places.iter_mut().for_each(HashMap::clear);
        }
        for &id in &text[self.text.len()..] {
            // Now that something follows them, the n-grams that end here can be found.
            let end = self.text.len();
            for (i, places) in self.places.iter_mut().enumerate() {
                let Some(start) = end.checked_sub(self.least + i) else { continue };
                match places.entry(self.hasher.hash_one(&self.text[start..end])) {
                    Entry::Occupied(mut entry) => {
                        let place = entry.get_mut();
                        place.history = match place.history {
                            _ if self.text[place.at as usize] != id => DIFFERENT,
                            DIFFERENT => DIFFERENT,
                            same => (same + 1).min(DIFFERENT - 1),
                        };
                        place.at = end as u32;
                    }
                    Entry::Vacant(entry) => {
                        entry.insert(Place { at: end as u32, history: 0 });
                    }
                }
            }
            self.text.push(id);
        }
    }

    /// Where the longest n-gram at the end of the text was last said before, and its length.
    fn find(&self) -> Option<(usize, Place)> {
        let end = self.text.len();
        self.places.iter().enumerate().rev().find_map(|(i, places)| {
            let length = self.least + i;
            let gram = &self.text[end.checked_sub(length)?..];
            let place = *places.get(&self.hasher.hash_one(gram))?;
            let at = place.at as usize;
            (self.text[at - length..at] == *gram).then_some((length, place))
        })
    }
}

impl Drafter for Lookup {
    fn begin(&mut self, text: &[u32]) -> Result<()> {
        self.follow(text);
        Ok(())
    }

    fn sort(&mut self, text: &[u32]) -> Option<usize> {
        self.follow(text);
        let (length, place) = self.find()?;
        self.found = Some(place.at as usize);
        Some(length * HISTORIES + place.history)
    }

    fn guess(&mut self, _text: &[u32], most: usize, out: &mut Vec<u32>) -> Result<()> {
        let Some(place) = self.found.take() else { return Ok(()) };
        // Where the text ends, the guess goes on with itself: that is how repetition goes on.
        let first = out.len();
        for i in 0..most {
            let id = self
                .text
                .get(place + i)
                .copied()
                .or_else(|| out.get(first + place + i - self.text.len()).copied());
            out.extend(id);
        }
        Ok(())
    }

    fn is_free(&self) -> bool {
        true
    }

    fn expected_odds(&self) -> [f64; SORTS] {
        std::array::from_fn(|sort| (ODDS[sort / HISTORIES] * BY_HISTORY[sort % HISTORIES]).min(MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the n-gram, and what may follow.
    fn guess(lookup: &mut Lookup, text: &[u32], most: usize) -> (Option<usize>, Vec<u32>) {
        let mut out = Vec::new();
        let sort = lookup.sort(text);
        lookup.guess(text, most, &mut out).unwrap();
        (sort.map(|sort| sort / HISTORIES), out)
    }

    #[test]
    fn it_is_known_whether_the_same_followed_each_time() {
        let mut lookup = Lookup::new(1, 1).unwrap();
        let mut history = |text: &[u32]| lookup.sort(text).map(|sort| sort % HISTORIES);
        assert_eq!(history(&[1, 2, 1]), Some(0));
        assert_eq!(history(&[1, 2, 1, 2, 1]), Some(1));
        assert_eq!(history(&[1, 2, 1, 2, 1, 2, 1]), Some(2));
        assert_eq!(history(&[1, 2, 1, 2, 1, 2, 1, 2, 1]), Some(2));
        assert_eq!(history(&[1, 2, 1, 3, 1]), Some(DIFFERENT));
        assert_eq!(history(&[1, 2, 1, 3, 1, 3, 1]), Some(DIFFERENT));
    }

    #[test]
    fn the_longest_match_wins_and_of_those_the_last() {
        let mut lookup = Lookup::new(1, 3).unwrap();
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 9, 3, 5, 8, 2, 3], 2), (Some(2), vec![4, 9]));
        assert_eq!(guess(&mut lookup, &[3, 5, 3, 6, 3], 1), (Some(1), vec![6]));
        assert_eq!(guess(&mut lookup, &[1, 2, 3], 4), (None, vec![]));
        assert_eq!(guess(&mut lookup, &[], 4), (None, vec![]));
    }

    #[test]
    fn repetition_goes_on() {
        let mut lookup = Lookup::new(2, 4).unwrap();
        assert_eq!(guess(&mut lookup, &[7, 8, 9, 7, 8, 9, 7], 7), (Some(4), vec![8, 9, 7, 8, 9, 7, 8]));
        let mut lookup = Lookup::new(1, 1).unwrap();
        assert_eq!(guess(&mut lookup, &[5, 5], 3), (Some(1), vec![5, 5, 5]));
    }

    #[test]
    fn growing_by_tokens_is_as_starting_anew() {
        let text: Vec<u32> = (0..200u32).map(|i| i * i % 7).collect();
        let mut grown = Lookup::new(1, 4).unwrap();
        for end in 0..text.len() {
            let mut fresh = Lookup::new(1, 4).unwrap();
            assert_eq!(guess(&mut grown, &text[..end], 5), guess(&mut fresh, &text[..end], 5));
        }
        // Another text, and a shorter one: what was known of the old is gone.
        assert_eq!(guess(&mut grown, &[100, 101, 100], 1), (Some(1), vec![101]));
        assert_eq!(guess(&mut grown, &[100], 1), (None, vec![]));
    }

    #[test]
    fn lengths_that_are_none_are_refused() {
        for (least, most) in [(0, 1), (3, 2), (1, LONGEST + 1)] {
            assert!(Lookup::new(least, most).is_err());
        }
    }
}
