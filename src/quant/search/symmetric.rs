//! x ≈ scale · level, levels −LIMIT ..= LIMIT − 1: the searches of the types without a minimum.

use super::{NEGLIGIBLE, clamped_level};
use crate::simd::lanes::{Lanes, nearest};

/// The best fit found, one sub-block a lane.
pub struct SymmetricFit<L: Lanes> {
    pub scale: L::F,
    /// The fit's levels are LIMIT + nearest(inverse · x), clamped; NaN marks an all-zero sub-block (all levels 0).
    pub inverse: L::F,
}

/// A [`SymmetricFit`] of many sub-blocks, `N` of them.
pub struct Symmetric<const N: usize> {
    pub scale: [f32; N],
    pub inverse: [f32; N],
}

impl<const N: usize> Symmetric<N> {
    pub fn new() -> Self {
        Self { scale: [0.0; N], inverse: [0.0; N] }
    }

    /// Keeps a fit of sub-blocks `at` ...
    #[inline(always)]
    pub fn put<L: Lanes>(&mut self, lanes: L, at: usize, fit: &SymmetricFit<L>) {
        lanes.store(fit.scale, &mut self.scale[at..]);
        lanes.store(fit.inverse, &mut self.inverse[at..]);
    }

    /// The levels that the search itself chose for sub-block `at` with values `x`, offset by `limit`.
    pub fn levels(&self, at: usize, x: &[f32], limit: i32, levels: &mut [u8]) {
        for (level, &x) in levels.iter_mut().zip(x) {
            *level = symmetric_level(self.inverse[at], x, limit);
        }
    }
}

/// The offset level of `x` in a fit with this `inverse`.
#[inline(always)]
fn symmetric_level(inverse: f32, x: f32, limit: i32) -> u8 {
    if inverse.is_nan() {
        return 0;
    }
    (limit + nearest(inverse * x).min(limit - 1).max(-limit)) as u8
}

/// Candidates that are tried side by side, to hide the latency of the running sums: 6 × 3 are all.
const ABREAST: usize = 3;

/// The scale among 19 around the largest value's that fits best, each element weighted by `w`.
///
/// `x`, `w`: [element], a sub-block a lane. `x` may be infinite or NaN only where `WILD`.
#[inline(always)]
pub fn fit_symmetric<L: Lanes, const N: usize, const WILD: bool>(
    lanes: L,
    limit: i32,
    x: &[L::F; N],
    w: &[L::F; N],
) -> SymmetricFit<L> {
    let zero = lanes.splat(0.0);
    let one = lanes.splat(1.0);
    let (largest, magnitude) = largest_by_magnitude(lanes, x);
    let negligible = lanes.lt(magnitude, lanes.splat(NEGLIGIBLE));
    // All-zero lanes go through the motions with a harmless divisor.
    let divisor = lanes.select(negligible, one, largest);
    let mut wx = *x;
    for i in 0..N {
        wx[i] = lanes.mul(w[i], x[i]);
    }

    let mut best_inverse = lanes.div(lanes.splat(-limit as f32), divisor);
    let [[xl, ll]] = level_sums::<L, N, _, WILD>(lanes, limit, x, w, &wx, [best_inverse]);
    let mut scale = lanes.select(lanes.eq(ll, zero), zero, lanes.div(xl, ll));
    let mut best = lanes.mul(scale, xl);
    let offsets: [f32; 18] = std::array::from_fn(|k| if k < 9 { k as f32 - 9.0 } else { k as f32 - 8.0 });
    for offsets in offsets.chunks_exact(ABREAST) {
        let inverse: [L::F; ABREAST] =
            std::array::from_fn(|k| lanes.div(lanes.splat(-(limit as f32 + 0.1 * offsets[k])), divisor));
        let sums = level_sums::<L, N, _, WILD>(lanes, limit, x, w, &wx, inverse);
        for (inverse, [xl, ll]) in inverse.into_iter().zip(sums) {
            let better = lanes.gt(lanes.mul(xl, xl), lanes.mul(best, ll));
            let better = lanes.and(lanes.gt(ll, zero), better);
            scale = lanes.select(better, lanes.div(xl, ll), scale);
            best = lanes.select(better, lanes.mul(scale, xl), best);
            best_inverse = lanes.select(better, inverse, best_inverse);
        }
    }
    SymmetricFit {
        scale: lanes.select(negligible, zero, scale),
        inverse: lanes.select(negligible, lanes.splat(f32::NAN), best_inverse),
    }
}

/// Sums of w·x·l and w·l·l over the elements, for `K` candidates.
#[inline(always)]
fn level_sums<L: Lanes, const N: usize, const K: usize, const WILD: bool>(
    lanes: L,
    limit: i32,
    x: &[L::F; N],
    w: &[L::F; N],
    wx: &[L::F; N],
    inverse: [L::F; K],
) -> [[L::F; 2]; K] {
    let (bottom, top) = (lanes.splat(-limit as f32), lanes.splat((limit - 1) as f32));
    let mut sums = [[lanes.splat(0.0); 2]; K];
    for i in 0..N {
        for k in 0..K {
            let v = lanes.mul(inverse[k], x[i]);
            let level = if WILD {
                clamped_level(lanes, v, -limit, limit - 1)
            } else {
                // A finite |inverse · x| stays below limit + 1, far from where rounding would wrap.
                lanes.max(lanes.min(lanes.nearest_small(v), top), bottom)
            };
            sums[k][0] = lanes.add(sums[k][0], lanes.mul(wx[i], level));
            sums[k][1] = lanes.add(sums[k][1], lanes.mul(lanes.mul(w[i], level), level));
        }
    }
    sums
}

