//! Products of quantized rows with a few tokens, straight from the blocks: the memory-bound side.

pub(super) mod eights;
pub(super) mod sixteens;

use self::sixteens::{Room, has_sixteens, sixteen_rows, takes_sixteen};
use super::activations::{Activations, has_eights};
use super::{partial_sums, prefetch_bytes};
use crate::quant::unpack::{Scale, Unpack};
use crate::simd::{EIGHT, Isa, Kernel, Level, MAX_ROWS, OfRows, SIXTEEN, dispatch_at};

/// Narrow vectors whose rows share one sweep over the activations in the super-block formats.
const GROUP: usize = 4;

/// Rows of such a sweep, at most.
pub const MAX_GROUP_ROWS: usize = GROUP * MAX_ROWS;

/// Bytes that are asked for ahead in each row of a sweep, and where a sweep has few rows.
const AHEAD: usize = 512;
const FAR_AHEAD: usize = 1024;

/// Bytes that are asked for ahead in each of eight rows side by side. The CPUs with other pipes for additions get slower from 768 on, the others faster
/// up to this.
#[inline(always)]
fn ahead_of_eight<I: Isa>(isa: I) -> usize {
    if isa.multiplies_sums() { AHEAD } else { 1280 }
}

/// `out[token][row] = rows[row] · tokens[token]` for quantized `rows`.
pub struct RowProducts<'a, F> {
    pub format: F,
    /// Whole rows, `row_bytes` each.
    pub rows: &'a [u8],
    pub row_bytes: usize,
    /// Rows that this thread is likely to multiply next: what they begin with is asked for at the end.
    pub next: &'a [u8],
    /// Quantized with the format's span, and arranged for the level.
    pub tokens: &'a Activations,
    /// One slice a token.
    pub out: &'a mut [&'a mut [f32]],
}

impl<F: Unpack> RowProducts<'_, F> {
    /// Computes all products. `out[token]` has as many elements as there are rows.
    pub fn compute(self, level: Level) {
        dispatch_at(level, self);
    }
}

impl<F: Unpack> Kernel for RowProducts<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        assert_eq!(self.tokens.span, F::SPAN);
        if let (Some(eights), true) = (isa.eights(), const { has_sixteens::<F, I>() })
            && takes_sixteen::<F, I>(isa, self.out.len())
        {
            return self.sixteen(isa, eights);
        }
        let tokens = self.out.len();
        let mut token = 0;
        while token < tokens {
            // As many in each sweep.
            let sweeps = (tokens - token).div_ceil(const { swept::<F, I>() });
            let count = (tokens - token).div_ceil(sweeps);
            match count {
                1 => self.few::<I, 1>(isa, token),
                2 => self.few::<I, 2>(isa, token),
                // The constant alone decides whether there is such code at all.
                _ if const { swept::<F, I>() < 3 } => unreachable!("fewer are swept"),
                3 => self.few::<I, 3>(isa, token),
                4 => self.few::<I, 4>(isa, token),
                _ if const { swept::<F, I>() < 5 } => unreachable!("fewer are swept"),
                5 => self.few::<I, 5>(isa, token),
                6 => self.few::<I, 6>(isa, token),
                7 => self.few::<I, 7>(isa, token),
                _ => self.few::<I, 8>(isa, token),
            }
            token += count;
        }
    }
}

/// [`RowProducts`] by sixteen rows at a time, whether that is faster or not, where there are such.
#[cfg(test)]
pub(super) struct BySixteen<'a, F>(pub RowProducts<'a, F>);

#[cfg(test)]
impl<F: Unpack> Kernel for BySixteen<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        match isa.eights() {
            Some(eights) if const { has_sixteens::<F, I>() } => self.0.sixteen(isa, eights),
            _ => self.0.run(isa),
        }
    }
}

/// Rows of a sweep with so many `tokens` at `level`: a part of a matrix should be a multiple of them.
pub fn sweep_rows<F: Unpack>(format: F, level: Level, tokens: usize) -> usize {
    struct Rows<F>(F, usize);
    impl<F: Unpack> Kernel for Rows<F> {
        type Output = usize;
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> usize {
            if takes_sixteen::<F, I>(isa, self.1) { SIXTEEN } else { MAX_GROUP_ROWS }
        }
    }
    dispatch_at(level, Rows(format, tokens))
}

