//! Q2_K: 2.625 bits a weight; 16 sub-blocks of 16 with 4-bit scales and minimums.
//!
//! ```text
//! byte 0                        16                          80  82   84
//!      scales: scale in the low qs: 2 bits; byte 32 k + l   d   dmin
//!      nibble, min in the high      holds elements 128 k +  f16 f16
//!                                   l, + 32, + 64, + 96
//! ```
//! x = d · scale · q − dmin · min

use super::affine::{Fits, Levels, fit_batch, fit_batch_weighted, fit_scales, spread_levels};
use super::{SUPER, pack_pairs_of_bits, requantize};
use crate::gguf::TensorType;
use crate::quant::batch::Batches;
use crate::quant::float::{read_half, write_half};
use crate::quant::search::AffineSearch;
use crate::quant::{Block, Rows};
use crate::simd::lanes::Lanes;

#[allow(non_camel_case_types)]
pub struct Q2_K;

const BYTES: usize = 84;

impl Block for Q2_K {
    const KIND: TensorType = TensorType::Q2_K;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let search = AffineSearch::<3, true> { first: -0.5, step: 0.1, candidates: 16 };
        let mut fits = Fits::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            let [scales, mins] = match rows.weights {
                Some(importance) => {
                    fit_batch_weighted::<L, 16, 3>(lanes, &batch, 1.0, importance, &mut fits);
                    fit_scales::<L, 16>(lanes, &fits, 15)
                }
                None => {
                    fit_batch::<L, 16, 3, true>(lanes, &search, &batch, None, &mut fits);
                    [&fits.scale, &fits.min].map(|quantity| {
                        std::array::from_fn(|b| spread_levels(&quantity[b * 16..][..16], 15.0))
                    })
                }
            };
            let blocks = dst[batch.first / SUPER * BYTES..].chunks_exact_mut(BYTES).take(batch.count / SUPER);
            for (b, block) in blocks.enumerate() {
                let x = &batch.values[b * SUPER..][..SUPER];
                encode_block(lanes, x, (&scales[b], &mins[b]), (&fits, b), block);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let (d, dmin) = (read_half(block, 80), read_half(block, 82));
            for (j, out) in out.chunks_exact_mut(16).enumerate() {
                let (scale, min) = sub_scale(d, dmin, block[j]);
                let qs = &block[16 + j / 8 * 32 + j % 2 * 16..][..16];
                let shift = j / 2 % 4 * 2;
                for (v, q) in out.iter_mut().zip(qs) {
                    *v = scale * f32::from((q >> shift) & 3) - min;
                }
            }
        }
    }
}

#[inline(always)]
fn sub_scale(d: f32, dmin: f32, packed: u8) -> (f32, f32) {
    (d * f32::from(packed & 15), dmin * f32::from(packed >> 4))
}

#[inline(always)]
fn encode_block<L: Lanes>(
    lanes: L,
    x: &[f32],
    (scales, mins): (&Levels<16>, &Levels<16>),
    (fits, b): (&Fits, usize),
    block: &mut [u8],
) {
    for (byte, (scale, min)) in block.iter_mut().zip(scales.levels.iter().zip(mins.levels)) {
        *byte = scale | (min << 4);
    }
    write_half(block, 80, scales.unit);
    write_half(block, 82, mins.unit);
    let (d, dmin) = (read_half(block, 80), read_half(block, 82));
    let mut levels = [0; SUPER];
    for (j, (x, levels)) in x.chunks_exact(16).zip(levels.chunks_exact_mut(16)).enumerate() {
        let (scale, min) = sub_scale(d, dmin, block[j]);
        if scale == 0.0 {
            fits.levels(b * 16 + j, x, 3, levels);
        } else {
            requantize(lanes, x, (scale, min), (0, 3), levels);
        }
    }
    pack_pairs_of_bits(&levels, &mut block[16..80]);
}
