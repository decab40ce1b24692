//! What the levels of NEON differ in: how they multiply bytes.
//!
//! Rust's intrinsics for `dotprod` and `i8mm` are not stable yet, so their instructions are written out.

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected as detected;

use super::On;
use crate::simd::{Kernel, TileKernel};

/// Eight 32-bit lanes.
pub type Words = [int32x4_t; 2];

/// A level's byte products. Safety, for everything `unsafe` in this file: NEON is part of arm64, the other features are used with
/// a token ([`On`]) only, which exists where [`Products::detected`] found them, and vectors are read from arrays of their length.
pub trait Products: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    /// Tokens of a matmul tile.
    const TOKENS: usize;
    /// `Isa::WORDS`.
    const WORDS: usize;
    /// `Isa::LARGEST_FOLDED`.
    const LARGEST_FOLDED: u8;

    /// Whether the machine has the instructions.
    fn detected() -> bool;

    /// Runs `kernel` inside a function compiled for the features.
    fn vectorize<K: Kernel>(isa: On<Self>, kernel: K) -> K::Output;

    /// Runs `kernel` with a tile of one row vector by [`Products::TOKENS`].
    fn tile<K: TileKernel>(isa: On<Self>, kernel: K);

    /// `acc[i] += Σ_{j<4} u[4i+j] * a[4i+j]`; `u` unsigned, `a` signed but not -128. `WIDE`: bytes of `u` may exceed 127.
    fn dot4<const WIDE: bool>(_: On<Self>, acc: int32x4_t, u: uint8x16_t, a: int8x16_t) -> int32x4_t;

    /// `dot[t]` becomes `starts[t]` (0 if there are none) and the products of eight rows with token `t`: `rows`
    /// `[quads / WORDS, 8, WORDS]`, `tokens` `[quads / WORDS, T, WORDS]`, no byte of `rows` above `largest`.
    fn group<const T: usize>(
        _: On<Self>,
        dot: &mut [Words; T],
        starts: Option<&[i32]>,
        rows: &[i32],
        tokens: &[i32],
        largest: u8,
    );
}

/// Products of bytes in 16 bits, added up in 32: what every arm64 machine has.
#[derive(Clone, Copy, Debug)]
pub struct Widening;

/// `sdot`: four products a 32-bit lane.
#[derive(Clone, Copy, Debug)]
pub struct DotProduct;

/// `usdot`, and `smmla`: two rows by two tokens, eight columns at a time.
#[derive(Clone, Copy, Debug)]
pub struct MatrixProduct;

/// Sixteen bytes of words.
#[inline(always)]
fn load(words: &[i32; 4]) -> int8x16_t {
    unsafe { vreinterpretq_s8_s32(vld1q_s32(words.as_ptr())) }
}

/// Unsigned bytes less 128: what is then missing to a product is 128 times the sum of the other operand.
#[inline(always)]
fn centred(bytes: int8x16_t) -> int8x16_t {
    unsafe { veorq_s8(bytes, vdupq_n_s8(-128)) }
}

/// Each of `starts`, or 0, in all lanes.
#[inline(always)]
fn start<const T: usize>(dot: &mut [Words; T], starts: Option<&[i32]>) {
    for t in 0..T {
        let start = match starts {
            Some(starts) => starts[t],
            None => 0,
        };
        dot[t] = unsafe { [vdupq_n_s32(start); 2] };
    }
}

/// The lanes of `a` added up in pairs, then those of `b`.
#[inline(always)]
fn pair_sums(a: int16x8_t, b: int16x8_t) -> int32x4_t {
    unsafe { vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b)) }
}

impl Products for Widening {
    const NAME: &'static str = "neon";
    const TOKENS: usize = 4;
    const WORDS: usize = 1;
    const LARGEST_FOLDED: u8 = 0;

    fn detected() -> bool {
        detected!("neon")
    }

    #[inline(always)]
    fn vectorize<K: Kernel>(isa: On<Self>, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn inner<K: Kernel>(isa: On<Widening>, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        unsafe { inner(isa, kernel) }
    }

    #[inline(always)]
    fn tile<K: TileKernel>(isa: On<Self>, kernel: K) {
        kernel.run::<On<Self>, 1, 4>(isa);
    }

    #[inline(always)]
    fn dot4<const WIDE: bool>(_: On<Self>, acc: int32x4_t, u: uint8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            let u = vreinterpretq_s8_u8(u);
            if !WIDE {
                // Pairs of products of up to 127 * 127 still fit.
                let products = vpaddq_s16(vmull_s8(vget_low_s8(u), vget_low_s8(a)), vmull_high_s8(u, a));
                return vpadalq_s16(acc, products);
            }
            let u = centred(u);
            let products = vpaddq_s16(vmull_s8(vget_low_s8(u), vget_low_s8(a)), vmull_high_s8(u, a));
            let sums = vpaddlq_s16(vpaddlq_s8(a));
            vaddq_s32(vpadalq_s16(acc, products), vshlq_n_s32::<7>(sums))
        }
    }

