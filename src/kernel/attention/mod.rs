//! Attention over a paged KV cache: blocked, with the online softmax of FlashAttention
//! (Dao et al. 2022); no score matrix is materialised.
//!
//! Blocks of [`BLOCK`] keys start at fixed positions, and each query walks them in order with one order of operations, whatever other
//! queries share its tile. Quantized blocks are loaded as f32 once for all queries of a tile; 16-bit ones are multiplied as they are.
//!
//! Where keys are 16-bit integers, so are the queries they are multiplied with, and weights of such values: a query is scaled to
//! a norm of 32767, as keys are, and a block's weights, times their values' scales, to integers of at most 32767 whose sum leaves
//! room for the products ([`softmax`]). Sums of integers are exact, whatever the order.
//!
//! Where keys are bf16, so are the queries, and weights of bf16 values (the sum they are divided by is of the rounded ones): their
//! products are added two by two, by an instruction for it or to the same bits without.

mod products;
mod softmax;
mod tiles;

use std::ops::Range;

use super::Lines;
use super::kv::{self, KEYS, KvData, KvType, PAGE, padded_head};
use super::region::Region;
use crate::simd::{Isa, Kernel, Level, MAX_LANES, TileKernel, dispatch_at};
use products::{Elements, Integers, Pair, PairByFma, Products, Scores, Single, Sums, for_all_queries};
use tiles::{LEAST_QUERIES, TileScratch};

/// Keys whose scores are computed at once, and of which block-sparse attention sees all or none.
pub const GRAIN: usize = 64;

/// Keys that one softmax step takes, at most.
pub const BLOCK: usize = 2 * GRAIN;

/// Up to so many queries, keys and values of f32 are multiplied where they are; beyond, they are brought closer first.
const FEW: usize = 16;

/// Queries that should be computed at once: enough to share what is done for a block of keys, few enough to stay in the caches.
pub const FEWEST_QUERIES: usize = 64;

/// Up to so many, if there is enough to do for all threads.
pub fn most_queries(level: Level) -> usize {
    match level {
        Level::Amx => tiles::MOST_QUERIES,
        _ => FEWEST_QUERIES,
    }
}

/// Keys and values of [`PAGE`] positions of one KV head.
#[derive(Debug)]
pub struct HeadPage {
    /// `[PAGE / KEYS, padded_head, KEYS]`, unless pairs.
    pub keys: KvData,
    /// `[PAGE, padded_head]`, unless pairs.
    pub values: KvData,
}

impl HeadPage {
    /// Zeros of the types of `keys` and `values`, `padded` elements a head: [`Self::bytes`] of `region`.
    pub fn new(keys: KvType, values: KvType, padded: usize, region: &mut Region) -> Self {
        Self { keys: KvData::new(keys, padded, region), values: KvData::new(values, padded, region) }
    }

    /// Bytes of a page.
    pub fn bytes(keys: KvType, values: KvType, padded: usize) -> usize {
        keys.bytes(PAGE, padded) + values.bytes(PAGE, padded)
    }

    /// Writes key and value of position `at` of the page, `[padded_head]` each. A position comes after the one before it.
    pub fn store(&mut self, level: Level, at: usize, key: &[f32], value: &[f32]) {
        struct Store<'a>(&'a mut HeadPage, usize, &'a [f32], &'a [f32]);
        impl Kernel for Store<'_> {
            type Output = ();
            #[inline(always)]
            fn run<I: Isa>(self, isa: I) {
                let Self(page, at, key, value) = self;
                page.keys.store_key(isa, at, key);
                page.values.store_value(isa, at, value);
            }
        }
        dispatch_at(level, Store(self, at, key, value));
    }
}

/// Attention of a few queries of one KV head.
pub struct Attention<'a> {
    /// The KV head's pages, in order of position.
    pub pages: &'a [&'a HeadPage],
    /// `[rows, padded_head]`, rotated and scaled by log2(e)/√head; zeros beyond the head.
    pub queries: &'a [f32],
    /// Each query's position: it sees keys up to and including its own.
    pub positions: &'a [usize],
    pub padded_head: usize,
    /// A query sees its last `window` positions, itself included.
    pub window: usize,
    /// Which blocks of keys each query sees; all, if none.
    pub mask: Option<BlockMask<'a>>,
    pub scratch: &'a mut Scratch,
    /// `[rows, padded_head]`.
    pub out: &'a mut [f32],
}

