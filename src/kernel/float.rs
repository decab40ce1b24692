//! Products of float rows (f32, f16, bf16, or decoded blocks) with tokens.
//!
//! A (row, token) product runs along the columns in one vector accumulator, whatever the tile; the
//! columns beyond whole vectors follow one by one.

use super::SharedMut;
use crate::simd::{Isa, Kernel, Level, dispatch_at};

/// Rows and tokens of a register tile.
const TILE_ROWS: usize = 4;
const TILE_TOKENS: usize = 4;

/// How a float weight is stored.
pub trait Float: Copy + Send + Sync + 'static {
    type Bits: Copy + Send + Sync;
    fn load<I: Isa>(isa: I, from: &[Self::Bits]) -> I::F;
    fn one(bits: Self::Bits) -> f32;
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
    #[inline(always)]
    fn one(bits: f32) -> f32 {
        bits
    }
}

impl Float for F16 {
    type Bits = u16;
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u16]) -> I::F {
        isa.f_load_f16(from)
    }
    #[inline(always)]
    fn one(bits: u16) -> f32 {
        half::f16::from_bits(bits).to_f32()
    }
}

impl Float for Bf16 {
    type Bits = u16;
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u16]) -> I::F {
        isa.f_load_bf16(from)
    }
    #[inline(always)]
    fn one(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

/// `out[token * out_stride + first + row] = rows[row] · tokens[token]`.
pub struct FloatProducts<'a, W: Float> {
    /// `[rows, columns]`.
    pub rows: &'a [W::Bits],
    pub columns: usize,
    /// `[tokens, columns]`.
    pub tokens: &'a [f32],
    pub out: &'a SharedMut<'a, f32>,
    pub out_stride: usize,
    /// The first row's place in a row of `out`.
    pub first: usize,
}

impl<W: Float> FloatProducts<'_, W> {
    /// Computes all products.
    pub fn compute(self, level: Level) {
        dispatch_at(level, self);
    }
}

impl<W: Float> Kernel for FloatProducts<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let tokens = self.tokens.len() / self.columns;
        let rows = self.rows.len() / self.columns;
        let mut row = 0;
        while row < rows {
            let mut token = 0;
            while token < tokens {
                match (rows - row >= TILE_ROWS, tokens - token >= TILE_TOKENS) {
                    (true, true) => self.tile::<I, TILE_ROWS, TILE_TOKENS>(isa, row, token),
                    (true, false) => self.tile::<I, TILE_ROWS, 1>(isa, row, token),
                    (false, true) => self.tile::<I, 1, TILE_TOKENS>(isa, row, token),
                    (false, false) => self.tile::<I, 1, 1>(isa, row, token),
                }
                token += if tokens - token >= TILE_TOKENS { TILE_TOKENS } else { 1 };
            }
            row += if rows - row >= TILE_ROWS { TILE_ROWS } else { 1 };
        }
    }
}

impl<W: Float> FloatProducts<'_, W> {
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const T: usize>(&self, isa: I, row: usize, token: usize) {
        let columns = self.columns;
        let w: [&[W::Bits]; R] = std::array::from_fn(|r| &self.rows[(row + r) * columns..][..columns]);
        let a: [&[f32]; T] = std::array::from_fn(|t| &self.tokens[(token + t) * columns..][..columns]);
        let mut sum = [[isa.f_splat(0.0); R]; T];
        let whole = columns / I::LANES * I::LANES;
        let mut c = 0;
        while c < whole {
            let mut lanes = [isa.f_splat(0.0); R];
            for (lanes, w) in lanes.iter_mut().zip(&w) {
                *lanes = W::load(isa, &w[c..]);
            }
            for t in 0..T {
                let a = isa.f_load(&a[t][c..]);
                for r in 0..R {
                    sum[t][r] = isa.f_fma(lanes[r], a, sum[t][r]);
                }
            }
            c += I::LANES;
        }
        for t in 0..T {
            let mut out = [0.0f32; R];
            for r in 0..R {
                out[r] =
                    (whole..columns).fold(isa.f_sum(sum[t][r]), |s, c| W::one(w[r][c]).mul_add(a[t][c], s));
            }
            // Sound: callers give each task disjoint rows.
            unsafe { self.out.slice((token + t) * self.out_stride + self.first + row, R) }
                .copy_from_slice(&out);
        }
    }
}
