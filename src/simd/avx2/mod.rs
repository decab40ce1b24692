//! AVX2 with FMA and F16C: 256-bit vectors, int8 products through `vpmaddubsw`, or `vpdpbusd` where AVX-VNNI has it.
//!
//! Safety, for every `unsafe` in this file: an [`Avx2With`] exists only if `new()` found the features that
//! the intrinsics need, and loads and stores go through references or bounds-checked slices.

mod floats;

use std::arch::x86_64::*;

use super::pairs::{Pairs, group_of_pairs};
use super::span::{group_of_words, span_of_dots, span_of_words};
use super::{
    Isa, Kernel, MAX_LANES, MAX_ROWS, NoDotBf16, NoEights, NoTiles, OfRows, SpanTile, TileKernel, checked,
    checked_mut,
};

/// Proof that the machine has AVX2, FMA and F16C, and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy, Debug)]
pub struct Avx2With<const VNNI: bool>(());

pub type Avx2 = Avx2With<false>;
pub type AvxVnni = Avx2With<true>;

impl<const VNNI: bool> Avx2With<VNNI> {
    /// The token, if the machine has the features.
    pub fn new() -> Option<Self> {
        ((!VNNI || is_x86_feature_detected!("avxvnni"))
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }
}

/// Word `c` of `rows[r]` goes to `to[c * to_stride + r]`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_eight(rows: [__m256i; 8], to: &mut [i32], to_stride: usize) {
    let mut pairs = rows;
    for i in 0..4 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i] = _mm256_unpacklo_epi32(a, b);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(a, b);
    }
    let mut quads = pairs;
    for i in 0..2 {
        let p = &pairs[4 * i..4 * i + 4];
        quads[4 * i] = _mm256_unpacklo_epi64(p[0], p[2]);
        quads[4 * i + 1] = _mm256_unpackhi_epi64(p[0], p[2]);
        quads[4 * i + 2] = _mm256_unpacklo_epi64(p[1], p[3]);
        quads[4 * i + 3] = _mm256_unpackhi_epi64(p[1], p[3]);
    }
    for i in 0..4 {
        let (a, b) = (quads[i], quads[i + 4]);
        store(_mm256_permute2x128_si256::<0x20>(a, b), &mut to[i * to_stride..]);
        store(_mm256_permute2x128_si256::<0x31>(a, b), &mut to[(i + 4) * to_stride..]);
    }
}

/// Word `c` of the 128-bit part `p` of `rows[j]`, which is row `4 p + j`, goes to `to[c * to_stride + 4 p + j]`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_four(rows: [__m256i; 4], to: &mut [i32], to_stride: usize) {
    let [a, b, c, d] = rows;
    let (ab_low, cd_low) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    store(_mm256_unpacklo_epi64(ab_low, cd_low), to);
    store(_mm256_unpackhi_epi64(ab_low, cd_low), &mut to[to_stride..]);
    store(_mm256_unpacklo_epi64(ab_high, cd_high), &mut to[2 * to_stride..]);
    store(_mm256_unpackhi_epi64(ab_high, cd_high), &mut to[3 * to_stride..]);
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(v: __m256i, to: &mut [i32]) {
    // Sound: the slice is checked to have the eight words.
    unsafe { _mm256_storeu_si256(checked_mut::<8, _>(to).cast(), v) }
}

