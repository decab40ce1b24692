//! NEON: pairs of 128-bit vectors. Three levels share everything but their byte products.
//!
//! Safety, for every `unsafe` in this file: an [`On`] exists only if `new()` found the features that
//! the intrinsics need, and loads and stores go through references or bounds-checked slices.

mod products;

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::{
    Isa, Kernel, MAX_ROWS, NoDotBf16, NoEights, NoTiles, OfRows, TileKernel, WideFloats, checked, checked_mut,
};
use products::{Products, Words};

/// Proof that the machine has NEON and what `P` needs.
#[derive(Clone, Copy, Debug)]
pub struct On<P>(PhantomData<P>);

/// Plain NEON.
pub type Neon = On<products::Widening>;

/// NEON with `dotprod`.
pub type NeonDot = On<products::DotProduct>;

/// NEON with `dotprod` and `i8mm`.
pub type NeonI8mm = On<products::MatrixProduct>;

impl<P: Products> On<P> {
    /// The token, if the machine has the features.
    pub fn new() -> Option<Self> {
        P::detected().then_some(Self(PhantomData))
    }
}

/// Thirty-two bytes.
type Bytes = [uint8x16_t; 2];

/// Eight floats.
type Floats = [float32x4_t; 2];

/// An intrinsic on both halves of the arguments.
macro_rules! both {
    ($intrinsic:ident($($argument:expr),+)) => {
        [$intrinsic($($argument[0]),+), $intrinsic($($argument[1]),+)]
    };
}

// (After the macro, which it uses.)
mod floats;

/// Hides from the compiler where `v` comes from. It would otherwise spread single lanes before it widens them, which takes
/// two instructions for each instead of none.
#[inline(always)]
fn opaque(mut v: int32x4_t) -> int32x4_t {
    // Sound: no instruction at all.
    unsafe { asm!("/* {0:v} */", inout(vreg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// Widens half-precision numbers, from their bits.
#[inline(always)]
fn from_halves(bits: uint16x4_t) -> float32x4_t {
    let to;
    // Sound: registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) to, in(vreg) bits, options(pure, nomem, nostack, preserves_flags));
    }
    to
}

/// Rounds to half precision, ties to even.
#[inline(always)]
fn to_halves(v: float32x4_t) -> uint16x4_t {
    let bits;
    // Sound: registers only.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) bits, in(vreg) v, options(pure, nomem, nostack, preserves_flags));
    }
    bits
}

/// Pairs of neighbouring products, the low lanes of `a` and `b` before the high ones.
#[inline(always)]
fn dot2(a: int16x8_t, b: int16x8_t) -> int32x4_t {
    unsafe { vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)) }
}

/// Lane `i` of the result is the sum of the lanes of `v[i]`.
#[inline(always)]
fn sums4(a: int32x4_t, b: int32x4_t, c: int32x4_t, d: int32x4_t) -> int32x4_t {
    unsafe { vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)) }
}

