//! Q1_0 and Q2_0: one and two bits a weight, one scale a block, no offset.
//!
//! Q1_0, 128 elements in 18 bytes; bit `j % 8` of byte `j / 8` of `qs` is set where element `j` is +d, else -d:
//!
//! ```text
//! 0   2                  18
//! | d | qs                |
//! ```
//!
//! Q2_0, 64 elements in 18 bytes; bits `2 (j % 4)` of byte `j / 4` hold element `j` / d + 1, one of 0 .. 3:
//!
//! ```text
//! 0   2                  18
//! | d | qs                |
//! ```

use super::float::{read_half, write_half};
use super::{Block, Rows};
use crate::gguf::TensorType;
use crate::simd::lanes::Lanes;

/// A sign bit a weight.
pub struct Q1_0;

impl Block for Q1_0 {
    const KIND: TensorType = TensorType::Q1_0;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode_q1_0(rows.values, dst);
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        decode_q1_0(src, dst);
    }
}

/// Two bits a weight.
pub struct Q2_0;

impl Block for Q2_0 {
    const KIND: TensorType = TensorType::Q2_0;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode_q2_0(rows.values, dst);
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        decode_q2_0(src, dst);
    }
}

const Q1_ELEMENTS: usize = 128;
const Q2_ELEMENTS: usize = 64;
const BYTES: usize = 18;

#[inline(always)]
fn encode_q1_0(src: &[f32], dst: &mut [u8]) {
    for (x, block) in src.chunks_exact(Q1_ELEMENTS).zip(dst.chunks_exact_mut(BYTES)) {
        let sum = x.iter().fold(0.0, |sum, v| sum + v.abs());
        write_half(block, 0, sum / Q1_ELEMENTS as f32);
        for (x, byte) in x.chunks_exact(8).zip(&mut block[2..]) {
            *byte = (0..8).fold(0, |bits, j| bits | (u8::from(x[j] >= 0.0) << j));
        }
    }
}

#[inline(always)]
fn decode_q1_0(src: &[u8], dst: &mut [f32]) {
    for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(Q1_ELEMENTS)) {
        let d = read_half(block, 0);
        for (byte, out) in block[2..].iter().zip(out.chunks_exact_mut(8)) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = if (byte >> j) & 1 != 0 { d } else { -d };
            }
        }
    }
}

/// `round(v) + 1`, within 0 .. 3; what fits no `int` counts as the smallest, as x86's conversion has it.
fn level(v: f32) -> u8 {
    let rounded = v.round();
    if rounded < 2_147_483_648.0 { (rounded as i32).saturating_add(1).clamp(0, 3) as u8 } else { 0 }
}

#[inline(always)]
fn encode_q2_0(src: &[f32], dst: &mut [u8]) {
    for (x, block) in src.chunks_exact(Q2_ELEMENTS).zip(dst.chunks_exact_mut(BYTES)) {
        let d = x.iter().fold(0.0, |most, v| if v.abs() > most { v.abs() } else { most });
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        write_half(block, 0, d);
        for (x, byte) in x.chunks_exact(4).zip(&mut block[2..]) {
            *byte = (0..4).fold(0, |bits, j| bits | (level(x[j] * inverse) << (2 * j)));
        }
    }
}

#[inline(always)]
fn decode_q2_0(src: &[u8], dst: &mut [f32]) {
    for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(Q2_ELEMENTS)) {
        let d = read_half(block, 0);
        for (byte, out) in block[2..].iter().zip(out.chunks_exact_mut(4)) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = (f32::from((byte >> (2 * j)) & 3) - 1.0) * d;
            }
        }
    }
}
