//! Tiles of products of lanes, whose scales are in pairs: see [`Scales::Pairs`](crate::simd::Scales::Pairs).

use std::arch::asm;
use std::arch::x86_64::*;

use super::tile::{Span, ZERO, add_totals, check, dmin, min, mins, tokens, total, totals, value};
use crate::simd::span::fits;
use crate::simd::{Finished, Isa, Partials, SpansTile};

/// Nothing in register `$x`.
macro_rules! zero {
    ($x:literal) => {
        concat!("vpxord zmm", $x, ", zmm", $x, ", zmm", $x, "\n")
    };
}

/// What the sums of a group start from; `$at` is how many tokens' starts lie before it.
#[rustfmt::skip]
macro_rules! start {
    (Starts, $at:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpbroadcastd zmm", $x, ", [{starts} + 4 * (", $at, " + ", $t, ")]\n",
            "vmovdqa64 zmm", $y, ", zmm", $x, "\n",
        )
    };
    (None, $at:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(zero!($x), zero!($y))
    };
}

/// Raises the sums of the second group to the high halves; the low ones start from what is in the register `$from`.
#[rustfmt::skip]
macro_rules! raise {
    ($from:literal, $x:literal, $y:literal) => {
        concat!(
            "vpslld zmm", $x, ", zmm", $x, ", 16\n",
            "vpslld zmm", $y, ", zmm", $y, ", 16\n",
            "vpaddd zmm", $x, ", zmm", $x, ", zmm", $from, "\n",
            "vpaddd zmm", $y, ", zmm", $y, ", zmm", $from, "\n",
        )
    };
}

/// The same, from what the first group's sums do, raised by what zmm31 has.
macro_rules! first {
    (Starts, $t:literal, $x:literal, $y:literal) => {
        concat!("vpaddd zmm26, zmm31, dword ptr [{starts} + 4 * ", $t, "]{{1to16}}\n", raise!(26, $x, $y))
    };
    (None, $t:literal, $x:literal, $y:literal) => {
        raise!(31, $x, $y)
    };
}

/// Adds the products of eight columns: the first quads of the rows are in zmm24 and 25, the others in 26 and 27.
#[rustfmt::skip]
macro_rules! add {
    ($tile:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpbroadcastd zmm28, [{tokens} + 4 * ", $t, "]\n",
            "vpdpbusd zmm", $x, ", zmm24, zmm28\n",
            "vpdpbusd zmm", $y, ", zmm25, zmm28\n",
            "vpbroadcastd zmm29, [{tokens} + 4 * (", $tile, " + ", $t, ")]\n",
            "vpdpbusd zmm", $x, ", zmm26, zmm29\n",
            "vpdpbusd zmm", $y, ", zmm27, zmm29\n",
        )
    };
}

/// Adds the sums of two groups in a word times scales, which are in zmm24 and 25: the low half of a sum is a signed number again when its top bit, which is in
/// zmm31, is flipped.
#[rustfmt::skip]
macro_rules! scale {
    ($x:literal, $y:literal, $to_x:literal, $to_y:literal) => {
        concat!(
            "vpxord zmm", $x, ", zmm", $x, ", zmm31\n",
            "vpxord zmm", $y, ", zmm", $y, ", zmm31\n",
            "vpdpwssd zmm", $to_x, ", zmm", $x, ", zmm24\n",
            "vpdpwssd zmm", $to_y, ", zmm", $y, ", zmm25\n",
        )
    };
}

/// A group of columns, from `{rows}` and `{tokens}` on.
#[rustfmt::skip]
macro_rules! group {
    ($tile:literal, $label:literal, $again:literal, $($token:expr),+) => {
        concat!(
            "mov {left}, {quads}\n",
            $label, ":\n",
            "vmovdqu64 zmm24, [{rows}]\n",
            "vmovdqu64 zmm25, [{rows} + 64]\n",
            "vmovdqu64 zmm26, [{rows} + 128]\n",
            "vmovdqu64 zmm27, [{rows} + 192]\n",
            $($token,)+
            "add {rows}, 256\n",
            "add {tokens}, 8 * ", $tile, "\n",
            "sub {left}, 2\n",
            "jnz ", $again, "\n",
        )
    };
}

/// Adds sums of 32 bits times scales of as many, which are in zmm24 and 25.
#[rustfmt::skip]
macro_rules! multiply {
    ($x:literal, $y:literal, $to_x:literal, $to_y:literal) => {
        concat!(
            "vpmulld zmm", $x, ", zmm", $x, ", zmm24\n",
            "vpmulld zmm", $y, ", zmm", $y, ", zmm25\n",
            "vpaddd zmm", $to_x, ", zmm", $to_x, ", zmm", $x, "\n",
            "vpaddd zmm", $to_y, ", zmm", $to_y, ", zmm", $y, "\n",
        )
    };
}

