//! What tiles of products have in common: operands, tokens' registers, and how scaled sums become floats.
//!
//! Whole spans are written as blocks of instructions, for all registers hold sums, scaled sums and operands; left to itself the compiler
//! puts many of them aside for every group of columns. Of token `t` and row vector `r` of a tile, sums are in register `2 t + r`, scaled sums
//! in `12 + 2 t + r`; operands are in those from 24 on.

use crate::simd::{MAX_LANES, SpansTile};

/// The mins of the rows times the sums of a token, in the place of sums; nothing where there are none.
#[rustfmt::skip]
macro_rules! min {
    (Plain, $tile:literal, $t:literal, $x:literal, $y:literal) => {
        ""
    };
    (Mins, $tile:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpbroadcastd zmm24, [{sums} + 4 * ", $t, "]\n",
            "vpbroadcastd zmm25, [{sums} + 4 * (", $tile, " + ", $t, ")]\n",
            "vpmaddwd zmm", $x, ", zmm28, zmm24\n",
            "vpmaddwd zmm", $y, ", zmm29, zmm24\n",
            "vpdpwssd zmm", $x, ", zmm30, zmm25\n",
            "vpdpwssd zmm", $y, ", zmm31, zmm25\n",
            "vcvtdq2ps zmm", $x, ", zmm", $x, "\n",
            "vcvtdq2ps zmm", $y, ", zmm", $y, "\n",
        )
    };
}

/// The floats of the rows times the scaled sums in `$to`, in their place, less those of the mins, which are in `$x`.
#[rustfmt::skip]
macro_rules! value {
    (Plain, $x:literal, $to:literal, $d:literal, $dmin:literal) => {
        concat!(
            "vcvtdq2ps zmm", $to, ", zmm", $to, "\n",
            "vmulps zmm", $to, ", zmm", $to, ", zmm", $d, "\n",
        )
    };
    (Mins, $x:literal, $to:literal, $d:literal, $dmin:literal) => {
        concat!(
            value!(Plain, $x, $to, $d, $dmin),
            "vfnmadd231ps zmm", $to, ", zmm", $dmin, ", zmm", $x, "\n",
        )
    };
}

/// Adds the values of token `$t` times its float to its totals.
#[rustfmt::skip]
macro_rules! total {
    ($has:ident, $t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal) => {
        concat!(
            "vbroadcastss zmm28, [{floats} + 4 * ", $t, "]\n",
            value!($has, $x, $to_x, 24, 26),
            value!($has, $y, $to_y, 25, 27),
            "vfmadd213ps zmm", $to_x, ", zmm28, [{from} + 128 * ", $t, "]\n",
            "vfmadd213ps zmm", $to_y, ", zmm28, [{from} + 128 * ", $t, " + 64]\n",
            "vmovups [{total} + 128 * ", $t, "], zmm", $to_x, "\n",
            "vmovups [{total} + 128 * ", $t, " + 64], zmm", $to_y, "\n",
        )
    };
}

/// The mins of the rows, if there are any: of two pairs of groups.
macro_rules! mins {
    (Plain) => {
        "/* no {mins} and {sums} */"
    };
    (Mins) => {
        concat!(
            "vmovdqu64 zmm28, [{mins}]\n",
            "vmovdqu64 zmm29, [{mins} + 64]\n",
            "vmovdqu64 zmm30, [{mins} + 128]\n",
            "vmovdqu64 zmm31, [{mins} + 192]\n",
        )
    };
}

/// The floats of the rows for mins, if there are any.
macro_rules! dmin {
    (Plain) => {
        "/* no {dmin} */"
    };
    (Mins) => {
        concat!("vmovups zmm26, [{dmin}]\n", "vmovups zmm27, [{dmin} + 64]\n")
    };
}

/// Adds `$words` to the totals.
macro_rules! totals {
    ($tile:literal, $has:ident, $words:ident, $span:ident, $from:ident, $total:ident,
     [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal, $reg_x:tt, $reg_y:tt)),+]) => {
        std::arch::asm!(
            mins!($has),
            $(min!($has, $tile, $t, $x, $y),)+
            "vmovups zmm24, [{d}]",
            "vmovups zmm25, [{d} + 64]",
            dmin!($has),
            $(total!($has, $t, $x, $y, $to_x, $to_y),)+
            d = in(reg) $span.d,
            dmin = in(reg) $span.dmin,
            mins = in(reg) $span.mins,
            sums = in(reg) $span.sums,
            floats = in(reg) $span.floats,
            from = in(reg) $from,
            total = in(reg) $total.as_mut_ptr(),
            $(inout($reg_x) $words[2 * $t] => _, inout($reg_y) $words[2 * $t + 1] => _,)+
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nostack),
        )
    };
}

