//! AVX-512: 512-bit wide vectors, dot products by `vpdpbusd` where there is VNNI.
//!
//! Safety, for every `unsafe` in this file: an [`Avx512With`] exists only if `new()` found the features that
//! the intrinsics need, and loads and stores go through references or bounds-checked slices.

mod across;
mod amx;
mod apart;
mod blocks;
mod codebook;
mod eights;
mod floats;
mod pairs;
mod sixteen;
mod spread;
mod sums;
mod tile;
mod transpose;

use std::arch::x86_64::*;

use self::amx::Amx;
use self::blocks::{add_pairs, dot_token, opaque};
use self::eights::Avx512Eights;
use super::bf16::Avx512Bf16;
use super::pairs::{Pairs, group_of_pairs};
use super::span::{group_of_words, span_of_dots, span_of_words};
use super::{
    Codebook, Finished, Isa, Kernel, MAX_LANES, MAX_ROWS, OfRows, Partials, SpanTile, SpansTile, TileKernel,
    WideFloats, checked, checked_mut, one_by_one_scaled,
};

/// Proof that the machine has AVX-512 F, BW, VL and DQ, and VNNI if `VNNI`; and AMX, if that is to be used.
#[derive(Clone, Copy, Debug)]
pub struct Avx512With<const VNNI: bool>(Option<Amx>);

pub type Avx512 = Avx512With<true>;
pub type Avx512Plain = Avx512With<false>;

impl<const VNNI: bool> Avx512With<VNNI> {
    /// The token, if the machine has the features.
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"))
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self(None))
    }
}

impl<const VNNI: bool> Isa for Avx512With<VNNI> {
    const NAME: &'static str = if VNNI { "avx512" } else { "avx512-plain" };
    const ROWS: usize = 2;
    const TILE: (usize, usize) = (2, 6);
    const SMALL: usize = if VNNI { 4 } else { Self::TILE.1 };
    const BLOCKWISE: usize = if VNNI { 32 } else { 0 };
    const SWEPT: usize = if VNNI { 4 } else { 2 };
    const EIGHTS: bool = VNNI;
    const SUMS: bool = VNNI;
    const STAYS_PACKED: bool = VNNI;
    const FLOAT_SCALES: bool = VNNI;
    const PAIRED_SCALES: bool = VNNI;
    const LARGEST_FOLDED: u8 = if VNNI { 255 } else { 0 };
    type B = __m512i;
    type N = __m512i;
    type G = __m512;
    type W = __m512i;
    type DotBf16 = Avx512Bf16;
    type Eights = Avx512Eights;
    type Tiles = Amx;

    #[inline(always)]
    fn eights(self) -> Option<Avx512Eights> {
        self.proof_of_eights()
    }

    #[inline(always)]
    fn tiles(self) -> Option<Amx> {
        self.0
    }

