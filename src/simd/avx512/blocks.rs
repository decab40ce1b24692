//! Blocks of instructions that the compiler would take apart or order worse.

use std::arch::x86_64::*;

/// As in `avx2`: keeps the compiler from fetching the widened bytes one by one.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn opaque(mut v: __m512i) -> __m512i {
    // Sound: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// As [`opaque`], and has effects as far as the compiler knows: what is loaded later stays later.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_order(mut v: __m512i) -> __m512i {
    // Sound: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(nostack, preserves_flags)) };
    v
}

/// `vpdpwssd`. Of several sums in a row the compiler would take one apart, into a multiplication and an addition.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn add_pairs(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // Sound: works on registers only.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Four columns of two row vectors with one token: `sum[r] += rows[r] · token`. Left to itself the compiler fetches the tokens of a
/// tile ahead and runs out of registers.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dot_token<const R: usize>(sum: &mut [__m512i; R], rows: [__m512i; 2], token: &i32) {
    const { assert!(R == 2) };
    let _token: __m512i;
    // Sound: reads `token`, and writes registers only.
    unsafe {
        std::arch::asm!(
            "vpbroadcastd {a}, [{token}]",
            "vpdpbusd {x}, {r0}, {a}",
            "vpdpbusd {y}, {r1}, {a}",
            x = inout(zmm_reg) sum[0], y = inout(zmm_reg) sum[1],
            r0 = in(zmm_reg) rows[0], r1 = in(zmm_reg) rows[1],
            a = out(zmm_reg) _token, token = in(reg) token,
            options(readonly, pure, nostack, preserves_flags),
        );
    }
}
