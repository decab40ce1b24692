//! K types: super-blocks of 256 elements in sub-blocks with quantized scales.

mod affine;
mod q2;
mod q3;
mod q4;
mod q5;
mod q6;

pub use {q2::Q2_K, q3::Q3_K, q4::Q4_K, q5::Q5_K, q6::Q6_K};

use super::batch::{BATCH, Batch, element_weights, square_sums};
use crate::simd::lanes::Lanes;

/// Elements in a super-block.
const SUPER: usize = 256;

/// Super-blocks in a batch.
const SUPERS: usize = BATCH / SUPER;

/// Sub-blocks in a batch, when they are of 16 elements.
const MAX_SUBS: usize = BATCH / 16;

/// The importance of the 256 elements from element `at` on.
#[inline(always)]
fn importance_at(importance: &[f32], at: usize) -> &[f32] {
    &importance[at % importance.len()..][..SUPER]
}

/// Element weights of a batch under an imatrix; the mean square is `factor` times the super-block's.
#[inline(always)]
fn batch_weights<L: Lanes>(
    lanes: L,
    batch: &Batch<'_>,
    factor: f32,
    importance: &[f32],
    weights: &mut [f32; BATCH],
) {
    let mut sums = [0.0; SUPERS];
    square_sums(lanes, batch.values, SUPER, &mut sums);
    for (at, sum) in (0..batch.count).step_by(SUPER).zip(sums) {
        let mean = factor * sum / SUPER as f32;
        let importance = importance_at(importance, batch.first + at);
        element_weights(lanes, &batch.values[at..][..SUPER], importance, mean, &mut weights[at..][..SUPER]);
    }
}

/// Levels nearest((x + min) / scale), clamped to `bottom ..= top`, minus `bottom`; `scale` is not 0.
#[inline(always)]
fn requantize<L: Lanes>(
    lanes: L,
    x: &[f32],
    (scale, min): (f32, f32),
    (bottom, top): (i32, i32),
    levels: &mut [u8],
) {
    let (scale, min) = (lanes.splat(scale), lanes.splat(min));
    let (bottom, top) = (lanes.splat_i(bottom), lanes.splat_i(top));
    for (x, levels) in x.chunks_exact(L::WIDTH).zip(levels.chunks_exact_mut(L::WIDTH)) {
        let level = lanes.nearest(lanes.div(lanes.add(lanes.load(x), min), scale));
        let level = lanes.max_i(bottom, lanes.min_i(top, level));
        lanes.store_bytes(lanes.sub_i(level, bottom), levels);
    }
}

/// Packs 2-bit levels: byte `l` of each 32 holds elements `l`, `l` + 32, `l` + 64, `l` + 96 of its 128.
#[inline(always)]
fn pack_pairs_of_bits(levels: &[u8; SUPER], qs: &mut [u8]) {
    for (levels, qs) in levels.chunks_exact(128).zip(qs.chunks_exact_mut(32)) {
        for (l, q) in qs.iter_mut().enumerate() {
            *q = levels[l] | (levels[l + 32] << 2) | (levels[l + 64] << 4) | (levels[l + 96] << 6);
        }
    }
}
