//! Q4_0 (4.5 bits a weight) and Q4_1 (5 bits).
//!
//! ```text
//! Q4_0: byte 0      2             18          Q4_1: byte 0      2    4             20
//!            d f16  qs: nibbles                          d f16  m    qs: nibbles
//! ```

use super::{Encoded, Encoder, SIZE, pack_nibbles};
use crate::gguf::TensorType;
use crate::quant::batch::Batches;
use crate::quant::float::{read_half, write_half};
use crate::quant::{Block, Rows};
use crate::simd::lanes::Lanes;

/// x = d · (q − 8)
#[allow(non_camel_case_types)]
pub struct Q4_0;

impl Block for Q4_0 {
    const KIND: TensorType = TensorType::Q4_0;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        const BYTES: usize = 18;
        let encoder = Encoder::new(lanes, 8, rows);
        let mut encoded = Encoded::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            encoder.symmetric(lanes, &batch, &mut encoded);
            let blocks = dst[batch.first / SIZE * BYTES..].chunks_exact_mut(BYTES);
            for (b, block) in blocks.take(batch.count / SIZE).enumerate() {
                let (scale, _, levels) = encoded.block(b);
                write_half(block, 0, scale);
                // Levels fit a nibble unless the reference's wrap, and it does not mask the low one then.
                for (l, q) in block[2..].iter_mut().enumerate() {
                    *q = levels[l] | (levels[l + 16] << 4);
                }
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(18).zip(dst.chunks_exact_mut(SIZE)) {
            let d = read_half(block, 0);
            for (l, q) in block[2..].iter().enumerate() {
                out[l] = (f32::from(q & 15) - 8.0) * d;
                out[l + 16] = (f32::from(q >> 4) - 8.0) * d;
            }
        }
    }
}

/// x = d · q + m
#[allow(non_camel_case_types)]
pub struct Q4_1;

impl Block for Q4_1 {
    const KIND: TensorType = TensorType::Q4_1;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        const BYTES: usize = 20;
        let encoder = Encoder::new(lanes, 8, rows);
        let mut encoded = Encoded::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            encoder.affine::<L, 15>(lanes, &batch, &mut encoded);
            let blocks = dst[batch.first / SIZE * BYTES..].chunks_exact_mut(BYTES);
            for (b, block) in blocks.take(batch.count / SIZE).enumerate() {
                let (scale, min, levels) = encoded.block(b);
                write_half(block, 0, scale);
                write_half(block, 2, min);
                pack_nibbles(levels, &mut block[4..]);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(20).zip(dst.chunks_exact_mut(SIZE)) {
            let (d, m) = (read_half(block, 0), read_half(block, 2));
            for (l, q) in block[4..].iter().enumerate() {
                out[l] = f32::from(q & 15) * d + m;
                out[l + 16] = f32::from(q >> 4) * d + m;
            }
        }
    }
}
