//! Dot products by products of sums: half as many multiplications, for twice as many additions of bytes.
//!
//! For two columns, activations x and lanes y,
//!
//! ```text
//! x₁·y₁ + x₂·y₂ = (x₁ + y₂)·(x₂ + y₁) − x₁·x₂ − y₁·y₂
//! ```
//!
//! (S. Winograd, "A new algorithm for inner product", IEEE Transactions on Computers C-17, 1968). The last two products depend on the token alone
//! and on the row alone: they are computed once, not for every pair of a row and a token. That pays where additions go through pipes that
//! multiplications do not go through, as on Zen: there three instructions for 512 products take one and a half turns instead of two.
//!
//! The first factor has to be an unsigned byte, the second a signed one, so the lanes of the second column are [`raised`] and those of the
//! first one [`lowered`], and activations must be so small that neither sum leaves its range ([`reach`]). The two columns are in the same place of
//! two neighbouring quads.

use super::span::{add_span_to, to_floats};
use super::{Isa, Partials, SpansTile};

/// The largest size of activations that can be added to lanes up to `largest`.
pub const fn reach(largest: u8) -> i32 {
    (255 - largest as i32) / 2
}

/// What lanes of the odd quads are raised by: with the least activation they are 0.
pub const fn raised(largest: u8) -> i32 {
    reach(largest)
}

/// What lanes of the even quads are lowered by: with the least activation they are -128.
pub const fn lowered(largest: u8) -> i32 {
    128 - reach(largest)
}

/// Adds span `s` to its total, whether sums fit 16 bits or not.
#[inline(always)]
pub(super) fn add_span_of_sums<I: Isa, const R: usize, const T: usize, const MINS: bool>(
    isa: I,
    totals: &mut [Partials<R, T>; 2],
    tile: &SpansTile,
    s: usize,
) {
    let (wide, quads) = (R * I::LANES, tile.quads);
    let mut words = [[isa.w_splat(0); R]; T];
    for g in s * tile.groups..(s + 1) * tile.groups {
        let mut dot = [[isa.w_splat(0); R]; T];
        for q in (g * quads..(g + 1) * quads).step_by(2) {
            add_products(
                isa,
                &mut dot,
                &tile.rows[q * wide..(q + 2) * wide],
                &tile.tokens[q * T..(q + 2) * T],
            );
        }
        for r in 0..R {
            let scale = low_halves(isa, isa.w_load(&tile.scales[g * wide + r * I::LANES..]));
            let correction = isa.w_load(&tile.corrections[g * wide + r * I::LANES..]);
            for t in 0..T {
                let start = isa.w_add(correction, isa.w_splat(tile.starts[g * T + t]));
                words[t][r] = isa.w_add(words[t][r], isa.w_mul(scale, isa.w_add(dot[t][r], start)));
            }
        }
    }
    let mut sum = [[isa.f_splat(0.0); R]; T];
    to_floats(isa, &mut sum, &words);
    add_span_to::<I, R, T, MINS>(isa, totals, &sum, tile, s);
}

/// Adds the products of sums of an even quad and the odd one after it.
#[inline(always)]
fn add_products<I: Isa, const R: usize, const T: usize>(
    isa: I,
    dot: &mut [[I::W; R]; T],
    rows: &[i32],
    tokens: &[i32],
) {
    for r in 0..R {
        let even = isa.b_from_w(isa.w_load(&rows[r * I::LANES..]));
        let odd = isa.b_from_w(isa.w_load(&rows[(R + r) * I::LANES..]));
        for t in 0..T {
            let first = isa.b_add(isa.b_from_w(isa.w_splat(tokens[t])), odd);
            let second = isa.b_add(isa.b_from_w(isa.w_splat(tokens[T + t])), even);
            dot[t][r] = isa.w_dot4::<true>(dot[t][r], isa.w_from_b(first), isa.w_from_b(second));
        }
    }
}

/// The signed low halves of words.
#[inline(always)]
pub fn low_halves<I: Isa>(isa: I, words: I::W) -> I::W {
    isa.w_dot2_i16(isa.w_splat(0), words, isa.w_splat(1))
}