/// Tokens that share a sweep over rows, at most.
pub(super) const fn swept<F: Unpack, I: Isa>() -> usize {
    if has_eights::<F, I>() { eights::SWEPT } else { I::SWEPT }
}

impl<'a, F: Unpack> RowProducts<'a, F> {
    /// All rows with the `T` tokens from `token` on.
    #[inline(always)]
    fn few<I: Isa, const T: usize>(&mut self, isa: I, token: usize) {
        let rows = self.rows.len() / self.row_bytes;
        if let (Some(eights), true) = (isa.eights(), const { has_eights::<F, I>() }) {
            let tokens = eights::Tokens::of::<F>(self.tokens, token);
            for first in 0..rows.div_ceil(EIGHT) {
                let sweep = self.sweep(first, EIGHT);
                let mut products = [[0.0; MAX_GROUP_ROWS]; T];
                eights::eight_rows::<F, I, T>(isa, eights, &sweep, tokens, &mut products);
                self.store(token, &sweep, EIGHT, &products);
            }
            return;
        }
        let step = if F::BLOCK == 256 { GROUP * I::ROWS } else { I::ROWS };
        let tokens: [Token; T] = std::array::from_fn(|t| Token::of::<I>(self.tokens, token + t));
        for first in 0..rows.div_ceil(step) {
            let sweep = self.sweep(first, step);
            let mut products = [[0.0; MAX_GROUP_ROWS]; T];
            if F::BLOCK == 256 {
                super_block_rows::<F, I, T>(isa, &sweep, &tokens, &mut products);
            } else {
                small_block_rows::<F, I, T>(isa, &sweep, &tokens, &mut products);
            }
            self.store(token, &sweep, step, &products);
        }
    }

    /// All rows with all tokens, sixteen rows at a time.
    #[inline(always)]
    fn sixteen<I: Isa>(&mut self, isa: I, eights: I::Eights) {
        let (rows, mut room) = (self.rows.len() / self.row_bytes, Room::default());
        for first in 0..rows.div_ceil(SIXTEEN) {
            let sweep = self.sweep::<SIXTEEN>(first, SIXTEEN);
            sixteen_rows::<F, I>(isa, eights, &sweep, self.tokens, self.out.len(), &mut room);
            for t in 0..self.out.len() {
                let [first, last] = &room.totals[t];
                let mut sums = [0.0; SIXTEEN];
                isa.f_store(isa.f_add(isa.f_load(first), isa.f_load(last)), &mut sums);
                for r in 0..SIXTEEN {
                    self.out[t][sweep.numbers[r]] = sums[r];
                }
            }
        }
    }

    /// The `step` rows from number `first` on that are multiplied together. They lie far apart: memory delivers more to several streams than
    /// to one. Where there are too few rows, the last one is there more than once.
    #[inline(always)]
    fn sweep<const N: usize>(&self, first: usize, step: usize) -> Sweep<'a, N> {
        let rows = self.rows.len() / self.row_bytes;
        let apart = rows.div_ceil(step);
        // After the last rows of this part come the first ones of the next part, which are as far apart if it has as many rows.
        let end = self.rows.as_ptr().addr() + (first + 1) * self.row_bytes;
        let mut sweep = Sweep {
            numbers: [0; N],
            rows: [&self.rows[..0]; N],
            beyond: if first + 1 < apart { 0 } else { self.next.as_ptr().addr().wrapping_sub(end) },
        };
        for r in 0..step {
            sweep.numbers[r] = (first + r * apart).min(rows - 1);
            sweep.rows[r] = &self.rows[sweep.numbers[r] * self.row_bytes..][..self.row_bytes];
        }
        sweep
    }

    /// Stores the `products` of the `step` rows of a sweep with the tokens from `token` on.
    #[inline(always)]
    fn store<const T: usize>(
        &mut self,
        token: usize,
        sweep: &Sweep,
        step: usize,
        products: &[[f32; MAX_GROUP_ROWS]; T],
    ) {
        for t in 0..T {
            for r in 0..step {
                self.out[token + t][sweep.numbers[r]] = products[t][r];
            }
        }
    }
}

/// Rows that are multiplied together.
struct Sweep<'a, const N: usize = MAX_GROUP_ROWS> {
    /// Which of all.
    numbers: [usize; N],
    rows: [&'a [u8]; N],
    /// From the end of each of them to what is read after it.
    beyond: usize,
}

