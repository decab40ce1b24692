//! TQ1_0 and TQ2_0: weights of -1, 0 and 1 times a scale a super-block (BitNet b1.58, TriLM).
//!
//! TQ2_0, 256 elements in 66 bytes; two halves of 128 elements, byte `m` of a half holding elements
//! `m`, `m + 32`, `m + 64`, `m + 96` from its lowest two bits up, each plus one:
//!
//! ```text
//! 0          32          64  66
//! | qs half 0 | qs half 1 | d |
//! ```
//!
//! TQ1_0, 256 elements in 54 bytes; a byte holds five (in `qh`: four) elements as a fixed-point fraction:
//! with `t` the base-3 number of their digits, first digit highest, the byte is ⌈256 t / 243⌉, so that
//! multiplying by 3 pushes the next digit out of the top:
//!
//! ```text
//! 0                      32                        48                        52  54
//! | qs: elements m + 32 n | qs: 160 + m + 16 n      | qh: 240 + m + 4 n       | d |
//! ```

use super::float::{read_half, write_half};
use super::{Block, Rows};
use crate::gguf::TensorType;
use crate::simd::lanes::Lanes;

/// Five ternary digits a byte.
pub struct TQ1_0;

impl Block for TQ1_0 {
    const KIND: TensorType = TensorType::TQ1_0;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode_tq1_0(rows.values, dst);
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        decode_tq1_0(src, dst);
    }
}

/// Four ternary digits a byte.
pub struct TQ2_0;

impl Block for TQ2_0 {
    const KIND: TensorType = TensorType::TQ2_0;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode_tq2_0(rows.values, dst);
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        decode_tq2_0(src, dst);
    }
}

const ELEMENTS: usize = 256;
const TQ1_BYTES: usize = 54;
const TQ2_BYTES: usize = 66;

/// The runs of bytes in a TQ1_0 block: first byte, bytes, digits a byte.
const TQ1_RUNS: [(usize, usize, usize); 3] = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];

/// The scale of a super-block (its largest magnitude) and the reciprocal to multiply elements with.
fn scale(x: &[f32]) -> (f32, f32) {
    let d = x.iter().fold(0.0f32, |most, v| if most > v.abs() { most } else { v.abs() });
    (d, if d != 0.0 { 1.0 / d } else { 0.0 })
}

/// `lroundf(v) + 1`, where what fits no `long` gives 1 (the conversion's overflow value, cut to its low bits).
fn digit(v: f32) -> u8 {
    let rounded = v.round();
    if rounded.abs() < 9.0e18 { (rounded as i64 + 1) as u8 } else { 1 }
}

#[inline(always)]
fn encode_tq1_0(src: &[f32], dst: &mut [u8]) {
    for (x, block) in src.chunks_exact(ELEMENTS).zip(dst.chunks_exact_mut(TQ1_BYTES)) {
        let (d, inverse) = scale(x);
        let mut x = x;
        for (first, bytes, digits) in TQ1_RUNS {
            for (m, byte) in block[first..first + bytes].iter_mut().enumerate() {
                let place =
                    |t: u8, n: usize| t.wrapping_mul(3).wrapping_add(digit(x[m + n * bytes] * inverse));
                let t = (0..digits).fold(0, place);
                // Four digits are the upper ones of five.
                let t = if digits == 4 { t.wrapping_mul(3) } else { t };
                *byte = ((u16::from(t) * 256).wrapping_add(242) / 243) as u8;
            }
            x = &x[bytes * digits..];
        }
        write_half(block, 52, d);
    }
}

#[inline(always)]
fn decode_tq1_0(src: &[u8], dst: &mut [f32]) {
    for (block, out) in src.chunks_exact(TQ1_BYTES).zip(dst.chunks_exact_mut(ELEMENTS)) {
        let d = read_half(block, 52);
        let mut out = out.iter_mut();
        for (first, bytes, digits) in TQ1_RUNS {
            for power in [1u8, 3, 9, 27, 81].into_iter().take(digits) {
                for (byte, out) in block[first..first + bytes].iter().zip(&mut out) {
                    let fraction = byte.wrapping_mul(power);
                    let digit = (u16::from(fraction) * 3) >> 8;
                    *out = (f32::from(digit) - 1.0) * d;
                }
            }
        }
    }
}

#[inline(always)]
fn encode_tq2_0(src: &[f32], dst: &mut [u8]) {
    for (x, block) in src.chunks_exact(ELEMENTS).zip(dst.chunks_exact_mut(TQ2_BYTES)) {
        let (d, inverse) = scale(x);
        for (x, qs) in x.chunks_exact(128).zip(block[..64].chunks_exact_mut(32)) {
            for (m, byte) in qs.iter_mut().enumerate() {
                let place = |q: u8, n: usize| q | ((digit(x[m + 32 * n] * inverse) & 3) << (2 * n));
                *byte = (0..4).fold(0, place);
            }
        }
        write_half(block, 64, d);
    }
}

#[inline(always)]
fn decode_tq2_0(src: &[u8], dst: &mut [f32]) {
    for (block, out) in src.chunks_exact(TQ2_BYTES).zip(dst.chunks_exact_mut(ELEMENTS)) {
        let d = read_half(block, 64);
        for (qs, out) in block[..64].chunks_exact(32).zip(out.chunks_exact_mut(128)) {
            for (n, out) in out.chunks_exact_mut(32).enumerate() {
                for (byte, out) in qs.iter().zip(out) {
                    *out = (f32::from((byte >> (2 * n)) & 3) - 1.0) * d;
                }
            }
        }
    }
}
