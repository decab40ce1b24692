//! Codebooks as the encoders need them: from a rounded point to its index, or to the points near it.

use crate::simd::lanes::{Lanes, MAX_WIDTH};

/// Marks a point that is not in the codebook.
const ABSENT: u16 = u16::MAX;

/// What is known of one point of {0 ..= top}^dims.
#[derive(Clone, Copy)]
struct Spot {
    /// Position of its first neighbour, if the point itself is absent.
    first: u32,
    /// Groups of [`MAX_WIDTH`] neighbours, the last one filled up by repeating the first neighbour.
    groups: u16,
    /// Its index in the codebook, or [`ABSENT`].
    index: u16,
}

/// A codebook of points with `DIMS` coordinates of `BITS` bits (see [`super::grids`]) and, for every other
/// point, its neighbours: the points of the codebook at the few smallest distances.
pub(super) struct Lattice<const DIMS: usize, const BITS: u32> {
    /// By code.
    spots: Box<[Spot]>,
    /// Codes; each list ascends by distance, then by index in the codebook.
    neighbours: Box<[u16]>,
}

/// One group of values and the table of what each level would cost in each coordinate:
/// entry `levels * i + level`, for 8 coordinates of 4 levels or 4 coordinates of 8 levels.
pub(super) struct Target {
    values: Table,
    weights: Table,
}

/// Room for 32 floats that vectors and their parts load from.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub(super) struct Table(pub [f32; 32]);

impl<const DIMS: usize, const BITS: u32> Lattice<DIMS, BITS> {
    const LEVEL: usize = (1 << BITS) - 1;

    /// The codebook whose indices stand for `points`, with neighbours at the `shells` smallest distances.
    ///
    /// Levels above `top` are never asked for, so points with such a level have no neighbours.
    pub fn new(points: &'static [u16], top: usize, shells: usize) -> Self {
        let size = 1usize << (DIMS as u32 * BITS);
        let mut spots = vec![Spot { first: 0, groups: 0, index: ABSENT }; size];
        for (index, &code) in points.iter().enumerate() {
            spots[usize::from(code)].index = index as u16;
        }
        let coordinates: [Vec<u8>; DIMS] =
            std::array::from_fn(|i| points.iter().map(|&code| Self::level(code, i)).collect());
        let mut distances = vec![0u8; points.len()];
        let mut neighbours = Vec::new();
        for code in (0..size).map(|code| code as u16) {
            let asked_for = (0..DIMS).all(|i| usize::from(Self::level(code, i)) <= top);
            if !asked_for || spots[usize::from(code)].index != ABSENT {
                continue;
            }
            measure(&coordinates, |i| Self::level(code, i), &mut distances);
            let first = neighbours.len();
            collect_shells(points, &distances, shells, &mut neighbours);
            let groups = (neighbours.len() - first).div_ceil(MAX_WIDTH);
            neighbours.resize(first + groups * MAX_WIDTH, neighbours[first]);
            spots[usize::from(code)] = Spot { first: first as u32, groups: groups as u16, index: ABSENT };
        }
        Self { spots: spots.into(), neighbours: neighbours.into() }
    }

    #[inline(always)]
    fn level(code: u16, i: usize) -> u8 {
        ((code >> (BITS as usize * i)) as usize & Self::LEVEL) as u8
    }

    /// The index of a point, if it is in the codebook.
    #[inline(always)]
    pub fn index(&self, code: u16) -> Option<u16> {
        Some(self.spots[usize::from(code)].index).filter(|&index| index != ABSENT)
    }

    /// The neighbour of `code` (a point not in the codebook) nearest to `target` when level `l` of coordinate
    /// `i` stands for `scale` times entry `levels * i + l` of `meanings`: the first one of the least weighted
    /// sum of squares, summed coordinate by coordinate.
    #[inline(always)]
    pub fn nearest<L: Lanes>(
        &self,
        lanes: L,
        code: u16,
        target: &Target,
        meanings: &Table,
        scale: f32,
    ) -> u16 {
        let costs = target.costs(lanes, meanings, scale);
        let spot = self.spots[usize::from(code)];
        let first = spot.first as usize;
        let list = &self.neighbours[first..first + usize::from(spot.groups) * MAX_WIDTH];
        let Some((first, others)) = list.split_at_checked(L::WIDTH) else { return 0 };
        // The reference accepts only costs below this, so not NaN.
        let bound = lanes.splat(f32::MAX);
        let mut least = lanes.min(Self::cost(lanes, &costs, lanes.load_u16(first)), bound);
        let mut turn = lanes.splat_i(0);
        for (t, codes) in (1..).zip(others.chunks_exact(L::WIDTH)) {
            let cost = Self::cost(lanes, &costs, lanes.load_u16(codes));
            let closer = lanes.lt(cost, least);
            least = lanes.select(closer, cost, least);
            turn = lanes.select_i(closer, lanes.splat_i(t), turn);
        }
        let winners = lanes.bitmask(lanes.eq(least, lanes.splat(lanes.smallest(least))));
        if others.is_empty() {
            return first[winners.trailing_zeros() as usize % L::WIDTH];
        }
        let mut turns = [0; MAX_WIDTH];
        lanes.store_i(turn, &mut turns);
        let place = |lane: usize| turns[lane % MAX_WIDTH] as usize * L::WIDTH + lane;
        let mut best = place(winners.trailing_zeros() as usize);
        let mut others = winners & (winners - 1);
        while others != 0 {
            best = best.min(place(others.trailing_zeros() as usize));
            others &= others - 1;
        }
        list.get(best).copied().unwrap_or(0)
    }

