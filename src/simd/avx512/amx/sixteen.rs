//! Products of 16-bit numbers, as four products of their bytes in three sums.

use std::arch::asm;
use std::arch::x86_64::*;

use super::Setup;
use crate::simd::tiles::{CHUNK_WORDS, PlaneSums, Sixteens, TakeSums};

/// [`Tiles::split`](crate::simd::Tiles::split).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn split(words: [__m512i; 4]) -> [__m512i; 2] {
    let [a, b, c, d] = words;
    planes(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d))
}

/// [`Tiles::quads`](crate::simd::Tiles::quads).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn quads(first: __m512i, last: __m512i) -> [__m512i; 2] {
    // Low bytes of a word, then its high bytes; in the second vector the other way round.
    let order = _mm512_set4_epi32(0x0f0d_0e0c, 0x0b09_0a08, 0x0705_0604, 0x0301_0200);
    let swapped = _mm512_set4_epi32(0x0e0c_0f0d, 0x0a08_0b09, 0x0604_0705, 0x0200_0301);
    let (a, b) = (_mm512_shuffle_epi8(first, order), _mm512_shuffle_epi8(last, swapped));
    let low = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, b);
    let high = _mm512_mask_blend_epi16(0x5555_5555, a, b);
    [low, _mm512_rol_epi32::<16>(high)]
}

/// The low bytes of words of 16 bits, those of `a` and `b` in turns of eight, and their high bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn planes(a: __m512i, b: __m512i) -> [__m512i; 2] {
    let byte = _mm512_set1_epi16(0xff);
    let low = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
    let high = _mm512_packs_epi16(_mm512_srai_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
    [low, high]
}

/// [`Tiles::sum_of_planes`](crate::simd::Tiles::sum_of_planes). Shifts are shuffles here: the pipe of those is free while the unit multiplies.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn sum_of_planes([high, middle, low]: [__m512i; 3]) -> __m512i {
    let by_two = _mm512_set4_epi32(0x0d0c_8080_u32.cast_signed(), 0x0908_8080, 0x0504_8080, 0x0100_8080);
    let by_one = _mm512_set4_epi32(0x0e0d_0c80, 0x0a09_0880, 0x0605_0480, 0x0201_0080);
    let high = _mm512_shuffle_epi8(high, by_two);
    let middle = _mm512_shuffle_epi8(middle, by_one);
    _mm512_add_epi32(_mm512_add_epi32(high, middle), low)
}

/// Stores a register of sums and makes them zero again.
macro_rules! take {
    ($register:literal, $place:literal) => {
        concat!("tilestored [{to} + {stride} + ", $place, "], tmm", $register, "\ntilezero tmm", $register)
    };
}

/// What is done instead where sums are added to.
macro_rules! keep {
    ($register:literal, $place:literal) => {
        ""
    };
}

/// Adds the products of a chunk of columns, of two registers from `$a` on and two from `$b` on with two from `$c` on; before, each register of
/// sums is what `$before` says: stored to `$to` ([`take`]) or not ([`keep`]).
macro_rules! chunk {
    ($before:ident, $a:expr, $b:expr, $c:expr $(, $to:expr)?) => {
        asm!(
            "tileloadd tmm6, [{c} + {stride} + 1024]",
            "tileloadd tmm7, [{a} + {stride} + 1024]",
            $before!(0, 0),
            product!("ss", 0, 7, 6),
            "tileloadd tmm7, [{a} + {stride}]",
            $before!(1, 1024),
            product!("us", 1, 7, 6),
            "tileloadd tmm7, [{b} + {stride} + 1024]",
            $before!(3, 3072),
            product!("ss", 3, 7, 6),
            "tileloadd tmm7, [{b} + {stride}]",
            $before!(4, 4096),
            product!("us", 4, 7, 6),
            "tileloadd tmm6, [{c} + {stride}]",
            $before!(5, 5120),
            product!("uu", 5, 7, 6),
            "tileloadd tmm7, [{a} + {stride}]",
            $before!(2, 2048),
            product!("uu", 2, 7, 6),
            "tileloadd tmm7, [{a} + {stride} + 1024]",
            product!("su", 1, 7, 6),
            "tileloadd tmm7, [{b} + {stride} + 1024]",
            product!("su", 4, 7, 6),
            a = in(reg) $a, b = in(reg) $b, c = in(reg) $c, stride = in(reg) 64usize,
            $(to = in(reg) $to,)?
            options(nostack, preserves_flags),
        )
    };
}

/// [`Tiles::multiply`](crate::simd::Tiles::multiply). Registers 0 to 2 hold the high, middle and low sums of the first sixteen on the left, 3 to 5
/// those of the second. They are stored while the products with the next sixteen on the right begin. No product is added to a sum of one of the
/// two before it, for a product takes longer than that. What is on the right is read once, so that it need not lie in the first cache.
#[inline(always)]
pub(super) fn multiply<T: TakeSums>(
    _ready: &Setup,
    operands: &Sixteens,
    sums: &mut [PlaneSums; 2],
    take: &mut T,
) {
    let Sixteens { left, right, count, apart, chunks } = *operands;
    let each = apart * CHUNK_WORDS;
    assert!(count > 0 && chunks > 0 && chunks <= apart);
    assert!(left.len() >= 2 * each && right.len() >= count * each);
    let (a, mut c) = (left.as_ptr(), right.as_ptr());
    let b = a.wrapping_add(each);
    // Sound: the registers are set up; of each sixteen there are two a chunk, and sums take six.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", options(nostack, nomem, preserves_flags));
        asm!("tilezero tmm3", "tilezero tmm4", "tilezero tmm5", options(nostack, nomem, preserves_flags));
        for sixteen in 0..count {
            match sixteen {
                0 => chunk!(keep, a, b, c),
                _ => chunk!(take, a, b, c, &raw mut sums[(sixteen - 1) % 2]),
            }
            for chunk in 1..chunks {
                let at = chunk * CHUNK_WORDS;
                chunk!(keep, a.add(at), b.add(at), c.add(at));
            }
            c = c.wrapping_add(each);
            if sixteen > 0 {
                take.take(sixteen - 1, &sums[(sixteen - 1) % 2]);
            }
        }
        asm!(
            take!(0, 0),
            take!(3, 3072),
            take!(5, 5120),
            take!(2, 2048),
            take!(1, 1024),
            take!(4, 4096),
            to = in(reg) &raw mut sums[(count - 1) % 2], stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
    take.take(count - 1, &sums[(count - 1) % 2]);
}
