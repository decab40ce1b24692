//! Attention over a paged KV cache: blocked, with the online softmax of FlashAttention
//! (Dao et al. 2022); no score matrix is materialised.
//!
//! Blocks of [`BLOCK`] keys start at fixed positions; a block is loaded as f32 once for all queries of a tile, and
//! each query walks the blocks in order with one order of operations, whatever other queries share its tile.

use super::Lines;
use super::float::{Bf16, F16, F32, Float};
use super::kv::{KEYS, KvData, PAGE, padded_head};
use crate::simd::{Isa, IsaExt, Kernel, Level, MAX_LANES, TileKernel, dispatch_at};

/// Keys that one softmax step takes.
pub const BLOCK: usize = 64;

/// Up to so many queries, keys and values are converted as they are multiplied, for every four anew; beyond, once for all of them.
const FEW: usize = 16;

/// Keys and values of [`PAGE`] positions of one KV head.
#[derive(Clone, Debug)]
pub struct HeadPage {
    /// `[PAGE / KEYS, padded_head, KEYS]`.
    pub keys: KvData,
    /// `[PAGE, padded_head]`.
    pub values: KvData,
}

impl HeadPage {
    /// Writes key and value of position `at` of the page, `[padded_head]` each.
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

/// Keys or values of a block: as they are stored, or widened to f32.
struct Elements<'a, W: Float> {
    all: &'a [W::Bits],
    /// What is needed after them, as many bytes: asked for meanwhile.
    next: Option<*const u8>,
}