impl<const N: usize> Sweep<'_, N> {
    /// How far after the beginning of each row byte `at` is, which may be beyond its end.
    #[inline(always)]
    fn place(&self, at: usize) -> usize {
        if at < self.rows[0].len() { at } else { at.wrapping_add(self.beyond) }
    }

    /// Asks for `length` bytes of row `r` from byte `at` on.
    #[inline(always)]
    fn ask<I: Isa>(&self, isa: I, r: usize, at: usize, length: usize) {
        prefetch_bytes(isa, self.rows[r].as_ptr().wrapping_add(self.place(at)), length);
    }
}

/// One token's activations.
#[derive(Clone, Copy)]
struct Token<'a> {
    /// As they are arranged, four quants a word.
    quants: &'a [i32],
    scales: &'a [f32],
    sums: &'a [[i16; 16]],
}

impl<'a> Token<'a> {
    #[inline(always)]
    fn of<I: Isa>(all: &'a Activations, token: usize) -> Self {
        let padded = all.padded();
        let spans = padded / all.span;
        Self {
            quants: all.vectors::<I>(token),
            scales: &all.scales[token * spans..][..spans],
            sums: all.sums[token * padded / 16..][..padded / 16].as_chunks().0,
        }
    }

    /// The quants of columns `256 b ..`.
    #[inline(always)]
    fn vectors<I: Isa>(&self, isa: I, b: usize) -> [I::B; 8] {
        let words = &self.quants[8 * I::LANES * b..][..8 * I::LANES];
        let mut vectors = [isa.b_splat(0); 8];
        for j in 0..8 {
            vectors[j] = isa.b_from_w(isa.w_load(&words[I::LANES * j..]));
        }
        vectors
    }
}

/// What one narrow vector of rows adds to a step of [`super_block_rows`], for each token.
struct Step<I: Isa, const T: usize> {
    /// Scaled dot products of the blocks' two spans.
    low: [I::N; T],
    high: [I::N; T],
    /// Scales times activation sums, for the offset: lanes 0..4 the first span, 4..8 the second.
    offset: [I::N; T],
    /// Mins times activation sums, likewise.
    min: [I::N; T],
}

#[inline(always)]
fn step<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    sweep: &Sweep,
    v: usize,
    b: usize,
    tokens: &[Token; T],
) -> Step<I, T> {
    let vector = [v, v + GROUP * (I::ROWS - 1)];
    let mut block = [&[][..]; MAX_ROWS];
    for r in 0..MAX_ROWS {
        block[r] = &sweep.rows[vector[r]][b * F::BYTES..][..F::BYTES];
    }
    let zero = [isa.n_zero(); T];
    let mut step = Step { low: zero, high: zero, offset: zero, min: zero };
    // One row's lines now, the other's in the middle of the products: many at once hold up the loads.
    let ahead = b * F::BYTES + AHEAD;
    sweep.ask(isa, vector[0], ahead, F::BYTES);
    let lanes = F::lanes(isa, block);
    let lanes = lanes.as_ref();
    let (scale, min) = F::groups(isa, block);
    for t in 0..T {
        let quants = tokens[t].vectors(isa, b);
        if F::LARGEST <= 64 {
            for j in (0..4).step_by(2) {
                let (x, y) = ([lanes[j], lanes[j + 1]], [lanes[4 + j], lanes[5 + j]]);
                let (a, c) = ([quants[j], quants[j + 1]], [quants[4 + j], quants[5 + j]]);
                step.low[t] = isa.n_two_dots_scaled(step.low[t], x, a, scale, j / 2);
                if I::ROWS > 1 && t == 0 && j == 0 {
                    sweep.ask(isa, vector[1], ahead, F::BYTES);
                }
                step.high[t] = isa.n_two_dots_scaled(step.high[t], y, c, scale, 2 + j / 2);
            }
        } else {
            for j in 0..4 {
                let (x, y) = (quants[j], quants[4 + j]);
                if I::ROWS > 1 && t == 0 && j == 1 {
                    sweep.ask(isa, vector[1], ahead, F::BYTES);
                }
                if F::LARGEST > 127 {
                    let x = isa.n_dot4::<true>(zero[t], lanes[j], x);
                    let y = isa.n_dot4::<true>(zero[t], lanes[4 + j], y);
                    step.low[t] = isa.n_add(step.low[t], isa.n_mul(x, isa.n_spread_i16(scale, j)));
                    step.high[t] = isa.n_add(step.high[t], isa.n_mul(y, isa.n_spread_i16(scale, 4 + j)));
                } else {
                    step.low[t] = isa.n_dot4_scaled(step.low[t], lanes[j], x, scale, j);
                    step.high[t] = isa.n_dot4_scaled(step.high[t], lanes[4 + j], y, scale, 4 + j);
                }
            }
        }
        let sums = isa.b_all_i16(&tokens[t].sums[b]);
        if F::OFFSET != 0 {
            step.offset[t] = isa.n_dot2_i16(zero[t], scale, sums);
        }
        if F::MINS {
            step.min[t] = isa.n_dot2_i16(zero[t], min, sums);
        }
    }
    step
}

