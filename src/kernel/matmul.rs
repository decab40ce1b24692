//! Products of quantized rows with many tokens: the compute-bound side.
//!
//! A panel of a few row vectors is unpacked once to int8 lanes that stay in the cache, four columns of
//! every row side by side as the dot-product instruction wants them, and then swept by all tokens in
//! register tiles. No repacked copy of the weights outlives its panel.

mod tiles;
mod totals;

use self::totals::Totals;
use super::activations::{Activations, has_eights, sizes_of_sixteen};
use super::matvec::{eights, sixteens, swept};
use super::panel::{
    Ahead, Lanes, OfLanes, OfRaised, OfSums, Operands, Product, Scaling, Seen, blockwise_tokens, exact,
    has_sums, has_tiles, largest_sum, min_columns, packed_span, raises, resize_to_block, row_vectors,
    scaling, unpack, unpack_block,
};
use super::{Lines, Pool, SharedMut, pair, partial_sums, prefetch_part, store_some, sum, word_of};
use crate::quant::unpack::Unpack;
use crate::simd::{
    Finished, Isa, Kernel, Level, MAX_LANES, MAX_ROWS, NARROW_SPAN, PART, Partials, Scales, SpanFloats,
    SpanTile, SpansTile, TileKernel, add_span, dispatch_at, lowered, raised, sum_of_partials, turn_of,
};

/// How a batch of many tokens is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Way {
    /// By dot products of lanes.
    #[default]
    Lanes,
    /// The same, with [each group's sums scaled by themselves](SpansTile::apart).
    Apart,
    /// The same with [raised tokens](SpansTile::raised).
    Raised,
    /// By [`Isa::f_sums_tile`].
    Sums,
    /// By [`Isa::tiles`].
    Tiles,
}

/// Activations laid out for tiles of tokens: for each tile all columns, for each four columns the tile's tokens.
#[derive(Clone, Debug, Default)]
pub struct PackedTokens {
    /// Tokens; the last tile is filled up with zeros.
    pub rows: usize,
    pub padded: usize,
    pub span: usize,
    tile: usize,
    way: Way,
    /// `[tiles, padded / 4 / WORDS, tile, WORDS]`: four i8 a word. For a matrix unit, see [`place_of_chunk`](crate::simd::place_of_chunk).
    quads: Lines<i32>,
    /// `[tiles, padded / span, tile]`.
    scales: Vec<f32>,
    /// `[tiles, padded / group, tile]`: what a group's dot products start from, so that the format's offset is taken off, and what
    /// products of sums have too much for a token. Empty where there is neither.
    starts: Vec<i32>,
    /// `[tiles, padded / 2 / min group, tile]`: the sums of two groups as two i16, or as [`Tiles`](crate::simd::Tiles) have them. Empty without mins.
    sums: Vec<i32>,
    /// `[tiles, padded / span]`: the largest size of a group's sum, whatever the rows. Set where it matters whether sums fit 16 bits.
    largest: Vec<i32>,
}

impl PackedTokens {
    /// Packs `tokens` for `_format` and the tile of `level`, on the threads of `pool`.
    pub fn pack<F: Unpack>(&mut self, format: F, level: Level, tokens: &Activations, pool: &Pool) {
        let way = dispatch_at(level, Best { tokens: tokens.rows, _format: format });
        self.pack_as(format, level, tokens, pool, way);
    }

