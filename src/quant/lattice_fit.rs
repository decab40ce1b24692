//! Fitting sub-blocks to a codebook (IQ2_*, IQ3_*): one sub-block a lane, one neighbour of a point a lane.
//!
//! A sub-block's magnitudes are divided by a series of candidate scales and rounded; each group of coordinates
//! whose rounded point is not in the codebook moves to its cheapest neighbour; the candidate of the greatest
//! weighted correlation wins. Every lane performs the reference's operations in the reference's order.

use super::Rows;
use super::batch::{BATCH, Batches, square_sums};
use super::lattice::{Lattice, Table, Target, repeat_meanings};
use super::search::fit_levels;
use crate::simd::lanes::{Lanes, MAX_WIDTH};

/// Elements of a super-block.
pub(super) const SUPER: usize = 256;
/// The most elements a sub-block has, the most groups in it, and the most candidate scales.
const MAX_ELEMENTS: usize = 32;
const MAX_GROUPS: usize = 8;
const MAX_CANDIDATES: usize = 31;

/// 1.5 × 2^24: adding it to `t` leaves `t` / 2, rounded to nearest even, in the low mantissa bits.
const HALVING_MAGIC: f32 = 25_165_824.0;

/// What weighs an element where there is no importance matrix.
pub(super) enum Unweighted {
    /// x²
    Square,
    /// x² + a quarter of the mean
    SquareAndMean,
}

/// What the candidate scales are relative to.
pub(super) enum Start {
    /// The greatest magnitude.
    Peak,
    /// The scale that a plain rounding search finds.
    LeastSquares,
}

/// Which groups are rounded once more with the best scale found.
#[derive(PartialEq)]
pub(super) enum Refit {
    /// All.
    All,
    /// Those whose point was not in the codebook.
    Moved,
    /// All, if there is one whose point was not in the codebook, or if no candidate was accepted.
    AllIfMoved,
}

/// How a type fits its sub-blocks.
pub(super) trait Fitting<const DIMS: usize, const BITS: u32> {
    /// Elements of a sub-block, 16 or 32.
    const ELEMENTS: usize;
    /// The highest level; level `l` stands for 2 l + 1.
    const TOP: i32;
    /// Candidate scales put 2 × `TOP` + 1 + `STEP` × (-`REACH` ..= `REACH`) at the greatest magnitude.
    const REACH: i32;
    const STEP: f32;
    /// The mean in element weights is this many times the super-block's mean square.
    const MEAN_FACTOR: f32;
    /// Sub-blocks whose greatest magnitude is below this are stored as nothing.
    const EMPTY_BELOW: f32;
    /// Whether each group of eight has an even number of negative signs (the least important value's sign is
    /// flipped where it has not).
    const EVEN_SIGNS: bool;
    const UNWEIGHTED: Unweighted;
    const START: Start;
    const REFIT: Refit;
    fn lattice() -> &'static Lattice<DIMS, BITS>;
}

/// A fitted sub-block.
#[derive(Clone, Copy, Default)]
pub(super) struct Fit {
    /// Not negative; 0 for an empty sub-block.
    pub scale: f32,
    /// Bit `i` is set where element `i` is negative.
    pub signs: u32,
    /// Codebook index of each group.
    pub index: [u16; MAX_GROUPS],
    /// Nothing to store: the reference leaves the sub-block's bits alone.
    pub empty: bool,
}

/// A vector for each element of a sub-block, a sub-block a lane.
type Elements<L> = [<L as Lanes>::F; MAX_ELEMENTS];
/// Codes of each group, lane by lane.
type Codes = [[u16; MAX_WIDTH]; MAX_GROUPS];

