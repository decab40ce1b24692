//! Points of codebooks by AVX-512, and what comes with their numbers.
//!
//! Safety, for every `unsafe` in this file: as in the module above.

use std::arch::x86_64::*;

use super::Avx512With;
use crate::simd::{Codebook, OfRows};

impl<const VNNI: bool> Avx512With<VNNI> {
    /// `Isa::b_points8`.
    #[inline(always)]
    pub(super) fn points8<const N: usize>(
        self,
        book: &Codebook<u64, N>,
        numbers: [__m512i; 2],
    ) -> [__m512i; 8] {
        // Beyond so many points loads are faster than looking through registers.
        if N > 512 {
            return self.gathered(&book.entries, numbers);
        }
        let points = self.points(book.points, numbers);
        let mut lanes = [numbers[0]; 8];
        for s in 0..8 {
            unsafe {
                // Words 4k.. of a row are made of its point k, two coordinates each.
                let which = _mm512_setr_epi32(
                    0x0000_0000,
                    0x0000_0000,
                    0x0001_0001,
                    0x0001_0001,
                    0x0002_0002,
                    0x0002_0002,
                    0x0003_0003,
                    0x0003_0003,
                    0x0010_0010,
                    0x0010_0010,
                    0x0011_0011,
                    0x0011_0011,
                    0x0012_0012,
                    0x0012_0012,
                    0x0013_0013,
                    0x0013_0013,
                );
                let which = _mm512_add_epi16(which, _mm512_set1_epi16(4 * (s % 4) as i16));
                let point = _mm512_permutexvar_epi16(which, points[s / 4]);
                let pair = _mm512_srlv_epi16(point, _mm512_set1_epi64(0x000c_0008_0004_0000));
                let second = _mm512_sll_epi16(pair, _mm_cvtsi32_si128(6));
                lanes[s] = self.levels(&book.levels, pair, second, 0x0303);
            }
        }
        lanes
    }

    /// `Isa::b_points4`.
    #[inline(always)]
    pub(super) fn points4<const N: usize>(
        self,
        book: &Codebook<u32, N>,
        numbers: [__m512i; 4],
    ) -> [__m512i; 8] {
        let points = self.points(book.points, numbers);
        let mut lanes = [numbers[0]; 8];
        for s in 0..8 {
            unsafe {
                // Words 2k.. of a row are made of its point k, two coordinates each.
                let which = _mm512_setr_epi32(
                    0x0000_0000,
                    0x0001_0001,
                    0x0002_0002,
                    0x0003_0003,
                    0x0004_0004,
                    0x0005_0005,
                    0x0006_0006,
                    0x0007_0007,
                    0x0010_0010,
                    0x0011_0011,
                    0x0012_0012,
                    0x0013_0013,
                    0x0014_0014,
                    0x0015_0015,
                    0x0016_0016,
                    0x0017_0017,
                );
                let which = _mm512_add_epi16(which, _mm512_set1_epi16(8 * (s % 2) as i16));
                let point = _mm512_permutexvar_epi16(which, points[s / 2]);
                let pair = _mm512_srlv_epi16(point, _mm512_set1_epi32(0x0006_0000));
                let second = _mm512_sll_epi16(pair, _mm_cvtsi32_si128(5));
                lanes[s] = self.levels(&book.levels, pair, second, 0x0707);
            }
        }
        lanes
    }

    /// `Isa::b_bits_i16`.
    #[inline(always)]
    pub(super) fn bits_i16<const N: usize>(self, bits: OfRows<u32>) -> __m512i {
        const { assert!(N == 1 || N == 2) };
        unsafe {
            let (a, b) = (_mm256_set1_epi32(bits[0] as i32), _mm256_set1_epi32(bits[1] as i32));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
            // Each word gets the byte with its number in it (and a zero), which is then shifted to bit 8.
            const BYTE: i64 = 0x0001_0001_0001_0001;
            const ZERO: i64 = 0x8000_8000_8000_8000_u64 as i64;
            let (bytes, shifts) = if N == 1 {
                (
                    _mm512_setr_epi64(0, 0, BYTE, BYTE, 0, 0, BYTE, BYTE),
                    [0x0005_0006_0007_0008, 0x0001_0002_0003_0004],
                )
            } else {
                (
                    _mm512_setr_epi64(0, BYTE, 2 * BYTE, 3 * BYTE, 0, BYTE, 2 * BYTE, 3 * BYTE),
                    [0x0002_0004_0006_0008, 0x0002_0004_0006_0008],
                )
            };
            let [x, y] = shifts;
            let shifts = _mm512_setr_epi64(x, y, x, y, x, y, x, y);
            let at = _mm512_sllv_epi16(
                _mm512_shuffle_epi8(both, _mm512_or_si512(bytes, _mm512_set1_epi64(ZERO))),
                shifts,
            );
            _mm512_and_si512(at, _mm512_set1_epi16(((1 << N) - 1) << 8))
        }
    }