    /// As [`PackedTokens::pack`], for products made that `way`, if there are such, or for those by lanes.
    pub(super) fn pack_as<F: Unpack>(
        &mut self,
        _format: F,
        level: Level,
        tokens: &Activations,
        pool: &Pool,
        way: Way,
    ) {
        assert_eq!(tokens.span, F::SPAN);
        let padded = tokens.padded();
        let (tile, group, way) = dispatch_at(level, Shape { tokens: tokens.rows, way, _format });
        (self.rows, self.padded, self.span, self.tile) = (tokens.rows, padded, tokens.span, tile);
        self.way = way;
        let tiles = self.tiles();
        let (quads, scales) = (padded / 4 * tile, padded / F::SPAN * tile);
        let starts = padded / group * tile;
        let sums = if F::MINS { padded / 2 / min_columns::<F>() * tile } else { 0 };
        self.quads.resize(tiles * quads);
        self.scales.resize(tiles * scales, 0.0);
        self.starts.resize(tiles * starts, 0);
        self.sums.resize(tiles * sums, 0);
        let spans = padded / F::SPAN;
        self.largest.resize(tiles * spans, 0);
        let all = (
            SharedMut::new(&mut self.quads),
            SharedMut::new(&mut self.scales),
            SharedMut::new(&mut self.starts),
            SharedMut::new(&mut self.sums),
            SharedMut::new(&mut self.largest),
        );
        pool.run(tiles, |i| {
            // Sound: each task writes its own tile.
            unsafe {
                let pack = PackTile::<F> {
                    from: tokens,
                    first: i * tile,
                    tile,
                    way,
                    quads: all.0.slice(i * quads, quads),
                    scales: all.1.slice(i * scales, scales),
                    starts: all.2.slice(i * starts, starts),
                    sums: all.3.slice(i * sums, sums),
                    largest: all.4.slice(i * spans, spans),
                    _format,
                };
                dispatch_at(level, pack);
            }
        });
    }

    #[inline(always)]
    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }
}

/// One tile of [`PackedTokens`], from row `first` of `from` on.
struct PackTile<'a, F> {
    from: &'a Activations,
    first: usize,
    tile: usize,
    way: Way,
    quads: &'a mut [i32],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    sums: &'a mut [i32],
    largest: &'a mut [i32],
    _format: F,
}

impl<F: Unpack> Kernel for PackTile<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let padded = self.from.padded();
        self.largest.fill(0);
        let for_tiles = const { has_tiles::<F, I>() } && self.way == Way::Tiles;
        let raised = self.way == Way::Raised;
        for t in 0..self.tile {
            let row = self.first + t;
            match (row < self.from.rows, for_tiles) {
                (true, true) => self.chunks(row, t),
                (true, false) => self.quads(row, t, I::WORDS, raised),
                (false, true) => self.fill_chunks(t),
                (false, false) => self.fill(t, I::WORDS),
            }
            if row >= self.from.rows {
                continue;
            }
            self.scales(row, t);
            let sums = &self.from.sums[row * (padded / 16)..][..padded / 16];
            if F::MINS {
                self.sums(sums, t);
            }
            if for_tiles || raised {
                continue;
            }
            // The constants alone decide what code there is.
            if const { has_sums::<F, I>() } && self.way == Way::Sums {
                self.limits(isa, row, sums);
                self.starts_of_sums(isa, row, sums, t);
                continue;
            }
            if const { has_pairs::<F, I>() } {
                self.limits(isa, row, sums);
            }
            let seen = const { Seen::of::<F, I, OfLanes>() };
            if seen.offset != 0 {
                let each = seen.group / 16;
                for g in 0..padded / seen.group {
                    self.starts[g * self.tile + t] = -seen.offset * sum(&sums[g * each..(g + 1) * each]);
                }
            }
        }
    }
}