/// Block-sparse attention's pattern.
#[derive(Clone, Copy)]
pub struct BlockMask<'a> {
    /// Positions of a block, a multiple of [`GRAIN`].
    pub block: usize,
    /// Blocks back that are seen, the query's own included.
    pub local: usize,
    /// Of the blocks before, number `k` is seen if `k + phase + 1` is a multiple of it.
    pub stride: usize,
    /// Each query's phase.
    pub phases: &'a [usize],
}

impl BlockMask<'_> {
    /// Whether query number `row`, at `position`, sees the block that `key` is in; neither lies before the other.
    #[inline(always)]
    fn sees(&self, row: usize, position: usize, key: usize) -> bool {
        let (query, key) = (position / self.block, key / self.block);
        query.saturating_sub(key) < self.local || (key + self.phases[row] + 1).is_multiple_of(self.stride)
    }
}

/// Reused between calls of one thread.
#[derive(Default)]
pub struct Scratch {
    /// `[GRAIN / KEYS, padded_head, KEYS]` keys, then `[BLOCK, padded_head]` values.
    loaded: Lines<f32>,
    /// `[rows, BLOCK]`: scores, in the queries' units, then weights.
    scores: Lines<f32>,
    /// Each query's largest score so far, the sum of its weights relative to that, and what its sums are multiplied by when the largest
    /// score has grown; whole vectors of queries.
    largest: Lines<f32>,
    sum: Lines<f32>,
    shrink: Lines<f32>,
    lanes: softmax::Lanes,
    /// How many units of weight 1 is, if weights become integers; whole vectors of queries.
    inverse: Lines<f32>,
    /// Queries as bf16 has them, if keys are.
    rounded: Lines<f32>,
    queries: Pairs,
    weights: Pairs,
    tiles: TileScratch,
}

/// 16-bit numbers, two in a word, that such keys and values are multiplied with.
#[derive(Default)]
struct Pairs {
    /// `[rows, padded_head / 2]` of queries, `[rows, BLOCK / 2]` of weights.
    words: Lines<i32>,
    /// What a unit of each row is worth, 1 where they are no integers; whole vectors of rows.
    units: Lines<f32>,
}

impl Attention<'_> {
    /// Computes `out`.
    pub fn compute(self, level: Level) {
        assert_eq!(self.padded_head, padded_head(self.padded_head));
        dispatch_at(level, self);
    }

    /// The keys of the block that begins at `start` that query number `row`, at `position`, sees, counted within the block.
    #[inline(always)]
    fn visible(&self, row: usize, position: usize, start: usize) -> (usize, usize) {
        // (A closure would be a function of its own, for which a kernel has to put all its vectors aside.)
        if let Some(mask) = &self.mask
            && !mask.sees(row, position, start)
        {
            return (0, 0);
        }
        let low = (position + 1).saturating_sub(self.window).saturating_sub(start).min(self.block());
        let high = (position + 1).saturating_sub(start).min(self.block());
        (low.min(high), high)
    }
}

impl Attention<'_> {
    /// Keys that one softmax step takes: one grain, where grains are seen or not.
    #[inline(always)]
    fn block(&self) -> usize {
        if self.mask.is_some() { GRAIN } else { BLOCK }
    }

    /// The first positions of all blocks that may be seen.
    fn blocks(&self) -> std::iter::StepBy<std::ops::RangeInclusive<usize>> {
        let last = self.positions.iter().copied().max().unwrap_or(0);
        let first = self.positions.iter().copied().min().unwrap_or(0);
        let start = (first + 1).saturating_sub(self.window) / self.block() * self.block();
        (start..=last).step_by(self.block())
    }

    /// Whether any of the queries number `rows` sees a key of the block that begins at `start`.
    fn any_sees(&self, rows: Range<usize>, start: usize) -> bool {
        rows.into_iter().any(|row| {
            let (low, high) = self.visible(row, self.positions[row], start);
            low < high
        })
    }
}

