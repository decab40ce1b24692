//! Q3_K: 3.4375 bits a weight; 16 sub-blocks of 16 with signed 6-bit scales.
//!
//! ```text
//! byte 0             32                          96                                108  110
//!      hmask: bit k  qs: 2 bits; byte 32 k + l   scales: low nibbles of 0..8 and   d
//!      of byte l for     holds elements 128 k +  8..16 in bytes 0..8; byte 8 + k:  f16
//!      element 32k+l     l, + 32, + 64, + 96     upper two bits of k, 4+k, 8+k, 12+k
//! ```
//! x = d · (scale − 32) · (q + 4 · hmask − 4)

use super::{MAX_SUBS, SUPER, SUPERS, batch_weights, pack_pairs_of_bits, requantize};
use crate::gguf::TensorType;
use crate::quant::batch::{BATCH, Batches};
use crate::quant::float::{read_half, write_half};
use crate::quant::search::{Symmetric, fit_by_descent, fit_symmetric};
use crate::quant::{Block, Rows};
use crate::simd::lanes::{Lanes, MAX_WIDTH, nearest};

#[allow(non_camel_case_types)]
pub struct Q3_K;

const BYTES: usize = 110;
const SUBS: usize = 16;

impl Block for Q3_K {
    const KIND: TensorType = TensorType::Q3_K;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let mut levels = [0; BATCH];
        let mut weights = [0.0; BATCH];
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            let scales = match rows.weights {
                Some(importance) => {
                    batch_weights(lanes, &batch, 2.0, importance, &mut weights);
                    fit_weighted(lanes, batch.values, &weights, batch.count / 16, &mut levels)
                }
                None => fit_plain(lanes, batch.values, batch.count / 16, &mut levels),
            };
            let blocks = dst[batch.first / SUPER * BYTES..].chunks_exact_mut(BYTES).take(batch.count / SUPER);
            for (b, block) in blocks.enumerate() {
                let x = &batch.values[b * SUPER..][..SUPER];
                let mut fitted = [0; SUPER];
                fitted.copy_from_slice(&levels[b * SUPER..][..SUPER]);
                encode_block(lanes, x, &scales[b], fitted, block);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let scales = sub_scales(block);
            for (j, out) in out.chunks_exact_mut(16).enumerate() {
                let qs = &block[32 + j / 8 * 32 + j % 2 * 16..][..16];
                let hmask = &block[j % 2 * 16..][..16];
                for l in 0..16 {
                    let high = (hmask[l] >> (j / 2)) & 1;
                    let q = ((qs[l] >> (j / 2 % 4 * 2)) & 3) | (high << 2);
                    out[l] = scales[j] * (f32::from(q) - 4.0);
                }
            }
        }
    }
}

/// A super-block's scale and the offset 6-bit scales of its sub-blocks.
#[derive(Clone, Copy)]
struct Scales {
    d: f32,
    levels: [u8; SUBS],
}

/// Groups of lanes fitted side by side: each waits on a chain of dependent divisions.
const GROUPS: usize = 4;

/// Without an imatrix: levels by descent; the scale of the largest magnitude becomes −32.
#[inline(always)]
fn fit_plain<L: Lanes>(lanes: L, values: &[f32], subs: usize, levels: &mut [u8; BATCH]) -> [Scales; SUPERS] {
    let mut scales = [0.0; MAX_SUBS];
    for at in (0..subs).step_by(GROUPS * L::WIDTH) {
        let mut x = [[lanes.splat(0.0); 16]; GROUPS];
        for (g, x) in x.iter_mut().enumerate() {
            lanes.columns(&values[(at + g * L::WIDTH) * 16..], 16, x);
        }
        let (scale, fitted) = fit_by_descent(lanes, 4, &x);
        for (g, (scale, fitted)) in scale.into_iter().zip(fitted).enumerate() {
            let at = at + g * L::WIDTH;
            lanes.store(scale, &mut scales[at..]);
            for (l, level) in fitted.into_iter().enumerate() {
                let mut bytes = [0; MAX_WIDTH];
                lanes.store_bytes(lanes.truncate(level), &mut bytes);
                for r in 0..L::WIDTH {
                    levels[(at + r) * 16 + l] = bytes[r];
                }
            }
        }
    }
    std::array::from_fn(|b| spread_scales(&scales[b * SUBS..][..SUBS]))
}

