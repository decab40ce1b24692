//! Attention by a unit that multiplies matrices of bytes ([`Isa::tiles`]), where keys and values are 16-bit integers.
//!
//! A *step* is two groups of sixteen queries with a block of keys. Vectors take sums while the unit makes the next ones; the softmax is computed in
//! between.

use super::softmax::{self, Form, Group};
use super::{Attention, BLOCK, GRAIN, Scratch};
use crate::kernel::Lines;
use crate::kernel::kv::{self, KEYS, KvData, PAGE, Sixteen};
use crate::simd::{
    CHUNK_WORDS, Isa, MAX_LANES, PlaneSums, Sixteens, TakeSums, Tiles, place_of_columns, place_of_row,
};

/// Splitting a block's keys and values into planes takes as long as two or three steps. With fewer queries to share that, vectors are faster.
pub(super) const LEAST_QUERIES: usize = 48;

/// With so many it hardly matters any more.
pub(super) const MOST_QUERIES: usize = 512;

/// Queries that a register has.
const GROUP: usize = 16;

/// Queries of a step.
const STEP: usize = 2 * GROUP;

/// Columns of [`CHUNK_WORDS`].
const CHUNK: usize = 64;

/// Words of a block's weights of sixteen queries, or sixteen elements of its values.
const BLOCK_WORDS: usize = BLOCK / CHUNK * CHUNK_WORDS;

const _: () = assert!(GROUP == MAX_LANES && GROUP == KEYS && GRAIN == CHUNK);

/// Reused between calls of one thread.
#[derive(Default)]
pub(super) struct TileScratch {
    /// Planes of the queries, `[steps, 2, chunks]` times [`CHUNK_WORDS`].
    queries: Lines<i32>,
    /// Of a block's keys, `[BLOCK / 16, chunks]`, and values, `[padded / 16, BLOCK / CHUNK]`.
    keys: Lines<i32>,
    values: Lines<i32>,
    /// Of a step's weights, `[2, BLOCK / CHUNK]`.
    weights: Lines<i32>,
    sums: [PlaneSums; 2],
}

/// The queries from `row` on with the block that begins at `start`.
#[derive(Clone, Copy)]
struct Step {
    start: usize,
    row: usize,
    /// How many queries there are.
    count: usize,
    /// Keys up to the last that one of them sees, whole grains.
    keys: usize,
}

