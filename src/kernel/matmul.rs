//! Products of quantized rows with many tokens: the compute-bound side.
//!
//! A panel of a few row vectors is unpacked once to int8 lanes that stay in the cache, four columns of
//! every row side by side as the dot-product instruction wants them, and then swept by all tokens in
//! register tiles. No repacked copy of the weights outlives its panel.

use super::activations::Activations;
use super::{SharedMut, partial_sums};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, Kernel, Level, MAX_LANES, dispatch_at};

/// The most rows a panel has on any ISA.
pub const MAX_PANEL_ROWS: usize = 2 * MAX_LANES;

/// The most tokens a tile has on any ISA.
const MAX_TILE_TOKENS: usize = 12;

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
    /// `[tiles, padded / 32, tile]`: the sums of two 16-column groups as two i16.
    sums: Vec<i32>,
}

impl PackedTokens {
    /// Packs `tokens` for the tile of `level`.
    pub fn pack(&mut self, level: Level, tokens: &Activations) {
        dispatch_at(level, Pack { from: tokens, to: self });
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }
}

struct Pack<'a> {
    from: &'a Activations,
    to: &'a mut PackedTokens,
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let (from, to) = (self.from, self.to);
        let tile = I::TILE.1;
        let padded = from.padded();
        (to.rows, to.padded, to.span, to.tile) = (from.rows, padded, from.span, tile);
        let tiles = to.tiles();
        let spans = padded / from.span;
        to.quads.clear();
        to.quads.resize(tiles * padded / 4 * tile, 0);
        to.scales.clear();
        to.scales.resize(tiles * spans * tile, 0.0);
        to.sums.clear();
        to.sums.resize(tiles * padded / 32 * tile, 0);
        for row in 0..from.rows {
            let (i, t) = (row / tile, row % tile);
            let quads = &mut to.quads[i * padded / 4 * tile..][..padded / 4 * tile];
            let (four, _) = from.quants[row * padded..][..padded].as_chunks::<4>();
            for (to, from) in quads.chunks_exact_mut(tile).zip(four) {
                to[t] = i32::from_le_bytes([from[0] as u8, from[1] as u8, from[2] as u8, from[3] as u8]);
            }
            let scales = &mut to.scales[i * spans * tile..][..spans * tile];
            for (to, from) in scales.chunks_exact_mut(tile).zip(&from.scales[row * spans..][..spans]) {
                to[t] = *from;
            }
            let sums = &mut to.sums[i * padded / 32 * tile..][..padded / 32 * tile];
            let (two, _) = from.sums[row * padded / 16..][..padded / 16].as_chunks::<2>();
            for (to, &[low, high]) in sums.chunks_exact_mut(tile).zip(two) {
                to[t] = pair(low, high);
            }
        }
    }
}

/// Two i16 in a word, `low` in the low half.
#[inline(always)]
fn pair(low: i16, high: i16) -> i32 {
    i32::from(low) & 0xffff | i32::from(high) << 16
}

/// A panel's scratch: one per thread, reused.
#[derive(Default)]
pub struct Panel {
    /// `[columns / 4, panel rows]`: four lanes a word.
    lanes: Vec<i32>,
    /// `[columns / group, panel rows]`.
    scales: Vec<i32>,
    /// `[columns / 32, panel rows]`: two i16 a word.
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
        unpack_panel::<F, I>(isa, self.rows, self.row_bytes, self.columns, self.panel);
        let rows = self.rows.len() / self.row_bytes;
        for tile in 0..self.tokens.tiles() {
            match I::TILE {
                (1, 4) => self.tile::<I, 1, 4>(isa, tile, rows),
                (1, 12) => self.tile::<I, 1, 12>(isa, tile, rows),
                other => unreachable!("no tile of {other:?}"),
            }
        }
    }
}