impl<F: Unpack> PackTile<'_, F> {
    /// A token that is missing to a whole tile is zeros. (Whatever it starts from, its sums are not stored.)
    #[inline(always)]
    fn fill(&mut self, t: usize, words: usize) {
        for q in 0..self.from.padded() / 4 {
            self.quads[(q / words * self.tile + t) * words + q % words] = 0;
        }
    }

    /// Quants of `row` as those of token `t` of the tile, without signs if they are to be `raised`.
    #[inline(always)]
    fn quads(&mut self, row: usize, t: usize, words: usize, raised: bool) {
        let (padded, tile) = (self.from.padded(), self.tile);
        let raise = if raised { i32::from_ne_bytes([128; 4]) } else { 0 };
        let quants = self.from.quants[row * padded..][..padded].as_chunks::<4>().0;
        for q in 0..quants.len() {
            self.quads[(q / words * tile + t) * words + q % words] = word_of(quants[q]) ^ raise;
        }
    }

    /// Where span number `span` lies: in the order in which it is multiplied.
    #[inline(always)]
    fn turn(&self, span: usize) -> usize {
        match self.way {
            Way::Tiles => turn_of(span, self.from.padded() / F::SPAN, F::SPAN),
            _ => span,
        }
    }

    /// Scales of `row` as those of token `t` of the tile.
    #[inline(always)]
    fn scales(&mut self, row: usize, t: usize) {
        let spans = self.from.padded() / F::SPAN;
        let scales = &self.from.scales[row * spans..][..spans];
        for s in 0..spans {
            self.scales[self.turn(s) * self.tile + t] = scales[s];
        }
    }

    /// What mins are multiplied by, from the `sums` of each 16 columns.
    #[inline(always)]
    fn sums(&mut self, sums: &[i16], t: usize) {
        let (each, pairs) = (min_columns::<F>() / 16, F::SPAN / 2 / min_columns::<F>());
        for g in 0..sums.len() / (2 * each) {
            let both = &sums[2 * g * each..2 * (g + 1) * each];
            let (first, last) = (sum(&both[..each]), sum(&both[each..]));
            self.sums[(self.turn(g / pairs) * pairs + g % pairs) * self.tile + t] = match self.way {
                // Such formats' mins are all 1.
                Way::Tiles if F::SPAN == NARROW_SPAN => ((first + last) as f32).to_bits().cast_signed(),
                _ => pair(first, last),
            };
        }
    }

    /// The largest sizes of groups' sums.
    #[inline(always)]
    fn limits<I: Isa>(&mut self, isa: I, row: usize, sums: &[i16]) {
        let padded = self.from.padded();
        let vectors = self.from.quants[row * padded..][..padded].as_chunks::<32>().0;
        for i in 0..vectors.len() {
            let sizes = sizes_of_sixteen(isa, &vectors[i]);
            for h in (0..2).step_by(F::GROUP / 16) {
                let group = h..h + F::GROUP / 16;
                let (sum, size) = (sum(&sums[2 * i..][group.clone()]), sum(&sizes[group]));
                let largest = &mut self.largest[32 * i / F::SPAN];
                *largest = largest_sum::<F>(sum, size).max(*largest);
            }
        }
    }

    /// What products of sums start from: less the format's offset times the activations, and less what they have too much. With the raise a of
    /// the lanes of odd quads and the lowering b of those of even ones, that is `x₁·x₂ − b·x₁ + a·x₂ = (x₁ + a)·(x₂ − b) + a·b` for each
    /// two activations.
    #[inline(always)]
    fn starts_of_sums<I: Isa>(&mut self, isa: I, row: usize, sums: &[i16], t: usize) {
        let (padded, group) = (self.from.padded(), F::GROUP / 16);
        let (a, b) = const { (raised(F::LARGEST), lowered(F::LARGEST)) };
        let (raise, lower) = (isa.b_splat(a as u8), isa.b_splat((b as u8).wrapping_neg()));
        let quants = &self.from.quants[row * padded..][..padded];
        let mut last = [0i8; 64];
        last[..32].copy_from_slice(&quants[padded - 32..]);
        for i in 0..padded / 32 {
            // The odd quads in the places of the even ones, and something in those of the odd.
            let shifted = if i + 1 < padded / 32 { &quants[32 * i + 4..] } else { &last[4..] };
            let first = isa.b_add(isa.b_all_i8(quants[32 * i..].first_chunk().expect("32 columns")), raise);
            let second = isa.b_add(isa.b_all_i8(shifted.first_chunk().expect("32 columns")), lower);
            let mut products = [0i32; 8 * MAX_ROWS];
            isa.n_store(isa.n_dot4::<true>(isa.n_zero(), first, second), &mut products);
            let halves = [products[0] + products[2], products[4] + products[6]];
            for h in (0..2).step_by(group) {
                let mut product = a * b * F::GROUP as i32 / 2;
                for half in h..h + group {
                    product += halves[half];
                }
                let offset = F::OFFSET * sum(&sums[2 * i + h..][..group]);
                self.starts[(2 * i + h) / group * self.tile + t] = -product - offset;
            }
        }
    }
}

/// A panel's scratch: one per thread, reused.
#[derive(Default)]
pub struct Panel {
    lanes: Lanes,
    /// The second half of the rows, for a matrix unit.
    second: Lanes,
    /// `[partial sums, tile tokens, row vectors, MAX_LANES]`. For a matrix unit, `[partial sums, row vectors, parts, PART, MAX_LANES]`.
    totals: Totals,
}

