//! Tiles of products of lanes where [each group's sums are scaled by themselves](SpansTile::apart): a block of columns at a time, all of it in one block of
//! instructions. Loads are what limits these, as many as 1.1 a cycle: pointers that the compiler puts aside between spans would be a tenth of them.

use std::arch::asm;

use super::tile::{Span, ZERO, check, dmin, min, mins, tokens, total, value};
use crate::simd::{Finished, Isa, Partials, SpansTile};

/// What the sums of a group start from; `$at` is how many tokens' starts lie before it.
#[rustfmt::skip]
macro_rules! start {
    (Starts, $at:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpbroadcastd zmm", $x, ", [{starts} + 4 * (", $at, " + ", $t, ")]\n",
            "vmovdqa64 zmm", $y, ", zmm", $x, "\n",
        )
    };
    ($has:ident, $at:literal, $t:literal, $x:literal, $y:literal) => {
        concat!(
            "vpxord zmm", $x, ", zmm", $x, ", zmm", $x, "\n",
            "vpxord zmm", $y, ", zmm", $y, ", zmm", $y, "\n",
        )
    };
}

/// What scaled sums start from: with raised tokens, from what is loaded to zmm24 and 25.
#[rustfmt::skip]
macro_rules! begin {
    (Raised, $to_x:literal, $to_y:literal) => {
        concat!(
            "vmovdqa64 zmm", $to_x, ", zmm24\n",
            "vmovdqa64 zmm", $to_y, ", zmm25\n",
        )
    };
    ($has:ident, $to_x:literal, $to_y:literal) => {
        concat!(
            "vpxord zmm", $to_x, ", zmm", $to_x, ", zmm", $to_x, "\n",
            "vpxord zmm", $to_y, ", zmm", $to_y, ", zmm", $to_y, "\n",
        )
    };
}

/// Loads that.
macro_rules! beginning {
    (Raised) => {
        "vmovdqu64 zmm24, [{starts}]\nvmovdqu64 zmm25, [{starts} + 64]\nadd {starts}, 128\n"
    };
    ($has:ident) => {
        ""
    };
}

/// Goes on to the starts of the next two groups.
macro_rules! next_starts {
    (Starts, $tile:literal) => {
        concat!("add {starts}, 8 * ", $tile, "\n")
    };
    ($has:ident, $tile:literal) => {
        "/* no {starts} */\n"
    };
}

/// Adds the products of a token's four columns, which are in zmm28, and those of the rows: of the two factors the first one has no sign.
#[rustfmt::skip]
macro_rules! dot {
    (Raised, $x:literal, $row:literal) => {
        concat!("vpdpbusd zmm", $x, ", zmm28, zmm", $row, "\n")
    };
    ($has:ident, $x:literal, $row:literal) => {
        concat!("vpdpbusd zmm", $x, ", zmm", $row, ", zmm28\n")
    };
}

/// Adds the products of four columns: quad number `$quad` of the group.
#[rustfmt::skip]
macro_rules! quad {
    ($has:ident, $tile:literal, $quad:literal, [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal)),+]) => {
        concat!(
            "vmovdqu64 zmm24, [{rows} + 128 * ", $quad, "]\n",
            "vmovdqu64 zmm25, [{rows} + 128 * ", $quad, " + 64]\n",
            $(
                "vpbroadcastd zmm28, [{tokens} + 4 * (", $tile, " * ", $quad, " + ", $t, ")]\n",
                dot!($has, $x, 24),
                dot!($has, $y, 25),
            )+
        )
    };
}

/// Adds sums times scales, which are in zmm24 and 25, as they are (`Whole`), or split into a low byte and the 16 bits above it (`Split`), by the order in
/// zmm31.
#[rustfmt::skip]
macro_rules! scale {
    (Whole, $x:literal, $y:literal, $to_x:literal, $to_y:literal) => {
        concat!(
            "vpdpwssd zmm", $to_x, ", zmm", $x, ", zmm24\n",
            "vpdpwssd zmm", $to_y, ", zmm", $y, ", zmm25\n",
        )
    };
    (Split, $x:literal, $y:literal, $to_x:literal, $to_y:literal) => {
        concat!(
            "vpshufb zmm", $x, ", zmm", $x, ", zmm31\n",
            "vpshufb zmm", $y, ", zmm", $y, ", zmm31\n",
            scale!(Whole, $x, $y, $to_x, $to_y),
        )
    };
}