impl<P: Products> Isa for On<P> {
    const NAME: &'static str = P::NAME;
    const ROWS: usize = 1;
    const TILE: (usize, usize) = (1, P::TOKENS);
    const LARGEST_FOLDED: u8 = P::LARGEST_FOLDED;
    const WORDS: usize = P::WORDS;
    type B = Bytes;
    type N = Words;
    type G = Floats;
    type W = Words;
    type DotBf16 = NoDotBf16;
    type Eights = NoEights;
    type Tiles = NoTiles;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        P::vectorize(self, kernel)
    }

    #[inline(always)]
    fn tile<K: TileKernel>(self, kernel: K) {
        P::tile(self, kernel);
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // Sound: a prefetch of an address that is not mapped does nothing.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    fn b_load(self, from: OfRows<&[u8; 32]>) -> Bytes {
        let from = from[0].as_ptr();
        unsafe { [vld1q_u8(from), vld1q_u8(from.add(16))] }
    }
    #[inline(always)]
    fn b_all_i8(self, from: &[i8; 32]) -> Bytes {
        let from = from.as_ptr().cast();
        unsafe { [vld1q_u8(from), vld1q_u8(from.add(16))] }
    }
    #[inline(always)]
    fn b_from_w(self, v: Words) -> Bytes {
        unsafe { [vreinterpretq_u8_s32(v[0]), vreinterpretq_u8_s32(v[1])] }
    }
    #[inline(always)]
    fn w_from_b(self, v: Bytes) -> Words {
        unsafe { [vreinterpretq_s32_u8(v[0]), vreinterpretq_s32_u8(v[1])] }
    }
    #[inline(always)]
    fn b_all_i16(self, from: &[i16; 16]) -> Bytes {
        let from = from.as_ptr().cast();
        unsafe { [vld1q_u8(from), vld1q_u8(from.add(16))] }
    }
    #[inline(always)]
    fn b_store(self, v: Bytes, to: &mut [u8], _stride: usize) {
        let to = checked_mut::<32, _>(to);
        unsafe {
            vst1q_u8(to, v[0]);
            vst1q_u8(to.add(16), v[1]);
        }
    }
    #[inline(always)]
    fn b_nibbles(self, from: OfRows<&[u8; 16]>) -> Bytes {
        unsafe {
            let both = vld1q_u8(from[0].as_ptr());
            [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
        }
    }
    #[inline(always)]
    fn b_words(self, from: OfRows<[u64; 4]>) -> Bytes {
        let from = from[0].as_ptr();
        unsafe { [vreinterpretq_u8_u64(vld1q_u64(from)), vreinterpretq_u8_u64(vld1q_u64(from.add(2)))] }
    }
    #[inline(always)]
    fn b_to_words(self, v: Bytes) -> OfRows<[u64; 4]> {
        let words = unsafe {
            let (a, b) = (vreinterpretq_u64_u8(v[0]), vreinterpretq_u64_u8(v[1]));
            [vgetq_lane_u64::<0>(a), vgetq_lane_u64::<1>(a), vgetq_lane_u64::<0>(b), vgetq_lane_u64::<1>(b)]
        };
        [words; MAX_ROWS]
    }
    #[inline(always)]
    fn b_splat(self, x: u8) -> Bytes {
        unsafe { [vdupq_n_u8(x); 2] }
    }
    #[inline(always)]
    fn b_and(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { both!(vandq_u8(a, b)) }
    }
    #[inline(always)]
    fn b_or(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { both!(vorrq_u8(a, b)) }
    }
    #[inline(always)]
    fn b_xor(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { both!(veorq_u8(a, b)) }
    }
    #[inline(always)]
    fn b_add(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { both!(vaddq_u8(a, b)) }
    }
    #[inline(always)]
    fn b_at_least(self, v: Bytes, x: u8) -> Bytes {
        let x = self.b_splat(x);
        unsafe { both!(vcgeq_u8(v, x)) }
    }
    #[inline(always)]
    fn b_shr<const N: i32>(self, v: Bytes) -> Bytes {
        // Shifts by immediates exclude 0; the compiler makes one of this where it can.
        let by = unsafe { [vdupq_n_s8(-N as i8); 2] };
        unsafe { both!(vshlq_u8(v, by)) }
    }
    #[inline(always)]
    fn b_shl<const N: i32>(self, v: Bytes) -> Bytes {
        let by = unsafe { [vdupq_n_s8(N as i8); 2] };
        unsafe { both!(vshlq_u8(v, by)) }
    }
    #[inline(always)]
    fn b_lookup(self, table: &[u8; 16], v: Bytes) -> Bytes {
        let table = unsafe { [vld1q_u8(table.as_ptr()); 2] };
        unsafe { both!(vqtbl1q_u8(table, v)) }
    }
    #[inline(always)]
    fn b_scaled<const SHIFT: i32>(
        self,
        quants: &[i16; 8],
        offset: i16,
        v: Bytes,
        scales: Bytes,
        pair: usize,
    ) -> Bytes {
        unsafe {
            let quants = vld1q_s16(quants.as_ptr());
            let scales = vreinterpretq_s16_u8(scales[pair / 4]);
            // Each 16 columns have a scale of their own, and a table with it.
            let (first, second) = match pair % 4 {
                0 => (vmulq_laneq_s16::<0>(quants, scales), vmulq_laneq_s16::<1>(quants, scales)),
                1 => (vmulq_laneq_s16::<2>(quants, scales), vmulq_laneq_s16::<3>(quants, scales)),
                2 => (vmulq_laneq_s16::<4>(quants, scales), vmulq_laneq_s16::<5>(quants, scales)),
                _ => (vmulq_laneq_s16::<6>(quants, scales), vmulq_laneq_s16::<7>(quants, scales)),
            };
            let (offset, by) = (vdupq_n_s16(offset), vdupq_n_s16(-SHIFT as i16));
            let first = vshlq_s16(vaddq_s16(first, offset), by);
            let second = vshlq_s16(vaddq_s16(second, offset), by);
            let products = [vreinterpretq_u8_s16(first), vreinterpretq_u8_s16(second)];
            let at = self.b_add(v, v);
            both!(vqtbl1q_u8(products, at))
        }
    }
    #[inline(always)]
    fn b_from_bits(self, bits: OfRows<u32>) -> Bytes {
        const BIT: u64 = 0x8040_2010_0804_0201;
        const ONES: u64 = 0x0101_0101_0101_0101;
        unsafe {
            let bits = [vreinterpretq_u8_u32(vdupq_n_u32(bits[0])); 2];
            let which = [
                vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(0), vcreate_u64(ONES))),
                vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(2 * ONES), vcreate_u64(3 * ONES))),
            ];
            let spread = both!(vqtbl1q_u8(bits, which));
            let bit = [vreinterpretq_u8_u64(vdupq_n_u64(BIT)); 2];
            both!(vtstq_u8(spread, bit))
        }
    }
    #[inline(always)]
    fn b_fields<const N: usize>(self, words: OfRows<u64>) -> Bytes {
        const FIRST: u64 = 0x0100_0100_0100_0100;
        const WORD: u64 = 0x0202_0202_0202_0202;
        unsafe {
            let all = [vreinterpretq_u8_u64(vdupq_n_u64(words[0])); 2];
            let which = [
                vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(FIRST), vcreate_u64(FIRST + WORD))),
                vreinterpretq_u8_u64(vcombine_u64(
                    vcreate_u64(FIRST + 2 * WORD),
                    vcreate_u64(FIRST + 3 * WORD),
                )),
            ];
            let mut fields = both!(vqtbl1q_u8(all, which));
            let counts = [0, -(N as i16), -2 * N as i16, -3 * N as i16];
            let counts = vcombine_s16(vld1_s16(counts.as_ptr()), vld1_s16(counts.as_ptr()));
            for half in &mut fields {
                let shifted = vshlq_u16(vreinterpretq_u16_u8(*half), counts);
                *half = vreinterpretq_u8_u16(vshlq_n_u16::<8>(shifted));
            }
            fields
        }
    }
    #[inline(always)]
    fn b_bits_i16<const N: usize>(self, bits: OfRows<u32>) -> Bytes {
        // Four words at a time, as fields of their own.
        let mut words = 0;
        for k in 0..4 {
            words |= u64::from(bits[0] >> (4 * N * k) & 0xffff) << (16 * k);
        }
        let fields = self.b_fields::<N>([words; MAX_ROWS]);
        self.b_and(fields, self.b_all_i16(&[((1 << N) - 1) << 8; 16]))
    }
    #[inline(always)]
    fn b_sevens(self, mut v: Bytes) -> Bytes {
        for half in &mut v {
            unsafe {
                let words = vreinterpretq_u32_u8(*half);
                let first = vandq_u32(words, vdupq_n_u32(0x7f));
                let second = vandq_u32(vshlq_n_u32::<1>(words), vdupq_n_u32(0x7f00));
                let third = vandq_u32(vshlq_n_u32::<2>(words), vdupq_n_u32(0x7f_0000));
                let fourth = vandq_u32(vshlq_n_u32::<3>(words), vdupq_n_u32(0x7f00_0000));
                *half = vreinterpretq_u8_u32(vorrq_u32(vorrq_u32(first, second), vorrq_u32(third, fourth)));
            }
        }
        v
    }
    #[inline(always)]
    fn b_tops_twice(self, mut v: Bytes) -> Bytes {
        for half in &mut v {
            unsafe {
                let tops = vshrq_n_u32::<28>(vreinterpretq_u32_u8(*half));
                *half = vreinterpretq_u8_u32(vsliq_n_u32::<16>(tops, tops));
            }
        }
        v
    }
    #[inline(always)]
    fn b_high_bytes(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { [vuzp2q_u8(a[0], a[1]), vuzp2q_u8(b[0], b[1])] }
    }
    #[inline(always)]
    fn b_widen_u8(self, from: OfRows<&[u8; 16]>) -> Bytes {
        unsafe {
            let v = vld1q_u8(from[0].as_ptr());
            let words = [vmovl_u8(vget_low_u8(v)), vmovl_high_u8(v)];
            both!(vreinterpretq_u8_u16(words))
        }
    }
    #[inline(always)]
    fn b_widen_i8(self, from: OfRows<&[u8; 16]>) -> Bytes {
        unsafe {
            let v = vld1q_s8(from[0].as_ptr().cast());
            let words = [vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v)];
            both!(vreinterpretq_u8_s16(words))
        }
    }
    #[inline(always)]
    fn b_widen_words(self, from: OfRows<[u64; 2]>) -> Bytes {
        let [low, high] = from[0];
        let words = unsafe { [vmovl_u8(vcreate_u8(low)), vmovl_u8(vcreate_u8(high))] };
        unsafe { both!(vreinterpretq_u8_u16(words)) }
    }
    #[inline(always)]
    fn b_add_i16(self, a: Bytes, b: Bytes) -> Bytes {
        let (a, b) = unsafe { (both!(vreinterpretq_s16_u8(a)), both!(vreinterpretq_s16_u8(b))) };
        let sums = unsafe { both!(vaddq_s16(a, b)) };
        unsafe { both!(vreinterpretq_u8_s16(sums)) }
    }
    #[inline(always)]
    fn b_widen_twice(self, from: OfRows<u64>) -> Bytes {
        unsafe {
            let bytes = vcombine_u8(vcreate_u8(from[0]), vcreate_u8(0));
            let twice = vzip1q_u8(bytes, bytes);
            let words = [vmovl_u8(vget_low_u8(twice)), vmovl_high_u8(twice)];
            both!(vreinterpretq_u8_u16(words))
        }
    }
    #[inline(always)]
    fn n_spread_i16(self, v: Bytes, pair: usize) -> Words {
        unsafe {
            let v = vreinterpretq_s16_u8(if pair < 4 { v[0] } else { v[1] });
            let v = opaque(if pair % 4 < 2 { vmovl_s16(vget_low_s16(v)) } else { vmovl_high_s16(v) });
            if pair.is_multiple_of(2) {
                [vdupq_laneq_s32::<0>(v), vdupq_laneq_s32::<1>(v)]
            } else {
                [vdupq_laneq_s32::<2>(v), vdupq_laneq_s32::<3>(v)]
            }
        }
    }

    #[inline(always)]
    fn n_zero(self) -> Words {
        self.n_splat(0)
    }
    #[inline(always)]
    fn n_add(self, a: Words, b: Words) -> Words {
        unsafe { both!(vaddq_s32(a, b)) }
    }
    #[inline(always)]
    fn n_sub(self, a: Words, b: Words) -> Words {
        unsafe { both!(vsubq_s32(a, b)) }
    }
    #[inline(always)]
    fn n_mul(self, a: Words, b: Words) -> Words {
        unsafe { both!(vmulq_s32(a, b)) }
    }
    #[inline(always)]
    fn n_splat(self, x: i32) -> Words {
        unsafe { [vdupq_n_s32(x); 2] }
    }
    #[inline(always)]
    fn n_store(self, v: Words, to: &mut [i32]) {
        let to = checked_mut::<8, _>(to);
        unsafe {
            vst1q_s32(to, v[0]);
            vst1q_s32(to.add(4), v[1]);
        }
    }
    #[inline(always)]
    fn n_dot4<const WIDE: bool>(self, acc: Words, u: Bytes, a: Bytes) -> Words {
        let a = unsafe { both!(vreinterpretq_s8_u8(a)) };
        [P::dot4::<WIDE>(self, acc[0], u[0], a[0]), P::dot4::<WIDE>(self, acc[1], u[1], a[1])]
    }
    #[inline(always)]
    fn n_dot4_scaled(self, acc: Words, u: Bytes, a: Bytes, scales: Bytes, pair: usize) -> Words {
        let (dot, scale) = (self.n_dot4::<false>(self.n_zero(), u, a), self.n_spread_i16(scales, pair));
        unsafe { both!(vmlaq_s32(acc, dot, scale)) }
    }
    #[inline(always)]
    fn n_dot2_i16(self, acc: Words, a: Bytes, b: Bytes) -> Words {
        let (a, b) = (unsafe { both!(vreinterpretq_s16_u8(a)) }, unsafe { both!(vreinterpretq_s16_u8(b)) });
        self.n_add(acc, [dot2(a[0], b[0]), dot2(a[1], b[1])])
    }
    #[inline(always)]
    fn n_sums8(self, v: [Words; 8]) -> Words {
        let mut sum = [v[0][0]; 8];
        for i in 0..8 {
            sum[i] = unsafe { vaddq_s32(v[i][0], v[i][1]) };
        }
        [sums4(sum[0], sum[1], sum[2], sum[3]), sums4(sum[4], sum[5], sum[6], sum[7])]
    }
    #[inline(always)]
    fn n_half_sums4(self, v: [Words; 4]) -> Words {
        let [a, b, c, d] = v;
        [sums4(a[0], b[0], c[0], d[0]), sums4(a[1], b[1], c[1], d[1])]
    }

    #[inline(always)]
    fn g_zero(self) -> Floats {
        self.f_splat(0.0)
    }
    #[inline(always)]
    fn g_load(self, from: &[f32]) -> Floats {
        self.f_load(from)
    }
    #[inline(always)]
    fn g_all(self, from: &[f32; 8]) -> Floats {
        self.f_load(from)
    }
    #[inline(always)]
    fn g_store(self, v: Floats, to: &mut [f32]) {
        self.f_store(v, to);
    }
    #[inline(always)]
    fn g_from_halves(self, bits: &[u16; 8 * MAX_ROWS]) -> Floats {
        self.f_load_f16(bits)
    }
    #[inline(always)]
    fn g_from_halves_twice(self, bits: OfRows<u64>) -> Floats {
        [from_halves(unsafe { vcreate_u16(bits[0]) }); 2]
    }
    #[inline(always)]
    fn g_splat(self, x: f32) -> Floats {
        self.f_splat(x)
    }
    #[inline(always)]
    fn g_pair(self, [a, b]: [f32; 2]) -> Floats {
        unsafe { [vdupq_n_f32(a), vdupq_n_f32(b)] }
    }
    #[inline(always)]
    fn g_from_n(self, v: Words) -> Floats {
        self.f_from_w(v)
    }
    #[inline(always)]
    fn g_mul(self, a: Floats, b: Floats) -> Floats {
        self.f_mul(a, b)
    }
    #[inline(always)]
    fn g_fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        self.f_fma(a, b, c)
    }
    #[inline(always)]
    fn g_fnma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        self.f_fnma(a, b, c)
    }

    #[inline(always)]
    fn w_splat(self, x: i32) -> Words {
        self.n_splat(x)
    }
    #[inline(always)]
    fn w_load(self, from: &[i32]) -> Words {
        let from = checked::<8, _>(from);
        unsafe { [vld1q_s32(from), vld1q_s32(from.add(4))] }
    }
    #[inline(always)]
    fn w_load_i8(self, from: &[i8]) -> Words {
        unsafe {
            let words = vmovl_s8(vld1_s8(checked::<8, _>(from)));
            [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)]
        }
    }
    #[inline(always)]
    fn w_store(self, v: Words, to: &mut [i32]) {
        self.n_store(v, to);
    }
    #[inline(always)]
    fn w_store_i8(self, v: Words, to: &mut [i8]) {
        unsafe {
            let words = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
            vst1_s8(checked_mut::<8, _>(to), vmovn_s16(words));
        }
    }
    #[inline(always)]
    fn w_add(self, a: Words, b: Words) -> Words {
        self.n_add(a, b)
    }
    #[inline(always)]
    fn w_mul(self, a: Words, b: Words) -> Words {
        self.n_mul(a, b)
    }
    #[inline(always)]
    fn w_dot4<const WIDE: bool>(self, acc: Words, u: Words, a: Words) -> Words {
        let (u, a) = (unsafe { both!(vreinterpretq_u8_s32(u)) }, unsafe { both!(vreinterpretq_u8_s32(a)) });
        self.n_dot4::<WIDE>(acc, u, a)
    }
    #[inline(always)]
    fn w_group_tile<const R: usize, const T: usize>(
        self,
        sum: &mut [[Words; R]; T],
        rows: &[i32],
        tokens: &[i32],
        starts: Option<&[i32]>,
        scales: Option<&[i32]>,
        largest: u8,
    ) {
        const { assert!(R == 1 && T == P::TOKENS) };
        let mut dot = [self.w_splat(0); T];
        P::group(self, &mut dot, starts, rows, tokens, largest);
        let scale = match scales {
            Some(scales) => Some(self.w_load(scales)),
            None => None,
        };
        for t in 0..T {
            let (dot, before) = (dot[t], sum[t][0]);
            sum[t][0] = match scale {
                Some(scale) => unsafe { both!(vmlaq_s32(before, dot, scale)) },
                None => self.w_add(before, dot),
            };
        }
    }
    #[inline(always)]
    fn w_dot2_i16(self, acc: Words, a: Words, b: Words) -> Words {
        unsafe {
            let (a, b) = (both!(vreinterpretq_s16_s32(a)), both!(vreinterpretq_s16_s32(b)));
            // First halves apart from second ones: that of `a` is done once where `b` alone varies.
            let (a0, a1) = (vuzp1q_s16(a[0], a[1]), vuzp2q_s16(a[0], a[1]));
            let (b0, b1) = (vuzp1q_s16(b[0], b[1]), vuzp2q_s16(b[0], b[1]));
            let low = vmlal_s16(acc[0], vget_low_s16(a0), vget_low_s16(b0));
            let high = vmlal_high_s16(acc[1], a0, b0);
            [vmlal_s16(low, vget_low_s16(a1), vget_low_s16(b1)), vmlal_high_s16(high, a1, b1)]
        }
    }
    #[inline(always)]
    fn w_dot2_pair<const V: usize>(self, sum: &mut [Words; V], lanes: &[Words; V], pair: &i32) {
        unsafe {
            let (first, second) = (vdupq_n_s16(*pair as i16), vdupq_n_s16((*pair >> 16) as i16));
            for v in 0..V {
                let lanes = both!(vreinterpretq_s16_s32(lanes[v]));
                let (a, b) = (vuzp1q_s16(lanes[0], lanes[1]), vuzp2q_s16(lanes[0], lanes[1]));
                let low = vmlal_s16(sum[v][0], vget_low_s16(a), vget_low_s16(first));
                let high = vmlal_high_s16(sum[v][1], a, first);
                let low = vmlal_s16(low, vget_low_s16(b), vget_low_s16(second));
                sum[v] = [low, vmlal_high_s16(high, b, second)];
            }
        }
    }
    #[inline(always)]
    fn w_store_i16(self, v: [Words; 2], to: &mut [i32]) {
        let to = checked_mut::<8, _>(to);
        for i in 0..2 {
            unsafe { vst1q_s16(to.add(4 * i).cast(), vmovn_high_s32(vmovn_s32(v[i][0]), v[i][1])) }
        }
    }
    #[inline(always)]
    fn w_transpose(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize) {
        assert!(from.len() >= 4 * (7 * from_stride + 8) && to.len() >= 7 * to_stride + 8);
        for i in 0..4 {
            // Four by four words: rows 4 r.., columns 4 c.. .
            let (r, c) = (i / 2, i % 2);
            unsafe {
                let from = from.as_ptr().add(16 * (r * from_stride + c));
                let to = to.as_mut_ptr().add(4 * (c * to_stride + r));
                transpose4(from, 4 * from_stride, to, to_stride);
            }
        }
    }
    #[inline(always)]
    fn w_transpose_units(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize) {
        if P::WORDS == 1 {
            return self.w_transpose(from, from_stride, to, to_stride);
        }
        assert!(from.len() >= 4 * (7 * from_stride + 8) && to.len() >= 3 * to_stride + 16);
        for r in (0..8).step_by(2) {
            unsafe {
                let from = from.as_ptr().add(4 * r * from_stride);
                let to = to.as_mut_ptr().add(2 * r);
                for half in 0..2 {
                    let a = vreinterpretq_s64_u8(vld1q_u8(from.add(16 * half)));
                    let b = vreinterpretq_s64_u8(vld1q_u8(from.add(4 * from_stride + 16 * half)));
                    let to = to.add(2 * half * to_stride);
                    vst1q_s32(to, vreinterpretq_s32_s64(vzip1q_s64(a, b)));
                    vst1q_s32(to.add(to_stride), vreinterpretq_s32_s64(vzip2q_s64(a, b)));
                }
            }
        }
    }

    #[inline(always)]
    fn f_low_bf16(self, v: Words) -> Floats {
        let words = unsafe { [vshlq_n_s32::<16>(v[0]), vshlq_n_s32::<16>(v[1])] };
        unsafe { both!(vreinterpretq_f32_s32(words)) }
    }
    #[inline(always)]
    fn f_high_bf16(self, v: Words) -> Floats {
        let mask = unsafe { vdupq_n_s32(-0x1_0000) };
        let high = unsafe { [vandq_s32(v[0], mask), vandq_s32(v[1], mask)] };
        unsafe { both!(vreinterpretq_f32_s32(high)) }
    }
    #[inline(always)]
    fn f_round_bf16(self, v: Floats) -> Floats {
        unsafe {
            let bits = both!(vreinterpretq_s32_f32(v));
            let one = vdupq_n_s32(1);
            let odd =
                [vandq_s32(vshrq_n_s32::<16>(bits[0]), one), vandq_s32(vshrq_n_s32::<16>(bits[1]), one)];
            self.f_high_bf16(self.n_add(self.n_add(bits, self.n_splat(0x7fff)), odd))
        }
    }
    #[inline(always)]
    fn f_store_bf16(self, v: Floats, to: &mut [i32]) {
        let to = checked_mut::<4, _>(to);
        unsafe {
            let bits = both!(vreinterpretq_u32_f32(v));
            vst1q_u16(to.cast(), vshrn_high_n_u32::<16>(vshrn_n_u32::<16>(bits[0]), bits[1]));
        }
    }
    #[inline(always)]
    fn f_from_w(self, v: Words) -> Floats {
        unsafe { both!(vcvtq_f32_s32(v)) }
    }
    #[inline(always)]
    fn f_to_w(self, a: Floats) -> Words {
        unsafe { both!(vcvtnq_s32_f32(a)) }
    }
}