/// Fits all sub-blocks of `rows` and has `pack` write each super-block's fits to its bytes.
#[inline(always)]
pub(super) fn encode<L, T, const DIMS: usize, const BITS: u32>(
    lanes: L,
    rows: Rows<'_>,
    dst: &mut [u8],
    block_bytes: usize,
    pack: impl Fn(&[Fit], &mut [u8]),
) where
    L: Lanes,
    T: Fitting<DIMS, BITS>,
{
    let lattice = T::lattice();
    let meanings = meanings::<BITS>();
    let mut batches = Batches::new(rows);
    let mut blocks = dst.chunks_exact_mut(block_bytes);
    let mut sums = [0.0; BATCH / SUPER];
    let mut fits = [Fit::default(); BATCH / 16];
    while let Some(batch) = batches.next() {
        square_sums(lanes, batch.values, SUPER, &mut sums);
        let used = batch.count.div_ceil(L::WIDTH * T::ELEMENTS) * L::WIDTH;
        let fits = &mut fits[..used];
        for (s, fits) in fits.chunks_exact_mut(L::WIDTH).enumerate() {
            let start = s * L::WIDTH * T::ELEMENTS;
            let slab =
                Slab::load::<T, DIMS, BITS>(lanes, &rows, &batch.values[start..], batch.first, start, &sums);
            slab.fit::<T, DIMS, BITS>(lanes, lattice, &meanings, fits);
        }
        for (fits, block) in fits.chunks_exact(SUPER / T::ELEMENTS).zip(&mut blocks) {
            pack(fits, block);
        }
    }
}

/// The odd numbers that levels stand for, for each coordinate.
fn meanings<const BITS: u32>() -> Table {
    const ODD: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    repeat_meanings(&ODD[..1 << BITS])
}

/// As many sub-blocks as there are lanes.
struct Slab<L: Lanes> {
    /// Magnitudes; negative where a sign was flipped.
    x: Elements<L>,
    weight: Elements<L>,
    /// The greatest of `x`.
    peak: L::F,
    /// Sign bits.
    signs: L::I,
}

impl<L: Lanes> Slab<L> {
    /// Loads the sub-blocks at element `start` of a batch whose first element is number `first` of the rows.
    #[inline(always)]
    fn load<T: Fitting<DIMS, BITS>, const DIMS: usize, const BITS: u32>(
        lanes: L,
        rows: &Rows<'_>,
        values: &[f32],
        first: usize,
        start: usize,
        sums: &[f32],
    ) -> Self {
        let zero = lanes.splat(0.0);
        let mut x = [zero; MAX_ELEMENTS];
        let x = {
            lanes.columns(values, T::ELEMENTS, &mut x[..T::ELEMENTS]);
            x
        };
        let mut means = [0.0; MAX_WIDTH];
        for (lane, mean) in means.iter_mut().enumerate().take(L::WIDTH) {
            *mean = T::MEAN_FACTOR * sums[(start + lane * T::ELEMENTS) / SUPER] / SUPER as f32;
        }
        let mean = lanes.load(&means);
        let mut weight = [zero; MAX_ELEMENTS];
        match rows.weights {
            Some(importance) => {
                let mut own = [0.0; MAX_WIDTH * MAX_ELEMENTS];
                for (lane, own) in own.chunks_exact_mut(T::ELEMENTS).enumerate().take(L::WIDTH) {
                    let column = (first + start + lane * T::ELEMENTS) % rows.columns;
                    own.copy_from_slice(&importance[column..column + T::ELEMENTS]);
                }
                lanes.columns(&own, T::ELEMENTS, &mut weight[..T::ELEMENTS]);
                for (w, x) in weight[..T::ELEMENTS].iter_mut().zip(x) {
                    *w = lanes.mul(*w, lanes.sqrt(lanes.add(mean, lanes.mul(x, x))));
                }
            }
            None => {
                let base = match T::UNWEIGHTED {
                    Unweighted::Square => zero,
                    Unweighted::SquareAndMean => lanes.mul(lanes.splat(0.25), mean),
                };
                for (w, x) in weight[..T::ELEMENTS].iter_mut().zip(x) {
                    *w = lanes.add(base, lanes.mul(x, x));
                }
            }
        }
        Self::split_signs::<T, DIMS, BITS>(lanes, x, weight)
    }