/// `$macro!` for the `$count` tokens of a tile.
macro_rules! tokens {
    (6, $macro:ident!($($arguments:tt),+)) => {
        $macro!(6, $($arguments),+, [
            (0, 0, 1, 12, 13, "zmm12", "zmm13"),
            (1, 2, 3, 14, 15, "zmm14", "zmm15"),
            (2, 4, 5, 16, 17, "zmm16", "zmm17"),
            (3, 6, 7, 18, 19, "zmm18", "zmm19"),
            (4, 8, 9, 20, 21, "zmm20", "zmm21"),
            (5, 10, 11, 22, 23, "zmm22", "zmm23")
        ])
    };
    (4, $macro:ident!($($arguments:tt),+)) => {
        $macro!(4, $($arguments),+, [
            (0, 0, 1, 12, 13, "zmm12", "zmm13"),
            (1, 2, 3, 14, 15, "zmm14", "zmm15"),
            (2, 4, 5, 16, 17, "zmm16", "zmm17"),
            (3, 6, 7, 18, 19, "zmm18", "zmm19")
        ])
    };
}

/// Adds `$words`, scaled sums of `$tile` tokens, to the totals, of a format with mins if `$mins`.
macro_rules! add_totals {
    ($tile:ident, $mins:ident, $words:ident, $span:ident, $from:ident, $total:ident) => {
        match ($tile, $mins) {
            (6, true) => tokens!(6, totals!(Mins, $words, $span, $from, $total)),
            (6, false) => tokens!(6, totals!(Plain, $words, $span, $from, $total)),
            (_, true) => tokens!(4, totals!(Mins, $words, $span, $from, $total)),
            _ => tokens!(4, totals!(Plain, $words, $span, $from, $total)),
        }
    };
}

pub(super) use {add_totals, dmin, min, mins, tokens, total, totals, value};

/// What a total starts from, or two.
pub(super) static ZERO: [f32; 2 * 12 * MAX_LANES] = [0.0; 2 * 12 * MAX_LANES];

/// Quads of a span.
const QUADS: usize = 32;

/// Where the operands of a span are.
pub(super) struct Span {
    pub rows: *const i32,
    pub tokens: *const i32,
    pub d: *const f32,
    pub dmin: *const f32,
    pub mins: *const i32,
    pub sums: *const i32,
    pub floats: *const f32,
}

impl Span {
    /// Span number `s` of `tile`, all of two row vectors and `T` tokens.
    ///
    /// # Safety
    /// `tile` passed [`check`] and has so many spans.
    #[inline(always)]
    pub unsafe fn of<const T: usize, const MINS: bool>(tile: &SpansTile, s: usize) -> Self {
        let (quads, block, floats) = (QUADS * s, s / 2, &tile.floats);
        unsafe {
            Self {
                rows: tile.rows.as_ptr().add(32 * quads),
                tokens: tile.tokens.as_ptr().add(T * quads),
                d: floats.d.as_ptr().add(32 * block),
                // Nothing is read of what is not there.
                dmin: floats.dmin.as_ptr().wrapping_add(32 * block),
                mins: floats.mins.as_ptr().wrapping_add(64 * s),
                sums: floats.sums.as_ptr().wrapping_add(2 * T * s),
                floats: floats.tokens.as_ptr().add(T * s),
            }
        }
    }
}

/// Panics unless the slices of `tile` that all tiles have are as long as its counts say.
pub(super) fn check<const R: usize, const T: usize, const MINS: bool>(tile: &SpansTile) {
    const { assert!(R == 2 && (T == 4 || T == 6)) };
    let SpansTile { spans, groups, quads, floats, .. } = *tile;
    let blocks = spans.div_ceil(2);
    assert!(groups * quads == QUADS && matches!(quads, 4 | 8));
    assert!(tile.rows.len() >= 32 * QUADS * spans && tile.tokens.len() >= T * QUADS * spans);
    assert!(floats.d.len() >= 32 * blocks && floats.tokens.len() >= T * spans);
    if MINS {
        assert!(floats.dmin.len() >= 32 * blocks);
        assert!(floats.mins.len() >= 64 * spans && floats.sums.len() == 2 * T * spans);
    }
}
