//! Eight lanes of AVX2, with F16C.

use std::arch::x86_64::*;

use super::{Kernel, Lanes, Path, gather_columns};

/// This machine has AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2 {
    _detected: (),
}

const N: usize = 8;

impl Avx2 {
    /// Runs `kernel` compiled with AVX2.
    pub fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c")]
        fn compiled<K: Kernel>(lanes: Avx2, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `new` detected these features; nothing else makes a token.
        unsafe { compiled(self, kernel) }
    }
}

// SAFETY of every block below: the token exists, so `new` detected the features that the intrinsics need;
// pointers come from slices whose length is checked on the line before.
impl Lanes for Avx2 {
    const WIDTH: usize = N;
    const PATH: Path = Path::Avx2;
    type F = __m256;
    type I = __m256i;
    type M = __m256;

    #[inline]
    fn new() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        detected.then_some(Self { _detected: () })
    }

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..N];
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        let to = &mut to[..N];
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }

    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }

    #[inline(always)]
    fn select(self, mask: __m256, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(b, a, mask) }
    }

    #[inline(always)]
    fn and(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_and_ps(a, b) }
    }

    #[inline(always)]
    fn not(self, a: __m256) -> __m256 {
        unsafe { _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) }
    }

    #[inline(always)]
    fn any(self, mask: __m256) -> bool {
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(v) }
    }

    #[inline(always)]
    fn sub_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(a, b) }
    }

    #[inline(always)]
    fn and_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn min_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_min_epi32(a, b) }
    }

    #[inline(always)]
    fn max_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_max_epi32(a, b) }
    }

    #[inline(always)]
    fn bits(self, a: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(a) }
    }

    #[inline(always)]
    fn to_float(self, a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn truncate(self, a: __m256) -> __m256i {
        unsafe { _mm256_cvttps_epi32(a) }
    }

    #[inline(always)]
    fn store_bytes(self, v: __m256i, to: &mut [u8]) {
        let to = &mut to[..N];
        unsafe {
            // The low bytes of each 128-bit half's four lanes to its front, then the two fours side by side.
            let pick = _mm256_set1_epi32(0x0c08_0400);
            let fours = _mm256_shuffle_epi8(v, pick);
            let low = _mm256_castsi256_si128(fours);
            let high = _mm256_extracti128_si256::<1>(fours);
            _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_unpacklo_epi32(low, high));
        }
    }

    #[inline(always)]
    fn load_half(self, from: &[u16]) -> __m256 {
        let from = &from[..N];
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_half(self, v: __m256, to: &mut [u16]) {
        let to = &mut to[..N];
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn or(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_or_ps(a, b) }
    }

    #[inline(always)]
    fn bitmask(self, mask: __m256) -> u32 {
        unsafe { _mm256_movemask_ps(mask) as u32 }
    }

    #[inline(always)]
    fn smallest(self, v: __m256) -> f32 {
        unsafe {
            let four = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ps(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn add_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn xor_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }

    #[inline(always)]
    fn eq_i(self, a: __m256i, b: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)) }
    }

    #[inline(always)]
    fn lt_i(self, a: __m256i, b: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)) }
    }

    #[inline(always)]
    fn shl(self, a: __m256i, by: u32) -> __m256i {
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn shr(self, a: __m256i, by: u32) -> __m256i {
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn select_i(self, mask: __m256, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_blendv_epi8(b, a, _mm256_castps_si256(mask)) }
    }

    #[inline(always)]
    fn load_i(self, from: &[i32]) -> __m256i {
        let from = &from[..N];
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_i(self, v: __m256i, to: &mut [i32]) {
        let to = &mut to[..N];
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn load_u16(self, from: &[u16]) -> __m256i {
        let from = &from[..N];
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_u16(self, v: __m256i, to: &mut [u16]) {
        let to = &mut to[..N];
        unsafe {
            // The low halves of each 128-bit part's four lanes to its front, then the two parts side by side.
            let pick = _mm256_set1_epi64x(0x0d0c_0908_0504_0100);
            let parts = _mm256_permute4x64_epi64::<0b1000>(_mm256_shuffle_epi8(v, pick));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(parts));
        }
    }

    #[inline(always)]
    fn lookup4(self, table: &[f32], at: __m256i) -> __m256 {
        let table = &table[..4];
        unsafe {
            let table = _mm_loadu_ps(table.as_ptr());
            _mm256_permutevar_ps(_mm256_set_m128(table, table), at)
        }
    }

    #[inline(always)]
    fn lookup8(self, table: &[f32], at: __m256i) -> __m256 {
        let table = &table[..8];
        unsafe { _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), at) }
    }

    #[inline(always)]
    fn lookup16(self, table: &[f32], at: __m256i) -> __m256 {
        let low = self.lookup8(&table[..8], at);
        let high = self.lookup8(&table[8..], at);
        // A blend goes by the sign bit: bit 3 of the index, shifted there.
        unsafe { _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at))) }
    }

    #[inline(always)]
    fn columns(self, rows: &[f32], stride: usize, out: &mut [__m256]) {
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

/// An 8 × 8 transposition in three rounds of 8 shuffles.
#[inline(always)]
fn transpose(_detected: Avx2, t: [__m256; N]) -> [__m256; N] {
    // SAFETY: the token proves AVX2.
    unsafe {
        let mut pairs = t;
        for i in (0..N).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
        }
        // quads[4 g + k]: within each 128-bit part p, column 4 p + k of rows 4 g .. 4 g + 4.
        let mut quads = pairs;
        for g in (0..N).step_by(4) {
            quads[g] = _mm256_shuffle_ps::<0x44>(pairs[g], pairs[g + 2]);
            quads[g + 1] = _mm256_shuffle_ps::<0xee>(pairs[g], pairs[g + 2]);
            quads[g + 2] = _mm256_shuffle_ps::<0x44>(pairs[g + 1], pairs[g + 3]);
            quads[g + 3] = _mm256_shuffle_ps::<0xee>(pairs[g + 1], pairs[g + 3]);
        }
        let mut out = quads;
        for k in 0..4 {
            out[k] = _mm256_permute2f128_ps::<0x20>(quads[k], quads[4 + k]);
            out[4 + k] = _mm256_permute2f128_ps::<0x31>(quads[k], quads[4 + k]);
        }
        out
    }
}