    /// Takes the signs off `x`.
    #[inline(always)]
    fn split_signs<T: Fitting<DIMS, BITS>, const DIMS: usize, const BITS: u32>(
        lanes: L,
        mut x: Elements<L>,
        weight: Elements<L>,
    ) -> Self {
        let (zero, none) = (lanes.splat(0.0), lanes.splat_i(0));
        let mut signs = none;
        for (g, (x, weight)) in x[..T::ELEMENTS].chunks_exact_mut(8).zip(weight.chunks_exact(8)).enumerate() {
            let mut parity = none;
            let mut least = lanes.splat(f32::INFINITY);
            let mut least_at = none;
            for (i, (x, &w)) in x.iter_mut().zip(weight).enumerate() {
                let negative = lanes.lt(*x, zero);
                let bit = lanes.splat_i(1 << (8 * g + i));
                signs = lanes.xor_i(signs, lanes.select_i(negative, bit, none));
                if T::EVEN_SIGNS {
                    parity = lanes.xor_i(parity, lanes.select_i(negative, lanes.splat_i(-1), none));
                    let importance = lanes.mul(lanes.mul(w, *x), *x);
                    let lower = lanes.lt(importance, least);
                    least = lanes.select(lower, importance, least);
                    least_at = lanes.select_i(lower, lanes.splat_i(i as i32), least_at);
                }
                *x = lanes.select(negative, lanes.abs(*x), *x);
            }
            if T::EVEN_SIGNS {
                // Where the number is even, no position is -1.
                let flipped_at = lanes.select_i(lanes.eq_i(parity, none), lanes.splat_i(-1), least_at);
                for (i, x) in x.iter_mut().enumerate() {
                    let flipped = lanes.eq_i(flipped_at, lanes.splat_i(i as i32));
                    let bit = lanes.splat_i(1 << (8 * g + i));
                    signs = lanes.xor_i(signs, lanes.select_i(flipped, bit, none));
                    *x = lanes.select(flipped, lanes.sub(lanes.splat(-0.0), *x), *x);
                }
            }
        }
        let mut peak = x[0];
        for &x in &x[1..T::ELEMENTS] {
            peak = lanes.max(peak, x);
        }
        Self { x, weight, peak, signs }
    }