    #[inline(always)]
    fn group<const T: usize>(
        _: On<Self>,
        dot: &mut [Words; T],
        starts: Option<&[i32]>,
        rows: &[i32],
        tokens: &[i32],
        largest: u8,
    ) {
        const { assert!(T == 4) };
        start(dot, starts);
        let (rows, tokens) = (rows.as_chunks::<8>().0, tokens.as_chunks::<4>().0);
        let quads = rows.len().min(tokens.len());
        let wide = largest > 127;
        unsafe {
            let mut sums = vdupq_n_s32(0);
            // So many products add up in 16 bits.
            let run = 32767 / (127 * if wide { 128 } else { usize::from(largest) });
            let mut q = 0;
            while q < quads {
                let mut products = [[vdupq_n_s16(0); 4]; 4];
                for q in q..(q + run).min(quads) {
                    let ([low, high], token) = (halves(&rows[q]), &tokens[q]);
                    let (low, high) = if wide { (centred(low), centred(high)) } else { (low, high) };
                    for t in 0..4 {
                        let token = vreinterpretq_s8_s32(vdupq_n_s32(token[t]));
                        let p = &mut products[t];
                        p[0] = vmlal_s8(p[0], vget_low_s8(low), vget_low_s8(token));
                        p[1] = vmlal_high_s8(p[1], low, token);
                        p[2] = vmlal_s8(p[2], vget_low_s8(high), vget_low_s8(token));
                        p[3] = vmlal_high_s8(p[3], high, token);
                    }
                    if wide {
                        sums = vpadalq_s16(sums, vpaddlq_s8(load(token)));
                    }
                }
                for t in 0..4 {
                    let p = &products[t];
                    dot[t][0] = vaddq_s32(dot[t][0], pair_sums(p[0], p[1]));
                    dot[t][1] = vaddq_s32(dot[t][1], pair_sums(p[2], p[3]));
                }
                q += run;
            }
            if wide {
                add_centres(dot, &[sums]);
            }
        }
    }
}

/// The words of the lower and the upper four rows.
#[inline(always)]
fn halves(rows: &[i32; 8]) -> [int8x16_t; 2] {
    let [low, high] = rows.as_chunks::<4>().0 else { unreachable!("eight words") };
    [load(low), load(high)]
}

/// Adds what [`centred`] took off: 128 times `sums`, those of four tokens a vector.
#[inline(always)]
fn add_centres<const T: usize>(dot: &mut [Words; T], sums: &[int32x4_t]) {
    for i in 0..T / 4 {
        unsafe {
            let sums = vshlq_n_s32::<7>(sums[i]);
            let each = [
                vdupq_laneq_s32::<0>(sums),
                vdupq_laneq_s32::<1>(sums),
                vdupq_laneq_s32::<2>(sums),
                vdupq_laneq_s32::<3>(sums),
            ];
            for t in 0..4 {
                for h in 0..2 {
                    dot[4 * i + t][h] = vaddq_s32(dot[4 * i + t][h], each[t]);
                }
            }
        }
    }
}

/// `acc[i] += Σ_{j<4} a[4i+j] * b[4i+j]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // Sound: registers only, and the function has the feature.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// `acc[i] += Σ_{j<4} a[4i+j] * b[4N+j]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot_lane<const N: usize>(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // Sound: as in `sdot`.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{n}]", inout(vreg) acc, in(vreg) a, in(vreg) b, n = const N,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

impl Products for DotProduct {
    const NAME: &'static str = "neon-dot";
    const TOKENS: usize = 8;
    const WORDS: usize = 1;
    const LARGEST_FOLDED: u8 = 127;

    fn detected() -> bool {
        detected!("neon") && detected!("dotprod")
    }

    #[inline(always)]
    fn vectorize<K: Kernel>(isa: On<Self>, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn inner<K: Kernel>(isa: On<DotProduct>, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        unsafe { inner(isa, kernel) }
    }

    #[inline(always)]
    fn tile<K: TileKernel>(isa: On<Self>, kernel: K) {
        kernel.run::<On<Self>, 1, 8>(isa);
    }

    #[inline(always)]
    fn dot4<const WIDE: bool>(_: On<Self>, acc: int32x4_t, u: uint8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            let u = vreinterpretq_s8_u8(u);
            if !WIDE {
                return sdot(acc, u, a);
            }
            let missing = sdot(vdupq_n_s32(0), vdupq_n_s8(-128), a);
            vsubq_s32(sdot(acc, centred(u), a), missing)
        }
    }

