//! What Q2_K, Q4_K and Q5_K share: the search over sub-blocks with a scale and a minimum, and the packing of
//! 6-bit scales.

use super::{MAX_SUBS, SUPER, SUPERS, batch_weights};
use crate::quant::batch::{BATCH, Batch};
use crate::quant::float::{read_half, write_half};
use crate::quant::search::{Affine, AffineSearch, fit_levels};
use crate::simd::lanes::{Lanes, MAX_WIDTH, nearest};

pub(super) type Fits = Affine<MAX_SUBS>;

/// Groups of lanes searched side by side: one group alone waits on its running sums. Four gain another tenth on
/// AVX-512 but run out of registers on the scalar path, which then takes twice as long (Q4_K, 2026-11).
const GROUPS: usize = 2;

/// Fits the sub-blocks of `SUB` elements of a batch. Without `weights`, [BATCH], an element weighs its
/// magnitude, plus the sub-block's root mean square unless `ABSOLUTE`.
#[inline(always)]
pub(super) fn fit_batch<L: Lanes, const SUB: usize, const MAX: i32, const ABSOLUTE: bool>(
    lanes: L,
    search: &AffineSearch<MAX, ABSOLUTE>,
    batch: &Batch<'_>,
    weights: Option<&[f32; BATCH]>,
    fits: &mut Fits,
) {
    let subs = batch.count / SUB;
    for at in (0..subs).step_by(GROUPS * L::WIDTH) {
        let mut x = [[lanes.splat(0.0); SUB]; GROUPS];
        let mut w = x;
        for g in 0..GROUPS {
            let first = (at + g * L::WIDTH) * SUB;
            lanes.columns(&batch.values[first..], SUB, &mut x[g]);
            match weights {
                Some(weights) => lanes.columns(&weights[first..], SUB, &mut w[g]),
                None => plain_weights::<L, SUB, ABSOLUTE>(lanes, &x[g], &mut w[g]),
            }
        }
        for (g, fit) in search.fit(lanes, &x, &w).iter().enumerate() {
            fits.put(lanes, at + g * L::WIDTH, fit);
        }
    }
}

#[inline(always)]
fn plain_weights<L: Lanes, const SUB: usize, const ABSOLUTE: bool>(
    lanes: L,
    x: &[L::F; SUB],
    w: &mut [L::F; SUB],
) {
    let mut rms = lanes.splat(0.0);
    if !ABSOLUTE {
        for &x in x {
            rms = lanes.add(rms, lanes.mul(x, x));
        }
        rms = lanes.sqrt(lanes.div(rms, lanes.splat(SUB as f32)));
    }
    for (w, &x) in w.iter_mut().zip(x) {
        *w = if ABSOLUTE { lanes.abs(x) } else { lanes.add(rms, lanes.abs(x)) };
    }
}

/// A super-block's own scale and its levels for the sub-blocks, one quantity (scales or minimums).
#[derive(Clone, Copy)]
pub(super) struct Levels<const SUBS: usize> {
    pub unit: f32,
    pub levels: [u8; SUBS],
}

/// The largest value takes level `top`; all 0 if none is positive.
pub(super) fn spread_levels<const SUBS: usize>(x: &[f32], top: f32) -> Levels<SUBS> {
    let mut largest = 0.0;
    for &x in x {
        if x > largest {
            largest = x;
        }
    }
    let inverse = if largest > 0.0 { top / largest } else { 0.0 };
    Levels { unit: largest / top, levels: std::array::from_fn(|j| nearest(inverse * x[j]) as u8) }
}

/// Weighted fits of the scales and of the minimums of every super-block of a batch, one a lane.
#[inline(always)]
pub(super) fn fit_scales<L: Lanes, const SUBS: usize>(
    lanes: L,
    fits: &Fits,
    max: i32,
) -> [[Levels<SUBS>; SUPERS]; 2] {
    let empty = Levels { unit: 0.0, levels: [0; SUBS] };
    let mut out = [[empty; SUPERS]; 2];
    for first in (0..SUPERS).step_by(L::WIDTH) {
        let mut w = [lanes.splat(0.0); SUBS];
        lanes.columns(&fits.weight[first * SUBS..], SUBS, &mut w);
        for (quantity, out) in [&fits.scale, &fits.min].into_iter().zip(&mut out) {
            let mut x = [lanes.splat(0.0); SUBS];
            lanes.columns(&quantity[first * SUBS..], SUBS, &mut x);
            let (unit, levels) = fit_levels(lanes, max, &x, &w);
            let mut units = [0.0; MAX_WIDTH];
            lanes.store(unit, &mut units);
            for (j, level) in levels.into_iter().enumerate() {
                let mut bytes = [0; MAX_WIDTH];
                lanes.store_bytes(lanes.truncate(level), &mut bytes);
                for r in 0..L::WIDTH {
                    out[first + r].levels[j] = bytes[r];
                    out[first + r].unit = units[r];
                }
            }
        }
    }
    out
}

