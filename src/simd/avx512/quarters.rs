//! Vectors of 64 bytes as quarters of 16, with VNNI.
//!
//! Safety, for every `unsafe` in this file: an [`Avx512Quarters`] comes only from a token that proves the features, and loads go through
//! references to arrays of the length that they take.

use std::arch::x86_64::*;

use super::super::quarters::Quarters;
use super::blocks::{in_order, opaque};
use super::{Avx512With, checked};
use crate::simd::Isa;

/// Proof that the machine has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Quarters(());

impl<const VNNI: bool> Avx512With<VNNI> {
    /// The proof, if there is VNNI.
    #[inline(always)]
    pub(super) fn proof_of_quarters(self) -> Option<Avx512Quarters> {
        if VNNI { Some(Avx512Quarters(())) } else { None }
    }
}

impl<I: Isa<B = __m512i, N = __m512i, G = __m512>> Quarters<I> for Avx512Quarters {
    #[inline(always)]
    fn load(self, words: &[i32; 64]) -> [__m512i; 4] {
        unsafe {
            [
                opaque(_mm512_loadu_si512(words.as_ptr().cast())),
                opaque(_mm512_loadu_si512(words[16..].as_ptr().cast())),
                opaque(_mm512_loadu_si512(words[32..].as_ptr().cast())),
                opaque(_mm512_loadu_si512(words[48..].as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn rows(self, bytes: [&[u8; 16]; 4]) -> __m512i {
        // Two halves side by side, for an insertion into a part of a vector takes as long as one into a whole one.
        unsafe {
            let low = _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(_mm_loadu_si128(bytes[0].as_ptr().cast())),
                _mm_loadu_si128(bytes[1].as_ptr().cast()),
            );
            let high = _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(_mm_loadu_si128(bytes[2].as_ptr().cast())),
                _mm_loadu_si128(bytes[3].as_ptr().cast()),
            );
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 128]) -> [__m512i; 2] {
        unsafe {
            let a = _mm512_loadu_si512(checked::<64, _>(bytes).cast());
            let b = _mm512_loadu_si512(checked::<64, _>(&bytes[64..]).cast());
            [_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b)]
        }
    }

    #[inline(always)]
    fn bits<const ODD: i32>(self, bytes: &[u8; 16]) -> __m512i {
        unsafe {
            let all = _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast()));
            // Rotated within words of eight bytes: what comes from another byte is not bit 4.
            let by = const { 4 - ODD as i64 };
            let by = _mm512_setr_epi64(by, by, by - 2, by - 2, by - 4, by - 4, by - 6, by - 6);
            _mm512_and_si512(_mm512_rolv_epi64(all, opaque(by)), _mm512_set1_epi8(16))
        }
    }

    #[inline(always)]
    fn six_bits(self, heads: __m512i) -> [__m512i; 2] {
        unsafe {
            // Words 1, 2 and 3 of a quarter: four scales and four mins with the others' top bits, then the others' low bits.
            let words = _mm512_shuffle_epi32::<0b11_10_11_01>(heads);
            let words = _mm512_srlv_epi32(words, opaque(_mm512_set4_epi32(4, 0, 0, 0)));
            let low = opaque(_mm512_set4_epi32(0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f));
            let tops = _mm512_srli_epi32::<2>(_mm512_shuffle_epi32::<0b10_10_01_01>(heads));
            let high = opaque(_mm512_set4_epi32(0x3030_3030, 0, 0x3030_3030, 0));
            // words | tops & high
            let all = _mm512_ternarylogic_epi32::<0xf8>(_mm512_and_si512(words, low), tops, high);
            let zero = _mm512_setzero_si512();
            [_mm512_unpacklo_epi8(all, zero), _mm512_unpackhi_epi8(all, zero)]
        }
    }

    #[inline(always)]
    fn spread(self, scales: __m512i, row: usize) -> __m512i {
        unsafe {
            // Eight i16 of each quarter, the order of `_mm512_packs_epi32`: four of one scale, four of the next.
            let first = 0x0008_0008 * row as i32;
            let which = _mm512_setr_epi32(
                first,
                first,
                first + 0x0001_0001,
                first + 0x0001_0001,
                first + 0x0002_0002,
                first + 0x0002_0002,
                first + 0x0003_0003,
                first + 0x0003_0003,
                first + 0x0004_0004,
                first + 0x0004_0004,
                first + 0x0005_0005,
                first + 0x0005_0005,
                first + 0x0006_0006,
                first + 0x0006_0006,
                first + 0x0007_0007,
                first + 0x0007_0007,
            );
            _mm512_permutexvar_epi16(opaque(which), scales)
        }
    }

    #[inline(always)]
    fn scaled(self, [even, odd]: [__m512i; 2], factors: __m512i) -> __m512i {
        unsafe { _mm512_madd_epi16(_mm512_packs_epi32(even, odd), factors) }
    }

    #[inline(always)]
    fn spans(self, [first, last]: [__m512i; 2]) -> __m512i {
        unsafe {
            _mm512_add_epi32(
                _mm512_shuffle_i64x2::<0x88>(first, last),
                _mm512_shuffle_i64x2::<0xdd>(first, last),
            )
        }
    }

    #[inline(always)]
    fn offsets(self, mins: [__m512i; 2], sums: [&[i16; 16]; 2]) -> __m512i {
        unsafe {
            let groups = |sums: &[i16; 16]| {
                let sums = _mm256_loadu_si256(sums.as_ptr().cast());
                let groups = _mm256_cvtepi32_epi16(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
                _mm512_broadcast_i32x4(groups)
            };
            let first = _mm512_castsi512_ps(_mm512_madd_epi16(mins[0], groups(sums[0])));
            let last = _mm512_castsi512_ps(_mm512_madd_epi16(mins[1], groups(sums[1])));
            // In quarter `r` now row `r`'s spans of one block, then of the other.
            let spans = _mm512_add_epi32(
                _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(first, last)),
                _mm512_castps_si512(_mm512_shuffle_ps::<0xdd>(first, last)),
            );
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(opaque(order), spans)
        }
    }

    #[inline(always)]
    fn in_order(self, v: __m512i) -> __m512i {
        unsafe { in_order(v) }
    }

    #[inline(always)]
    fn floats(self, heads: [__m512i; 2]) -> [__m512; 2] {
        unsafe {
            // i16 lanes 0 and 1 of each row's quarter, of the second vector from 32 on.
            let (a, b) = (0x0008_0000, 0x0018_0010);
            let which = _mm512_setr_epi32(
                a,
                b,
                a,
                b,
                a + 0x0020_0020,
                b + 0x0020_0020,
                a + 0x0020_0020,
                b + 0x0020_0020,
                a + 0x0001_0001,
                b + 0x0001_0001,
                a + 0x0001_0001,
                b + 0x0001_0001,
                a + 0x0021_0021,
                b + 0x0021_0021,
                a + 0x0021_0021,
                b + 0x0021_0021,
            );
            let halves = _mm512_permutex2var_epi16(heads[0], opaque(which), heads[1]);
            [
                _mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(halves)),
            ]
        }
    }

    #[inline(always)]
    fn of_spans(self, [first, last]: [[f32; 2]; 2]) -> __m512 {
        unsafe {
            let all = _mm_setr_ps(first[0], first[1], last[0], last[1]);
            let order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_permutexvar_ps(opaque(order), _mm512_castps128_ps512(all))
        }
    }

    #[inline(always)]
    fn last(self, v: __m512) -> __m512 {
        unsafe { _mm512_shuffle_f32x4::<0x4e>(v, v) }
    }
}
