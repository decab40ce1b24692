//! Q6_K: 6.5625 bits a weight; 16 sub-blocks of 16 with signed 8-bit scales.
//!
//! ```text
//! byte 0                            128                          192     208  210
//!      ql: low nibbles; bytes       qh: upper two bits; byte     scales  d
//!          64 k + l, l < 64: of         32 k + l: of elements    16 × i8 f16
//!          elements 128 k + l and       128 k + l, + 32, + 64,
//!          128 k + 64 + l               + 96
//! ```
//! x = d · scale · (q − 32)

use super::{MAX_SUBS, SUPER, importance_at, requantize};
use crate::gguf::TensorType;
use crate::quant::batch::{BATCH, Batches};
use crate::quant::float::{read_half, write_half};
use crate::quant::search::{NEGLIGIBLE, Symmetric, fit_symmetric};
use crate::quant::{Block, Rows};
use crate::simd::lanes::{Lanes, nearest};

#[allow(non_camel_case_types)]
pub struct Q6_K;

const BYTES: usize = 210;
const SUBS: usize = 16;

impl Block for Q6_K {
    const KIND: TensorType = TensorType::Q6_K;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let mut fits = Symmetric::<MAX_SUBS>::new();
        let mut weights = [0.0; BATCH];
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            if let Some(importance) = rows.weights {
                for at in (0..batch.count).step_by(SUPER) {
                    let importance = importance_at(importance, batch.first + at);
                    weights[at..][..SUPER].copy_from_slice(importance);
                }
            }
            for at in (0..batch.count / 16).step_by(L::WIDTH) {
                let mut x = [lanes.splat(0.0); 16];
                let mut w = x;
                lanes.columns(&batch.values[at * 16..], 16, &mut x);
                if rows.weights.is_some() {
                    lanes.columns(&weights[at * 16..], 16, &mut w);
                } else {
                    for (w, &x) in w.iter_mut().zip(&x) {
                        *w = lanes.mul(x, x);
                    }
                }
                fits.put(lanes, at, &fit_symmetric::<L, 16, false>(lanes, 32, &x, &w));
            }
            let blocks = dst[batch.first / SUPER * BYTES..].chunks_exact_mut(BYTES).take(batch.count / SUPER);
            for (b, block) in blocks.enumerate() {
                encode_block(lanes, &batch.values[b * SUPER..][..SUPER], (&fits, b), block);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 208);
            for (j, out) in out.chunks_exact_mut(16).enumerate() {
                let scale = d * f32::from(block[192 + j] as i8);
                let (half, quarter, side) = (j / 8, j / 2 % 4, j % 2 * 16);
                let ql = &block[half * 64 + quarter % 2 * 32 + side..][..16];
                let qh = &block[128 + half * 32 + side..][..16];
                for l in 0..16 {
                    let low = (ql[l] >> (quarter / 2 * 4)) & 15;
                    let high = (qh[l] >> (quarter * 2)) & 3;
                    out[l] = scale * (f32::from(low | (high << 4)) - 32.0);
                }
            }
        }
    }
}

#[inline(always)]
fn encode_block<L: Lanes>(lanes: L, x: &[f32], (fits, b): (&Symmetric<MAX_SUBS>, usize), block: &mut [u8]) {
    let scales = &fits.scale[b * SUBS..][..SUBS];
    let (mut largest, mut magnitude) = (0.0, 0.0);
    for &scale in scales {
        if scale.abs() > magnitude {
            magnitude = scale.abs();
            largest = scale;
        }
    }
    if magnitude < NEGLIGIBLE {
        block.fill(0);
        return;
    }
    let inverse = -128.0 / largest;
    write_half(block, 208, 1.0 / inverse);
    let d = read_half(block, 208);
    let mut levels = [0; SUPER];
    for (j, (x, levels)) in x.chunks_exact(16).zip(levels.chunks_exact_mut(16)).enumerate() {
        let level = nearest(inverse * scales[j]).min(127) as i8;
        block[192 + j] = level as u8;
        let scale = d * f32::from(level);
        if scale == 0.0 {
            fits.levels(b * SUBS + j, x, 32, levels);
        } else {
            requantize(lanes, x, (scale, 0.0), (-32, 31), levels);
        }
    }
    let (ql, rest) = block.split_at_mut(128);
    let halves = ql.chunks_exact_mut(64).zip(rest.chunks_exact_mut(32)).zip(levels.chunks_exact(128));
    for ((ql, qh), q) in halves {
        for l in 0..32 {
            ql[l] = (q[l] & 15) | (q[l + 64] << 4);
            ql[l + 32] = (q[l + 32] & 15) | (q[l + 96] << 4);
            qh[l] = (q[l] >> 4) | (q[l + 32] >> 4 << 2) | (q[l + 64] >> 4 << 4) | (q[l + 96] >> 4 << 6);
        }
    }
}
