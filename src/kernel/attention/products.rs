//! Register tiles of attention: products of queries with keys, and of weights with values, for every way that these are stored.

use super::{BLOCK, GRAIN};
use crate::kernel::kv::{KEYS, padded_head};
use crate::simd::{DotBf16, Isa, MAX_LANES};

/// What vectors are of: a float, or a word.
pub(super) trait Element<I: Isa>: Copy {
    type Lanes: Copy;
    fn zero(isa: I) -> Self::Lanes;
    fn load(isa: I, from: &[Self]) -> Self::Lanes;
}

impl<I: Isa> Element<I> for f32 {
    type Lanes = I::F;
    #[inline(always)]
    fn zero(isa: I) -> I::F {
        isa.f_splat(0.0)
    }
    #[inline(always)]
    fn load(isa: I, from: &[f32]) -> I::F {
        isa.f_load(from)
    }
}

impl<I: Isa> Element<I> for i32 {
    type Lanes = I::W;
    #[inline(always)]
    fn zero(isa: I) -> I::W {
        isa.w_splat(0)
    }
    #[inline(always)]
    fn load(isa: I, from: &[i32]) -> I::W {
        isa.w_load(from)
    }
}

/// A vector of `T`.
type LanesOf<I, T> = <T as Element<I>>::Lanes;

/// What a step of a sum multiplies: an element, or a pair of them.
pub(super) trait Products<I: Isa>: Copy {
    /// Elements of a step.
    const STEP: usize;
    /// What is added up.
    type Sum: Element<I>;
    /// A step's elements of one key or value, as they are stored.
    type Stored: Element<I>;
    /// A step's elements of a query, or weights.
    type Factor;
    /// Adds the products of `lanes` with `factor`.
    fn add<const V: usize>(
        self,
        isa: I,
        sum: &mut [LanesOf<I, Self::Sum>; V],
        lanes: &[LanesOf<I, Self::Stored>; V],
        factor: &Self::Factor,
    );
    /// The sum as scores of the keys from number `key` on, in the query's unit.
    fn score(self, isa: I, sum: LanesOf<I, Self::Sum>, key: usize) -> I::F;
    /// `so_far` and the sum of what query number `row` weighs.
    fn add_to(self, isa: I, so_far: I::F, sum: LanesOf<I, Self::Sum>, row: usize) -> I::F;
}

/// One element at a time.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl<I: Isa> Products<I> for Single {
    const STEP: usize = 1;
    type Sum = f32;
    type Stored = f32;
    type Factor = f32;
    #[inline(always)]
    fn add<const V: usize>(self, isa: I, sum: &mut [I::F; V], lanes: &[I::F; V], factor: &f32) {
        let factor = isa.f_splat(*factor);
        for v in 0..V {
            sum[v] = isa.f_fma(factor, lanes[v], sum[v]);
        }
    }
    #[inline(always)]
    fn score(self, _isa: I, sum: I::F, _key: usize) -> I::F {
        sum
    }
    #[inline(always)]
    fn add_to(self, isa: I, so_far: I::F, sum: I::F, _row: usize) -> I::F {
        isa.f_add(so_far, sum)
    }
}

/// Pairs of bf16 by FMAs, in the order that [`DotBf16`] has.
#[derive(Clone, Copy)]
pub(super) struct PairByFma;

impl<I: Isa> Products<I> for PairByFma {
    const STEP: usize = 2;
    type Sum = f32;
    type Stored = i32;
    type Factor = [f32; 2];
    #[inline(always)]
    fn add<const V: usize>(self, isa: I, sum: &mut [I::F; V], lanes: &[I::W; V], factor: &[f32; 2]) {
        let (low, high) = (isa.f_splat(factor[0]), isa.f_splat(factor[1]));
        for v in 0..V {
            sum[v] = isa.f_fma(high, isa.f_high_bf16(lanes[v]), sum[v]);
            sum[v] = isa.f_fma(low, isa.f_low_bf16(lanes[v]), sum[v]);
        }
    }
    #[inline(always)]
    fn score(self, _isa: I, sum: I::F, _key: usize) -> I::F {
        sum
    }
    #[inline(always)]
    fn add_to(self, isa: I, so_far: I::F, sum: I::F, _row: usize) -> I::F {
        isa.f_add(so_far, sum)
    }
}

/// Pairs of bf16 by an instruction for them.
#[derive(Clone, Copy)]
pub(super) struct Pair<D>(pub D);

impl<I: Isa, D: DotBf16<I>> Products<I> for Pair<D> {
    const STEP: usize = 2;
    type Sum = f32;
    type Stored = i32;
    type Factor = i32;
    #[inline(always)]
    fn add<const V: usize>(self, _isa: I, sum: &mut [I::F; V], lanes: &[I::W; V], factor: &i32) {
        self.0.add(sum, lanes, factor);
    }
    #[inline(always)]
    fn score(self, _isa: I, sum: I::F, _key: usize) -> I::F {
        sum
    }
    #[inline(always)]
    fn add_to(self, isa: I, so_far: I::F, sum: I::F, _row: usize) -> I::F {
        isa.f_add(so_far, sum)
    }
}

