//! Register tiles of attention: products of queries with keys, and of weights with values, for every way that these are stored.

use super::{BLOCK, FEW, GRAIN};
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

/// What a tile of queries asks for of what is needed next.
const NOTHING: u8 = 0;
const ALL: u8 = 1;
/// Its share among the tiles of as many queries.
const SHARE: u8 = 2;

/// Keys or values of a block: as they are stored, or widened to f32.
#[derive(Clone, Copy)]
pub(super) struct Elements<'a, T> {
    pub all: &'a [T],
    /// Where what is needed after them begins, if that is known: as much is asked for meanwhile.
    pub next: Option<*const u8>,
}

impl<T> Elements<'_, T> {
    /// What a tile whose `turn` it is asks for in the first of `steps` steps, if it asks for its share.
    #[inline(always)]
    fn requests<const ASKS: u8>(&self, turn: Turn, steps: usize) -> Requests {
        if ASKS != SHARE {
            return Requests { at: std::ptr::null(), apart: 0, stride: 0 };
        }
        let share = size_of_val(self.all).div_ceil(turn.tiles);
        Requests { at: self.next_from(turn.tile * share), apart: 0, stride: share.div_ceil(steps) }
    }

    /// Where byte number `at` of what is needed next is, if that is known.
    #[inline(always)]
    fn next_from(&self, at: usize) -> *const u8 {
        self.next.unwrap_or(std::ptr::null()).wrapping_add(at)
    }
}

/// What to ask for in a step, and then in the next.
struct Requests {
    at: *const u8,
    /// Bytes from one request of a step to another.
    apart: usize,
    /// Bytes from a step's requests to those of the next.
    stride: usize,
}

impl Requests {
    /// Those of a step that reads `bytes` itself.
    #[inline(always)]
    fn send<I: Isa, const ASKS: u8>(&mut self, isa: I, bytes: usize) {
        let count = match ASKS {
            ALL => bytes.div_ceil(64),
            SHARE => 1,
            _ => return,
        };
        for i in 0..count {
            isa.prefetch_far(self.at.wrapping_add(i * self.apart));
        }
        self.at = self.at.wrapping_add(self.stride);
    }
}

/// A tile of queries.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    /// Its first query.
    row: usize,
    /// Its number among the tiles that share what is asked for.
    tile: usize,
    tiles: usize,
}

/// What is computed for some queries at a time.
pub(super) trait QueryTile {
    /// Whether it is known what comes next.
    fn knows_next(&self) -> bool;
    /// Computes it for `N` queries, and asks for what comes next, as `ASKS` says.
    fn run<const N: usize, const ASKS: u8>(&mut self, turn: Turn);
}

