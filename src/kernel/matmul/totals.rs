//! Partial sums of tiles in memory.

use std::ops::{Deref, DerefMut};

use crate::kernel::Lines;
use crate::simd::Partials;

/// What processors compare first of the addresses of a load and of stores before it that are under way: a load that is a whole number of
/// pages from one of them waits, or starts again.
const PAGE: usize = 4096;

/// Bytes from the rows on to the totals, whole pages aside. A span of 128 columns of two vectors of rows is a page of them; when its sums are
/// stored, the first quarter of the next page is being loaded.
const BEYOND: usize = 1024;

/// Room for partial sums.
#[derive(Default)]
pub(super) struct Totals {
    lines: Lines<f32>,
    /// The first one that is used.
    start: usize,
}

impl Totals {
    /// At least `length` sums.
    pub fn resize(&mut self, length: usize) {
        self.lines.resize(length);
        self.start = 0;
    }

    /// At least `length` sums, all 0, in that part of a page that is not loaded of `rows` when they are stored.
    pub fn clear(&mut self, length: usize, rows: &[i32]) {
        self.lines.resize(length + PAGE / 4);
        let from = self.lines.as_ptr().addr();
        self.start = (rows.as_ptr().addr() + BEYOND).wrapping_sub(from) % PAGE / 4;
        self.fill(0.0);
    }

    /// The sums of whole tiles.
    #[inline(always)]
    pub fn tiles<const R: usize, const T: usize>(&mut self) -> &mut [Partials<R, T>] {
        self.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0
    }

    /// The `partials` of `tile` and of the one before it, which are in two places in turns.
    #[inline(always)]
    pub fn two_tiles<const R: usize, const T: usize>(
        &mut self,
        partials: usize,
        tile: usize,
    ) -> (&mut [Partials<R, T>], &[Partials<R, T>]) {
        let (even, odd) = self.tiles()[..2 * partials].split_at_mut(partials);
        if tile.is_multiple_of(2) { (even, odd) } else { (odd, even) }
    }
}

impl Deref for Totals {
    type Target = [f32];
    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.lines[self.start..]
    }
}

impl DerefMut for Totals {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.lines[self.start..]
    }
}
