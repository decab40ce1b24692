//! Attention over a paged KV cache: blocked, with the online softmax of FlashAttention
//! (Dao et al. 2022); no score matrix is materialised.
//!
//! Blocks of [`BLOCK`] keys start at fixed positions; a block is loaded as f32 once for all queries of a tile, and
//! each query walks the blocks in order with one order of operations, whatever other queries share its tile.
//!
//! Where keys are bf16, so are the queries they are multiplied with, and weights of bf16 values (the sum they are divided by is of
//! the rounded ones): their products are added two by two, by an instruction for it or to the same bits without.

use super::Lines;
use super::float::{F16, F32, Float};
use super::kv::{KEYS, KvData, PAGE, padded_head};
use crate::simd::{DotBf16, Isa, IsaExt, Kernel, Level, MAX_LANES, TileKernel, dispatch_at};

/// Keys that one softmax step takes.
pub const BLOCK: usize = 64;

/// Up to so many queries, keys and values are converted as they are multiplied, for every four anew; beyond, once for all of them.
const FEW: usize = 16;

/// Keys and values of [`PAGE`] positions of one KV head.
#[derive(Clone, Debug)]
pub struct HeadPage {
    /// `[PAGE / KEYS, padded_head, KEYS]`, unless pairs.
    pub keys: KvData,
    /// `[PAGE, padded_head]`, unless pairs.
    pub values: KvData,
}

impl HeadPage {
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
    /// `[rows, padded_head]`, rotated and scaled by 1/√head; zeros beyond the head.
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
    /// Positions of a block, a multiple of [`BLOCK`].
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
    /// `[BLOCK / KEYS, padded_head, KEYS]` keys, then `[BLOCK, padded_head]` values.
    loaded: Lines<f32>,
    /// `[rows, BLOCK]`.
    scores: Lines<f32>,
    largest: Vec<f32>,
    sum: Vec<f32>,
    /// Queries as bf16 has them, if keys are.
    rounded: Lines<f32>,
    pairs: Pairs,
}

/// What [`DotBf16`] multiplies keys and values with, two in a word.
#[derive(Default)]
struct Pairs {
    /// `[rows, padded_head / 2]`.
    queries: Lines<i32>,
    /// `[rows, BLOCK / 2]`.
    weights: Lines<i32>,
}

impl Attention<'_> {
    /// Computes `out`.
    pub fn compute(self, level: Level) {
        assert_eq!(self.padded_head, padded_head(self.padded_head));
        dispatch_at(level, self);
    }

    /// The keys of block `start / BLOCK` that query number `row`, at `position`, sees, counted within the block.
    #[inline(always)]
    fn visible(&self, row: usize, position: usize, start: usize) -> (usize, usize) {
        if self.mask.is_some_and(|mask| !mask.sees(row, position, start)) {
            return (0, 0);
        }
        let low = (position + 1).saturating_sub(self.window).saturating_sub(start).min(BLOCK);
        let high = (position + 1).saturating_sub(start).min(BLOCK);
        (low.min(high), high)
    }
}

impl Attention<'_> {
    /// Whether any of the queries sees a key of block `start / BLOCK`.
    fn any_sees(&self, start: usize) -> bool {
        self.positions.iter().enumerate().any(|(row, &position)| {
            let (low, high) = self.visible(row, position, start);
            low < high
        })
    }
}

impl Attention<'_> {
    /// Rounds the queries if keys are bf16.
    #[inline(always)]
    fn round_queries<I: Isa>(&self, isa: I, scratch: &mut Scratch) {
        if !matches!(self.pages[0].keys, KvData::Bf16(_)) {
            return;
        }
        let Scratch { rounded, pairs, .. } = scratch;
        rounded.resize(self.queries.len());
        pairs.queries.resize(self.queries.len() / 2);
        let mut i = 0;
        while i < self.queries.len() {
            let query = isa.f_round_bf16(isa.f_load(&self.queries[i..]));
            isa.f_store(query, &mut rounded[i..]);
            isa.f_store_bf16(query, &mut pairs.queries[i / 2..]);
            i += I::LANES;
        }
    }
}

impl Kernel for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        isa.tile(self);
    }
}

