//! The formats with blocks of 32 columns and one float scale.

use super::{Scale, Unpack, bits16, bytes, word32};
use crate::simd::{Isa, OfRows};

/// The sign bit of a half: the formats with a minimum add it where the kernels subtract.
const SIGN: u16 = 0x8000;

/// Nibbles from byte `at`, with a fifth bit from the 32 bits at byte `bits`.
#[inline(always)]
fn five_bits<I: Isa>(isa: I, block: OfRows<&[u8]>, at: usize, bits: usize) -> I::B {
    let fifth = isa.b_from_bits([word32(block[0], bits), word32(block[1], bits)]);
    isa.b_or(isa.b_nibbles(bytes(block, at)), isa.b_and(fifth, isa.b_splat(16)))
}

/// One 32-column format: its constants, its lanes, its floats.
macro_rules! legacy {
    ($name:ident, $doc:literal, $bytes:literal, offset $offset:literal, largest $largest:literal, mins $mins:literal,
     |$isa:ident, $block:ident| $lanes:expr, |$b:ident| $scale:expr) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Unpack for $name {
            const BLOCK: usize = 32;
            const BYTES: usize = $bytes;
            const SPAN: usize = 32;
            const GROUP: usize = 32;
            const OFFSET: i32 = $offset;
            const LARGEST: u8 = $largest;
            const SCALED: bool = false;
            const MINS: bool = $mins;
            type Lanes<B: Copy> = [B; 1];

            #[inline(always)]
            fn lanes<I: Isa>($isa: I, $block: OfRows<&[u8]>) -> [I::B; 1] {
                [$lanes]
            }

            #[inline(always)]
            fn scale($b: &[u8]) -> Scale {
                $scale
            }
        }
    };
}

legacy!(Q4_0, "`d` f16, 16 bytes of nibbles: d·(q − 8).", 18, offset 8, largest 15, mins false,
    |isa, block| isa.b_nibbles(bytes(block, 2)),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

legacy!(Q4_1, "`d`, `m` f16, 16 bytes of nibbles: d·q + m.", 20, offset 0, largest 15, mins true,
    |isa, block| isa.b_nibbles(bytes(block, 4)),
    |b| Scale { d: bits16(b, 0), dmin: bits16(b, 2) ^ SIGN });

legacy!(Q5_0, "`d` f16, 32 fifth bits, 16 bytes of nibbles: d·(q − 16).", 22, offset 16, largest 31, mins false,
    |isa, block| five_bits(isa, block, 6, 2),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

legacy!(Q5_1, "`d`, `m` f16, 32 fifth bits, 16 bytes of nibbles: d·q + m.", 24, offset 0, largest 31, mins true,
    |isa, block| five_bits(isa, block, 8, 4),
    |b| Scale { d: bits16(b, 0), dmin: bits16(b, 2) ^ SIGN });

legacy!(Q8_0, "`d` f16, 32 i8: d·q. Lanes are q + 128.", 34, offset 128, largest 255, mins false,
    |isa, block| isa.b_xor(isa.b_load(bytes(block, 2)), isa.b_splat(0x80)),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

/// The 16 values of the non-linear 4-bit code (`kvalues_iq4nl` in ggml), plus 128.
pub(super) const NON_LINEAR_4BIT: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

legacy!(Iq4Nl, "`d` f16, 16 bytes of nibbles that select one of 16 values: d·v[q]. Lanes are v + 128.", 18,
    offset 128, largest 241, mins false,
    |isa, block| isa.b_lookup(&NON_LINEAR_4BIT, isa.b_nibbles(bytes(block, 2))),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

/// An exponent byte, 16 bytes of nibbles, each a 4-bit float (E2M1): lanes are twice that plus 12, and the scale is halved.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4;

impl Unpack for Mxfp4 {
    const BLOCK: usize = 32;
    const BYTES: usize = 17;
    const SPAN: usize = 32;
    const GROUP: usize = 32;
    const OFFSET: i32 = 12;
    const LARGEST: u8 = 24;
    const SCALED: bool = false;
    const MINS: bool = false;
    const EXPONENT: bool = true;
    type Lanes<B: Copy> = [B; 1];

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, block: OfRows<&[u8]>) -> [I::B; 1] {
        const TWICE: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
        [isa.b_lookup(&TWICE, isa.b_nibbles(bytes(block, 1)))]
    }

    #[inline(always)]
    fn scale(block: &[u8]) -> Scale {
        Scale { d: u16::from(block[0]), dmin: 0 }
    }
}