impl Attention<'_> {
    /// Adds up all weighted values, as [`Attention::by_vectors`] does.
    #[inline(always)]
    pub(super) fn by_tiles<I: Isa>(&mut self, isa: I, unit: I::Tiles, scratch: &mut Scratch) {
        self.planes_of_queries(isa, unit, scratch);
        self.resize(scratch);
        let (rows, ready) = (self.positions.len(), unit.ready());
        for start in self.blocks() {
            let mut is_there = false;
            for row in (0..rows).step_by(STEP) {
                let count = (rows - row).min(STEP);
                if !self.any_sees(row..row + count, start) {
                    continue;
                }
                let last = self.positions[row..row + count].iter().fold(start, |last, &p| last.max(p));
                let keys = (last + 1 - start).min(self.block()).next_multiple_of(GRAIN);
                let step = Step { start, row, count, keys };
                if !is_there {
                    self.planes_of_keys(isa, unit, start, &mut scratch.tiles.keys);
                    self.planes_of_values(isa, unit, start, &mut scratch.tiles.values);
                    is_there = true;
                }
                self.step(isa, unit, &ready, step, scratch);
            }
        }
    }

    /// Registers' columns that a head takes.
    fn chunks(&self) -> usize {
        self.padded_head.div_ceil(CHUNK)
    }

    fn resize(&self, scratch: &mut Scratch) {
        scratch.scores.resize(STEP * BLOCK);
        let tiles = &mut scratch.tiles;
        tiles.keys.resize(BLOCK / KEYS * self.chunks() * CHUNK_WORDS);
        tiles.values.resize(self.padded_head / KEYS * BLOCK_WORDS);
        tiles.weights.resize(2 * BLOCK_WORDS);
    }

    #[inline(always)]
    fn step<I: Isa>(
        &mut self,
        isa: I,
        unit: I::Tiles,
        ready: &<I::Tiles as Tiles<I>>::Ready,
        step: Step,
        scratch: &mut Scratch,
    ) {
        let Step { start, row, count, keys: seen } = step;
        let (key_scales, value_scales) = self.scales(start);
        let TileScratch { queries, keys, sums, .. } = &mut scratch.tiles;
        let chunks = self.chunks();
        let operands = Sixteens {
            left: &queries[row / GROUP * chunks * CHUNK_WORDS..],
            right: keys,
            count: seen / KEYS,
            apart: chunks,
            chunks,
        };
        let ahead = self.share_of_next_block(step);
        let mut take = Scores { isa, unit, scales: key_scales, scores: &mut scratch.scores, ahead };
        I::Tiles::multiply(ready, &operands, sums, &mut take);
        for first in (0..count).step_by(GROUP) {
            let counted = (row + first, (count - first).min(GROUP));
            let mut group = Group::of(isa, counted, seen, first * BLOCK, scratch);
            self.find_largest(isa, start, row + first, &mut group);
            softmax::weigh(isa, Form::Integers(value_scales), &mut group);
            softmax::end_weights(isa, Form::Integers(value_scales), &mut group);
        }
        for r in 0..count {
            let planes = &mut scratch.tiles.weights[r / GROUP * BLOCK_WORDS..][..BLOCK_WORDS];
            for chunk in 0..seen / CHUNK {
                let from = &scratch.scores[r * BLOCK + chunk * CHUNK..][..CHUNK];
                let at = place_of_row(chunk, r % GROUP);
                split_row(isa, unit, from, scratch.inverse[row + r], at, planes);
            }
        }
        let TileScratch { values, weights, sums, .. } = &mut scratch.tiles;
        let padded = self.padded_head;
        let operands = Sixteens {
            left: weights,
            right: values,
            count: padded / KEYS,
            apart: BLOCK / CHUNK,
            chunks: seen / CHUNK,
        };
        let (shrink, units) = (&scratch.shrink[row..][..count], &scratch.weights.units[row..][..count]);
        let out = &mut self.out[row * padded..][..count * padded];
        I::Tiles::multiply(ready, &operands, sums, &mut Values { isa, unit, padded, shrink, units, out });
    }

    /// Scales of keys and values of the block that begins at `start`.
    fn scales(&self, start: usize) -> (&[f32], &[f32]) {
        let (page, at, length) = (self.pages[start / PAGE], start % PAGE, self.block());
        (&sixteen(&page.keys).scales[at..][..length], &sixteen(&page.values).scales[at..][..length])
    }

    /// Keys and values of the next block, of which each step asks for its share: places and bytes for each sixteen keys of the step.
    fn share_of_next_block(&self, step: Step) -> [(*const u8, usize); 2] {
        let (next, sixteens) = (step.start + self.block(), self.block() / KEYS);
        let bytes = self.block() * self.padded_head * size_of::<i16>();
        let share = (bytes / self.positions.len().div_ceil(STEP)).next_multiple_of(64 * sixteens);
        let at = step.row / STEP * share;
        let of = |data: &KvData| match data.address(next % PAGE * self.padded_head) {
            Some(from) if at < bytes => (from.wrapping_add(at), share / sixteens),
            _ => (std::ptr::null(), 0),
        };
        match self.pages.get(next / PAGE) {
            Some(page) => [of(&page.keys), of(&page.values)],
            None => [(std::ptr::null(), 0); 2],
        }
    }

    #[inline(always)]
    fn planes_of_queries<I: Isa>(&self, isa: I, unit: I::Tiles, scratch: &mut Scratch) {
        let Scratch { queries, tiles, .. } = scratch;
        let each = self.chunks() * CHUNK_WORDS;
        tiles.queries.resize(self.positions.len().div_ceil(STEP) * 2 * each);
        for (row, query) in self.queries.chunks_exact(self.padded_head).enumerate() {
            let scale = kv::key_unit(isa, query);
            queries.units[row] = scale;
            let planes = &mut tiles.queries[row / GROUP * each..][..each];
            for (chunk, from) in query.chunks(CHUNK).enumerate() {
                split_row(isa, unit, from, 1.0 / scale, place_of_row(chunk, row % GROUP), planes);
            }
        }
    }

    #[inline(always)]
    fn planes_of_keys<I: Isa>(&self, isa: I, unit: I::Tiles, start: usize, planes: &mut [i32]) {
        let (padded, at) = (self.padded_head, start % PAGE);
        let pairs =
            &sixteen(&self.pages[start / PAGE].keys).pairs[at * padded / 2..][..self.block() * padded / 2];
        for (group, pairs) in pairs.chunks_exact(padded / 2 * KEYS).enumerate() {
            let planes = &mut planes[group * self.chunks() * CHUNK_WORDS..];
            for quad in 0..padded / 4 {
                let (first, last) = (quad * 2 * KEYS, (quad * 2 + 1) * KEYS);
                let quads = unit.quads(isa.w_load(&pairs[first..]), isa.w_load(&pairs[last..]));
                store_planes(isa, quads, place_of_columns(quad), planes);
            }
        }
    }

    #[inline(always)]
    fn planes_of_values<I: Isa>(&self, isa: I, unit: I::Tiles, start: usize, planes: &mut [i32]) {
        let (padded, at) = (self.padded_head, start % PAGE);
        let pairs =
            &sixteen(&self.pages[start / PAGE].values).pairs[at * padded / 2..][..self.block() * padded / 2];
        for quad in 0..self.block() / 4 {
            let (first, last) = (quad * 2 * padded, (quad * 2 + 1) * padded);
            for group in 0..padded / KEYS {
                let d = group * KEYS;
                let quads = unit.quads(isa.w_load(&pairs[first + d..]), isa.w_load(&pairs[last + d..]));
                store_planes(isa, quads, group * BLOCK_WORDS + place_of_columns(quad), planes);
            }
        }
    }
}