/// Pairs of 16-bit integers.
#[derive(Clone, Copy)]
pub(super) enum Integers<'a> {
    /// What a unit of each key is worth.
    Keys(&'a [f32]),
    /// What a unit of each query's weights is worth, the values' units included.
    Weights(&'a [f32]),
}

impl<I: Isa> Products<I> for Integers<'_> {
    const STEP: usize = 2;
    type Sum = i32;
    type Stored = i32;
    type Factor = i32;
    #[inline(always)]
    fn add<const V: usize>(self, isa: I, sum: &mut [I::W; V], lanes: &[I::W; V], factor: &i32) {
        isa.w_dot2_pair(sum, lanes, factor);
    }
    #[inline(always)]
    fn score(self, isa: I, sum: I::W, key: usize) -> I::F {
        let Integers::Keys(units) = self else { unreachable!("scores are of keys") };
        isa.f_mul(isa.f_from_w(sum), isa.f_load(&units[key..]))
    }
    #[inline(always)]
    fn add_to(self, isa: I, so_far: I::F, sum: I::W, row: usize) -> I::F {
        let Integers::Weights(units) = self else { unreachable!("sums are of values") };
        isa.f_fma(isa.f_from_w(sum), isa.f_splat(units[row]), so_far)
    }
}

/// Keys or values of a block: as they are stored, or widened to f32.
#[derive(Clone, Copy)]
pub(super) struct Elements<'a, T> {
    pub all: &'a [T],
    /// How far after them what is needed next is, in bytes; 0 if that is not known.
    pub ahead: usize,
}

impl<'a, T> Elements<'a, T> {
    /// `all`, and meanwhile what begins at `next`.
    pub fn before(all: &'a [T], next: Option<*const u8>) -> Self {
        Self { all, ahead: next.map_or(0, |next| next.addr().wrapping_sub(all.as_ptr().addr())) }
    }
}

/// What is computed for some queries at a time.
pub(super) trait QueryTile {
    /// Computes it for `N` queries from `row` on; what comes next is asked for, if `ASKS`.
    fn run<const N: usize, const ASKS: bool>(&mut self, row: usize);
}

/// Computes `work` for `rows` queries, `Q` at a time and the last ones up to four at a time; the first asks for what comes next, if
/// anything `asks`, and no other does so again.
#[inline(always)]
pub(super) fn for_all_queries<const Q: usize>(rows: usize, asks: bool, work: &mut impl QueryTile) {
    let mut row = 0;
    while row + Q <= rows {
        if asks && row == 0 {
            work.run::<Q, true>(row);
        } else {
            work.run::<Q, false>(row);
        }
        row += Q;
    }
    while row < rows {
        match (rows - row, asks && row == 0) {
            (1, true) => work.run::<1, true>(row),
            (2, true) => work.run::<2, true>(row),
            (3, true) => work.run::<3, true>(row),
            (_, true) => work.run::<4, true>(row),
            (1, false) => work.run::<1, false>(row),
            (2, false) => work.run::<2, false>(row),
            (3, false) => work.run::<3, false>(row),
            (_, false) => work.run::<4, false>(row),
        }
        row += 4;
    }
}

/// Scores of queries, `steps` factors each, with all keys of a grain, where registers hold sums of `V` vectors of keys and `Q` queries.
pub(super) struct Scores<'a, I: Isa, P: Products<I>, const V: usize, const Q: usize> {
    pub isa: I,
    pub products: P,
    pub queries: &'a [P::Factor],
    pub keys: Elements<'a, P::Stored>,
    pub steps: usize,
    /// `[rows, BLOCK]`, from the grain's first on.
    pub scores: &'a mut [f32],
}

impl<I: Isa, P: Products<I>, const V: usize, const Q: usize> QueryTile for Scores<'_, I, P, V, Q> {
    #[inline(always)]
    fn run<const N: usize, const ASKS: bool>(&mut self, row: usize) {
        // One vector and few queries would wait on their own sums.
        if const { V < 2 && N < Q } {
            self.tile::<2, N, ASKS>(row);
        } else {
            self.tile::<V, N, ASKS>(row);
        }
    }
}

