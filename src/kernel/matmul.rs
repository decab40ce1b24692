//! Products of quantized rows with many tokens: the compute-bound side.
//!
//! A panel of a few row vectors is unpacked once to int8 lanes that stay in the cache, four columns of
//! every row side by side as the dot-product instruction wants them, and then swept by all tokens in
//! register tiles. No repacked copy of the weights outlives its panel.

use super::activations::Activations;
use super::{SharedMut, partial_sums};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, Kernel, Level, TileKernel, MAX_LANES, dispatch_at};

/// The most rows a panel has on any ISA.
pub const MAX_PANEL_ROWS: usize = 2 * MAX_LANES;

/// Activations laid out for tiles of tokens: for each tile all columns, for each four columns the tile's tokens.
#[derive(Clone, Debug, Default)]
pub struct PackedTokens {
    /// Tokens; the last tile is filled up with zeros.
    pub rows: usize,
    pub padded: usize,
    pub span: usize,
    tile: usize,
    /// `[tiles, padded / 4, tile]`: four i8 a word.
    quads: Vec<i32>,
    /// `[tiles, padded / span, tile]`.
    scales: Vec<f32>,
    /// `[tiles, padded / group, tile]`: what a group's dot products start from, so that the format's offset
    /// is taken off. Empty where it has none.
    starts: Vec<i32>,
    /// `[tiles, padded / 2 / min group, tile]`: the sums of two groups as two i16. Empty without mins.
    sums: Vec<i32>,
}

impl PackedTokens {
    /// Packs `tokens` for `_format` and the tile of `level`.
    pub fn pack<F: Unpack>(&mut self, _format: F, level: Level, tokens: &Activations) {
        dispatch_at(level, Pack { from: tokens, to: self, _format });
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }
}

/// Columns that share a min: the pair of them that one 16-bit dot product takes is twice that.
#[inline(always)]
const fn min_columns<F: Unpack>() -> usize {
    if F::SPAN < 64 { 16 } else { F::GROUP }
}

struct Pack<'a, F> {
    from: &'a Activations,
    to: &'a mut PackedTokens,
    _format: F,
}

impl<F: Unpack> Kernel for Pack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let (from, to) = (self.from, self.to);
        assert_eq!(from.span, F::SPAN);
        let tile = I::TILE.1;
        let padded = from.padded();
        (to.rows, to.padded, to.span, to.tile) = (from.rows, padded, from.span, tile);
        let tiles = to.tiles();
        let (spans, sixteens) = (padded / from.span, padded / 16);
        let (groups, pairs) = (padded / F::GROUP, padded / 2 / min_columns::<F>());
        to.quads.clear();
        to.quads.resize(tiles * padded / 4 * tile, 0);
        to.scales.clear();
        to.scales.resize(tiles * spans * tile, 0.0);
        to.starts.clear();
        to.starts.resize(if F::OFFSET == 0 { 0 } else { tiles * groups * tile }, 0);
        to.sums.clear();
        to.sums.resize(if F::MINS { tiles * pairs * tile } else { 0 }, 0);
        for row in 0..from.rows {
            let (i, t) = (row / tile, row % tile);
            let (quants, _) = from.quants[row * padded..][..padded].as_chunks::<4>();
            let quads = quants.iter().map(|q| i32::from_le_bytes(q.map(|q| q as u8)));
            scatter(quads, &mut to.quads, i * padded / 4, tile, t);
            scatter(from.scales[row * spans..][..spans].iter().copied(), &mut to.scales, i * spans, tile, t);
            let sums = &from.sums[row * sixteens..][..sixteens];
            if F::OFFSET != 0 {
                let starts = sums.chunks_exact(F::GROUP / 16).map(|g| -F::OFFSET * sum(g));
                scatter(starts, &mut to.starts, i * groups, tile, t);
            }
            if F::MINS {
                let each = min_columns::<F>() / 16;
                let both = sums.chunks_exact(2 * each).map(|g| pair(sum(&g[..each]), sum(&g[each..])));
                scatter(both, &mut to.sums, i * pairs, tile, t);
            }
        }
    }
}

