//! Sixteen lanes of AVX-512 (F, BW, DQ, VL).

use std::arch::x86_64::*;

use super::{Kernel, Lanes, Path, gather_columns};

/// This machine has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    _detected: (),
}

const N: usize = 16;

impl Avx512 {
    /// Runs `kernel` compiled with AVX-512.
    pub fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn compiled<K: Kernel>(lanes: Avx512, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `new` detected these features; nothing else makes a token.
        unsafe { compiled(self, kernel) }
    }
}

// SAFETY of every block below: the token exists, so `new` detected the features that the intrinsics need;
// pointers come from slices whose length is checked on the line before.
impl Lanes for Avx512 {
    const WIDTH: usize = N;
    const PATH: Path = Path::Avx512;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;

    #[inline]
    fn new() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        detected.then_some(Self { _detected: () })
    }

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..N];
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32]) {
        let to = &mut to[..N];
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }

    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }

    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }

    #[inline(always)]
    fn and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn not(self, a: __mmask16) -> __mmask16 {
        !a
    }

    #[inline(always)]
    fn any(self, mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(v) }
    }

    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn min_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_min_epi32(a, b) }
    }

    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_max_epi32(a, b) }
    }

    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }

    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn truncate(self, a: __m512) -> __m512i {
        unsafe { _mm512_cvttps_epi32(a) }
    }

    #[inline(always)]
    fn store_bytes(self, v: __m512i, to: &mut [u8]) {
        let to = &mut to[..N];
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }
    }

    #[inline(always)]
    fn load_half(self, from: &[u16]) -> __m512 {
        let from = &from[..N];
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_half(self, v: __m512, to: &mut [u16]) {
        let to = &mut to[..N];
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn or(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }

    #[inline(always)]
    fn bitmask(self, mask: __mmask16) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    fn smallest(self, v: __m512) -> f32 {
        unsafe {
            let eight = _mm256_min_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ps(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn xor_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    fn eq_i(self, a: __m512i, b: __m512i) -> __mmask16 {
        unsafe { _mm512_cmpeq_epi32_mask(a, b) }
    }

    #[inline(always)]
    fn lt_i(self, a: __m512i, b: __m512i) -> __mmask16 {
        unsafe { _mm512_cmplt_epi32_mask(a, b) }
    }

    #[inline(always)]
    fn shl(self, a: __m512i, by: u32) -> __m512i {
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn shr(self, a: __m512i, by: u32) -> __m512i {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn select_i(self, mask: __mmask16, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mask_blend_epi32(mask, b, a) }
    }

    #[inline(always)]
    fn load_i(self, from: &[i32]) -> __m512i {
        let from = &from[..N];
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_i(self, v: __m512i, to: &mut [i32]) {
        let to = &mut to[..N];
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn load_u16(self, from: &[u16]) -> __m512i {
        let from = &from[..N];
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_u16(self, v: __m512i, to: &mut [u16]) {
        let to = &mut to[..N];
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v)) }
    }

    #[inline(always)]
    fn lookup4(self, table: &[f32], at: __m512i) -> __m512 {
        let table = &table[..4];
        unsafe { _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table.as_ptr())), at) }
    }

    #[inline(always)]
    fn lookup8(self, table: &[f32], at: __m512i) -> __m512 {
        let table = &table[..8];
        // The permutation reads four bits, so the table is there twice.
        unsafe { _mm512_permutexvar_ps(at, _mm512_broadcast_f32x8(_mm256_loadu_ps(table.as_ptr()))) }
    }

    #[inline(always)]
    fn lookup16(self, table: &[f32], at: __m512i) -> __m512 {
        let table = &table[..16];
        unsafe { _mm512_permutexvar_ps(at, _mm512_loadu_ps(table.as_ptr())) }
    }

    #[inline(always)]
    fn columns(self, rows: &[f32], stride: usize, out: &mut [__m512]) {
        let tiled = out.len() / N * N;
        let (tiles, rest) = out.split_at_mut(tiled);
        gather_columns(self, rows, stride, tiled, rest);
        for (c, columns) in tiles.chunks_exact_mut(N).enumerate() {
            let mut tile = [self.splat(0.0); N];
            for (r, row) in tile.iter_mut().enumerate() {
                *row = self.load(&rows[r * stride + c * N..]);
            }
            columns.copy_from_slice(&transpose(self, tile));
        }
    }
}

/// A 16 × 16 transposition in four rounds of 16 shuffles.
#[inline(always)]
fn transpose(_detected: Avx512, t: [__m512; N]) -> [__m512; N] {
    // SAFETY: the token proves AVX-512 F.
    unsafe {
        let mut pairs = t;
        for i in (0..N).step_by(2) {
            pairs[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
        }
        // quads[4 g + k]: within each 128-bit part p, column 4 p + k of rows 4 g .. 4 g + 4.
        let mut quads = pairs;
        for g in (0..N).step_by(4) {
            let double = |i: usize| _mm512_castps_pd(pairs[g + i]);
            quads[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(double(0), double(2)));
            quads[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(double(0), double(2)));
            quads[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(double(1), double(3)));
            quads[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(double(1), double(3)));
        }
        let mut out = quads;
        for k in 0..4 {
            let low_even = _mm512_shuffle_f32x4::<0x88>(quads[k], quads[4 + k]);
            let low_odd = _mm512_shuffle_f32x4::<0xdd>(quads[k], quads[4 + k]);
            let high_even = _mm512_shuffle_f32x4::<0x88>(quads[8 + k], quads[12 + k]);
            let high_odd = _mm512_shuffle_f32x4::<0xdd>(quads[8 + k], quads[12 + k]);
            out[k] = _mm512_shuffle_f32x4::<0x88>(low_even, high_even);
            out[4 + k] = _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd);
            out[8 + k] = _mm512_shuffle_f32x4::<0xdd>(low_even, high_even);
            out[12 + k] = _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd);
        }
        out
    }
}
