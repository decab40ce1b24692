//! The mixture of experts: which experts a token goes through, and each expert over its tokens of a batch at once.
//!
//! Routing is SparseMixer's (Liu et al. 2023, GRIN MoE 2024) as it is in inference: the best expert and the second best,
//! each weighted by the softmax over the experts whose scores are close to it.

use super::weights::Experts;
use crate::Result;
use crate::backend::{Backend, Gate, Mixture};

/// Buffers of a mixture, reused from layer to layer.
pub(super) struct ExpertBuffers<B: Backend> {
    /// `[rows, experts]`.
    scores: B::Buffer,
    /// `[tokens, hidden]`: the rows that go through one expert, then what it makes of them.
    tokens: B::Buffer,
    /// `[tokens, feed_forward]`.
    gate: B::Buffer,
    /// `[tokens, feed_forward]`.
    up: B::Buffer,
    /// `[tokens, 2 · feed_forward]`.
    wide: B::Buffer,
}

impl<B: Backend> Default for ExpertBuffers<B> {
    fn default() -> Self {
        Self {
            scores: B::Buffer::default(),
            tokens: B::Buffer::default(),
            gate: B::Buffer::default(),
            up: B::Buffer::default(),
            wide: B::Buffer::default(),
        }
    }
}

/// The rows of a batch that go through one expert, ascending, and what its result counts for each.
#[derive(Clone, Debug, Default, PartialEq)]
struct Share {
    rows: Vec<usize>,
    weights: Vec<f32>,
}

/// `out = Σ weight · expert(x)` over the two experts of each row; `[rows, hidden]` both.
///
/// Experts go in ascending order, so a row's sum has one order whatever else is in the batch, and an expert that no row
/// chose is not read at all.
pub(super) fn mixture<B: Backend>(
    backend: &B,
    experts: &Experts,
    x: &B::Buffer,
    work: &mut ExpertBuffers<B>,
    out: &mut B::Buffer,
) -> Result<()> {
    let ExpertBuffers { scores, tokens, gate, up, wide } = work;
    backend.linear(&experts.router, x, scores)?; // [rows, experts]
    let Experts { gate: gates, up: ups, down: downs, jitter, .. } = experts;
    let chosen_there = Mixture { gate: gates, up: ups, down: downs, jitter: *jitter };
    if backend.mixture(&chosen_there, scores, x, out)? {
        return Ok(());
    }
    let shares = route(&backend.read(scores)?, experts.gate.len(), experts.jitter);
    backend.zeros_like(x, out); // [rows, hidden]
    for (expert, share) in shares.iter().enumerate().filter(|(_, share)| !share.rows.is_empty()) {
        backend.gather(x, &share.rows, tokens); // [tokens, hidden]
        backend.linear(&experts.gate[expert], tokens, gate)?; // [tokens, feed_forward]
        backend.linear(&experts.up[expert], tokens, up)?; // [tokens, feed_forward]
        backend.concat(&[gate, up], wide); // [tokens, gate + up]
        backend.gate(Gate::Swiglu, wide, gate); // [tokens, feed_forward]
        backend.linear(&experts.down[expert], gate, tokens)?; // [tokens, hidden]
        backend.scatter_add(tokens, &share.rows, &share.weights, out);
    }
    Ok(())
}

/// Each expert's share of the rows; `scores` is `[rows, experts]`.
fn route(scores: &[f32], experts: usize, jitter: f32) -> Vec<Share> {
    let mut shares = vec![Share::default(); experts];
    for (row, scores) in scores.chunks_exact(experts).enumerate() {
        for (expert, weight) in sparse_mixer(scores, jitter) {
            shares[expert].rows.push(row);
            shares[expert].weights.push(weight);
        }
    }
    shares
}

/// The two experts of a row and their weights, which do not sum to one.
fn sparse_mixer(scores: &[f32], jitter: f32) -> [(usize, f32); 2] {
    let first = best(scores, None, jitter);
    let second = best(scores, Some(first.0), jitter);
    [first, second]
}

/// The best expert other than `taken`, and its share in the softmax over those that are close to it: whose distance is at
/// most `2 · jitter` of the larger of its score's size and the best score.
fn best(scores: &[f32], taken: Option<usize>, jitter: f32) -> (usize, f32) {
    let free = || scores.iter().copied().enumerate().filter(|(expert, _)| Some(*expert) != taken);
    let (at, largest) =
        free().fold((0, f32::NEG_INFINITY), |best, next| if next.1 > best.1 { next } else { best });
    let is_close = |score: f32| {
        let distance = (largest - score) / score.abs().max(largest);
        // As in the reference, 0 / 0 counts as close.
        distance.is_nan() || distance <= 2.0 * jitter
    };
    let sum: f32 =
        free().filter(|(_, score)| is_close(*score)).map(|(_, score)| (score - largest).exp()).sum();
    (at, 1.0 / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_far_ahead_counts_whole() {
        // 2 is within 2 % of 2.01; 1 is not within 2 % of anything.
        let [(first, a), (second, b)] = sparse_mixer(&[1.0, 2.0, 2.01, -3.0], 0.01);
        assert_eq!((first, second), (2, 1));
        let close = 1.0 / (1.0 + (2.0f32 - 2.01).exp());
        assert!((a - close).abs() < 1e-6 && b == 1.0, "{a} {b}");
    }

    #[test]
    fn scores_below_zero_are_compared_by_their_size() {
        // Distance 0.01 of a score of size 1.01: close.
        let [(first, a), (second, b)] = sparse_mixer(&[-1.0, -1.01, -5.0], 0.01);
        assert_eq!((first, second), (0, 1));
        assert!(a < 1.0 && b == 1.0, "{a} {b}");
        assert_eq!(sparse_mixer(&[0.0, 0.0], 0.01), [(0, 0.5), (1, 1.0)]);
    }

    #[test]
    fn broken_scores_do_no_harm() {
        for scores in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::INFINITY; 3]] {
            assert!(sparse_mixer(&scores, 0.01).iter().all(|(expert, _)| *expert < 3));
        }
    }

    #[test]
    fn shares_are_in_the_order_of_rows() {
        let shares = route(&[9.0, 1.0, 0.0, 0.0, 9.0, 5.0, 9.0, 0.0, 8.0], 3, 0.0);
        let rows: Vec<&[usize]> = shares.iter().map(|share| share.rows.as_slice()).collect();
        assert_eq!(rows, [&[0, 2][..], &[0, 1][..], &[1, 2][..]]);
        assert!(shares.iter().all(|share| share.weights.iter().all(|weight| *weight == 1.0)));
    }
}
