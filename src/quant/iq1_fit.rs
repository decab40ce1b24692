//! Fitting sub-blocks to three levels (IQ1_S, IQ1_M): one sub-block a lane, one neighbour of a point a lane.
//!
//! With three levels the weighted least-squares problem is solved exactly: values are sorted, and every pair of
//! borders between the levels is tried by means of prefix sums. Groups of eight levels that are not in the codebook
//! then move to their cheapest neighbour. Every lane performs the reference's operations in the reference's order.

use super::Rows;
use super::lattice::{Lattice, Table, Target, repeat_meanings};
use crate::simd::lanes::{Lanes, MAX_WIDTH};

/// Elements of a super-block.
pub(super) const SUPER: usize = 256;
/// What all levels of a group are shifted by, up or down.
pub(super) const DELTA: f32 = 0.125;
/// What the levels stand for when shifted up, and down.
pub(super) const UP: [f32; 4] = [-1.0 + DELTA, DELTA, 1.0 + DELTA, 0.0];
pub(super) const DOWN: [f32; 4] = [-1.0 - DELTA, -DELTA, 1.0 - DELTA, 0.0];

const MAX_ELEMENTS: usize = 32;
const MAX_GROUPS: usize = 4;
/// The code of eight times the highest level.
const ALL_TOP: u16 = 0xaaaa;

/// A vector for each element of a sub-block.
type Elements<L> = [<L as Lanes>::F; MAX_ELEMENTS];

/// A fitted sub-block.
#[derive(Clone, Copy, Default)]
pub(super) struct Fit {
    /// Not negative; 0 for an empty sub-block.
    pub scale: f32,
    /// Codebook index of each group.
    pub index: [u16; MAX_GROUPS],
    /// The codebook's point.
    pub point: [u16; MAX_GROUPS],
    /// Whether each group is shifted down.
    pub down: [bool; MAX_GROUPS],
}

/// As many sub-blocks as there are lanes.
pub(super) struct Slab<L: Lanes> {
    x: Elements<L>,
    weight: Elements<L>,
}

/// The best borders of each sub-block.
pub(super) struct Split<L: Lanes> {
    pub scale: L::F,
    pub best: L::F,
    /// The lower border, and the upper one 8 bits up, and the combination of shifts 16 bits up; -1 for none.
    pub choice: L::I,
}

impl<L: Lanes> Split<L> {
    /// Takes the borders and combination `this` where their sums Σ weight · x · q and Σ weight · q² are better.
    #[inline(always)]
    pub fn consider(&mut self, lanes: L, (qx, qq): (L::F, L::F), this: (usize, usize, usize)) {
        let positive = lanes.gt(qq, lanes.splat(0.0));
        let better = lanes.and(positive, lanes.gt(lanes.mul(qx, qx), lanes.mul(self.best, qq)));
        if lanes.any(better) {
            let ratio = lanes.div(qx, qq);
            self.scale = lanes.select(better, ratio, self.scale);
            self.best = lanes.select(better, lanes.mul(ratio, qx), self.best);
            let choice = lanes.splat_i((this.0 | (this.1 << 8) | (this.2 << 16)) as i32);
            self.choice = lanes.select_i(better, choice, self.choice);
        }
    }
}

/// How a type splits its sub-blocks.
pub(super) trait Splitting {
    /// Elements of a sub-block.
    const ELEMENTS: usize;
    /// Sub-blocks whose greatest magnitude is below this are stored as nothing.
    const EMPTY_BELOW: f32;
    /// The best borders for values sorted by `order`.
    fn split<L: Lanes>(lanes: L, sorted: &Sorted<L>, start: Split<L>) -> Split<L>;
    /// Whether a group is shifted down under a combination of shifts.
    fn down(combination: u8, group: usize) -> bool;
    /// The combination where every shift is the other way.
    fn opposite(combination: u8) -> u8;
}