/// Value `n` of `from` goes to place `t` of the `first + n`th `tile` places of `to`.
#[inline(always)]
fn scatter<T>(from: impl Iterator<Item = T>, to: &mut [T], first: usize, tile: usize, t: usize) {
    if let Some(to) = to.get_mut(first * tile + t..) {
        from.zip(to.iter_mut().step_by(tile)).for_each(|(from, to)| *to = from);
    }
}

#[inline(always)]
fn sum(sums: &[i16]) -> i32 {
    sums.iter().map(|&s| i32::from(s)).sum()
}

/// Two i16 in a word, `low` in the low half.
#[inline(always)]
fn pair(low: i32, high: i32) -> i32 {
    low & 0xffff | high << 16
}

/// A panel's scratch: one per thread, reused.
#[derive(Default)]
pub struct Panel {
    lanes: Lanes,
    /// `[partial sums, tile tokens, panel rows]`.
    totals: Vec<f32>,
}

/// Unpacked rows.
#[derive(Default)]
struct Lanes {
    /// `[columns / 4, panel rows]`: four lanes a word.
    lanes: Vec<i32>,
    /// `[columns / group, panel rows]`.
    scales: Vec<i32>,
    /// `[columns / 2 / min columns, panel rows]`: two i16 a word.
    mins: Vec<i32>,
    /// `[columns / block, panel rows]`.
    d: Vec<f32>,
    dmin: Vec<f32>,
}

/// `out[token * out_stride + first + row] = rows[row] · tokens[token]` for one panel of rows.
pub struct PanelProducts<'a, F> {
    pub format: F,
    /// At most [`panel_rows`] whole rows.
    pub rows: &'a [u8],
    pub row_bytes: usize,
    /// Columns of the matrix.
    pub columns: usize,
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
        assert_eq!(self.tokens.tile, I::TILE.1);
        unpack_panel::<F, I>(isa, self.rows, self.row_bytes, self.columns, &mut self.panel.lanes);
        isa.tile(self);
    }
}

impl<F: Unpack> TileKernel for PanelProducts<'_, F> {
    #[inline(always)]
    fn run<I: Isa, const R: usize, const T: usize>(mut self, isa: I) {
        let rows = self.rows.len() / self.row_bytes;
        for tile in 0..self.tokens.tiles() {
            self.tile::<I, R, T>(isa, tile, rows);
        }
    }
}

/// Fills `panel` from `rows`. Rows that are missing to a whole panel repeat the last one.
#[inline(always)]
fn unpack_panel<F: Unpack, I: Isa>(isa: I, rows: &[u8], row_bytes: usize, columns: usize, panel: &mut Lanes) {
    let wide = I::LANES * I::TILE.0;
    let count = rows.len() / row_bytes;
    assert!(count > 0 && count <= wide);
    // Squares are written whole, beyond the end of a short last block.
    panel.lanes.resize((columns / 4 + MAX_LANES) * wide, 0);
    panel.d.resize(columns / F::BLOCK * wide, 0.0);
    panel.dmin.resize(columns / F::BLOCK * wide, 0.0);
    if F::SCALED {
        panel.scales.resize(columns / F::GROUP * wide, 0);
    }
    if F::MINS {
        panel.mins.resize(columns / 2 / min_columns::<F>() * wide, 0);
    }
    for b in 0..columns / F::BLOCK {
        for first in 0..I::TILE.0 {
            unpack_blocks::<F, I>(isa, rows, row_bytes, b, first * I::LANES, panel);
        }
    }
}

