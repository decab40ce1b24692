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

use crate::backend::cpu::{Cache, Cpu};
use crate::engine::evaluate::{Evaluator, Passage};
use crate::engine::score::{Likelihood, log_probability, map_rows};
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
    cpu: &Cpu,
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
    let collecting = Collecting::new(cpu, statistics, options.process_output);
    let mut evaluator = Evaluator::new(model, &collecting, caches, options.batch);
    let outputs = match (options.process_output, options.perplexity) {
        (true, _) => 0..size,
        (false, true) => size / 2..size - 1,
        (false, false) => 0..0,
    };
    let mut total = Likelihood::default();
    let chunks: Vec<&[u32]> = tokens.chunks_exact(size).collect();
    let mut done = 0;
    for group in chunks.chunks(evaluator.sequences()) {
        let inputs: Vec<Vec<u32>> = group.iter().map(|chunk| begun(chunk, options.bos)).collect();
        let passages: Vec<_> = inputs.iter().map(|ids| Passage::whole(ids, outputs.clone())).collect();
        let mut scores = vec![Vec::new(); group.len()];
        evaluator.run(&passages, &mut |chunk, range, logits| {
            if options.perplexity {
                let skip = (size / 2).saturating_sub(range.start).min(range.len());
                let (first, chunk_ids) = (range.start + skip, group[chunk]);
                let last = range.end.min(size - 1);
                let rows = &logits[skip * vocabulary..(last - range.start).max(skip) * vocabulary];
                scores[chunk].extend(map_rows(rows, vocabulary, cpu.threads(), |row, logits| {
                    log_probability(logits, chunk_ids[first + row + 1])
                }));
            }
            Ok(())
        })?;
        done += group.len();
        let mut perplexity = Vec::with_capacity(group.len());
        for chunk in scores.iter().filter(|chunk| !chunk.is_empty()) {
            chunk.iter().for_each(|&score| total.add(score));
            perplexity.push(total.perplexity());
        }
        let flow = collecting.with(|statistics| {
            statistics.count_chunks();
            progress(Progress { done, perplexity: &perplexity, statistics })
        })?;
        if flow.is_break() {
            break;
        }
    }
    drop(evaluator);
    Ok((collecting.into_statistics(), total))
}

/// A chunk as it is fed to the model.
pub(crate) fn begun(chunk: &[u32], bos: Option<u32>) -> Vec<u32> {
    let mut ids = chunk.to_vec();
    if let (Some(first), Some(bos)) = (ids.first_mut(), bos) {
        *first = bos;
    }
    ids
}
