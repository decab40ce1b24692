//! x ≈ scale · level − min, levels 0 ..= MAX, min ≥ 0: the search of the types with a minimum.

use super::clamped_level;
use crate::simd::lanes::{Lanes, nearest};

/// What to try. `MAX` is the highest level; `ABSOLUTE` weighs absolute errors instead of squared ones.
pub struct AffineSearch<const MAX: i32, const ABSOLUTE: bool> {
    /// The candidates spread the range over `MAX + first + step · k` levels, k = 0 .. `candidates`.
    pub first: f32,
    pub step: f32,
    pub candidates: usize,
}

/// The best fit found, one sub-block a lane.
#[derive(Clone, Copy)]
pub struct AffineFit<L: Lanes> {
    pub scale: L::F,
    /// What to subtract (the reference's `the_min`).
    pub min: L::F,
    /// The fit's levels are nearest(inverse · (x − low)), clamped.
    pub inverse: L::F,
    pub low: L::F,
    /// Sum of the weights.
    pub weight: L::F,
}

/// An [`AffineFit`] of many sub-blocks, `N` of them.
pub struct Affine<const N: usize> {
    pub scale: [f32; N],
    pub min: [f32; N],
    pub inverse: [f32; N],
    pub low: [f32; N],
    pub weight: [f32; N],
}

impl<const N: usize> Affine<N> {
    pub fn new() -> Self {
        Self { scale: [0.0; N], min: [0.0; N], inverse: [0.0; N], low: [0.0; N], weight: [0.0; N] }
    }

    /// Keeps a fit of sub-blocks `at` ...
    #[inline(always)]
    pub fn put<L: Lanes>(&mut self, lanes: L, at: usize, fit: &AffineFit<L>) {
        lanes.store(fit.scale, &mut self.scale[at..]);
        lanes.store(fit.min, &mut self.min[at..]);
        lanes.store(fit.inverse, &mut self.inverse[at..]);
        lanes.store(fit.low, &mut self.low[at..]);
        lanes.store(fit.weight, &mut self.weight[at..]);
    }

    /// The levels that the search itself chose for sub-block `at` with values `x`.
    pub fn levels(&self, at: usize, x: &[f32], max: i32, levels: &mut [u8]) {
        for (level, &x) in levels.iter_mut().zip(x) {
            *level = nearest(self.inverse[at] * (x - self.low[at])).min(max).max(0) as u8;
        }
    }
}

/// State of one group of lanes during the search.
#[derive(Clone, Copy)]
struct State<L: Lanes> {
    /// Lanes without any spread; nothing to search.
    flat: L::M,
    smallest: L::F,
    largest: L::F,
    /// The reference's `min`: moves with every improvement, and the later candidates with it.
    low: L::F,
    sum_w: L::F,
    sum_x: L::F,
    best_error: L::F,
    best_scale: L::F,
    best_inverse: L::F,
    best_low: L::F,
}