/// Block `b` of the `LANES` rows from row `first` of the panel on.
#[inline(always)]
fn unpack_blocks<F: Unpack, I: Isa>(
    isa: I,
    rows: &[u8],
    row_bytes: usize,
    b: usize,
    first: usize,
    panel: &mut Lanes,
) {
    let wide = I::LANES * I::TILE.0;
    let last = rows.len() / row_bytes - 1;
    let quads = F::BLOCK / 4;
    // Row by row, to be turned into columns: `[LANES, quads]`, and `[LANES, 8 + 8]` pairs of scales and mins.
    let mut lanes = [[0u8; 32]; 8 * MAX_LANES];
    let mut groups = [[0u8; 32]; 2 * MAX_LANES];
    let (mut d, mut dmin) = ([0u16; MAX_LANES], [0u16; MAX_LANES]);
    for lane in 0..I::LANES {
        let at = (first + lane).min(last) * row_bytes + b * F::BYTES;
        let block = &rows[at..at + F::BYTES];
        isa.prefetch(rows.as_ptr().wrapping_add(at + 2 * F::BYTES));
        let vectors = F::lanes(isa, block);
        let vectors = vectors.as_ref();
        for j in 0..vectors.len() {
            isa.b_store(vectors[j], &mut lanes[lane * F::BLOCK / 32 + j]);
        }
        let scale = F::scale(block);
        (d[lane], dmin[lane]) = (scale.d, scale.dmin);
        if F::SCALED || F::MINS {
            let (scales, mins) = F::groups(isa, block);
            isa.b_store(scales, &mut groups[2 * lane]);
            isa.b_store(mins, &mut groups[2 * lane + 1]);
        }
    }
    let at = b * wide + first;
    let factor = isa.f_splat(F::FACTOR);
    isa.f_store(isa.f_mul(isa.f_load_f16(&d), factor), &mut panel.d[at..]);
    isa.f_store(isa.f_load_f16(&dmin), &mut panel.dmin[at..]);
    let words = lanes.as_flattened();
    let mut q = 0;
    while q < quads {
        isa.w_transpose(&words[4 * q..], quads, &mut panel.lanes[(b * quads + q) * wide + first..], wide);
        q += I::LANES;
    }
    if F::SCALED || F::MINS {
        store_groups::<F, I>(isa, groups.as_flattened(), b, first, panel);
    }
}

/// Spreads `[LANES, 8 + 8]` pairs of i16 scales and mins, given for every 16 columns, over the panel.
#[inline(always)]
fn store_groups<F: Unpack, I: Isa>(isa: I, groups: &[u8], b: usize, first: usize, panel: &mut Lanes) {
    const { assert!(F::BLOCK == 256 || !F::SCALED) };
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
        if F::SCALED && F::GROUP == 32 {
            let at = (b * F::BLOCK / 32 + j) * wide + first;
            isa.w_store(isa.w_dot2_i16(zero, scales, low), &mut panel.scales[at..]);
        } else if F::SCALED {
            let at = (b * F::BLOCK / 16 + 2 * j) * wide + first;
            isa.w_store(isa.w_dot2_i16(zero, scales, low), &mut panel.scales[at..]);
            isa.w_store(isa.w_dot2_i16(zero, scales, high), &mut panel.scales[at + wide..]);
        }
        if F::MINS && min_columns::<F>() == 16 {
            isa.w_store(mins, &mut panel.mins[(b * F::BLOCK / 32 + j) * wide + first..]);
        } else if F::MINS && j % 2 == 0 {
            // Mins are not negative, so that the two halves can be added up.
            let next = isa.w_load(&turned[(9 + j) * I::LANES..]);
            let (even, odd) = (isa.w_dot2_i16(zero, mins, low), isa.w_dot2_i16(zero, next, low));
            let both = isa.w_add(even, isa.w_mul(odd, high));
            isa.w_store(both, &mut panel.mins[(b * F::BLOCK / 64 + j / 2) * wide + first..]);
        }
    }
}

