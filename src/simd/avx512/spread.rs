//! Numbers spread over vectors, and vectors put together.

use std::arch::x86_64::*;

use super::{Avx512With, OfRows};

impl<const VNNI: bool> Avx512With<VNNI> {
    /// In every row, i16 lanes 0..8 all hold lane `2 * pair` of `v`, lanes 8..16 lane `2 * pair + 1`.
    #[inline(always)]
    pub(super) fn spread_i16(self, v: __m512i, pair: usize) -> __m512i {
        unsafe {
            // The same order within each row; a 32-bit lane's index covers two 16-bit ones.
            let (a, b) = ((2 * pair) as i32 * 0x0001_0001, (2 * pair + 1) as i32 * 0x0001_0001);
            let (c, d) = (a + 0x0010_0010, b + 0x0010_0010);
            let which = _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
            _mm512_permutexvar_epi16(which, v)
        }
    }

    /// In every row, i16 lanes 0..4 all hold lane `4 * four` of `v`, then four hold lane `4 * four + 2`, four `4 * four + 1`, and the last
    /// `4 * four + 3`: the order of [`_mm512_packs_epi32`].
    #[inline(always)]
    pub(super) fn spread_four_i16(self, v: __m512i, four: usize) -> __m512i {
        unsafe {
            let a = (4 * four) as i32 * 0x0001_0001;
            let (b, c, d) = (a + 0x0001_0001, a + 0x0002_0002, a + 0x0003_0003);
            let (e, f, g, h) = (a + 0x0010_0010, b + 0x0010_0010, c + 0x0010_0010, d + 0x0010_0010);
            let which = _mm512_setr_epi32(a, a, c, c, b, b, d, d, e, e, g, g, f, f, h, h);
            _mm512_permutexvar_epi16(which, v)
        }
    }

    #[inline(always)]
    pub(super) fn sixteen_each(self, from: OfRows<&[u8; 16]>) -> __m256i {
        unsafe {
            let first = _mm_loadu_si128(from[0].as_ptr().cast());
            _mm256_set_m128i(_mm_loadu_si128(from[1].as_ptr().cast()), first)
        }
    }
}
