//! Tiles of products of sums.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::tile::{Span, ZERO, add_totals, check, dmin, min, mins, tokens, total, totals, value};
use crate::simd::sums::add_span_of_sums;
use crate::simd::{Finished, Isa, Partials, SpansTile, fits};

/// Whether the CPU adds in pipes that it does not multiply in. AMD's do, since they have AVX-512; Intel's do both in the same ones.
pub(super) fn adds_elsewhere() -> bool {
    static ADDS: OnceLock<bool> = OnceLock::new();
    *ADDS.get_or_init(|| {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    })
}

/// What scaled sums start from: the sum of all corrections, or nothing where each group's sums are corrected.
#[rustfmt::skip]
macro_rules! begin {
    (Uncorrected, $to_x:literal, $to_y:literal) => {
        concat!("vmovdqa64 zmm", $to_x, ", zmm24\n", "vmovdqa64 zmm", $to_y, ", zmm25\n")
    };
    (Corrected, $to_x:literal, $to_y:literal) => {
        concat!("vpxord zmm", $to_x, ", zmm24, zmm24\n", "vpxord zmm", $to_y, ", zmm25, zmm25\n")
    };
}

/// What the sums of a group start from: what depends on the token, less the correction of the rows, which is in zmm24 and 25, where sums are
/// corrected.
#[rustfmt::skip]
macro_rules! start {
    (Uncorrected, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpbroadcastd zmm", $x, ", [{starts} + 4 * ", $t, "]\n",
            "vmovdqa64 zmm", $y, ", zmm", $x, "\n",
        )
    };
    (Corrected, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpaddd zmm", $x, ", zmm24, dword ptr [{starts} + 4 * ", $t, "]{{1to16}}\n",
            "vpaddd zmm", $y, ", zmm25, dword ptr [{starts} + 4 * ", $t, "]{{1to16}}\n",
        )
    };
}

/// The corrections of a group's rows, where its sums are corrected.
macro_rules! corrections {
    (Uncorrected) => {
        "/* no {corrections} */"
    };
    (Corrected) => {
        concat!(
            "vmovdqu64 zmm24, [{corrections}]\n",
            "vmovdqu64 zmm25, [{corrections} + 64]\n",
            "add {corrections}, 128\n",
        )
    };
}

/// Adds the products of eight columns: the even quads of the rows are in zmm24 and 25, the odd ones in 26 and 27.
#[rustfmt::skip]
macro_rules! add {
    ($tile:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpbroadcastd zmm28, [{tokens} + 4 * ", $t, "]\n",
            "vpbroadcastd zmm29, [{tokens} + 4 * (", $tile, " + ", $t, ")]\n",
            "vpaddb zmm30, zmm28, zmm26\n",
            "vpaddb zmm31, zmm29, zmm24\n",
            "vpdpbusd zmm", $x, ", zmm30, zmm31\n",
            "vpaddb zmm28, zmm28, zmm27\n",
            "vpaddb zmm29, zmm29, zmm25\n",
            "vpdpbusd zmm", $y, ", zmm28, zmm29\n",
        )
    };
}

/// Adds sums times scales, which are in zmm24 and 25.
#[rustfmt::skip]
macro_rules! scale {
    ($x:literal, $y:literal, $to_x:literal, $to_y:literal) => {
        concat!(
            "vpdpwssd zmm", $to_x, ", zmm", $x, ", zmm24\n",
            "vpdpwssd zmm", $to_y, ", zmm", $y, ", zmm25\n",
        )
    };
}