impl TileKernel for Attention<'_> {
    #[inline(always)]
    fn run<I: Isa, const V: usize, const Q: usize>(mut self, isa: I) {
        let (rows, padded) = (self.positions.len(), self.padded_head);
        assert!(self.queries.len() == rows * padded && self.out.len() == rows * padded);
        let mut scratch = std::mem::take(self.scratch);
        scratch.loaded.resize(BLOCK * padded);
        scratch.scores.resize(rows * BLOCK);
        scratch.largest.clear();
        scratch.largest.resize(rows, f32::NEG_INFINITY);
        scratch.sum.clear();
        scratch.sum.resize(rows, 0.0);
        scratch.pairs.weights.resize(rows * BLOCK / 2);
        self.round_queries(isa, &mut scratch);
        self.out.fill(0.0);

        let last = self.positions.iter().copied().max().unwrap_or(0);
        let first = self.positions.iter().copied().min().unwrap_or(0);
        let start = (first + 1).saturating_sub(self.window) / BLOCK * BLOCK;
        for start in (start..=last).step_by(BLOCK) {
            if self.mask.is_some() && !self.any_sees(start) {
                continue;
            }
            self.block_scores::<I, V, Q>(isa, start, &mut scratch);
            self.softmax_step(isa, start, &mut scratch);
            self.block_sums::<I, V, Q>(isa, start, (last + 1 - start).min(BLOCK), &mut scratch);
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

/// What a step of a sum multiplies: an element, or a pair of them.
trait Products<I: Isa>: Copy {
    /// Elements of a step.
    const STEP: usize;
    /// A step's elements of one key or value, as they are stored.
    type Stored: Copy;
    /// The same for a vector of keys or values.
    type Lanes: Copy;
    /// A step's elements of a query, or weights.
    type Factor;
    fn none(self, isa: I) -> Self::Lanes;
    fn load(self, isa: I, from: &[Self::Stored]) -> Self::Lanes;
    /// Adds the products of `lanes` with `factor`.
    fn add<const V: usize>(
        self,
        isa: I,
        sum: &mut [I::F; V],
        lanes: &[Self::Lanes; V],
        factor: &Self::Factor,
    );
}

/// One element at a time.
#[derive(Clone, Copy)]
struct Single<W: Float>(W);

impl<I: Isa, W: Float> Products<I> for Single<W> {
    const STEP: usize = 1;
    type Stored = W::Bits;
    type Lanes = I::F;
    type Factor = f32;
    #[inline(always)]
    fn none(self, isa: I) -> I::F {
        isa.f_splat(0.0)
    }
    #[inline(always)]
    fn load(self, isa: I, from: &[W::Bits]) -> I::F {
        W::load(isa, from)
    }
    #[inline(always)]
    fn add<const V: usize>(self, isa: I, sum: &mut [I::F; V], lanes: &[I::F; V], factor: &f32) {
        let factor = isa.f_splat(*factor);
        for v in 0..V {
            sum[v] = isa.f_fma(factor, lanes[v], sum[v]);
        }
    }
}

/// Pairs of bf16 by FMAs, in the order that [`DotBf16`] has.
#[derive(Clone, Copy)]
struct PairByFma;

impl<I: Isa> Products<I> for PairByFma {
    const STEP: usize = 2;
    type Stored = i32;
    type Lanes = I::W;
    type Factor = [f32; 2];
    #[inline(always)]
    fn none(self, isa: I) -> I::W {
        isa.w_splat(0)
    }
    #[inline(always)]
    fn load(self, isa: I, from: &[i32]) -> I::W {
        isa.w_load(from)
    }
    #[inline(always)]
    fn add<const V: usize>(self, isa: I, sum: &mut [I::F; V], lanes: &[I::W; V], factor: &[f32; 2]) {
        let (low, high) = (isa.f_splat(factor[0]), isa.f_splat(factor[1]));
        for v in 0..V {
            sum[v] = isa.f_fma(high, isa.f_high_bf16(lanes[v]), sum[v]);
            sum[v] = isa.f_fma(low, isa.f_low_bf16(lanes[v]), sum[v]);
        }
    }
}

/// Pairs of bf16 by an instruction for them.
#[derive(Clone, Copy)]
struct Pair<D>(D);

impl<I: Isa, D: DotBf16<I>> Products<I> for Pair<D> {
    const STEP: usize = 2;
    type Stored = i32;
    type Lanes = I::W;
    type Factor = i32;
    #[inline(always)]
    fn none(self, isa: I) -> I::W {
        isa.w_splat(0)
    }
    #[inline(always)]
    fn load(self, isa: I, from: &[i32]) -> I::W {
        isa.w_load(from)
    }
    #[inline(always)]
    fn add<const V: usize>(self, _isa: I, sum: &mut [I::F; V], lanes: &[I::W; V], factor: &i32) {
        self.0.add(sum, lanes, factor);
    }
}

/// Keys or values of a block: as they are stored, or widened to f32.
struct Elements<'a, T> {
    all: &'a [T],
    /// What is needed after them, as many bytes: asked for meanwhile.
    next: Option<*const u8>,
}

impl<T> Elements<'_, T> {
    /// Asks for what is needed after `all[i]` if a cache line begins there.
    #[inline(always)]
    fn ask_ahead<I: Isa>(&self, isa: I, i: usize) {
        if let Some(next) = self.next
            && (i * size_of::<T>()).is_multiple_of(64)
        {
            isa.prefetch_far(next.wrapping_add(i * size_of::<T>()));
        }
    }
}

