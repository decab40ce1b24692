//! The unblocked formats: F32, F16, BF16 (little-endian).

use super::{Block, Rows};
use crate::gguf::TensorType;
use crate::simd::lanes::{Lanes, MAX_WIDTH};

pub use crate::simd::lanes::{half_bits, half_value};

/// The half-precision value at byte `at` of a block.
#[inline(always)]
pub(super) fn read_half(block: &[u8], at: usize) -> f32 {
    half_value(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Rounds `v` to half precision at byte `at` of a block.
#[inline(always)]
pub(super) fn write_half(block: &mut [u8], at: usize, v: f32) {
    block[at..at + 2].copy_from_slice(&half_bits(v).to_le_bytes());
}

/// 4 bytes a value.
pub struct F32;

impl Block for F32 {
    const KIND: TensorType = TensorType::F32;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, rows: Rows<'_>, dst: &mut [u8]) {
        for (bytes, v) in dst.chunks_exact_mut(4).zip(rows.values) {
            bytes.copy_from_slice(&v.to_le_bytes());
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (bytes, v) in src.chunks_exact(4).zip(dst) {
            *v = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
}

/// IEEE half precision.
pub struct F16;

impl Block for F16 {
    const KIND: TensorType = TensorType::F16;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let mut values = rows.values.chunks_exact(L::WIDTH);
        let mut bytes = dst.chunks_exact_mut(2 * L::WIDTH);
        for (values, bytes) in (&mut values).zip(&mut bytes) {
            let v = lanes.load(values);
            if lanes.any(lanes.not(lanes.eq(v, v))) {
                encode_halves(values, bytes);
                continue;
            }
            let mut halves = [0; MAX_WIDTH];
            lanes.store_half(v, &mut halves);
            for (pair, half) in bytes.chunks_exact_mut(2).zip(halves) {
                pair.copy_from_slice(&half.to_le_bytes());
            }
        }
        encode_halves(values.remainder(), bytes.into_remainder());
    }

    #[inline(always)]
    fn decode<L: Lanes>(lanes: L, src: &[u8], dst: &mut [f32]) {
        let mut bytes = src.chunks_exact(2 * L::WIDTH);
        let mut values = dst.chunks_exact_mut(L::WIDTH);
        for (bytes, values) in (&mut bytes).zip(&mut values) {
            let mut halves = [0; MAX_WIDTH];
            for (half, pair) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                *half = u16::from_le_bytes([pair[0], pair[1]]);
            }
            lanes.store(lanes.load_half(&halves), values);
        }
        for (v, pair) in values.into_remainder().iter_mut().zip(bytes.remainder().chunks_exact(2)) {
            *v = half_value(u16::from_le_bytes([pair[0], pair[1]]));
        }
    }
}

#[inline(always)]
fn encode_halves(values: &[f32], bytes: &mut [u8]) {
    for (pair, &v) in bytes.chunks_exact_mut(2).zip(values) {
        pair.copy_from_slice(&half_bits(v).to_le_bytes());
    }
}

/// The upper half of single precision.
pub struct BF16;

impl Block for BF16 {
    const KIND: TensorType = TensorType::BF16;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, rows: Rows<'_>, dst: &mut [u8]) {
        for (pair, v) in dst.chunks_exact_mut(2).zip(rows.values) {
            let bits = v.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quieted = (bits >> 16) | 64;
            let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
            let half = if is_nan { quieted } else { rounded } as u16;
            pair.copy_from_slice(&half.to_le_bytes());
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (v, pair) in dst.iter_mut().zip(src.chunks_exact(2)) {
            *v = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
        }
    }
}