/// Values of sub-blocks in ascending order.
pub(super) struct Sorted<L: Lanes> {
    /// Weight × value, and weight; a vector a place.
    pub wx: Elements<L>,
    pub w: Elements<L>,
    /// Where the value was, by place and lane.
    pub from: [[u8; MAX_WIDTH]; MAX_ELEMENTS],
}

impl<L: Lanes> Slab<L> {
    /// The sub-blocks that start `values`, the first of which is element number `first` of the rows; `means` goes
    /// into the weights.
    #[inline(always)]
    pub fn load<T: Splitting>(
        lanes: L,
        rows: &Rows<'_>,
        values: &[f32],
        first: usize,
        means: &[f32],
    ) -> Self {
        let zero = lanes.splat(0.0);
        let mut slab = Self { x: [zero; MAX_ELEMENTS], weight: [zero; MAX_ELEMENTS] };
        lanes.columns(values, T::ELEMENTS, &mut slab.x[..T::ELEMENTS]);
        let mean = lanes.load(means);
        if let Some(importance) = rows.weights {
            let mut own = [0.0; MAX_WIDTH * MAX_ELEMENTS];
            for (lane, own) in own.chunks_exact_mut(T::ELEMENTS).enumerate().take(L::WIDTH) {
                let column = (first + lane * T::ELEMENTS) % rows.columns;
                own.copy_from_slice(&importance[column..column + T::ELEMENTS]);
            }
            lanes.columns(&own, T::ELEMENTS, &mut slab.weight[..T::ELEMENTS]);
        }
        for (w, &x) in slab.weight.iter_mut().zip(&slab.x).take(T::ELEMENTS) {
            let square = lanes.mul(x, x);
            *w = match rows.weights {
                Some(_) => lanes.mul(*w, lanes.sqrt(lanes.add(mean, square))),
                None => square,
            };
        }
        slab
    }

    #[inline(always)]
    pub fn fit<T: Splitting>(&self, lanes: L, lattice: &Lattice<8, 2>, fits: &mut [Fit]) {
        let x = &self.x[..T::ELEMENTS];
        let mut most = lanes.abs(x[0]);
        for &x in &x[1..] {
            most = lanes.max(most, lanes.abs(x));
        }
        let start = Split { scale: most, best: lanes.splat(f32::MIN), choice: lanes.splat_i(-1) };
        let sorted = self.sort(lanes, T::ELEMENTS);
        let split = T::split(lanes, &sorted, start);
        let zero = lanes.splat(0.0);
        let fitted = lanes.not(
            lanes
                .or(lanes.lt(most, lanes.splat(T::EMPTY_BELOW)), lanes.eq_i(split.choice, lanes.splat_i(-1))),
        );
        let negative = lanes.lt(split.scale, zero);
        let flipped = lanes.bitmask(negative);
        let scale = lanes.select(negative, lanes.sub(lanes.splat(-0.0), split.scale), split.scale);

        fits[..L::WIDTH].fill(Fit::default());
        let fitted = lanes.bitmask(fitted);
        if fitted == 0 {
            return;
        }
        let mut rows = Rowwise::new(lanes, self, scale, T::ELEMENTS);
        let mut choices = [0; MAX_WIDTH];
        lanes.store_i(split.choice, &mut choices);
        let mut moved = 0;
        for lane in (0..L::WIDTH).filter(|lane| fitted >> lane & 1 != 0) {
            let choice = choices[lane] as u32;
            let borders = ((choice & 0xff) as usize, (choice >> 8 & 0xff) as usize);
            let mut combination = (choice >> 16) as u8;
            let mut points = sorted.levels(lane, borders, T::ELEMENTS);
            if flipped >> lane & 1 != 0 {
                points = points.map(|point| ALL_TOP - point);
                combination = T::opposite(combination);
            }
            let fit = &mut fits[lane];
            *fit = Fit { point: points, ..Fit::default() };
            for group in 0..T::ELEMENTS / 8 {
                fit.down[group] = T::down(combination, group);
                if rows.place(lanes, lattice, (lane, group), fit) {
                    moved |= 1 << lane;
                }
            }
        }
        let scale = if moved == 0 { scale } else { self.rescale(lanes, T::ELEMENTS / 8, scale, moved, fits) };
        lanes.store(scale, &mut rows.scales);
        for (lane, fit) in fits.iter_mut().enumerate().take(L::WIDTH) {
            if fitted >> lane & 1 != 0 {
                fit.scale = rows.scales[lane];
            }
        }
    }

