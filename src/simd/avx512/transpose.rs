//! Words of many rows turned into columns.

use std::arch::x86_64::*;

use super::{checked, checked_mut};

/// Word `c` from byte `at` of `rows[r]` on goes to `to[c * to_stride + r]`.
#[inline(never)]
#[target_feature(enable = "avx512f")]
pub(super) fn sixteen_rows(rows: &[&[u8]; 16], at: usize, to: &mut [i32], to_stride: usize) {
    let mut words = [_mm512_setzero_si512(); 16];
    for r in 0..16 {
        // Sound: the row is checked to have the bytes.
        words[r] = unsafe { _mm512_loadu_si512(checked::<64, _>(&rows[r][at..]).cast()) };
    }
    sixteen(words, to, to_stride);
}

/// Word `c` of `rows[r]` goes to `to[c * to_stride + r]`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sixteen(rows: [__m512i; 16], to: &mut [i32], to_stride: usize) {
    let mut pairs = rows;
    for i in 0..8 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i] = _mm512_unpacklo_epi32(a, b);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(a, b);
    }
    // Now 4×4 squares: quads[4i + j], 128-bit part p, is word 4p + j of rows 4i..4i+4.
    let mut quads = pairs;
    for i in 0..4 {
        let p = &pairs[4 * i..4 * i + 4];
        quads[4 * i] = _mm512_unpacklo_epi64(p[0], p[2]);
        quads[4 * i + 1] = _mm512_unpackhi_epi64(p[0], p[2]);
        quads[4 * i + 2] = _mm512_unpacklo_epi64(p[1], p[3]);
        quads[4 * i + 3] = _mm512_unpackhi_epi64(p[1], p[3]);
    }
    for j in 0..4 {
        let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
        let ab_even = _mm512_shuffle_i32x4::<0x88>(a, b);
        let ab_odd = _mm512_shuffle_i32x4::<0xdd>(a, b);
        let cd_even = _mm512_shuffle_i32x4::<0x88>(c, d);
        let cd_odd = _mm512_shuffle_i32x4::<0xdd>(c, d);
        let out = [
            _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even),
            _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd),
            _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even),
            _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd),
        ];
        for p in 0..4 {
            store(out[p], &mut to[(4 * p + j) * to_stride..]);
        }
    }
}

/// Word `c` of the 128-bit part `p` of `rows[j]`, which is row `4 p + j`, goes to `to[c * to_stride + 4 p + j]`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn four(rows: [__m512i; 4], to: &mut [i32], to_stride: usize) {
    let [a, b, c, d] = rows;
    let (ab_low, cd_low) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    store(_mm512_unpacklo_epi64(ab_low, cd_low), to);
    store(_mm512_unpackhi_epi64(ab_low, cd_low), &mut to[to_stride..]);
    store(_mm512_unpacklo_epi64(ab_high, cd_high), &mut to[2 * to_stride..]);
    store(_mm512_unpackhi_epi64(ab_high, cd_high), &mut to[3 * to_stride..]);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(v: __m512i, to: &mut [i32]) {
    // Sound: the slice is checked to have the sixteen words.
    unsafe { _mm512_storeu_si512(checked_mut::<16, _>(to).cast(), v) }
}
