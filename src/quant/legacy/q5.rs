//! Q5_0 (5.5 bits a weight) and Q5_1 (6 bits).
//!
//! ```text
//! Q5_0: byte 0      2               6             22     Q5_1: byte 0      2      4           8             24
//!            d f16  qh: fifth bits  qs: nibbles                     d f16  m f16  qh: fifths  qs: nibbles
//! ```

use super::{Encoded, Encoder, SIZE, fifth_bits, pack_nibbles};
use crate::gguf::TensorType;
use crate::quant::batch::Batches;
use crate::quant::float::{read_half, write_half};
use crate::quant::{Block, Rows};
use crate::simd::lanes::Lanes;

/// x = d · (q − 16)
#[allow(non_camel_case_types)]
pub struct Q5_0;

impl Block for Q5_0 {
    const KIND: TensorType = TensorType::Q5_0;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        const BYTES: usize = 22;
        let encoder = Encoder::new(lanes, 16, rows);
        let mut encoded = Encoded::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            encoder.symmetric(lanes, &batch, &mut encoded);
            let blocks = dst[batch.first / SIZE * BYTES..].chunks_exact_mut(BYTES);
            for (b, block) in blocks.take(batch.count / SIZE).enumerate() {
                let (scale, _, levels) = encoded.block(b);
                write_half(block, 0, scale);
                block[2..6].copy_from_slice(&fifth_bits(levels));
                pack_nibbles(levels, &mut block[6..]);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(22).zip(dst.chunks_exact_mut(SIZE)) {
            let d = read_half(block, 0);
            for (v, level) in out.iter_mut().zip(levels(&block[2..])) {
                *v = (f32::from(level) - 16.0) * d;
            }
        }
    }
}

/// x = d · q + m
#[allow(non_camel_case_types)]
pub struct Q5_1;

impl Block for Q5_1 {
    const KIND: TensorType = TensorType::Q5_1;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        const BYTES: usize = 24;
        let encoder = Encoder::new(lanes, 16, rows);
        let mut encoded = Encoded::new();
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            encoder.affine::<L, 31>(lanes, &batch, &mut encoded);
            let blocks = dst[batch.first / SIZE * BYTES..].chunks_exact_mut(BYTES);
            for (b, block) in blocks.take(batch.count / SIZE).enumerate() {
                let (scale, min, levels) = encoded.block(b);
                write_half(block, 0, scale);
                write_half(block, 2, min);
                block[4..8].copy_from_slice(&fifth_bits(levels));
                pack_nibbles(levels, &mut block[8..]);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(24).zip(dst.chunks_exact_mut(SIZE)) {
            let (d, m) = (read_half(block, 0), read_half(block, 2));
            for (v, level) in out.iter_mut().zip(levels(&block[4..])) {
                *v = f32::from(level) * d + m;
            }
        }
    }
}

/// The 32 levels in 4 bytes of fifth bits and 16 of nibbles.
#[inline(always)]
fn levels(packed: &[u8]) -> [u8; SIZE] {
    let fifths = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let qs = &packed[4..20];
    let mut levels = [0; SIZE];
    for l in 0..16 {
        levels[l] = (qs[l] & 15) | (((fifths >> l) & 1) as u8) << 4;
        levels[l + 16] = (qs[l] >> 4) | (((fifths >> (l + 16)) & 1) as u8) << 4;
    }
    levels
}