/// Fills `panel` from `rows`. Rows that are missing to a whole panel repeat the last one.
#[inline(always)]
fn unpack_panel<F: Unpack, I: Isa>(isa: I, rows: &[u8], row_bytes: usize, columns: usize, panel: &mut Panel) {
    let wide = I::LANES * I::TILE.0;
    let count = rows.len() / row_bytes;
    assert!(count > 0 && count <= wide);
    panel.lanes.resize(columns / 4 * wide, 0);
    panel.d.resize(columns / F::BLOCK * wide, 0.0);
    panel.dmin.resize(columns / F::BLOCK * wide, 0.0);
    if F::SCALED {
        panel.scales.resize(columns / F::GROUP * wide, 0);
    }
    if F::MINS {
        panel.mins.resize(columns / 32 * wide, 0);
    }
    let quads = F::BLOCK / 4;
    let mut square = [0i32; 64 * MAX_LANES];
    for b in 0..columns / F::BLOCK {
        for v in 0..I::TILE.0 {
            for lane in 0..I::LANES {
                let r = v * I::LANES + lane;
                let at = r.min(count - 1) * row_bytes + b * F::BYTES;
                let block = &rows[at..at + F::BYTES];
                let lanes = F::lanes(isa, block);
                for (j, &bytes) in lanes.as_ref().iter().enumerate() {
                    store_words(isa, bytes, &mut square[lane * quads + 8 * j..][..8]);
                }
                let scale = F::scale(block);
                panel.d[b * wide + r] = isa.half(scale.d) * F::FACTOR;
                panel.dmin[b * wide + r] = isa.half(scale.dmin);
                if F::SCALED || F::MINS {
                    let (scales, mins) = F::groups(isa, block);
                    store_groups::<F>(panel, b, wide, r, &i16s(isa, scales), &i16s(isa, mins));
                }
            }
            // Squares of LANES words: columns become rows of the panel.
            let mut turned = [0i32; MAX_LANES * MAX_LANES];
            let mut q = 0;
            while q < quads {
                isa.w_transpose(&square[q..], quads, &mut turned);
                for i in 0..I::LANES.min(quads - q) {
                    let to = (b * quads + q + i) * wide + v * I::LANES;
                    panel.lanes[to..to + I::LANES].copy_from_slice(&turned[i * I::LANES..][..I::LANES]);
                }
                q += I::LANES;
            }
        }
    }
}

#[inline(always)]
fn store_words<I: Isa>(isa: I, v: I::B, to: &mut [i32]) {
    let mut bytes = [0u8; 32];
    isa.b_store(v, &mut bytes);
    for (to, from) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *to = i32::from_le_bytes(*from);
    }
}

/// The i16 lanes of `v`.
#[inline(always)]
fn i16s<I: Isa>(isa: I, v: I::B) -> [i16; 16] {
    let mut bytes = [0u8; 32];
    isa.b_store(v, &mut bytes);
    let mut lanes = [0i16; 16];
    for (lane, from) in lanes.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *lane = i16::from_le_bytes(*from);
    }
    lanes
}

#[inline(always)]
fn store_groups<F: Unpack>(
    panel: &mut Panel,
    b: usize,
    wide: usize,
    r: usize,
    scales: &[i16; 16],
    mins: &[i16; 16],
) {
    let groups = F::BLOCK / F::GROUP;
    if F::SCALED {
        for g in 0..groups {
            panel.scales[(b * groups + g) * wide + r] = i32::from(scales[g * F::GROUP / 16]);
        }
    }
    if F::MINS {
        for g in 0..F::BLOCK / 32 {
            panel.mins[(b * F::BLOCK / 32 + g) * wide + r] = pair(mins[2 * g], mins[2 * g + 1]);
        }
    }
}

