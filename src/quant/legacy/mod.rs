//! The older types: blocks of 32 with a half-precision scale, and some with a minimum.
//!
//! A byte of nibbles holds elements `l` (low) and `l` + 16 (high). A fifth bit, where there is one, is bit `i`
//! of a little-endian `u32` for element `i`.

mod q4;
mod q5;
mod q8;

pub use q4::{Q4_0, Q4_1};
pub use q5::{Q5_0, Q5_1};
pub use q8::Q8_0;

use super::Rows;
use super::batch::{BATCH, Batch, element_weights, square_sums};
use super::search::{Affine, AffineSearch, Symmetric, fit_symmetric, largest_by_magnitude};
use crate::simd::lanes::{Lanes, MAX_WIDTH};

/// Elements in a block.
const SIZE: usize = 32;

/// Blocks in a batch.
const BLOCKS: usize = BATCH / SIZE;

/// Scales, minimums and levels of a batch of blocks; types without a minimum leave it 0.
struct Encoded {
    scale: [f32; BLOCKS],
    min: [f32; BLOCKS],
    levels: [u8; BATCH],
}

impl Encoded {
    fn new() -> Self {
        Self { scale: [0.0; BLOCKS], min: [0.0; BLOCKS], levels: [0; BATCH] }
    }

    /// Scale, minimum and 32 levels of block `b`.
    #[inline(always)]
    fn block(&self, b: usize) -> (f32, f32, &[u8]) {
        (self.scale[b], self.min[b], &self.levels[b * SIZE..][..SIZE])
    }
}

/// Turns batches of rows into [`Encoded`] blocks, levels 0 ..= 2 · `half` − 1.
struct Encoder<'a> {
    half: i32,
    importance: Option<&'a [f32]>,
    columns: usize,
    /// Mean square of each row, where there is an imatrix.
    means: Vec<f32>,
}

impl<'a> Encoder<'a> {
    #[inline(always)]
    fn new<L: Lanes>(lanes: L, half: i32, rows: Rows<'a>) -> Self {
        let mut means = Vec::new();
        if rows.weights.is_some() {
            means.resize(rows.values.len() / rows.columns, 0.0);
            square_sums(lanes, rows.values, rows.columns, &mut means);
            for mean in &mut means {
                *mean /= rows.columns as f32;
            }
        }
        Self { half, importance: rows.weights, columns: rows.columns, means }
    }

    /// Element weights of a batch under the imatrix.
    #[inline(always)]
    fn weights<L: Lanes>(&self, lanes: L, batch: &Batch<'_>, importance: &[f32], weights: &mut [f32; BATCH]) {
        for at in (0..batch.count).step_by(SIZE) {
            let (row, column) = ((batch.first + at) / self.columns, (batch.first + at) % self.columns);
            let importance = &importance[column..][..SIZE];
            let (x, weights) = (&batch.values[at..][..SIZE], &mut weights[at..][..SIZE]);
            element_weights(lanes, x, importance, self.means[row], weights);
        }
    }

    /// Blocks x = scale · (level − half).
    #[inline(always)]
    fn symmetric<L: Lanes>(&self, lanes: L, batch: &Batch<'_>, out: &mut Encoded) {
        let Some(importance) = self.importance else { return self.symmetric_plain(lanes, batch, out) };
        let mut weights = [0.0; BATCH];
        self.weights(lanes, batch, importance, &mut weights);
        let mut fits = Symmetric::<BLOCKS>::new();
        for b in (0..batch.count / SIZE).step_by(L::WIDTH) {
            let mut x = [lanes.splat(0.0); SIZE];
            let mut w = x;
            lanes.columns(&batch.values[b * SIZE..], SIZE, &mut x);
            lanes.columns(&weights[b * SIZE..], SIZE, &mut w);
            fits.put(lanes, b, &fit_symmetric::<L, SIZE, false>(lanes, self.half, &x, &w));
        }
        out.scale = fits.scale;
        for (b, levels) in out.levels[..batch.count].chunks_exact_mut(SIZE).enumerate() {
            fits.levels(b, &batch.values[b * SIZE..][..SIZE], self.half, levels);
        }
    }

    /// The value of the largest magnitude gets level 0.
    #[inline(always)]
    fn symmetric_plain<L: Lanes>(&self, lanes: L, batch: &Batch<'_>, out: &mut Encoded) {
        let mut inverse = [0.0; BLOCKS];
        for b in (0..batch.count / SIZE).step_by(L::WIDTH) {
            let mut x = [lanes.splat(0.0); SIZE];
            lanes.columns(&batch.values[b * SIZE..], SIZE, &mut x);
            let (largest, _) = largest_by_magnitude(lanes, &x);
            let scale = lanes.div(largest, lanes.splat(-self.half as f32));
            lanes.store(scale, &mut out.scale[b..]);
            lanes.store(inverse_or_zero(lanes, scale), &mut inverse[b..]);
        }
        let offset = self.half as f32 + 0.5;
        let top = (2 * self.half - 1) as i8;
        for (b, levels) in out.levels[..batch.count].chunks_exact_mut(SIZE).enumerate() {
            let x = &batch.values[b * SIZE..][..SIZE];
            scaled_levels(lanes, x, (0.0, inverse[b], offset), levels);
            for level in levels {
                *level = (*level as i8).min(top) as u8;
            }
        }
    }

