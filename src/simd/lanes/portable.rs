//! Four lanes of plain Rust, for any machine (the compiler makes SSE2 of it on x86-64).

use super::{Lanes, Path, gather_columns};

/// Needs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

const N: usize = 4;

#[derive(Clone, Copy)]
#[repr(align(16))]
pub struct F4([f32; N]);

#[derive(Clone, Copy)]
#[repr(align(16))]
pub struct I4([i32; N]);

/// Lanes of all ones or all zeros.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub struct M4([u32; N]);

#[inline(always)]
fn map(a: F4, f: impl Fn(f32) -> f32) -> F4 {
    F4([f(a.0[0]), f(a.0[1]), f(a.0[2]), f(a.0[3])])
}

#[inline(always)]
fn zip(a: F4, b: F4, f: impl Fn(f32, f32) -> f32) -> F4 {
    F4([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
}

#[inline(always)]
fn zip_i(a: I4, b: I4, f: impl Fn(i32, i32) -> i32) -> I4 {
    I4([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
}

#[inline(always)]
fn compare(a: F4, b: F4, f: impl Fn(f32, f32) -> bool) -> M4 {
    let lane = |i: usize| if f(a.0[i], b.0[i]) { u32::MAX } else { 0 };
    M4([lane(0), lane(1), lane(2), lane(3)])
}

#[inline(always)]
fn compare_i(a: I4, b: I4, f: impl Fn(i32, i32) -> bool) -> M4 {
    let lane = |i: usize| if f(a.0[i], b.0[i]) { u32::MAX } else { 0 };
    M4([lane(0), lane(1), lane(2), lane(3)])
}

/// `_mm_cvttps_epi32` for one lane; a saturating cast differs for what is out of range.
#[inline(always)]
fn truncate(v: f32) -> i32 {
    if v.abs() < 2_147_483_648.0 { v as i32 } else { i32::MIN }
}

#[inline(always)]
pub(super) fn from_half(from: &[u16]) -> [f32; N] {
    let from = &from[..N];
    [half_value(from[0]), half_value(from[1]), half_value(from[2]), half_value(from[3])]
}

#[inline(always)]
pub(super) fn to_half(v: [f32; N], to: &mut [u16]) {
    to[..N].copy_from_slice(&[half_bits(v[0]), half_bits(v[1]), half_bits(v[2]), half_bits(v[3])]);
}

/// Half precision to single: exact; NaNs are quieted and keep their payload. No branches, so it vectorizes.
#[inline(always)]
pub(super) fn half_value(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff) << 13;
    let exponent = magnitude & 0x0f80_0000;
    // Re-bias the exponent from 15 to 127; infinities and NaNs once more, up to 255.
    let normal = magnitude + ((127 - 15) << 23);
    let special = normal + ((128 - 16) << 23);
    let special = if magnitude > exponent { special | 0x0040_0000 } else { special };
    // A subnormal's bits under the exponent of 2^-14, less that implied leading one.
    let subnormal = f32::from_bits(normal + (1 << 23)) - f32::from_bits(113 << 23);
    let bits = match exponent {
        0x0f80_0000 => special,
        0 => subnormal.to_bits(),
        _ => normal,
    };
    f32::from_bits(bits | (u32::from(half & 0x8000) << 16))
}

/// Single precision to half: nearest even, overflow to infinity, every NaN the quiet one with its sign.
#[inline(always)]
pub(super) fn half_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Re-bias the exponent from 127 to 15 and round off 13 bits; a carry may run into the exponent, as it should.
    let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Adding ½ leaves multiples of 2^-24, the subnormals' unit, in the low bits, rounded by the addition.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        subnormal
    } else {
        normal
    };
    (half | ((bits >> 16) & 0x8000)) as u16
}

impl Lanes for Scalar {
    const WIDTH: usize = N;
    const PATH: Path = Path::Scalar;
    type F = F4;
    type I = I4;
    type M = M4;

    #[inline(always)]
    fn new() -> Option<Self> {
        Some(Self)
    }

    #[inline(always)]
    fn splat(self, v: f32) -> F4 {
        F4([v; N])
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> F4 {
        let from = &from[..N];
        F4([from[0], from[1], from[2], from[3]])
    }

    #[inline(always)]
    fn store(self, v: F4, to: &mut [f32]) {
        to[..N].copy_from_slice(&v.0);
    }

    #[inline(always)]
    fn add(self, a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn sqrt(self, a: F4) -> F4 {
        map(a, f32::sqrt)
    }

    #[inline(always)]
    fn abs(self, a: F4) -> F4 {
        map(a, f32::abs)
    }

    #[inline(always)]
    fn min(self, a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn lt(self, a: F4, b: F4) -> M4 {
        compare(a, b, |a, b| a < b)
    }

    #[inline(always)]
    fn eq(self, a: F4, b: F4) -> M4 {
        compare(a, b, |a, b| a == b)
    }

    #[inline(always)]
    fn select(self, mask: M4, a: F4, b: F4) -> F4 {
        let lane =
            |i: usize| f32::from_bits((a.0[i].to_bits() & mask.0[i]) | (b.0[i].to_bits() & !mask.0[i]));
        F4([lane(0), lane(1), lane(2), lane(3)])
    }

    #[inline(always)]
    fn and(self, a: M4, b: M4) -> M4 {
        M4([a.0[0] & b.0[0], a.0[1] & b.0[1], a.0[2] & b.0[2], a.0[3] & b.0[3]])
    }

    #[inline(always)]
    fn not(self, a: M4) -> M4 {
        M4([!a.0[0], !a.0[1], !a.0[2], !a.0[3]])
    }

    #[inline(always)]
    fn any(self, mask: M4) -> bool {
        mask.0[0] | mask.0[1] | mask.0[2] | mask.0[3] != 0
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> I4 {
        I4([v; N])
    }

    #[inline(always)]
    fn sub_i(self, a: I4, b: I4) -> I4 {
        zip_i(a, b, i32::wrapping_sub)
    }

    #[inline(always)]
    fn and_i(self, a: I4, b: I4) -> I4 {
        zip_i(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn min_i(self, a: I4, b: I4) -> I4 {
        zip_i(a, b, Ord::min)
    }

    #[inline(always)]
    fn max_i(self, a: I4, b: I4) -> I4 {
        zip_i(a, b, Ord::max)
    }

    #[inline(always)]
    fn bits(self, a: F4) -> I4 {
        I4(a.0.map(|v| v.to_bits() as i32))
    }

    #[inline(always)]
    fn to_float(self, a: I4) -> F4 {
        F4([a.0[0] as f32, a.0[1] as f32, a.0[2] as f32, a.0[3] as f32])
    }

    #[inline(always)]
    fn truncate(self, a: F4) -> I4 {
        I4(a.0.map(truncate))
    }

    #[inline(always)]
    fn store_bytes(self, v: I4, to: &mut [u8]) {
        for (byte, lane) in to[..N].iter_mut().zip(v.0) {
            *byte = lane as u8;
        }
    }

    #[inline(always)]
    fn columns(self, rows: &[f32], stride: usize, out: &mut [F4]) {
        let tiled = out.len() / N * N;
        let (tiles, rest) = out.split_at_mut(tiled);
        gather_columns(self, rows, stride, tiled, rest);
        for (c, tile) in tiles.chunks_exact_mut(N).enumerate() {
            let row = |r: usize| self.load(&rows[r * stride + c * N..]).0;
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            for (i, column) in tile.iter_mut().enumerate() {
                *column = F4([a[i], b[i], c[i], d[i]]);
            }
        }
    }

    #[inline(always)]
    fn load_half(self, from: &[u16]) -> F4 {
        F4(from_half(from))
    }

    #[inline(always)]
    fn store_half(self, v: F4, to: &mut [u16]) {
        to_half(v.0, to);
    }

    #[inline(always)]
    fn or(self, a: M4, b: M4) -> M4 {
        M4([a.0[0] | b.0[0], a.0[1] | b.0[1], a.0[2] | b.0[2], a.0[3] | b.0[3]])
    }

    #[inline(always)]
    fn bitmask(self, mask: M4) -> u32 {
        (mask.0[0] & 1) | (mask.0[1] & 2) | (mask.0[2] & 4) | (mask.0[3] & 8)
    }

    #[inline(always)]
    fn smallest(self, v: F4) -> f32 {
        v.0[0].min(v.0[1]).min(v.0[2].min(v.0[3]))
    }

    #[inline(always)]
    fn add_i(self, a: I4, b: I4) -> I4 {
        zip_i(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn xor_i(self, a: I4, b: I4) -> I4 {
        zip_i(a, b, |a, b| a ^ b)
    }

    #[inline(always)]
    fn eq_i(self, a: I4, b: I4) -> M4 {
        compare_i(a, b, |a, b| a == b)
    }

    #[inline(always)]
    fn lt_i(self, a: I4, b: I4) -> M4 {
        compare_i(a, b, |a, b| a < b)
    }

    #[inline(always)]
    fn shl(self, a: I4, by: u32) -> I4 {
        I4(a.0.map(|v| v << by))
    }

    #[inline(always)]
    fn shr(self, a: I4, by: u32) -> I4 {
        I4(a.0.map(|v| (v as u32 >> by) as i32))
    }

    #[inline(always)]
    fn select_i(self, mask: M4, a: I4, b: I4) -> I4 {
        let lane = |i: usize| (a.0[i] & mask.0[i] as i32) | (b.0[i] & !mask.0[i] as i32);
        I4([lane(0), lane(1), lane(2), lane(3)])
    }

    #[inline(always)]
    fn load_i(self, from: &[i32]) -> I4 {
        let from = &from[..N];
        I4([from[0], from[1], from[2], from[3]])
    }

    #[inline(always)]
    fn store_i(self, v: I4, to: &mut [i32]) {
        to[..N].copy_from_slice(&v.0);
    }

    #[inline(always)]
    fn load_u16(self, from: &[u16]) -> I4 {
        let from = &from[..N];
        I4([from[0], from[1], from[2], from[3]].map(i32::from))
    }

    #[inline(always)]
    fn store_u16(self, v: I4, to: &mut [u16]) {
        to[..N].copy_from_slice(&v.0.map(|v| v as u16));
    }

    #[inline(always)]
    fn lookup4(self, table: &[f32], at: I4) -> F4 {
        let table = &table[..4];
        F4(at.0.map(|at| table[(at & 3) as usize]))
    }

    #[inline(always)]
    fn lookup8(self, table: &[f32], at: I4) -> F4 {
        let table = &table[..8];
        F4(at.0.map(|at| table[(at & 7) as usize]))
    }

    #[inline(always)]
    fn lookup16(self, table: &[f32], at: I4) -> F4 {
        let table = &table[..16];
        F4(at.0.map(|at| table[(at & 15) as usize]))
    }
}
