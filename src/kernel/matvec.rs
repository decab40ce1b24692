//! Products of quantized rows with a few tokens, straight from the blocks: the memory-bound side.

use super::activations::Activations;
use super::{partial_sums, prefetch_ahead};
use crate::quant::unpack::{Scale, Unpack};
use crate::simd::{Isa, Kernel, Level, dispatch_at};

/// Rows that share one sweep over the activations in the super-block formats.
pub const ROW_GROUP: usize = 4;

/// `out[token][row] = rows[row] · tokens[token]` for quantized `rows`.
pub struct RowProducts<'a, F> {
    pub format: F,
    /// Whole rows, `row_bytes` each.
    pub rows: &'a [u8],
    pub row_bytes: usize,
    /// Quantized with the format's span.
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
        let tokens = self.out.len();
        let mut token = 0;
        while token < tokens {
            match tokens - token {
                1 => self.few::<I, 1>(isa, token),
                2 => self.few::<I, 2>(isa, token),
                3 => self.few::<I, 3>(isa, token),
                _ => self.few::<I, 4>(isa, token),
            }
            token += (tokens - token).min(4);
        }
    }
}

impl<F: Unpack> RowProducts<'_, F> {
    /// All rows with the `T` tokens from `token` on.
    #[inline(always)]
    fn few<I: Isa, const T: usize>(&mut self, isa: I, token: usize) {
        let rows = self.rows.len() / self.row_bytes;
        let tokens: [Token; T] = std::array::from_fn(|t| Token::of(self.tokens, token + t));
        if F::BLOCK == 256 {
            let mut row = 0;
            while row < rows {
                let group = ROW_GROUP.min(rows - row);
                // A short last group repeats its last row: the order of operations stays the same.
                let at = std::array::from_fn(|r| {
                    let start = (row + r.min(group - 1)) * self.row_bytes;
                    &self.rows[start..start + self.row_bytes]
                });
                let products = four_rows::<F, I, T>(isa, at, &tokens);
                for (t, products) in products.iter().enumerate() {
                    self.out[token + t][row..row + group].copy_from_slice(&products[..group]);
                }
                row += group;
            }
        } else {
            for (row, bytes) in self.rows.chunks_exact(self.row_bytes).enumerate() {
                let products = one_row::<F, I, T>(isa, bytes, &tokens);
                for (t, product) in products.iter().enumerate() {
                    self.out[token + t][row] = *product;
                }
            }
        }
    }
}

/// One token's activations.
#[derive(Clone, Copy)]
struct Token<'a> {
    /// 256 columns in eight narrow vectors.
    quants: &'a [[[i8; 32]; 8]],
    scales: &'a [f32],
    sums: &'a [[i16; 16]],
}

impl<'a> Token<'a> {
    #[inline(always)]
    fn of(all: &'a Activations, token: usize) -> Self {
        let padded = all.padded();
        let spans = padded / all.span;
        Self {
            quants: all.quants[token * padded..][..padded].as_chunks().0.as_chunks().0,
            scales: &all.scales[token * spans..][..spans],
            sums: all.sums[token * padded / 16..][..padded / 16].as_chunks().0,
        }
    }
}

/// What one row adds to a step of [`four_rows`], for each token.
struct RowStep<I: Isa, const T: usize> {
    /// Scaled dot products of the block's two spans.
    low: [I::N; T],
    high: [I::N; T],
    /// Scales times activation sums, for the offset: lanes 0..4 the first span, 4..8 the second.
    offset: [I::N; T],
    /// Mins times activation sums, likewise.
    min: [I::N; T],
    scale: Scale,
}

#[inline(always)]
fn row_step<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    row: &[u8],
    b: usize,
    tokens: &[Token; T],
) -> RowStep<I, T> {
    let block = &row[b * F::BYTES..][..F::BYTES];
    prefetch_ahead(isa, block, ROW_GROUP * row.len());
    let lanes = F::lanes(isa, block);
    let lanes = lanes.as_ref();
    let (scale, min) = F::groups(isa, block);
    let zero = [isa.n_zero(); T];
    let mut step = RowStep { low: zero, high: zero, offset: zero, min: zero, scale: F::scale(block) };
    for t in 0..T {
        let quants = &tokens[t].quants[b];
        for j in 0..4 {
            let (x, y) = (isa.b_load_i8(&quants[j]), isa.b_load_i8(&quants[4 + j]));
            if F::LARGEST > 127 {
                let (x, y) = (isa.n_dot4(zero[t], lanes[j], x), isa.n_dot4(zero[t], lanes[4 + j], y));
                step.low[t] = isa.n_add(step.low[t], isa.n_mul(x, isa.n_spread_i16(scale, j)));
                step.high[t] = isa.n_add(step.high[t], isa.n_mul(y, isa.n_spread_i16(scale, 4 + j)));
            } else {
                step.low[t] = isa.n_dot4_scaled(step.low[t], lanes[j], x, isa.b_spread_i16(scale, j));
                step.high[t] =
                    isa.n_dot4_scaled(step.high[t], lanes[4 + j], y, isa.b_spread_i16(scale, 4 + j));
            }
        }
        let sums = isa.b_load_i16(&tokens[t].sums[b]);
        if F::OFFSET != 0 {
            step.offset[t] = isa.n_dot2_i16(zero[t], scale, sums);
        }
        if F::MINS {
            step.min[t] = isa.n_dot2_i16(zero[t], min, sums);
        }
    }
    step
}