impl<F: Unpack> PanelProducts<'_, F> {
    /// The products of the panel with one tile of `T` tokens.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const T: usize>(&mut self, isa: I, tile: usize, rows: usize) {
        let wide = I::LANES * R;
        let (panel, tokens) = (&self.panel.lanes, self.tokens);
        let spans = tokens.padded / F::SPAN;
        let scales = &tokens.scales[tile * spans * T..][..spans * T];

        let partials = partial_sums(F::SPAN);
        let vector = |partial: usize, t: usize, r: usize| ((partial * T + t) * R + r) * I::LANES;
        let total = &mut self.panel.totals;
        total.clear();
        total.resize(vector(partials, 0, 0), 0.0);
        for s in 0..self.columns / F::SPAN {
            let sum = span::<F, I, R, T>(isa, panel, tokens, tile, s);
            let min = span_mins::<F, I, R, T>(isa, panel, tokens, tile, s);
            let b = s * F::SPAN / F::BLOCK;
            for r in 0..R {
                let d = isa.f_load(&panel.d[b * wide + r * I::LANES..]);
                let dmin = isa.f_load(&panel.dmin[b * wide + r * I::LANES..]);
                for t in 0..T {
                    let mut value = isa.f_mul(d, isa.f_from_w(sum[t][r]));
                    if F::MINS {
                        value = isa.f_fnma(dmin, isa.f_from_w(min[t][r]), value);
                    }
                    let scale = isa.f_splat(scales[s * T + t]);
                    let total = &mut total[vector(s % partials, t, r)..];
                    isa.f_store(isa.f_fma(scale, value, isa.f_load(total)), total);
                }
            }
        }
        for t in 0..T.min(tokens.rows - tile * T) {
            for r in 0..R.min(rows.div_ceil(I::LANES)) {
                let l = |i: usize| isa.f_load(&total[vector(i, t, r)..]);
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

/// The integer sums of span `s`: dot products times their groups' scales.
#[inline(always)]
fn span<F: Unpack, I: Isa, const R: usize, const T: usize>(
    isa: I,
    panel: &Lanes,
    tokens: &PackedTokens,
    tile: usize,
    s: usize,
) -> [[I::W; R]; T] {
    let wide = I::LANES * R;
    let quads = F::GROUP / 4;
    let groups = F::SPAN / F::GROUP;
    let mut sum = [[isa.w_splat(0); R]; T];
    for g in s * groups..(s + 1) * groups {
        let mut dot = [[isa.w_splat(0); R]; T];
        if F::OFFSET != 0 {
            let starts = &tokens.starts[(tile * tokens.padded / F::GROUP + g) * T..][..T];
            for t in 0..T {
                let start = isa.w_splat(starts[t]);
                for r in 0..R {
                    dot[t][r] = start;
                }
            }
        }
        let lanes = &panel.lanes[g * quads * wide..][..quads * wide];
        let activations = &tokens.quads[(tile * tokens.padded / 4 + g * quads) * T..][..quads * T];
        if F::WIDE {
            isa.w_dot_tile::<true, R, T>(&mut dot, lanes, activations);
        } else {
            isa.w_dot_tile::<false, R, T>(&mut dot, lanes, activations);
        }
        for r in 0..R {
            let scale = if F::SCALED {
                isa.w_load(&panel.scales[g * wide + r * I::LANES..])
            } else {
                isa.w_splat(1)
            };
            for t in 0..T {
                sum[t][r] =
                    if F::SCALED { isa.w_add(sum[t][r], isa.w_mul(scale, dot[t][r])) } else { dot[t][r] };
            }
        }
    }
    sum
}

/// The integer sums of span `s`: mins times the sums of their groups' activations.
#[inline(always)]
fn span_mins<F: Unpack, I: Isa, const R: usize, const T: usize>(
    isa: I,
    panel: &Lanes,
    tokens: &PackedTokens,
    tile: usize,
    s: usize,
) -> [[I::W; R]; T] {
    let mut min = [[isa.w_splat(0); R]; T];
    if F::MINS {
        let wide = I::LANES * R;
        let both = 2 * min_columns::<F>();
        let first = tile * tokens.padded / both;
        for g in s * F::SPAN / both..(s + 1) * F::SPAN / both {
            let sums = &tokens.sums[(first + g) * T..][..T];
            for r in 0..R {
                let mins = isa.w_load(&panel.mins[g * wide + r * I::LANES..]);
                for t in 0..T {
                    min[t][r] = isa.w_dot2_i16(min[t][r], mins, isa.w_splat(sums[t]));
                }
            }
        }
    }
    min
}