    #[inline(always)]
    fn fit<T: Fitting<DIMS, BITS>, const DIMS: usize, const BITS: u32>(
        &self,
        lanes: L,
        lattice: &Lattice<DIMS, BITS>,
        meanings: &Table,
        fits: &mut [Fit],
    ) {
        let groups = T::ELEMENTS / DIMS;
        let zero = lanes.splat(0.0);
        let mut empty = lanes.lt(self.peak, lanes.splat(T::EMPTY_BELOW));
        let (mut scale, reference) = match T::START {
            Start::Peak => (lanes.div(self.peak, lanes.splat((2 * T::TOP + 1) as f32)), self.peak),
            Start::LeastSquares => {
                let (scale, _) = fit_levels(lanes, T::TOP + 2, &self.x, &self.weight);
                let peak = lanes.mul(scale, lanes.splat((T::TOP + 1) as f32));
                empty = lanes.or(empty, lanes.not(lanes.gt(peak, zero)));
                (scale, peak)
            }
        };
        let occupied = lanes.bitmask(lanes.not(empty));
        if occupied == 0 {
            fits.fill(Fit { empty: true, ..Fit::default() });
            return;
        }
        let search =
            Search { lanes, slab: self, lattice, meanings, targets: Targets::new(lanes, self, T::ELEMENTS) };

        // Round all candidates, a sub-block a lane.
        let candidates = (2 * T::REACH + 1) as usize;
        let mut rounded = [[[0; MAX_WIDTH]; MAX_GROUPS]; MAX_CANDIDATES];
        let mut scales = [[0.0; MAX_WIDTH]; MAX_CANDIDATES];
        for (c, (rounded, scales)) in rounded.iter_mut().zip(&mut scales).enumerate().take(candidates) {
            let numerator = (2 * T::TOP + 1) as f32 + (c as i32 - T::REACH) as f32 * T::STEP;
            let inverse = lanes.div(lanes.splat(numerator), reference);
            lanes.store(lanes.div(lanes.splat(1.0), inverse), scales);
            self.round::<DIMS, BITS>(lanes, T::TOP, inverse, &mut rounded[..groups]);
        }
        // Move what is not in the codebook, a neighbour a lane.
        let mut moved = rounded;
        search.move_all(occupied, &scales[..candidates], &mut moved[..candidates], groups);

        // Choose, a sub-block a lane.
        let mut best = zero;
        let mut codes = [lanes.splat_i(0); MAX_GROUPS];
        // A negative code stands for "not a point of the codebook".
        let unknown = if T::REFIT == Refit::AllIfMoved { -1 } else { 0 };
        let mut points = [lanes.splat_i(unknown); MAX_GROUPS];
        for (rounded, moved) in rounded.iter().zip(&moved).take(candidates) {
            let mut candidate = [lanes.splat_i(0); MAX_GROUPS];
            for (candidate, moved) in candidate.iter_mut().zip(moved).take(groups) {
                *candidate = lanes.load_u16(moved);
            }
            let (xq, qq) = self.correlate::<DIMS, BITS>(lanes, T::ELEMENTS, &candidate);
            let better = lanes.and(lanes.gt(qq, zero), lanes.gt(lanes.mul(xq, xq), lanes.mul(best, qq)));
            scale = lanes.select(better, lanes.div(xq, qq), scale);
            best = lanes.select(better, lanes.mul(scale, xq), best);
            for (g, rounded) in rounded.iter().enumerate().take(groups) {
                codes[g] = lanes.select_i(better, candidate[g], codes[g]);
                points[g] = lanes.select_i(better, lanes.load_u16(rounded), points[g]);
            }
        }
        let outcome = Outcome { scale, codes, points };
        let (scale, codes) = search.refit::<T>(outcome, occupied);

        let negative = lanes.lt(scale, zero);
        let signs = lanes.select_i(negative, lanes.xor_i(self.signs, lanes.splat_i(-1)), self.signs);
        let scale = lanes.select(negative, lanes.sub(lanes.splat(-0.0), scale), scale);
        store_fits(lanes, lattice, (scale, signs, &codes[..groups]), occupied, fits);
    }

    /// Codes of the points nearest to `x` × `inverse`, in every group.
    #[inline(always)]
    fn round<const DIMS: usize, const BITS: u32>(
        &self,
        lanes: L,
        top: i32,
        inverse: L::F,
        codes: &mut [[u16; MAX_WIDTH]],
    ) {
        let one = lanes.splat(1.0);
        let magic = lanes.splat(HALVING_MAGIC);
        let mantissa = lanes.splat_i(0x007f_ffff);
        // A level l is 2^22 + l until it is stored: the 2^22 moves beyond the code's bits.
        let (low, high) = (lanes.splat_i(0x0040_0000), lanes.splat_i(0x0040_0000 + top));
        for (x, codes) in self.x.chunks_exact(DIMS).zip(codes) {
            let mut code = lanes.splat_i(0);
            for &x in x.iter().rev() {
                let doubled = lanes.sub(lanes.mul(inverse, x), one);
                let level = lanes.and_i(lanes.bits(lanes.add(doubled, magic)), mantissa);
                let level = lanes.max_i(lanes.min_i(level, high), low);
                code = lanes.xor_i(lanes.shl(code, BITS), level);
            }
            let bits = (1 << (DIMS as u32 * BITS)) - 1;
            lanes.store_u16(lanes.and_i(code, lanes.splat_i(bits)), codes);
        }
    }