/// Computes `work` for `rows` queries, `Q` at a time and the last ones up to four at a time. If it is known what comes next, the first tile
/// of few queries asks for it, as fast as memory can. Of many, each tile asks for its share on its way: one that asked for everything would
/// wait for it, and memory have nothing to do afterwards.
#[inline(always)]
pub(super) fn for_all_queries<const Q: usize>(rows: usize, work: &mut impl QueryTile) {
    let (asks, tiles) = (work.knows_next(), rows / Q);
    for tile in 0..tiles {
        let turn = Turn { row: tile * Q, tile, tiles };
        match (asks && rows > FEW, asks && tile == 0) {
            (true, _) => work.run::<Q, SHARE>(turn),
            (false, true) => work.run::<Q, ALL>(turn),
            (false, false) => work.run::<Q, NOTHING>(turn),
        }
    }
    for row in (tiles * Q..rows).step_by(4) {
        let turn = Turn { row, tile: 0, tiles: 1 };
        match (rows - row, asks && row == 0) {
            (1, true) => work.run::<1, ALL>(turn),
            (2, true) => work.run::<2, ALL>(turn),
            (3, true) => work.run::<3, ALL>(turn),
            (_, true) => work.run::<4, ALL>(turn),
            (1, false) => work.run::<1, NOTHING>(turn),
            (2, false) => work.run::<2, NOTHING>(turn),
            (3, false) => work.run::<3, NOTHING>(turn),
            (_, false) => work.run::<4, NOTHING>(turn),
        }
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
    fn knows_next(&self) -> bool {
        self.keys.next.is_some()
    }

    #[inline(always)]
    fn run<const N: usize, const ASKS: u8>(&mut self, turn: Turn) {
        // One vector and few queries would wait on their own sums.
        if const { V < 2 && N < Q } {
            self.tile::<2, N, ASKS>(turn);
        } else {
            self.tile::<V, N, ASKS>(turn);
        }
    }
}

impl<I: Isa, P: Products<I>, const WIDE: usize, const Q: usize> Scores<'_, I, P, WIDE, Q> {
    /// Scores of `N` queries, `V` vectors of keys at a time.
    #[inline(always)]
    fn tile<const V: usize, const N: usize, const ASKS: u8>(&mut self, turn: Turn) {
        const { assert!(GRAIN.is_multiple_of(V * MAX_LANES)) };
        let Self { isa, products, keys, steps, .. } = *self;
        let row = turn.row;
        let mut query = [&self.queries[..0]; N];
        for q in 0..N {
            query[q] = &self.queries[(row + q) * steps..][..steps];
        }
        let groups = keys.all.as_chunks::<KEYS>().0;
        let scores = &mut self.scores[row * BLOCK..][..const { (N - 1) * BLOCK + GRAIN }];
        let (bytes, passes) = const { (V * I::LANES * size_of::<P::Stored>(), GRAIN / (V * I::LANES)) };
        let mut next = keys.requests::<ASKS>(turn, passes * steps);
        let mut key = 0;
        while key < GRAIN {
            if ASKS == ALL {
                // In the order of what is read: groups side by side, which memory delivers faster than one after the other.
                let at = keys.next_from(key * steps * size_of::<P::Stored>());
                next = Requests { at, apart: KEYS * steps * size_of::<P::Stored>(), stride: bytes.min(64) };
            }
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
                next.send::<I, ASKS>(isa, bytes);
                let mut k = [P::Stored::zero(isa); V];
                for v in 0..V {
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
    fn knows_next(&self) -> bool {
        self.values.next.is_some()
    }

    #[inline(always)]
    fn run<const N: usize, const ASKS: u8>(&mut self, turn: Turn) {
        const { assert!(padded_head(1).is_multiple_of(2 * MAX_LANES)) };
        let vectors = self.padded / I::LANES;
        let widest = const { widest(V * Q, N) };
        let steps = const { BLOCK / P::STEP } * vectors.div_ceil(widest);
        let mut next = self.values.requests::<ASKS>(turn, steps);
        let mut v = 0;
        while v < vectors {
            let at = (turn.row, v * I::LANES);
            // Of two vectors, four or eight, none is left alone.
            v += match (widest, vectors - v) {
                (8, 8..) => self.columns::<8, N, ASKS>(at, &mut next),
                (6 | 8, 6..) => self.columns::<6, N, ASKS>(at, &mut next),
                (4 | 6 | 8, 4..) => self.columns::<4, N, ASKS>(at, &mut next),
                (3, 3 | 5..) => self.columns::<3, N, ASKS>(at, &mut next),
                _ => self.columns::<2, N, ASKS>(at, &mut next),
            };
        }
    }
}

impl<I: Isa, P: Products<I>, const WIDE: usize, const Q: usize> Sums<'_, I, P, WIDE, Q> {
    /// The `V` vectors from element `d` of the head on, of the `N` queries from `row` on; says how many vectors these are.
    #[inline(always)]
    fn columns<const V: usize, const N: usize, const ASKS: u8>(
        &mut self,
        (row, d): (usize, usize),
        next: &mut Requests,
    ) -> usize {
        let Self { isa, products, values, padded, .. } = *self;
        let steps = const { BLOCK / P::STEP };
        let weights = &self.weights[row * steps..][..const { N * (BLOCK / P::STEP) }];
        let out = &mut self.out[row * padded..(row + N) * padded];
        let bytes = const { V * I::LANES * size_of::<P::Stored>() };
        if ASKS == ALL {
            let at = self.values.next_from(d * size_of::<P::Stored>());
            *next = Requests { at, apart: 64, stride: padded * size_of::<P::Stored>() };
        }
        let mut sum = [[P::Sum::zero(isa); V]; N];
        for (k, value) in values.all.chunks_exact(padded).take(steps).enumerate() {
            let value = &value[d..][..V * I::LANES];
            let mut lanes = [P::Stored::zero(isa); V];
            next.send::<I, ASKS>(isa, bytes);
            for v in 0..V {
                lanes[v] = P::Stored::load(isa, &value[v * I::LANES..]);
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