/// Adds the scaled sums of a group of columns, whose scales come in the order in register `$order`.
#[rustfmt::skip]
macro_rules! group {
    ($has:ident, $sums:ident, $order:literal, $at:literal, $tile:literal, $bytes:literal, [$($quad:literal),+], $tokens:tt,
     [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal)),+]) => {
        concat!(
            $(start!($has, $at, $t, $x, $y),)+
            $(quad!($has, $tile, $quad, $tokens),)+
            "vmovdqu64 zmm24, [{scales}]\n",
            "vmovdqu64 zmm25, [{scales} + 64]\n",
            "vpshufb zmm24, zmm24, zmm", $order, "\n",
            "vpshufb zmm25, zmm25, zmm", $order, "\n",
            $(scale!($sums, $x, $y, $to_x, $to_y),)+
            "add {rows}, 32 * ", $bytes, "\n",
            "add {tokens}, ", $tile, " * ", $bytes, "\n",
        )
    };
}

/// Loads [`ORDERS`].
macro_rules! orders {
    (Whole) => {
        "vbroadcasti32x4 zmm29, [rip + {orders} + 48]\nvbroadcasti32x4 zmm30, [rip + {orders} + 64]\n"
    };
    (Split) => {
        concat!(
            "vbroadcasti32x4 zmm31, [rip + {orders}]\n",
            "vbroadcasti32x4 zmm29, [rip + {orders} + 16]\n",
            "vbroadcasti32x4 zmm30, [rip + {orders} + 32]\n",
        )
    };
}

/// The scaled sums of a span of groups of `$bytes` columns, whose quads are given by their numbers; `$groups` is how many groups a span has, less one.
macro_rules! scaled {
    ($has:ident, $sums:ident, $tile:literal, $bytes:literal, $groups:literal, $quads:tt, $tokens:tt,
     [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal)),+]) => {
        concat!(
            orders!($sums),
            beginning!($has),
            $(begin!($has, $to_x, $to_y),)+
            "3:\n",
            group!($has, $sums, 29, 0, $tile, $bytes, $quads, $tokens, $tokens),
            group!($has, $sums, 30, $tile, $tile, $bytes, $quads, $tokens, $tokens),
            next_starts!($has, $tile),
            "add {scales}, 128\n",
            "sub {left}, 2\n",
            "test {left}, ", $groups, "\n",
            "jnz 3b\n",
        )
    };
}

/// The same, with sums whole if they fit 16 bits. Those with raised tokens do not.
macro_rules! fitting {
    (Raised, $tile:literal, $bytes:literal, $groups:literal, $quads:tt, $tokens:tt) => {
        concat!(
            "/* no {largest} */\n",
            scaled!(Raised, Split, $tile, $bytes, $groups, $quads, $tokens, $tokens)
        )
    };
    ($has:ident, $tile:literal, $bytes:literal, $groups:literal, $quads:tt, $tokens:tt) => {
        concat!(
            "cmp dword ptr [{largest}], 0x7fff\n",
            "lea {largest}, [{largest} + 4]\n",
            "jg 5f\n",
            scaled!($has, Whole, $tile, $bytes, $groups, $quads, $tokens, $tokens),
            "jmp 6f\n",
            "5:\n",
            scaled!($has, Split, $tile, $bytes, $groups, $quads, $tokens, $tokens),
            "6:\n",
        )
    };
}

/// Goes on to the mins of the next span, or to their floats of the next block.
macro_rules! next_mins {
    (Plain, $tile:literal) => {
        ""
    };
    (Mins, $tile:literal) => {
        concat!("add {mins}, 256\nadd {sums}, 8 * ", $tile)
    };
    (Plain) => {
        ""
    };
    (Mins) => {
        "add {dmin}, 128"
    };
}

/// The block of instructions for some blocks of columns. Both spans of a block have the same floats, and totals of their own.
macro_rules! blocks {
    ($tile:literal, $has:ident, $mins:ident, $bytes:literal, $groups:literal, $both:literal, $quads:tt, $of:ident,
     [$(($t:literal, $x:literal, $y:literal, $to_x:literal, $to_y:literal, $reg_x:tt, $reg_y:tt)),+]) => {
        asm!(
            "2:",
            fitting!($has, $tile, $bytes, $groups, $quads, [$(($t, $x, $y, $to_x, $to_y)),+]),
            mins!($mins),
            $(min!($mins, $tile, $t, $x, $y),)+
            "vmovups zmm24, [{d}]",
            "vmovups zmm25, [{d} + 64]",
            dmin!($mins),
            $(total!($mins, $t, $x, $y, $to_x, $to_y),)+
            concat!("add {floats}, 4 * ", $tile),
            concat!("add {from}, 128 * ", $tile),
            concat!("add {total}, 128 * ", $tile),
            next_mins!($mins, $tile),
            concat!("test {left}, ", $both),
            "jnz 2b",
            "add {d}, 128",
            next_mins!($mins),
            concat!("sub {total}, 256 * ", $tile),
            "mov {from}, {total}",
            "test {left}, {left}",
            "jnz 2b",
            rows = inout(reg) $of.span.rows => _,
            tokens = inout(reg) $of.span.tokens => _,
            starts = inout(reg) $of.starts => _,
            scales = inout(reg) $of.scales => _,
            largest = inout(reg) $of.largest => _,
            d = inout(reg) $of.span.d => _,
            dmin = inout(reg) $of.span.dmin => _,
            mins = inout(reg) $of.span.mins => _,
            sums = inout(reg) $of.span.sums => _,
            floats = inout(reg) $of.span.floats => _,
            from = inout(reg) $of.from => _,
            total = inout(reg) $of.total => _,
            left = inout(reg) ($both + 1usize) * $of.count => _,
            orders = sym ORDERS,
            $(out($reg_x) _, out($reg_y) _,)+
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nostack),
        )
    };
}

