//! The IQ formats: magnitudes from a codebook and signs beside them, or a non-linear 4-bit code.

use super::legacy::NON_LINEAR_4BIT;
use super::{Scale, Unpack, bits16, bytes, word32};
use crate::quant::grids;
use crate::quant::iq2::eight_signs;
use crate::simd::{Isa, MAX_ROWS, OfRows};

/// As for the K formats.
const SPAN: usize = 128;

/// What is added to signed values to make lanes of them: IQ3_XXS reaches 62.
const MIDDLE: u8 = 64;

static IQ2_XXS: [u64; 256] = grids::eight_bytes(&grids::IQ2_XXS, grids::LEVELS_IQ2);
static IQ2_XS: [u64; 512] = grids::eight_bytes(&grids::IQ2_XS, grids::LEVELS_IQ2);
static IQ2_S: [u64; 1024] = grids::eight_bytes(&grids::IQ2_S, grids::LEVELS_IQ2);
static IQ3_XXS: [u32; 256] = grids::four_bytes(&grids::IQ3_XXS, grids::LEVELS_IQ3_XXS);
static IQ3_S: [u32; 512] = grids::four_bytes(&grids::IQ3_S, grids::LEVELS_IQ3_S);
/// Eight times the levels -1, 0, 1, plus 16.
static IQ1: [u64; 2048] = grids::eight_bytes(&grids::IQ1, [8, 16, 24, 16]);

/// Magnitudes under their signs (a bit a column, 1 negative), plus [`MIDDLE`].
#[inline(always)]
fn signed<I: Isa>(isa: I, magnitudes: I::B, signs: OfRows<u32>) -> I::B {
    let negative = isa.b_from_bits(signs);
    // -x is the complement of x plus one.
    let one = isa.b_and(negative, isa.b_splat(1));
    isa.b_add(isa.b_xor(magnitudes, negative), isa.b_add(one, isa.b_splat(MIDDLE)))
}

/// The signs of 32 columns from 28 bits: the eighth of each eight makes the number of minuses even.
#[inline(always)]
fn even_signs(stored: u32) -> u32 {
    let seven =
        (stored & 0x7f) | (stored & 0x3f80) << 1 | (stored & 0x1f_c000) << 2 | (stored & 0xfe0_0000) << 3;
    // The parity of each byte ends up in its lowest bit.
    let fold = seven ^ seven >> 4;
    let fold = fold ^ fold >> 2;
    let parity = (fold ^ fold >> 1) & 0x0101_0101;
    seven | parity << 7
}

