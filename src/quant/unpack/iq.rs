//! The IQ formats: magnitudes from a codebook and signs beside them, or a non-linear 4-bit code.

use super::legacy::NON_LINEAR_4BIT;
use super::{Chunks, Fold, Groups, RowChunks, Scale, Unpack, bits16, bytes, word32, word64};
use crate::quant::grids;
use crate::simd::{Codebook, Isa, MAX_ROWS, OfRows};

/// As for the K formats.
const SPAN: usize = 128;

static IQ2_XXS: Codebook<u64, 256> = of_eight(&grids::IQ2_XXS, grids::LEVELS_IQ2);
static IQ2_XS: Codebook<u64, 512> = of_eight(&grids::IQ2_XS, grids::LEVELS_IQ2);
static IQ2_S: Codebook<u64, 1024> = of_eight(&grids::IQ2_S, grids::LEVELS_IQ2);
static IQ3_XXS: Codebook<u32, 256> = of_four(&grids::IQ3_XXS, grids::LEVELS_IQ3_XXS);
static IQ3_S: Codebook<u32, 512> = of_four(&grids::IQ3_S, grids::LEVELS_IQ3_S);
/// Eight times the levels -1, 0, 1, plus 16.
static IQ1: Codebook<u64, 2048> = of_eight(&grids::IQ1, [8, 16, 24, 16]);

const fn of_eight<const N: usize>(points: &'static [u16; N], levels: [u8; 4]) -> Codebook<u64, N> {
    let [a, b, c, d] = levels;
    let all = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Codebook { points, levels: all, entries: grids::eight_bytes(points, levels) }
}

const fn of_four<const N: usize>(points: &'static [u16; N], levels: [u8; 8]) -> Codebook<u32, N> {
    let [a, b, c, d, e, f, g, h] = levels;
    let all = [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0];
    Codebook { points, levels: all, entries: grids::four_bytes(points, levels) }
}

/// Seven signs a byte, and the eighth that makes the number of minuses even.
#[inline(always)]
fn even_signs<I: Isa>(isa: I, sevens: I::B) -> I::B {
    // The parity of a nibble, at the eighth bit.
    const ODD: [u8; 16] = [0, 128, 128, 0, 128, 0, 0, 128, 128, 0, 0, 128, 0, 128, 128, 0];
    let nibbles = isa.b_and(isa.b_xor(sevens, isa.b_shr::<4>(sevens)), isa.b_splat(15));
    isa.b_or(sevens, isa.b_lookup(&ODD, nibbles))
}

/// Every second word, from byte `at` on.
#[inline(always)]
fn second_words<I: Isa>(isa: I, block: OfRows<&[u8]>, at: usize) -> I::B {
    let mut words = [[0; 4]; MAX_ROWS];
    for r in 0..I::ROWS {
        for k in 0..4 {
            let at = at + 16 * k;
            words[r][k] = u64::from(word32(block[r], at)) | u64::from(word32(block[r], at + 8)) << 32;
        }
    }
    isa.b_words(words)
}