    /// Σ weight · x · q and Σ weight · q² over a sub-block whose points are `codes`.
    #[inline(always)]
    fn correlate<const DIMS: usize, const BITS: u32>(
        &self,
        lanes: L,
        elements: usize,
        codes: &[L::I; MAX_GROUPS],
    ) -> (L::F, L::F) {
        const ODD: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
        let (mut xq, mut qq) = (lanes.splat(0.0), lanes.splat(0.0));
        for (i, (&x, &w)) in self.x.iter().zip(&self.weight).enumerate().take(elements) {
            let level = lanes.shr(codes[i / DIMS], BITS * (i % DIMS) as u32);
            let q = if BITS == 2 { lanes.lookup4(&ODD, level) } else { lanes.lookup8(&ODD, level) };
            xq = lanes.add(xq, lanes.mul(lanes.mul(w, x), q));
            qq = lanes.add(qq, lanes.mul(lanes.mul(w, q), q));
        }
        (xq, qq)
    }
}

/// The best candidate of every sub-block.
struct Outcome<L: Lanes> {
    scale: L::F,
    /// Codebook points of each group.
    codes: [L::I; MAX_GROUPS],
    /// What they were before those not in the codebook moved.
    points: [L::I; MAX_GROUPS],
}

/// Values and square roots of weights, sub-block by sub-block.
struct Targets {
    values: [[f32; MAX_ELEMENTS]; MAX_WIDTH],
    weights: [[f32; MAX_ELEMENTS]; MAX_WIDTH],
}

impl Targets {
    #[inline(always)]
    fn new<L: Lanes>(lanes: L, slab: &Slab<L>, elements: usize) -> Self {
        let mut targets =
            Self { values: [[0.0; MAX_ELEMENTS]; MAX_WIDTH], weights: [[0.0; MAX_ELEMENTS]; MAX_WIDTH] };
        let mut roots = slab.weight;
        for root in &mut roots[..elements] {
            *root = lanes.sqrt(*root);
        }
        transpose(lanes, &slab.x[..elements], &mut targets.values);
        transpose(lanes, &roots[..elements], &mut targets.weights);
        targets
    }
}

/// From a vector an element to a row a lane.
#[inline(always)]
fn transpose<L: Lanes>(lanes: L, elements: &[L::F], rows: &mut [[f32; MAX_ELEMENTS]; MAX_WIDTH]) {
    for (t, tile) in elements.chunks_exact(L::WIDTH).enumerate() {
        let mut flat = [0.0; MAX_WIDTH * MAX_WIDTH];
        for (row, &element) in flat.chunks_exact_mut(L::WIDTH).zip(tile) {
            lanes.store(element, row);
        }
        let mut turned = [lanes.splat(0.0); MAX_WIDTH];
        lanes.columns(&flat, L::WIDTH, &mut turned[..L::WIDTH]);
        for (row, &turned) in rows.iter_mut().zip(&turned[..L::WIDTH]) {
            lanes.store(turned, &mut row[t * L::WIDTH..]);
        }
    }
}

struct Search<'a, L: Lanes, const DIMS: usize, const BITS: u32> {
    lanes: L,
    slab: &'a Slab<L>,
    lattice: &'a Lattice<DIMS, BITS>,
    meanings: &'a Table,
    targets: Targets,
}