/// Makes scores of a step's sums.
struct Scores<'a, I: Isa> {
    isa: I,
    unit: I::Tiles,
    /// Of the block's keys.
    scales: &'a [f32],
    /// `[STEP, BLOCK]`.
    scores: &'a mut [f32],
    /// What is asked for meanwhile: places and bytes for each sixteen keys.
    ahead: [(*const u8, usize); 2],
}

impl<I: Isa> TakeSums for Scores<'_, I> {
    #[inline(always)]
    fn take(&mut self, sixteen: usize, sums: &PlaneSums) {
        let (isa, key) = (self.isa, sixteen * KEYS);
        for (from, each) in self.ahead {
            for line in (0..each).step_by(64) {
                isa.prefetch_far(from.wrapping_add(sixteen * each + line));
            }
        }
        let scale = isa.f_load(&self.scales[key..]);
        for group in 0..STEP / GROUP {
            let scores = &mut self.scores[group * GROUP * BLOCK..][..GROUP * BLOCK];
            for r in 0..GROUP {
                let sum = sum_of(isa, self.unit, &sums.0[group], r);
                isa.f_store(isa.f_mul(isa.f_from_w(sum), scale), &mut scores[r * BLOCK + key..]);
            }
        }
    }
}

/// Adds a step's sums of weighted values.
struct Values<'a, I: Isa> {
    isa: I,
    unit: I::Tiles,
    padded: usize,
    /// Of each query of the step: what its sums so far are multiplied by, and what a unit of its weights is worth.
    shrink: &'a [f32],
    units: &'a [f32],
    /// `[queries, padded]`.
    out: &'a mut [f32],
}

impl<I: Isa> TakeSums for Values<'_, I> {
    #[inline(always)]
    fn take(&mut self, sixteen: usize, sums: &PlaneSums) {
        let (isa, d) = (self.isa, sixteen * KEYS);
        for (group, sums) in sums.0.iter().enumerate() {
            let first = group * GROUP;
            for row in first..self.shrink.len().min(first + GROUP) {
                let out = &mut self.out[row * self.padded + d..][..KEYS];
                let so_far = isa.f_mul(isa.f_load(out), isa.f_splat(self.shrink[row]));
                let sum = isa.f_from_w(sum_of(isa, self.unit, sums, row - first));
                isa.f_store(isa.f_fma(sum, isa.f_splat(self.units[row]), so_far), out);
            }
        }
    }
}

/// The sums of row `r`.
#[inline(always)]
fn sum_of<I: Isa>(isa: I, unit: I::Tiles, planes: &[[[i32; 16]; 16]; 3], r: usize) -> I::W {
    unit.sum_of_planes([isa.w_load(&planes[0][r]), isa.w_load(&planes[1][r]), isa.w_load(&planes[2][r])])
}

fn sixteen(data: &KvData) -> &Sixteen {
    let KvData::Sixteen(data) = data else { unreachable!("of other types the unit multiplies none") };
    data
}

/// Up to 64 numbers times `inverse` as integers: their low bytes at `at` of the planes, their high ones where those belong, zeros for those that
/// are missing.
#[inline(always)]
fn split_row<I: Isa>(isa: I, unit: I::Tiles, from: &[f32], inverse: f32, at: usize, planes: &mut [i32]) {
    let inverse = isa.f_splat(inverse);
    let mut words = [isa.w_splat(0); 4];
    for v in 0..4 {
        if v * MAX_LANES < from.len() {
            words[v] = isa.f_to_w(isa.f_mul(isa.f_load(&from[v * MAX_LANES..]), inverse));
        }
    }
    store_planes(isa, unit.split(words), at, planes);
}

/// Stores the low bytes at `at` of the planes and the high ones where they belong.
#[inline(always)]
fn store_planes<I: Isa>(isa: I, [low, high]: [I::W; 2], at: usize, planes: &mut [i32]) {
    isa.w_store(low, &mut planes[at..]);
    isa.w_store(high, &mut planes[at + CHUNK_WORDS / 2..]);
}