    /// `Isa::b_fields`.
    #[inline(always)]
    pub(super) fn fields<const N: usize>(self, words: OfRows<u64>) -> __m512i {
        unsafe {
            let (a, b) = (_mm256_set1_epi64x(words[0] as i64), _mm256_set1_epi64x(words[1] as i64));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
            let first = 0x0100_0100_0100_0100;
            let word = 0x0202_0202_0202_0202;
            let which = _mm512_setr_epi64(
                first,
                first + word,
                first + 2 * word,
                first + 3 * word,
                first,
                first + word,
                first + 2 * word,
                first + 3 * word,
            );
            // 0, N, 2 N and 3 N.
            let counts = _mm512_set1_epi64(N as i64 * 0x0003_0002_0001_0000);
            _mm512_slli_epi16::<8>(_mm512_srlv_epi16(_mm512_shuffle_epi8(both, which), counts))
        }
    }

    /// `Isa::b_negate_all`.
    #[inline(always)]
    pub(super) fn negate_all(self, mut v: [__m512i; 8], signs: __m512i) -> [__m512i; 8] {
        unsafe {
            // Each 128 bits get the bits of their columns in all vectors, two bytes of each.
            let which = _mm512_setr_epi64(
                0x0006_0004_0002_0000,
                0x000e_000c_000a_0008,
                0x0007_0005_0003_0001,
                0x000f_000d_000b_0009,
                0x0016_0014_0012_0010,
                0x001e_001c_001a_0018,
                0x0017_0015_0013_0011,
                0x001f_001d_001b_0019,
            );
            let signs = _mm512_permutexvar_epi16(which, signs);
            let bit = _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64);
            for s in 0..8 {
                let first = 0x0202_0202_0202_0202 * s as i64;
                let bytes = _mm_set_epi64x(first + 0x0101_0101_0101_0101, first);
                let spread = _mm512_shuffle_epi8(signs, _mm512_broadcast_i32x4(bytes));
                let negative = _mm512_test_epi8_mask(spread, bit);
                v[s] = _mm512_mask_sub_epi8(v[s], negative, _mm512_setzero_si512(), v[s]);
            }
            v
        }
    }

    /// The points whose numbers, all below `N`, are the i16 of `numbers`.
    #[inline(always)]
    fn points<const N: usize, const M: usize>(
        self,
        points: &[u16; N],
        numbers: [__m512i; M],
    ) -> [__m512i; M] {
        const { assert!(N.is_power_of_two() && N >= 64) };
        unsafe {
            let (mut part, mut found) = (numbers, numbers);
            for i in 0..M {
                part[i] = _mm512_srl_epi16(numbers[i], _mm_cvtsi32_si128(6));
            }
            let parts = points.as_chunks::<64>().0;
            for p in 0..N / 64 {
                // Two registers hold 64 points; what is not among them stays a number.
                let low = _mm512_loadu_si512(parts[p].as_ptr().cast());
                let high = _mm512_loadu_si512(parts[p][32..].as_ptr().cast());
                for i in 0..M {
                    let here = _mm512_cmpeq_epi16_mask(part[i], _mm512_set1_epi16(p as i16));
                    found[i] = _mm512_mask2_permutex2var_epi16(low, found[i], here, high);
                }
            }
            found
        }
    }

    /// The entries whose numbers are the i16 of `numbers`, 32 a row.
    #[inline(always)]
    fn gathered<const N: usize>(self, entries: &[u64; N], numbers: [__m512i; 2]) -> [__m512i; 8] {
        const { assert!(N.is_power_of_two()) };
        let mut lanes = [numbers[0]; 8];
        unsafe {
            for i in 0..2 {
                // Four numbers of the first row, four of the second, and so on.
                let which = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
                let fours = _mm512_permutexvar_epi64(which, numbers[i]);
                let eights = [
                    _mm512_castsi512_si128(fours),
                    _mm512_extracti32x4_epi32::<1>(fours),
                    _mm512_extracti32x4_epi32::<2>(fours),
                    _mm512_extracti32x4_epi32::<3>(fours),
                ];
                for k in 0..4 {
                    // Sound: what is left of a number is below the table's length.
                    let at =
                        _mm512_and_si512(_mm512_cvtepu16_epi64(eights[k]), _mm512_set1_epi64(N as i64 - 1));
                    lanes[4 * i + k] = _mm512_i64gather_epi64::<8>(at, entries.as_ptr().cast());
                }
            }
        }
        lanes
    }

    /// What the levels in the low bytes of `first` and the high bytes of `second` stand for; `mask` keeps a level's bits.
    #[inline(always)]
    fn levels(self, levels: &[u8; 16], first: __m512i, second: __m512i, mask: i16) -> __m512i {
        unsafe {
            let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(levels.as_ptr().cast()));
            // Bits of the second where the first has them, else of the third.
            let pair = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi16(0xff), first, second);
            _mm512_shuffle_epi8(levels, _mm512_and_si512(pair, _mm512_set1_epi16(mask)))
        }
    }
}
