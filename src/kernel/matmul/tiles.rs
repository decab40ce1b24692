//! Products by a unit that multiplies matrices of bytes ([`Isa::tiles`]).

use super::{PackTile, PackedTokens, Panel, PanelProducts, word_of};
use crate::kernel::panel::{Lanes, OfTiles, min_columns, planes, unpack};
use crate::kernel::{part_of, partial_sums};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, PANEL, PART, TileOperands, TilePanel, Tiles, chunk_columns, place_of_chunk};

/// Parts of tokens that a panel is swept by at once: half of their totals stay in the first cache.
const PARTS: usize = 2;

/// Panels of [`PANEL`] rows that are swept at once: tokens come from a far cache as often as there are such sweeps.
pub(super) const PANELS: usize = 2;

/// With fewer tokens, too much of the last part is empty for the unit to be faster than vectors.
pub(super) const LEAST_TOKENS: usize = PART + PART / 2;

impl<F: Unpack> PackTile<'_, F> {
    /// Quants of `row` as those of token `t` of a part, as a matrix unit reads them.
    #[inline(always)]
    pub(super) fn chunks(&mut self, row: usize, t: usize) {
        let (padded, each) = (self.from.padded(), const { chunk_columns(F::SPAN) });
        let quants = &self.from.quants[row * padded..][..padded];
        for span in 0..padded / F::SPAN {
            let turn = self.turn(span);
            for chunk in 0..F::SPAN / each {
                let words = quants[span * F::SPAN + chunk * each..][..each].as_chunks().0;
                let to = &mut self.quads[place_of_chunk(turn, chunk, t, F::SPAN) / 4..][..each / 4];
                for i in 0..each / 4 {
                    to[i] = word_of(words[i]);
                }
            }
        }
    }

    /// Zeros for a token that is missing to a whole part.
    #[inline(always)]
    pub(super) fn fill_chunks(&mut self, t: usize) {
        let each = const { chunk_columns(F::SPAN) };
        for chunk in 0..self.from.padded() / each {
            self.quads[place_of_chunk(0, chunk, t, F::SPAN) / 4..][..each / 4].fill(0);
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
        let Panel { lanes: first, second, totals } = self.panel;
        let (tokens, half) = (self.tokens, (PANEL * self.row_bytes).min(self.rows.len()));
        unpack::<F, I, OfTiles>(isa, &self.rows[..half], self.row_bytes, self.columns, first);
        let mut count = 1;
        if half < self.rows.len() {
            // What planes were made of is not needed any more.
            std::mem::swap(&mut first.lanes, &mut second.lanes);
            unpack::<F, I, OfTiles>(isa, &self.rows[half..], self.row_bytes, self.columns, second);
            std::mem::swap(&mut first.lanes, &mut second.lanes);
            count = PANELS;
        }
        let panels = [of_panel(first), of_panel(second)];
        let sweeps = tokens.tiles().div_ceil(PARTS);
        let partials = partial_sums(F::SPAN);
        totals.resize(partials * PARTS * PANELS * PANEL * PART);
        // To and fro, so that a panel begins with the tokens that the one before it has left in the caches.
        let is_odd = self.first / (PANELS * PANEL) % 2 == 1;
        for sweep in 0..sweeps {
            let asked = part_of(self.next, sweep, sweeps);
            let sweep = if is_odd { sweeps - 1 - sweep } else { sweep };
            let parts = (tokens.tiles() - sweep * PARTS).min(PARTS);
            let totals = &mut totals[..partials * parts * count * PANEL * PART];
            if self.columns < partials * F::SPAN {
                // Partial sums that no span of a narrow matrix goes to are 0.
                totals.fill(0.0);
            }
            let operands = TileOperands {
                panels: &panels[..count],
                next: asked,
                ..operands::<F>(tokens, self.columns, sweep * PARTS, parts)
            };
            let (first, rows) = (sweep * PARTS * PART, self.rows.len() / self.row_bytes);
            let count = (parts * PART).min(tokens.rows - first);
            let mut out = std::array::from_fn::<_, { PARTS * PART }, _>(|_| &mut [][..]);
            for t in 0..count {
                // Sound: panels are given disjoint rows, and each token is given once.
                out[t] = unsafe { self.out.slice((first + t) * self.out_stride + self.first, rows) };
            }
            unit.products(const { planes::<F>() }, &operands, totals, &mut out[..count]);
        }
    }
}

/// What a matrix unit needs of half a panel.
fn of_panel(half: &Lanes) -> TilePanel<'_> {
    TilePanel { planes: &half.planes, d: &half.d, dmin: &half.dmin, mins: &half.mins }
}

/// `parts` of `tokens` from number `first` on.
fn operands<F: Unpack>(
    tokens: &PackedTokens,
    columns: usize,
    first: usize,
    parts: usize,
) -> TileOperands<'_> {
    let (spans, token_spans) = (columns / F::SPAN, tokens.padded / F::SPAN);
    let pairs = if F::MINS { F::SPAN / 2 / min_columns::<F>() } else { 0 };
    // Of every part so many of a kind.
    let of = |each: usize| first * each..(first + parts) * each;
    TileOperands {
        span: F::SPAN,
        spans,
        token_spans,
        pairs,
        panels: &[],
        tokens: &tokens.quads[of(tokens.padded / 4 * PART)],
        sums: &tokens.sums[of(token_spans * pairs * PART)],
        floats: &tokens.scales[of(token_spans * PART)],
        next: &[],
    }
}