impl Attention<'_> {
    /// Scores of all queries with the keys of block `start / BLOCK`.
    #[inline(always)]
    fn block_scores<I: Isa, const V: usize, const Q: usize>(
        &self,
        isa: I,
        start: usize,
        scratch: &mut Scratch,
    ) {
        let (few, padded) = (self.positions.len() <= FEW, self.padded_head);
        let (page, at) = (self.pages[start / PAGE], start % PAGE);
        let Scratch { loaded, scores, rounded, pairs, .. } = scratch;
        let block = at * padded..(at + BLOCK) * padded;
        let next = page.values.address(at * padded);
        match &page.keys {
            KvData::F32(keys) if few => {
                let keys = Elements { all: &keys[block], next };
                return self.scores::<I, _, 2, 4>(isa, Single(F32), self.queries, &keys, scores);
            }
            KvData::F16(keys) if few => {
                let keys = Elements { all: &keys[block], next };
                return self.scores::<I, _, 2, 4>(isa, Single(F16), self.queries, &keys, scores);
            }
            KvData::Bf16(keys) => {
                let keys = Elements { all: &keys[block.start / 2..block.end / 2], next };
                return match isa.dot_bf16() {
                    Some(dot) => self.scores::<I, _, 2, 8>(isa, Pair(dot), &pairs.queries, &keys, scores),
                    None => {
                        let queries = rounded.as_chunks().0;
                        self.scores::<I, _, V, Q>(isa, PairByFma, queries, &keys, scores);
                    }
                };
            }
            _ => page.keys.load_keys(isa, at / KEYS, BLOCK / KEYS, padded, loaded),
        }
        let keys = Elements { all: &loaded[..], next: None };
        self.scores::<I, _, V, Q>(isa, Single(F32), self.queries, &keys, scores);
    }

    /// Scores of `queries`, `[rows, padded_head / STEP]`, with `keys`, a block.
    #[inline(always)]
    fn scores<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
        &self,
        isa: I,
        products: P,
        queries: &[P::Factor],
        keys: &Elements<P::Stored>,
        scores: &mut [f32],
    ) {
        let (rows, steps) = (self.positions.len(), self.padded_head / P::STEP);
        let mut row = 0;
        while row + Q <= rows {
            scores_of::<I, P, V, Q>(isa, products, queries, keys, steps, row, scores);
            row += Q;
        }
        while row < rows {
            match rows - row {
                1 => scores_of::<I, P, 2, 1>(isa, products, queries, keys, steps, row, scores),
                2 => scores_of::<I, P, 2, 2>(isa, products, queries, keys, steps, row, scores),
                3 => scores_of::<I, P, 2, 3>(isa, products, queries, keys, steps, row, scores),
                _ => scores_of::<I, P, 2, 4>(isa, products, queries, keys, steps, row, scores),
            }
            row += 4;
        }
    }

    /// Adds the weighted values of the first `keys` positions of block `start / BLOCK` to all queries' sums.
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
        let Scratch { loaded, scores, pairs, .. } = scratch;
        let block = at * padded..(at + keys) * padded;
        let after = start + BLOCK;
        let next = match self.pages.get(after / PAGE) {
            Some(page) => page.keys.address(after % PAGE * padded),
            None => None,
        };
        match &page.values {
            KvData::F32(values) if few => {
                let values = Elements { all: &values[block], next };
                return self.sums::<I, _, 2, 4>(isa, Single(F32), scores, &values);
            }
            KvData::F16(values) if few => {
                let values = Elements { all: &values[block], next };
                return self.sums::<I, _, 2, 4>(isa, Single(F16), scores, &values);
            }
            KvData::Bf16(values) => {
                // What is missing from the last pair weighs nothing.
                let block = at / 2 * padded..(at + keys).div_ceil(2) * padded;
                let values = Elements { all: &values[block], next };
                return match isa.dot_bf16() {
                    Some(dot) => self.sums::<I, _, 2, 8>(isa, Pair(dot), &pairs.weights, &values),
                    None => self.sums::<I, _, V, Q>(isa, PairByFma, scores.as_chunks().0, &values),
                };
            }
            _ => page.values.load_values(isa, at, keys, padded, loaded),
        }
        let values = Elements { all: &loaded[..keys * padded], next: None };
        self.sums::<I, _, V, Q>(isa, Single(F32), scores, &values);
    }

    /// Adds `values` to all queries' sums, with `weights`, `[rows, BLOCK / STEP]`.
    #[inline(always)]
    fn sums<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
        &mut self,
        isa: I,
        products: P,
        weights: &[P::Factor],
        values: &Elements<P::Stored>,
    ) {
        let (rows, padded) = (self.positions.len(), self.padded_head);
        let mut row = 0;
        while row + Q <= rows {
            weighted_sums::<I, P, V, Q>(isa, products, weights, values, padded, row, self.out);
            row += Q;
        }
        while row < rows {
            match rows - row {
                1 => weighted_sums::<I, P, 2, 1>(isa, products, weights, values, padded, row, self.out),
                2 => weighted_sums::<I, P, 2, 2>(isa, products, weights, values, padded, row, self.out),
                3 => weighted_sums::<I, P, 2, 3>(isa, products, weights, values, padded, row, self.out),
                _ => weighted_sums::<I, P, 2, 4>(isa, products, weights, values, padded, row, self.out),
            }
            row += 4;
        }
    }
}