impl<const MAX: i32, const ABSOLUTE: bool> AffineSearch<MAX, ABSOLUTE> {
    /// Fits `G` groups of lanes side by side, which hides the latency of the running sums.
    ///
    /// `x` and `w` are values and weights: [group][element], a sub-block a lane.
    #[inline(always)]
    pub fn fit<L: Lanes, const N: usize, const G: usize>(
        &self,
        lanes: L,
        x: &[[L::F; N]; G],
        w: &[[L::F; N]; G],
    ) -> [AffineFit<L>; G] {
        // Loops, not array::from_fn: its closures are not always inlined, and then compiled without the ISA.
        let mut states = [Self::start(lanes, &x[0], &w[0]); G];
        for g in 1..G {
            states[g] = Self::start(lanes, &x[g], &w[g]);
        }
        let mut levels = [[lanes.splat(0.0); N]; G];
        for k in 0..=self.candidates {
            // Candidate 0 is the plain range over MAX levels, with its own scale and minimum, unconditionally.
            let spread = match k {
                0 => MAX as f32,
                _ => self.first + self.step * (k - 1) as f32 + MAX as f32,
            };
            let mut inverse = [lanes.splat(0.0); G];
            let mut low = inverse;
            let mut small = true;
            for g in 0..G {
                low[g] = states[g].low;
                inverse[g] = states[g].inverse(lanes, spread);
                small &= states[g].products_are_small(lanes, inverse[g]);
            }
            let sums = if small {
                Self::sums::<L, N, G, true>(lanes, x, w, inverse, low, &mut levels)
            } else {
                Self::sums::<L, N, G, false>(lanes, x, w, inverse, low, &mut levels)
            };
            let mut scale = [lanes.splat(0.0); G];
            let mut min = scale;
            let mut solvable = [lanes.eq(scale[0], scale[0]); G];
            for g in 0..G {
                if k == 0 {
                    scale[g] = lanes.div(lanes.splat(1.0), inverse[g]);
                    min[g] = states[g].low;
                } else {
                    (scale[g], min[g], solvable[g]) = states[g].solve(lanes, sums[g]);
                }
            }
            let error = Self::errors(lanes, x, w, &levels, scale, min);
            for g in 0..G {
                let state = &mut states[g];
                if k == 0 {
                    state.best_error = error[g];
                }
                let better = match k {
                    0 => solvable[g],
                    _ => lanes.and(solvable[g], lanes.lt(error[g], state.best_error)),
                };
                state.best_low = lanes.select(better, state.low, state.best_low);
                state.best_error = lanes.select(better, error[g], state.best_error);
                state.best_scale = lanes.select(better, scale[g], state.best_scale);
                state.best_inverse = lanes.select(better, inverse[g], state.best_inverse);
                state.low = lanes.select(better, min[g], state.low);
            }
        }
        let mut fits = [states[0].finish(lanes); G];
        for g in 1..G {
            fits[g] = states[g].finish(lanes);
        }
        fits
    }

    /// Range and weight sums, and the first candidate's place.
    #[inline(always)]
    fn start<L: Lanes, const N: usize>(lanes: L, x: &[L::F; N], w: &[L::F; N]) -> State<L> {
        let zero = lanes.splat(0.0);
        let (mut smallest, mut largest) = (x[0], x[0]);
        let mut sum_w = w[0];
        let mut sum_x = lanes.mul(w[0], x[0]);
        for i in 1..N {
            smallest = lanes.min(x[i], smallest);
            largest = lanes.max(x[i], largest);
            sum_w = lanes.add(sum_w, w[i]);
            sum_x = lanes.add(sum_x, lanes.mul(w[i], x[i]));
        }
        let low = lanes.select(lanes.gt(smallest, zero), zero, smallest);
        State {
            flat: lanes.eq(largest, low),
            smallest,
            largest,
            low,
            sum_w,
            sum_x,
            best_error: zero,
            best_scale: zero,
            best_inverse: zero,
            best_low: low,
        }
    }

    /// Levels of a candidate, and the sums of w·l, w·l·l and w·l·x over the elements.
    #[inline(always)]
    fn sums<L: Lanes, const N: usize, const G: usize, const SMALL: bool>(
        lanes: L,
        x: &[[L::F; N]; G],
        w: &[[L::F; N]; G],
        inverse: [L::F; G],
        low: [L::F; G],
        levels: &mut [[L::F; N]; G],
    ) -> [[L::F; 3]; G] {
        let zero = lanes.splat(0.0);
        let top = lanes.splat(MAX as f32);
        let mut sums = [[zero; 3]; G];
        for i in 0..N {
            for g in 0..G {
                let (x, w) = (x[g][i], w[g][i]);
                let v = lanes.mul(inverse[g], lanes.sub(x, low[g]));
                let level = if SMALL {
                    lanes.max(lanes.min(lanes.nearest_small(v), top), zero)
                } else {
                    clamped_level(lanes, v, 0, MAX)
                };
                levels[g][i] = level;
                let weighted = lanes.mul(w, level);
                sums[g][0] = lanes.add(sums[g][0], weighted);
                sums[g][1] = lanes.add(sums[g][1], lanes.mul(weighted, level));
                sums[g][2] = lanes.add(sums[g][2], lanes.mul(weighted, x));
            }
        }
        sums
    }

