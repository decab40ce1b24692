//! Blocks to int8 lanes: what the matrix kernels read.
//!
//! Every integer format is seen in one way. A weight is
//! `FACTOR * d * scale * (lane - OFFSET) - dmin * min`, with `lane` an unsigned byte, `scale` and `min` small
//! integers given once per 16 columns, `d` and `dmin` floats of the block. Kernels then differ only in
//! how they walk the rows, and everything within a *span* of columns is exact integer arithmetic.

mod iq;
mod k;
mod legacy;
mod ternary;

pub use iq::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Xs};
pub use k::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub use legacy::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub use ternary::{Tq1_0, Tq2_0};

use crate::simd::{EIGHT, Eights, Isa, MAX_LANES, OfRows};

/// The float part of a block, as half-precision bits (or see [`Unpack::EXPONENT`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Scale {
    pub d: u16,
    /// Multiplies the mins; 0 where the format has none.
    pub dmin: u16,
}

/// How a format's quants are multiplied by their scales within bytes: see [`Unpack::FOLD`].
#[derive(Clone, Copy, Debug)]
pub struct Fold {
    /// What is added to a product, for all of them the same, so that it is not negative.
    pub offset: i32,
    /// Whether the byte is half of that sum, which is always even.
    pub halved: bool,
    /// The largest byte that results.
    pub largest: u8,
}

/// A block format, seen as lanes.
pub trait Unpack: Copy + Send + Sync + 'static {
    /// Columns in a block: 32 or 256.
    const BLOCK: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Columns over which activations share a scale and sums stay integers; at most `BLOCK`.
    const SPAN: usize;
    /// Columns that share an integer scale: 16 or 32.
    const GROUP: usize;
    /// What is subtracted from a lane to get the signed quant.
    const OFFSET: i32;
    /// The largest lane.
    const LARGEST: u8;
    /// Whether there are integer scales (otherwise all are 1).
    const SCALED: bool;
    /// The largest size of an integer scale.
    const LARGEST_SCALE: i32 = 1;
    /// Whether there are mins.
    const MINS: bool;
    /// Multiplies `d`: a power of two that keeps scales and lanes integers.
    const FACTOR: f32 = 1.0;
    /// Whether [`Scale::d`] is not a half-precision number but an exponent `e`, for 2^(e − 128).
    const EXPONENT: bool = false;

    /// The largest size of the quants of activations: 127, or what leaves room for lanes in the same byte ([`reach`](crate::simd::reach)).
    const REACH: i32 = 127;

    /// Where quants times scales fit a byte, what [`Unpack::fold`] makes of them: then a span needs no scales.
    const FOLD: Option<Fold> = None;

    /// The lanes of a block: `BLOCK / 32` narrow vectors.
    type Lanes<B: Copy>: Copy + AsRef<[B]>;

    /// The lanes of a block of each row (`BYTES` long), in column order.
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> Self::Lanes<I::B>;

    /// The bytes of a block that lanes and groups are in, from the first on, if lane `i` of each 32 depends only on bytes that lie
    /// `i` after a multiple of 32 after one byte, or on nibbles of 16 ([`Unpack::lanes_of`]). Many rows can then be turned into columns while they are packed.
    const BYTEWISE: Option<usize> = None;
    /// Whether the first four bytes are `d` and `dmin`, or anything in its place where there are no mins.
    const FLOATS_FIRST: bool = false;

    /// The lanes of a block whose bytes `chunks` gives, where [`Unpack::BYTEWISE`]: one byte after the other, so that it does not matter
    /// what lies side by side in a vector.
    #[inline(always)]
    fn lanes_of<I: Isa, C: Chunks<I>>(_isa: I, _chunks: C) -> Self::Lanes<I::B> {
        unreachable!("asked of bytewise formats only")
    }

    /// The integer scales and mins of a block whose words (bytes `at .. at + 4`) `words` gives, likewise: byte `i % 4` of word `i / 4`
    /// of each is that of group `i`, a signed number.
    #[inline(always)]
    fn groups_of<I: Isa, C: Chunks<I>>(_isa: I, _words: C) -> Groups<I::B> {
        unreachable!("asked of bytewise formats only")
    }

    /// Where eight rows can be multiplied side by side, what their lanes are made of; [`Unpack::eight_groups`] can be asked then.
    const EIGHTS: Option<EightRows> = None;

    /// Scales, mins and floats of a block of each of eight rows.
    #[inline(always)]
    fn eight_groups<I: Isa, E: Eights<I>>(_isa: I, _eights: E, _block: [&[u8]; EIGHT]) -> EightGroups<I> {
        unreachable!("asked of formats with such a layout only")
    }

    /// The floats of `block`.
    fn scale(block: &[u8]) -> Scale;

    /// `FACTOR * d` and `dmin` of a block of each of as many rows as a wide vector has lanes: the one from byte `at` of each of `rows` on.
    /// `words` are the first four bytes of each, where these are the floats.
    #[inline(always)]
    fn wide_floats<I: Isa>(isa: I, rows: &[&[u8]; MAX_LANES], at: usize, words: &[i32]) -> [I::F; 2] {
        let [d, dmin] = if Self::FLOATS_FIRST {
            isa.f_from_half_pairs(isa.w_load(words))
        } else {
            let mut pairs = [0; MAX_LANES];
            for r in 0..I::LANES {
                let Scale { d, dmin } = Self::scale(&rows[r][at..at + Self::BYTES]);
                pairs[r] = i32::from(d) | i32::from(dmin) << 16;
            }
            isa.f_from_half_pairs(isa.w_load(&pairs))
        };
        [isa.f_mul(d, isa.f_splat(Self::FACTOR)), dmin]
    }

    /// Integer scales and mins of a block of each row, 16 i16 each: one per 16 columns.
    #[inline(always)]
    fn groups<I: Isa>(isa: I, _block: OfRows<&[u8]>) -> (I::B, I::B) {
        let ones = isa.b_all_i16(&[1; 16]);
        (ones, ones)
    }

    /// Vector `i` of a block's lanes as quants times their `scales`, as [`Unpack::FOLD`] says.
    #[inline(always)]
    fn fold<I: Isa>(_isa: I, lanes: I::B, _scales: I::B, _i: usize) -> I::B {
        const { assert!(Self::FOLD.is_none()) };
        lanes
    }
}

