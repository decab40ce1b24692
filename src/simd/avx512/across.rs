//! Sums and largest lanes of sixteen vectors at once: half as many steps as lanes, and each takes two vectors.

use std::arch::x86_64::*;

use super::checked;

/// Lane `i` is the sum of the lanes of the vector `v[16 * i..]`, of sixteen, added in [`WideFloats::f_sum`](crate::simd::WideFloats::f_sum)'s order, or the
/// `LARGEST` of them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn each<const LARGEST: bool>(v: &[f32]) -> __m512 {
    // Lanes 8 apart: halves of vectors j, 4 + j, then 8 + j, 12 + j.
    let mut halves = [_mm512_setzero_ps(); 8];
    for j in 0..4 {
        for k in 0..2 {
            let (a, b) = (load(v, 8 * k + j), load(v, 8 * k + 4 + j));
            let (low, high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            halves[2 * j + k] = both::<LARGEST>(low, high);
        }
    }
    // Lanes 4 apart: 128-bit part p is of vector 4 p + j.
    let mut quarters = [_mm512_setzero_ps(); 4];
    for j in 0..4 {
        let (a, b) = (halves[2 * j], halves[2 * j + 1]);
        quarters[j] = both::<LARGEST>(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    }
    // Lanes 2 apart, then neighbours.
    let mut pairs = [_mm512_setzero_ps(); 2];
    for j in 0..2 {
        let (a, b) = (_mm512_castps_pd(quarters[2 * j]), _mm512_castps_pd(quarters[2 * j + 1]));
        pairs[j] = both::<LARGEST>(
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)),
        );
    }
    let (a, b) = (pairs[0], pairs[1]);
    both::<LARGEST>(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(v: &[f32], i: usize) -> __m512 {
    // Sound: the slice is checked to have the vector.
    unsafe { _mm512_loadu_ps(checked::<16, _>(&v[16 * i..])) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn both<const LARGEST: bool>(a: __m512, b: __m512) -> __m512 {
    if LARGEST { _mm512_max_ps(a, b) } else { _mm512_add_ps(a, b) }
}