/// Scores of the `Q` queries from `row` on, `steps` factors each, with all keys of a block, `V` vectors of keys at a time.
#[inline(always)]
fn scores_of<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
    isa: I,
    products: P,
    queries: &[P::Factor],
    keys: &Elements<P::Stored>,
    steps: usize,
    row: usize,
    scores: &mut [f32],
) {
    const { assert!(BLOCK.is_multiple_of(V * MAX_LANES)) };
    let mut query = [&queries[..0]; Q];
    for q in 0..Q {
        query[q] = &queries[(row + q) * steps..][..steps];
    }
    let scores = &mut scores[row * BLOCK..(row + Q) * BLOCK];
    let mut key = 0;
    while key < BLOCK {
        // Vector `v` covers keys `key + v · LANES ..`: a half or the whole of a group.
        let mut from = [&keys.all[..0]; V];
        for v in 0..V {
            let k = key + v * I::LANES;
            from[v] = &keys.all[k / KEYS * steps * KEYS + k % KEYS..][..(steps - 1) * KEYS + I::LANES];
        }
        let mut sum = [[isa.f_splat(0.0); V]; Q];
        for step in 0..steps {
            let mut k = [products.none(isa); V];
            for v in 0..V {
                keys.ask_ahead(isa, (key + v * I::LANES) / KEYS * steps * KEYS + step * KEYS);
                k[v] = products.load(isa, &from[v][step * KEYS..]);
            }
            for q in 0..Q {
                products.add(isa, &mut sum[q], &k, &query[q][step]);
            }
        }
        for q in 0..Q {
            for v in 0..V {
                isa.f_store(sum[q][v], &mut scores[q * BLOCK + key + v * I::LANES..]);
            }
        }
        key += V * I::LANES;
    }
}

/// `out[q] += Σ_k weights[q][k] · values[k]` for the `Q` queries from `row` on, steps of keys in order.
#[inline(always)]
fn weighted_sums<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
    isa: I,
    products: P,
    weights: &[P::Factor],
    values: &Elements<P::Stored>,
    padded: usize,
    row: usize,
    out: &mut [f32],
) {
    const { assert!(padded_head(1).is_multiple_of(2 * MAX_LANES)) };
    let steps = const { BLOCK / P::STEP };
    let weights = &weights[row * steps..(row + Q) * steps];
    let out = &mut out[row * padded..(row + Q) * padded];
    let vectors = padded / I::LANES;
    let mut v = 0;
    while v < vectors {
        let d = v * I::LANES;
        // One query alone would wait on its own sums: as much of the head as there is goes side by side.
        match (Q, vectors - v) {
            (1, 8..) => {
                columns_of_sums::<I, P, 8, Q>(isa, products, weights, values, padded, d, out);
                v += 8;
            }
            (1, 6..) => {
                columns_of_sums::<I, P, 6, Q>(isa, products, weights, values, padded, d, out);
                v += 6;
            }
            _ => {
                columns_of_sums::<I, P, V, Q>(isa, products, weights, values, padded, d, out);
                v += V;
            }
        }
    }
}