/// Bytes from the nibbles of `word`, lowest first.
#[inline(always)]
fn spread_nibbles(word: u32) -> u64 {
    let x = u64::from(word);
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

/// Bytes from the pairs of bits of `word`, lowest first.
#[inline(always)]
fn spread_pairs(word: u16) -> u64 {
    let x = u64::from(word);
    let x = (x | x << 24) & 0x0000_00ff_0000_00ff;
    let x = (x | x << 12) & 0x000f_000f_000f_000f;
    (x | x << 6) & 0x0303_0303_0303_0303
}

/// Bytes from the lower four threes of bits of each half of `word`, lowest first.
#[inline(always)]
fn spread_threes(word: u32) -> u64 {
    let x = u64::from(word & 0xffff) | u64::from(word >> 16) << 32;
    (x & 0x7_0000_0007)
        | (x & 0x38_0000_0038) << 5
        | (x & 0x1c0_0000_01c0) << 10
        | (x & 0xe00_0000_0e00) << 15
}

/// Eight bytes `s` as 2 s + 1.
#[inline(always)]
const fn odd(bytes: u64) -> u64 {
    bytes << 1 | 0x0101_0101_0101_0101
}

/// Sixteen nibbles `s`, lowest first, as 2 s + 1.
#[inline(always)]
fn odd_nibbles<I: Isa>(isa: I, block: OfRows<&[u8]>, at: usize) -> I::B {
    let mut scales = [[0; 2]; MAX_ROWS];
    for r in 0..I::ROWS {
        scales[r] =
            [odd(spread_nibbles(word32(block[r], at))), odd(spread_nibbles(word32(block[r], at + 4)))];
    }
    isa.b_widen_words(scales)
}

/// Eight scales in the top four bits of the words from byte `at`, `stride` bytes apart, as 2 s + 1, each twice.
#[inline(always)]
fn odd_tops<I: Isa>(isa: I, block: OfRows<&[u8]>, at: usize, stride: usize) -> I::B {
    let mut scales = [0u64; MAX_ROWS];
    for r in 0..I::ROWS {
        for s in 0..8 {
            let scale = 2 * (word32(block[r], at + s * stride) >> 28) + 1;
            scales[r] |= u64::from(scale) << (8 * s);
        }
    }
    isa.b_widen_twice(scales)
}

/// The constants that most of these formats share, then what differs.
macro_rules! codebook {
    ($name:ident, $doc:literal, $bytes:literal, group $group:literal, largest $largest:literal, factor $factor:literal,
     |$isa:ident, $block:ident, $s:ident| $lanes:expr,
     |$i:ident, $b:ident| $scales:expr) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Unpack for $name {
            const BLOCK: usize = 256;
            const BYTES: usize = $bytes;
            const SPAN: usize = SPAN;
            const GROUP: usize = $group;
            const OFFSET: i32 = MIDDLE as i32;
            const LARGEST: u8 = MIDDLE + $largest;
            const SCALED: bool = true;
            const MINS: bool = false;
            const FACTOR: f32 = $factor;
            type Lanes<B: Copy> = [B; 8];

            #[inline(always)]
            fn lanes<I: Isa>($isa: I, $block: OfRows<&[u8]>) -> [I::B; 8] {
                let mut lanes = [$isa.b_splat(0); 8];
                for $s in 0..8 {
                    lanes[$s] = $lanes;
                }
                lanes
            }

            #[inline(always)]
            fn scale(block: &[u8]) -> Scale {
                Scale { d: bits16(block, 0), dmin: 0 }
            }

            #[inline(always)]
            fn groups<I: Isa>($i: I, $b: OfRows<&[u8]>) -> (I::B, I::B) {
                ($scales, $i.b_splat(0))
            }
        }
    };
}

codebook!(Iq2Xxs, "`d` f16, then for 32 columns four indices, four 7-bit signs and a 4-bit scale: d/8·(2 s + 1)·q.", 66,
    group 32, largest 43, factor 0.125,
    |isa, block, s| {
        let (mut words, mut signs) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
        for r in 0..I::ROWS {
            for k in 0..4 {
                words[r][k] = IQ2_XXS[usize::from(block[r][2 + 8 * s + k])];
            }
            signs[r] = even_signs(word32(block[r], 6 + 8 * s));
        }
        signed(isa, isa.b_words(words), signs)
    },
    |isa, block| odd_tops(isa, block, 6, 8));

codebook!(Iq2Xs, "`d` f16, 32 words of a 9-bit index and a 7-bit sign, 16 scales of 4 bits: d/8·(2 s + 1)·q.", 74,
    group 16, largest 43, factor 0.125,
    |isa, block, s| {
        let (mut words, mut signs) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
        for r in 0..I::ROWS {
            for k in 0..4 {
                let word = bits16(block[r], 2 + 8 * s + 2 * k);
                words[r][k] = IQ2_XS[usize::from(word & 511)];
                signs[r] |= u32::from(eight_signs(u32::from(word >> 9))) << (8 * k);
            }
        }
        signed(isa, isa.b_words(words), signs)
    },
    |isa, block| odd_nibbles(isa, block, 66));

