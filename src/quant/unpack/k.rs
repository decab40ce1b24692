//! The K formats: super-blocks of 256 columns with integer scales.

use super::{
    Chunks, EightGroups, EightRows, Fold, Groups, RowChunks, Scale, Unpack, bits16, bytes, bytes_of_eight,
    word32, word64,
};
use crate::simd::{EIGHT, Eights, Isa, MAX_ROWS, OfRows, reach};

/// Activations get a scale of their own every 128 columns: finer than the 256 that llama.cpp uses, at
/// a cost of two multiplications, and a span of Q4_K still fits a float exactly.
const SPAN: usize = 128;

/// The eight 6-bit scales and mins of Q4_K and Q5_K, packed in the 12 bytes from byte 4, each twice.
#[inline(always)]
fn six_bit_groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
    let (mut scales, mut mins) = ([0; MAX_ROWS], [0; MAX_ROWS]);
    for r in 0..I::ROWS {
        // Four scales, then four mins: the first ones, and the last ones' top bits; all last ones' low bits.
        let (words, nibbles) = (word64(block[r], 4), u64::from(word32(block[r], 12)));
        let first = words & 0x3f3f_3f3f_3f3f_3f3f;
        let low = (nibbles | nibbles << 28) & 0x0f0f_0f0f_0f0f_0f0f;
        let last = low | ((words >> 2) & 0x3030_3030_3030_3030);
        scales[r] = first & 0xffff_ffff | last << 32;
        mins[r] = first >> 32 | last & 0xffff_ffff_0000_0000;
    }
    (isa.b_widen_twice(scales), isa.b_widen_twice(mins))
}

/// As [`six_bit_groups`], of words of many rows.
#[inline(always)]
fn six_bit_groups_of<I: Isa, C: Chunks<I>>(isa: I, words: C) -> Groups<I::B> {
    let (a, b, c) = (words.chunk(isa, 4), words.chunk(isa, 8), words.chunk(isa, 12));
    let (zero, six, four, top) = (isa.b_splat(0), isa.b_splat(0x3f), isa.b_splat(0x0f), isa.b_splat(0x30));
    let high_scales = isa.b_or(isa.b_and(c, four), isa.b_and(isa.b_shr::<2>(a), top));
    let high_mins = isa.b_or(isa.b_shr::<4>(c), isa.b_and(isa.b_shr::<2>(b), top));
    Groups {
        scales: [isa.b_and(a, six), high_scales, zero, zero],
        mins: [isa.b_and(b, six), high_mins, zero, zero],
    }
}

/// As [`six_bit_groups`], with the floats before them, of eight rows side by side.
#[inline(always)]
fn six_bit_eights<I: Isa, E: Eights<I>>(isa: I, eights: E, block: [&[u8]; EIGHT]) -> EightGroups<I> {
    let heads = eights.heads(bytes_of_eight(block, 0));
    let [scales, mins] = eights.halves([eights.six_bits(heads[0]), eights.six_bits(heads[1])]);
    EightGroups {
        scales: [scales, isa.b_splat(0)],
        mins: eights.mins(mins),
        d: eights.floats::<0>(heads),
        dmin: eights.floats::<1>(heads),
    }
}

/// `d`, `dmin` f16; 8 scales and mins of 6 bits; 128 bytes of nibbles, 32 columns low, the next 32 high.
#[derive(Clone, Copy, Debug)]
pub struct Q4K;

impl Unpack for Q4K {
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const SPAN: usize = SPAN;
    const GROUP: usize = 32;
    const OFFSET: i32 = 0;
    const LARGEST: u8 = 15;
    const SCALED: bool = true;
    const LARGEST_SCALE: i32 = 63;
    const MINS: bool = true;
    const BYTEWISE: Option<usize> = Some(144);
    const FLOATS_FIRST: bool = true;
    const EIGHTS: Option<EightRows> = Some(EightRows { first: 16, chunks: 4, signed: false });
    const REACH: i32 = reach(Self::LARGEST);
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        Self::lanes_of(isa, RowChunks(block))
    }

    #[inline(always)]
    fn lanes_of<I: Isa, C: Chunks<I>>(isa: I, chunks: C) -> [I::B; 8] {
        let nibble = isa.b_splat(15);
        let mut lanes = [nibble; 8];
        for i in 0..4 {
            let packed = chunks.chunk(isa, 16 + 32 * i);
            lanes[2 * i] = isa.b_and(packed, nibble);
            lanes[2 * i + 1] = isa.b_shr::<4>(packed);
        }
        lanes
    }

    #[inline(always)]
    fn eight_groups<I: Isa, E: Eights<I>>(isa: I, eights: E, block: [&[u8]; EIGHT]) -> EightGroups<I> {
        six_bit_eights(isa, eights, block)
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 0), dmin: bits16(block, 2) }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        six_bit_groups(isa, block)
    }

    #[inline(always)]
    fn groups_of<I: Isa, C: Chunks<I>>(isa: I, words: C) -> Groups<I::B> {
        six_bit_groups_of(isa, words)
    }
}