/// The imatrix variant of [`fit_batch`], all three types: squared errors, 37 candidates.
#[inline(always)]
pub(super) fn fit_batch_weighted<L: Lanes, const SUB: usize, const MAX: i32>(
    lanes: L,
    batch: &Batch<'_>,
    factor: f32,
    importance: &[f32],
    fits: &mut Fits,
) {
    let search = AffineSearch::<MAX, false> { first: -0.9, step: 0.05, candidates: 37 };
    let mut weights = [0.0; BATCH];
    batch_weights(lanes, batch, factor, importance, &mut weights);
    fit_batch::<L, SUB, MAX, false>(lanes, &search, batch, Some(&weights), fits);
}

/// Bytes of the part that Q4_K and Q5_K blocks begin with.
pub(super) const HEAD: usize = 16;

/// ```text
/// byte 0   2    4       8       12          16
///      d   dmin scales  mins    high/low
///      f16 f16  0..4    0..4    4..8: scale in the low nibble, min in the high one; their upper two bits are
///               6 bits  6 bits        the upper two of bytes 4 + j (scale) and 8 + j (min)
/// ```
pub(super) fn write_head(block: &mut [u8], scales: &Levels<8>, mins: &Levels<8>) {
    write_half(block, 0, scales.unit);
    write_half(block, 2, mins.unit);
    let packed = &mut block[4..HEAD];
    packed[..4].copy_from_slice(&scales.levels[..4]);
    packed[4..8].copy_from_slice(&mins.levels[..4]);
    for j in 4..8 {
        let (scale, min) = (scales.levels[j], mins.levels[j]);
        packed[j + 4] = (scale & 15) | ((min & 15) << 4);
        packed[j - 4] |= (scale >> 4) << 6;
        packed[j] |= (min >> 4) << 6;
    }
}

/// Scale and minimum of each of the 8 sub-blocks, as the decoder multiplies them out.
#[inline(always)]
pub(super) fn read_head(block: &[u8]) -> [(f32, f32); 8] {
    let (d, dmin) = (read_half(block, 0), read_half(block, 2));
    let packed = &block[4..HEAD];
    let mut parts = [(0.0, 0.0); 8];
    for j in 0..4 {
        let (scale, min) = (packed[j] & 63, packed[j + 4] & 63);
        parts[j] = (d * f32::from(scale), dmin * f32::from(min));
        let scale = (packed[j + 8] & 15) | ((packed[j] >> 6) << 4);
        let min = (packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4);
        parts[j + 4] = (d * f32::from(scale), dmin * f32::from(min));
    }
    parts
}

/// Levels of a Q4_K or Q5_K super-block under the scales that `block` now holds; `b` is its place in the batch.
#[inline(always)]
pub(super) fn final_levels<L: Lanes, const MAX: i32>(
    lanes: L,
    block: &[u8],
    x: &[f32],
    fits: &Fits,
    b: usize,
) -> [u8; SUPER] {
    let mut levels = [0; SUPER];
    let parts = x.chunks_exact(32).zip(levels.chunks_exact_mut(32));
    for ((j, (x, levels)), (scale, min)) in parts.enumerate().zip(read_head(block)) {
        if scale == 0.0 {
            fits.levels(b * 8 + j, x, MAX, levels);
        } else {
            super::requantize(lanes, x, (scale, min), (0, MAX), levels);
        }
    }
    levels
}

/// Scales and minimums of the super-blocks of a Q4_K or Q5_K batch: the fits, then their own levels (6 bits).
#[inline(always)]
pub(super) fn six_bit_scales<L: Lanes, const MAX: i32>(
    lanes: L,
    search: &AffineSearch<MAX, false>,
    batch: &Batch<'_>,
    importance: Option<&[f32]>,
    fits: &mut Fits,
) -> [[Levels<8>; SUPERS]; 2] {
    if let Some(importance) = importance {
        fit_batch_weighted::<L, 32, MAX>(lanes, batch, 2.0, importance, fits);
        return fit_scales::<L, 8>(lanes, fits, 63);
    }
    fit_batch::<L, 32, MAX, false>(lanes, search, batch, None, fits);
    [&fits.scale, &fits.min].map(|quantity| {
        std::array::from_fn(|b| {
            let mut spread = spread_levels(&quantity[b * 8..][..8], 63.0);
            spread.levels = spread.levels.map(|level| level.min(63));
            spread
        })
    })
}
