//! Products of quantized rows with many tokens: the compute-bound side.
//!
//! A panel of a few row vectors is unpacked once to int8 lanes that stay in the cache, four columns of
//! every row side by side as the dot-product instruction wants them, and then swept by all tokens in
//! register tiles. No repacked copy of the weights outlives its panel.

use super::activations::{Activations, has_eights, sizes_of_sixteen};
use super::matvec::{eights, swept};
use super::panel::{
    Ahead, Lanes, Operands, Scaling, Seen, blockwise_tokens, exact, fits, min_columns, packed_span,
    resize_to_block, row_vectors, scaling, unpack, unpack_block,
};
use super::{Lines, Pool, SharedMut, pair, partial_sums, prefetch_part, sum};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, Kernel, Level, MAX_LANES, Scales, SpanTile, TileKernel, dispatch_at};

/// Activations laid out for tiles of tokens: for each tile all columns, for each four columns the tile's tokens.
#[derive(Clone, Debug, Default)]
pub struct PackedTokens {
    /// Tokens; the last tile is filled up with zeros.
    pub rows: usize,
    pub padded: usize,
    pub span: usize,
    tile: usize,
    /// `[tiles, padded / 4 / WORDS, tile, WORDS]`: four i8 a word.
    quads: Vec<i32>,
    /// `[tiles, padded / span, tile]`.
    scales: Vec<f32>,
    /// `[tiles, padded / group, tile]`: what a group's dot products start from, so that the format's offset
    /// is taken off. Empty where it has none.
    starts: Vec<i32>,
    /// `[tiles, padded / 2 / min group, tile]`: the sums of two groups as two i16. Empty without mins.
    sums: Vec<i32>,
    /// `[tiles, padded / span]`: whether no group's sum exceeds 16 bits, whatever the rows. Set where scales are in pairs.
    fit: Vec<bool>,
}