impl<L: Lanes, const DIMS: usize, const BITS: u32> Search<'_, L, DIMS, BITS> {
    /// Replaces every code that is not in the codebook by its cheapest neighbour, in the sub-blocks `chosen`.
    #[inline(always)]
    fn move_all(&self, chosen: u32, scales: &[[f32; MAX_WIDTH]], codes: &mut [Codes], groups: usize) {
        for lane in (0..L::WIDTH).filter(|lane| chosen >> lane & 1 != 0) {
            for group in 0..groups {
                let at = group * DIMS..(group + 1) * DIMS;
                let values = &self.targets.values[lane][at.clone()];
                let weights = &self.targets.weights[lane][at];
                let target = Target::new(self.lanes, DIMS, values, weights);
                for (scales, codes) in scales.iter().zip(codes.iter_mut()) {
                    let code = &mut codes[group][lane];
                    if self.lattice.index(*code).is_none() {
                        *code = self.lattice.nearest(self.lanes, *code, &target, self.meanings, scales[lane]);
                    }
                }
            }
        }
    }

    /// Rounds once more with the best scale what [`Fitting::REFIT`] says, and adjusts the scale to that.
    #[inline(always)]
    fn refit<T: Fitting<DIMS, BITS>>(
        &self,
        outcome: Outcome<L>,
        occupied: u32,
    ) -> (L::F, [L::I; MAX_GROUPS]) {
        let lanes = self.lanes;
        let groups = T::ELEMENTS / DIMS;
        let Outcome { scale, mut codes, points } = outcome;
        let zero = lanes.splat(0.0);
        let positive = lanes.gt(scale, zero);
        let mut stayed = [positive; MAX_GROUPS];
        for (stayed, (&code, &point)) in stayed.iter_mut().zip(codes.iter().zip(&points)) {
            *stayed = lanes.eq_i(code, point);
        }
        let mut all_stayed = stayed[0];
        for &stayed in &stayed[1..groups] {
            all_stayed = lanes.and(all_stayed, stayed);
        }
        let again = match T::REFIT {
            Refit::All => positive,
            Refit::Moved | Refit::AllIfMoved => lanes.and(positive, lanes.not(all_stayed)),
        };
        let chosen = lanes.bitmask(again) & occupied;
        if chosen == 0 {
            return (scale, codes);
        }
        let mut rounded = [[[0; MAX_WIDTH]; MAX_GROUPS]];
        let mut scales = [[0.0; MAX_WIDTH]];
        lanes.store(scale, &mut scales[0]);
        let inverse = lanes.div(lanes.splat(1.0), scale);
        self.slab.round::<DIMS, BITS>(lanes, T::TOP, inverse, &mut rounded[0][..groups]);
        if T::REFIT == Refit::Moved {
            for ((rounded, &code), &stayed) in rounded[0].iter_mut().zip(&codes).zip(&stayed).take(groups) {
                lanes.store_u16(lanes.select_i(stayed, code, lanes.load_u16(rounded)), rounded);
            }
        }
        self.move_all(chosen, &scales, &mut rounded, groups);
        for (code, rounded) in codes.iter_mut().zip(&rounded[0]).take(groups) {
            *code = lanes.select_i(again, lanes.load_u16(rounded), *code);
        }
        let (xq, qq) = self.slab.correlate::<DIMS, BITS>(lanes, T::ELEMENTS, &codes);
        let known = lanes.and(again, lanes.gt(qq, zero));
        (lanes.select(known, lanes.div(xq, qq), scale), codes)
    }
}

#[inline(always)]
fn store_fits<L: Lanes, const DIMS: usize, const BITS: u32>(
    lanes: L,
    lattice: &Lattice<DIMS, BITS>,
    (scale, signs, codes): (L::F, L::I, &[L::I]),
    occupied: u32,
    fits: &mut [Fit],
) {
    let mut scales = [0.0; MAX_WIDTH];
    let mut sign_bits = [0; MAX_WIDTH];
    let mut points = [[0; MAX_WIDTH]; MAX_GROUPS];
    lanes.store(scale, &mut scales);
    lanes.store_i(signs, &mut sign_bits);
    for (points, &codes) in points.iter_mut().zip(codes) {
        lanes.store_u16(codes, points);
    }
    for (lane, fit) in fits.iter_mut().enumerate().take(L::WIDTH) {
        *fit = Fit { empty: true, ..Fit::default() };
        if occupied >> lane & 1 != 0 {
            let index = std::array::from_fn(|g| lattice.index(points[g][lane]).unwrap_or(0));
            *fit = Fit { scale: scales[lane], signs: sign_bits[lane] as u32, index, empty: false };
        }
    }
}
