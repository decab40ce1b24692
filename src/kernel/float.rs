//! Products of float rows (f32, f16, bf16, or decoded blocks) with tokens: with a few straight from the
//! rows, which is bound by memory, with more by panels.
//!
//! A (row, token) product runs along the columns in one vector accumulator, whatever the tile; the last
//! vector is filled up with zeros.

mod panel;

pub use panel::{FloatPanel, FloatPanelProducts, FloatTokens, panel_rows};

use super::{SharedMut, prefetch_bytes};
use crate::simd::{Isa, Kernel, Level, MAX_LANES, dispatch_at};

/// Up to so many tokens, products by rows are faster than those by panels.
pub const FEW_TOKENS: usize = 4;

/// Rows that are multiplied together. They lie far apart: memory delivers more to several streams than to one.
const STREAMS: usize = 4;

/// Bytes that are asked for ahead in each of them.
const AHEAD: usize = 1024;

/// How a float weight is stored.
pub trait Float: Copy + Send + Sync + 'static {
    type Bits: Copy + Default + Send + Sync;
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

/// `out[token * out_stride + first + row] = rows[row] · tokens[token]` for at most [`FEW_TOKENS`].
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
        match self.tokens.len() / self.columns {
            0 => {}
            1 => self.few::<I, 1>(isa),
            2 => self.few::<I, 2>(isa),
            3 => self.few::<I, 3>(isa),
            4 => self.few::<I, 4>(isa),
            tokens => unreachable!("{tokens} tokens are multiplied by panels"),
        }
    }
}

impl<W: Float> FloatProducts<'_, W> {
    /// All rows with the `T` tokens.
    #[inline(always)]
    fn few<I: Isa, const T: usize>(&self, isa: I) {
        let rows = self.rows.len() / self.columns;
        let apart = rows.div_ceil(STREAMS);
        for row in 0..apart {
            // Where there are too few rows, the last one is there more than once.
            let numbers: [usize; STREAMS] = std::array::from_fn(|r| (row + r * apart).min(rows - 1));
            self.rows_at::<I, T>(isa, &numbers);
        }
    }

    #[inline(always)]
    fn rows_at<I: Isa, const T: usize>(&self, isa: I, numbers: &[usize; STREAMS]) {
        let columns = self.columns;
        let rows: [&[W::Bits]; STREAMS] =
            std::array::from_fn(|r| &self.rows[numbers[r] * columns..][..columns]);
        let tokens: [&[f32]; T] = std::array::from_fn(|t| &self.tokens[t * columns..][..columns]);
        let mut sums = [[isa.f_splat(0.0); STREAMS]; T];
        let mut c = 0;
        while c < columns {
            let mut lanes = [isa.f_splat(0.0); STREAMS];
            for r in 0..STREAMS {
                let ahead = rows[r].as_ptr().wrapping_add(c).cast::<u8>().wrapping_add(AHEAD);
                prefetch_bytes(isa, ahead, I::LANES * size_of::<W::Bits>());
                lanes[r] = load_some::<I, W>(isa, rows[r], c);
            }
            for t in 0..T {
                let token = load_some::<I, F32>(isa, tokens[t], c);
                for r in 0..STREAMS {
                    sums[t][r] = isa.f_fma(lanes[r], token, sums[t][r]);
                }
            }
            c += I::LANES;
        }
        for t in 0..T {
            for r in 0..STREAMS {
                // Sound: callers give each task disjoint rows.
                let out = unsafe { self.out.slice(t * self.out_stride + self.first + numbers[r], 1) };
                out[0] = isa.f_sum(sums[t][r]);
            }
        }
    }
}