impl Attention<'_> {
    /// Adds up all weighted values.
    #[inline(always)]
    fn by_vectors<I: Isa>(&mut self, isa: I, scratch: &mut Scratch) {
        let rows = self.positions.len();
        scratch.loaded.resize(BLOCK * self.padded_head);
        scratch.scores.resize(rows * BLOCK);
        scratch.weights.words.resize(rows * BLOCK / 2);
        self.prepare_queries(isa, scratch);
        let end = self.positions.iter().copied().max().unwrap_or(0) + 1;
        for start in self.blocks() {
            if self.mask.is_some() && !self.any_sees(0..rows, start) {
                continue;
            }
            let keys = (end - start).min(self.block());
            for at in (0..keys).step_by(GRAIN) {
                isa.wide_tile(GrainScores { of: self, start, at, scratch });
            }
            self.softmax_step(isa, start, keys.next_multiple_of(GRAIN), scratch);
            isa.tall_tile(BlockSums { of: self, start, keys, scratch });
        }
    }

    /// Makes of the queries what the keys' type is multiplied with.
    #[inline(always)]
    fn prepare_queries<I: Isa>(&self, isa: I, scratch: &mut Scratch) {
        let Scratch { rounded, queries, .. } = scratch;
        match &self.pages[0].keys {
            KvData::Sixteen(_) => {
                queries.words.resize(self.queries.len() / 2);
                for (row, query) in self.queries.chunks_exact(self.padded_head).enumerate() {
                    let unit = kv::key_unit(isa, query);
                    queries.units[row] = unit;
                    let words = &mut queries.words[row * self.padded_head / 2..][..self.padded_head / 2];
                    kv::store_integers(isa, query, 1.0 / unit, words);
                }
            }
            KvData::Bf16(_) => {
                rounded.resize(self.queries.len());
                queries.words.resize(self.queries.len() / 2);
                let mut i = 0;
                while i < self.queries.len() {
                    let query = isa.f_round_bf16(isa.f_load(&self.queries[i..]));
                    isa.f_store(query, &mut rounded[i..]);
                    isa.f_store_bf16(query, &mut queries.words[i / 2..]);
                    i += I::LANES;
                }
            }
            KvData::F32(_) | KvData::Q8_0(..) | KvData::Q4_0(..) => {}
        }
    }
}

impl Kernel for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (rows, padded) = (self.positions.len(), self.padded_head);
        assert!(self.queries.len() == rows * padded && self.out.len() == rows * padded);
        let mut scratch = std::mem::take(self.scratch);
        let Scratch { largest, sum, shrink, inverse, queries, weights, .. } = &mut scratch;
        for lines in [&mut *largest, sum, shrink, inverse, &mut queries.units, &mut weights.units] {
            lines.resize(rows.next_multiple_of(MAX_LANES));
        }
        largest.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        queries.units.fill(1.0);
        self.out.fill(0.0);
        match (isa.tiles(), self.pages[0]) {
            (Some(unit), HeadPage { keys: KvData::Sixteen(_), values: KvData::Sixteen(_) })
                if rows >= LEAST_QUERIES =>
            {
                self.by_tiles(isa, unit, &mut scratch);
            }
            _ => self.by_vectors(isa, &mut scratch),
        }
        for row in 0..rows {
            let inverse = isa.f_splat(1.0 / scratch.sum[row]);
            let out = &mut self.out[row * padded..(row + 1) * padded];
            let mut d = 0;
            while d < padded {
                isa.f_store(isa.f_mul(isa.f_load(&out[d..]), inverse), &mut out[d..]);
                d += I::LANES;
            }
        }
        *self.scratch = scratch;
    }
}

/// Scores of all queries with the keys of a grain, number `at / GRAIN` of the block that begins at `start`.
struct GrainScores<'a, 'b> {
    of: &'a Attention<'b>,
    start: usize,
    at: usize,
    scratch: &'a mut Scratch,
}

impl TileKernel for GrainScores<'_, '_> {
    #[inline(always)]
    fn run<I: Isa, const V: usize, const Q: usize>(self, isa: I) {
        self.of.grain_scores::<I, V, Q>(isa, self.start, self.at, self.scratch);
    }
}

/// Adds the weighted values of the first `keys` positions from `start` on to all queries' sums.
struct BlockSums<'a, 'b> {
    of: &'a mut Attention<'b>,
    start: usize,
    keys: usize,
    scratch: &'a mut Scratch,
}

impl TileKernel for BlockSums<'_, '_> {
    #[inline(always)]
    fn run<I: Isa, const V: usize, const Q: usize>(self, isa: I) {
        self.of.block_sums::<I, V, Q>(isa, self.start, self.keys, self.scratch);
    }
}