    /// Sorts each lane's values; equal ones keep their order, as under the reference's merge sort.
    #[inline(always)]
    fn sort(&self, lanes: L, elements: usize) -> Sorted<L> {
        let mut values = self.x;
        let mut places = [lanes.splat_i(0); MAX_ELEMENTS];
        for (i, place) in places.iter_mut().enumerate() {
            *place = lanes.splat_i(i as i32);
        }
        // Odd-even transposition: only neighbours out of order are exchanged, which makes it stable.
        for round in 0..elements {
            for i in (round % 2..elements - 1).step_by(2) {
                let (a, b) = (values[i], values[i + 1]);
                let exchange = lanes.lt(b, a);
                values[i] = lanes.select(exchange, b, a);
                values[i + 1] = lanes.select(exchange, a, b);
                let (a, b) = (places[i], places[i + 1]);
                places[i] = lanes.select_i(exchange, b, a);
                places[i + 1] = lanes.select_i(exchange, a, b);
            }
        }
        let mut wx = [[0.0; MAX_WIDTH]; MAX_ELEMENTS];
        let mut w = [[0.0; MAX_WIDTH]; MAX_ELEMENTS];
        for (((wx, w), &x), &weight) in wx.iter_mut().zip(&mut w).zip(&self.x).zip(&self.weight) {
            lanes.store(lanes.mul(weight, x), wx);
            lanes.store(weight, w);
        }
        let zero = lanes.splat(0.0);
        let mut sorted = Sorted {
            wx: [zero; MAX_ELEMENTS],
            w: [zero; MAX_ELEMENTS],
            from: [[0; MAX_WIDTH]; MAX_ELEMENTS],
        };
        for (j, &place) in places.iter().enumerate().take(elements) {
            let from = &mut sorted.from[j];
            lanes.store_bytes(place, from);
            let (mut picked_wx, mut picked_w) = ([0.0; MAX_WIDTH], [0.0; MAX_WIDTH]);
            for (lane, &from) in from.iter().enumerate().take(L::WIDTH) {
                let from = usize::from(from) % MAX_ELEMENTS;
                picked_wx[lane] = wx[from][lane];
                picked_w[lane] = w[from][lane];
            }
            sorted.wx[j] = lanes.load(&picked_wx);
            sorted.w[j] = lanes.load(&picked_w);
        }
        sorted
    }

    /// The scales that fit the points of `fits` best, in the lanes of `moved`, where there is a positive one.
    #[inline(always)]
    fn rescale(&self, lanes: L, groups: usize, scale: L::F, moved: u32, fits: &[Fit]) -> L::F {
        let (mut qx, mut qq) = (lanes.splat(0.0), lanes.splat(0.0));
        for group in 0..groups {
            let mut points = [0; MAX_WIDTH];
            // Levels of a group shifted down are looked up behind the others.
            let mut shifts = [0; MAX_WIDTH];
            for ((point, shift), fit) in points.iter_mut().zip(&mut shifts).zip(fits) {
                *point = fit.point[group];
                *shift = i32::from(fit.down[group]);
            }
            let points = lanes.load_u16(&points);
            let down = lanes.eq_i(lanes.load_i(&shifts), lanes.splat_i(1));
            for i in 0..8 {
                let level = lanes.shr(points, 2 * i as u32);
                let q = lanes.select(down, lanes.lookup4(&DOWN, level), lanes.lookup4(&UP, level));
                let (w, x) = (self.weight[8 * group + i], self.x[8 * group + i]);
                let wq = lanes.mul(w, q);
                qx = lanes.add(qx, lanes.mul(wq, x));
                qq = lanes.add(qq, lanes.mul(wq, q));
            }
        }
        let mut chosen = [0; MAX_WIDTH];
        for (lane, chosen) in chosen.iter_mut().enumerate() {
            *chosen = (moved >> lane & 1) as i32;
        }
        let zero = lanes.splat(0.0);
        let positive = lanes.and(lanes.gt(qx, zero), lanes.gt(qq, zero));
        let chosen = lanes.and(positive, lanes.eq_i(lanes.load_i(&chosen), lanes.splat_i(1)));
        lanes.select(chosen, lanes.div(qx, qq), scale)
    }
}