fn spread_scales(scales: &[f32]) -> Scales {
    let (mut largest, mut magnitude) = (0.0, 0.0);
    for &scale in scales {
        if scale.abs() > magnitude {
            magnitude = scale.abs();
            largest = scale;
        }
    }
    if largest == 0.0 {
        // The reference leaves its packed bytes 0, which read as −32 and, with d = 0, as nothing.
        return Scales { d: 0.0, levels: [0; SUBS] };
    }
    let inverse = -32.0 / largest;
    let level = |j: usize| i32::from(nearest(inverse * scales[j]) as i8).clamp(-32, 31) + 32;
    Scales { d: 1.0 / inverse, levels: std::array::from_fn(|j| level(j) as u8) }
}

/// With an imatrix: a weighted scale search for the sub-blocks, then one for their scales.
#[inline(always)]
fn fit_weighted<L: Lanes>(
    lanes: L,
    values: &[f32],
    weights: &[f32; BATCH],
    subs: usize,
    levels: &mut [u8; BATCH],
) -> [Scales; SUPERS] {
    let mut fits = Symmetric::<MAX_SUBS>::new();
    let mut sums = [0.0; MAX_SUBS];
    for at in (0..subs).step_by(L::WIDTH) {
        let mut x = [lanes.splat(0.0); 16];
        let mut w = x;
        lanes.columns(&values[at * 16..], 16, &mut x);
        lanes.columns(&weights[at * 16..], 16, &mut w);
        let mut sum = lanes.splat(0.0);
        for &w in &w {
            sum = lanes.add(sum, w);
        }
        lanes.store(sum, &mut sums[at..]);
        fits.put(lanes, at, &fit_symmetric::<L, 16, false>(lanes, 4, &x, &w));
    }
    for sub in 0..subs {
        fits.levels(sub, &values[sub * 16..][..16], 4, &mut levels[sub * 16..][..16]);
    }
    let mut outer = Symmetric::<SUPERS>::new();
    for first in (0..SUPERS).step_by(L::WIDTH) {
        let mut x = [lanes.splat(0.0); SUBS];
        let mut w = x;
        lanes.columns(&fits.scale[first * SUBS..], SUBS, &mut x);
        lanes.columns(&sums[first * SUBS..], SUBS, &mut w);
        outer.put(lanes, first, &fit_symmetric::<L, SUBS, true>(lanes, 32, &x, &w));
    }
    std::array::from_fn(|b| {
        let mut levels = [0; SUBS];
        outer.levels(b, &fits.scale[b * SUBS..][..SUBS], 32, &mut levels);
        Scales { d: outer.scale[b], levels }
    })
}

/// The multiplied-out scale of each sub-block.
#[inline(always)]
fn sub_scales(block: &[u8]) -> [f32; SUBS] {
    let d = read_half(block, 108);
    let packed = &block[96..108];
    let mut scales = [0.0; SUBS];
    for (j, scale) in scales.iter_mut().enumerate() {
        let low = (packed[j % 8] >> (j / 8 * 4)) & 15;
        let high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
        *scale = d * (f32::from(low | (high << 4)) - 32.0);
    }
    scales
}

#[inline(always)]
fn encode_block<L: Lanes>(lanes: L, x: &[f32], scales: &Scales, mut levels: [u8; SUPER], block: &mut [u8]) {
    let packed = &mut block[96..108];
    packed.fill(0);
    for (j, level) in scales.levels.into_iter().enumerate() {
        packed[j % 8] |= (level & 15) << (j / 8 * 4);
        packed[8 + j % 4] |= (level >> 4) << (2 * (j / 4));
    }
    write_half(block, 108, scales.d);
    for (scale, (x, levels)) in
        sub_scales(block).into_iter().zip(x.chunks_exact(16).zip(levels.chunks_exact_mut(16)))
    {
        if scale != 0.0 {
            requantize(lanes, x, (scale, 0.0), (-4, 3), levels);
        }
    }
    let hmask = &mut block[..32];
    hmask.fill(0);
    for (k, levels) in levels.chunks_exact_mut(32).enumerate() {
        for (mask, level) in hmask.iter_mut().zip(levels) {
            *mask |= (*level >> 2) << k;
            *level &= 3;
        }
    }
    pack_pairs_of_bits(&levels, &mut block[32..96]);
}