/// Four rows of a super-block format with two spans a block. Float lane `4 s + r` belongs to span `s`
/// of row `r`.
#[inline(always)]
fn four_rows<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    rows: [&[u8]; ROW_GROUP],
    tokens: &[Token; T],
) -> [[f32; ROW_GROUP]; T] {
    const { assert!(F::BLOCK != 256 || partial_sums(F::SPAN) == 2) };
    let mut total = [isa.g_zero(); T];
    for b in 0..rows[0].len() / F::BYTES {
        let r0 = row_step::<F, I, T>(isa, rows[0], b, tokens);
        let r1 = row_step::<F, I, T>(isa, rows[1], b, tokens);
        let r2 = row_step::<F, I, T>(isa, rows[2], b, tokens);
        let r3 = row_step::<F, I, T>(isa, rows[3], b, tokens);
        let (d0, d1, d2, d3) = (r0.scale.d, r1.scale.d, r2.scale.d, r3.scale.d);
        let d = isa.g_mul(isa.g_from_halves([d0, d1, d2, d3, d0, d1, d2, d3]), isa.g_splat(F::FACTOR));
        let (m0, m1, m2, m3) = (r0.scale.dmin, r1.scale.dmin, r2.scale.dmin, r3.scale.dmin);
        let dmin = isa.g_from_halves([m0, m1, m2, m3, m0, m1, m2, m3]);
        for t in 0..T {
            let products =
                [r0.low[t], r1.low[t], r2.low[t], r3.low[t], r0.high[t], r1.high[t], r2.high[t], r3.high[t]];
            let mut sum = isa.n_sums8(products);
            if F::OFFSET != 0 {
                let offset = isa.n_half_sums4([r0.offset[t], r1.offset[t], r2.offset[t], r3.offset[t]]);
                sum = isa.n_sub(sum, isa.n_mul(offset, isa.n_splat(F::OFFSET)));
            }
            let mut value = isa.g_mul(d, isa.g_from_n(sum));
            if F::MINS {
                let min = isa.n_half_sums4([r0.min[t], r1.min[t], r2.min[t], r3.min[t]]);
                value = isa.g_fnma(dmin, isa.g_from_n(min), value);
            }
            total[t] = isa.g_fma(
                isa.g_pair([tokens[t].scales[2 * b], tokens[t].scales[2 * b + 1]]),
                value,
                total[t],
            );
        }
    }
    let mut out = [[0.0; ROW_GROUP]; T];
    for (out, &total) in out.iter_mut().zip(&total) {
        let mut lanes = [0.0; 8];
        isa.g_store(total, &mut lanes);
        for (r, out) in out.iter_mut().enumerate() {
            *out = lanes[r] + lanes[4 + r];
        }
    }
    out
}

/// The most bytes that eight blocks of a 32-column format take.
const MAX_EIGHT_BLOCKS: usize = 8 * 40;

/// One row of a 32-column format; float lane `i` belongs to block `i` of every eight.
#[inline(always)]
fn one_row<F: Unpack, I: Isa, const T: usize>(isa: I, row: &[u8], tokens: &[Token; T]) -> [f32; T] {
    let mut total = [isa.g_zero(); T];
    let mut eights = row.chunks_exact(8 * F::BYTES);
    let mut b = 0;
    for blocks in &mut eights {
        prefetch_ahead(isa, blocks, 4096);
        eight_blocks::<F, I, T>(isa, blocks, b, tokens, &mut total);
        b += 1;
    }
    let rest = eights.remainder();
    if !rest.is_empty() {
        // Blocks of zero bytes have d = 0 and add nothing.
        let mut blocks = [0u8; MAX_EIGHT_BLOCKS];
        blocks[..rest.len()].copy_from_slice(rest);
        eight_blocks::<F, I, T>(isa, &blocks[..8 * F::BYTES], b, tokens, &mut total);
    }
    let mut out = [0.0; T];
    for (out, &total) in out.iter_mut().zip(&total) {
        let mut l = [0.0; 8];
        isa.g_store(total, &mut l);
        *out = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    }
    out
}

/// Adds the products of columns `256 b ..` to `total`.
#[inline(always)]
fn eight_blocks<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    blocks: &[u8],
    b: usize,
    tokens: &[Token; T],
    total: &mut [I::G; T],
) {
    let block = |j: usize| &blocks[j * F::BYTES..][..F::BYTES];
    let mut lanes = [isa.b_splat(0); 8];
    let (mut d, mut dmin) = ([0u16; 8], [0u16; 8]);
    for j in 0..8 {
        lanes[j] = F::lanes(isa, block(j)).as_ref()[0];
        let scale = F::scale(block(j));
        (d[j], dmin[j]) = (scale.d, scale.dmin);
    }
    let d = isa.g_mul(isa.g_from_halves(d), isa.g_splat(F::FACTOR));
    let dmin = isa.g_from_halves(dmin);
    let ones = isa.b_load_i16(&[1; 16]);
    for t in 0..T {
        let quants = &tokens[t].quants[b];
        let mut products = [isa.n_zero(); 8];
        for j in 0..8 {
            products[j] = isa.n_dot4(isa.n_zero(), lanes[j], isa.b_load_i8(&quants[j]));
        }
        let columns = isa.n_dot2_i16(isa.n_zero(), isa.b_load_i16(&tokens[t].sums[b]), ones);
        let mut sum = isa.n_sums8(products);
        if F::OFFSET != 0 {
            sum = isa.n_sub(sum, isa.n_mul(columns, isa.n_splat(F::OFFSET)));
        }
        let mut value = isa.g_mul(d, isa.g_from_n(sum));
        if F::MINS {
            value = isa.g_fnma(dmin, isa.g_from_n(columns), value);
        }
        let scales = tokens[t].scales[8 * b..8 * b + 8].try_into().expect("eight spans");
        total[t] = isa.g_fma(isa.g_load(scales), value, total[t]);
    }
}