    /// Weighted error of scale · level + min against the values.
    #[inline(always)]
    fn errors<L: Lanes, const N: usize, const G: usize>(
        lanes: L,
        x: &[[L::F; N]; G],
        w: &[[L::F; N]; G],
        levels: &[[L::F; N]; G],
        scale: [L::F; G],
        min: [L::F; G],
    ) -> [L::F; G] {
        let mut error = [lanes.splat(0.0); G];
        for i in 0..N {
            for g in 0..G {
                let fitted = lanes.add(lanes.mul(scale[g], levels[g][i]), min[g]);
                let off = lanes.sub(fitted, x[g][i]);
                let off = if ABSOLUTE { lanes.abs(off) } else { lanes.mul(off, off) };
                error[g] = lanes.add(error[g], lanes.mul(w[g][i], off));
            }
        }
        error
    }
}

impl<L: Lanes> State<L> {
    /// Levels per unit when the range is spread over `spread` levels.
    #[inline(always)]
    fn inverse(&self, lanes: L, spread: f32) -> L::F {
        lanes.div(lanes.splat(spread), lanes.sub(self.largest, self.low))
    }

    /// Whether every |inverse · (x − low)| is below 2^21, where plain rounding equals the reference's; rounding
    /// is monotone, so the two ends of the range speak for all. Flat lanes do not count: nothing reads them.
    #[inline(always)]
    fn products_are_small(&self, lanes: L, inverse: L::F) -> bool {
        let limit = lanes.splat(2_097_152.0);
        let upper = lanes.abs(lanes.mul(inverse, lanes.sub(self.largest, self.low)));
        let lower = lanes.abs(lanes.mul(inverse, lanes.sub(self.smallest, self.low)));
        let small = lanes.and(lanes.lt(upper, limit), lanes.lt(lower, limit));
        !lanes.any(lanes.and(lanes.not(small), lanes.not(self.flat)))
    }

    /// Scale and minimum of the weighted least-squares line through (level, x), and where there is one.
    #[inline(always)]
    fn solve(&self, lanes: L, sums: [L::F; 3]) -> (L::F, L::F, L::M) {
        let zero = lanes.splat(0.0);
        let [l, ll, xl] = sums;
        let (w, x) = (self.sum_w, self.sum_x);
        let determinant = lanes.sub(lanes.mul(w, ll), lanes.mul(l, l));
        let scale = lanes.div(lanes.sub(lanes.mul(w, xl), lanes.mul(x, l)), determinant);
        let min = lanes.div(lanes.sub(lanes.mul(ll, x), lanes.mul(l, xl)), determinant);
        let positive = lanes.gt(min, zero);
        let scale = lanes.select(positive, lanes.div(xl, ll), scale);
        (scale, lanes.select(positive, zero, min), lanes.gt(determinant, zero))
    }

    #[inline(always)]
    fn finish(&self, lanes: L) -> AffineFit<L> {
        let zero = lanes.splat(0.0);
        let low = lanes.select(lanes.gt(self.smallest, zero), zero, self.smallest);
        let min = lanes.select(self.flat, low, self.low);
        AffineFit {
            scale: lanes.select(self.flat, zero, self.best_scale),
            min: lanes.sub(lanes.splat(-0.0), min),
            inverse: lanes.select(self.flat, zero, self.best_inverse),
            low: lanes.select(self.flat, low, self.best_low),
            weight: self.sum_w,
        }
    }
}
