//! Eight rows side by side, with VNNI.
//!
//! Safety, for every `unsafe` in this file: an [`Avx512Eights`] comes only from a token that proves the features, and loads go through
//! references to arrays of the length that they take.

use std::arch::x86_64::*;

use super::super::eights::{EIGHT, Eights, SixteenRows};
use super::Avx512With;
use super::blocks::{add_pairs, in_order, opaque};
use super::sixteen;
use crate::simd::Isa;

/// Proof that the machine has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Eights(());

impl<const VNNI: bool> Avx512With<VNNI> {
    /// The proof, if there is VNNI.
    #[inline(always)]
    pub(super) fn proof_of_eights(self) -> Option<Avx512Eights> {
        if VNNI { Some(Avx512Eights(())) } else { None }
    }
}

impl Avx512Eights {
    /// 32 bytes of one row, then of another.
    #[inline(always)]
    fn two(self, first: &[u8; 32], last: &[u8; 32]) -> __m512i {
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(first.as_ptr().cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(last.as_ptr().cast()))
        }
    }

    /// 16 bytes of each of four rows. Two halves side by side, for an insertion into a part of a vector takes as long as one into a whole one.
    #[inline(always)]
    fn four(self, bytes: [&[u8; 16]; 4]) -> __m512i {
        let [a, b, c, d] = bytes;
        unsafe {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(a.as_ptr().cast()));
            let low = _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(b.as_ptr().cast()));
            let high = _mm256_castsi128_si256(_mm_loadu_si128(c.as_ptr().cast()));
            let high = _mm256_inserti128_si256::<1>(high, _mm_loadu_si128(d.as_ptr().cast()));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    /// Two words in every two.
    #[inline(always)]
    fn repeated(self, from: &[i32; 2]) -> __m512i {
        unsafe { _mm512_set1_epi64(from.as_ptr().cast::<i64>().read_unaligned()) }
    }

    /// In each quarter bytes `which` of the quarter as i16: in their low halves, or in the high ones if `HIGH`.
    #[inline(always)]
    fn widened<const HIGH: bool>(self, v: __m512i, which: [usize; 8]) -> __m512i {
        let mut bytes = [0; 4];
        for i in 0..4 {
            let two = (which[2 * i] | which[2 * i + 1] << 16) as i32;
            // A set top bit makes a zero.
            bytes[i] = if HIGH { two << 8 | 0x0080_0080 } else { two | 0x8000_8000_u32.cast_signed() };
        }
        unsafe { _mm512_shuffle_epi8(v, opaque(_mm512_set4_epi32(bytes[3], bytes[2], bytes[1], bytes[0]))) }
    }

    /// The same, in whole i16, of bytes that are `SIGNED` or not.
    #[inline(always)]
    fn widened_scales<const SIGNED: bool>(self, scales: __m512i, which: [usize; 8]) -> __m512i {
        if SIGNED {
            unsafe { _mm512_srai_epi16::<8>(self.widened::<true>(scales, which)) }
        } else {
            self.widened::<false>(scales, which)
        }
    }
}

impl<I: Isa<B = __m512i, N = __m512i, G = __m512, W = __m512i>> Eights<I> for Avx512Eights {
    #[inline(always)]
    fn turn(self, bytes: [&[u8; 32]; EIGHT]) -> [__m512i; 4] {
        let [r0, r1, r2, r3, r4, r5, r6, r7] = bytes;
        // Rows that follow each other end up in halves of a quarter, quarters two apart in one vector.
        let (a, b) = (self.two(r0, r2), self.two(r1, r3));
        let (c, d) = (self.two(r4, r6), self.two(r5, r7));
        unsafe {
            let (even, odd) = (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
            let (last_even, last_odd) = (_mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d));
            [
                _mm512_shuffle_i64x2::<0x88>(even, last_even),
                _mm512_shuffle_i64x2::<0x88>(odd, last_odd),
                _mm512_shuffle_i64x2::<0xdd>(even, last_even),
                _mm512_shuffle_i64x2::<0xdd>(odd, last_odd),
            ]
        }
    }

    #[inline(always)]
    fn all(self, columns: &[i32; 2]) -> __m512i {
        self.repeated(columns)
    }

    #[inline(always)]
    fn start(self, words: &[i32; 2]) -> __m512i {
        self.repeated(words)
    }

    #[inline(always)]
    fn heads(self, bytes: [&[u8; 16]; EIGHT]) -> [__m512i; 2] {
        let [r0, r1, r2, r3, r4, r5, r6, r7] = bytes;
        [self.four([r0, r2, r4, r6]), self.four([r1, r3, r5, r7])]
    }

    #[inline(always)]
    fn halves(self, [even, odd]: [__m512i; 2]) -> [__m512i; 2] {
        unsafe { [_mm512_unpacklo_epi64(even, odd), _mm512_unpackhi_epi64(even, odd)] }
    }