/// As Q4_K with a fifth bit: bit `g` of byte `i` of `qh` belongs to column `32 g + i`.
#[derive(Clone, Copy, Debug)]
pub struct Q5K;

impl Unpack for Q5K {
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    const SPAN: usize = SPAN;
    const GROUP: usize = 32;
    const OFFSET: i32 = 0;
    const LARGEST: u8 = 31;
    const SCALED: bool = true;
    const LARGEST_SCALE: i32 = 63;
    const MINS: bool = true;
    const BYTEWISE: Option<usize> = Some(176);
    const FLOATS_FIRST: bool = true;
    const EIGHTS: Option<EightRows> = Some(EightRows { first: 16, chunks: 5, signed: false });
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        Self::lanes_of(isa, RowChunks(block))
    }

    #[inline(always)]
    fn lanes_of<I: Isa, C: Chunks<I>>(isa: I, chunks: C) -> [I::B; 8] {
        let (nibble, fifth) = (isa.b_splat(15), isa.b_splat(16));
        let high = chunks.chunk(isa, 16);
        let bit = [
            isa.b_shl::<4>(high),
            isa.b_shl::<3>(high),
            isa.b_shl::<2>(high),
            isa.b_shl::<1>(high),
            high,
            isa.b_shr::<1>(high),
            isa.b_shr::<2>(high),
            isa.b_shr::<3>(high),
        ];
        let mut lanes = [nibble; 8];
        for i in 0..4 {
            let packed = chunks.chunk(isa, 48 + 32 * i);
            lanes[2 * i] = isa.b_or(isa.b_and(packed, nibble), isa.b_and(bit[2 * i], fifth));
            lanes[2 * i + 1] = isa.b_or(isa.b_shr::<4>(packed), isa.b_and(bit[2 * i + 1], fifth));
        }
        lanes
    }

    #[inline(always)]
    fn eight_groups<I: Isa, E: Eights<I>>(isa: I, eights: E, block: [&[u8]; EIGHT]) -> EightGroups<I> {
        six_bit_eights(isa, eights, block)
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 0), dmin: bits16(block, 2) }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        six_bit_groups(isa, block)
    }

    #[inline(always)]
    fn groups_of<I: Isa, C: Chunks<I>>(isa: I, words: C) -> Groups<I::B> {
        six_bit_groups_of(isa, words)
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 i8 scales, `d` f16: d·s·(q − 32).
#[derive(Clone, Copy, Debug)]
pub struct Q6K;

impl Unpack for Q6K {
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    const SPAN: usize = SPAN;
    const GROUP: usize = 16;
    const OFFSET: i32 = 32;
    const LARGEST: u8 = 63;
    const SCALED: bool = true;
    const LARGEST_SCALE: i32 = 128;
    const MINS: bool = false;
    const BYTEWISE: Option<usize> = Some(208);
    const EIGHTS: Option<EightRows> = Some(EightRows { first: 0, chunks: 6, signed: true });
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        Self::lanes_of(isa, RowChunks(block))
    }

    #[inline(always)]
    fn lanes_of<I: Isa, C: Chunks<I>>(isa: I, chunks: C) -> [I::B; 8] {
        let (nibble, pair) = (isa.b_splat(15), isa.b_splat(0x30));
        let mut lanes = [nibble; 8];
        for half in 0..2 {
            let a = chunks.chunk(isa, 64 * half);
            let b = chunks.chunk(isa, 64 * half + 32);
            let high = chunks.chunk(isa, 128 + 32 * half);
            let out = &mut lanes[4 * half..4 * half + 4];
            out[0] = isa.b_or(isa.b_and(a, nibble), isa.b_and(isa.b_shl::<4>(high), pair));
            out[1] = isa.b_or(isa.b_and(b, nibble), isa.b_and(isa.b_shl::<2>(high), pair));
            out[2] = isa.b_or(isa.b_shr::<4>(a), isa.b_and(high, pair));
            out[3] = isa.b_or(isa.b_shr::<4>(b), isa.b_and(isa.b_shr::<2>(high), pair));
        }
        lanes
    }

    #[inline(always)]
    fn eight_groups<I: Isa, E: Eights<I>>(isa: I, eights: E, block: [&[u8]; EIGHT]) -> EightGroups<I> {
        let zero = isa.b_splat(0);
        EightGroups {
            scales: eights.halves(eights.heads(bytes_of_eight(block, 192))),
            mins: [zero; 2],
            d: eights.floats::<7>(eights.heads(bytes_of_eight(block, 194))),
            dmin: isa.g_zero(),
        }
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 208), dmin: 0 }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        (isa.b_widen_i8(bytes(block, 192)), isa.b_splat(0))
    }

    #[inline(always)]
    fn groups_of<I: Isa, C: Chunks<I>>(isa: I, words: C) -> Groups<I::B> {
        let zero = isa.b_splat(0);
        let mut scales = [zero; 4];
        for i in 0..4 {
            scales[i] = words.chunk(isa, 192 + 4 * i);
        }
        Groups { scales, mins: [zero; 4] }
    }
}