    /// Blocks x = scale · level + min. `MAX` is 2 · half − 1.
    #[inline(always)]
    fn affine<L: Lanes, const MAX: i32>(&self, lanes: L, batch: &Batch<'_>, out: &mut Encoded) {
        const GROUPS: usize = 2;
        let Some(importance) = self.importance else { return self.affine_plain(lanes, batch, out) };
        let mut weights = [0.0; BATCH];
        self.weights(lanes, batch, importance, &mut weights);
        let search = AffineSearch::<MAX, false> { first: -0.9, step: 0.05, candidates: 37 };
        let mut fits = Affine::<BLOCKS>::new();
        for b in (0..batch.count / SIZE).step_by(GROUPS * L::WIDTH) {
            let mut x = [[lanes.splat(0.0); SIZE]; GROUPS];
            let mut w = x;
            for g in 0..GROUPS {
                let first = (b + g * L::WIDTH) * SIZE;
                lanes.columns(&batch.values[first..], SIZE, &mut x[g]);
                lanes.columns(&weights[first..], SIZE, &mut w[g]);
            }
            for (g, fit) in search.fit(lanes, &x, &w).iter().enumerate() {
                fits.put(lanes, b + g * L::WIDTH, fit);
            }
        }
        out.scale = fits.scale;
        out.min = fits.min.map(|min| -min);
        for (b, levels) in out.levels[..batch.count].chunks_exact_mut(SIZE).enumerate() {
            fits.levels(b, &batch.values[b * SIZE..][..SIZE], MAX, levels);
        }
    }

    /// The smallest value gets level 0, the largest one the top.
    #[inline(always)]
    fn affine_plain<L: Lanes>(&self, lanes: L, batch: &Batch<'_>, out: &mut Encoded) {
        let mut inverse = [0.0; BLOCKS];
        for b in (0..batch.count / SIZE).step_by(L::WIDTH) {
            let mut x = [lanes.splat(0.0); SIZE];
            lanes.columns(&batch.values[b * SIZE..], SIZE, &mut x);
            let (mut smallest, mut largest) = (lanes.splat(f32::MAX), lanes.splat(-f32::MAX));
            for &x in &x {
                smallest = lanes.min(x, smallest);
                largest = lanes.max(x, largest);
            }
            let scale = lanes.div(lanes.sub(largest, smallest), lanes.splat((2 * self.half - 1) as f32));
            lanes.store(smallest, &mut out.min[b..]);
            lanes.store(scale, &mut out.scale[b..]);
            lanes.store(inverse_or_zero(lanes, scale), &mut inverse[b..]);
        }
        for (b, levels) in out.levels[..batch.count].chunks_exact_mut(SIZE).enumerate() {
            let x = &batch.values[b * SIZE..][..SIZE];
            scaled_levels(lanes, x, (out.min[b], inverse[b], 0.5), levels);
            // Q5_1 has no cap in the reference; its levels cannot pass 31 unless they wrap, and then they lose
            // their upper bits in packing.
            if self.half == 8 {
                for level in levels {
                    *level = (*level as i8).min(15) as u8;
                }
            }
        }
    }
}

/// 1 / `scale`, or 0 where that is 0.
#[inline(always)]
fn inverse_or_zero<L: Lanes>(lanes: L, scale: L::F) -> L::F {
    let zero = lanes.splat(0.0);
    lanes.select(lanes.eq(scale, zero), zero, lanes.div(lanes.splat(1.0), scale))
}

/// Low bytes of trunc((x − min) · inverse + offset), for 32 elements.
#[inline(always)]
fn scaled_levels<L: Lanes>(lanes: L, x: &[f32], (min, inverse, offset): (f32, f32, f32), levels: &mut [u8]) {
    let (min, inverse, offset) = (lanes.splat(min), lanes.splat(inverse), lanes.splat(offset));
    for (x, levels) in x.chunks_exact(L::WIDTH).zip(levels.chunks_exact_mut(L::WIDTH)) {
        let scaled = lanes.mul(lanes.sub(lanes.load(x), min), inverse);
        lanes.store_bytes(lanes.truncate(lanes.add(scaled, offset)), levels);
    }
}

/// Packs the low nibbles of 32 levels.
#[inline(always)]
fn pack_nibbles(levels: &[u8], qs: &mut [u8]) {
    for l in 0..16 {
        qs[l] = (levels[l] & 15) | (levels[l + 16] << 4);
    }
}

/// Packs the fifth bits of 32 levels.
#[inline(always)]
fn fifth_bits(levels: &[u8]) -> [u8; 4] {
    let mut bits = 0_u32;
    for (i, level) in levels.iter().enumerate() {
        bits |= u32::from((level >> 4) & 1) << i;
    }
    bits.to_le_bytes()
}

const _: () = assert!(MAX_WIDTH * 2 == SIZE);
