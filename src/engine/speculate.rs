//! Speculative decoding: guess how the text goes on, and let one pass over the weights check all guesses.
//!
//! A guess changes nothing but the time: every token is sampled from the model's own logits, in order, with the
//! same random numbers; a guessed token merely has its successor's logits ready when it turns out to be right
//! (Leviathan et al. 2023 and Chen et al. 2023, reduced to the case in which sampling is done by the target alone). Logits do not
//! depend on what else is in a batch, so the tokens are those of plain decoding to the bit.

mod draft_model;
mod lookup;
mod pace;

use std::time::Duration;

pub use draft_model::DraftModel;
pub use lookup::Lookup;
use pace::Pace;

use crate::Result;

/// How many sorts of guesses a drafter may tell apart by how good they are.
const SORTS: usize = 64;
/// Odds of a guess before anything is known: just enough for a short one to be tried.
const FIRST_ODDS: f64 = 0.4;

/// Guesses how a text goes on.
pub trait Drafter {
    /// Gets ready to guess what follows `text`, which may differ from the last one in any way.
    fn begin(&mut self, text: &[u32]) -> Result<()>;

    /// Whether there is a guess at what follows `text`, and of which sort (below 64): guesses of one sort
    /// should be about as good as each other.
    fn sort(&mut self, text: &[u32]) -> Option<usize>;

    /// Appends at most `most` tokens that may follow `text` to `out`. Called after [`Self::sort`] said that there are.
    fn guess(&mut self, text: &[u32], most: usize, out: &mut Vec<u32>) -> Result<()>;

    /// Whether guessing takes no time worth mentioning.
    fn is_free(&self) -> bool;

    /// How often a guessed token of each sort is expected to be right, if those before it are, as long as it is not known.
    fn expected_odds(&self) -> [f64; SORTS] {
        [FIRST_ODDS; SORTS]
    }
}

/// How far to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Shorter guesses are not checked.
    pub least: usize,
    /// Tokens to guess at most.
    pub most: usize,
}

/// A drafter and what is known of its success; it guesses as far as pays off.
pub struct Speculator {
    drafter: Box<dyn Drafter>,
    range: Range,
    pace: Pace,
    /// All that was said, the token that is about to be fed included.
    text: Vec<u32>,
    guess: Vec<u32>,
    /// Sort of the last guess; `None` once its success is noted.
    sort: Option<usize>,
    /// Tokens of the guess that are fed to be checked; 0 if it is only watched.
    checked: usize,
}

impl Speculator {
    /// Guesses with `drafter` as far as `range` allows.
    pub fn new(drafter: Box<dyn Drafter>, range: Range) -> Self {
        let (text, guess) = (Vec::new(), Vec::new());
        let pace = Pace::new(drafter.expected_odds());
        Self { drafter, range, pace, text, guess, sort: None, checked: 0 }
    }

    /// Starts an answer to `text`.
    pub(super) fn begin(&mut self, text: &[u32]) -> Result<()> {
        self.text.clear();
        self.text.extend_from_slice(text);
        self.sort = None;
        self.drafter.begin(text)
    }

    /// Takes note of the next token of the answer.
    pub(super) fn push(&mut self, id: u32) {
        // What was guessed for nothing still tells how good such guesses are.
        if self.checked == 0
            && let (Some(sort), Some(&guess)) = (self.sort.take(), self.guess.first())
        {
            self.pace.checked(sort, 1, usize::from(guess == id));
        }
        self.text.push(id);
    }

    /// The guess at what follows the tokens pushed so far, to be fed with the last of them: at most `most` tokens.
    pub(super) fn draft(&mut self, most: usize) -> Result<&[u32]> {
        self.guess.clear();
        self.checked = 0;
        self.sort = self.drafter.sort(&self.text);
        let Some(sort) = self.sort else { return Ok(&[]) };
        let most = most.min(self.range.most);
        let length = self.pace.length(sort, most, self.drafter.is_free());
        if length > 0 || self.drafter.is_free() {
            self.drafter.guess(&self.text, length.max(1), &mut self.guess)?;
        }
        if length == 0 || self.guess.len() < self.range.least.max(1) {
            return Ok(&[]);
        }
        self.checked = self.guess.len();
        Ok(&self.guess)
    }

    /// Takes note of how long it took to guess, and to feed the guess with the token before it.
    pub(super) fn fed(&mut self, time: Duration) {
        self.pace.fed(self.checked, time);
    }

    /// Takes note of how many tokens of the last guess were right.
    pub(super) fn verified(&mut self, right: usize) {
        if self.checked > 0
            && let Some(sort) = self.sort.take()
        {
            self.pace.checked(sort, self.checked, right);
        }
    }
}