    #[inline(always)]
    fn six_bits(self, heads: __m512i) -> __m512i {
        unsafe {
            // Words 1, 2 and 3 of a quarter: four scales and four mins with the others' top bits, then the others' low bits.
            let words = _mm512_shuffle_epi32::<0b11_10_11_01>(heads);
            let words = _mm512_srlv_epi32(words, opaque(_mm512_set4_epi32(4, 0, 0, 0)));
            let low = opaque(_mm512_set4_epi32(0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f));
            let tops = _mm512_srli_epi32::<2>(_mm512_shuffle_epi32::<0b10_10_01_01>(heads));
            let high = opaque(_mm512_set4_epi32(0x3030_3030, 0, 0x3030_3030, 0));
            // words | tops & high
            _mm512_ternarylogic_epi32::<0xf8>(_mm512_and_si512(words, low), tops, high)
        }
    }

    #[inline(always)]
    fn factors<const SIGNED: bool>(self, scales: __m512i, pair: usize) -> __m512i {
        // The order of `_mm512_packs_epi32`: four words of the first dot products, then four of the second.
        let (a, b) = (2 * pair, 2 * pair + 1);
        self.widened_scales::<SIGNED>(scales, [a, a, 8 + a, 8 + a, b, b, 8 + b, 8 + b])
    }

    #[inline(always)]
    fn scaled(self, [first, second]: [__m512i; 2], factors: __m512i) -> __m512i {
        unsafe { _mm512_madd_epi16(_mm512_packs_epi32(first, second), factors) }
    }

    #[inline(always)]
    fn add_scaled(self, sum: __m512i, [first, second]: [__m512i; 2], factors: __m512i) -> __m512i {
        unsafe { add_pairs(sum, _mm512_packs_epi32(first, second), factors) }
    }

    #[inline(always)]
    fn spans(self, [first, last]: [__m512i; 2]) -> __m512i {
        // Words of a quarter: two rows' of the first dot products, then the same rows' of the second.
        unsafe { _mm512_add_epi32(_mm512_unpacklo_epi32(first, last), _mm512_unpackhi_epi32(first, last)) }
    }

    #[inline(always)]
    fn mins(self, mins: __m512i) -> [__m512i; 2] {
        [
            self.widened::<false>(mins, [0, 1, 4, 5, 8, 9, 12, 13]),
            self.widened::<false>(mins, [2, 3, 6, 7, 10, 11, 14, 15]),
        ]
    }

    #[inline(always)]
    fn offsets(self, [first, last]: [__m512i; 2], [low, high]: [&[i32; 2]; 2]) -> __m512i {
        unsafe {
            let sum = _mm512_madd_epi16(first, self.repeated(low));
            add_pairs(sum, last, self.repeated(high))
        }
    }

    #[inline(always)]
    fn floats<const AT: i32>(self, [even, odd]: [__m512i; 2]) -> __m512 {
        // i16 lane `AT` of each quarter, of odd rows from 32 on.
        let (q, odd_rows) = (AT * 0x0001_0001, 0x0020_0020);
        let which = [q, q + 0x0008_0008, q + 0x0010_0010, q + 0x0018_0018];
        unsafe {
            let which = _mm256_setr_epi32(
                which[0],
                which[0] + odd_rows,
                which[1],
                which[1] + odd_rows,
                which[2],
                which[2] + odd_rows,
                which[3],
                which[3] + odd_rows,
            );
            let which = opaque(_mm512_castsi256_si512(which));
            _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutex2var_epi16(even, which, odd)))
        }
    }

    #[inline(always)]
    fn of_spans(self, bits: &[i32; 2]) -> __m512 {
        unsafe { _mm512_castsi512_ps(self.repeated(bits)) }
    }

    #[inline(always)]
    fn factor<const SIGNED: bool>(self, scales: __m512i, byte: usize) -> __m512i {
        let (a, b, c, d) = (byte, 4 + byte, 8 + byte, 12 + byte);
        self.widened_scales::<SIGNED>(scales, [a, a, b, b, c, c, d, d])
    }

    #[inline(always)]
    fn two(self, bytes: __m512i, pair: usize) -> __m512i {
        let a = 2 * pair;
        self.widened::<false>(bytes, [a, a + 1, a + 4, a + 5, a + 8, a + 9, a + 12, a + 13])
    }

    #[inline(always)]
    fn sixteen<const T: usize, const EIGHTS: usize, const STARTS: bool>(
        self,
        of: &SixteenRows,
    ) -> [__m512i; T] {
        unsafe { sixteen::products::<T, EIGHTS, STARTS>(of) }
    }

    #[inline(always)]
    fn in_order(self, v: __m512i) -> __m512i {
        unsafe { in_order(v) }
    }
}