/// `out[token * out_stride + first + row] = rows[row] · tokens[token]` for one panel of rows.
pub struct PanelProducts<'a, F> {
    pub format: F,
    /// At most [`panel_rows`] whole rows.
    pub rows: &'a [u8],
    pub row_bytes: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Bytes that this thread is likely to need next: they are asked for while the products are computed, for which memory is not needed.
    pub next: &'a [u8],
    pub tokens: &'a PackedTokens,
    pub panel: &'a mut Panel,
    pub out: &'a SharedMut<'a, f32>,
    pub out_stride: usize,
    /// The first row's place in a row of `out`.
    pub first: usize,
}

/// Rows of a panel at `level` for products with `tokens`.
pub fn panel_rows(level: Level, tokens: &PackedTokens) -> usize {
    struct Rows(Way);
    impl Kernel for Rows {
        type Output = usize;
        #[inline(always)]
        fn run<I: Isa>(self, _isa: I) -> usize {
            I::LANES * I::TILE.0 * if self.0 == Way::Tiles { tiles::PANELS } else { 1 }
        }
    }
    dispatch_at(level, Rows(tokens.way))
}

/// What [`few_tokens`] is at most.
pub const MAX_FEW_TOKENS: usize = sixteens::MOST_TOKENS;

/// Up to so many tokens, products by rows are faster at `level` than those by panels.
pub fn few_tokens<F: Unpack>(format: F, level: Level) -> usize {
    struct Few<F>(F);
    impl<F: Unpack> Kernel for Few<F> {
        type Output = usize;
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> usize {
            // Where a sweep over rows takes two tokens, a third is worth another one unless panels are unpacked block by block.
            let few = match const { swept::<F, I>() } {
                2 if const { blockwise_tokens::<F, I>() == 0 } => 3,
                // Two sweeps over rows side by side are no slower than panels.
                _ if const { has_eights::<F, I>() } => 2 * eights::SWEPT,
                swept => swept,
            };
            few.max(sixteens::most_tokens::<F, I>(isa))
        }
    }
    dispatch_at(level, Few(format))
}

/// Up to so many tokens, the tile is the one that leaves fewer of its places empty.
const SMALL_BATCH: usize = 32;

/// The tokens of a tile for a batch of `tokens`, and the columns that share a start.
struct Shape<F> {
    tokens: usize,
    /// What is wanted.
    way: Way,
    _format: F,
}

impl<F: Unpack> Kernel for Shape<F> {
    /// `usize::MAX` columns where there are no starts. And the way that there is.
    type Output = (usize, usize, Way);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> (usize, usize, Way) {
        let (seen, large) = (const { Seen::of::<F, I, OfLanes>() }, I::TILE.1);
        let way = match self.way {
            Way::Tiles if has_tiles::<F, I>() && isa.tiles().is_some() => {
                return (PART, usize::MAX, Way::Tiles);
            }
            Way::Sums if has_sums::<F, I>() => Way::Sums,
            Way::Apart if raises::<F, I>() => Way::Raised,
            Way::Apart if has_pairs::<F, I>() => Way::Apart,
            _ => Way::Lanes,
        };
        let is_small = self.tokens <= SMALL_BATCH
            && self.tokens.next_multiple_of(I::SMALL) < self.tokens.next_multiple_of(large);
        let group = match seen.offset {
            _ if way == Way::Sums => F::GROUP,
            0 => usize::MAX,
            _ if way == Way::Raised => usize::MAX,
            _ => seen.group,
        };
        (if is_small { I::SMALL } else { large }, group, way)
    }
}

/// Whether tiles of `F` have scales in pairs.
const fn has_pairs<F: Unpack, I: Isa>() -> bool {
    matches!(scaling::<F, I, OfLanes>(), Scaling::Pairs)
}

/// Up to so many tokens, panels that are unpacked block by block are faster than [`Way::Apart`] where there is no matrix unit.
const BLOCKWISE_BEFORE_APART: usize = 24;

/// The fastest way for a batch of `tokens`.
struct Best<F> {
    tokens: usize,
    _format: F,
}

