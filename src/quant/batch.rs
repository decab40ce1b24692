//! Cutting rows into batches of blocks, a whole number for every ISA's lanes.

use super::Rows;
use crate::simd::lanes::Lanes;

/// Elements encoded together: 16 super-blocks of 256, so one a lane on every ISA, and little enough for the L1
/// cache.
pub(super) const BATCH: usize = 4096;

/// The batches of a run of rows, the last one padded with zeros.
pub(super) struct Batches<'a> {
    values: &'a [f32],
    done: usize,
    padded: [f32; BATCH],
}

/// Consecutive elements of some rows.
pub(super) struct Batch<'a> {
    /// Index of the first one.
    pub first: usize,
    /// How many are real, at most `BATCH`.
    pub count: usize,
    /// `BATCH` elements; those from `count` on are zeros.
    pub values: &'a [f32],
}

impl<'a> Batches<'a> {
    pub fn new(rows: Rows<'a>) -> Self {
        Self { values: rows.values, done: 0, padded: [0.0; BATCH] }
    }

    #[inline(always)]
    pub fn next(&mut self) -> Option<Batch<'_>> {
        let first = self.done;
        let rest = self.values.get(first..).filter(|rest| !rest.is_empty())?;
        let count = rest.len().min(BATCH);
        self.done += count;
        let values = if count == BATCH {
            &rest[..BATCH]
        } else {
            self.padded[..count].copy_from_slice(rest);
            self.padded[count..].fill(0.0);
            &self.padded[..]
        };
        Some(Batch { first, count, values })
    }
}

/// Element weights under an imatrix: importance · √(mean + x²), with the mean square of some surroundings.
#[inline(always)]
pub(super) fn element_weights<L: Lanes>(
    lanes: L,
    x: &[f32],
    importance: &[f32],
    mean: f32,
    weights: &mut [f32],
) {
    let mean = lanes.splat(mean);
    let parts = x.chunks_exact(L::WIDTH).zip(importance.chunks_exact(L::WIDTH));
    for ((x, importance), weights) in parts.zip(weights.chunks_exact_mut(L::WIDTH)) {
        let x = lanes.load(x);
        let root = lanes.sqrt(lanes.add(mean, lanes.mul(x, x)));
        lanes.store(lanes.mul(lanes.load(importance), root), weights);
    }
}

/// Sums of squares of rows of `columns` (a multiple of 32), each summed from its first element to its last;
/// a row a lane.
#[inline(always)]
pub(super) fn square_sums<L: Lanes>(lanes: L, values: &[f32], columns: usize, sums: &mut [f32]) {
    const TILE: usize = 16;
    let groups = values.chunks_exact(columns * L::WIDTH).zip(sums.chunks_exact_mut(L::WIDTH));
    for (rows, sums) in groups {
        let mut sum = lanes.splat(0.0);
        for column in (0..columns).step_by(TILE) {
            let mut tile = [lanes.splat(0.0); TILE];
            lanes.columns(&rows[column..], columns, &mut tile);
            for x in tile {
                sum = lanes.add(sum, lanes.mul(x, x));
            }
        }
        lanes.store(sum, sums);
    }
    let done = sums.len() / L::WIDTH * L::WIDTH;
    let rest = values[done * columns..].chunks_exact(columns).zip(&mut sums[done..]);
    for (row, sum) in rest {
        *sum = row.iter().fold(0.0, |sum, x| sum + x * x);
    }
}