/// Hides from the compiler where `v` comes from. It would otherwise see that the lanes spread from a
/// widened vector are single bytes and fetch each of them on its own, at three instructions a piece.
#[inline]
#[target_feature(enable = "avx2")]
fn opaque(mut v: __m256i) -> __m256i {
    // Sound: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

impl<const VNNI: bool> Isa for Avx2With<VNNI> {
    const NAME: &'static str = if VNNI { "avxvnni" } else { "avx2" };
    const ROWS: usize = 1;
    const TILE: (usize, usize) = (2, 4);
    const BLOCKWISE: usize = 32;
    const FLOAT_SCALES: bool = VNNI;
    const LARGEST_FOLDED: u8 = if VNNI { 255 } else { 0 };
    type B = __m256i;
    type N = __m256i;
    type G = __m256;
    type W = __m256i;
    type DotBf16 = NoDotBf16;
    type Eights = NoEights;
    type Tiles = NoTiles;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
        fn plain<I: Isa, K: Kernel>(isa: I, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        #[target_feature(enable = "avxvnni,avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
        fn vnni<I: Isa, K: Kernel>(isa: I, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        // Sound: the token proves AVX2, FMA, F16C and, if so, AVX-VNNI, and every CPU with AVX2 has the bit instructions.
        unsafe { if VNNI { vnni(self, kernel) } else { plain(self, kernel) } }
    }

    #[inline(always)]
    fn tile<K: TileKernel>(self, kernel: K) {
        kernel.run::<Self, 2, 4>(self);
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // Sound: a prefetch of an address that is not mapped does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        // Sound: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    fn b_load(self, from: OfRows<&[u8; 32]>) -> Self::B {
        unsafe { _mm256_loadu_si256(from[0].as_ptr().cast()) }
    }
    #[inline(always)]
    fn b_all_i8(self, from: &[i8; 32]) -> Self::B {
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn b_from_w(self, v: Self::W) -> Self::B {
        v
    }
    #[inline(always)]
    fn w_from_b(self, v: Self::B) -> Self::W {
        v
    }
    #[inline(always)]
    fn b_all_i16(self, from: &[i16; 16]) -> Self::B {
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn b_store(self, v: Self::B, to: &mut [u8], _stride: usize) {
        unsafe { _mm256_storeu_si256(checked_mut::<32, _>(to).cast(), v) }
    }
    #[inline(always)]
    fn b_nibbles(self, from: OfRows<&[u8; 16]>) -> Self::B {
        unsafe {
            let low = _mm_loadu_si128(from[0].as_ptr().cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), _mm_srli_epi16::<4>(low));
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn b_words(self, from: OfRows<[u64; 4]>) -> Self::B {
        let [a, b, c, d] = from[0];
        unsafe { _mm256_setr_epi64x(a as i64, b as i64, c as i64, d as i64) }
    }
    #[inline(always)]
    fn b_to_words(self, v: Self::B) -> OfRows<[u64; 4]> {
        let words = unsafe {
            [
                _mm256_extract_epi64::<0>(v) as u64,
                _mm256_extract_epi64::<1>(v) as u64,
                _mm256_extract_epi64::<2>(v) as u64,
                _mm256_extract_epi64::<3>(v) as u64,
            ]
        };
        [words; MAX_ROWS]
    }
    #[inline(always)]
    fn b_splat(self, x: u8) -> Self::B {
        unsafe { _mm256_set1_epi8(x as i8) }
    }
    #[inline(always)]
    fn b_and(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn b_or(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn b_xor(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn b_add(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm256_add_epi8(a, b) }
    }
    #[inline(always)]
    fn b_at_least(self, v: Self::B, x: u8) -> Self::B {
        unsafe { _mm256_cmpeq_epi8(_mm256_max_epu8(v, _mm256_set1_epi8(x as i8)), v) }
    }
    #[inline(always)]
    fn b_shr<const N: i32>(self, v: Self::B) -> Self::B {
        unsafe {
            // There is no byte shift: shift words and clear what came from the neighbour.
            _mm256_and_si256(_mm256_srli_epi16::<N>(v), _mm256_set1_epi8((0xffu8 >> N) as i8))
        }
    }
    #[inline(always)]
    fn b_shl<const N: i32>(self, v: Self::B) -> Self::B {
        unsafe { _mm256_and_si256(_mm256_slli_epi16::<N>(v), _mm256_set1_epi8((0xffu8 << N) as i8)) }
    }
    #[inline(always)]
    fn b_lookup(self, table: &[u8; 16], v: Self::B) -> Self::B {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, v)
        }
    }
    #[inline(always)]
    fn b_scaled<const SHIFT: i32>(
        self,
        quants: &[i16; 8],
        offset: i16,
        v: Self::B,
        scales: Self::B,
        pair: usize,
    ) -> Self::B {
        unsafe {
            let quants = _mm256_broadcastsi128_si256(_mm_loadu_si128(quants.as_ptr().cast()));
            // Each 16 columns have a scale of their own, as each 128 bits do here: a table for them.
            let products = _mm256_mullo_epi16(self.spread_i16(scales, pair), quants);
            let sums = _mm256_add_epi16(products, _mm256_set1_epi16(offset));
            let table = _mm256_srl_epi16(sums, _mm_cvtsi32_si128(SHIFT));
            _mm256_shuffle_epi8(table, _mm256_add_epi8(v, v))
        }
    }
    #[inline(always)]
    fn b_from_bits(self, bits: OfRows<u32>) -> Self::B {
        unsafe {
            let which =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits[0] as i32), which);
            _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit)
        }
    }
    #[inline(always)]
    fn b_bits_i16<const N: usize>(self, bits: OfRows<u32>) -> Self::B {
        const { assert!(N == 1 || N == 2) };
        unsafe {
            // Each word gets the byte with its number in it, which a product then moves to bit 8 and above.
            const BYTE: i64 = 0x8001_8001_8001_8001_u64 as i64;
            const FIRST: i64 = BYTE ^ 0x0001_0001_0001_0001;
            const ONE: i64 = 0x0001_0001_0001_0001;
            let all = _mm256_set1_epi32(bits[0] as i32);
            let (which, powers) = if N == 1 {
                let (x, y) = (0x0020_0040_0080_0100, 0x0002_0004_0008_0010);
                (_mm256_setr_epi64x(FIRST, FIRST, BYTE, BYTE), _mm256_setr_epi64x(x, y, x, y))
            } else {
                let which = _mm256_setr_epi64x(FIRST, BYTE, FIRST + 2 * ONE, FIRST + 3 * ONE);
                (which, _mm256_set1_epi64x(0x0004_0010_0040_0100))
            };
            let moved = _mm256_mullo_epi16(_mm256_shuffle_epi8(all, which), powers);
            _mm256_and_si256(moved, _mm256_set1_epi16(((1 << N) - 1) << 8))
        }
    }
    #[inline(always)]
    fn b_fields<const N: usize>(self, words: OfRows<u64>) -> Self::B {
        const { assert!(3 * N < 16) };
        unsafe {
            let first = 0x0100_0100_0100_0100;
            let word = 0x0202_0202_0202_0202;
            let which = _mm256_setr_epi64x(first, first + word, first + 2 * word, first + 3 * word);
            let all = _mm256_shuffle_epi8(_mm256_set1_epi64x(words[0] as i64), which);
            // Shifts to the right by N, 2 N and 3 N are the upper halves of products.
            let powers =
                (1i64 << (16 - N)) << 16 | (1i64 << (16 - 2 * N)) << 32 | (1i64 << (16 - 3 * N)) << 48;
            let shifted = _mm256_mulhi_epu16(all, _mm256_set1_epi64x(powers));
            _mm256_slli_epi16::<8>(_mm256_blend_epi16::<0x11>(shifted, all))
        }
    }
    #[inline(always)]
    fn b_negate_all(self, mut v: [Self::B; 8], signs: Self::B) -> [Self::B; 8] {
        unsafe {
            // Each 128 bits get the bits of their columns in all vectors, two bytes of each.
            let halves = _mm256_setr_epi8(
                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, //
                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
            );
            let signs = _mm256_permute4x64_epi64::<0xd8>(_mm256_shuffle_epi8(signs, halves));
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            for s in 0..8 {
                let first = 0x0202_0202_0202_0202 * s as i64;
                let second = first + 0x0101_0101_0101_0101;
                let which = _mm256_setr_epi64x(first, second, first, second);
                let spread = _mm256_and_si256(_mm256_shuffle_epi8(signs, which), bit);
                let negative = _mm256_cmpeq_epi8(spread, bit);
                // -x is the complement of x less -1.
                v[s] = _mm256_sub_epi8(_mm256_xor_si256(v[s], negative), negative);
            }
            v
        }
    }
    #[inline(always)]
    fn b_sevens(self, v: Self::B) -> Self::B {
        unsafe {
            let shifted =
                [v, _mm256_slli_epi32::<1>(v), _mm256_slli_epi32::<2>(v), _mm256_slli_epi32::<3>(v)];
            let mut sevens = _mm256_and_si256(v, _mm256_set1_epi32(0x7f));
            for k in 1..4 {
                let at = _mm256_and_si256(shifted[k], _mm256_set1_epi32(0x7f << (8 * k)));
                sevens = _mm256_or_si256(sevens, at);
            }
            sevens
        }
    }
    #[inline(always)]
    fn b_tops_twice(self, v: Self::B) -> Self::B {
        unsafe {
            let tops = _mm256_srli_epi32::<28>(v);
            opaque(_mm256_or_si256(tops, _mm256_slli_epi32::<16>(tops)))
        }
    }
    #[inline(always)]
    fn b_high_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe {
            let packed = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            _mm256_permute4x64_epi64::<0xd8>(packed)
        }
    }
    #[inline(always)]
    fn b_widen_u8(self, from: OfRows<&[u8; 16]>) -> Self::B {
        unsafe { opaque(_mm256_cvtepu8_epi16(_mm_loadu_si128(from[0].as_ptr().cast()))) }
    }
    #[inline(always)]
    fn b_widen_i8(self, from: OfRows<&[u8; 16]>) -> Self::B {
        unsafe { opaque(_mm256_cvtepi8_epi16(_mm_loadu_si128(from[0].as_ptr().cast()))) }
    }
    #[inline(always)]
    fn b_widen_words(self, from: OfRows<[u64; 2]>) -> Self::B {
        unsafe { opaque(_mm256_cvtepu8_epi16(_mm_set_epi64x(from[0][1] as i64, from[0][0] as i64))) }
    }
    #[inline(always)]
    fn b_add_i16(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    fn b_widen_twice(self, from: OfRows<u64>) -> Self::B {
        unsafe {
            let bytes = _mm_cvtsi64_si128(from[0] as i64);
            opaque(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes)))
        }
    }
    #[inline(always)]
    fn n_zero(self) -> Self::N {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn n_add(self, a: Self::N, b: Self::N) -> Self::N {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn n_sub(self, a: Self::N, b: Self::N) -> Self::N {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn n_mul(self, a: Self::N, b: Self::N) -> Self::N {
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn n_splat(self, x: i32) -> Self::N {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn n_store(self, v: Self::N, to: &mut [i32]) {
        unsafe { _mm256_storeu_si256(checked_mut::<8, _>(to).cast(), v) }
    }
    #[inline(always)]
    fn n_sums8(self, v: [Self::N; 8]) -> Self::N {
        unsafe {
            let [a, b, c, d, e, f, g, h] = v;
            let abcd = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            let efgh = _mm256_hadd_epi32(_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
            // Each 128-bit half holds the sums of that half of the four vectors.
            _mm256_add_epi32(
                _mm256_permute2x128_si256::<0x20>(abcd, efgh),
                _mm256_permute2x128_si256::<0x31>(abcd, efgh),
            )
        }
    }
    #[inline(always)]
    fn n_half_sums4(self, v: [Self::N; 4]) -> Self::N {
        unsafe {
            let [a, b, c, d] = v;
            _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d))
        }
    }
    #[inline(always)]
    fn g_zero(self) -> Self::G {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    fn g_load(self, from: &[f32]) -> Self::G {
        unsafe { _mm256_loadu_ps(checked::<8, _>(from)) }
    }
    #[inline(always)]
    fn g_all(self, from: &[f32; 8]) -> Self::G {
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn g_store(self, v: Self::G, to: &mut [f32]) {
        unsafe { _mm256_storeu_ps(checked_mut::<8, _>(to), v) }
    }
    #[inline(always)]
    fn g_from_halves(self, bits: &[u16; 8 * MAX_ROWS]) -> Self::G {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast())) }
    }
    #[inline(always)]
    fn g_from_halves_twice(self, bits: OfRows<u64>) -> Self::G {
        unsafe { _mm256_cvtph_ps(_mm_set1_epi64x(bits[0] as i64)) }
    }
    #[inline(always)]
    fn g_splat(self, x: f32) -> Self::G {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn g_pair(self, [a, b]: [f32; 2]) -> Self::G {
        unsafe { _mm256_insertf128_ps::<1>(_mm256_set1_ps(a), _mm_set1_ps(b)) }
    }
    #[inline(always)]
    fn g_from_n(self, v: Self::N) -> Self::G {
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn g_mul(self, a: Self::G, b: Self::G) -> Self::G {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn g_fma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn g_fnma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn n_spread_i16(self, v: Self::B, pair: usize) -> Self::N {
        // A product of pairs with (1, 0) keeps one of two equal i16 and widens it.
        unsafe { _mm256_madd_epi16(self.spread_i16(v, pair), _mm256_set1_epi32(1)) }
    }
    #[inline(always)]
    fn n_dot4<const WIDE: bool>(self, acc: Self::N, u: Self::B, a: Self::B) -> Self::N {
        self.w_dot4::<WIDE>(acc, u, a)
    }
    #[inline(always)]
    fn n_dot4_scaled(self, acc: Self::N, u: Self::B, a: Self::B, scales: Self::B, pair: usize) -> Self::N {
        self.n_dot2_i16(acc, unsafe { _mm256_maddubs_epi16(u, a) }, self.spread_i16(scales, pair))
    }
    #[inline(always)]
    fn n_dot2_i16(self, acc: Self::N, a: Self::B, b: Self::B) -> Self::N {
        self.w_dot2_i16(acc, a, b)
    }

    #[inline(always)]
    fn w_splat(self, x: i32) -> Self::W {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn w_load(self, from: &[i32]) -> Self::W {
        unsafe { _mm256_loadu_si256(checked::<8, _>(from).cast()) }
    }
    #[inline(always)]
    fn w_load_i8(self, from: &[i8]) -> Self::W {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(checked::<8, _>(from).cast())) }
    }
    #[inline(always)]
    fn w_store(self, v: Self::W, to: &mut [i32]) {
        unsafe { _mm256_storeu_si256(checked_mut::<8, _>(to).cast(), v) }
    }
    #[inline(always)]
    fn w_store_i8(self, v: Self::W, to: &mut [i8]) {
        unsafe {
            let low = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
            );
            let bytes = _mm256_permutevar8x32_epi32(
                _mm256_shuffle_epi8(v, low),
                _mm256_setr_epi32(0, 4, 1, 1, 1, 1, 1, 1),
            );
            _mm_storel_epi64(checked_mut::<8, _>(to).cast(), _mm256_castsi256_si128(bytes));
        }
    }
    #[inline(always)]
    fn w_add(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn w_mul(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn w_dot4<const WIDE: bool>(self, acc: Self::W, u: Self::W, a: Self::W) -> Self::W {
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(acc, u, a);
            }
            if !WIDE {
                let pairs = _mm256_maddubs_epi16(u, a);
                return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            // A pair of full bytes would saturate i16: take bit 7 apart and weigh it afterwards.
            let low = _mm256_maddubs_epi16(_mm256_and_si256(u, _mm256_set1_epi8(0x7f)), a);
            let top = _mm256_and_si256(_mm256_srli_epi16::<7>(u), _mm256_set1_epi8(1));
            let high = _mm256_maddubs_epi16(top, a);
            let low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(128));
            _mm256_add_epi32(acc, _mm256_add_epi32(low, high))
        }
    }
    #[inline(always)]
    fn w_group_tile<const R: usize, const T: usize>(
        self,
        sum: &mut [[Self::W; R]; T],
        rows: &[i32],
        tokens: &[i32],
        starts: Option<&[i32]>,
        scales: Option<&[i32]>,
        largest: u8,
    ) {
        if VNNI {
            group_of_words(self, sum, rows, tokens, starts, scales, largest);
        } else {
            group_of_pairs(self, sum, rows, tokens, starts, scales, largest);
        }
    }
    #[inline(always)]
    fn f_span_tile<const R: usize, const T: usize>(self, sum: &mut [[Self::F; R]; T], span: &SpanTile) {
        if VNNI {
            span_of_dots(self, sum, span);
        } else {
            span_of_words(self, sum, span);
        }
    }
    #[inline(always)]
    fn w_dot2_i16(self, acc: Self::W, a: Self::W, b: Self::W) -> Self::W {
        unsafe {
            if VNNI {
                _mm256_dpwssd_avx_epi32(acc, a, b)
            } else {
                _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
            }
        }
    }
    #[inline(always)]
    fn w_store_i16(self, v: [Self::W; 2], to: &mut [i32]) {
        unsafe {
            // Halves of the one and the other by turns: evens first, then odds.
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            _mm256_storeu_si256(checked_mut::<8, _>(to).cast(), both);
        }
    }
    #[inline(always)]
    fn w_transpose(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize) {
        assert!(from.len() >= 4 * (7 * from_stride + 8));
        let mut rows = [self.w_splat(0); 8];
        for r in 0..8 {
            rows[r] = unsafe { _mm256_loadu_si256(from.as_ptr().add(4 * r * from_stride).cast()) };
        }
        unsafe { transpose_eight(rows, to, to_stride) }
    }
    #[inline(always)]
    fn w_transpose_rows(self, from: &[&[u8]; MAX_LANES], at: usize, to: &mut [i32], to_stride: usize) {
        let mut rows = [self.w_splat(0); 8];
        for r in 0..8 {
            rows[r] = unsafe { _mm256_loadu_si256(checked::<32, _>(&from[r][at..]).cast()) };
        }
        unsafe { transpose_eight(rows, to, to_stride) }
    }
    #[inline(always)]
    fn w_transpose_four(self, from: &[&[u8]; MAX_LANES], at: usize, to: &mut [i32], to_stride: usize) {
        // 128-bit part p of four[j] is row 4p + j.
        let mut four = [self.w_splat(0); 4];
        for j in 0..4 {
            unsafe {
                let low = _mm_loadu_si128(checked::<16, _>(&from[j][at..]).cast());
                let high = _mm_loadu_si128(checked::<16, _>(&from[4 + j][at..]).cast());
                four[j] = _mm256_set_m128i(high, low);
            }
        }
        unsafe { transpose_four(four, to, to_stride) }
    }

    #[inline(always)]
    fn f_low_bf16(self, v: Self::W) -> Self::F {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)) }
    }
    #[inline(always)]
    fn f_high_bf16(self, v: Self::W) -> Self::F {
        unsafe { _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    fn f_round_bf16(self, v: Self::F) -> Self::F {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            self.f_high_bf16(rounded)
        }
    }
    #[inline(always)]
    fn f_store_bf16(self, v: Self::F, to: &mut [i32]) {
        unsafe {
            let halves = _mm256_srli_epi32::<16>(_mm256_castps_si256(v));
            let both = _mm256_permute4x64_epi64::<0x08>(_mm256_packus_epi32(halves, halves));
            _mm_storeu_si128(checked_mut::<4, _>(to).cast(), _mm256_castsi256_si128(both));
        }
    }
    #[inline(always)]
    fn f_from_w(self, v: Self::W) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn f_to_w(self, a: Self::F) -> Self::W {
        unsafe { _mm256_cvtps_epi32(a) }
    }
}

/// The sum of all lanes, as lane pairs 4, 2, 1 apart are added.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn sum8(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The largest lane.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn largest8(v: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

impl<const VNNI: bool> Pairs for Avx2With<VNNI> {
    #[inline(always)]
    fn w_pairs(self, u: Self::W, a: Self::W) -> Self::W {
        unsafe { _mm256_maddubs_epi16(u, a) }
    }
    #[inline(always)]
    fn w_add_i16(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    fn w_twice_i16(self, v: Self::W) -> Self::W {
        unsafe { _mm256_blend_epi16::<0xaa>(v, _mm256_slli_epi32::<16>(v)) }
    }
    #[inline(always)]
    fn w_distance(self, u: Self::W) -> Self::W {
        unsafe { _mm256_abs_epi8(_mm256_xor_si256(u, _mm256_set1_epi8(-128))) }
    }
    #[inline(always)]
    fn w_signed(self, u: Self::W, a: Self::W) -> Self::W {
        unsafe { _mm256_sign_epi8(a, _mm256_xor_si256(u, _mm256_set1_epi8(-128))) }
    }
}

impl<const VNNI: bool> Avx2With<VNNI> {
    /// i16 lanes 0..8 all hold lane `2 * pair` of `v`, lanes 8..16 lane `2 * pair + 1`.
    #[inline(always)]
    fn spread_i16(self, v: __m256i, pair: usize) -> __m256i {
        unsafe {
            let half = if pair < 4 {
                _mm256_permute2x128_si256::<0x00>(v, v)
            } else {
                _mm256_permute2x128_si256::<0x11>(v, v)
            };
            let low = (4 * (pair % 4)) as i16;
            let (a, b) = (low | (low + 1) << 8, (low + 2) | (low + 3) << 8);
            _mm256_shuffle_epi8(half, _mm256_setr_epi16(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b))
        }
    }
}