impl<F: Unpack> Kernel for Best<F> {
    type Output = Way;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Way {
        let (has_sums, has_tiles) = const { (has_sums::<F, I>(), has_tiles::<F, I>()) };
        let is_apart = const { has_pairs::<F, I>() } && !isa.multiplies_sums();
        let mut blockwise = const { blockwise_tokens::<F, I>() };
        if is_apart && isa.tiles().is_none() {
            blockwise = blockwise.min(BLOCKWISE_BEFORE_APART);
        }
        if self.tokens <= blockwise {
            Way::Lanes
        } else if has_tiles && self.tokens >= tiles::LEAST_TOKENS && isa.tiles().is_some() {
            Way::Tiles
        } else if has_sums && isa.multiplies_sums() {
            Way::Sums
        } else if is_apart {
            Way::Apart
        } else {
            Way::Lanes
        }
    }
}

impl<F: Unpack> PanelProducts<'_, F> {
    /// Computes the panel's products. The tokens were packed for the same `level`.
    pub fn compute(self, level: Level) {
        dispatch_at(level, self);
    }
}

impl<F: Unpack> Kernel for PanelProducts<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        assert_eq!(self.tokens.span, F::SPAN);
        if const { has_tiles::<F, I>() } && self.tokens.way == Way::Tiles {
            return self.by_tiles(isa);
        }
        if const { has_sums::<F, I>() } && self.tokens.way == Way::Sums {
            unpack::<F, I, OfSums>(isa, self.rows, self.row_bytes, self.columns, &mut self.panel.lanes);
        } else if const { raises::<F, I>() } && self.tokens.way == Way::Raised {
            unpack::<F, I, OfRaised>(isa, self.rows, self.row_bytes, self.columns, &mut self.panel.lanes);
        } else if !self.is_blockwise::<I>() {
            unpack::<F, I, OfLanes>(isa, self.rows, self.row_bytes, self.columns, &mut self.panel.lanes);
        }
        if self.tokens.tile == I::TILE.1 {
            isa.tile(self);
        } else {
            isa.small_tile(self);
        }
    }
}

impl<F: Unpack> TileKernel for PanelProducts<'_, F> {
    #[inline(always)]
    fn run<I: Isa, const R: usize, const T: usize>(mut self, isa: I) {
        assert_eq!(self.tokens.tile, T);
        // The constant alone decides whether there is such code at all.
        if const { blockwise_tokens::<F, I>() > 0 } && self.is_blockwise::<I>() {
            return self.blocks::<I, R, T>(isa);
        }
        let (tiles, partials) = (self.tokens.tiles(), partial_sums(F::SPAN));
        // Twice, so that a tile can be stored while the next one is computed.
        // (Partial sums that no span of a narrow matrix goes to are 0.)
        self.panel.totals.clear(2 * partials * T * R * MAX_LANES, &self.panel.lanes.lanes);
        for tile in 0..tiles {
            if const { has_sums::<F, I>() } && self.tokens.way == Way::Sums {
                self.spans::<I, OfSums, R, T>(isa, tile, tiles);
            } else if const { raises::<F, I>() } && self.tokens.way == Way::Raised {
                self.spans::<I, OfRaised, R, T>(isa, tile, tiles);
            } else if const { has_pairs::<F, I>() } {
                self.spans::<I, OfLanes, R, T>(isa, tile, tiles);
            } else {
                self.tile::<I, R, T>(isa, tile, tiles);
            }
        }
    }
}

