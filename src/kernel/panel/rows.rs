//! Blocks unpacked row by row, and what comes out turned into columns.

use std::ops::Range;

use super::{Lanes, Product, Seen, UNIT, halves, min_columns, store_scales};
use crate::kernel::prefetch_ahead;
use crate::quant::unpack::{Scale, Unpack};
use crate::simd::{Isa, MAX_LANES, MAX_ROWS};

/// Unpacked blocks row by row, to be turned into columns.
#[repr(C, align(64))]
pub(super) struct Square {
    /// `[LANES, UNIT]`.
    lanes: [u8; MAX_LANES * UNIT],
    /// `[LANES, 8 + 8]` pairs of i16 scales and mins.
    groups: [u8; MAX_LANES * GROUP_BYTES],
    /// `[blocks, LANES]`.
    d: [[u16; MAX_LANES]; 8],
    dmin: [[u16; MAX_LANES]; 8],
}

/// Bytes of a row's scales and mins in a [`Square`].
const GROUP_BYTES: usize = 64;

impl Default for Square {
    fn default() -> Self {
        Self {
            lanes: [0; MAX_LANES * UNIT],
            groups: [0; MAX_LANES * GROUP_BYTES],
            d: [[0; MAX_LANES]; 8],
            dmin: [[0; MAX_LANES]; 8],
        }
    }
}

/// `blocks`, which are one unit, of the `LANES` rows from row `first` of the panel on.
#[inline(always)]
pub(super) fn unpack<F: Unpack, I: Isa, P: Product>(
    isa: I,
    rows: &[u8],
    row_bytes: usize,
    blocks: Range<usize>,
    first: usize,
    square: &mut Square,
    panel: &mut Lanes,
) {
    let seen = const { Seen::of::<F, I, P>() };
    let wide = I::LANES * I::TILE.0;
    let last = rows.len() / row_bytes - 1;
    let bytes = blocks.len() * F::BYTES;
    for lane in (0..I::LANES).step_by(I::ROWS) {
        let mut units = [&rows[..0]; MAX_ROWS];
        for r in 0..MAX_ROWS {
            let at = (first + lane + r).min(last) * row_bytes + blocks.start * F::BYTES;
            units[r] = &rows[at..at + bytes];
            if r < I::ROWS {
                prefetch_ahead(isa, units[r], 2 * bytes);
            }
        }
        let mut at = lane * UNIT;
        for i in 0..blocks.len() {
            let block = [&units[0][i * F::BYTES..][..F::BYTES], &units[1][i * F::BYTES..][..F::BYTES]];
            let vectors = F::lanes(isa, block);
            let (scales, mins) = F::groups(isa, block);
            for (j, &vector) in vectors.as_ref().iter().enumerate() {
                let vector = if seen.folded { F::fold(isa, vector, scales, j) } else { vector };
                isa.b_store(vector, &mut square.lanes[at..], UNIT);
                at += 32;
            }
            for r in 0..I::ROWS {
                let scale = F::scale(block[r]);
                (square.d[i % 8][lane + r], square.dmin[i % 8][lane + r]) = (scale.d, scale.dmin);
            }
            if seen.scaled || F::MINS {
                let to = &mut square.groups[lane * GROUP_BYTES..];
                isa.b_store(scales, to, GROUP_BYTES);
                isa.b_store(mins, &mut to[GROUP_BYTES / 2..], GROUP_BYTES);
            }
        }
    }
    for (i, b) in blocks.clone().enumerate() {
        let at = b * wide + first;
        let d = if F::EXPONENT {
            let mut powers = [0.0; MAX_LANES];
            for lane in 0..I::LANES {
                powers[lane] = Scale::power(square.d[i][lane]);
            }
            isa.f_load(&powers)
        } else {
            isa.f_load_f16(&square.d[i])
        };
        isa.f_store(isa.f_mul(d, isa.f_splat(F::FACTOR)), &mut panel.d[at..]);
        if F::MINS {
            isa.f_store(isa.f_load_f16(&square.dmin[i]), &mut panel.dmin[at..]);
        }
    }
    let words = &square.lanes;
    let quads = blocks.start * F::BLOCK / 4..blocks.end * F::BLOCK / 4;
    for (i, q) in quads.step_by(I::LANES).enumerate() {
        let from = &words[4 * i * I::LANES..];
        let to = &mut panel.lanes[q * wide + first * I::WORDS..];
        isa.w_transpose_units(from, UNIT / 4, to, wide * I::WORDS);
    }
    if seen.scaled || F::MINS {
        store_groups::<F, I, P>(isa, &square.groups, blocks, first, panel);
    }
}

/// Spreads `[LANES, 8 + 8]` pairs of i16 scales and mins, given for every 16 columns, over the panel.
#[inline(always)]
fn store_groups<F: Unpack, I: Isa, P: Product>(
    isa: I,
    groups: &[u8],
    blocks: Range<usize>,
    first: usize,
    panel: &mut Lanes,
) {
    const { assert!(F::BLOCK == 256 || !F::SCALED) };
    let b = blocks.start;
    if F::BLOCK < 256 {
        // Mins of formats without integer scales are all 1.
        for b in blocks {
            let at = b * I::LANES * I::TILE.0 + first;
            isa.w_store(isa.w_splat(0x0001_0001), &mut panel.mins[at..]);
        }
        return;
    }
    let scaled = const { Seen::of::<F, I, P>() }.scaled;
    let wide = I::LANES * I::TILE.0;
    let mut turned = [0i32; 16 * MAX_LANES];
    for half in 0..16 / I::LANES {
        let from = &groups[4 * half * I::LANES..];
        isa.w_transpose(from, 16, &mut turned[half * I::LANES * I::LANES..], I::LANES);
    }
    // A dot product of pairs with (1, 0) is the low half, with (0, 1) the high one.
    let (low, high) = (isa.w_splat(1), isa.w_splat(1 << 16));
    let zero = isa.w_splat(0);
    for j in 0..F::BLOCK.div_ceil(32) {
        let scales = isa.w_load(&turned[j * I::LANES..]);
        let mins = isa.w_load(&turned[(8 + j) * I::LANES..]);
        if scaled && F::GROUP == 16 {
            let both = [isa.w_dot2_i16(zero, scales, low), isa.w_dot2_i16(zero, scales, high)];
            store_scales::<F, I, P>(isa, both, b * F::BLOCK / 32 + j, first, panel);
        } else if scaled && j % 2 == 0 {
            let next = isa.w_load(&turned[(j + 1) * I::LANES..]);
            let both = [isa.w_dot2_i16(zero, scales, low), isa.w_dot2_i16(zero, next, low)];
            store_scales::<F, I, P>(isa, both, (b * F::BLOCK / 32 + j) / 2, first, panel);
        }
        if F::MINS && min_columns::<F>() == 16 {
            isa.w_store(mins, &mut panel.mins[(b * F::BLOCK / 32 + j) * wide + first..]);
        } else if F::MINS && j % 2 == 0 {
            let next = isa.w_load(&turned[(9 + j) * I::LANES..]);
            let (even, odd) = (isa.w_dot2_i16(zero, mins, low), isa.w_dot2_i16(zero, next, low));
            isa.w_store(
                halves(isa, [even, odd]),
                &mut panel.mins[(b * F::BLOCK / 64 + j / 2) * wide + first..],
            );
        }
    }
}
