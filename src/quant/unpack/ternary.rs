//! TQ1_0 and TQ2_0: weights of -1, 0 and 1; lanes are one more.

use super::k::bit_pairs;
use super::{Scale, Unpack, bits16, bytes, word32};
use crate::simd::{Isa, MAX_ROWS, OfRows};

/// As for the K formats.
const SPAN: usize = 128;

/// 64 bytes of bit pairs, `d` f16: d·(q − 1).
#[derive(Clone, Copy, Debug)]
pub struct Tq2_0;

impl Unpack for Tq2_0 {
    const BLOCK: usize = 256;
    const BYTES: usize = 66;
    const SPAN: usize = SPAN;
    const GROUP: usize = 32;
    const OFFSET: i32 = 1;
    const LARGEST: u8 = 3;
    const SCALED: bool = false;
    const MINS: bool = false;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        bit_pairs(isa, block, 0)
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 64), dmin: 0 }
    }
}

/// 32, 16 and 4 bytes of five (in the last four) ternary digits each, `d` f16: d·(q − 1).
#[derive(Clone, Copy, Debug)]
pub struct Tq1_0;

impl Unpack for Tq1_0 {
    const BLOCK: usize = 256;
    const BYTES: usize = 54;
    const SPAN: usize = SPAN;
    const GROUP: usize = 32;
    const OFFSET: i32 = 1;
    const LARGEST: u8 = 2;
    const SCALED: bool = false;
    const MINS: bool = false;
    type Lanes<B: Copy> = [B; 8];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 8] {
        let mut lanes = [isa.b_splat(0); 8];
        // Times 3 modulo 256 brings the next digit to the top.
        let mut x = isa.b_load(bytes(block, 0));
        for n in 0..5 {
            lanes[n] = top_digit(isa, x);
            x = thrice(isa, x);
        }
        // Sixteen bytes twice: the upper half is one digit further on.
        let (mut sixteen, mut four) = ([[0; 4]; MAX_ROWS], [[0; 4]; MAX_ROWS]);
        for r in 0..I::ROWS {
            let low = u64::from(word32(block[r], 32)) | u64::from(word32(block[r], 36)) << 32;
            let high = u64::from(word32(block[r], 40)) | u64::from(word32(block[r], 44)) << 32;
            sixteen[r] = [low, high, low, high];
            let twice = u64::from(word32(block[r], 48)) * 0x0000_0001_0000_0001;
            four[r] = [0, 0, twice, twice];
        }
        let upper = isa.b_words([[0, 0, u64::MAX, u64::MAX]; MAX_ROWS]);
        let mut x = further(isa, isa.b_words(sixteen), upper);
        lanes[5] = top_digit(isa, x);
        x = thrice(isa, thrice(isa, x));
        lanes[6] = top_digit(isa, x);
        x = thrice(isa, thrice(isa, x));
        // The last sixteen columns: four bytes four times, each a digit further on.
        let odd = isa.b_words([[0, 0, !0 << 32, !0 << 32]; MAX_ROWS]);
        let last = isa.b_words([[0, 0, 0, !0]; MAX_ROWS]);
        let mut y = further(isa, isa.b_words(four), odd);
        y = further(isa, further(isa, y, last), last);
        let keep = isa.b_xor(upper, isa.b_splat(0xff));
        lanes[7] = top_digit(isa, isa.b_or(isa.b_and(x, keep), y));
        lanes
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: bits16(block, 52), dmin: 0 }
    }
}

#[inline(always)]
fn thrice<I: Isa>(isa: I, x: I::B) -> I::B {
    isa.b_add(x, isa.b_add(x, x))
}

/// Three times `x` where `mask` is set, `x` elsewhere.
#[inline(always)]
fn further<I: Isa>(isa: I, x: I::B, mask: I::B) -> I::B {
    let more = isa.b_and(isa.b_add(x, x), mask);
    isa.b_add(x, more)
}

/// ⌊3 x / 256⌋.
#[inline(always)]
fn top_digit<I: Isa>(isa: I, x: I::B) -> I::B {
    let one = isa.b_splat(1);
    isa.b_add(isa.b_and(isa.b_at_least(x, 86), one), isa.b_and(isa.b_at_least(x, 171), one))
}
