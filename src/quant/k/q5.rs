//! Q5_K: 5.5 bits a weight; Q4_K with a fifth bit.
//!
//! ```text
//! byte 0   2    4           16         48                           176
//!      d   dmin scales,mins qh         qs: nibbles; byte 32 k + l holds elements 64 k + l (low) and
//!      f16 f16  12 bytes    32 bytes       64 k + 32 + l (high), their fifth bits are bits 2 k and 2 k + 1 of qh[l]
//! ```
//! x = d · scale · q − dmin · min

use super::SUPER;
use super::affine::{Fits, HEAD, final_levels, read_head, six_bit_scales, write_head};
use crate::gguf::TensorType;
use crate::quant::batch::Batches;
use crate::quant::search::AffineSearch;
use crate::quant::{Block, Rows};
use crate::simd::lanes::Lanes;

#[allow(non_camel_case_types)]
pub struct Q5_K;

const BYTES: usize = 176;

impl Block for Q5_K {
    const KIND: TensorType = TensorType::Q5_K;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let search = AffineSearch::<31, false> { first: -0.5, step: 0.1, candidates: 16 };
        let mut fits = Fits::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            let [scales, mut mins] = six_bit_scales(lanes, &search, &batch, rows.weights, &mut fits);
            let blocks = dst[batch.first / SUPER * BYTES..].chunks_exact_mut(BYTES).take(batch.count / SUPER);
            for (b, block) in blocks.enumerate() {
                // Unlike Q4_K, levels are capped with an imatrix too (they exceed 63 only by wrapping).
                let mut scales = scales[b];
                scales.levels = scales.levels.map(|level| level.min(63));
                mins[b].levels = mins[b].levels.map(|level| level.min(63));
                write_head(block, &scales, &mins[b]);
                let x = &batch.values[b * SUPER..][..SUPER];
                let levels = final_levels::<L, 31>(lanes, block, x, &fits, b);
                let (qh, qs) = block[HEAD..].split_at_mut(32);
                qh.fill(0);
                for (k, (levels, qs)) in levels.chunks_exact(64).zip(qs.chunks_exact_mut(32)).enumerate() {
                    for l in 0..32 {
                        qs[l] = (levels[l] & 15) | (levels[l + 32] << 4);
                        qh[l] |= ((levels[l] >> 4) | (levels[l + 32] >> 4 << 1)) << (2 * k);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let heads = read_head(block);
            let (qh, qs) = block[HEAD..].split_at(32);
            for (k, (qs, out)) in qs.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
                let (low, high) = out.split_at_mut(32);
                for l in 0..32 {
                    let fifth = qh[l] >> (2 * k);
                    let (a, b) = ((qs[l] & 15) | ((fifth & 1) << 4), (qs[l] >> 4) | ((fifth & 2) << 3));
                    low[l] = heads[2 * k].0 * f32::from(a) - heads[2 * k].1;
                    high[l] = heads[2 * k + 1].0 * f32::from(b) - heads[2 * k + 1].1;
                }
            }
        }
    }
}