/// Scales in the top four bits of each word as 2 s + 1, each twice.
#[inline(always)]
fn odd_tops<I: Isa>(isa: I, words: I::B) -> I::B {
    isa.b_add_i16(isa.b_shl::<1>(isa.b_tops_twice(words)), isa.b_all_i16(&[1; 16]))
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

/// The constants that most of these formats share, then what differs.
macro_rules! codebook {
    ($name:ident, $doc:literal, $bytes:literal, group $group:literal, largest $largest:literal, factor $factor:literal,
     |$isa:ident, $block:ident| $points:expr, signs $signs:expr,
     |$i:ident, $b:ident| $scales:expr) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Unpack for $name {
            const BLOCK: usize = 256;
            const BYTES: usize = $bytes;
            const SPAN: usize = SPAN;
            const GROUP: usize = $group;
            const OFFSET: i32 = $largest;
            const LARGEST: u8 = 2 * $largest;
            const SCALED: bool = true;
            const LARGEST_SCALE: i32 = 31;
            const MINS: bool = false;
            const FACTOR: f32 = $factor;
            type Lanes<B: Copy> = [B; 8];

            #[inline(always)]
            fn lanes<I: Isa>($isa: I, $block: OfRows<&[u8]>) -> [I::B; 8] {
                // Magnitudes under their signs (a bit a column, 1 negative).
                let mut lanes = $isa.b_negate_all($points, $signs);
                for s in 0..8 {
                    lanes[s] = $isa.b_add(lanes[s], $isa.b_splat($largest));
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
    |isa, block| {
        let mut numbers = [isa.b_splat(0); 2];
        for i in 0..2 {
            let mut words = [[0; 2]; MAX_ROWS];
            for r in 0..I::ROWS {
                for k in 0..2 {
                    let at = 2 + 16 * (2 * i + k);
                    words[r][k] = u64::from(word32(block[r], at)) | u64::from(word32(block[r], at + 8)) << 32;
                }
            }
            numbers[i] = isa.b_widen_words(words);
        }
        isa.b_points8(&IQ2_XXS, numbers)
    },
    signs even_signs(isa, isa.b_sevens(second_words(isa, block, 6))),
    |isa, block| odd_tops(isa, second_words(isa, block, 6)));

codebook!(Iq2Xs, "`d` f16, 32 words of a 9-bit index and a 7-bit sign, 16 scales of 4 bits: d/8·(2 s + 1)·q.", 74,
    group 16, largest 43, factor 0.125,
    |isa, block| {
        let nine = isa.b_all_i16(&[0x1ff; 16]);
        let mut numbers = [nine; 2];
        for i in 0..2 {
            numbers[i] = isa.b_and(isa.b_load(bytes(block, 2 + 32 * i)), nine);
        }
        isa.b_points8(&IQ2_XS, numbers)
    },
    signs {
        let (a, b) = (isa.b_load(bytes(block, 2)), isa.b_load(bytes(block, 34)));
        even_signs(isa, isa.b_shr::<1>(isa.b_high_bytes(a, b)))
    },
    |isa, block| odd_nibbles(isa, block, 66));

codebook!(Iq2S, "`d` f16, 32 low bytes of indices, 32 bytes of signs, 8 bytes of high index bits, 16 scales: d/8·(2 s + 1)·q.", 82,
    group 16, largest 43, factor 0.125,
    |isa, block| {
        let mut numbers = [isa.b_splat(0); 2];
        for i in 0..2 {
            let mut high = [0; MAX_ROWS];
            for r in 0..I::ROWS {
                high[r] = word32(block[r], 66 + 4 * i);
            }
            numbers[i] = isa.b_or(isa.b_widen_u8(bytes(block, 2 + 16 * i)), isa.b_bits_i16::<2>(high));
        }
        isa.b_points8(&IQ2_S, numbers)
    },
    signs isa.b_load(bytes(block, 34)),
    |isa, block| odd_nibbles(isa, block, 74));

codebook!(Iq3Xxs, "`d` f16, 64 indices, then for 32 columns four 7-bit signs and a 4-bit scale: d/4·(2 s + 1)·q.", 98,
    group 32, largest 62, factor 0.25,
    |isa, block| {
        let mut numbers = [isa.b_splat(0); 4];
        for i in 0..4 {
            numbers[i] = isa.b_widen_u8(bytes(block, 2 + 16 * i));
        }
        isa.b_points4(&IQ3_XXS, numbers)
    },
    signs even_signs(isa, isa.b_sevens(isa.b_load(bytes(block, 66)))),
    |isa, block| odd_tops(isa, isa.b_load(bytes(block, 66))));

codebook!(Iq3S, "`d` f16, 64 low bytes of indices, 8 of their ninth bits, 32 of signs, 8 scales of 4 bits: d·(2 s + 1)·q.", 110,
group 32, largest 15, factor 1.0,
|isa, block| {
    let mut numbers = [isa.b_splat(0); 4];
    for i in 0..4 {
        let mut high = [0; MAX_ROWS];
        for r in 0..I::ROWS {
            high[r] = bits16(block[r], 66 + 2 * i).into();
        }
        numbers[i] = isa.b_or(isa.b_widen_u8(bytes(block, 2 + 16 * i)), isa.b_bits_i16::<1>(high));
    }
    isa.b_points4(&IQ3_S, numbers)
},
signs isa.b_load(bytes(block, 74)),
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
    const LARGEST_SCALE: i32 = 32;
    const MINS: bool = false;
    const BYTEWISE: Option<usize> = Some(136);
    const FLOATS_FIRST: bool = true;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        Self::lanes_of(isa, RowChunks(block))
    }

    #[inline(always)]
    fn lanes_of<I: Isa, C: Chunks<I>>(isa: I, chunks: C) -> [I::B; 8] {
        let mut lanes = [isa.b_splat(0); 8];
        for s in 0..8 {
            lanes[s] = isa.b_lookup(&NON_LINEAR_4BIT, chunks.nibbles(isa, 8 + 16 * s));
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

    #[inline(always)]
    fn groups_of<I: Isa, C: Chunks<I>>(isa: I, words: C) -> Groups<I::B> {
        let (high, low) = (words.chunk(isa, 0), words.chunk(isa, 4));
        let (nibble, pair, zero) = (isa.b_splat(15), isa.b_splat(3), isa.w_splat(0));
        let nibbles = [isa.w_from_b(isa.b_and(low, nibble)), isa.w_from_b(isa.b_shr::<4>(low))];
        let pairs = [high, isa.b_shr::<2>(high), isa.b_shr::<4>(high), isa.b_shr::<6>(high)];
        let mut scales = [zero; 2];
        for g in 0..8 {
            // A dot product with one byte set is the other operand's byte there, times it.
            let (one, sixteen) = (isa.w_splat(1 << (8 * (g / 2))), isa.w_splat(16 << (8 * (2 + g / 4))));
            let scale = isa.w_dot4::<false>(zero, one, nibbles[g % 2]);
            let scale = isa.w_dot4::<false>(scale, sixteen, isa.w_from_b(isa.b_and(pairs[g % 4], pair)));
            scales[g / 4] = isa.w_add(scales[g / 4], isa.w_mul(scale, isa.w_splat(1 << (8 * (g % 4)))));
        }
        let (less, zero) = (isa.b_splat(32u8.wrapping_neg()), isa.b_splat(0));
        let scales = [isa.b_from_w(scales[0]), isa.b_from_w(scales[1])];
        Groups {
            scales: [isa.b_add(scales[0], less), isa.b_add(scales[1], less), zero, zero],
            mins: [zero; 4],
        }
    }
}

/// What [`IQ1`] adds to eight times a level.
const IQ1_MIDDLE: i32 = 16;

/// Quants and scales are odd, and so are products: up to 9 · 15.
const IQ1_FOLD: Option<Fold> = Some(Fold { offset: 135, halved: true, largest: 135 });

/// The lanes 7, 9, 15, 17, 23 and 25 differ in their quarters 1 to 6.
#[inline(always)]
fn fold_iq1<I: Isa>(isa: I, lanes: I::B, scales: I::B, i: usize) -> I::B {
    isa.b_scaled::<1>(&[0, -9, -7, -1, 1, 7, 9, 0], 135, isa.b_shr::<2>(lanes), scales, i)
}

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
    const LARGEST_SCALE: i32 = 15;
    const MINS: bool = false;
    const FOLD: Option<Fold> = IQ1_FOLD;
    const FACTOR: f32 = 0.125;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let bits = isa.b_all_i16(&[0x700; 16]);
        let mut numbers = [bits; 2];
        for i in 0..2 {
            let mut words = [0; MAX_ROWS];
            for r in 0..I::ROWS {
                words[r] = word64(block[r], 34 + 8 * i);
            }
            let high = isa.b_and(isa.b_fields::<3>(words), bits);
            numbers[i] = isa.b_or(isa.b_widen_u8(bytes(block, 2 + 16 * i)), high);
        }
        // A whole word of bits for the uppermost one.
        let one = isa.b_all_i16(&[1; 16]);
        let is_down = isa.b_and(isa.b_at_least(isa.b_widen_twice(iq1_s_tops::<I>(block)), 128), one);
        let down = isa.b_add_i16(isa.b_xor(is_down, one), isa.b_splat(0xff));
        shifted(isa, isa.b_points8(&IQ1, numbers), down)
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 0), dmin: 0 }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        // The scales are below bit 7.
        let tops = isa.b_shl::<1>(isa.b_widen_twice(iq1_s_tops::<I>(block)));
        let scales = isa.b_and(isa.b_shr::<4>(tops), isa.b_splat(14));
        (isa.b_or(scales, isa.b_all_i16(&[1; 16])), isa.b_splat(0))
    }

    #[inline(always)]
    fn fold<I: Isa>(isa: I, lanes: I::B, scales: I::B, i: usize) -> I::B {
        fold_iq1(isa, lanes, scales, i)
    }
}

/// The upper bytes of a block's eight words: the shift at bit 7 and the scale below it.
#[inline(always)]
fn iq1_s_tops<I: Isa>(block: OfRows<&[u8]>) -> OfRows<u64> {
    let mut tops = [0; MAX_ROWS];
    for r in 0..I::ROWS {
        for half in 0..2 {
            let words = word64(block[r], 34 + 8 * half) >> 8 & 0x00ff_00ff_00ff_00ff;
            let pairs = (words | words >> 8) & 0x0000_ffff_0000_ffff;
            tops[r] |= u64::from((pairs | pairs >> 16) as u32) << (32 * half);
        }
    }
    tops
}

/// One more than `levels`, or one less where a column's bit of `down` is set.
#[inline(always)]
fn shifted<I: Isa>(isa: I, levels: [I::B; 8], down: I::B) -> [I::B; 8] {
    let mut lanes = isa.b_negate_all([isa.b_splat(1); 8], down);
    for s in 0..8 {
        lanes[s] = isa.b_add(levels[s], lanes[s]);
    }
    lanes
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
    const LARGEST_SCALE: i32 = 15;
    const MINS: bool = false;
    const FOLD: Option<Fold> = IQ1_FOLD;
    const FACTOR: f32 = 0.125;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let bits = isa.b_all_i16(&[0x700; 16]);
        let (mut numbers, mut high) = ([bits; 2], [bits; 2]);
        for i in 0..2 {
            let mut words = [0; MAX_ROWS];
            for r in 0..I::ROWS {
                words[r] = word64(block[r], 32 + 8 * i);
            }
            high[i] = isa.b_fields::<4>(words);
            numbers[i] = isa.b_or(isa.b_widen_u8(bytes(block, 16 * i)), isa.b_and(high[i], bits));
        }
        // The fourth bit of each nibble is the shift of eight columns.
        let down = isa.b_at_least(isa.b_and(isa.b_high_bytes(high[0], high[1]), isa.b_splat(8)), 8);
        shifted(isa, isa.b_points8(&IQ1, numbers), down)
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

    #[inline(always)]
    fn fold<I: Isa>(isa: I, lanes: I::B, scales: I::B, i: usize) -> I::B {
        fold_iq1(isa, lanes, scales, i)
    }
}