/// Turns four by four words; rows of `from` are `from_bytes` apart, those of `to` `to_stride` words.
///
/// # Safety
/// All four rows of both must be there.
#[inline(always)]
unsafe fn transpose4(from: *const u8, from_bytes: usize, to: *mut i32, to_stride: usize) {
    unsafe {
        let row = [
            vld1q_u8(from),
            vld1q_u8(from.add(from_bytes)),
            vld1q_u8(from.add(2 * from_bytes)),
            vld1q_u8(from.add(3 * from_bytes)),
        ];
        let (a, b) = (vreinterpretq_s32_u8(row[0]), vreinterpretq_s32_u8(row[1]));
        let (c, d) = (vreinterpretq_s32_u8(row[2]), vreinterpretq_s32_u8(row[3]));
        // Columns 0 and 2, then 1 and 3, of two rows each.
        let (even_ab, odd_ab) =
            (vreinterpretq_s64_s32(vtrn1q_s32(a, b)), vreinterpretq_s64_s32(vtrn2q_s32(a, b)));
        let (even_cd, odd_cd) =
            (vreinterpretq_s64_s32(vtrn1q_s32(c, d)), vreinterpretq_s64_s32(vtrn2q_s32(c, d)));
        vst1q_s32(to, vreinterpretq_s32_s64(vtrn1q_s64(even_ab, even_cd)));
        vst1q_s32(to.add(to_stride), vreinterpretq_s32_s64(vtrn1q_s64(odd_ab, odd_cd)));
        vst1q_s32(to.add(2 * to_stride), vreinterpretq_s32_s64(vtrn2q_s64(even_ab, even_cd)));
        vst1q_s32(to.add(3 * to_stride), vreinterpretq_s32_s64(vtrn2q_s64(odd_ab, odd_cd)));
    }
}
