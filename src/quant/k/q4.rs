//! Q4_K: 4.5 bits a weight; 8 sub-blocks of 32 with 6-bit scales and minimums.
//!
//! ```text
//! byte 0   2    4           16                                   144
//!      d   dmin scales,mins qs: nibbles; byte 32 k + l holds elements 64 k + l (low) and 64 k + 32 + l (high)
//!      f16 f16  12 bytes    128 bytes
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
pub struct Q4_K;

const BYTES: usize = 144;

impl Block for Q4_K {
    const KIND: TensorType = TensorType::Q4_K;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let search = AffineSearch::<15, false> { first: -1.0, step: 0.1, candidates: 21 };
        let mut fits = Fits::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            let [scales, mins] = six_bit_scales(lanes, &search, &batch, rows.weights, &mut fits);
            let blocks = dst[batch.first / SUPER * BYTES..].chunks_exact_mut(BYTES).take(batch.count / SUPER);
            for (b, block) in blocks.enumerate() {
                write_head(block, &scales[b], &mins[b]);
                let x = &batch.values[b * SUPER..][..SUPER];
                let levels = final_levels::<L, 15>(lanes, block, x, &fits, b);
                for (levels, qs) in levels.chunks_exact(64).zip(block[HEAD..].chunks_exact_mut(32)) {
                    for (l, q) in qs.iter_mut().enumerate() {
                        *q = levels[l] | (levels[l + 32] << 4);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let heads = read_head(block);
            let parts = block[HEAD..].chunks_exact(32).zip(out.chunks_exact_mut(64));
            for ((qs, out), heads) in parts.zip(heads.chunks_exact(2)) {
                let (low, high) = out.split_at_mut(32);
                for l in 0..32 {
                    low[l] = heads[0].0 * f32::from(qs[l] & 15) - heads[0].1;
                    high[l] = heads[1].0 * f32::from(qs[l] >> 4) - heads[1].1;
                }
            }
        }
    }
}