codebook!(Iq2S, "`d` f16, 32 low bytes of indices, 32 bytes of signs, 8 bytes of high index bits, 16 scales: d/8·(2 s + 1)·q.", 82,
    group 16, largest 43, factor 0.125,
    |isa, block, s| {
        let (mut words, mut signs) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
        for r in 0..I::ROWS {
            for k in 0..4 {
                let high = usize::from(block[r][66 + s] >> (2 * k)) & 3;
                words[r][k] = IQ2_S[usize::from(block[r][2 + 4 * s + k]) | high << 8];
            }
            signs[r] = word32(block[r], 34 + 4 * s);
        }
        signed(isa, isa.b_words(words), signs)
    },
    |isa, block| odd_nibbles(isa, block, 74));

codebook!(Iq3Xxs, "`d` f16, 64 indices, then for 32 columns four 7-bit signs and a 4-bit scale: d/4·(2 s + 1)·q.", 98,
    group 32, largest 62, factor 0.25,
    |isa, block, s| {
        let (mut words, mut signs) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
        for r in 0..I::ROWS {
            for k in 0..4 {
                let index = |i: usize| IQ3_XXS[usize::from(block[r][2 + 8 * s + 2 * k + i])];
                words[r][k] = u64::from(index(0)) | u64::from(index(1)) << 32;
            }
            signs[r] = even_signs(word32(block[r], 66 + 4 * s));
        }
        signed(isa, isa.b_words(words), signs)
    },
    |isa, block| odd_tops(isa, block, 66, 4));

codebook!(Iq3S, "`d` f16, 64 low bytes of indices, 8 of their ninth bits, 32 of signs, 8 scales of 4 bits: d·(2 s + 1)·q.", 110,
group 32, largest 15, factor 1.0,
|isa, block, s| {
    let (mut words, mut signs) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
    for r in 0..I::ROWS {
        let high = usize::from(block[r][66 + s]);
        for k in 0..4 {
            let index = |i: usize| {
                IQ3_S[usize::from(block[r][2 + 8 * s + i]) | (high >> i & 1) << 8]
            };
            words[r][k] = u64::from(index(2 * k)) | u64::from(index(2 * k + 1)) << 32;
        }
        signs[r] = word32(block[r], 74 + 4 * s);
    }
    signed(isa, isa.b_words(words), signs)
},
|isa, block| {
    let mut scales = [0u64; MAX_ROWS];
    for r in 0..I::ROWS {
        scales[r] = odd(spread_nibbles(word32(block[r], 106)));
    }
    isa.b_widen_twice(scales)
});

/// `d` f16, 8 scales of 6 bits (their high bits in a word, then their low ones), 128 bytes of nibbles:
/// d·(s − 32)·v\[q\]. Lanes are v + 128.
#[derive(Clone, Copy, Debug)]
pub struct Iq4Xs;

impl Unpack for Iq4Xs {
    const BLOCK: usize = 256;
    const BYTES: usize = 136;
    const SPAN: usize = SPAN;
    const GROUP: usize = 32;
    const OFFSET: i32 = 128;
    const LARGEST: u8 = 241;
    const SCALED: bool = true;
    const MINS: bool = false;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let mut lanes = [isa.b_splat(0); 8];
        for s in 0..8 {
            lanes[s] = isa.b_lookup(&NON_LINEAR_4BIT, isa.b_nibbles(bytes(block, 8 + 16 * s)));
        }
        lanes
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 0), dmin: 0 }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        let mut scales = [0; MAX_ROWS];
        for r in 0..I::ROWS {
            let (high, low) = (bits16(block[r], 2), word32(block[r], 4));
            scales[r] = spread_nibbles(low) | spread_pairs(high) << 4;
        }
        let scales = isa.b_add_i16(isa.b_widen_twice(scales), isa.b_all_i16(&[-32; 16]));
        (scales, isa.b_splat(0))
    }
}

/// What [`IQ1`] adds to eight times a level.
const IQ1_MIDDLE: i32 = 16;