/// Scales and mins as [`Unpack::groups_of`] gives them.
#[derive(Clone, Copy)]
pub struct Groups<B> {
    pub scales: [B; 4],
    pub mins: [B; 4],
}

/// The layout of a format of which eight rows can be multiplied side by side.
#[derive(Clone, Copy, Debug)]
pub struct EightRows {
    /// The first byte of the chunks of 32 bytes that [`Unpack::lanes_of`] asks for, which follow each other.
    pub first: usize,
    pub chunks: usize,
    /// Whether scales are signed bytes; otherwise all bits count.
    pub signed: bool,
}

/// What goes with the lanes of a block of each of eight rows.
#[derive(Clone, Copy)]
pub struct EightGroups<I: Isa> {
    /// Bytes, eight a row: the scales of groups 0 to 7, then those of groups 8 to 15 if there are so many.
    pub scales: [I::B; 2],
    /// As [`Eights::mins`] gives them.
    pub mins: [I::B; 2],
    /// The rows' floats, each of them twice.
    pub d: I::G,
    pub dmin: I::G,
}

/// The bytes of a block.
pub trait Chunks<I: Isa>: Copy {
    /// Bytes `at .. at + 32`, or some of them of more rows.
    fn chunk(self, isa: I, at: usize) -> I::B;
    /// The nibbles of bytes `at .. at + 16`, the low ones first; likewise.
    fn nibbles(self, isa: I, at: usize) -> I::B;
}

/// A block of each row of a narrow vector.
#[derive(Clone, Copy)]
struct RowChunks<'a>(OfRows<&'a [u8]>);

impl<I: Isa> Chunks<I> for RowChunks<'_> {
    #[inline(always)]
    fn chunk(self, isa: I, at: usize) -> I::B {
        isa.b_load(bytes(self.0, at))
    }
    #[inline(always)]
    fn nibbles(self, isa: I, at: usize) -> I::B {
        isa.b_nibbles(bytes(self.0, at))
    }
}

impl Scale {
    /// `d` of a format with [`Unpack::EXPONENT`].
    #[inline(always)]
    pub fn power(d: u16) -> f32 {
        // Below 2^-126 the number is subnormal.
        f32::from_bits(if d < 2 { 0x0020_0000 << d } else { (u32::from(d) - 1) << 23 })
    }
}

/// The 16 bits at byte `at`.
#[inline(always)]
fn bits16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// `N` bytes from byte `at` of each row's block.
#[inline(always)]
fn bytes<const N: usize>(block: OfRows<&[u8]>, at: usize) -> OfRows<&[u8; N]> {
    [array(block[0], at), array(block[1], at)]
}

/// `N` bytes of the block of each of eight rows, from byte `at` on.
#[inline(always)]
pub fn bytes_of_eight<const N: usize>(block: [&[u8]; EIGHT], at: usize) -> [&[u8; N]; EIGHT] {
    let mut bytes = [&[0; N]; EIGHT];
    for r in 0..EIGHT {
        bytes[r] = array(block[r], at);
    }
    bytes
}

/// `N` bytes from byte `at`.
#[inline(always)]
fn array<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..at + N].try_into().expect("the range has N bytes")
}

/// A little-endian word from byte `at`.
#[inline(always)]
fn word32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*array(block, at))
}

/// A little-endian word from byte `at`.
#[inline(always)]
fn word64(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*array(block, at))
}
