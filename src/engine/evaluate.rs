//! Texts that have nothing to do with each other, run through a model side by side.

use std::ops::{ControlFlow, Range};

use super::KvType;
use super::score::map_rows;
use crate::Result;
use crate::backend::cpu::CacheShape;
use crate::backend::hybrid::{Cache, Hybrid};
use crate::backend::{Backend, Part};
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

/// Takes logits, [rows, vocabulary]: of which passage, and after which of its tokens.
pub type LogitsSink<'a> = dyn FnMut(usize, Range<usize>, &[f32]) -> Result<()> + 'a;

/// Runs passages through a model, several sequences at once, and hands out logits.
pub struct Evaluator<'a, B: Backend> {
    model: &'a Model,
    backend: &'a B,
    /// One a sequence, with room for all its tokens.
    caches: Vec<B::Cache>,
    work: Workspace<B>,
    rows: usize,
}

/// `count` caches with room for `context` tokens each; their keys' and values' types are `kinds`.
///
/// # Errors
/// Too little memory.
pub fn caches(
    backend: &Hybrid,
    model: &Model,
    kinds: (KvType, KvType),
    count: usize,
    context: usize,
) -> Result<Vec<Cache>> {
    let hyper = &model.hyper;
    let (keys, values) = kinds;
    let shape = CacheShape { layers: hyper.layers, kv_heads: hyper.kv_heads, head: hyper.head, keys, values };
    let shape = backend.cache_shape(shape);
    let make = |_| {
        let mut cache = backend.cache(&shape);
        backend.reserve(&mut cache, context)?;
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

    /// Runs `passages`, the n-th in the n-th sequence. `sink` is given logits as they come,
    /// ascending within a passage.
    ///
    /// # Errors
    /// What the backend or the sink refuses.
    ///
    /// # Panics
    /// With more passages than sequences.
    pub fn run(&mut self, passages: &[Passage<'_>], sink: &mut LogitsSink<'_>) -> Result<()> {
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
            forward(self.model, self.backend, work, &ids, &mut parts, &regimes, &outputs)?;
            let logits = work.logits(self.backend)?;
            let mut rest = &logits[..];
            for (number, tokens) in wanted {
                let (some, after) = rest.split_at(tokens.len() * vocabulary);
                sink(number, tokens, some)?;
                rest = after;
            }
        }
        Ok(())
    }

    /// Runs `chunks` of text, as many at once as there are sequences. `score` looks at the logits after each token that
    /// `job` asks for (numbers: of the chunk, and of the token within it); `done` gets what it made of a group of chunks
    /// that belong together, in order, and may break.
    ///
    /// # Errors
    /// What the backend or `done` refuses.
    pub fn run_chunks<T: Send>(
        &mut self,
        chunks: &[&[u32]],
        job: &ChunkJob,
        score: impl Fn(usize, usize, &[f32]) -> T + Sync,
        done: &mut dyn FnMut(Vec<Vec<T>>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let vocabulary = self.model.vocabulary();
        let together = self.sequences().max(1);
        for (number, group) in chunks.chunks(together).enumerate() {
            let inputs: Vec<Vec<u32>> = group.iter().map(|chunk| begun(chunk, job.bos)).collect();
            let passages: Vec<_> =
                inputs.iter().map(|ids| Passage::whole(ids, job.outputs.clone())).collect();
            let mut scores: Vec<Vec<T>> = group.iter().map(|_| Vec::new()).collect();
            self.run(&passages, &mut |passage, tokens, logits| {
                let chunk = number * together + passage;
                let row = |row: usize, logits: &[f32]| score(chunk, tokens.start + row, logits);
                scores[passage].extend(map_rows(logits, vocabulary, job.threads, row));
                Ok(())
            })?;
            if done(scores)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// How chunks of text are run.
#[derive(Clone, Debug)]
pub struct ChunkJob {
    /// Replaces the first token of every chunk, for models whose texts begin with it.
    pub bos: Option<u32>,
    /// The tokens of each chunk after which logits are looked at.
    pub outputs: Range<usize>,
    /// Threads that look at them.
    pub threads: usize,
}

/// A chunk as it is fed to the model.
fn begun(chunk: &[u32], bos: Option<u32>) -> Vec<u32> {
    let mut ids = chunk.to_vec();
    if let (Some(first), Some(bos)) = (ids.first_mut(), bos) {
        *first = bos;
    }
    ids
}
