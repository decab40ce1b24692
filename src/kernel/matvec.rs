//! Products of quantized rows with a few tokens, straight from the blocks: the memory-bound side.

use super::activations::Activations;
use super::partial_sums;
use crate::quant::unpack::Unpack;
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
    quants: &'a [[i8; 32]],
    scales: &'a [f32],
    sums: &'a [[i16; 16]],
}

impl<'a> Token<'a> {
    #[inline(always)]
    fn of(all: &'a Activations, token: usize) -> Self {
        let padded = all.padded();
        let spans = padded / all.span;
        Self {
            quants: all.quants[token * padded..][..padded].as_chunks().0,
            scales: &all.scales[token * spans..][..spans],
            sums: all.sums[token * padded / 16..][..padded / 16].as_chunks().0,
        }
    }
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
    let blocks = rows[0].len() / F::BYTES;
    let mut total = [isa.g_zero(); T];
    for b in 0..blocks {
        let mut products = [[isa.n_zero(); 8]; T];
        let mut offsets = [[isa.n_zero(); ROW_GROUP]; T];
        let mut mins = [[isa.n_zero(); ROW_GROUP]; T];
        let mut d = [0.0f32; 8];
        let mut dmin = [0.0f32; 8];
        for r in 0..ROW_GROUP {
            let block = &rows[r][b * F::BYTES..(b + 1) * F::BYTES];
            let lanes = F::lanes(isa, block);
            let lanes = lanes.as_ref();
            let (scale, min) = F::groups(block);
            let scale = isa.b_load_i16(&scale);
            let float = F::scale(block);
            (d[r], d[4 + r]) = (float.d, float.d);
            (dmin[r], dmin[4 + r]) = (float.dmin, float.dmin);
            for j in 0..8 {
                let spread = isa.b_spread_i16(scale, j);
                for t in 0..T {
                    let a = isa.b_load_i8(&tokens[t].quants[8 * b + j]);
                    let sum = &mut products[t][4 * (j / 4) + r];
                    *sum = isa.n_dot4_scaled(*sum, lanes[j], a, spread);
                }
            }
            for t in 0..T {
                let sums = isa.b_load_i16(&tokens[t].sums[b]);
                if F::OFFSET != 0 {
                    offsets[t][r] = isa.n_dot2_i16(isa.n_zero(), scale, sums);
                }
                if F::MINS {
                    mins[t][r] = isa.n_dot2_i16(isa.n_zero(), isa.b_load_i16(&min), sums);
                }
            }
        }
        let (d, dmin) = (isa.g_load(&d), isa.g_load(&dmin));
        for t in 0..T {
            let mut sum = isa.n_sums8(products[t]);
            if F::OFFSET != 0 {
                let offset = isa.n_half_sums4(offsets[t]);
                sum = isa.n_sub(sum, isa.n_mul(offset, isa.n_splat(F::OFFSET)));
            }
            let mut value = isa.g_mul(d, isa.g_from_n(sum));
            if F::MINS {
                value = isa.g_fnma(dmin, isa.g_from_n(isa.n_half_sums4(mins[t])), value);
            }
            let (low, high) = (tokens[t].scales[2 * b], tokens[t].scales[2 * b + 1]);
            let scale = isa.g_load(&[low, low, low, low, high, high, high, high]);
            total[t] = isa.g_fma(scale, value, total[t]);
        }
    }
    total.map(|total| {
        let mut lanes = [0.0; 8];
        isa.g_store(total, &mut lanes);
        std::array::from_fn(|r| lanes[r] + lanes[4 + r])
    })
}

/// One row of a 32-column format; float lane `i` belongs to block `i` of every eight.
#[inline(always)]
fn one_row<F: Unpack, I: Isa, const T: usize>(isa: I, row: &[u8], tokens: &[Token; T]) -> [f32; T] {
    let mut total = [isa.g_zero(); T];
    for (b, blocks) in row.chunks(8 * F::BYTES).enumerate() {
        let mut products = [[isa.n_zero(); 8]; T];
        let mut d = [0.0f32; 8];
        let mut dmin = [0.0f32; 8];
        for (j, block) in blocks.chunks_exact(F::BYTES).enumerate() {
            let lanes = F::lanes(isa, block);
            let float = F::scale(block);
            (d[j], dmin[j]) = (float.d, float.dmin);
            for t in 0..T {
                let a = isa.b_load_i8(&tokens[t].quants[8 * b + j]);
                products[t][j] = isa.n_dot4(isa.n_zero(), lanes.as_ref()[0], a);
            }
        }
        let (d, dmin) = (isa.g_load(&d), isa.g_load(&dmin));
        for t in 0..T {
            let ones = isa.b_load_i16(&[1; 16]);
            let column_sum = isa.n_dot2_i16(isa.n_zero(), isa.b_load_i16(&tokens[t].sums[b]), ones);
            let mut sum = isa.n_sums8(products[t]);
            if F::OFFSET != 0 {
                sum = isa.n_sub(sum, isa.n_mul(column_sum, isa.n_splat(F::OFFSET)));
            }
            let mut value = isa.g_mul(d, isa.g_from_n(sum));
            if F::MINS {
                value = isa.g_fnma(dmin, isa.g_from_n(column_sum), value);
            }
            let scales = tokens[t].scales[8 * b..8 * b + 8].try_into().expect("eight spans");
            total[t] = isa.g_fma(isa.g_load(scales), value, total[t]);
        }
    }
    total.map(|total| {
        let mut l = [0.0; 8];
        isa.g_store(total, &mut l);
        ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
    })
}