impl<F: Unpack> PanelProducts<'_, F> {
    /// Whether the panel is unpacked block by block.
    #[inline(always)]
    fn is_blockwise<I: Isa>(&self) -> bool {
        self.tokens.way == Way::Lanes && self.tokens.rows <= const { blockwise_tokens::<F, I>() }
    }

    /// The products of the panel with one of the `tiles` of `T` tokens.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const T: usize>(&mut self, isa: I, tile: usize, tiles: usize) {
        let Panel { lanes: panel, totals, .. } = &mut *self.panel;
        let tokens = self.tokens;
        let partials = partial_sums(F::SPAN);
        let spans = self.columns / F::SPAN;
        let (totals, before) = totals.two_tiles::<R, T>(partials, tile);
        let is_whole = is_whole::<I, R>(self.rows, self.row_bytes);
        let mut before = left::<I, R, T>(before, tile, is_whole, self.out, self.out_stride, self.first);
        for s in 0..spans {
            prefetch_part(isa, self.next, tile * spans + s, tiles * spans);
            before.at_span(isa, s);
            let of = Span { panel, at: s, tokens, tile, number: s };
            let total = &mut totals[s % partials];
            let sum = span::<F, I, R, T>(isa, of);
            let floats = floats::<F, I, R, T>(of, 1);
            if s < partials {
                add_span::<I, R, T, true>(isa, total, &sum, floats);
            } else {
                add_span::<I, R, T, false>(isa, total, &sum, floats);
            }
        }
        before.store_rest(isa);
        self.store_last::<I, R, T>(isa, tile, tiles);
    }

    /// As [`PanelProducts::tile`], with all spans at once: by products of sums, or with scales in pairs.
    #[inline(always)]
    fn spans<I: Isa, P: Product, const R: usize, const T: usize>(
        &mut self,
        isa: I,
        tile: usize,
        tiles: usize,
    ) {
        // (Constants are evaluated for formats without such products, too.)
        const {
            assert!(
                !(if P::SUMS { has_sums::<F, I>() } else { has_pairs::<F, I>() }) || F::BLOCK == 2 * F::SPAN
            );
            // (Scales in pairs are bytes with a sign: 128 is a negative one's size.)
            assert!(!has_pairs::<F, I>() || F::LARGEST_SCALE <= 128);
        };
        let Panel { lanes: panel, totals, .. } = &mut *self.panel;
        let (tokens, spans, wide) = (self.tokens, self.columns / F::SPAN, I::LANES * R);
        prefetch_part(isa, self.next, tile, tiles);
        // A tile's part of what is there for each `columns` of a token, or of all tokens.
        let of = |columns: usize| (tile * tokens.padded / columns * T, spans * F::SPAN / columns * T);
        let (quads, groups) = (of(4), of(F::GROUP));
        let rows = spans * F::SPAN / F::GROUP * wide;
        let (mut corrections, mut correction, mut largest_correction) = (&[][..], &[][..], &[][..]);
        if P::SUMS {
            (corrections, correction) = (&panel.corrections[..rows], &panel.correction[..spans * wide]);
            largest_correction = &panel.largest_correction[..spans];
        } else if P::RAISED {
            correction = &panel.correction[..spans * wide];
        }
        let of = SpansTile {
            spans,
            groups: F::SPAN / F::GROUP,
            quads: F::GROUP / 4,
            rows: &panel.lanes[..self.columns / 4 * wide],
            largest_lane: F::LARGEST,
            apart: matches!(tokens.way, Way::Apart | Way::Raised),
            raised: P::RAISED,
            tokens: &tokens.quads[quads.0..][..quads.1],
            starts: if P::SUMS || F::OFFSET != 0 && !P::RAISED {
                &tokens.starts[groups.0..][..groups.1]
            } else {
                &[]
            },
            scales: &panel.scales[..if P::SUMS { rows } else { rows / 2 }],
            corrections,
            correction,
            largest: &tokens.largest[tile * tokens.padded / F::SPAN..][..spans],
            largest_correction,
            floats: floats::<F, I, R, T>(Span { panel, at: 0, tokens, tile, number: 0 }, spans),
        };
        let (totals, before) = totals.two_tiles::<R, T>(partial_sums(F::SPAN), tile);
        let totals = totals.first_chunk_mut().expect("a tile's partial sums");
        let is_whole = is_whole::<I, R>(self.rows, self.row_bytes);
        let before = left::<I, R, T>(before, tile, is_whole, self.out, self.out_stride, self.first);
        match (P::SUMS, F::MINS) {
            (true, true) => isa.f_sums_tile::<R, T, true>(totals, &of, before),
            (true, false) => isa.f_sums_tile::<R, T, false>(totals, &of, before),
            (false, true) => isa.f_pairs_tile::<R, T, true>(totals, &of, before),
            (false, false) => isa.f_pairs_tile::<R, T, false>(totals, &of, before),
        }
        self.store_last::<I, R, T>(isa, tile, tiles);
    }

    /// Stores `tile` unless the next one does, which there has to be, and for which the panel has to be whole.
    #[inline(always)]
    fn store_last<I: Isa, const R: usize, const T: usize>(&mut self, isa: I, tile: usize, tiles: usize) {
        if tile + 1 == tiles || !is_whole::<I, R>(self.rows, self.row_bytes) {
            self.store::<I, R, T>(isa, tile, tile % 2);
        }
    }

    /// The products of all tokens with the panel, block by block.
    #[inline(always)]
    fn blocks<I: Isa, const R: usize, const T: usize>(&mut self, isa: I) {
        let rows = row_vectors::<I>(self.rows, self.row_bytes);
        let (tiles, partials, blocks) = (self.tokens.tiles(), partial_sums(F::SPAN), self.columns / F::BLOCK);
        self.panel.totals.clear(tiles * partials * T * R * MAX_LANES, &self.panel.lanes.lanes);
        resize_to_block::<F, I>(&mut self.panel.lanes);
        for block in 0..blocks {
            unpack_block::<F, I>(isa, &rows, block, &mut self.panel.lanes);
            for tile in 0..tiles {
                let Panel { lanes: panel, totals, .. } = &mut *self.panel;
                for half in 0..2 {
                    let s = 2 * block + half;
                    let of = Span { panel, at: half, tokens: self.tokens, tile, number: s };
                    let (number, all) = ((block * tiles + tile) * 2 + half, 2 * blocks * tiles);
                    let sum = if const { I::STAYS_PACKED } {
                        span_of_packed::<F, I, R, T>(isa, of, Ahead::new(self.next, number, all))
                    } else {
                        prefetch_part(isa, self.next, number, all);
                        span::<F, I, R, T>(isa, of)
                    };
                    let total = &mut totals.tiles::<R, T>()[tile * partials + s % partials];
                    add_span::<I, R, T, false>(isa, total, &sum, floats::<F, I, R, T>(of, 1));
                }
            }
        }
        for tile in 0..tiles {
            self.store::<I, R, T>(isa, tile, tile);
        }
    }

    /// Adds up the partial sums number `from` and stores them as those of `tile`.
    #[inline(always)]
    fn store<I: Isa, const R: usize, const T: usize>(&mut self, isa: I, tile: usize, from: usize) {
        let (tokens, partials) = (self.tokens, partial_sums(F::SPAN));
        let rows = self.rows.len() / self.row_bytes;
        let totals = &self.panel.totals.tiles::<R, T>()[from * partials..(from + 1) * partials];
        for t in 0..T.min(tokens.rows - tile * T) {
            for r in 0..R.min(rows.div_ceil(I::LANES)) {
                let sum = sum_of_partials(isa, totals, t, r);
                let count = (rows - r * I::LANES).min(I::LANES);
                let at = (tile * T + t) * self.out_stride + self.first + r * I::LANES;
                // Sound: panels are given disjoint rows, and tiles within a panel disjoint tokens.
                let out = unsafe { self.out.slice(at, count) };
                // Where the next tile's sum goes is far from here, and a store that misses the caches holds up those behind it.
                isa.prefetch(out.as_ptr().wrapping_add(T * self.out_stride).cast());
                store_some(isa, sum, out);
            }
        }
    }
}

