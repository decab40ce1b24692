//! Several sequences through the model at once: what generation for many costs is reading the weights once.

use std::ops::ControlFlow;

use super::{Engine, Sequence};
use crate::backend::Part;
use crate::model::forward;
use crate::{Error, Result};

/// Rows of one forward pass that belong to one sequence of the batch.
struct Piece {
    /// Number in the batch.
    sequence: usize,
    /// Of the sequence's new tokens.
    tokens: std::ops::Range<usize>,
}

impl Engine {
    /// Appends its own tokens to each sequence, all in one batch, and returns the logits of each one's last token,
    /// `[batch.len(), vocab]`, row-major. They are those that [`Engine::feed`] gives for each sequence alone, to the bit.
    ///
    /// A sequence that crosses the model's LongRoPE limit is computed anew first, by itself; the others are not
    /// touched by that. Batches of more tokens than [`EngineOptions::batch`](super::EngineOptions::batch) take
    /// several passes.
    ///
    /// # Errors
    /// As for [`Engine::feed`]; nothing is computed if any of the tokens cannot be taken. When memory runs out on the
    /// way, no sequence has grown.
    pub fn step(&self, batch: &mut [(&mut Sequence, &[u32])]) -> Result<Vec<f32>> {
        for (sequence, tokens) in batch.iter() {
            self.check_tokens(sequence, tokens)?;
        }
        for (sequence, tokens) in batch.iter_mut() {
            self.enter_regime(sequence, tokens.len())?;
            self.backend.reserve(&mut sequence.cache, sequence.tokens.len() + tokens.len())?;
        }
        let vocabulary = self.vocab_size();
        let mut logits = vec![0.0; batch.len() * vocabulary];
        for pass in passes(batch.iter().map(|(_, tokens)| tokens.len()), self.options.batch) {
            let (ended, rows) = self.pass(batch, &pass)?;
            for (sequence, row) in ended.into_iter().zip(rows.chunks_exact(vocabulary)) {
                logits[sequence * vocabulary..][..vocabulary].copy_from_slice(row);
            }
        }
        for (sequence, tokens) in batch {
            sequence.tokens.extend_from_slice(tokens);
        }
        Ok(logits)
    }

    /// Computes the sequence anew if it will be in another LongRoPE regime with `more` tokens.
    fn enter_regime(&self, sequence: &mut Sequence, more: usize) -> Result<()> {
        let regime = self.model.rope.regime(sequence.tokens.len() + more);
        if regime == sequence.regime {
            return Ok(());
        }
        sequence.regime = regime;
        let tokens = std::mem::take(&mut sequence.tokens);

        let result =
            self.feed_from(sequence, &tokens, 0, 0, &mut |_| Ok(()), &mut |_| ControlFlow::Continue(()));
        sequence.tokens = tokens;
        if let Err((done, error)) = result {
            sequence.tokens.truncate(done);
            return Err(error);
        }
        Ok(())
    }

    /// One forward pass; the sequences that end in it, and their logits.
    fn pass(
        &self,
        batch: &mut [(&mut Sequence, &[u32])],
        pieces: &[Piece],
    ) -> Result<(Vec<usize>, Vec<f32>)> {
        let (mut ids, mut outputs, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let (mut parts, mut regimes) = (Vec::new(), Vec::new());
        let mut pieces = pieces.iter().peekable();
        // Pieces come in the order of the batch, at most one a sequence.
        for (number, (sequence, tokens)) in batch.iter_mut().enumerate() {
            let Some(piece) = pieces.next_if(|piece| piece.sequence == number) else { continue };
            let start = ids.len();
            ids.extend_from_slice(&tokens[piece.tokens.clone()]);
            if piece.tokens.end == tokens.len() {
                outputs.push(ids.len() - 1);
                ended.push(number);
            }
            regimes.push(sequence.regime);
            let position = sequence.tokens.len() + piece.tokens.start;
            parts.push(Part { cache: &mut sequence.cache, rows: start..ids.len(), position });
        }
        if ids.is_empty() {
            return Err(Error::Usage("there are no sequences to compute".to_owned()));
        }
        let mut work = self.work.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        forward(&self.model, &self.backend, &mut work, &ids, &mut parts, &regimes, &outputs)?;
        Ok((ended, work.logits(&self.backend)?))
    }
}

/// Shares out sequences of `lengths` new tokens over passes of at most `most` rows, in order.
fn passes(lengths: impl Iterator<Item = usize>, most: usize) -> Vec<Vec<Piece>> {
    let most = most.max(1);
    let mut passes: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (sequence, length) in lengths.enumerate() {
        let mut start = 0;
        while start < length {
            if room == 0 {
                passes.push(Vec::new());
                room = most;
            }
            let end = length.min(start + room);
            passes.last_mut().expect("one was just pushed").push(Piece { sequence, tokens: start..end });
            room -= end - start;
            start = end;
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_full_and_in_order() {
        let shared = |lengths: &[usize], most| -> Vec<Vec<(usize, usize, usize)>> {
            let passes = passes(lengths.iter().copied(), most);
            let plain = |piece: &Piece| (piece.sequence, piece.tokens.start, piece.tokens.end);
            passes.iter().map(|pieces| pieces.iter().map(plain).collect()).collect()
        };
        assert_eq!(shared(&[1, 1, 1], 2), [vec![(0, 0, 1), (1, 0, 1)], vec![(2, 0, 1)]]);
        assert_eq!(shared(&[5, 2], 4), [vec![(0, 0, 4)], vec![(0, 4, 5), (1, 0, 2)]]);
        assert_eq!(shared(&[3], 0).len(), 3, "a batch of no rows would never end");
        assert!(shared(&[], 4).is_empty());
    }
}