/// `d` f16, 32 low bytes of indices, then for 32 columns a word of index bits, a 3-bit scale and the shift:
/// d/8·(2 s + 1)·(8 level ± 1).
#[derive(Clone, Copy, Debug)]
pub struct Iq1S;

impl Unpack for Iq1S {
    const BLOCK: usize = 256;
    const BYTES: usize = 50;
    const SPAN: usize = SPAN;
    const GROUP: usize = 32;
    const OFFSET: i32 = IQ1_MIDDLE;
    const LARGEST: u8 = 25;
    const SCALED: bool = true;
    const MINS: bool = false;
    const FACTOR: f32 = 0.125;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let mut lanes = [isa.b_splat(0); 8];
        for s in 0..8 {
            let (mut words, mut down) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
            for r in 0..I::ROWS {
                let word = bits16(block[r], 34 + 2 * s);
                for k in 0..4 {
                    let high = usize::from(word >> (3 * k)) & 7;
                    words[r][k] = IQ1[usize::from(block[r][2 + 4 * s + k]) | high << 8];
                }
                down[r] = if word & 0x8000 != 0 { u32::MAX } else { 0 };
            }
            lanes[s] = shifted(isa, isa.b_words(words), down);
        }
        lanes
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 0), dmin: 0 }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        let mut scales = [0u64; MAX_ROWS];
        for r in 0..I::ROWS {
            for s in 0..8 {
                let scale = 2 * (bits16(block[r], 34 + 2 * s) >> 12 & 7) + 1;
                scales[r] |= u64::from(scale) << (8 * s);
            }
        }
        (isa.b_widen_twice(scales), isa.b_splat(0))
    }
}

/// One more than `levels`, or one less where `down`.
#[inline(always)]
fn shifted<I: Isa>(isa: I, levels: I::B, down: OfRows<u32>) -> I::B {
    // 1, or 0xff for -1.
    isa.b_add(levels, isa.b_or(isa.b_from_bits(down), isa.b_splat(1)))
}

/// 32 low bytes of indices, a nibble of index bits and shift for 8 columns, 16 scales of 3 bits and `d` f16 in four
/// words: d/8·(2 s + 1)·(8 level ± 1).
#[derive(Clone, Copy, Debug)]
pub struct Iq1M;

impl Unpack for Iq1M {
    const BLOCK: usize = 256;
    const BYTES: usize = 56;
    const SPAN: usize = SPAN;
    const GROUP: usize = 16;
    const OFFSET: i32 = IQ1_MIDDLE;
    const LARGEST: u8 = 25;
    const SCALED: bool = true;
    const MINS: bool = false;
    const FACTOR: f32 = 0.125;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let mut lanes = [isa.b_splat(0); 8];
        for s in 0..8 {
            let (mut words, mut down) = ([[0; 4]; MAX_ROWS], [0; MAX_ROWS]);
            for r in 0..I::ROWS {
                let nibbles = bits16(block[r], 32 + 2 * s);
                for k in 0..4 {
                    let nibble = usize::from(nibbles >> (4 * k)) & 15;
                    words[r][k] = IQ1[usize::from(block[r][4 * s + k]) | (nibble & 7) << 8];
                    down[r] |= if nibble & 8 != 0 { 0xff << (8 * k) } else { 0 };
                }
            }
            lanes[s] = shifted(isa, isa.b_words(words), down);
        }
        lanes
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        let top = |part: usize| (bits16(block, 48 + 2 * part) >> 12) << (4 * part);
        Scale { d: top(0) | top(1) | top(2) | top(3), dmin: 0 }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        let mut scales = [[0; 2]; MAX_ROWS];
        for r in 0..I::ROWS {
            scales[r] = [odd(spread_threes(word32(block[r], 48))), odd(spread_threes(word32(block[r], 52)))];
        }
        (isa.b_widen_words(scales), isa.b_splat(0))
    }
}