    /// The cost of each lane's point, its coordinates' costs added in order.
    #[inline(always)]
    fn cost<L: Lanes>(lanes: L, costs: &Table, codes: L::I) -> L::F {
        let mut sum = lanes.splat(0.0);
        for i in 0..DIMS {
            let levels = lanes.shr(codes, BITS * i as u32);
            let table = &costs.0[(i << BITS)..];
            let cost = if BITS == 2 { lanes.lookup4(table, levels) } else { lanes.lookup8(table, levels) };
            sum = if i == 0 { cost } else { lanes.add(sum, cost) };
        }
        sum
    }
}

impl Target {
    /// `values` and `weights` of a group of `dims` coordinates, 8 or 4.
    #[inline(always)]
    pub fn new<L: Lanes>(lanes: L, dims: usize, values: &[f32], weights: &[f32]) -> Self {
        Self { values: spread(lanes, dims, values), weights: spread(lanes, dims, weights) }
    }

    #[inline(always)]
    fn costs<L: Lanes>(&self, lanes: L, meanings: &Table, scale: f32) -> Table {
        let scale = lanes.splat(scale);
        let mut costs = Table([0.0; 32]);
        for at in (0..32).step_by(L::WIDTH) {
            let meaning = lanes.mul(scale, lanes.load(&meanings.0[at..]));
            let off = lanes.sub(meaning, lanes.load(&self.values.0[at..]));
            let weighted = lanes.mul(lanes.load(&self.weights.0[at..]), off);
            lanes.store(lanes.mul(weighted, off), &mut costs.0[at..]);
        }
        costs
    }
}

/// Each of `dims` values 32 / `dims` times in a row.
#[inline(always)]
fn spread<L: Lanes>(lanes: L, dims: usize, values: &[f32]) -> Table {
    const EIGHT: [i32; 32] = spread_pattern(8);
    const FOUR: [i32; 32] = spread_pattern(4);
    let mut table = Table([0.0; 32]);
    for at in (0..32).step_by(L::WIDTH) {
        let spread = match dims {
            8 => lanes.lookup8(values, lanes.load_i(&EIGHT[at..])),
            _ => lanes.lookup4(values, lanes.load_i(&FOUR[at..])),
        };
        lanes.store(spread, &mut table.0[at..]);
    }
    table
}

const fn spread_pattern(dims: usize) -> [i32; 32] {
    let mut pattern = [0; 32];
    let mut at = 0;
    while at < 32 {
        pattern[at] = (at * dims / 32) as i32;
        at += 1;
    }
    pattern
}

/// The same meanings of levels in every one of 32 / `meanings.len()` coordinates.
pub(super) fn repeat_meanings(meanings: &[f32]) -> Table {
    Table(std::array::from_fn(|at| meanings[at % meanings.len()]))
}

/// Squared distances of all points to one; at most 8 × 2² or 4 × 7², so they fit a byte.
fn measure(coordinates: &[Vec<u8>], point: impl Fn(usize) -> u8, distances: &mut [u8]) {
    distances.fill(0);
    for (i, levels) in coordinates.iter().enumerate() {
        let own = point(i);
        for (distance, level) in distances.iter_mut().zip(levels) {
            let off = level.wrapping_sub(own);
            *distance += off.wrapping_mul(off);
        }
    }
}

/// Appends the points at the `shells` smallest distances, ascending by distance, then by index.
fn collect_shells(points: &[u16], distances: &[u8], shells: usize, neighbours: &mut Vec<u16>) {
    let mut radii = [0u8; 3];
    let mut from = 0;
    for radius in &mut radii[..shells] {
        let beyond = |d: u8| if d >= from { d } else { u8::MAX };
        *radius = distances.iter().fold(u8::MAX, |least, &d| least.min(beyond(d)));
        from = radius.saturating_add(1);
    }
    let outermost = radii[shells - 1];
    let mut found: [Vec<u16>; 3] = Default::default();
    for (points, distances) in points.chunks(32).zip(distances.chunks(32)) {
        // Most runs hold nothing near; one vector comparison tells.
        if distances.iter().all(|&d| d > outermost) {
            continue;
        }
        for (&code, d) in points.iter().zip(distances) {
            if let Some(shell) = radii[..shells].iter().position(|radius| radius == d) {
                found[shell].push(code);
            }
        }
    }
    found.iter().for_each(|shell| neighbours.extend_from_slice(shell));
}
