//! How well a model predicts: perplexity, divergence from another model, multiple-choice tasks. The job behind
//! `phi perplexity`.

pub mod base;
pub mod divergence;
mod random;
pub mod tasks;

use std::ops::ControlFlow;

use crate::backend::hybrid::Hybrid;
use crate::engine::KvType;
use crate::engine::evaluate::{ChunkJob, Evaluator, caches};
use crate::engine::score::{Likelihood, log_probability};
use crate::model::Model;
use crate::{Error, Result};

/// The model and the means to run it.
pub struct Setup<'a> {
    pub model: &'a Model,
    /// What computes.
    pub backend: &'a Hybrid,
    /// Element types of the cached keys and values.
    pub cache_types: (KvType, KvType),
    /// Tokens computed at once, at most.
    pub batch: usize,
    /// The token that begins every text, for models that have it so.
    pub bos: Option<u32>,
}

impl<'a> Setup<'a> {
    /// For sequences of `context` tokens, as many of `most` at once as make a batch.
    fn evaluator(&self, most: usize, context: usize) -> Result<Evaluator<'a, Hybrid>> {
        let together = (self.batch / context.max(1)).clamp(1, most.max(1));
        let caches = caches(self.backend, self.model, self.cache_types, together, context)?;
        Ok(Evaluator::new(self.model, self.backend, caches, self.batch))
    }

    fn job(&self, outputs: std::ops::Range<usize>) -> ChunkJob {
        ChunkJob { bos: self.bos, outputs, threads: self.backend.cpu().threads() }
    }

    /// Fails with a token that the model has not.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.model.vocabulary();
        match tokens.iter().chain(&self.bos).find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::Usage(format!("token {id} is not one of the model's {vocabulary}"))),
            None => Ok(()),
        }
    }
}

/// How a text is cut into chunks, and which of their tokens are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Tokens of a chunk.
    pub chunk: usize,
    /// Tokens from one chunk's beginning to the next one's.
    pub step: usize,
    /// Tokens scored at each chunk's end.
    pub scored: usize,
}

impl Chunking {
    /// Chunks side by side, their second halves scored (the last token predicts nothing).
    pub fn halves(context: usize) -> Self {
        Self { chunk: context, step: context, scored: context - 1 - context / 2 }
    }

    /// Overlapping chunks that score `stride` tokens each with at least `context` - `stride` / 2 before them.
    pub fn strided(context: usize, stride: usize) -> Self {
        Self { chunk: context + stride / 2, step: stride, scored: stride }
    }

    /// Chunks in `tokens`, at most `most`.
    pub fn count(&self, tokens: usize, most: Option<usize>) -> usize {
        let all = if self.step == self.chunk {
            tokens / self.chunk
        } else {
            tokens.saturating_sub(self.chunk).div_ceil(self.step)
        };
        most.map_or(all, |most| all.min(most))
    }

    /// The first `count` chunks of `tokens`.
    fn cut<'a>(&self, tokens: &'a [u32], count: usize) -> Vec<&'a [u32]> {
        (0..count).filter_map(|n| tokens.get(n * self.step..n * self.step + self.chunk)).collect()
    }

    /// The tokens of a chunk after which the scored ones come.
    fn outputs(&self) -> std::ops::Range<usize> {
        self.chunk - 1 - self.scored..self.chunk - 1
    }
}

/// What the caller is told after each chunk.
#[derive(Clone, Copy, Debug)]
pub struct Progress<T> {
    /// Chunks (or tasks) done.
    pub done: usize,
    pub so_far: T,
}

/// The likelihood that the model gives to the scored tokens of `tokens`' first `count` chunks. `base` gets the
/// distributions, if there is one.
///
/// # Errors
/// Tokens outside the vocabulary, too little memory, a `base` that cannot be written; [`Error::Interrupted`] if
/// `progress` breaks.
pub fn perplexity(
    setup: &Setup<'_>,
    tokens: &[u32],
    chunking: Chunking,
    count: usize,
    mut base: Option<&mut base::BaseWriter>,
    progress: &mut dyn FnMut(Progress<Likelihood>) -> ControlFlow<()>,
) -> Result<Likelihood> {
    setup.check(tokens)?;
    let chunks = chunking.cut(tokens, count);
    let with_base = base.is_some();
    let score = |chunk: usize, token: usize, logits: &[f32]| {
        let next = chunks[chunk][token + 1];
        let row = if with_base { base::encode_row(logits) } else { Vec::new() };
        (log_probability(logits, next), row)
    };
    let (mut total, mut number) = (Likelihood::default(), 0);
    let mut done = |group: Vec<Vec<(f64, Vec<u8>)>>| {
        for chunk in group {
            for (score, row) in &chunk {
                total.add(*score);
                if let Some(base) = &mut base {
                    base.write_row(row)?;
                }
            }
            number += 1;
            if progress(Progress { done: number, so_far: total }).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(ControlFlow::Continue(()))
    };
    let mut evaluator = setup.evaluator(chunks.len(), chunking.chunk)?;
    evaluator.run_chunks(&chunks, &setup.job(chunking.outputs()), score, &mut done)?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_what_is_scored_of_them() {
        let halves = Chunking::halves(512);
        assert_eq!((halves.outputs(), halves.scored), (256..511, 255));
        assert_eq!(
            (halves.count(1535, None), halves.count(1536, None), halves.count(1536, Some(1))),
            (2, 3, 1)
        );
        let strided = Chunking::strided(512, 256);
        assert_eq!((strided.chunk, strided.outputs()), (640, 383..639));
        assert_eq!((strided.count(640, None), strided.count(641, None), strided.count(900, None)), (0, 1, 2));
        let tokens: Vec<u32> = (0..10).collect();
        let cut = Chunking { chunk: 4, step: 3, scored: 3 }.cut(&tokens, 2);
        assert_eq!(cut, [&[0, 1, 2, 3], &[3, 4, 5, 6]]);
    }
}