/// Rows of a super-block format with two spans a block: vector `v` has rows `v`, `v + GROUP`. Within a row of the sums, float
/// lane `4 s + v` belongs to span `s` of vector `v`.
#[inline(always)]
fn super_block_rows<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    sweep: &Sweep,
    tokens: &[Token; T],
    out: &mut [[f32; MAX_GROUP_ROWS]; T],
) {
    const { assert!(F::BLOCK != 256 || (partial_sums(F::SPAN) == 2 && !F::EXPONENT)) };
    let rows = &sweep.rows;
    let mut total = [isa.g_zero(); T];
    for b in 0..rows[0].len() / F::BYTES {
        let v0 = step::<F, I, T>(isa, sweep, 0, b, tokens);
        let v1 = step::<F, I, T>(isa, sweep, 1, b, tokens);
        let v2 = step::<F, I, T>(isa, sweep, 2, b, tokens);
        let v3 = step::<F, I, T>(isa, sweep, 3, b, tokens);
        let (d, dmin) = scales::<F, I>(isa, rows, b);
        for t in 0..T {
            let products =
                [v0.low[t], v1.low[t], v2.low[t], v3.low[t], v0.high[t], v1.high[t], v2.high[t], v3.high[t]];
            let mut sum = isa.n_sums8(products);
            if F::OFFSET != 0 {
                let offset = isa.n_half_sums4([v0.offset[t], v1.offset[t], v2.offset[t], v3.offset[t]]);
                sum = isa.n_sub(sum, isa.n_mul(offset, isa.n_splat(F::OFFSET)));
            }
            let mut value = isa.g_mul(d, isa.g_from_n(sum));
            if F::MINS {
                let min = isa.n_half_sums4([v0.min[t], v1.min[t], v2.min[t], v3.min[t]]);
                value = isa.g_fnma(dmin, isa.g_from_n(min), value);
            }
            let scales = isa.g_pair([tokens[t].scales[2 * b], tokens[t].scales[2 * b + 1]]);
            total[t] = isa.g_fma(scales, value, total[t]);
        }
    }
    for t in 0..T {
        let mut lanes = [0.0; 8 * MAX_ROWS];
        isa.g_store(total[t], &mut lanes);
        for r in 0..I::ROWS {
            for v in 0..GROUP {
                out[t][GROUP * r + v] = lanes[8 * r + v] + lanes[8 * r + 4 + v];
            }
        }
    }
}

/// `d` and `dmin` of block `b`: within a row of the result, lanes `v` and `4 + v` belong to vector `v`.
#[inline(always)]
fn scales<F: Unpack, I: Isa>(isa: I, rows: &[&[u8]; MAX_GROUP_ROWS], b: usize) -> (I::G, I::G) {
    let (mut d, mut dmin) = ([0; MAX_ROWS], [0; MAX_ROWS]);
    for r in 0..I::ROWS {
        for v in 0..GROUP {
            let scale = F::scale(&rows[GROUP * r + v][b * F::BYTES..][..F::BYTES]);
            d[r] |= u64::from(scale.d) << (16 * v);
            dmin[r] |= u64::from(scale.dmin) << (16 * v);
        }
    }
    (isa.g_mul(isa.g_from_halves_twice(d), isa.g_splat(F::FACTOR)), isa.g_from_halves_twice(dmin))
}

