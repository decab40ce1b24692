//! Attention by a unit that multiplies matrices of bytes ([`Isa::tiles`]), where keys and values are 16-bit integers.
//!
//! A *step* is a group of sixteen queries with a block of keys. The unit and vectors take turns: beside the unit, vectors make no more than one
//! product a cycle, so that nothing is gained by having them work at once.

use super::softmax::{self, Form, Group};
use super::{Attention, BLOCK, Scratch};
use crate::kernel::Lines;
use crate::kernel::kv::{self, KEYS, KvData, PAGE, Sixteen};
use crate::simd::{CHUNK_WORDS, Isa, MAX_LANES, PlaneSums, Tiles, place_of_columns, place_of_row};

/// Splitting a block's keys and values into planes takes as long as two or three steps. With fewer queries to share that, vectors are faster.
pub(super) const LEAST_QUERIES: usize = 48;

/// With so many it hardly matters any more.
pub(super) const MOST_QUERIES: usize = 512;

/// Queries of a step.
const GROUP: usize = 16;

/// Columns of [`CHUNK_WORDS`].
const CHUNK: usize = 64;

/// Keys, or elements of values, that are multiplied at once.
const UNIT: usize = 32;

const _: () = assert!(GROUP == MAX_LANES && GROUP == KEYS && BLOCK == CHUNK && BLOCK == 2 * UNIT);

/// Reused between calls of one thread.
#[derive(Default)]
pub(super) struct TileScratch {
    /// Planes of the queries, `[groups, chunks]` times [`CHUNK_WORDS`].
    queries: Lines<i32>,
    /// Of a block's keys, `[BLOCK / 16, chunks]`, and values, `[padded / 16]`.
    keys: Lines<i32>,
    values: Lines<i32>,
    /// Of a step's weights.
    weights: Lines<i32>,
    /// `[BLOCK / UNIT]`, or `[padded / UNIT]`.
    sums: Vec<PlaneSums>,
}

/// The queries from `row` on with block `start / BLOCK`.
#[derive(Clone, Copy)]
struct Step {
    start: usize,
    row: usize,
    /// How many queries there are.
    count: usize,
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
            for row in (0..rows).step_by(GROUP) {
                let step = Step { start, row, count: (rows - row).min(GROUP) };
                if !self.any_sees(row..row + step.count, start) {
                    continue;
                }
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
        scratch.scores.resize(GROUP * BLOCK);
        let tiles = &mut scratch.tiles;
        tiles.keys.resize(BLOCK / KEYS * self.chunks() * CHUNK_WORDS);
        tiles.values.resize(self.padded_head / KEYS * CHUNK_WORDS);
        tiles.weights.resize(CHUNK_WORDS);
        tiles.sums.resize((self.padded_head / UNIT).max(BLOCK / UNIT), PlaneSums::default());
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
        let Step { start, row, count } = step;
        let TileScratch { queries, keys, sums, .. } = &mut scratch.tiles;
        let queries = &queries[row / GROUP * self.chunks() * CHUNK_WORDS..];
        I::Tiles::multiply(ready, queries, keys, self.chunks(), &mut sums[..BLOCK / UNIT]);
        self.take_scores(isa, unit, step, sums, &mut scratch.scores);
        let form = Form::Integers(&sixteen(&self.pages[start / PAGE].values).scales[start % PAGE..][..BLOCK]);
        let mut group = Group::of(isa, row, count, 0, scratch);
        self.find_largest(isa, start, row, &mut group);
        softmax::weigh(isa, form, &mut group);
        softmax::end_weights(isa, form, &mut group);
        let TileScratch { values, weights, sums, .. } = &mut scratch.tiles;
        for r in 0..count {
            let from = &scratch.scores[r * BLOCK..][..BLOCK];
            split_row(isa, unit, from, scratch.inverse[row + r], place_of_row(0, r), weights);
        }
        let sums = &mut sums[..self.padded_head / UNIT];
        I::Tiles::multiply(ready, weights, values, 1, sums);
        self.take_sums(isa, unit, step, sums, &scratch.shrink[row..], &scratch.weights.units[row..]);
    }

    /// Keys and values of the next block, of which each step asks for its share: places and bytes.
    fn share_of_next_block(&self, step: Step) -> [(*const u8, usize); 2] {
        let (next, bytes) = (step.start + BLOCK, BLOCK * self.padded_head * size_of::<i16>());
        let share = (bytes / self.positions.len().div_ceil(GROUP)).next_multiple_of(64 * BLOCK / KEYS);
        let at = step.row / GROUP * share;
        let of = |data: &KvData| match data.address(next % PAGE * self.padded_head) {
            Some(from) if at < bytes => (from.wrapping_add(at), share),
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
        tiles.queries.resize(self.positions.len().div_ceil(GROUP) * each);
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
        let pairs = &sixteen(&self.pages[start / PAGE].keys).pairs[at * padded / 2..][..BLOCK * padded / 2];
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
        let pairs = &sixteen(&self.pages[start / PAGE].values).pairs[at * padded / 2..][..BLOCK * padded / 2];
        for quad in 0..BLOCK / 4 {
            let (first, last) = (quad * 2 * padded, (quad * 2 + 1) * padded);
            for group in 0..padded / KEYS {
                let d = group * KEYS;
                let quads = unit.quads(isa.w_load(&pairs[first + d..]), isa.w_load(&pairs[last + d..]));
                store_planes(isa, quads, group * CHUNK_WORDS + place_of_columns(quad), planes);
            }
        }
    }

    /// Makes scores of the step's sums.
    #[inline(always)]
    fn take_scores<I: Isa>(
        &self,
        isa: I,
        unit: I::Tiles,
        step: Step,
        sums: &[PlaneSums],
        scores: &mut [f32],
    ) {
        let scales = &sixteen(&self.pages[step.start / PAGE].keys).scales[step.start % PAGE..][..BLOCK];
        let scores = &mut scores[..GROUP * BLOCK];
        let ahead = self.share_of_next_block(step);
        for key in (0..BLOCK).step_by(KEYS) {
            for (from, bytes) in ahead {
                let quarter = bytes / (BLOCK / KEYS);
                for line in (0..quarter).step_by(64) {
                    isa.prefetch_far(from.wrapping_add(key / KEYS * quarter + line));
                }
            }
            let planes = &sums[key / UNIT].0[key / KEYS % 2];
            let scale = isa.f_load(&scales[key..]);
            for r in 0..GROUP {
                let score = isa.f_mul(isa.f_from_w(sum_of(isa, unit, planes, r)), scale);
                isa.f_store(score, &mut scores[r * BLOCK + key..]);
            }
        }
    }

    /// Adds the step's sums of weighted values.
    #[inline(always)]
    fn take_sums<I: Isa>(
        &mut self,
        isa: I,
        unit: I::Tiles,
        step: Step,
        sums: &[PlaneSums],
        shrink: &[f32],
        units: &[f32],
    ) {
        let padded = self.padded_head;
        let (shrink, units) = (&shrink[..step.count], &units[..step.count]);
        let out = &mut self.out[step.row * padded..][..step.count * padded];
        for d in (0..padded).step_by(KEYS) {
            let planes = &sums[d / UNIT].0[d / KEYS % 2];
            for r in 0..step.count {
                let out = &mut out[r * padded + d..][..KEYS];
                let so_far = isa.f_mul(isa.f_load(out), isa.f_splat(shrink[r]));
                let sum = isa.f_from_w(sum_of(isa, unit, planes, r));
                isa.f_store(isa.f_fma(sum, isa.f_splat(units[r]), so_far), out);
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
