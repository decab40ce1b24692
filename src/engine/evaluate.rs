//! Texts that have nothing to do with each other, run through a model side by side.

use std::ops::Range;

use crate::Result;
use crate::backend::cpu::{Cache, CacheShape};
use crate::backend::{Backend, Part};
use crate::gguf::TensorType;
use crate::model::{Model, Workspace, forward};

/// Tokens to run, which begin a sequence or continue what an earlier call left in its cache.
#[derive(Clone, Debug)]
pub struct Passage<'a> {
    pub ids: &'a [u32],
    /// Position of the first token; the cache holds all before.
    pub position: usize,
    /// Tokens the sequence will have in the end, which decides between LongRoPE's factors.
    pub length: usize,
    /// The tokens (numbered within `ids`) after which logits are wanted.
    pub outputs: Range<usize>,
}

impl<'a> Passage<'a> {
    /// A whole sequence.
    pub fn whole(ids: &'a [u32], outputs: Range<usize>) -> Self {
        Self { ids, position: 0, length: ids.len(), outputs }
    }
}

/// Runs passages through a model, several sequences at once, and hands out logits.
pub struct Evaluator<'a, B: Backend> {
    model: &'a Model,
    backend: &'a B,
    /// One a sequence, with room for all its tokens.
    caches: Vec<B::Cache>,
    work: Workspace<B>,
    rows: usize,
}

/// `count` caches with room for `context` tokens each.
///
/// # Errors
/// Too little memory.
pub fn caches(model: &Model, kind: TensorType, count: usize, context: usize) -> Result<Vec<Cache>> {
    let hyper = &model.hyper;
    let shape = CacheShape { layers: hyper.layers, kv_heads: hyper.kv_heads, head: hyper.head, kind };
    let make = |_| {
        let mut cache = Cache::new(shape);
        cache.reserve(context)?;
        Ok(cache)
    };
    (0..count).map(make).collect()
}

impl<'a, B: Backend> Evaluator<'a, B> {
    /// Computes at most `rows` tokens at once (but at least one a sequence), and `caches.len()` sequences.
    pub fn new(model: &'a Model, backend: &'a B, caches: Vec<B::Cache>, rows: usize) -> Self {
        Self { model, backend, caches, work: Workspace::default(), rows: rows.max(1) }
    }

    /// The model that is run.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// Sequences that can be run at once.
    pub fn sequences(&self) -> usize {
        self.caches.len()
    }

    /// Runs `passages`, the n-th in the n-th sequence. `sink` is given logits as they come, [rows, vocabulary]: the
    /// passage's number and which of its tokens they follow, ascending within a passage.
    ///
    /// # Errors
    /// What the backend or the sink refuses.
    ///
    /// # Panics
    /// With more passages than sequences.
    pub fn run(
        &mut self,
        passages: &[Passage<'_>],
        sink: &mut dyn FnMut(usize, Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        assert!(passages.len() <= self.caches.len(), "one cache a passage");
        let vocabulary = self.model.vocabulary();
        let longest = passages.iter().map(|passage| passage.ids.len()).max().unwrap_or(0);
        let step = (self.rows / passages.len().max(1)).max(1);
        for start in (0..longest).step_by(step) {
            let mut ids = Vec::with_capacity(self.rows);
            let (mut parts, mut regimes) = (Vec::new(), Vec::new());
            let (mut outputs, mut wanted) = (Vec::new(), Vec::new());
            for ((number, passage), cache) in passages.iter().enumerate().zip(&mut self.caches) {
                let tokens = start..(start + step).min(passage.ids.len());
                if tokens.is_empty() {
                    continue;
                }
                let first = ids.len();
                ids.extend_from_slice(&passage.ids[tokens.clone()]);
                parts.push(Part { cache, rows: first..ids.len(), position: passage.position + start });
                regimes.push(self.model.rope.regime(passage.length));
                let some = passage.outputs.start.max(tokens.start)..passage.outputs.end.min(tokens.end);
                if !some.is_empty() {
                    outputs.extend(some.clone().map(|token| first + token - start));
                    wanted.push((number, some));
                }
            }
            let work = &mut self.work;
            let logits = forward(self.model, self.backend, work, &ids, &mut parts, &regimes, &outputs)?;
            let mut rest = &logits[..];
            for (number, tokens) in wanted {
                let (some, after) = rest.split_at(tokens.len() * vocabulary);
                sink(number, tokens, some)?;
                rest = after;
            }
        }
        Ok(())
    }
}