impl<L: Lanes> Sorted<L> {
    /// The codes of a lane's groups: the lowest level below the first border, the highest from the second on.
    #[inline(always)]
    fn levels(&self, lane: usize, borders: (usize, usize), elements: usize) -> [u16; MAX_GROUPS] {
        let mut points = [0; MAX_GROUPS];
        for (j, from) in self.from.iter().enumerate().take(elements) {
            let level = u16::from(j >= borders.0) + u16::from(j >= borders.1);
            let from = usize::from(from[lane]);
            points[from / 8 % MAX_GROUPS] |= level << (2 * (from % 8));
        }
        points
    }
}

/// Sums of the first 0, 1, … of at most 32 vectors.
#[inline(always)]
pub(super) fn prefix_sums<L: Lanes>(lanes: L, of: &[L::F]) -> [L::F; MAX_ELEMENTS + 1] {
    let mut sums = [lanes.splat(0.0); MAX_ELEMENTS + 1];
    for (j, &value) in of.iter().enumerate() {
        sums[j + 1] = lanes.add(sums[j], value);
    }
    sums
}

/// Values and weights sub-block by sub-block.
struct Rowwise {
    values: [[f32; MAX_WIDTH]; MAX_ELEMENTS],
    weights: [[f32; MAX_WIDTH]; MAX_ELEMENTS],
    scales: [f32; MAX_WIDTH],
    up: Table,
    down: Table,
}

impl Rowwise {
    #[inline(always)]
    fn new<L: Lanes>(lanes: L, slab: &Slab<L>, scale: L::F, elements: usize) -> Self {
        let mut rows = Self {
            values: [[0.0; MAX_WIDTH]; MAX_ELEMENTS],
            weights: [[0.0; MAX_WIDTH]; MAX_ELEMENTS],
            scales: [0.0; MAX_WIDTH],
            up: repeat_meanings(&UP),
            down: repeat_meanings(&DOWN),
        };
        for i in 0..elements {
            lanes.store(slab.x[i], &mut rows.values[i]);
            lanes.store(slab.weight[i], &mut rows.weights[i]);
        }
        lanes.store(scale, &mut rows.scales);
        rows
    }

    /// Finds the group's index, moving its point to a neighbour if it is not in the codebook; whether it moved.
    #[inline(always)]
    fn place<L: Lanes>(
        &self,
        lanes: L,
        lattice: &Lattice<8, 2>,
        (lane, group): (usize, usize),
        fit: &mut Fit,
    ) -> bool {
        let point = &mut fit.point[group];
        if let Some(index) = lattice.index(*point) {
            fit.index[group] = index;
            return false;
        }
        let own = |rows: &[[f32; MAX_WIDTH]; MAX_ELEMENTS]| -> [f32; 8] {
            std::array::from_fn(|i| rows[8 * group + i][lane])
        };
        let target = Target::new(lanes, 8, &own(&self.values), &own(&self.weights));
        let meanings = if fit.down[group] { &self.down } else { &self.up };
        *point = lattice.nearest(lanes, *point, &target, meanings, self.scales[lane]);
        fit.index[group] = lattice.index(*point).unwrap_or(0);
        true
    }
}
