//! Guesses by a smaller model of the same vocabulary.

use std::ops::ControlFlow;

use super::Drafter;
use crate::engine::{Engine, Sequence};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Entries by which two vocabularies may differ in size: padding, as llama.cpp has it.
const PADDING: usize = 128;

/// A model that guesses its likeliest tokens.
pub struct DraftModel {
    engine: Engine,
    sequence: Sequence,
    /// A guess ends before a token that the draft model gives a smaller probability.
    least_probability: f32,
    /// Tokens that the target knows; others are never guessed.
    vocabulary: usize,
}

impl DraftModel {
    /// Guesses for a target with `vocabulary` logits, which tokens at least as probable as `least_probability` (0 to 1)
    /// are worth checking.
    ///
    /// # Errors
    /// A context of 0.
    pub fn new(engine: Engine, vocabulary: usize, context: usize, least_probability: f32) -> Result<Self> {
        let sequence = engine.sequence(context.min(engine.model_context()))?;
        Ok(Self { engine, sequence, least_probability, vocabulary })
    }

    /// Whether a draft model's tokens mean the same as the target's.
    ///
    /// # Errors
    /// [`Error::Usage`] with the first difference.
    pub fn check_vocabulary(target: &Tokenizer, draft: &Tokenizer) -> Result<()> {
        let (many, few) = (target.vocab_size(), draft.vocab_size());
        let refuse = |what: String| {
            Err(Error::Usage(format!(
                "the draft model cannot guess for this model: {what}; choose a smaller model of the same family"
            )))
        };
        if many.abs_diff(few) > PADDING {
            return refuse(format!("its vocabulary has {few} entries and the model's has {many}"));
        }
        for id in 0..many.min(few) as u32 {
            if target.piece(id) != draft.piece(id) {
                let (theirs, ours) = (draft.piece(id), target.piece(id));
                return refuse(format!("its token {id} is {theirs:?} and the model's is {ours:?}"));
            }
        }
        Ok(())
    }

    /// Feeds what the model has not seen of `text`; the logits of its last token. `None` if it does not fit.
    fn read(&mut self, text: &[u32]) -> Result<Option<Vec<f32>>> {
        let held = self.sequence.tokens();
        let shared = held.iter().zip(text).take_while(|(held, new)| held == new).count();
        let shared = shared.min(text.len().saturating_sub(1));
        if shared < held.len() {
            self.sequence.truncate(shared);
        }
        let fresh = &text[shared..];
        let known = |&id: &u32| (id as usize) < self.engine.vocab_size();
        if fresh.is_empty() || fresh.len() > self.sequence.room() || !fresh.iter().all(known) {
            return Ok(None);
        }
        let logits = self.engine.feed(&mut self.sequence, fresh, 1, &mut |_| ControlFlow::Continue(()));
        logits.map(Some)
    }
}

impl Drafter for DraftModel {
    fn begin(&mut self, text: &[u32]) -> Result<()> {
        self.read(text).map(|_| ())
    }

    fn sort(&mut self, _text: &[u32]) -> Option<usize> {
        Some(0)
    }

    fn guess(&mut self, text: &[u32], most: usize, out: &mut Vec<u32>) -> Result<()> {
        let Some(mut logits) = self.read(text)? else { return Ok(()) };
        for guessed in 1..=most {
            let (id, probability) = likeliest(&logits);
            if probability < self.least_probability || id as usize >= self.vocabulary {
                break;
            }
            out.push(id);
            if guessed == most || self.sequence.room() == 0 {
                break;
            }
            logits = self.engine.feed(&mut self.sequence, &[id], 1, &mut |_| ControlFlow::Continue(()))?;
        }
        Ok(())
    }

    fn is_free(&self) -> bool {
        false
    }
}

/// The likeliest token, the first of equals, and its probability.
fn likeliest(logits: &[f32]) -> (u32, f32) {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
        if logit > best.1 { (id as u32, logit) } else { best }
    });
    let sum: f32 = logits.iter().map(|logit| (logit - best.1).exp()).sum();
    (best.0, 1.0 / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_token_has_its_probability() {
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY, 2.0f32.ln()];
        let (id, probability) = likeliest(&logits);
        assert_eq!(id, 1);
        assert!((probability - 0.4).abs() < 1e-6);
    }
}
