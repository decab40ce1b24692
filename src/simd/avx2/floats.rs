//! [`WideFloats`] of AVX2.
//!
//! Safety, for every `unsafe` in this file: as in the module above.

use std::arch::x86_64::*;

use super::{Avx2With, largest8, sum8};
use crate::simd::{WideFloats, checked, checked_mut};

impl<const VNNI: bool> WideFloats for Avx2With<VNNI> {
    const LANES: usize = 8;
    type F = __m256;

    #[inline(always)]
    fn f_splat(self, x: f32) -> Self::F {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn f_load(self, from: &[f32]) -> Self::F {
        unsafe { _mm256_loadu_ps(checked::<8, _>(from)) }
    }
    #[inline(always)]
    fn f_store(self, v: Self::F, to: &mut [f32]) {
        unsafe { _mm256_storeu_ps(checked_mut::<8, _>(to), v) }
    }
    #[inline(always)]
    fn f_store_f16(self, v: Self::F, to: &mut [u16]) {
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm_storeu_si128(checked_mut::<8, _>(to).cast(), halves);
        }
    }
    #[inline(always)]
    fn f_load_f16(self, from: &[u16]) -> Self::F {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(checked::<8, _>(from).cast())) }
    }
    #[inline(always)]
    fn f_load_bf16(self, from: &[u16]) -> Self::F {
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(checked::<8, _>(from).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    fn f_add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn f_sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn f_mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn f_div(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn f_max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn f_min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn f_abs(self, a: Self::F) -> Self::F {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn f_fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn f_fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn f_raise(self, a: Self::F, by: Self::F) -> Self::F {
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(by));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent))
        }
    }
    #[inline(always)]
    fn f_raise_from(self, a: Self::F, by: Self::F, x: Self::F, least: Self::F) -> Self::F {
        unsafe { _mm256_and_ps(self.f_raise(a, by), _mm256_cmp_ps::<_CMP_GE_OQ>(x, least)) }
    }
    #[inline(always)]
    fn f_sum(self, v: Self::F) -> f32 {
        unsafe { sum8(v) }
    }
    #[inline(always)]
    fn f_largest(self, v: Self::F) -> f32 {
        unsafe { largest8(v) }
    }
}