/// Two bits a column: byte `i` of each 32 holds columns `i`, `32 + i`, `64 + i`, `96 + i`.
#[inline(always)]
pub(super) fn bit_pairs<I: Isa>(isa: I, block: OfRows<&[u8]>, at: usize) -> [I::B; 8] {
    let pair = isa.b_splat(3);
    let mut lanes = [pair; 8];
    for half in 0..2 {
        let packed = isa.b_load(bytes(block, at + 32 * half));
        let out = &mut lanes[4 * half..4 * half + 4];
        out[0] = isa.b_and(packed, pair);
        out[1] = isa.b_and(isa.b_shr::<2>(packed), pair);
        out[2] = isa.b_and(isa.b_shr::<4>(packed), pair);
        out[3] = isa.b_shr::<6>(packed);
    }
    lanes
}

/// 16 bytes of a 4-bit scale and min each, 64 bytes of bit pairs, `d`, `dmin` f16.
#[derive(Clone, Copy, Debug)]
pub struct Q2K;

impl Unpack for Q2K {
    const BLOCK: usize = 256;
    const BYTES: usize = 84;
    const SPAN: usize = SPAN;
    const GROUP: usize = 16;
    const OFFSET: i32 = 0;
    const LARGEST: u8 = 3;
    const SCALED: bool = true;
    const LARGEST_SCALE: i32 = 15;
    const MINS: bool = true;
    const FOLD: Option<Fold> = Some(Fold { offset: 0, halved: false, largest: 3 * 15 });
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        bit_pairs(isa, block, 16)
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 80), dmin: bits16(block, 82) }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        let packed = isa.b_widen_u8(bytes(block, 0));
        // Widened values stay below 256, so byte shifts move the upper nibble within its lane.
        (isa.b_and(packed, isa.b_splat(15)), isa.b_shr::<4>(packed))
    }

    #[inline(always)]
    fn fold<I: Isa>(isa: I, lanes: I::B, scales: I::B, i: usize) -> I::B {
        isa.b_scaled::<0>(&[0, 1, 2, 3, 0, 0, 0, 0], 0, lanes, scales, i)
    }
}

/// 32 bytes of third bits, 64 bytes of bit pairs, 16 scales of 6 bits, `d` f16: d·(s − 32)·(q − 4).
#[derive(Clone, Copy, Debug)]
pub struct Q3K;

impl Unpack for Q3K {
    const BLOCK: usize = 256;
    const BYTES: usize = 110;
    const SPAN: usize = SPAN;
    const GROUP: usize = 16;
    const OFFSET: i32 = 4;
    const LARGEST: u8 = 7;
    const SCALED: bool = true;
    const LARGEST_SCALE: i32 = 32;
    const MINS: bool = false;
    // From -4 · 31 to -4 · -32.
    const FOLD: Option<Fold> = Some(Fold { offset: 124, halved: false, largest: 124 + 128 });
    const REACH: i32 = reach(Self::LARGEST);
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let third = isa.b_splat(4);
        let high = isa.b_load(bytes(block, 0));
        let bit = [
            isa.b_shl::<2>(high),
            isa.b_shl::<1>(high),
            high,
            isa.b_shr::<1>(high),
            isa.b_shr::<2>(high),
            isa.b_shr::<3>(high),
            isa.b_shr::<4>(high),
            isa.b_shr::<5>(high),
        ];
        let mut lanes = bit_pairs(isa, block, 32);
        for i in 0..8 {
            lanes[i] = isa.b_or(lanes[i], isa.b_and(bit[i], third));
        }
        lanes
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 108), dmin: 0 }
    }

    #[inline(always)]
    fn groups<I: Isa>(isa: I, block: OfRows<&[u8]>) -> (I::B, I::B) {
        let mut scales = [[0; 2]; MAX_ROWS];
        for r in 0..I::ROWS {
            // Byte `i` of `high` has the upper bits of scales `i`, `4 + i`, `8 + i`, `12 + i`.
            let (words, high) = (word64(block[r], 96), u64::from(word32(block[r], 104)));
            let (low, top) = (0x0f0f_0f0f_0f0f_0f0f, 0x3030_3030_3030_3030);
            scales[r][0] = (words & low) | ((high << 4 | high << 34) & top);
            scales[r][1] = ((words >> 4) & low) | ((high | high << 30) & top);
        }
        let scales = isa.b_add_i16(isa.b_widen_words(scales), isa.b_all_i16(&[-32; 16]));
        (scales, isa.b_splat(0))
    }

    #[inline(always)]
    fn fold<I: Isa>(isa: I, lanes: I::B, scales: I::B, i: usize) -> I::B {
        isa.b_scaled::<0>(&[-4, -3, -2, -1, 0, 1, 2, 3], 124, lanes, scales, i)
    }
}
