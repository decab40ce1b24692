//! A recorded answer instead of the model's own choices.

use super::{Chooser, Logits};
use crate::Result;

/// Chooses the tokens of a given answer, one after the other, whatever the logits say: what a model that gives this answer
/// would take for it, guesses included.
pub(crate) struct Replay {
    /// The answer, an end-of-generation token last.
    ids: Vec<u32>,
    said: usize,
}

impl Replay {
    /// Answers with `ids`, then with the end-of-generation token `end`.
    pub fn new(mut ids: Vec<u32>, end: u32) -> Self {
        ids.push(end);
        Self { ids, said: 0 }
    }

    /// Starts the answer anew.
    pub fn reset(&mut self) {
        self.said = 0;
    }
}

impl Chooser for Replay {
    fn needs(&self) -> Option<usize> {
        // As a greedy choice does.
        Some(1)
    }

    fn choose(&mut self, _logits: &mut Logits) -> Result<u32> {
        let id = self.ids[self.said.min(self.ids.len() - 1)];
        self.said += 1;
        Ok(id)
    }

    fn accept(&mut self, _id: u32) {}
}
