//! Sixteen rows with a few tokens, as one block of instructions: a load of a token's columns is for two vectors of eight rows, and sums of both go to the
//! same words. Left to itself the compiler puts sums aside from five tokens on.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::simd::eights::{SIXTEEN, SixteenRows};

/// What the dot products of a token start from, in `$x` and `$y`; the token lies `$at`.
#[rustfmt::skip]
macro_rules! start {
    (Starts, $x:literal, $y:literal, $at:literal) => {
        concat!(
            "vpbroadcastq zmm", $x, ", [{starts}", $at, "]\n",
            "vmovdqa64 zmm", $y, ", zmm", $x, "\n",
        )
    };
    (Zeros, $x:literal, $y:literal, $at:literal) => {
        concat!(
            "vpxord zmm", $x, ", zmm", $x, ", zmm", $x, "\n",
            "vpxord zmm", $y, ", zmm", $y, ", zmm", $y, "\n",
        )
    };
}

/// Adds the products of the `$n`th eight columns of a step.
#[rustfmt::skip]
macro_rules! eight {
    ($n:literal, [$(($x:literal, $y:literal, $to:literal, $at:literal, $all:literal, $reg:tt, $t:literal)),+]) => {
        concat!(
            "vmovdqa64 zmm28, [{lanes} + 128 * ", $n, "]\n",
            "vmovdqa64 zmm29, [{lanes} + 128 * ", $n, " + 64]\n",
            $(
                "vpbroadcastq zmm", $all, ", [{tokens}", $at, " + 8 * ", $n, "]\n",
                "vpdpbusd zmm", $x, ", zmm28, zmm", $all, "\n",
                "vpdpbusd zmm", $y, ", zmm29, zmm", $all, "\n",
            )+
        )
    };
}

/// Adds a token's dot products times the factors.
#[rustfmt::skip]
macro_rules! scale {
    ($x:literal, $y:literal, $to:literal) => {
        concat!(
            "vpackssdw zmm", $x, ", zmm", $x, ", zmm", $y, "\n",
            "vpdpwssd zmm", $to, ", zmm", $x, ", zmm30\n",
        )
    };
}

/// All steps. Dot products are in registers 0 to 15, sums in those from 16 on.
macro_rules! steps {
    ($of:ident, $sums:ident, $has:ident, $count:literal, [$($n:literal),+], $tokens:tt) => {
        steps!(@ $of, $sums, $has, $count, concat!($(eight!($n, $tokens)),+), $tokens)
    };
    (@ $of:ident, $sums:ident, $has:ident, $count:literal, $eights:expr,
     [$(($x:literal, $y:literal, $to:literal, $at:literal, $all:literal, $reg:tt, $t:literal)),+]) => {
        asm!(
            "/* {s} {s3} {s5} {s7} */",
            $(concat!("vpxord zmm", $to, ", zmm", $to, ", zmm", $to),)+
            "2:",
            $(start!($has, $x, $y, $at),)+
            $eights,
            "vmovdqa64 zmm30, [{factors}]",
            $(scale!($x, $y, $to),)+
            concat!("add {lanes}, 128 * ", $count),
            concat!("add {tokens}, 8 * ", $count),
            "add {factors}, 64",
            "add {starts}, 8",
            "dec {steps}",
            "jnz 2b",
            lanes = inout(reg) $of.lanes.as_ptr() => _,
            tokens = inout(reg) $of.tokens.as_ptr() => _,
            factors = inout(reg) $of.factors.as_ptr() => _,
            starts = inout(reg) $of.starts.as_ptr() => _,
            steps = inout(reg) $of.steps => _,
            s = in(reg) 4 * $of.stride,
            s3 = in(reg) 12 * $of.stride,
            s5 = in(reg) 20 * $of.stride,
            s7 = in(reg) 28 * $of.stride,
            $(out($reg) $sums[$t],)+
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _,
            options(readonly, nostack),
        )
    };
}

/// `steps!` of `$tokens` tokens.
#[rustfmt::skip]
macro_rules! of_tokens {
    ($tokens:ident, $($arguments:tt),+) => {
        match $tokens {
            4 => of_tokens!(@ [$($arguments),+], ),
            5 => of_tokens!(@ [$($arguments),+], (8, 9, 20, " + 4 * {s}", 24, "zmm20", 4)),
            6 => of_tokens!(@ [$($arguments),+], (8, 9, 20, " + 4 * {s}", 24, "zmm20", 4), (10, 11, 21, " + {s5}", 25, "zmm21", 5)),
            7 => of_tokens!(@ [$($arguments),+], (8, 9, 20, " + 4 * {s}", 24, "zmm20", 4), (10, 11, 21, " + {s5}", 25, "zmm21", 5),
                (12, 13, 22, " + 2 * {s3}", 26, "zmm22", 6)),
            _ => of_tokens!(@ [$($arguments),+], (8, 9, 20, " + 4 * {s}", 24, "zmm20", 4), (10, 11, 21, " + {s5}", 25, "zmm21", 5),
                (12, 13, 22, " + 2 * {s3}", 26, "zmm22", 6), (14, 15, 23, " + {s7}", 27, "zmm23", 7)),
        }
    };
    (@ [$($arguments:tt),+], $($more:tt),*) => {
        steps!($($arguments),+, [
            (0, 1, 16, "", 24, "zmm16", 0),
            (2, 3, 17, " + {s}", 25, "zmm17", 1),
            (4, 5, 18, " + 2 * {s}", 26, "zmm18", 2),
            (6, 7, 19, " + {s3}", 27, "zmm19", 3)
            $(, $more)*
        ])
    };
}

/// [`Eights::sixteen`](crate::simd::Eights::sixteen).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn products<const T: usize, const EIGHTS: usize, const STARTS: bool>(
    of: &SixteenRows,
) -> [__m512i; T] {
    const { assert!(4 <= T && T <= 8 && (EIGHTS == 4 && !STARTS || EIGHTS == 2)) };
    let SixteenRows { lanes, factors, steps, tokens, stride, starts } = *of;
    assert!(steps > 0 && lanes.len() >= 2 * SIXTEEN * EIGHTS * steps && factors.len() >= SIXTEEN * steps);
    assert!(lanes.as_ptr().addr().is_multiple_of(64) && factors.as_ptr().addr().is_multiple_of(64));
    assert!(tokens.len() >= (T - 1) * stride + 2 * EIGHTS * steps);
    assert!(!STARTS || starts.len() >= (T - 1) * stride + 2 * steps);
    let mut sums = [_mm512_setzero_si512(); 8];
    // Sound: the slices have what is read of them, and vectors lie where they are expected, which is checked.
    unsafe {
        match (EIGHTS, STARTS) {
            (4, _) => of_tokens!(T, of, sums, Zeros, 4, [0, 1, 2, 3]),
            (_, false) => of_tokens!(T, of, sums, Zeros, 2, [0, 1]),
            (_, true) => of_tokens!(T, of, sums, Starts, 2, [0, 1]),
        }
    }
    *sums.first_chunk().expect("up to eight tokens")
}