impl<I: Isa, P: Products<I>, const WIDE: usize, const Q: usize> Scores<'_, I, P, WIDE, Q> {
    /// Scores of the `N` queries from `row` on, `V` vectors of keys at a time.
    #[inline(always)]
    fn tile<const V: usize, const N: usize, const ASKS: bool>(&mut self, row: usize) {
        const { assert!(GRAIN.is_multiple_of(V * MAX_LANES)) };
        // A step of a group of keys is a line.
        const { assert!(KEYS * size_of::<P::Stored>() == 64) };
        let Self { isa, products, keys, steps, .. } = *self;
        let mut query = [&self.queries[..0]; N];
        for q in 0..N {
            query[q] = &self.queries[(row + q) * steps..][..steps];
        }
        let groups = keys.all.as_chunks::<KEYS>().0;
        let scores = &mut self.scores[row * BLOCK..][..const { (N - 1) * BLOCK + GRAIN }];
        let mut key = 0;
        while key < GRAIN {
            // Vector `v` covers keys `key + v · LANES ..`: a part of a group or the whole.
            let (mut from, mut part) = ([&groups[..0]; V], [0; V]);
            for v in 0..V {
                let k = key + v * I::LANES;
                from[v] = &groups[k / KEYS * steps..][..steps];
                part[v] = if const { (V * I::LANES).is_multiple_of(KEYS) } {
                    v * I::LANES % KEYS
                } else {
                    k % KEYS
                };
            }
            let mut sum = [[P::Sum::zero(isa); V]; N];
            for step in 0..steps {
                let mut k = [P::Stored::zero(isa); V];
                for v in 0..V {
                    if ASKS && part[v] == 0 {
                        let line = from[v].as_ptr().cast::<u8>();
                        isa.prefetch_far(line.wrapping_add(keys.ahead.wrapping_add(64 * step)));
                    }
                    k[v] = P::Stored::load(isa, &from[v][step][part[v]..]);
                }
                for q in 0..N {
                    products.add(isa, &mut sum[q], &k, &query[q][step]);
                }
            }
            for q in 0..N {
                for v in 0..V {
                    let key = key + v * I::LANES;
                    let score = products.score(isa, sum[q][v], key);
                    isa.f_store(score, &mut scores[q * BLOCK + key..]);
                }
            }
            key += V * I::LANES;
        }
    }
}

/// Vectors of values that `queries` have side by side, if `registers` hold sums: all of a head of 96 in one go where that fits.
const fn widest(registers: usize, queries: usize) -> usize {
    match registers / queries {
        8.. if queries == 1 => 8,
        6.. => 6,
        4.. => 4,
        3 => 3,
        _ => 2,
    }
}

/// `out[q] += Σ_k weights[q][k] · values[k]`, steps of keys in order, where registers hold sums of `V` vectors and `Q` queries.
pub(super) struct Sums<'a, I: Isa, P: Products<I>, const V: usize, const Q: usize> {
    pub isa: I,
    pub products: P,
    /// `[rows, BLOCK / STEP]`.
    pub weights: &'a [P::Factor],
    pub values: Elements<'a, P::Stored>,
    /// Elements of a value.
    pub padded: usize,
    /// `[rows, padded]`.
    pub out: &'a mut [f32],
}

impl<I: Isa, P: Products<I>, const V: usize, const Q: usize> QueryTile for Sums<'_, I, P, V, Q> {
    #[inline(always)]
    fn run<const N: usize, const ASKS: bool>(&mut self, row: usize) {
        const { assert!(padded_head(1).is_multiple_of(2 * MAX_LANES)) };
        let vectors = self.padded / I::LANES;
        let mut v = 0;
        while v < vectors {
            let d = v * I::LANES;
            // Of two vectors, four or eight, none is left alone.
            v += match (const { widest(V * Q, N) }, vectors - v) {
                (8, 8..) => self.columns::<8, N, ASKS>(row, d),
                (6 | 8, 6..) => self.columns::<6, N, ASKS>(row, d),
                (4 | 6 | 8, 4..) => self.columns::<4, N, ASKS>(row, d),
                (3, 3 | 5..) => self.columns::<3, N, ASKS>(row, d),
                _ => self.columns::<2, N, ASKS>(row, d),
            };
        }
    }
}

impl<I: Isa, P: Products<I>, const WIDE: usize, const Q: usize> Sums<'_, I, P, WIDE, Q> {
    /// The `V` vectors from element `d` of the head on, of the `N` queries from `row` on; says how many vectors these are.
    #[inline(always)]
    fn columns<const V: usize, const N: usize, const ASKS: bool>(&mut self, row: usize, d: usize) -> usize {
        let Self { isa, products, values, padded, .. } = *self;
        let steps = const { BLOCK / P::STEP };
        let weights = &self.weights[row * steps..][..const { N * (BLOCK / P::STEP) }];
        let out = &mut self.out[row * padded..(row + N) * padded];
        let mut sum = [[P::Sum::zero(isa); V]; N];
        for (k, value) in values.all.chunks_exact(padded).take(steps).enumerate() {
            let value = &value[d..][..V * I::LANES];
            let mut lanes = [P::Stored::zero(isa); V];
            for v in 0..V {
                let value = &value[v * I::LANES..];
                let begins_line = const { I::LANES * size_of::<P::Stored>() == 64 }
                    || ((d + v * I::LANES) * size_of::<P::Stored>()).is_multiple_of(64);
                if ASKS && begins_line {
                    isa.prefetch_far(value.as_ptr().cast::<u8>().wrapping_add(values.ahead));
                }
                lanes[v] = P::Stored::load(isa, value);
            }
            for q in 0..N {
                products.add(isa, &mut sum[q], &lanes, &weights[q * steps + k]);
            }
        }
        for q in 0..N {
            let out = &mut out[q * padded + d..][..V * I::LANES];
            for v in 0..V {
                let out = &mut out[v * I::LANES..];
                isa.f_store(products.add_to(isa, isa.f_load(out), sum[q][v], row + q), out);
            }
        }
        V
    }
}
