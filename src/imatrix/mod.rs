//! Importance matrices: what goes into each weight matrix, measured on text. The job behind `phi imatrix`.
//!
//! [`Statistics`] are files and sums; [`run`] measures them chunk by chunk as llama-imatrix does. Matrices of
//! experts are [`Statistics::add_rows`] with one matrix an expert.

mod collect;
pub mod report;
mod statistics;

use std::ops::ControlFlow;

pub use collect::Collecting;
pub use statistics::{Entry, Fault, Format, Statistics};

use crate::backend::hybrid::{Cache, Hybrid};
use crate::engine::evaluate::{ChunkJob, Evaluator};
use crate::engine::score::{Likelihood, log_probability};
use crate::model::Model;
use crate::{Error, Result};

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of a chunk; a chunk begins with an empty context.
    pub chunk: usize,
    /// Replaces the first token of every chunk, for models whose texts begin with it.
    pub bos: Option<u32>,
    /// Measure what goes into output.weight, too.
    pub process_output: bool,
    /// Score the second half of each chunk.
    pub perplexity: bool,
    /// Tokens computed at once.
    pub batch: usize,
}

/// What the caller is told after every few chunks.
pub struct Progress<'a> {
    /// Chunks done, of those asked for.
    pub done: usize,
    /// The perplexity so far after each of the chunks that came last.
    pub perplexity: &'a [f64],
    pub statistics: &'a Statistics,
}

/// Runs the whole chunks of `tokens` and adds what goes into the matrices to `statistics`. Also returns the likelihood
/// of the chunks' second halves, if asked for. `progress` may break: what was measured until then is returned.
///
/// # Errors
/// Tokens outside the vocabulary, `statistics` of another model, values that are not finite, too little memory;
/// what `progress` refuses.
pub fn run(
    model: &Model,
    backend: &Hybrid,
    caches: Vec<Cache>,
    tokens: &[u32],
    statistics: Statistics,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>) -> Result<ControlFlow<()>>,
) -> Result<(Statistics, Likelihood)> {
    let vocabulary = model.vocabulary();
    if let Some(id) = tokens.iter().chain(&options.bos).find(|&&id| id as usize >= vocabulary) {
        return Err(Error::Usage(format!("token {id} is not one of the model's {vocabulary}")));
    }
    let size = options.chunk;
    let collecting = Collecting::new(backend, statistics, options.process_output);
    let outputs = match (options.process_output, options.perplexity) {
        (true, _) => 0..size,
        (false, true) => size / 2..size - 1,
        (false, false) => 0..0,
    };
    let chunks: Vec<&[u32]> = tokens.chunks_exact(size).collect();
    let score = |chunk: usize, token: usize, logits: &[f32]| {
        let scored = options.perplexity && (size / 2..size - 1).contains(&token);
        scored.then(|| log_probability(logits, chunks[chunk][token + 1]))
    };
    let (mut total, mut count) = (Likelihood::default(), 0);
    let mut done = |scores: Vec<Vec<Option<f64>>>| {
        count += scores.len();
        let mut perplexity = Vec::with_capacity(scores.len());
        for chunk in scores.into_iter().filter(|_| options.perplexity) {
            chunk.into_iter().flatten().for_each(|score| total.add(score));
            perplexity.push(total.perplexity());
        }
        collecting.with(|statistics| {
            statistics.count_chunks();
            progress(Progress { done: count, perplexity: &perplexity, statistics })
        })
    };
    let job = ChunkJob { bos: options.bos, outputs, threads: backend.cpu().threads() };
    Evaluator::new(model, &collecting, caches, options.batch).run_chunks(&chunks, &job, score, &mut done)?;
    Ok((collecting.into_statistics(), total))
}