/// Whether `rows` are as many as a panel has.
#[inline(always)]
fn is_whole<I: Isa, const R: usize>(rows: &[u8], row_bytes: usize) -> bool {
    rows.len() == row_bytes * I::LANES * R
}

/// What is left to `tile` to store: the `partials` of the tile before it if there is one and the panel `is_whole`, from `first` on in rows of `out`
/// that are `stride` floats long.
#[inline(always)]
fn left<'a, I: Isa, const R: usize, const T: usize>(
    partials: &'a [Partials<R, T>],
    tile: usize,
    is_whole: bool,
    out: &'a SharedMut<f32>,
    stride: usize,
    first: usize,
) -> Finished<'a, R, T> {
    if tile == 0 || !is_whole {
        return Finished::nothing();
    }
    let mut before = Finished::nothing();
    for t in 0..T {
        // Sound: panels are given disjoint rows of weights, and tiles within a panel disjoint tokens.
        before.add(t, unsafe { out.slice(((tile - 1) * T + t) * stride + first, I::LANES * R) });
    }
    before.of(partials)
}

/// Operands of a span of columns: of a panel, and of a tile of tokens.
#[derive(Clone, Copy)]
struct Span<'a> {
    panel: &'a Lanes,
    /// Number of the span in the panel, which may be of one block only.
    at: usize,
    tokens: &'a PackedTokens,
    tile: usize,
    /// Number of the span in the matrix.
    number: usize,
}

