//! The formats with blocks of 32 columns and one float scale.

use super::{Scale, Unpack, bits16, bytes};
use crate::simd::Isa;

/// The sign bit of a half: the formats with a minimum add it where the kernels subtract.
const SIGN: u16 = 0x8000;

/// The low nibbles of 16 bytes, then the high ones.
#[inline(always)]
fn nibbles<I: Isa>(isa: I, from: &[u8; 16]) -> I::B {
    let high = u128::from_le_bytes(*from) >> 4;
    isa.b_and(isa.b_halves(from, &high.to_le_bytes()), isa.b_splat(15))
}

/// Nibbles with a fifth bit from `bits`.
#[inline(always)]
fn five_bits<I: Isa>(isa: I, from: &[u8; 16], bits: &[u8; 4]) -> I::B {
    let fifth = isa.b_and(isa.b_from_bits(u32::from_le_bytes(*bits)), isa.b_splat(16));
    isa.b_or(nibbles(isa, from), fifth)
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
            fn lanes<I: Isa>($isa: I, $block: &[u8]) -> [I::B; 1] {
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
    |isa, block| nibbles(isa, bytes(block, 2)),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

legacy!(Q4_1, "`d`, `m` f16, 16 bytes of nibbles: d·q + m.", 20, offset 0, largest 15, mins true,
    |isa, block| nibbles(isa, bytes(block, 4)),
    |b| Scale { d: bits16(b, 0), dmin: bits16(b, 2) ^ SIGN });

legacy!(Q5_0, "`d` f16, 32 fifth bits, 16 bytes of nibbles: d·(q − 16).", 22, offset 16, largest 31, mins false,
    |isa, block| five_bits(isa, bytes(block, 6), bytes(block, 2)),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

legacy!(Q5_1, "`d`, `m` f16, 32 fifth bits, 16 bytes of nibbles: d·q + m.", 24, offset 0, largest 31, mins true,
    |isa, block| five_bits(isa, bytes(block, 8), bytes(block, 4)),
    |b| Scale { d: bits16(b, 0), dmin: bits16(b, 2) ^ SIGN });

legacy!(Q8_0, "`d` f16, 32 i8: d·q. Lanes are q + 128.", 34, offset 128, largest 255, mins false,
    |isa, block| isa.b_xor(isa.b_load(bytes(block, 2)), isa.b_splat(0x80)),
    |b| Scale { d: bits16(b, 0), dmin: 0 });

/// The 16 values of the non-linear 4-bit code (`kvalues_iq4nl` in ggml), plus 128.
pub(super) const NON_LINEAR_4BIT: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

legacy!(Iq4Nl, "`d` f16, 16 bytes of nibbles that select one of 16 values: d·v[q]. Lanes are v + 128.", 18,
    offset 128, largest 241, mins false,
    |isa, block| isa.b_lookup(&NON_LINEAR_4BIT, nibbles(isa, bytes(block, 2))),
    |b| Scale { d: bits16(b, 0), dmin: 0 });