impl Attention<'_> {
    /// As [`GrainScores`] says.
    #[inline(always)]
    fn grain_scores<I: Isa, const V: usize, const Q: usize>(
        &self,
        isa: I,
        start: usize,
        at: usize,
        scratch: &mut Scratch,
    ) {
        let (few, padded) = (self.positions.len() <= FEW, self.padded_head);
        let Scratch { loaded, scores, rounded, queries, .. } = scratch;
        let scores = &mut scores[at..];
        let (page, at) = (self.pages[start / PAGE], start % PAGE + at);
        let grain = at * padded..(at + GRAIN) * padded;
        let next = page.values.address(at * padded);
        match &page.keys {
            KvData::F32(keys) if few => {
                let keys = Elements { all: &keys[grain], next };
                return self.scores::<I, _, 2, 4>(isa, Single, self.queries, keys, scores);
            }
            KvData::Sixteen(keys) => {
                let integers = Integers::Keys(&keys.scales[at..at + GRAIN]);
                let keys = Elements { all: &keys.pairs[grain.start / 2..grain.end / 2], next };
                return self.scores::<I, _, V, Q>(isa, integers, &queries.words, keys, scores);
            }
            KvData::Bf16(keys) => {
                let keys = Elements { all: &keys[grain.start / 2..grain.end / 2], next };
                return match isa.dot_bf16() {
                    Some(dot) => self.scores::<I, _, 2, 8>(isa, Pair(dot), &queries.words, keys, scores),
                    None => {
                        let queries = rounded.as_chunks().0;
                        self.scores::<I, _, V, Q>(isa, PairByFma, queries, keys, scores);
                    }
                };
            }
            _ => page.keys.load_keys(isa, at / KEYS, GRAIN / KEYS, padded, loaded),
        }
        let keys = Elements { all: &loaded[..], next: None };
        self.scores::<I, _, V, Q>(isa, Single, self.queries, keys, scores);
    }

    /// Scores of `queries`, `[rows, padded_head / STEP]`, with `keys`, a grain.
    #[inline(always)]
    fn scores<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
        &self,
        isa: I,
        products: P,
        queries: &[P::Factor],
        keys: Elements<P::Stored>,
        scores: &mut [f32],
    ) {
        let steps = self.padded_head / P::STEP;
        let mut work = Scores::<I, P, V, Q> { isa, products, queries, keys, steps, scores };
        for_all_queries::<Q>(self.positions.len(), &mut work);
    }

    /// As [`BlockSums`] says.
    #[inline(always)]
    fn block_sums<I: Isa, const V: usize, const Q: usize>(
        &mut self,
        isa: I,
        start: usize,
        keys: usize,
        scratch: &mut Scratch,
    ) {
        let (few, padded) = (self.positions.len() <= FEW, self.padded_head);
        let (page, at) = (self.pages[start / PAGE], start % PAGE);
        let Scratch { loaded, scores, weights, .. } = scratch;
        let block = at * padded..(at + keys) * padded;
        // What is missing from the last pair weighs nothing.
        let pairs = at / 2 * padded..(at + keys).div_ceil(2) * padded;
        let after = start + self.block();
        let next = match self.pages.get(after / PAGE) {
            Some(page) => page.keys.address(after % PAGE * padded),
            None => None,
        };
        match &page.values {
            KvData::F32(values) if few => {
                let values = Elements { all: &values[block], next };
                return self.sums::<I, _, 2, 4>(isa, Single, scores, values);
            }
            KvData::Sixteen(values) => {
                let integers = Integers::Weights(&weights.units);
                let values = Elements { all: &values.pairs[pairs], next };
                return self.sums::<I, _, V, Q>(isa, integers, &weights.words, values);
            }
            KvData::Bf16(values) => {
                let values = Elements { all: &values[pairs], next };
                return match isa.dot_bf16() {
                    Some(dot) => self.sums::<I, _, 2, 8>(isa, Pair(dot), &weights.words, values),
                    None => self.sums::<I, _, V, Q>(isa, PairByFma, scores.as_chunks().0, values),
                };
            }
            _ => page.values.load_values(isa, at, keys, padded, loaded),
        }
        let values = Elements { all: &loaded[..keys * padded], next: None };
        self.sums::<I, _, V, Q>(isa, Single, scores, values);
    }

    /// Adds `values` to all queries' sums, with `weights`, `[rows, BLOCK / STEP]`.
    #[inline(always)]
    fn sums<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
        &mut self,
        isa: I,
        products: P,
        weights: &[P::Factor],
        values: Elements<P::Stored>,
    ) {
        let (padded, out) = (self.padded_head, &mut *self.out);
        let mut work = Sums::<I, P, V, Q> { isa, products, weights, values, padded, out };
        for_all_queries::<Q>(self.positions.len(), &mut work);
    }
}
