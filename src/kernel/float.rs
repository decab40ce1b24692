//! Products of float rows (f32, f16, bf16, or decoded blocks) with tokens.
//!
//! Rows are read where they lie: a register tile goes along whole rows, and what it needs of both sides beside its sums comes from the
//! second cache. A (row, token) product runs along the columns in one vector accumulator, whatever the tile; the last vector is filled
//! up with zeros.

use super::{Lines, Pool, SharedMut, prefetch_bytes, store_some};
use crate::simd::{Isa, Kernel, Level, MAX_LANES, dispatch_at};

/// Tokens of a register tile. Up to so many, memory is the limit.
pub const FEW_TOKENS: usize = 4;

/// Rows of a register tile that memory limits. They lie far apart: memory delivers more to several streams than to one.
const STREAMS: usize = 4;

/// Rows of a register tile that multiplications limit, at most.
const MOST_ROWS: usize = 6;

/// Rows that are a task of products with more than [`FEW_TOKENS`]: they stay in the second cache while a group of tokens passes.
pub const TASK_ROWS: usize = 12;

/// Bytes of a group of tokens, which pass all rows before the next group does: they stay in the last cache.
const GROUP_BYTES: usize = 2 << 20;

/// Bytes that are asked for ahead in each row.
const AHEAD: usize = 512;

/// Rows of a register tile that multiplications limit: as many sums as registers hold.
const fn strip<I: Isa>() -> usize {
    if I::LANES == MAX_LANES { MOST_ROWS } else { MOST_ROWS / 2 }
}

/// How a float weight is stored.
pub trait Float: Copy + Send + Sync + 'static {
    type Bits: Copy + Default + Send + Sync;
    fn load<I: Isa>(isa: I, from: &[Self::Bits]) -> I::F;
}

/// IEEE single precision.
#[derive(Clone, Copy)]
pub struct F32;
/// IEEE half precision.
#[derive(Clone, Copy)]
pub struct F16;
/// The upper half of a single.
#[derive(Clone, Copy)]
pub struct Bf16;

impl Float for F32 {
    type Bits = f32;
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[f32]) -> I::F {
        isa.f_load(from)
    }
}

impl Float for F16 {
    type Bits = u16;
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u16]) -> I::F {
        isa.f_load_f16(from)
    }
}

impl Float for Bf16 {
    type Bits = u16;
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u16]) -> I::F {
        isa.f_load_bf16(from)
    }
}

/// A vector of the row `from` from column `c` on, filled up with zeros.
#[inline(always)]
fn load_some<I: Isa, W: Float>(isa: I, from: &[W::Bits], c: usize) -> I::F {
    if from.len() - c >= I::LANES {
        return W::load(isa, &from[c..]);
    }
    let mut lanes = [W::Bits::default(); MAX_LANES];
    lanes[..from.len() - c].copy_from_slice(&from[c..]);
    W::load(isa, &lanes)
}

/// Tokens in the order in which tiles read them: `[tiles, vectors, tokens of the tile, LANES]`, where the last tile may have fewer
/// tokens and a token's last vector is filled up with zeros.
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
        pool.run(count.div_ceil(FEW_TOKENS), |i| {
            let tokens = &tokens[i * FEW_TOKENS * columns..((i + 1) * FEW_TOKENS).min(count) * columns];
            dispatch_at(level, PackTile { tokens, columns, first: i * FEW_TOKENS, to });
        });
    }

    /// Whole tiles of tokens that a group has.
    fn group(&self) -> usize {
        (GROUP_BYTES / (self.columns * size_of::<f32>()) / FEW_TOKENS).max(1) * FEW_TOKENS
    }

    /// Groups of tokens.
    pub fn groups(&self) -> usize {
        self.count.div_ceil(self.group())
    }
}

/// One tile of [`FloatTokens`].
struct PackTile<'a> {
    /// `[tokens of the tile, columns]`.
    tokens: &'a [f32],
    columns: usize,
    /// The tile's first token.
    first: usize,
    to: &'a SharedMut<'a, f32>,
}

impl Kernel for PackTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (count, width) = (self.tokens.len() / self.columns, self.columns.next_multiple_of(I::LANES));
        // Sound: each task has a tile of its own.
        let to = unsafe { self.to.slice(self.first * width, count * width) };
        for t in 0..count {
            let token = &self.tokens[t * self.columns..][..self.columns];
            for v in 0..width / I::LANES {
                let vector = load_some::<I, F32>(isa, token, v * I::LANES);
                isa.f_store(vector, &mut to[(v * count + t) * I::LANES..]);
            }
        }
    }
}

/// `out[token * out_stride + first + row] = rows[row] · tokens[token]` for one group of tokens.
pub struct FloatProducts<'a, W: Float> {
    /// `[rows, columns]`.
    pub rows: &'a [W::Bits],
    pub tokens: &'a FloatTokens,
    /// The group's number, of [`FloatTokens::groups`].
    pub group: usize,
    pub out: &'a SharedMut<'a, f32>,
    pub out_stride: usize,
    /// The first row's place in a row of `out`.
    pub first: usize,
}

impl<W: Float> FloatProducts<'_, W> {
    /// Computes all products. The tokens were packed for the `level`.
    pub fn compute(self, level: Level) {
        dispatch_at(level, self);
    }
}

impl<W: Float> Kernel for FloatProducts<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if self.tokens.count <= FEW_TOKENS {
            return self.sweep::<I, STREAMS>(isa);
        }
        match const { strip::<I>() } {
            MOST_ROWS => self.sweep::<I, MOST_ROWS>(isa),
            _ => self.sweep::<I, { MOST_ROWS / 2 }>(isa),
        }
    }
}