/// The most bytes that eight blocks of a 32-column format take.
const MAX_EIGHT_BLOCKS: usize = 8 * 40;

/// Rows of a 32-column format; within a row of the sums, float lane `i` belongs to block `i` of every eight.
#[inline(always)]
fn small_block_rows<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    sweep: &Sweep,
    tokens: &[Token; T],
    out: &mut [[f32; MAX_GROUP_ROWS]; T],
) {
    let rows: OfRows<&[u8]> = [sweep.rows[0], sweep.rows[I::ROWS - 1]];
    let mut total = [isa.g_zero(); T];
    let eight = 8 * F::BYTES;
    let whole = rows[0].len() / eight;
    for b in 0..whole {
        let blocks = [&rows[0][b * eight..][..eight], &rows[1][b * eight..][..eight]];
        for r in 0..I::ROWS {
            sweep.ask(isa, r, b * eight + FAR_AHEAD, eight);
        }
        eight_blocks::<F, I, T>(isa, blocks, b, tokens, &mut total);
    }
    let rest = rows[0].len() - whole * eight;
    if rest > 0 {
        // Blocks of zero bytes have d = 0 and add nothing.
        let mut blocks = [[0u8; MAX_EIGHT_BLOCKS]; MAX_ROWS];
        for r in 0..MAX_ROWS {
            blocks[r][..rest].copy_from_slice(&rows[r][whole * eight..]);
        }
        eight_blocks::<F, I, T>(isa, [&blocks[0][..eight], &blocks[1][..eight]], whole, tokens, &mut total);
    }
    for t in 0..T {
        let mut lanes = [0.0; 8 * MAX_ROWS];
        isa.g_store(total[t], &mut lanes);
        for r in 0..I::ROWS {
            let l = &lanes[8 * r..];
            out[t][r] = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
        }
    }
}

/// Adds the products of columns `256 b ..` to `total`.
#[inline(always)]
fn eight_blocks<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    blocks: OfRows<&[u8]>,
    b: usize,
    tokens: &[Token; T],
    total: &mut [I::G; T],
) {
    let mut lanes = [isa.b_splat(0); 8];
    let (mut d, mut dmin) = ([0u16; 8 * MAX_ROWS], [0u16; 8 * MAX_ROWS]);
    for j in 0..8 {
        let block = [&blocks[0][j * F::BYTES..][..F::BYTES], &blocks[1][j * F::BYTES..][..F::BYTES]];
        lanes[j] = F::lanes(isa, block).as_ref()[0];
        for r in 0..I::ROWS {
            let scale = F::scale(block[r]);
            (d[8 * r + j], dmin[8 * r + j]) = (scale.d, scale.dmin);
        }
    }
    let d = if F::EXPONENT {
        let mut powers = [0.0; 8 * MAX_ROWS];
        for i in 0..8 * I::ROWS {
            powers[i] = Scale::power(d[i]);
        }
        isa.g_load(&powers)
    } else {
        isa.g_from_halves(&d)
    };
    let d = isa.g_mul(d, isa.g_splat(F::FACTOR));
    let dmin = isa.g_from_halves(&dmin);
    let ones = isa.b_all_i16(&[1; 16]);
    for t in 0..T {
        let quants = tokens[t].vectors(isa, b);
        let mut products = [isa.n_zero(); 8];
        for j in 0..8 {
            products[j] = if F::LARGEST > 127 {
                isa.n_dot4::<true>(isa.n_zero(), lanes[j], quants[j])
            } else {
                isa.n_dot4::<false>(isa.n_zero(), lanes[j], quants[j])
            };
        }
        let columns = isa.n_dot2_i16(isa.n_zero(), isa.b_all_i16(&tokens[t].sums[b]), ones);
        let mut sum = isa.n_sums8(products);
        if F::OFFSET != 0 {
            sum = isa.n_sub(sum, isa.n_mul(columns, isa.n_splat(F::OFFSET)));
        }
        let mut value = isa.g_mul(d, isa.g_from_n(sum));
        if F::MINS {
            value = isa.g_fnma(dmin, isa.g_from_n(columns), value);
        }
        let scales = tokens[t].scales[8 * b..8 * b + 8].try_into().expect("eight spans");
        total[t] = isa.g_fma(isa.g_all(scales), value, total[t]);
    }
}
