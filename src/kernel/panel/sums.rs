//! Lanes for products of sums, and what these have too much for a row.

use super::Lanes;
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, low_halves, lowered, raised};

/// Lowers and raises the lanes of block number `block`, all rows of which are unpacked with their scales, and computes the corrections.
#[inline(always)]
pub(super) fn prepare<F: Unpack, I: Isa>(isa: I, block: usize, panel: &mut Lanes) {
    let spans = F::BLOCK / F::SPAN;
    for span in block * spans..(block + 1) * spans {
        let mut largest = isa.f_splat(0.0);
        for at in (0..I::LANES * I::TILE.0).step_by(I::LANES) {
            largest = isa.f_max(largest, rows_of_span::<F, I>(isa, span, at, panel));
        }
        // Exact: corrections are far below 2^24.
        panel.largest_correction[span] = isa.f_largest(largest) as i32;
    }
}

/// The same of the rows at `at`, for one span. Gives the largest size of their corrections.
#[inline(always)]
fn rows_of_span<F: Unpack, I: Isa>(isa: I, span: usize, at: usize, panel: &mut Lanes) -> I::F {
    let (wide, groups, quads) = (I::LANES * I::TILE.0, F::SPAN / F::GROUP, F::GROUP / 4);
    let minus = isa.w_splat(-1);
    let (mut all, mut largest) = (isa.w_splat(0), isa.f_splat(0.0));
    for group in span * groups..(span + 1) * groups {
        let lanes = &mut panel.lanes[group * quads * wide + at..][..(quads - 1) * wide + I::LANES];
        let correction = isa.w_mul(row_products::<F, I>(isa, lanes), minus);
        isa.w_store(correction, &mut panel.corrections[group * wide + at..]);
        let scale = low_halves(isa, isa.w_load(&panel.scales[group * wide + at..]));
        all = isa.w_add(all, isa.w_mul(scale, correction));
        largest = isa.f_max(largest, isa.f_abs(isa.f_from_w(correction)));
    }
    isa.w_store(all, &mut panel.correction[span * wide + at..]);
    largest
}

/// Lowers and raises the `lanes` of one group and adds up the products of those that are paired.
#[inline(always)]
fn row_products<F: Unpack, I: Isa>(isa: I, lanes: &mut [i32]) -> I::W {
    let wide = I::LANES * I::TILE.0;
    let (low, high) = (
        isa.b_splat(const { lowered(F::LARGEST) as u8 }.wrapping_neg()),
        isa.b_splat(const { raised(F::LARGEST) as u8 }),
    );
    let mut sum = isa.w_splat(0);
    for quad in (0..F::GROUP / 4).step_by(2) {
        let (even, odd) = (quad * wide, (quad + 1) * wide);
        let v = isa.w_from_b(isa.b_add(isa.b_from_w(isa.w_load(&lanes[even..])), low));
        let u = isa.w_from_b(isa.b_add(isa.b_from_w(isa.w_load(&lanes[odd..])), high));
        isa.w_store(v, &mut lanes[even..]);
        isa.w_store(u, &mut lanes[odd..]);
        sum = isa.w_dot4::<true>(sum, u, v);
    }
    sum
}
