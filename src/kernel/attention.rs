//! Attention over a paged KV cache: blocked, with the online softmax of FlashAttention
//! (Dao et al. 2022); no score matrix is materialised.
//!
//! Keys are stored sixteen positions side by side ([`KEYS`]), so that scores of a vector of keys need no
//! horizontal sums. Blocks of [`BLOCK`] keys start at fixed positions, and each query walks them in order
//! with one order of operations, whatever other queries share its tile.

use crate::simd::{Isa, IsaExt, Kernel, Level, MAX_LANES, dispatch_at};

/// Positions whose keys are interleaved.
pub const KEYS: usize = 16;
/// Keys that one softmax step takes.
pub const BLOCK: usize = 64;
/// Positions of a page.
pub const PAGE: usize = 256;

/// An element type of the KV cache.
pub trait KvElement: Copy + Default + Send + Sync + 'static {
    fn load<I: Isa>(isa: I, from: &[Self]) -> I::F;
    fn from_f32(x: f32) -> Self;
}

impl KvElement for f32 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[f32]) -> I::F {
        isa.f_load(from)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

/// Half precision, as its bits.
impl KvElement for u16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u16]) -> I::F {
        isa.f_load_f16(from)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        half::f16::from_f32(x).to_bits()
    }
}

/// Head size rounded up to whole vectors on every ISA.
pub const fn padded_head(head: usize) -> usize {
    head.next_multiple_of(MAX_LANES)
}

/// Keys and values of [`PAGE`] positions of one KV head.
#[derive(Clone, Copy)]
pub struct PageView<'a, E> {
    /// `[PAGE / KEYS, padded_head, KEYS]`.
    pub keys: &'a [E],
    /// `[PAGE, padded_head]`.
    pub values: &'a [E],
}

/// Writes the key of one position (`[head]`) into a page's keys.
pub fn store_key<E: KvElement>(keys: &mut [E], at: usize, padded: usize, key: &[f32]) {
    let group = &mut keys[at / KEYS * padded * KEYS..][..padded * KEYS];
    for (slot, &x) in group[at % KEYS..].iter_mut().step_by(KEYS).zip(key) {
        *slot = E::from_f32(x);
    }
}

/// Writes the value of one position (`[head]`) into a page's values.
pub fn store_value<E: KvElement>(values: &mut [E], at: usize, padded: usize, value: &[f32]) {
    for (slot, &x) in values[at * padded..][..padded].iter_mut().zip(value) {
        *slot = E::from_f32(x);
    }
}

/// Attention of a few queries of one KV head.
pub struct Attention<'a, E> {
    /// The KV head's pages, in order of position.
    pub pages: &'a [PageView<'a, E>],
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
    /// `[rows, BLOCK]`.
    scores: Vec<f32>,
    largest: Vec<f32>,
    sum: Vec<f32>,
}

impl<E: KvElement> Attention<'_, E> {
    /// Computes `out`.
    pub fn compute(self, level: Level) {
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

impl<E: KvElement> Attention<'_, E> {
    /// Whether any of the queries sees a key of block `start / BLOCK`.
    fn any_sees(&self, start: usize) -> bool {
        self.positions.iter().enumerate().any(|(row, &position)| {
            let (low, high) = self.visible(row, position, start);
            low < high
        })
    }
}

impl<E: KvElement> Kernel for Attention<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let rows = self.positions.len();
        assert!(self.queries.len() == rows * self.padded_head && self.out.len() == rows * self.padded_head);
        let mut scratch = std::mem::take(self.scratch);
        scratch.scores.resize(rows * BLOCK, 0.0);
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
            let page = &self.pages[start / PAGE];
            self.scores(isa, page, start % PAGE, &mut scratch.scores);
            self.softmax_step(isa, start, &mut scratch);
            let keys = (last + 1 - start).min(BLOCK);
            let values = &page.values[start % PAGE * self.padded_head..][..keys * self.padded_head];
            accumulate(isa, &scratch.scores, values, self.padded_head, self.out);
        }
        for (out, sum) in self.out.chunks_exact_mut(self.padded_head).zip(&scratch.sum) {
            let inverse = isa.f_splat(1.0 / sum);
            for chunk in out.chunks_exact_mut(I::LANES) {
                isa.f_store(isa.f_mul(isa.f_load(chunk), inverse), chunk);
            }
        }
        *self.scratch = scratch;
    }
}