    #[inline(always)]
    fn multiplies_sums(self) -> bool {
        VNNI && sums::adds_elsewhere()
    }

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
        fn plain<I: Isa, K: Kernel>(isa: I, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        #[target_feature(
            enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt"
        )]
        fn vnni<I: Isa, K: Kernel>(isa: I, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        // Sound: the token proves the AVX-512 parts, FMA and F16C, and every such CPU has the others.
        unsafe { if VNNI { vnni(self, kernel) } else { plain(self, kernel) } }
    }

    #[inline(always)]
    fn tile<K: TileKernel>(self, kernel: K) {
        kernel.run::<Self, 2, 6>(self);
    }

    #[inline(always)]
    fn small_tile<K: TileKernel>(self, kernel: K) {
        if VNNI {
            kernel.run::<Self, 2, 4>(self);
        } else {
            self.tile(kernel);
        }
    }

    #[inline(always)]
    fn wide_tile<K: TileKernel>(self, kernel: K) {
        kernel.run::<Self, 4, 6>(self);
    }

    #[inline(always)]
    fn tall_tile<K: TileKernel>(self, kernel: K) {
        kernel.run::<Self, 3, 8>(self);
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
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(from[0].as_ptr().cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(from[1].as_ptr().cast()))
        }
    }
    #[inline(always)]
    fn b_all_i8(self, from: &[i8; 32]) -> Self::B {
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(from.as_ptr().cast())) }
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
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn b_store(self, v: Self::B, to: &mut [u8], stride: usize) {
        unsafe {
            _mm256_storeu_si256(checked_mut::<32, _>(to).cast(), _mm512_castsi512_si256(v));
            let second = checked_mut::<32, _>(&mut to[stride..]).cast();
            _mm256_storeu_si256(second, _mm512_extracti64x4_epi64::<1>(v));
        }
    }
    #[inline(always)]
    fn b_nibbles(self, from: OfRows<&[u8; 16]>) -> Self::B {
        unsafe {
            let first = _mm_loadu_si128(from[0].as_ptr().cast());
            let second = _mm_loadu_si128(from[1].as_ptr().cast());
            let both = _mm512_inserti64x4::<1>(
                _mm512_castsi256_si512(_mm256_broadcastsi128_si256(first)),
                _mm256_broadcastsi128_si256(second),
            );
            // The upper 128 bits of each row are shifted down.
            let counts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
            _mm512_and_si512(_mm512_srlv_epi64(both, counts), _mm512_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn b_words(self, from: OfRows<[u64; 4]>) -> Self::B {
        let ([a, b, c, d], [e, f, g, h]) = (from[0], from[1]);
        unsafe {
            _mm512_setr_epi64(a as i64, b as i64, c as i64, d as i64, e as i64, f as i64, g as i64, h as i64)
        }
    }
    #[inline(always)]
    fn b_to_words(self, v: Self::B) -> OfRows<[u64; 4]> {
        let mut words = [[0; 4]; MAX_ROWS];
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), v) };
        words
    }
    #[inline(always)]
    fn b_splat(self, x: u8) -> Self::B {
        unsafe { _mm512_set1_epi8(x as i8) }
    }
    #[inline(always)]
    fn b_and(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn b_or(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn b_xor(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn b_add(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_add_epi8(a, b) }
    }
    #[inline(always)]
    fn b_at_least(self, v: Self::B, x: u8) -> Self::B {
        unsafe { _mm512_movm_epi8(_mm512_cmpge_epu8_mask(v, _mm512_set1_epi8(x as i8))) }
    }
    #[inline(always)]
    fn b_shr<const N: i32>(self, v: Self::B) -> Self::B {
        unsafe {
            // There is no byte shift: shift words and clear what came from the neighbour.
            let shifted = _mm512_srl_epi16(v, _mm_cvtsi32_si128(N));
            _mm512_and_si512(shifted, _mm512_set1_epi8((0xffu8 >> N) as i8))
        }
    }
    #[inline(always)]
    fn b_shl<const N: i32>(self, v: Self::B) -> Self::B {
        unsafe {
            let shifted = _mm512_sll_epi16(v, _mm_cvtsi32_si128(N));
            _mm512_and_si512(shifted, _mm512_set1_epi8((0xffu8 << N) as i8))
        }
    }
    #[inline(always)]
    fn b_lookup(self, table: &[u8; 16], v: Self::B) -> Self::B {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, v)
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
            let quants = _mm512_broadcast_i32x4(_mm_loadu_si128(quants.as_ptr().cast()));
            // Each 16 columns have a scale of their own, as each 128 bits do here: a table for them.
            let products = _mm512_mullo_epi16(self.spread_i16(scales, pair), quants);
            let sums = _mm512_add_epi16(products, _mm512_set1_epi16(offset));
            let table = _mm512_srl_epi16(sums, _mm_cvtsi32_si128(SHIFT));
            _mm512_shuffle_epi8(table, _mm512_add_epi8(v, v))
        }
    }
    #[inline(always)]
    fn b_from_bits(self, bits: OfRows<u32>) -> Self::B {
        unsafe { _mm512_movm_epi8(u64::from(bits[0]) | u64::from(bits[1]) << 32) }
    }
    #[inline(always)]
    fn b_points8<const N: usize>(self, book: &Codebook<u64, N>, numbers: [Self::B; 2]) -> [Self::B; 8] {
        self.points8(book, numbers)
    }
    #[inline(always)]
    fn b_points4<const N: usize>(self, book: &Codebook<u32, N>, numbers: [Self::B; 4]) -> [Self::B; 8] {
        self.points4(book, numbers)
    }
    #[inline(always)]
    fn b_bits_i16<const N: usize>(self, bits: OfRows<u32>) -> Self::B {
        self.bits_i16::<N>(bits)
    }
    #[inline(always)]
    fn b_negate(self, v: Self::B, bits: OfRows<u32>) -> Self::B {
        let bits = u64::from(bits[0]) | u64::from(bits[1]) << 32;
        unsafe { _mm512_mask_sub_epi8(v, bits, _mm512_setzero_si512(), v) }
    }
    #[inline(always)]
    fn b_fields<const N: usize>(self, words: OfRows<u64>) -> Self::B {
        self.fields::<N>(words)
    }
    #[inline(always)]
    fn b_negate_all(self, v: [Self::B; 8], signs: Self::B) -> [Self::B; 8] {
        self.negate_all(v, signs)
    }
    #[inline(always)]
    fn b_sevens(self, v: Self::B) -> Self::B {
        unsafe {
            let shifted =
                [v, _mm512_slli_epi32::<1>(v), _mm512_slli_epi32::<2>(v), _mm512_slli_epi32::<3>(v)];
            let mut sevens = _mm512_and_si512(v, _mm512_set1_epi32(0x7f));
            for k in 1..4 {
                let at = _mm512_and_si512(shifted[k], _mm512_set1_epi32(0x7f << (8 * k)));
                sevens = _mm512_or_si512(sevens, at);
            }
            sevens
        }
    }
    #[inline(always)]
    fn b_tops_twice(self, v: Self::B) -> Self::B {
        unsafe {
            let tops = _mm512_srli_epi32::<28>(v);
            opaque(_mm512_or_si512(tops, _mm512_slli_epi32::<16>(tops)))
        }
    }
    #[inline(always)]
    fn b_high_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe {
            let packed = _mm512_packus_epi16(_mm512_srli_epi16::<8>(a), _mm512_srli_epi16::<8>(b));
            _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7), packed)
        }
    }
    #[inline(always)]
    fn b_widen_u8(self, from: OfRows<&[u8; 16]>) -> Self::B {
        unsafe { opaque(_mm512_cvtepu8_epi16(self.sixteen_each(from))) }
    }
    #[inline(always)]
    fn b_widen_i8(self, from: OfRows<&[u8; 16]>) -> Self::B {
        unsafe { opaque(_mm512_cvtepi8_epi16(self.sixteen_each(from))) }
    }
    #[inline(always)]
    fn b_widen_words(self, from: OfRows<[u64; 2]>) -> Self::B {
        unsafe {
            let ([a, b], [c, d]) = (from[0], from[1]);
            opaque(_mm512_cvtepu8_epi16(_mm256_setr_epi64x(a as i64, b as i64, c as i64, d as i64)))
        }
    }
    #[inline(always)]
    fn b_add_i16(self, a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_add_epi16(a, b) }
    }
    #[inline(always)]
    fn b_widen_twice(self, from: OfRows<u64>) -> Self::B {
        unsafe {
            let both = _mm_set_epi64x(from[1] as i64, from[0] as i64);
            let twice = _mm256_set_m128i(_mm_unpackhi_epi8(both, both), _mm_unpacklo_epi8(both, both));
            opaque(_mm512_cvtepu8_epi16(twice))
        }
    }
    #[inline(always)]
    fn n_spread_i16(self, v: Self::B, pair: usize) -> Self::N {
        // A product of pairs with (1, 0) keeps one of two equal i16 and widens it.
        unsafe { _mm512_madd_epi16(self.spread_i16(v, pair), _mm512_set1_epi32(1)) }
    }

    #[inline(always)]
    fn n_zero(self) -> Self::N {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn n_add(self, a: Self::N, b: Self::N) -> Self::N {
        self.w_add(a, b)
    }
    #[inline(always)]
    fn n_sub(self, a: Self::N, b: Self::N) -> Self::N {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn n_mul(self, a: Self::N, b: Self::N) -> Self::N {
        self.w_mul(a, b)
    }
    #[inline(always)]
    fn n_splat(self, x: i32) -> Self::N {
        self.w_splat(x)
    }
    #[inline(always)]
    fn n_store(self, v: Self::N, to: &mut [i32]) {
        self.w_store(v, to);
    }
    #[inline(always)]
    fn n_dot4<const WIDE: bool>(self, acc: Self::N, u: Self::B, a: Self::B) -> Self::N {
        self.w_dot4::<WIDE>(acc, u, a)
    }
    #[inline(always)]
    fn n_dot4_scaled(self, acc: Self::N, u: Self::B, a: Self::B, scales: Self::B, pair: usize) -> Self::N {
        self.n_dot2_i16(acc, unsafe { _mm512_maddubs_epi16(u, a) }, self.spread_i16(scales, pair))
    }
    #[inline(always)]
    fn n_two_dots_scaled(
        self,
        acc: Self::N,
        u: [Self::B; 2],
        a: [Self::B; 2],
        scales: Self::B,
        two: usize,
    ) -> Self::N {
        if !VNNI {
            return one_by_one_scaled(self, acc, u, a, scales, two);
        }
        // Sums of four products are at most 4 · 64 · 127, which i16 holds: both vectors' fit one, and take one multiplication.
        unsafe {
            let zero = _mm512_setzero_si512();
            let (x, y) = (_mm512_dpbusd_epi32(zero, u[0], a[0]), _mm512_dpbusd_epi32(zero, u[1], a[1]));
            self.n_dot2_i16(acc, _mm512_packs_epi32(x, y), self.spread_four_i16(scales, two))
        }
    }
    #[inline(always)]
    fn n_dot2_i16(self, acc: Self::N, a: Self::B, b: Self::B) -> Self::N {
        self.w_dot2_i16(acc, a, b)
    }
    #[inline(always)]
    fn n_sums8(self, v: [Self::N; 8]) -> Self::N {
        unsafe {
            let [a, b, c, d, e, f, g, h] = v;
            let (abcd, efgh) = (self.n_half_sums4([a, b, c, d]), self.n_half_sums4([e, f, g, h]));
            // Quarters are the two halves of each row; a row's result is its sums of abcd, then of efgh.
            let low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            _mm512_add_epi32(
                _mm512_permutex2var_epi64(abcd, low, efgh),
                _mm512_permutex2var_epi64(abcd, high, efgh),
            )
        }
    }
    #[inline(always)]
    fn n_half_sums4(self, v: [Self::N; 4]) -> Self::N {
        unsafe {
            let [a, b, c, d] = v;
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        }
    }

    #[inline(always)]
    fn g_zero(self) -> Self::G {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn g_load(self, from: &[f32]) -> Self::G {
        self.f_load(from)
    }
    #[inline(always)]
    fn g_all(self, from: &[f32; 8]) -> Self::G {
        unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(from.as_ptr())) }
    }
    #[inline(always)]
    fn g_store(self, v: Self::G, to: &mut [f32]) {
        self.f_store(v, to);
    }
    #[inline(always)]
    fn g_from_halves(self, bits: &[u16; 8 * MAX_ROWS]) -> Self::G {
        self.f_load_f16(bits)
    }
    #[inline(always)]
    fn g_from_halves_twice(self, bits: OfRows<u64>) -> Self::G {
        unsafe {
            let (first, second) = (bits[0] as i64, bits[1] as i64);
            _mm512_cvtph_ps(_mm256_setr_epi64x(first, first, second, second))
        }
    }
    #[inline(always)]
    fn g_splat(self, x: f32) -> Self::G {
        self.f_splat(x)
    }
    #[inline(always)]
    fn g_pair(self, [a, b]: [f32; 2]) -> Self::G {
        unsafe { _mm512_mask_blend_ps(0xf0f0, _mm512_set1_ps(a), _mm512_set1_ps(b)) }
    }
    #[inline(always)]
    fn g_from_n(self, v: Self::N) -> Self::G {
        self.f_from_w(v)
    }
    #[inline(always)]
    fn g_mul(self, a: Self::G, b: Self::G) -> Self::G {
        self.f_mul(a, b)
    }
    #[inline(always)]
    fn g_fma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G {
        self.f_fma(a, b, c)
    }
    #[inline(always)]
    fn g_fnma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G {
        self.f_fnma(a, b, c)
    }

    #[inline(always)]
    fn w_splat(self, x: i32) -> Self::W {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn w_load(self, from: &[i32]) -> Self::W {
        unsafe { _mm512_loadu_si512(checked::<16, _>(from).cast()) }
    }
    #[inline(always)]
    fn w_load_i8(self, from: &[i8]) -> Self::W {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(checked::<16, _>(from).cast())) }
    }
    #[inline(always)]
    fn w_store(self, v: Self::W, to: &mut [i32]) {
        unsafe { _mm512_storeu_si512(checked_mut::<16, _>(to).cast(), v) }
    }
    #[inline(always)]
    fn w_store_i8(self, v: Self::W, to: &mut [i8]) {
        unsafe { _mm_storeu_si128(checked_mut::<16, _>(to).cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    fn w_add(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn w_mul(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn w_raised(self, v: Self::W) -> Self::W {
        unsafe { _mm512_slli_epi32::<16>(v) }
    }
    #[inline(always)]
    fn w_dot4<const WIDE: bool>(self, acc: Self::W, u: Self::W, a: Self::W) -> Self::W {
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(acc, u, a);
            }
            if !WIDE {
                let pairs = _mm512_maddubs_epi16(u, a);
                return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
            }
            // As in `avx2`: bit 7 is weighed afterwards.
            let low = _mm512_maddubs_epi16(_mm512_and_si512(u, _mm512_set1_epi8(0x7f)), a);
            let top = _mm512_and_si512(_mm512_srli_epi16::<7>(u), _mm512_set1_epi8(1));
            let high = _mm512_madd_epi16(_mm512_maddubs_epi16(top, a), _mm512_set1_epi16(128));
            let low = _mm512_madd_epi16(low, _mm512_set1_epi16(1));
            _mm512_add_epi32(acc, _mm512_add_epi32(low, high))
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
    fn w_dots<const R: usize, const T: usize>(
        self,
        dot: &mut [[Self::W; R]; T],
        rows: &[i32],
        tokens: &[i32],
        _largest: u8,
    ) {
        const { assert!(R == 2) };
        assert!(VNNI);
        let (rows, tokens) = (rows.as_chunks::<32>().0, tokens.as_chunks::<T>().0);
        for q in 0..rows.len().min(tokens.len()) {
            let row = [self.w_load(&rows[q][..16]), self.w_load(&rows[q][16..])];
            for t in 0..T {
                // Sound: the token proves AVX-512 with VNNI.
                unsafe { dot_token(&mut dot[t], row, &tokens[q][t]) };
            }
        }
    }
    #[inline(always)]
    fn w_dot_token<const R: usize>(self, dot: &mut [Self::W; R], rows: [Self::W; R], token: &i32) {
        assert!(VNNI);
        // Sound: the token proves AVX-512 with VNNI.
        unsafe { dot_token(dot, [rows[0], rows[1]], token) };
    }
    #[inline(always)]
    fn f_pairs_tile<const R: usize, const T: usize, const MINS: bool>(
        self,
        totals: &mut [Partials<R, T>; 2],
        tile: &SpansTile,
        before: Finished<R, T>,
    ) {
        assert!(VNNI);
        // Sound: the token proves AVX-512 with VNNI.
        unsafe {
            if tile.apart {
                apart::tile::<Self, R, T, MINS>(self, totals, tile, before);
            } else {
                pairs::tile::<Self, R, T, MINS>(self, totals, tile, before);
            }
        }
    }
    #[inline(always)]
    fn f_sums_tile<const R: usize, const T: usize, const MINS: bool>(
        self,
        totals: &mut [Partials<R, T>; 2],
        tile: &SpansTile,
        before: Finished<R, T>,
    ) {
        assert!(VNNI);
        // Sound: the token proves AVX-512 with VNNI.
        unsafe { sums::tile::<Self, R, T, MINS>(self, totals, tile, before) };
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
        if !VNNI {
            return unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)) };
        }
        // Sound: the token proves AVX-512 with VNNI.
        unsafe { add_pairs(acc, a, b) }
    }
    #[inline(always)]
    fn w_store_i16(self, v: [Self::W; 2], to: &mut [i32]) {
        unsafe {
            // Quarters of the one and the other by turns: evens first, then odds.
            let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            let both = _mm512_permutexvar_epi64(order, _mm512_packs_epi32(v[0], v[1]));
            _mm512_storeu_si512(checked_mut::<16, _>(to).cast(), both);
        }
    }
    #[inline(always)]
    fn w_transpose(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize) {
        assert!(from.len() >= 4 * (15 * from_stride + 16));
        let mut rows = [self.w_splat(0); 16];
        for r in 0..16 {
            rows[r] = unsafe { _mm512_loadu_si512(from.as_ptr().add(4 * r * from_stride).cast()) };
        }
        unsafe { transpose::sixteen(rows, to, to_stride) }
    }
    #[inline(always)]
    fn w_transpose_rows(self, from: &[&[u8]; MAX_LANES], at: usize, to: &mut [i32], to_stride: usize) {
        unsafe { transpose::sixteen_rows(from, at, to, to_stride) }
    }
    #[inline(always)]
    fn w_transpose_four(self, from: &[&[u8]; MAX_LANES], at: usize, to: &mut [i32], to_stride: usize) {
        // 128-bit part p of four[j] is row 4p + j.
        let mut four = [self.w_splat(0); 4];
        for j in 0..4 {
            unsafe {
                let mut part = [_mm_setzero_si128(); 4];
                for p in 0..4 {
                    part[p] = _mm_loadu_si128(checked::<16, _>(&from[4 * p + j][at..]).cast());
                }
                let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(part[0]), part[1]);
                let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(part[2]), part[3]);
                four[j] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
        }
        unsafe { transpose::four(four, to, to_stride) }
    }

    #[inline(always)]
    fn f_from_half_pairs(self, v: Self::W) -> [Self::F; 2] {
        unsafe {
            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v));
            [_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)), _mm512_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    fn f_low_bf16(self, v: Self::W) -> Self::F {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)) }
    }
    #[inline(always)]
    fn f_high_bf16(self, v: Self::W) -> Self::F {
        unsafe { _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    fn f_round_bf16(self, v: Self::F) -> Self::F {
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            self.f_high_bf16(rounded)
        }
    }
    #[inline(always)]
    fn f_store_bf16(self, v: Self::F, to: &mut [i32]) {
        unsafe {
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(v)));
            _mm256_storeu_si256(checked_mut::<8, _>(to).cast(), halves);
        }
    }
    #[inline(always)]
    fn dot_bf16(self) -> Option<Avx512Bf16> {
        // Every CPU that has it has VNNI: without, one kind of kernel will do.
        if VNNI { Avx512Bf16::new() } else { None }
    }
    #[inline(always)]
    fn f_from_w(self, v: Self::W) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn f_to_w(self, a: Self::F) -> Self::W {
        unsafe { _mm512_cvtps_epi32(a) }
    }
}

impl<const VNNI: bool> Pairs for Avx512With<VNNI> {
    #[inline(always)]
    fn w_pairs(self, u: Self::W, a: Self::W) -> Self::W {
        unsafe { _mm512_maddubs_epi16(u, a) }
    }
    #[inline(always)]
    fn w_add_i16(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_add_epi16(a, b) }
    }
    #[inline(always)]
    fn w_twice_i16(self, v: Self::W) -> Self::W {
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, v, _mm512_slli_epi32::<16>(v)) }
    }
    #[inline(always)]
    fn w_distance(self, u: Self::W) -> Self::W {
        unsafe { _mm512_abs_epi8(_mm512_xor_si512(u, _mm512_set1_epi8(-128))) }
    }
    #[inline(always)]
    fn w_signed(self, u: Self::W, a: Self::W) -> Self::W {
        // A byte below 128 has no top bit.
        unsafe { _mm512_mask_sub_epi8(a, !_mm512_movepi8_mask(u), _mm512_setzero_si512(), a) }
    }
}
