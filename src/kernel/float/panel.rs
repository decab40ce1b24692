//! Products of float rows with many tokens: the compute-bound side.
//!
//! A panel of rows becomes f32, a block of columns at a time, in the order in which register tiles read it, and is swept by all tokens,
//! which lie in that order, too. Between blocks, the vectors of sums are in memory: each goes on where it was.

use super::{F32, Float, load_some};
use crate::kernel::{Lines, Pool, SharedMut, prefetch_part, store_some};
use crate::simd::{Isa, Kernel, Level, MAX_LANES, dispatch_at};

/// Columns of a block: a tile's operands stay in the first cache.
const BLOCK: usize = 512;

/// Rows of a panel, at most.
const PANEL: usize = 48;

/// Tokens that a panel is swept by at once: their sums and a block of their columns stay in the second cache.
const GROUP: usize = 128;

/// Tokens of a register tile.
const TILE: usize = 4;

/// Rows of a register tile.
const fn strip<I: Isa>() -> usize {
    if I::LANES == MAX_LANES { 6 } else { 3 }
}

/// Rows of a panel that is a task of many, if `threads` share a matrix of so many `rows`.
pub fn panel_rows(rows: usize, threads: usize) -> usize {
    // Whole tiles, whatever the level.
    rows.div_ceil(threads).next_multiple_of(6).min(PANEL)
}

/// Columns of a row, whole vectors.
#[inline(always)]
fn padded<I: Isa>(columns: usize) -> usize {
    columns.next_multiple_of(I::LANES)
}

/// Tokens in the order in which tiles read them: `[blocks, tiles, vectors, tokens of the tile, LANES]`, where the last block may have fewer vectors
/// and the last tile fewer tokens.
#[derive(Debug, Default)]
pub struct FloatTokens {
    count: usize,
    columns: usize,
    floats: Lines<f32>,
}

impl FloatTokens {
    /// Takes `tokens` of `columns` each, for products at `level`, on the threads of `pool`.
    pub fn pack(&mut self, level: Level, tokens: &[f32], columns: usize, pool: &Pool) {
        (self.count, self.columns) = (tokens.len() / columns, columns);
        self.floats.resize(self.count * columns.next_multiple_of(MAX_LANES));
        let (count, to) = (self.count, &SharedMut::new(&mut self.floats));
        pool.run(count.div_ceil(TILE), |i| {
            dispatch_at(level, PackTokens { tokens, columns, count, first: i * TILE, to });
        });
    }

    /// Block number `block` of the tile from token `first` on, of `tokens`.
    #[inline(always)]
    fn tile<I: Isa>(&self, block: usize, first: usize, tokens: usize) -> &[f32] {
        let (at, width) = place::<I>(self.columns, self.count, block, first);
        &self.floats[at..][..tokens * width]
    }
}

/// Where block number `block` of the tile from token `first` of `count` on lies, and the columns of the block, whole vectors.
#[inline(always)]
fn place<I: Isa>(columns: usize, count: usize, block: usize, first: usize) -> (usize, usize) {
    let width = (padded::<I>(columns) - block * BLOCK).min(BLOCK);
    (block * BLOCK * count + first * width, width)
}

/// One tile of [`FloatTokens`].
struct PackTokens<'a> {
    tokens: &'a [f32],
    columns: usize,
    count: usize,
    /// The tile's first token.
    first: usize,
    to: &'a SharedMut<'a, f32>,
}

impl Kernel for PackTokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let tokens = TILE.min(self.count - self.first);
        for block in 0..self.columns.div_ceil(BLOCK) {
            let (at, width) = place::<I>(self.columns, self.count, block, self.first);
            // Sound: each task has a tile of its own.
            let to = unsafe { self.to.slice(at, tokens * width) };
            for t in 0..tokens {
                let token = &self.tokens[(self.first + t) * self.columns..][..self.columns];
                turn::<I, F32>(isa, &token[block * BLOCK..], width, to, (t, tokens));
            }
        }
    }
}

/// Puts the first `width` columns of `from` as those of number `at.0` of `at.1` that lie side by side, vector by vector.
#[inline(always)]
fn turn<I: Isa, W: Float>(isa: I, from: &[W::Bits], width: usize, to: &mut [f32], at: (usize, usize)) {
    for v in 0..width / I::LANES {
        let vector = load_some::<I, W>(isa, from, v * I::LANES);
        isa.f_store(vector, &mut to[(v * at.1 + at.0) * I::LANES..]);
    }
}

/// A panel's scratch: one per thread, reused.
#[derive(Default)]
pub struct FloatPanel {
    /// `[strips, vectors, rows of a strip, LANES]`.
    rows: Lines<f32>,
    /// `[GROUP, PANEL, LANES]`.
    sums: Lines<f32>,
}

/// `out[token * out_stride + first + row] = rows[row] · tokens[token]` for one panel of rows.
pub struct FloatPanelProducts<'a, W: Float> {
    /// `[rows, columns]`, at most [`panel_rows`] of them.
    pub rows: &'a [W::Bits],
    pub tokens: &'a FloatTokens,
    pub panel: &'a mut FloatPanel,
    pub out: &'a SharedMut<'a, f32>,
    pub out_stride: usize,
    /// The first row's place in a row of `out`.
    pub first: usize,
}