impl<E: KvElement> Attention<'_, E> {
    /// All queries with the `BLOCK` keys from `at` on in the page.
    #[inline(always)]
    fn scores<I: Isa>(&self, isa: I, page: &PageView<E>, at: usize, scores: &mut [f32]) {
        let rows = self.positions.len();
        let group = self.padded_head * KEYS;
        let keys = &page.keys[at / KEYS * group..][..BLOCK / KEYS * group];
        let mut row = 0;
        while row < rows {
            match rows - row {
                8.. => {
                    self.score_tile::<I, 8>(isa, keys, row, scores);
                    row += 8;
                }
                4.. => {
                    self.score_tile::<I, 4>(isa, keys, row, scores);
                    row += 4;
                }
                _ => {
                    self.score_tile::<I, 1>(isa, keys, row, scores);
                    row += 1;
                }
            }
        }
    }

    /// `R` queries with all keys of a block.
    #[inline(always)]
    fn score_tile<I: Isa, const R: usize>(&self, isa: I, keys: &[E], row: usize, scores: &mut [f32]) {
        let padded = self.padded_head;
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.queries[(row + r) * padded..][..padded]);
        if R == 1 {
            // One query alone would wait on its own sums: take all four groups of keys side by side.
            for v in 0..KEYS / I::LANES {
                let mut sum = [isa.f_splat(0.0); BLOCK / KEYS];
                for d in 0..padded {
                    let x = isa.f_splat(q[0][d]);
                    for (g, sum) in sum.iter_mut().enumerate() {
                        let k = E::load(isa, &keys[(g * padded + d) * KEYS + v * I::LANES..]);
                        *sum = isa.f_fma(x, k, *sum);
                    }
                }
                for (g, &sum) in sum.iter().enumerate() {
                    isa.f_store(sum, &mut scores[row * BLOCK + g * KEYS + v * I::LANES..]);
                }
            }
            return;
        }
        for (g, keys) in keys.chunks_exact(padded * KEYS).enumerate() {
            for v in 0..KEYS / I::LANES {
                let mut sum = [isa.f_splat(0.0); R];
                for d in 0..padded {
                    let k = E::load(isa, &keys[d * KEYS + v * I::LANES..]);
                    for r in 0..R {
                        sum[r] = isa.f_fma(isa.f_splat(q[r][d]), k, sum[r]);
                    }
                }
                for r in 0..R {
                    isa.f_store(sum[r], &mut scores[(row + r) * BLOCK + g * KEYS + v * I::LANES..]);
                }
            }
        }
    }

    /// Turns scores into weights relative to the running maximum, and rescales what was summed so far.
    #[inline(always)]
    fn softmax_step<I: Isa>(&mut self, isa: I, start: usize, scratch: &mut Scratch) {
        for (row, &position) in self.positions.iter().enumerate() {
            let (low, high) = self.visible(row, position, start);
            let scores = &mut scratch.scores[row * BLOCK..][..BLOCK];
            scores[..low].fill(f32::NEG_INFINITY);
            scores[high..].fill(f32::NEG_INFINITY);
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
            scores[..low].fill(0.0);
            scores[high..].fill(0.0);
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

/// `out[row] += Σ_k weights[row][k] · values[k]`, keys in order.
#[inline(always)]
fn accumulate<E: KvElement, I: Isa>(isa: I, weights: &[f32], values: &[E], padded: usize, out: &mut [f32]) {
    let rows = weights.len() / BLOCK;
    let mut row = 0;
    while row < rows {
        let count = if rows - row >= 4 { 4 } else { 1 };
        let weights = &weights[row * BLOCK..][..count * BLOCK];
        let out = &mut out[row * padded..][..count * padded];
        let mut d = 0;
        while d < padded {
            let vectors = (padded - d) / I::LANES;
            match (count, vectors) {
                (4, 4..) => weighted_sum::<E, I, 4, 4>(isa, weights, values, padded, d, out),
                (4, 2..) => weighted_sum::<E, I, 4, 2>(isa, weights, values, padded, d, out),
                (4, _) => weighted_sum::<E, I, 4, 1>(isa, weights, values, padded, d, out),
                (_, 4..) => weighted_sum::<E, I, 1, 4>(isa, weights, values, padded, d, out),
                (_, 2..) => weighted_sum::<E, I, 1, 2>(isa, weights, values, padded, d, out),
                (_, _) => weighted_sum::<E, I, 1, 1>(isa, weights, values, padded, d, out),
            }
            d += I::LANES
                * match vectors {
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
        }
        row += count;
    }
}

/// `R` rows, `V` vectors of the head from element `d` on.
#[inline(always)]
fn weighted_sum<E: KvElement, I: Isa, const R: usize, const V: usize>(
    isa: I,
    weights: &[f32],
    values: &[E],
    padded: usize,
    d: usize,
    out: &mut [f32],
) {
    let weights: [&[f32]; R] = std::array::from_fn(|r| &weights[r * BLOCK..][..BLOCK]);
    let mut sum = [[isa.f_splat(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            sum[r][v] = isa.f_load(&out[r * padded + d + v * I::LANES..]);
        }
    }
    for (k, value) in values.chunks_exact(padded).enumerate() {
        let mut lanes = [isa.f_splat(0.0); V];
        for (v, lanes) in lanes.iter_mut().enumerate() {
            *lanes = E::load(isa, &value[d + v * I::LANES..]);
        }
        for r in 0..R {
            let w = isa.f_splat(weights[r][k]);
            for v in 0..V {
                sum[r][v] = isa.f_fma(w, lanes[v], sum[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            isa.f_store(sum[r][v], &mut out[r * padded + d + v * I::LANES..]);
        }
    }
}