/// As [`weighted_sums`], for the `V` vectors from element `d` of the head on.
#[inline(always)]
fn columns_of_sums<I: Isa, P: Products<I>, const V: usize, const Q: usize>(
    isa: I,
    products: P,
    weights: &[P::Factor],
    values: &Elements<P::Stored>,
    padded: usize,
    d: usize,
    out: &mut [f32],
) {
    let steps = const { BLOCK / P::STEP };
    let mut sum = [[isa.f_splat(0.0); V]; Q];
    for q in 0..Q {
        for v in 0..V {
            sum[q][v] = isa.f_load(&out[q * padded + d + v * I::LANES..]);
        }
    }
    for k in 0..values.all.len() / padded {
        let value = &values.all[k * padded + d..][..V * I::LANES];
        let mut lanes = [products.none(isa); V];
        for v in 0..V {
            values.ask_ahead(isa, k * padded + d + v * I::LANES);
            lanes[v] = products.load(isa, &value[v * I::LANES..]);
        }
        for q in 0..Q {
            products.add(isa, &mut sum[q], &lanes, &weights[q * steps + k]);
        }
    }
    for q in 0..Q {
        for v in 0..V {
            isa.f_store(sum[q][v], &mut out[q * padded + d + v * I::LANES..]);
        }
    }
}

impl Attention<'_> {
    /// Turns scores into weights relative to the running maximum, and rescales what was summed so far.
    #[inline(always)]
    fn softmax_step<I: Isa>(&mut self, isa: I, start: usize, scratch: &mut Scratch) {
        let round = matches!(self.pages[0].values, KvData::Bf16(_));
        for (row, &position) in self.positions.iter().enumerate() {
            let (low, high) = self.visible(row, position, start);
            let scores = &mut scratch.scores[row * BLOCK..][..BLOCK];
            let pairs = &mut scratch.pairs.weights[row * BLOCK / 2..][..BLOCK / 2];
            // Nearly all blocks are seen whole.
            let whole = high - low == BLOCK;
            if !whole {
                scores[..low].fill(f32::NEG_INFINITY);
                scores[high..].fill(f32::NEG_INFINITY);
            }
            if low == high {
                scores.fill(0.0);
                pairs.fill(0);
                continue;
            }
            let mut largest = isa.f_splat(f32::NEG_INFINITY);
            for s in scores.chunks_exact(I::LANES) {
                largest = isa.f_max(isa.f_load(s), largest);
            }
            let before = scratch.largest[row];
            let largest = isa.f_largest(largest).max(before);
            for s in scores.chunks_exact_mut(I::LANES) {
                let weight = isa.f_exp(isa.f_sub(isa.f_load(s), isa.f_splat(largest)));
                isa.f_store(if round { isa.f_round_bf16(weight) } else { weight }, s);
            }
            // e^x is tiny but not 0 for masked keys; they must weigh nothing at all.
            if !whole {
                scores[..low].fill(0.0);
                scores[high..].fill(0.0);
            }
            // As many sums, lane by lane, on every ISA.
            let mut sums = [isa.f_splat(0.0); MAX_LANES];
            for i in (0..BLOCK).step_by(MAX_LANES) {
                for v in 0..MAX_LANES / I::LANES {
                    let at = i + v * I::LANES;
                    let weights = isa.f_load(&scores[at..]);
                    sums[v] = isa.f_add(sums[v], weights);
                    if round {
                        isa.f_store_bf16(weights, &mut pairs[at / 2..]);
                    }
                }
            }
            for v in 1..MAX_LANES / I::LANES {
                sums[0] = isa.f_add(sums[0], sums[v]);
            }
            let sum = isa.f_sum(sums[0]);
            if largest > before {
                let mut shrink = [0.0f32; MAX_LANES];
                isa.f_store(isa.f_exp(isa.f_splat(before - largest)), &mut shrink);
                let factor = if before == f32::NEG_INFINITY { 0.0 } else { shrink[0] };
                scratch.sum[row] *= factor;
                let out = &mut self.out[row * self.padded_head..][..self.padded_head];
                for chunk in out.chunks_exact_mut(I::LANES) {
                    isa.f_store(isa.f_mul(isa.f_load(chunk), isa.f_splat(factor)), chunk);
                }
                scratch.largest[row] = largest;
            }
            scratch.sum[row] += sum;
        }
    }
}