/// The same, of `$tokens` tokens.
macro_rules! of_tokens {
    ($tokens:ident, $($arguments:tt),+) => {
        if $tokens == 6 { tokens!(6, blocks!($($arguments),+)) } else { tokens!(4, blocks!($($arguments),+)) }
    };
}

/// Orders of a word's bytes (0x80 is a zero). Of a sum `low + 256 * high`, as a pair of 16-bit numbers; of a pair of scales, as they multiply these, the
/// first scale and the second; and of scales as they multiply a sum that is one of 16 bits. Scales are bytes with a sign, whatever room they have.
static ORDERS: [[u8; 16]; 5] = {
    let words: [[u8; 4]; 5] =
        [[0, 0x80, 1, 2], [0, 1, 0x80, 0], [2, 3, 0x80, 2], [0, 1, 0x80, 0x80], [2, 3, 0x80, 0x80]];
    let mut orders = [[0; 16]; 5];
    let mut i = 0;
    while i < 80 {
        let byte = words[i / 16][i % 4];
        orders[i / 16][i % 16] = if byte == 0x80 { byte } else { byte + i as u8 % 16 / 4 * 4 };
        i += 1;
    }
    orders
};

/// Blocks between which sums of the tile before are stored.
const AT_ONCE: usize = 4;

/// Where the operands of some blocks are.
struct Blocks {
    count: usize,
    /// The first one.
    span: Span,
    /// Of sums, or of scaled ones with raised tokens.
    starts: *const i32,
    scales: *const i32,
    largest: *const i32,
    /// Both spans' totals: what they are so far, and where they go.
    from: *const f32,
    total: *mut f32,
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
    let SpansTile { spans, groups, quads, raised, .. } = *tile;
    let has_starts = !tile.starts.is_empty();
    assert!(
        spans.is_multiple_of(2) && tile.largest.len() >= spans && tile.scales.len() >= 16 * groups * spans
    );
    assert!(!has_starts || !MINS && !raised && tile.starts.len() >= T * groups * spans);
    assert!(!raised || !MINS && quads == 8 && tile.correction.len() >= 32 * spans);
    let (mut b, blocks) = (0, spans / 2);
    while b < blocks {
        let mut count = blocks - b;
        if !before.is_stored() {
            count = count.min(AT_ONCE);
            for s in 2 * b..2 * (b + count) {
                before.at_span(isa, s);
            }
        }
        // Sound: the slices have what is read of them, which is checked, and a total has a vector for each token and row vector.
        unsafe {
            let of = Blocks {
                count,
                span: Span::of::<T, MINS>(tile, 2 * b),
                starts: if raised {
                    tile.correction.as_ptr().add(64 * b)
                } else {
                    tile.starts.as_ptr().wrapping_add(2 * T * groups * b)
                },
                scales: tile.scales.as_ptr().add(32 * groups * b),
                largest: tile.largest.as_ptr().add(2 * b),
                from: if b == 0 { ZERO.as_ptr() } else { totals.as_ptr().cast() },
                total: totals.as_mut_ptr().cast(),
            };
            match (quads, has_starts) {
                (4, _) if MINS => of_tokens!(T, None, Mins, 16, 7, 15, [0, 1, 2, 3], of),
                (4, true) => of_tokens!(T, Starts, Plain, 16, 7, 15, [0, 1, 2, 3], of),
                (4, false) => of_tokens!(T, None, Plain, 16, 7, 15, [0, 1, 2, 3], of),
                _ if MINS => of_tokens!(T, None, Mins, 32, 3, 7, [0, 1, 2, 3, 4, 5, 6, 7], of),
                _ if raised => of_tokens!(T, Raised, Plain, 32, 3, 7, [0, 1, 2, 3, 4, 5, 6, 7], of),
                (_, true) => of_tokens!(T, Starts, Plain, 32, 3, 7, [0, 1, 2, 3, 4, 5, 6, 7], of),
                (_, false) => of_tokens!(T, None, Plain, 32, 3, 7, [0, 1, 2, 3, 4, 5, 6, 7], of),
            }
        }
        b += count;
    }
    before.store_rest(isa);
}