impl<W: Float> FloatPanelProducts<'_, W> {
    /// Computes all products. The tokens were packed for the `level`.
    pub fn compute(self, level: Level) {
        dispatch_at(level, self);
    }
}

impl<W: Float> Kernel for FloatPanelProducts<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match const { strip::<I>() } {
            6 => self.groups::<I, 6>(isa),
            _ => self.groups::<I, 3>(isa),
        }
    }
}

impl<W: Float> FloatPanelProducts<'_, W> {
    #[inline(always)]
    fn groups<I: Isa, const R: usize>(mut self, isa: I) {
        let (columns, count) = (self.tokens.columns, self.tokens.count);
        let rows = self.rows.len() / columns;
        assert!(rows <= PANEL);
        self.panel.rows.resize(PANEL * BLOCK);
        self.panel.sums.resize(GROUP * PANEL * I::LANES);
        for first in (0..count).step_by(GROUP) {
            let tokens = first..(first + GROUP).min(count);
            for block in 0..columns.div_ceil(BLOCK) {
                self.block::<I, R>(isa, block, tokens.clone());
            }
            self.store(isa, tokens);
        }
    }

    /// Adds the products of columns of one block.
    #[inline(always)]
    fn block<I: Isa, const R: usize>(&mut self, isa: I, block: usize, tokens: std::ops::Range<usize>) {
        let columns = self.tokens.columns;
        let rows = self.rows.len() / columns;
        let (_, width) = place::<I>(columns, 0, block, 0);
        for strip in 0..rows.div_ceil(R) {
            let lanes = &mut self.panel.rows[strip * R * width..][..R * width];
            for r in 0..R {
                // Where rows are missing, what is multiplied is not stored.
                let row = (strip * R + r).min(rows - 1);
                let from = &self.rows[row * columns..][..columns][block * BLOCK..];
                turn::<I, W>(isa, from, width, lanes, (r, R));
            }
        }
        for strip in 0..rows.div_ceil(R) {
            for first in tokens.clone().step_by(TILE) {
                let at = first - tokens.start;
                self.prefetch::<I, R>(isa, strip, block + 1, (at / TILE, tokens.len().div_ceil(TILE)));
                let sums = &mut self.panel.sums[(at * PANEL + strip * R) * I::LANES..];
                let lanes = &self.panel.rows[strip * R * width..][..R * width];
                let count = TILE.min(tokens.end - first);
                let of = (lanes, self.tokens.tile::<I>(block, first, count), block == 0);
                match count {
                    1 => tile::<I, R, 1>(isa, of, sums),
                    2 => tile::<I, R, 2>(isa, of, sums),
                    3 => tile::<I, R, 3>(isa, of, sums),
                    _ => tile::<I, R, TILE>(isa, of, sums),
                }
            }
        }
    }

    /// Asks for part number `part.0` of `part.1` of what the rows of a strip have in a block.
    #[inline(always)]
    fn prefetch<I: Isa, const R: usize>(&self, isa: I, strip: usize, block: usize, part: (usize, usize)) {
        let columns = self.tokens.columns;
        if block * BLOCK >= columns {
            return;
        }
        let rows = &self.rows[strip * R * columns..];
        for row in rows.chunks(columns).take(R) {
            let row = &row[block * BLOCK..((block + 1) * BLOCK).min(columns)];
            // Sound: the bits of floats are plain numbers.
            let bytes = unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), size_of_val(row)) };
            prefetch_part(isa, bytes, part.0, part.1);
        }
    }

    /// Adds up the lanes of the sums.
    #[inline(always)]
    fn store<I: Isa>(&self, isa: I, tokens: std::ops::Range<usize>) {
        let rows = self.rows.len() / self.tokens.columns;
        for token in tokens.clone() {
            for row in (0..rows).step_by(I::LANES) {
                let (at, count) = ((token - tokens.start) * PANEL + row, (rows - row).min(I::LANES));
                let sums = isa.f_across::<false>(&self.panel.sums[at * I::LANES..], count);
                // Sound: callers give each task disjoint rows.
                let out = unsafe { self.out.slice(token * self.out_stride + self.first + row, count) };
                store_some(isa, sums, out);
            }
        }
    }
}

/// Adds the products of `R` rows with `T` tokens to their `sums`, which begin with zeros if it `is_first`.
#[inline(always)]
fn tile<I: Isa, const R: usize, const T: usize>(
    isa: I,
    (rows, tokens, is_first): (&[f32], &[f32], bool),
    sums: &mut [f32],
) {
    let mut sum = [[isa.f_splat(0.0); R]; T];
    if !is_first {
        for t in 0..T {
            for r in 0..R {
                sum[t][r] = isa.f_load(&sums[(t * PANEL + r) * I::LANES..]);
            }
        }
    }
    for v in 0..rows.len() / (R * I::LANES) {
        let rows = &rows[v * R * I::LANES..][..R * I::LANES];
        let tokens = &tokens[v * T * I::LANES..][..T * I::LANES];
        let mut lanes = [isa.f_splat(0.0); R];
        for r in 0..R {
            lanes[r] = isa.f_load(&rows[r * I::LANES..]);
        }
        for t in 0..T {
            let token = isa.f_load(&tokens[t * I::LANES..]);
            for r in 0..R {
                sum[t][r] = isa.f_fma(lanes[r], token, sum[t][r]);
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            isa.f_store(sum[t][r], &mut sums[(t * PANEL + r) * I::LANES..]);
        }
    }
}