impl PackedTokens {
    /// Packs `tokens` for `_format` and the tile of `level`, on the threads of `pool`.
    pub fn pack<F: Unpack>(&mut self, _format: F, level: Level, tokens: &Activations, pool: &Pool) {
        assert_eq!(tokens.span, F::SPAN);
        let padded = tokens.padded();
        let (tile, group) = dispatch_at(level, Shape { tokens: tokens.rows, _format });
        (self.rows, self.padded, self.span, self.tile) = (tokens.rows, padded, tokens.span, tile);
        let tiles = self.tiles();
        let (quads, scales) = (padded / 4 * tile, padded / F::SPAN * tile);
        let starts = padded / group * tile;
        let sums = if F::MINS { padded / 2 / min_columns::<F>() * tile } else { 0 };
        self.quads.resize(tiles * quads, 0);
        self.scales.resize(tiles * scales, 0.0);
        self.starts.resize(tiles * starts, 0);
        self.sums.resize(tiles * sums, 0);
        let spans = padded / F::SPAN;
        self.fit.resize(tiles * spans, false);
        let all = (
            SharedMut::new(&mut self.quads),
            SharedMut::new(&mut self.scales),
            SharedMut::new(&mut self.starts),
            SharedMut::new(&mut self.sums),
            SharedMut::new(&mut self.fit),
        );
        pool.run(tiles, |i| {
            // Sound: each task writes its own tile.
            unsafe {
                let pack = PackTile::<F> {
                    from: tokens,
                    first: i * tile,
                    tile,
                    quads: all.0.slice(i * quads, quads),
                    scales: all.1.slice(i * scales, scales),
                    starts: all.2.slice(i * starts, starts),
                    sums: all.3.slice(i * sums, sums),
                    fit: all.4.slice(i * spans, spans),
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
    quads: &'a mut [i32],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    sums: &'a mut [i32],
    fit: &'a mut [bool],
    _format: F,
}

impl<F: Unpack> Kernel for PackTile<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (from, tile, words) = (self.from, self.tile, I::WORDS);
        let padded = from.padded();
        let (spans, sixteens) = (padded / F::SPAN, padded / 16);
        self.fit.fill(true);
        for t in 0..tile {
            let row = self.first + t;
            if row >= from.rows {
                // Tokens that are missing to a whole tile are zeros.
                for q in 0..padded / 4 {
                    self.quads[(q / words * tile + t) * words + q % words] = 0;
                }
                continue;
            }
            let quants = from.quants[row * padded..][..padded].as_chunks::<4>().0;
            for q in 0..quants.len() {
                let [a, b, c, d] = quants[q];
                let word = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
                self.quads[(q / words * tile + t) * words + q % words] = word;
            }
            let scales = &from.scales[row * spans..][..spans];
            for s in 0..spans {
                self.scales[s * tile + t] = scales[s];
            }
            let sums = &from.sums[row * sixteens..][..sixteens];
            if const { matches!(scaling::<F, I>(false), Scaling::Pairs) } {
                let vectors = from.quants[row * padded..][..padded].as_chunks::<32>().0;
                for i in 0..vectors.len() {
                    let sizes = sizes_of_sixteen(isa, &vectors[i]);
                    for h in (0..2).step_by(F::GROUP / 16) {
                        let group = h..h + F::GROUP / 16;
                        let (sum, size) = (sum(&sums[2 * i..][group.clone()]), sum(&sizes[group]));
                        self.fit[32 * i / F::SPAN] &= fits::<F>(sum, size);
                    }
                }
            }
            let seen = const { Seen::of::<F, I>() };
            if seen.offset != 0 {
                let each = seen.group / 16;
                for g in 0..padded / seen.group {
                    self.starts[g * tile + t] = -seen.offset * sum(&sums[g * each..(g + 1) * each]);
                }
            }
            if F::MINS {
                let each = min_columns::<F>() / 16;
                for g in 0..padded / 2 / min_columns::<F>() {
                    let both = &sums[2 * g * each..2 * (g + 1) * each];
                    self.sums[g * tile + t] = pair(sum(&both[..each]), sum(&both[each..]));
                }
            }
        }
    }
}

/// A panel's scratch: one per thread, reused.
#[derive(Default)]
pub struct Panel {
    lanes: Lanes,
    /// `[partial sums, tile tokens, row vectors, MAX_LANES]`.
    totals: Lines<f32>,
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

/// Rows of a panel at `level`.
pub fn panel_rows(level: Level) -> usize {
    struct Rows;
    impl Kernel for Rows {
        type Output = usize;
        #[inline(always)]
        fn run<I: Isa>(self, _isa: I) -> usize {
            I::LANES * I::TILE.0
        }
    }
    dispatch_at(level, Rows)
}

/// What [`few_tokens`] is at most.
pub const MAX_FEW_TOKENS: usize = 2 * eights::SWEPT;

/// Up to so many tokens, products by rows are faster at `level` than those by panels.
pub fn few_tokens<F: Unpack>(format: F, level: Level) -> usize {
    struct Few<F>(F);
    impl<F: Unpack> Kernel for Few<F> {
        type Output = usize;
        #[inline(always)]
        fn run<I: Isa>(self, _isa: I) -> usize {
            // Where a sweep over rows takes two tokens, a third is worth another one unless panels are unpacked block by block.
            match const { swept::<F, I>() } {
                2 if const { blockwise_tokens::<F, I>() == 0 } => 3,
                // Two sweeps over rows side by side are no slower than panels.
                _ if const { has_eights::<F, I>() } => MAX_FEW_TOKENS,
                swept => swept,
            }
        }
    }
    dispatch_at(level, Few(format))
}

/// Up to so many tokens, the tile is the one that leaves fewer of its places empty.
const SMALL_BATCH: usize = 32;

/// The tokens of a tile for a batch of `tokens`, and the columns that share a start.
struct Shape<F> {
    tokens: usize,
    _format: F,
}

impl<F: Unpack> Kernel for Shape<F> {
    /// `usize::MAX` columns where there are no starts.
    type Output = (usize, usize);

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> (usize, usize) {
        let (seen, large) = (const { Seen::of::<F, I>() }, I::TILE.1);
        let is_small = self.tokens <= SMALL_BATCH
            && self.tokens.next_multiple_of(I::SMALL) < self.tokens.next_multiple_of(large);
        (if is_small { I::SMALL } else { large }, if seen.offset == 0 { usize::MAX } else { seen.group })
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
        if !self.is_blockwise::<I>() {
            unpack::<F, I>(isa, self.rows, self.row_bytes, self.columns, &mut self.panel.lanes);
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
        self.panel.totals.resize(partials * T * R * MAX_LANES);
        // Partial sums that no span of a narrow matrix goes to are 0.
        self.panel.totals.fill(0.0);
        for tile in 0..tiles {
            self.tile::<I, R, T>(isa, tile, tiles);
        }
    }
}

impl<F: Unpack> PanelProducts<'_, F> {
    /// Whether the panel is unpacked block by block.
    #[inline(always)]
    fn is_blockwise<I: Isa>(&self) -> bool {
        self.tokens.rows <= const { blockwise_tokens::<F, I>() }
    }

    /// The products of the panel with one of the `tiles` of `T` tokens.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const T: usize>(&mut self, isa: I, tile: usize, tiles: usize) {
        let tokens = self.tokens;
        let partials = partial_sums(F::SPAN);
        let spans = self.columns / F::SPAN;
        for s in 0..spans {
            prefetch_part(isa, self.next, tile * spans + s, tiles * spans);
            let Panel { lanes: panel, totals } = &mut *self.panel;
            let of = Span { panel, at: s, tokens, tile, number: s };
            let sum = span::<F, I, R, T>(isa, of);
            let total = &mut tiles_of::<R, T>(totals)[s % partials];
            if s < partials {
                add_span::<F, I, R, T, true>(isa, of, &sum, total);
            } else {
                add_span::<F, I, R, T, false>(isa, of, &sum, total);
            }
        }
        self.store::<I, R, T>(isa, tile, 0);
    }

    /// The products of all tokens with the panel, block by block.
    #[inline(always)]
    fn blocks<I: Isa, const R: usize, const T: usize>(&mut self, isa: I) {
        let rows = row_vectors::<I>(self.rows, self.row_bytes);
        let (tiles, partials, blocks) = (self.tokens.tiles(), partial_sums(F::SPAN), self.columns / F::BLOCK);
        self.panel.totals.resize(tiles * partials * T * R * MAX_LANES);
        self.panel.totals.fill(0.0);
        resize_to_block::<F, I>(&mut self.panel.lanes);
        for block in 0..blocks {
            unpack_block::<F, I>(isa, &rows, block, &mut self.panel.lanes);
            for tile in 0..tiles {
                let Panel { lanes: panel, totals } = &mut *self.panel;
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
                    let total = &mut tiles_of::<R, T>(totals)[tile * partials + s % partials];
                    add_span::<F, I, R, T, false>(isa, of, &sum, total);
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
        let totals = &tiles_of::<R, T>(&mut self.panel.totals)[from * partials..(from + 1) * partials];
        for t in 0..T.min(tokens.rows - tile * T) {
            for r in 0..R.min(rows.div_ceil(I::LANES)) {
                let l = |i: usize| isa.f_load(&totals[i][t][r]);
                let sum = if partials == 2 {
                    isa.f_add(l(0), l(1))
                } else {
                    let even = isa.f_add(isa.f_add(l(0), l(4)), isa.f_add(l(2), l(6)));
                    isa.f_add(even, isa.f_add(isa.f_add(l(1), l(5)), isa.f_add(l(3), l(7))))
                };
                let count = (rows - r * I::LANES).min(I::LANES);
                let at = (tile * T + t) * self.out_stride + self.first + r * I::LANES;
                // Sound: panels are given disjoint rows, and tiles within a panel disjoint tokens.
                let out = unsafe { self.out.slice(at, count) };
                // Where the next tile's sum goes is far from here, and a store that misses the caches holds up those behind it.
                isa.prefetch(out.as_ptr().wrapping_add(T * self.out_stride).cast());
                if count == I::LANES {
                    isa.f_store(sum, out);
                } else {
                    let mut lanes = [0.0f32; MAX_LANES];
                    isa.f_store(sum, &mut lanes);
                    out.copy_from_slice(&lanes[..count]);
                }
            }
        }
    }
}

/// Sums of a register tile in memory: a vector for each token and row vector.
type Sums<const R: usize, const T: usize> = [[[f32; MAX_LANES]; R]; T];

/// `lines` as sums of whole tiles.
#[inline(always)]
fn tiles_of<const R: usize, const T: usize>(lines: &mut [f32]) -> &mut [Sums<R, T>] {
    lines.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0
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
    let seen = const { Seen::of::<F, I>() };
    let groups = F::SPAN / seen.group;
    let rows = &panel.lanes[at * quads * wide..][..quads * wide];
    let scales = match const { scaling::<F, I>(false) } {
        Scaling::None => Scales::None,
        Scaling::Words => Scales::Words(&panel.scales[at * groups * wide..(at + 1) * groups * wide]),
        Scaling::Floats => {
            let scales = &panel.float_scales[at * groups * wide..(at + 1) * groups * wide];
            Scales::Floats { scales, exact: const { exact::<F>() } }
        }
        Scaling::Pairs => {
            let scales = &panel.scales[at * groups / 2 * wide..(at + 1) * groups / 2 * wide];
            Scales::Pairs { scales, fit: tokens.fit[tile * tokens.padded / F::SPAN + s] }
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

/// Adds a span to `total` (0 if it is the `FIRST`): its integer `sum`s, and mins times the sums of their groups' activations, times the
/// floats of rows and tokens.
#[inline(always)]
fn add_span<F: Unpack, I: Isa, const R: usize, const T: usize, const FIRST: bool>(
    isa: I,
    of: Span,
    sum: &[[I::F; R]; T],
    total: &mut Sums<R, T>,
) {
    let Span { panel, at, tokens, tile, number: s } = of;
    let wide = I::LANES * R;
    let b = at * F::SPAN / F::BLOCK;
    let scales = &tokens.scales.as_chunks::<T>().0[tile * tokens.padded / F::SPAN + s];
    let pairs = F::SPAN / 2 / min_columns::<F>();
    let d = &panel.d[b * wide..(b + 1) * wide];
    let (mut sums, mut mins, mut dmin) = (&[][..], &[][..], d);
    if F::MINS {
        let first = tile * tokens.padded / 2 / min_columns::<F>() + s * pairs;
        sums = &tokens.sums.as_chunks::<T>().0[first..first + pairs];
        mins = &panel.mins[at * pairs * wide..(at + 1) * pairs * wide];
        dmin = &panel.dmin[b * wide..(b + 1) * wide];
    }
    for r in 0..R {
        let at = r * I::LANES;
        let (d, dmin) = (isa.f_load(&d[at..]), isa.f_load(&dmin[at..]));
        let mut row_mins = [isa.w_splat(0); MAX_MIN_PAIRS];
        if F::MINS {
            for p in 0..pairs {
                row_mins[p] = isa.w_load(&mins[p * wide + at..]);
            }
        }
        for t in 0..T {
            let mut value = isa.f_mul(d, sum[t][r]);
            if F::MINS {
                let mut min = isa.w_splat(0);
                for p in 0..pairs {
                    min = isa.w_dot2_i16(min, row_mins[p], isa.w_splat(sums[p][t]));
                }
                value = isa.f_fnma(dmin, isa.f_from_w(min), value);
            }
            let total = &mut total[t][r];
            let before = if FIRST { isa.f_splat(0.0) } else { isa.f_load(&*total) };
            isa.f_store(isa.f_fma(isa.f_splat(scales[t]), value, before), total);
        }
    }
}

/// Pairs of mins in a span, at most: 128 columns of 16 each.
const MAX_MIN_PAIRS: usize = 4;