/// The scaled sums of a span, in `$words`.
macro_rules! sums {
    ($tile:literal, $fit:ident, $words:ident, $span:ident, $rows:ident, $all:ident,
     [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal, $reg_x:tt, $reg_y:tt)),+]) => {
        asm!(
            "vmovdqu64 zmm24, [{correction}]",
            "vmovdqu64 zmm25, [{correction} + 64]",
            $(begin!($fit, $to_x, $to_y),)+
            "2:",
            corrections!($fit),
            $(start!($fit, $t, $x, $y),)+
            "mov {pair}, {pairs}",
            "3:",
            "vmovdqu64 zmm24, [{rows}]",
            "vmovdqu64 zmm25, [{rows} + 64]",
            "vmovdqu64 zmm26, [{rows} + 128]",
            "vmovdqu64 zmm27, [{rows} + 192]",
            $(add!($tile, $t, $x, $y),)+
            "add {rows}, 256",
            concat!("add {tokens}, 8 * ", $tile),
            "dec {pair}",
            "jnz 3b",
            "vmovdqu64 zmm24, [{scales}]",
            "vmovdqu64 zmm25, [{scales} + 64]",
            $(scale!($x, $y, $to_x, $to_y),)+
            concat!("add {starts}, 4 * ", $tile),
            "add {scales}, 128",
            "dec {groups}",
            "jnz 2b",
            rows = inout(reg) $span.rows => _,
            tokens = inout(reg) $span.tokens => _,
            starts = inout(reg) $rows.starts => _,
            scales = inout(reg) $rows.scales => _,
            corrections = inout(reg) $rows.corrections => _,
            correction = in(reg) $rows.correction,
            groups = inout(reg) $all.groups => _,
            pairs = in(reg) $all.quads / 2,
            pair = out(reg) _,
            $(out($reg_x) $words[2 * $t], out($reg_y) $words[2 * $t + 1],)+
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(readonly, nostack),
        )
    };
}

/// Which sums of a span's groups are known to fit 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// Also those that are not corrected yet.
    Uncorrected,
    Corrected,
    None,
}

impl Fit {
    /// Which sums of span `s` fit.
    #[inline(always)]
    fn of(tile: &SpansTile, s: usize) -> Self {
        if fits(tile.largest[s] + tile.largest_correction[s]) {
            Fit::Uncorrected
        } else if fits(tile.largest[s]) {
            Fit::Corrected
        } else {
            Fit::None
        }
    }
}

/// Where the operands of a span are that other products do not have.
struct Sums {
    starts: *const i32,
    scales: *const i32,
    corrections: *const i32,
    correction: *const i32,
}

/// [`Isa::f_sums_tile`](crate::simd::Isa::f_sums_tile).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn tile<I: Isa, const R: usize, const T: usize, const MINS: bool>(
    isa: I,
    totals: &mut [Partials<R, T>; 2],
    tile: &SpansTile,
    mut before: Finished<R, T>,
) {
    check::<R, T, MINS>(tile);
    let groups = tile.groups;
    assert!(tile.starts.len() >= T * groups * tile.spans && tile.scales.len() >= 32 * groups * tile.spans);
    assert!(tile.corrections.len() >= 32 * groups * tile.spans && tile.correction.len() >= 32 * tile.spans);
    for s in 0..tile.spans {
        before.at_span(isa, s);
        let fit = Fit::of(tile, s);
        if fit == Fit::None {
            any_span::<I, R, T, MINS>(isa, totals, tile, s);
            continue;
        }
        let total = &mut totals[s % 2];
        let from = if s < 2 { ZERO.as_ptr() } else { total.as_ptr().cast() };
        let mut words = [_mm512_setzero_si512(); 12];
        // Sound: the slices have what is read of them, which is checked, and a total has a vector for each token and row vector.
        unsafe {
            let span = Span::of::<T, MINS>(tile, s);
            let rows = Sums {
                starts: tile.starts.as_ptr().add(T * groups * s),
                scales: tile.scales.as_ptr().add(32 * groups * s),
                corrections: tile.corrections.as_ptr().add(32 * groups * s),
                correction: tile.correction.as_ptr().add(32 * s),
            };
            match (T, fit) {
                (6, Fit::Uncorrected) => tokens!(6, sums!(Uncorrected, words, span, rows, tile)),
                (6, _) => tokens!(6, sums!(Corrected, words, span, rows, tile)),
                (_, Fit::Uncorrected) => tokens!(4, sums!(Uncorrected, words, span, rows, tile)),
                _ => tokens!(4, sums!(Corrected, words, span, rows, tile)),
            }
            add_totals!(T, MINS, words, span, from, total);
        }
    }
    before.store_rest(isa);
}

/// Adds a span whose sums may not fit. (A function of its own, so that its vectors are not put aside around those of the others.)
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn any_span<I: Isa, const R: usize, const T: usize, const MINS: bool>(
    isa: I,
    totals: &mut [Partials<R, T>; 2],
    tile: &SpansTile,
    s: usize,
) {
    add_span_of_sums::<I, R, T, MINS>(isa, totals, tile, s);
}