impl<W: Float> Elements<'_, W> {
    /// Asks for what is needed after element `i` if a cache line begins there.
    #[inline(always)]
    fn ask_ahead<I: Isa>(&self, isa: I, i: usize) {
        if let Some(next) = self.next
            && (i * size_of::<W::Bits>()).is_multiple_of(64)
        {
            isa.prefetch_far(next.wrapping_add(i * size_of::<W::Bits>()));
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
        let (rows, padded) = (self.positions.len(), self.padded_head);
        let (page, at) = (self.pages[start / PAGE], start % PAGE);
        let Scratch { loaded, scores, .. } = scratch;
        if rows <= FEW {
            let block = at * padded..(at + BLOCK) * padded;
            let next = page.values.address(at * padded);
            match &page.keys {
                KvData::F32(keys) => {
                    return self.few_scores(isa, &Elements::<F32> { all: &keys[block], next }, scores);
                }
                KvData::F16(keys) => {
                    return self.few_scores(isa, &Elements::<F16> { all: &keys[block], next }, scores);
                }
                KvData::Bf16(keys) => {
                    return self.few_scores(isa, &Elements::<Bf16> { all: &keys[block], next }, scores);
                }
                KvData::Q8_0(..) | KvData::Q4_0(..) => {}
            }
        }
        page.keys.load_keys(isa, at / KEYS, BLOCK / KEYS, padded, loaded);
        let keys = Elements::<F32> { all: loaded, next: None };
        for row in (0..rows / Q * Q).step_by(Q) {
            scores_of::<I, F32, V, Q>(isa, self.queries, &keys, padded, row, scores);
        }
        for row in rows / Q * Q..rows {
            // One query alone would wait on its own sums: more keys go side by side.
            scores_of::<I, F32, 4, 1>(isa, self.queries, &keys, padded, row, scores);
        }
    }

    /// Scores of up to [`FEW`] queries with `keys`, a block as it is stored.
    #[inline(always)]
    fn few_scores<I: Isa, W: Float>(&self, isa: I, keys: &Elements<W>, scores: &mut [f32]) {
        let (queries, padded) = (self.queries, self.padded_head);
        let rows = self.positions.len();
        for row in (0..rows).step_by(4) {
            match rows - row {
                1 => scores_of::<I, W, 2, 1>(isa, queries, keys, padded, row, scores),
                2 => scores_of::<I, W, 2, 2>(isa, queries, keys, padded, row, scores),
                3 => scores_of::<I, W, 2, 3>(isa, queries, keys, padded, row, scores),
                _ => scores_of::<I, W, 2, 4>(isa, queries, keys, padded, row, scores),
            }
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
        let (rows, padded) = (self.positions.len(), self.padded_head);
        let (page, at) = (self.pages[start / PAGE], start % PAGE);
        let Scratch { loaded, scores, .. } = scratch;
        if rows <= FEW {
            let block = at * padded..(at + keys) * padded;
            let after = start + BLOCK;
            let next = match self.pages.get(after / PAGE) {
                Some(page) => page.keys.address(after % PAGE * padded),
                None => None,
            };
            match &page.values {
                KvData::F32(values) => {
                    return self.few_sums(isa, scores, &Elements::<F32> { all: &values[block], next });
                }
                KvData::F16(values) => {
                    return self.few_sums(isa, scores, &Elements::<F16> { all: &values[block], next });
                }
                KvData::Bf16(values) => {
                    return self.few_sums(isa, scores, &Elements::<Bf16> { all: &values[block], next });
                }
                KvData::Q8_0(..) | KvData::Q4_0(..) => {}
            }
        }
        page.values.load_values(isa, at, keys, padded, loaded);
        let values = Elements::<F32> { all: &loaded[..keys * padded], next: None };
        for row in (0..rows / Q * Q).step_by(Q) {
            weighted_sums::<I, F32, V, Q>(isa, scores, &values, padded, row, self.out);
        }
        for row in rows / Q * Q..rows {
            weighted_sums::<I, F32, V, 1>(isa, scores, &values, padded, row, self.out);
        }
    }

    /// As [`Attention::block_sums`] for up to [`FEW`] queries, `values` as they are stored.
    #[inline(always)]
    fn few_sums<I: Isa, W: Float>(&mut self, isa: I, weights: &[f32], values: &Elements<W>) {
        let padded = self.padded_head;
        let rows = self.positions.len();
        for row in (0..rows).step_by(4) {
            match rows - row {
                1 => weighted_sums::<I, W, 2, 1>(isa, weights, values, padded, row, self.out),
                2 => weighted_sums::<I, W, 2, 2>(isa, weights, values, padded, row, self.out),
                3 => weighted_sums::<I, W, 2, 3>(isa, weights, values, padded, row, self.out),
                _ => weighted_sums::<I, W, 2, 4>(isa, weights, values, padded, row, self.out),
            }
        }
    }
}

/// Scores of the `Q` queries from `row` on with all keys of a block, `V` vectors of keys at a time.
#[inline(always)]
fn scores_of<I: Isa, W: Float, const V: usize, const Q: usize>(
    isa: I,
    queries: &[f32],
    keys: &Elements<W>,
    padded: usize,
    row: usize,
    scores: &mut [f32],
) {
    const { assert!(BLOCK.is_multiple_of(V * MAX_LANES)) };
    let queries = &queries[row * padded..(row + Q) * padded];
    let scores = &mut scores[row * BLOCK..(row + Q) * BLOCK];
    let mut key = 0;
    while key < BLOCK {
        // Vector `v` covers keys `key + v · LANES ..`: a half or the whole of a group.
        let mut from = [&keys.all[..0]; V];
        for v in 0..V {
            let k = key + v * I::LANES;
            from[v] = &keys.all[k / KEYS * padded * KEYS + k % KEYS..][..(padded - 1) * KEYS + I::LANES];
        }
        let mut sum = [[isa.f_splat(0.0); V]; Q];
        for d in 0..padded {
            let mut k = [isa.f_splat(0.0); V];
            for v in 0..V {
                keys.ask_ahead(isa, (key + v * I::LANES) / KEYS * padded * KEYS + d * KEYS);
                k[v] = W::load(isa, &from[v][d * KEYS..]);
            }
            for q in 0..Q {
                let x = isa.f_splat(queries[q * padded + d]);
                for v in 0..V {
                    sum[q][v] = isa.f_fma(x, k[v], sum[q][v]);
                }
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

/// `out[q] += Σ_k weights[q][k] · values[k]` for the `Q` queries from `row` on, keys in order.
#[inline(always)]
fn weighted_sums<I: Isa, W: Float, const V: usize, const Q: usize>(
    isa: I,
    weights: &[f32],
    values: &Elements<W>,
    padded: usize,
    row: usize,
    out: &mut [f32],
) {
    const { assert!(padded_head(1).is_multiple_of(2 * MAX_LANES)) };
    let weights = &weights[row * BLOCK..(row + Q) * BLOCK];
    let out = &mut out[row * padded..(row + Q) * padded];
    let vectors = padded / I::LANES;
    let mut v = 0;
    while v < vectors {
        // One query alone would wait on its own sums: as much of the head as there is goes side by side.
        match (Q, vectors - v) {
            (1, 8..) => {
                columns_of_sums::<I, W, 8, Q>(isa, weights, values, padded, v * I::LANES, out);
                v += 8;
            }
            (1, 6..) => {
                columns_of_sums::<I, W, 6, Q>(isa, weights, values, padded, v * I::LANES, out);
                v += 6;
            }
            _ => {
                columns_of_sums::<I, W, V, Q>(isa, weights, values, padded, v * I::LANES, out);
                v += V;
            }
        }
    }
}

/// As [`weighted_sums`], for the `V` vectors from element `d` of the head on.
#[inline(always)]
fn columns_of_sums<I: Isa, W: Float, const V: usize, const Q: usize>(
    isa: I,
    weights: &[f32],
    values: &Elements<W>,
    padded: usize,
    d: usize,
    out: &mut [f32],
) {
    let mut sum = [[isa.f_splat(0.0); V]; Q];
    for q in 0..Q {
        for v in 0..V {
            sum[q][v] = isa.f_load(&out[q * padded + d + v * I::LANES..]);
        }
    }
    for k in 0..values.all.len() / padded {
        let value = &values.all[k * padded + d..][..V * I::LANES];
        let mut lanes = [isa.f_splat(0.0); V];
        for v in 0..V {
            values.ask_ahead(isa, k * padded + d + v * I::LANES);
            lanes[v] = W::load(isa, &value[v * I::LANES..]);
        }
        for q in 0..Q {
            let w = isa.f_splat(weights[q * BLOCK + k]);
            for v in 0..V {
                sum[q][v] = isa.f_fma(w, lanes[v], sum[q][v]);
            }
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
        for (row, &position) in self.positions.iter().enumerate() {
            let (low, high) = self.visible(row, position, start);
            let scores = &mut scratch.scores[row * BLOCK..][..BLOCK];
            // Nearly all blocks are seen whole.
            let whole = high - low == BLOCK;
            if !whole {
                scores[..low].fill(f32::NEG_INFINITY);
                scores[high..].fill(f32::NEG_INFINITY);
            }
            if low == high {
                scores.fill(0.0);
                continue;
            }
            let mut largest = isa.f_splat(f32::NEG_INFINITY);
            for s in scores.chunks_exact(I::LANES) {
                largest = isa.f_max(isa.f_load(s), largest);
            }
            let before = scratch.largest[row];
            let largest = isa.f_largest(largest).max(before);
            let mut sum = isa.f_splat(0.0);
            for s in scores.chunks_exact_mut(I::LANES) {
                isa.f_store(isa.f_exp(isa.f_sub(isa.f_load(s), isa.f_splat(largest))), s);
            }
            // e^x is tiny but not 0 for masked keys; they must weigh nothing at all.
            if !whole {
                scores[..low].fill(0.0);
                scores[high..].fill(0.0);
            }
            for s in scores.chunks_exact(I::LANES) {
                sum = isa.f_add(sum, isa.f_load(s));
            }
            let sum = isa.f_sum(sum);
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