    #[inline(always)]
    fn group<const T: usize>(
        _: On<Self>,
        dot: &mut [Words; T],
        starts: Option<&[i32]>,
        rows: &[i32],
        tokens: &[i32],
        largest: u8,
    ) {
        const { assert!(T == 8) };
        start(dot, starts);
        let (rows, tokens) = (rows.as_chunks::<8>().0, tokens.as_chunks::<8>().0);
        let wide = largest > 127;
        unsafe {
            let mut sums = [vdupq_n_s32(0); 2];
            for q in 0..rows.len().min(tokens.len()) {
                let (row, token) = (halves(&rows[q]), halves(&tokens[q]));
                for h in 0..2 {
                    let row = if wide { centred(row[h]) } else { row[h] };
                    for i in 0..2 {
                        dot[4 * i][h] = sdot_lane::<0>(dot[4 * i][h], row, token[i]);
                        dot[4 * i + 1][h] = sdot_lane::<1>(dot[4 * i + 1][h], row, token[i]);
                        dot[4 * i + 2][h] = sdot_lane::<2>(dot[4 * i + 2][h], row, token[i]);
                        dot[4 * i + 3][h] = sdot_lane::<3>(dot[4 * i + 3][h], row, token[i]);
                    }
                    if wide {
                        sums[h] = sdot(sums[h], vdupq_n_s8(1), token[h]);
                    }
                }
            }
            if wide {
                add_centres(dot, &sums);
            }
        }
    }
}

/// As [`sdot`], `u` unsigned.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usdot(mut acc: int32x4_t, u: int8x16_t, a: int8x16_t) -> int32x4_t {
    // Sound: registers only, and the function has the feature.
    unsafe {
        asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) u, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// `acc[2i + j] += Σ_{k<8} a[8i+k] * b[8j+k]`; `UNSIGNED`: `a` is.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn mmla<const UNSIGNED: bool>(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // Sound: as in `usdot`.
    unsafe {
        if UNSIGNED {
            asm!("usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        } else {
            asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
    }
    acc
}

impl Products for MatrixProduct {
    const NAME: &'static str = "neon-i8mm";
    const TOKENS: usize = 8;
    const WORDS: usize = 2;
    const LARGEST_FOLDED: u8 = 255;

    fn detected() -> bool {
        DotProduct::detected() && detected!("i8mm")
    }

    #[inline(always)]
    fn vectorize<K: Kernel>(isa: On<Self>, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn inner<K: Kernel>(isa: On<MatrixProduct>, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        unsafe { inner(isa, kernel) }
    }

    #[inline(always)]
    fn tile<K: TileKernel>(isa: On<Self>, kernel: K) {
        kernel.run::<On<Self>, 1, 8>(isa);
    }

    #[inline(always)]
    fn dot4<const WIDE: bool>(_: On<Self>, acc: int32x4_t, u: uint8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe { usdot(acc, vreinterpretq_s8_u8(u), a) }
    }

    #[inline(always)]
    fn group<const T: usize>(
        _: On<Self>,
        dot: &mut [Words; T],
        starts: Option<&[i32]>,
        rows: &[i32],
        tokens: &[i32],
        largest: u8,
    ) {
        const { assert!(T == 8) };
        let (rows, tokens) = (rows.as_chunks::<16>().0, tokens.as_chunks::<16>().0);
        unsafe {
            // `[token pairs, row pairs]`: two rows by two tokens each.
            let mut sum = [[vdupq_n_s32(0); 4]; 4];
            if let Some(starts) = starts {
                let starts = starts.as_chunks::<2>().0;
                for t in 0..4 {
                    let pair = vld1_s32(starts[t].as_ptr());
                    sum[t] = [vcombine_s32(pair, pair); 4];
                }
            }
            for q in 0..rows.len().min(tokens.len()) {
                let (rows, tokens) = (rows[q].as_chunks::<4>().0, tokens[q].as_chunks::<4>().0);
                for r in 0..4 {
                    let row = load(&rows[r]);
                    for t in 0..4 {
                        sum[t][r] = if largest > 127 {
                            mmla::<true>(sum[t][r], row, load(&tokens[t]))
                        } else {
                            mmla::<false>(sum[t][r], row, load(&tokens[t]))
                        };
                    }
                }
            }
            for t in 0..4 {
                for h in 0..2 {
                    let (even, odd) = (sum[t][2 * h], sum[t][2 * h + 1]);
                    dot[2 * t][h] = vuzp1q_s32(even, odd);
                    dot[2 * t + 1][h] = vuzp2q_s32(even, odd);
                }
            }
        }
    }
}