/// The instructions that scale a span's sums: two groups' together (`Pairs`), or sums that need more than 16 bits (`Words`).
macro_rules! instructions {
    (Pairs, $tile:literal, $has:ident, [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal)),+]) => {
        concat!(
            "mov {left:e}, 0x8000\n",
            "vpbroadcastd zmm31, {left:e}\n",
            $(zero!($to_x), zero!($to_y),)+
            "2:\n",
            "add {rows}, {row_bytes}\n",
            "add {tokens}, {token_bytes}\n",
            $(start!($has, $tile, $t, $x, $y),)+
            group!($tile, "3", "3b", $(add!($tile, $t, $x, $y)),+),
            $(first!($has, $t, $x, $y),)+
            "sub {rows}, {row_bytes}\n",
            "sub {rows}, {row_bytes}\n",
            "sub {tokens}, {token_bytes}\n",
            "sub {tokens}, {token_bytes}\n",
            group!($tile, "4", "4b", $(add!($tile, $t, $x, $y)),+),
            "add {rows}, {row_bytes}\n",
            "add {tokens}, {token_bytes}\n",
            "vmovdqu64 zmm24, [{scales}]\n",
            "vmovdqu64 zmm25, [{scales} + 64]\n",
            $(scale!($x, $y, $to_x, $to_y),)+
        )
    };
    (Words, $tile:literal, $has:ident, [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal)),+]) => {
        concat!(
            "/* no {row_bytes} and {token_bytes} */\n",
            $(zero!($to_x), zero!($to_y),)+
            "2:\n",
            $(start!($has, 0, $t, $x, $y),)+
            group!($tile, "3", "3b", $(add!($tile, $t, $x, $y)),+),
            "vpslld zmm24, [{scales}], 16\n",
            "vpslld zmm25, [{scales} + 64], 16\n",
            "vpsrad zmm24, zmm24, 16\n",
            "vpsrad zmm25, zmm25, 16\n",
            $(multiply!($x, $y, $to_x, $to_y),)+
            $(start!($has, $tile, $t, $x, $y),)+
            group!($tile, "4", "4b", $(add!($tile, $t, $x, $y)),+),
            "vpsrad zmm24, [{scales}], 16\n",
            "vpsrad zmm25, [{scales} + 64], 16\n",
            $(multiply!($x, $y, $to_x, $to_y),)+
        )
    };
}

/// The scaled sums of a span, in `$words`: of `$tile` tokens, with starts if `$has_starts`.
macro_rules! scaled {
    ($way:ident, $tile:ident, $has_starts:ident, $words:ident, $span:ident, $starts:ident, $scales:ident, $all:ident) => {
        match ($tile, $has_starts) {
            (6, true) => tokens!(6, block!($way, Starts, $words, $span, $starts, $scales, $all)),
            (6, false) => tokens!(6, block!($way, None, $words, $span, $starts, $scales, $all)),
            (_, true) => tokens!(4, block!($way, Starts, $words, $span, $starts, $scales, $all)),
            (_, false) => tokens!(4, block!($way, None, $words, $span, $starts, $scales, $all)),
        }
    };
}

/// The block of instructions for it.
macro_rules! block {
    ($tile:literal, $way:ident, $has:ident, $words:ident, $span:ident, $starts:ident, $scales:ident, $all:ident,
     [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal, $reg_x:tt, $reg_y:tt)),+]) => {
        asm!(
            instructions!($way, $tile, $has, [$(($t, $x, $y, $to_x, $to_y)),+]),
            concat!("add {starts}, 8 * ", $tile),
            "add {scales}, 128",
            "sub {groups}, 2",
            "jnz 2b",
            rows = inout(reg) $span.rows => _,
            tokens = inout(reg) $span.tokens => _,
            starts = inout(reg) $starts => _,
            scales = inout(reg) $scales => _,
            groups = inout(reg) $all.groups => _,
            quads = in(reg) $all.quads,
            row_bytes = in(reg) 128 * $all.quads,
            token_bytes = in(reg) 4 * $tile * $all.quads,
            left = out(reg) _,
            $(out($reg_x) $words[2 * $t], out($reg_y) $words[2 * $t + 1],)+
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(readonly, nostack),
        )
    };
}

/// [`Isa::f_pairs_tile`](crate::simd::Isa::f_pairs_tile).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn tile<I: Isa, const R: usize, const T: usize, const MINS: bool>(
    isa: I,
    totals: &mut [Partials<R, T>; 2],
    tile: &SpansTile,
    mut before: Finished<R, T>,
) {
    check::<R, T, MINS>(tile);
    let (groups, has_starts) = (tile.groups, !tile.starts.is_empty());
    assert!(tile.scales.len() >= 16 * groups * tile.spans);
    assert!(!has_starts || tile.starts.len() >= T * groups * tile.spans);
    for s in 0..tile.spans {
        before.at_span(isa, s);
        let total = &mut totals[s % 2];
        let from = if s < 2 { ZERO.as_ptr() } else { total.as_ptr().cast() };
        let mut words = [_mm512_setzero_si512(); 12];
        // Sound: the slices have what is read of them, which is checked, and a total has a vector for each token and row vector.
        unsafe {
            let span = Span::of::<T, MINS>(tile, s);
            let scales = tile.scales.as_ptr().add(16 * groups * s);
            let starts = tile.starts.as_ptr().wrapping_add(T * groups * s);
            if fits(tile.largest[s]) {
                scaled!(Pairs, T, has_starts, words, span, starts, scales, tile)
            } else {
                scaled!(Words, T, has_starts, words, span, starts, scales, tile)
            }
            add_totals!(T, MINS, words, span, from, total);
        }
    }
    before.store_rest(isa);
}