/// The integer sums of a span, rounded to floats: dot products times their groups' scales.
#[inline(always)]
fn span<F: Unpack, I: Isa, const R: usize, const T: usize>(isa: I, of: Span) -> [[I::F; R]; T] {
    let Span { panel, at, tokens, tile, number: s } = of;
    let wide = I::LANES * R;
    let quads = F::SPAN / 4;
    let seen = const { Seen::of::<F, I, OfLanes>() };
    let groups = F::SPAN / seen.group;
    let rows = &panel.lanes[at * quads * wide..][..quads * wide];
    let scales = match const { scaling::<F, I, OfLanes>() } {
        Scaling::None => Scales::None,
        Scaling::Halves | Scaling::Pairs => unreachable!("taken with all spans at once"),
        Scaling::Words => Scales::Words(&panel.scales[at * groups * wide..(at + 1) * groups * wide]),
        Scaling::Floats => {
            let scales = &panel.float_scales[at * groups * wide..(at + 1) * groups * wide];
            Scales::Floats { scales, exact: const { exact::<F>() } }
        }
    };
    let at = (tile * tokens.padded / seen.group + s * groups) * T;
    let span = SpanTile {
        groups,
        rows,
        tokens: &tokens.quads[(tile * tokens.padded / 4 + s * quads) * T..][..quads * T],
        starts: if seen.offset == 0 || seen.halved {
            None
        } else {
            Some(&tokens.starts[at..at + groups * T])
        },
        scales,
        largest: seen.largest,
    };
    let mut sum = [[isa.f_splat(0.0); R]; T];
    isa.f_span_tile::<R, T>(&mut sum, &span);
    if seen.halved {
        let starts = &tokens.starts[at..at + T];
        for t in 0..T {
            // All of these integers are below 2^24.
            let start = isa.f_from_w(isa.w_splat(starts[t]));
            for r in 0..R {
                sum[t][r] = isa.f_add(isa.f_add(sum[t][r], sum[t][r]), start);
            }
        }
    }
    sum
}

/// As [`span`], of a panel that stays packed.
#[inline(always)]
fn span_of_packed<F: Unpack, I: Isa, const R: usize, const T: usize>(
    isa: I,
    of: Span,
    ahead: Ahead,
) -> [[I::F; R]; T] {
    let Span { panel, at: half, tokens, tile, number: s } = of;
    let (quads, groups) = (F::SPAN / 4, F::SPAN / F::GROUP);
    let mut starts = &[][..];
    if F::OFFSET != 0 {
        let at = tile * tokens.padded / F::GROUP + s * groups;
        starts = &tokens.starts.as_chunks::<T>().0[at..at + groups];
    }
    let at = tile * tokens.padded / 4 + s * quads;
    let tokens = &tokens.quads.as_chunks::<T>().0[at..at + quads];
    packed_span::<F, I, R, T>(isa, Operands { panel, span: half, tokens, starts, ahead })
}

/// What the sums of `count` spans from `of` on become floats with.
#[inline(always)]
fn floats<'a, F: Unpack, I: Isa, const R: usize, const T: usize>(
    of: Span<'a>,
    count: usize,
) -> SpanFloats<'a> {
    let Span { panel, at, tokens, tile, number: s } = of;
    let wide = I::LANES * R;
    let (b, blocks) = (at * F::SPAN / F::BLOCK, (count * F::SPAN).div_ceil(F::BLOCK));
    let d = &panel.d[b * wide..][..blocks * wide];
    let scales = &tokens.scales[(tile * tokens.padded / F::SPAN + s) * T..][..count * T];
    if !F::MINS {
        return SpanFloats { d, dmin: &[], mins: &[], sums: &[], tokens: scales };
    }
    let pairs = F::SPAN / 2 / min_columns::<F>();
    let first = tile * tokens.padded / 2 / min_columns::<F>() + s * pairs;
    SpanFloats {
        d,
        dmin: &panel.dmin[b * wide..][..blocks * wide],
        mins: &panel.mins[at * pairs * wide..][..count * pairs * wide],
        sums: &tokens.sums[first * T..][..count * pairs * T],
        tokens: scales,
    }
}
