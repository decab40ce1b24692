//! Products by a unit that multiplies matrices of bytes ([`Isa::tiles`]).

use super::{PackTile, PackedTokens, PanelProducts};
use crate::kernel::panel::{OfTiles, min_columns, planes, unpack};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, MAX_LANES, PANEL, PART, TileOperands, Tiles, place_of_chunk};

/// Parts of tokens that a panel is swept by at once: their totals stay in the first cache.
const PARTS: usize = 4;

/// Columns that lie side by side in a register.
const CHUNK: usize = 64;

impl<F: Unpack> PackTile<'_, F> {
    /// The part as a matrix unit reads it.
    #[inline(always)]
    pub(super) fn for_tiles(&mut self) {
        let padded = self.from.padded();
        for t in 0..PART {
            let row = self.first + t;
            let quants = if row < self.from.rows { &self.from.quants[row * padded..][..padded] } else { &[] };
            for chunk in 0..padded / CHUNK {
                let to = &mut self.quads[place_of_chunk(chunk, t) / 4..][..CHUNK / 4];
                if quants.is_empty() {
                    to.fill(0);
                    continue;
                }
                let words = quants[chunk * CHUNK..][..CHUNK].as_chunks::<4>().0;
                for i in 0..CHUNK / 4 {
                    let [a, b, c, d] = words[i];
                    to[i] = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
                }
            }
            if row < self.from.rows {
                self.scales(row, t);
                if F::MINS {
                    self.sums(&self.from.sums[row * (padded / 16)..][..padded / 16], t);
                }
            }
        }
    }
}

impl<F: Unpack> PanelProducts<'_, F> {
    /// The products of all tokens with the panel.
    #[inline(always)]
    pub(super) fn by_tiles<I: Isa>(self, isa: I) {
        let Some(unit) = isa.tiles() else {
            unreachable!("tokens are packed so where there is a matrix unit only")
        };
        let Self { tokens, panel, .. } = self;
        unpack::<F, I, OfTiles>(isa, self.rows, self.row_bytes, self.columns, &mut panel.lanes);
        let rows = self.rows.len() / self.row_bytes;
        let parts = tokens.tiles();
        for first in (0..parts).step_by(PARTS) {
            let count = (parts - first).min(PARTS);
            panel.totals.resize(2 * PARTS * PANEL * PART);
            let totals = &mut panel.totals[..2 * count * PANEL * PART];
            totals.fill(0.0);
            let next = part_of(self.next, first / PARTS, parts.div_ceil(PARTS));
            let operands = operands::<F>(&panel.lanes, tokens, self.columns, first, count, next);
            unit.products(const { planes::<F>() }, &operands, totals);
            for t in 0..(count * PART).min(tokens.rows - first * PART) {
                let at = (first * PART + t) * self.out_stride + self.first;
                // Sound: panels are given disjoint rows, and there is one panel's worth of tokens.
                let out = unsafe { self.out.slice(at, rows) };
                store(isa, totals, count, t, out);
            }
        }
    }
}

/// Part `number` of `parts` of `bytes`, whole lines.
#[inline(always)]
fn part_of(bytes: &[u8], number: usize, parts: usize) -> &[u8] {
    let each = bytes.len().div_ceil(64).div_ceil(parts) * 64;
    &bytes[(number * each).min(bytes.len())..((number + 1) * each).min(bytes.len())]
}

/// What `count` parts of `tokens` from number `first` on are multiplied with.
#[inline(always)]
fn operands<'a, F: Unpack>(
    panel: &'a crate::kernel::panel::Lanes,
    tokens: &'a PackedTokens,
    columns: usize,
    first: usize,
    count: usize,
    next: &'a [u8],
) -> TileOperands<'a> {
    let (spans, token_spans) = (columns / F::SPAN, tokens.padded / F::SPAN);
    let pairs = if F::MINS { F::SPAN / 2 / min_columns::<F>() } else { 0 };
    // Of every part so many of a kind.
    let of = |each: usize| first * each..(first + count) * each;
    TileOperands {
        spans,
        token_spans,
        pairs,
        planes: &panel.planes,
        tokens: &tokens.quads[of(tokens.padded / 4 * PART)],
        d: &panel.d,
        dmin: &panel.dmin,
        mins: &panel.mins,
        sums: &tokens.sums[of(token_spans * pairs * PART)],
        floats: &tokens.scales[of(token_spans * PART)],
        next,
    }
}

/// Stores the sums of token `t` of `parts` parts.
#[inline(always)]
fn store<I: Isa>(isa: I, totals: &[f32], parts: usize, t: usize, out: &mut [f32]) {
    let (each, odd) = (PART * MAX_LANES, parts * PANEL * PART);
    for (vector, out) in out.chunks_mut(MAX_LANES).enumerate() {
        let at = (t / PART * 2 + vector) * each + t % PART * MAX_LANES;
        let sum = isa.f_add(isa.f_load(&totals[at..]), isa.f_load(&totals[odd + at..]));
        if out.len() == MAX_LANES {
            isa.f_store(sum, out);
        } else {
            let mut lanes = [0.0; MAX_LANES];
            isa.f_store(sum, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}