impl<F: Unpack> PanelProducts<'_, F> {
    /// The products of the panel with one tile of `T` tokens.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const T: usize>(&self, isa: I, tile: usize, rows: usize) {
        const { assert!(T <= MAX_TILE_TOKENS) };
        let wide = I::LANES * R;
        let (panel, tokens) = (&*self.panel, self.tokens);
        let quads = &tokens.quads[tile * tokens.padded / 4 * T..][..tokens.padded / 4 * T];
        let sums = &tokens.sums[tile * tokens.padded / 32 * T..][..tokens.padded / 32 * T];
        let spans = tokens.padded / F::SPAN;
        let scales = &tokens.scales[tile * spans * T..][..spans * T];

        let mut total = [[[[0.0f32; MAX_LANES]; R]; T]; 8];
        for s in 0..self.columns / F::SPAN {
            let (mut sum, mut min) = ([[isa.w_splat(0); R]; T], [[isa.w_splat(0); R]; T]);
            self.span::<I, R, T>(isa, s, quads, sums, &mut sum, &mut min);
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
                    let total = &mut total[s % partial_sums(F::SPAN)][t][r];
                    isa.f_store(isa.f_fma(scale, value, isa.f_load(total)), total);
                }
            }
        }
        for t in 0..T.min(tokens.rows - tile * T) {
            for r in 0..R.min(rows.div_ceil(I::LANES)) {
                let l = |i: usize| isa.f_load(&total[i][t][r]);
                let sum = if partial_sums(F::SPAN) == 2 {
                    isa.f_add(l(0), l(1))
                } else {
                    let even = isa.f_add(isa.f_add(l(0), l(4)), isa.f_add(l(2), l(6)));
                    isa.f_add(even, isa.f_add(isa.f_add(l(1), l(5)), isa.f_add(l(3), l(7))))
                };
                let mut lanes = [0.0f32; MAX_LANES];
                isa.f_store(sum, &mut lanes);
                let count = (rows - r * I::LANES).min(I::LANES);
                let at = (tile * T + t) * self.out_stride + self.first + r * I::LANES;
                // Sound: panels are given disjoint rows, and tiles within a panel disjoint tokens.
                unsafe { self.out.slice(at, count) }.copy_from_slice(&lanes[..count]);
            }
        }
    }

    /// The integer sums of span `s`: scaled lanes, and mins.
    #[inline(always)]
    fn span<I: Isa, const R: usize, const T: usize>(
        &self,
        isa: I,
        s: usize,
        quads: &[i32],
        sums: &[i32],
        sum: &mut [[I::W; R]; T],
        min: &mut [[I::W; R]; T],
    ) {
        let wide = I::LANES * R;
        let panel = &*self.panel;
        let per_group = F::GROUP / 4;
        for g in s * F::SPAN / F::GROUP..(s + 1) * F::SPAN / F::GROUP {
            let mut dot = [[isa.w_splat(0); R]; T];
            if F::OFFSET != 0 {
                let pairs = &sums[g * F::GROUP / 32 * T..][..T];
                for t in 0..T {
                    let offset = isa.w_splat(-F::OFFSET * group_sum::<F>(pairs[t], g));
                    for r in 0..R {
                        dot[t][r] = offset;
                    }
                }
            }
            let tokens = &quads[g * per_group * T..][..per_group * T];
            let lanes = &panel.lanes[g * per_group * wide..][..per_group * wide];
            for q in 0..per_group {
                let mut rows = [isa.w_splat(0); R];
                for r in 0..R {
                    // Sound: `q < per_group` and `r < R`, so the index stays within the slices above.
                    rows[r] = isa.w_load(unsafe {
                        lanes.get_unchecked(q * wide + r * I::LANES..(q * wide + (r + 1) * I::LANES))
                    });
                }
                for t in 0..T {
                    // Sound: likewise, `t < T`.
                    let a = isa.w_splat(unsafe { *tokens.get_unchecked(q * T + t) });
                    for r in 0..R {
                        dot[t][r] = if F::WIDE {
                            isa.w_dot4::<true>(dot[t][r], rows[r], a)
                        } else {
                            isa.w_dot4::<false>(dot[t][r], rows[r], a)
                        };
                    }
                }
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
        if F::MINS {
            let first = s * F::SPAN / 32;
            for g in first..first + F::SPAN / 32 {
                let pairs = &sums[g * T..][..T];
                for r in 0..R {
                    let mins = isa.w_load(&panel.mins[g * wide + r * I::LANES..]);
                    for t in 0..T {
                        min[t][r] = isa.w_dot2_i16(min[t][r], mins, isa.w_splat(pairs[t]));
                    }
                }
            }
        }
    }
}

/// The sum of the activations of group `g` of a token, from the pair of 16-column sums it is part of.
#[inline(always)]
fn group_sum<F: Unpack>(pair: i32, g: usize) -> i32 {
    let (low, high) = (i32::from(pair as i16), pair >> 16);
    match (F::GROUP, g % 2) {
        (32, _) => low + high,
        (_, 0) => low,
        _ => high,
    }
}