/// The first value of the largest magnitude, and that magnitude.
#[inline(always)]
pub fn largest_by_magnitude<L: Lanes, const N: usize>(lanes: L, x: &[L::F; N]) -> (L::F, L::F) {
    let (mut largest, mut magnitude) = (lanes.splat(0.0), lanes.splat(0.0));
    for &x in x {
        let size = lanes.abs(x);
        let larger = lanes.gt(size, magnitude);
        largest = lanes.select(larger, x, largest);
        magnitude = lanes.max(size, magnitude);
    }
    (largest, magnitude)
}

/// Starts from the largest value's scale and moves one level at a time while the fit, weighted by x², improves.
///
/// `x`: `G` groups of [element], a sub-block a lane. Returns the scales and the levels offset by `limit`.
#[inline(always)]
pub fn fit_by_descent<L: Lanes, const N: usize, const G: usize>(
    lanes: L,
    limit: i32,
    x: &[[L::F; N]; G],
) -> ([L::F; G], [[L::F; N]; G]) {
    let zero = lanes.splat(0.0);
    let mut levels = [[zero; N]; G];
    let (mut xl, mut ll, mut negligible) = ([zero; G], [zero; G], [lanes.lt(zero, zero); G]);
    for g in 0..G {
        let (largest, magnitude) = largest_by_magnitude(lanes, &x[g]);
        negligible[g] = lanes.lt(magnitude, lanes.splat(NEGLIGIBLE));
        let divisor = lanes.select(negligible[g], lanes.splat(1.0), largest);
        let inverse = lanes.div(lanes.splat(-limit as f32), divisor);
        for i in 0..N {
            let x = x[g][i];
            let level = clamped_level(lanes, lanes.mul(inverse, x), -limit, limit - 1);
            levels[g][i] = level;
            let w = lanes.mul(x, x);
            xl[g] = lanes.add(xl[g], lanes.mul(lanes.mul(w, x), level));
            ll[g] = lanes.add(ll[g], lanes.mul(lanes.mul(w, level), level));
        }
    }
    // A lane that is done stays as it is in further rounds, so all can go on until the last one is done.
    for _ in 0..5 {
        if !descend(lanes, limit, x, &mut levels, &mut xl, &mut ll) {
            break;
        }
    }
    let mut scale = [zero; G];
    for g in 0..G {
        let fitted = lanes.select(lanes.gt(ll[g], zero), lanes.div(xl[g], ll[g]), zero);
        scale[g] = lanes.select(negligible[g], zero, fitted);
        for level in &mut levels[g] {
            *level = lanes.select(negligible[g], zero, lanes.add(*level, lanes.splat(limit as f32)));
        }
    }
    (scale, levels)
}

/// One round of [`fit_by_descent`] over the elements; whether any level changed. `xl`, `ll`: sums of x²·x·l and
/// x²·l·l.
#[inline(always)]
fn descend<L: Lanes, const N: usize, const G: usize>(
    lanes: L,
    limit: i32,
    x: &[[L::F; N]; G],
    levels: &mut [[L::F; N]; G],
    xl: &mut [L::F; G],
    ll: &mut [L::F; G],
) -> bool {
    let zero = lanes.splat(0.0);
    let mut any = false;
    for i in 0..N {
        for g in 0..G {
            let (x, level) = (x[g][i], levels[g][i]);
            let w = lanes.mul(x, x);
            let wx = lanes.mul(w, x);
            let rest_xl = lanes.sub(xl[g], lanes.mul(wx, level));
            let rest_ll = lanes.sub(ll[g], lanes.mul(lanes.mul(w, level), level));
            let wanted = lanes.div(lanes.mul(x, rest_ll), rest_xl);
            let moved = clamped_level(lanes, wanted, -limit, limit - 1);
            let moved_xl = lanes.add(rest_xl, lanes.mul(wx, moved));
            let moved_ll = lanes.add(rest_ll, lanes.mul(lanes.mul(w, moved), moved));
            let gain = lanes.gt(
                lanes.mul(lanes.mul(moved_xl, moved_xl), ll[g]),
                lanes.mul(lanes.mul(xl[g], xl[g]), moved_ll),
            );
            let changed = lanes.and(lanes.gt(rest_xl, zero), lanes.not(lanes.eq(moved, level)));
            let changed = lanes.and(changed, lanes.and(lanes.gt(moved_ll, zero), gain));
            levels[g][i] = lanes.select(changed, moved, level);
            xl[g] = lanes.select(changed, moved_xl, xl[g]);
            ll[g] = lanes.select(changed, moved_ll, ll[g]);
            any |= lanes.any(changed);
        }
    }
    any
}
