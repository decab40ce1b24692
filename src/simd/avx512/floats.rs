//! [`WideFloats`] of AVX-512.
//!
//! Safety, for every `unsafe` in this file: as in the module above.

use std::arch::x86_64::*;

use super::{Avx512With, across};
use crate::simd::avx2::{largest8, sum8};
use crate::simd::floats::across_one_by_one;
use crate::simd::{WideFloats, checked, checked_mut};

/// Up to so many vectors, less one, are summed up one by one.
const FEW: usize = 4;

impl<const VNNI: bool> WideFloats for Avx512With<VNNI> {
    const LANES: usize = 16;
    type F = __m512;

    #[inline(always)]
    fn f_splat(self, x: f32) -> Self::F {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn f_load(self, from: &[f32]) -> Self::F {
        unsafe { _mm512_loadu_ps(checked::<16, _>(from)) }
    }
    #[inline(always)]
    fn f_store(self, v: Self::F, to: &mut [f32]) {
        unsafe { _mm512_storeu_ps(checked_mut::<16, _>(to), v) }
    }
    #[inline(always)]
    fn f_store_f16(self, v: Self::F, to: &mut [u16]) {
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(checked_mut::<16, _>(to).cast(), halves);
        }
    }
    #[inline(always)]
    fn f_load_f16(self, from: &[u16]) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(checked::<16, _>(from).cast())) }
    }
    #[inline(always)]
    fn f_load_bf16(self, from: &[u16]) -> Self::F {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(checked::<16, _>(from).cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    fn f_add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn f_sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn f_mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn f_div(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn f_max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn f_min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn f_abs(self, a: Self::F) -> Self::F {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn f_fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn f_fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn f_raise(self, a: Self::F, by: Self::F) -> Self::F {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(by));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent))
        }
    }
    #[inline(always)]
    fn f_raise_from(self, a: Self::F, by: Self::F, x: Self::F, least: Self::F) -> Self::F {
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, least);
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(by));
            _mm512_castsi512_ps(_mm512_maskz_add_epi32(keep, _mm512_castps_si512(a), exponent))
        }
    }
    #[inline(always)]
    fn f_sum(self, v: Self::F) -> f32 {
        unsafe { sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    fn f_largest(self, v: Self::F) -> f32 {
        unsafe { largest8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    fn f_across<const LARGEST: bool>(self, v: &[f32], count: usize) -> Self::F {
        if count < FEW {
            across_one_by_one::<Self, LARGEST>(self, v, count)
        } else {
            // Sound: the token proves AVX-512.
            unsafe { across::each::<LARGEST>(v) }
        }
    }
}