impl<W: Float> FloatProducts<'_, W> {
    /// All rows, `R` at a time, with all tokens of the group, a tile at a time.
    #[inline(always)]
    fn sweep<I: Isa, const R: usize>(&self, isa: I) {
        let start = self.group * self.tokens.group();
        let end = (start + self.tokens.group()).min(self.tokens.count);
        let apart = (self.rows.len() / self.tokens.columns).div_ceil(R);
        for first in (start..end).step_by(FEW_TOKENS) {
            for row in 0..apart {
                match ((end - first).min(FEW_TOKENS), first - start) {
                    (1, _) => self.tile::<I, R, 1, true>(isa, first, row, apart),
                    (2, _) => self.tile::<I, R, 2, true>(isa, first, row, apart),
                    (3, _) => self.tile::<I, R, 3, true>(isa, first, row, apart),
                    (_, 0) => self.tile::<I, R, FEW_TOKENS, true>(isa, first, row, apart),
                    _ => self.tile::<I, R, FEW_TOKENS, false>(isa, first, row, apart),
                }
            }
        }
    }

    /// `R` rows from number `row` on, so far `apart`, with `T` tokens from number `first` on. What comes next in the rows is asked for
    /// if they come from `FAR`.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const T: usize, const FAR: bool>(
        &self,
        isa: I,
        first: usize,
        row: usize,
        apart: usize,
    ) {
        let columns = self.tokens.columns;
        let mut numbers = [0; R];
        let mut rows = [&self.rows[..0]; R];
        for r in 0..R {
            // Where there are too few rows, the last one is there more than once.
            numbers[r] = (row + r * apart).min(self.rows.len() / columns - 1);
            rows[r] = &self.rows[numbers[r] * columns..][..columns];
        }
        let width = columns.next_multiple_of(I::LANES);
        let tokens = &self.tokens.floats[first * width..][..T * width];
        // As many whole squares of vectors as hold the largest tile's sums. Filling it later would be a call, for which registers are saved.
        let mut lanes = [0.0; (FEW_TOKENS * MOST_ROWS).next_multiple_of(MAX_LANES) * MAX_LANES];
        let mut sums = [[isa.f_splat(0.0); R]; T];
        for v in 0..columns / I::LANES {
            let mut weights = [isa.f_splat(0.0); R];
            for r in 0..R {
                if FAR {
                    let ahead = rows[r].as_ptr().wrapping_add(v * I::LANES).cast::<u8>().wrapping_add(AHEAD);
                    prefetch_bytes(isa, ahead, I::LANES * size_of::<W::Bits>());
                }
                weights[r] = W::load(isa, &rows[r][v * I::LANES..]);
            }
            add_products(isa, &weights, &tokens[v * T * I::LANES..][..T * I::LANES], &mut sums);
        }
        for t in 0..T {
            for r in 0..R {
                isa.f_store(sums[t][r], &mut lanes[(t * R + r) * I::LANES..]);
            }
        }
        // The loop before needs all registers: what comes after begins with what is in memory.
        let lanes = std::hint::black_box(&mut lanes);
        if width > columns {
            let last = &tokens[(width - I::LANES) * T..];
            add_last::<I, W, R, T>(isa, &rows, last, lanes);
        }
        self.store::<I, R, T>(isa, lanes, first, &numbers);
    }

    /// Adds up the `lanes` of sums, `[T, R, LANES]`, of the rows of these `numbers` with the tokens from `first` on.
    #[inline(always)]
    fn store<I: Isa, const R: usize, const T: usize>(
        &self,
        isa: I,
        lanes: &[f32],
        first: usize,
        numbers: &[usize; R],
    ) {
        let mut values = [0.0; FEW_TOKENS * MOST_ROWS];
        for at in (0..T * R).step_by(I::LANES) {
            let count = (T * R - at).min(I::LANES);
            store_some(
                isa,
                isa.f_across::<false>(&lanes[at * I::LANES..], count),
                &mut values[at..][..count],
            );
        }
        for t in 0..T {
            for r in 0..R {
                // Sound: callers give each task rows or a group of tokens of its own.
                let out =
                    unsafe { self.out.slice((first + t) * self.out_stride + self.first + numbers[r], 1) };
                out[0] = values[t * R + r];
            }
        }
    }
}

/// Adds the products of a vector of each row and each of `tokens`.
#[inline(always)]
fn add_products<I: Isa, const R: usize, const T: usize>(
    isa: I,
    rows: &[I::F; R],
    tokens: &[f32],
    sums: &mut [[I::F; R]; T],
) {
    for t in 0..T {
        let token = isa.f_load(&tokens[t * I::LANES..]);
        for r in 0..R {
            sums[t][r] = isa.f_fma(rows[r], token, sums[t][r]);
        }
    }
}

/// Adds the products of the last columns, less than a vector, to the `lanes` of sums, `[T, R, LANES]`: in memory, for the loop before needs
/// all registers.
#[inline(always)]
fn add_last<I: Isa, W: Float, const R: usize, const T: usize>(
    isa: I,
    rows: &[&[W::Bits]; R],
    tokens: &[f32],
    lanes: &mut [f32],
) {
    for r in 0..R {
        let row = load_some::<I, W>(isa, rows[r], rows[r].len() / I::LANES * I::LANES);
        for t in 0..T {
            let sum = &mut lanes[(t * R + r) * I::LANES..];
            isa.f_store(isa.f_fma(row, isa.f_load(&tokens[t * I::LANES..]), isa.f_load(sum)), sum);
        }
    }
}
