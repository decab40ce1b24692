//! x ≈ scale · level, levels 0 ..= max, for a super-block's own scales and minimums; one super-block a lane.

use super::NEGLIGIBLE;
use crate::simd::lanes::Lanes;

/// The scale and levels (bytes, as floats) that fit non-negative `x` best under weights `w`.
///
/// `x`, `w`: [sub-block], a super-block a lane. Candidates around the largest value's scale first, then one
/// level at a time while it improves. A negative `x` gives levels that wrap as bytes, as in the reference.
#[inline(always)]
pub fn fit_levels<L: Lanes, const N: usize>(
    lanes: L,
    max: i32,
    x: &[L::F; N],
    w: &[L::F; N],
) -> (L::F, [L::F; N]) {
    let zero = lanes.splat(0.0);
    let one = lanes.splat(1.0);
    let mut largest = zero;
    for &x in x {
        largest = lanes.max(largest, x);
    }
    let negligible = lanes.lt(largest, lanes.splat(NEGLIGIBLE));
    let inverse = best_inverse(lanes, max, x, w, lanes.select(negligible, one, largest));

    let mut levels = [zero; N];
    let (mut xl, mut ll) = (zero, zero);
    for i in 0..N {
        let level = capped(lanes, lanes.mul(inverse, x[i]), max);
        levels[i] = as_byte(lanes, level);
        let level = lanes.to_float(level);
        xl = lanes.add(xl, lanes.mul(lanes.mul(w[i], x[i]), level));
        ll = lanes.add(ll, lanes.mul(lanes.mul(w[i], level), level));
    }
    for _ in 0..5 {
        let mut any = false;
        for i in 0..N {
            let (x, w, level) = (x[i], w[i], levels[i]);
            let wx = lanes.mul(w, x);
            let rest_xl = lanes.sub(xl, lanes.mul(wx, level));
            let rest_ll = lanes.sub(ll, lanes.mul(lanes.mul(w, level), level));
            let wanted = capped(lanes, lanes.div(lanes.mul(x, rest_ll), rest_xl), max);
            let moved = lanes.to_float(wanted);
            let moved_xl = lanes.add(rest_xl, lanes.mul(wx, moved));
            let moved_ll = lanes.add(rest_ll, lanes.mul(lanes.mul(w, moved), moved));
            let gain = lanes
                .gt(lanes.mul(lanes.mul(moved_xl, moved_xl), ll), lanes.mul(lanes.mul(xl, xl), moved_ll));
            let changed = lanes.and(lanes.gt(rest_xl, zero), lanes.gt(rest_ll, zero));
            let changed = lanes.and(changed, lanes.and(lanes.not(lanes.eq(moved, level)), gain));
            levels[i] = lanes.select(changed, as_byte(lanes, wanted), level);
            xl = lanes.select(changed, moved_xl, xl);
            ll = lanes.select(changed, moved_ll, ll);
            any |= lanes.any(changed);
        }
        if !any {
            break;
        }
    }
    let scale = lanes.select(lanes.gt(ll, zero), lanes.div(xl, ll), zero);
    for level in &mut levels {
        *level = lanes.select(negligible, zero, *level);
    }
    (lanes.select(negligible, zero, scale), levels)
}

/// The inverse scale of the least weighted squared error, among 9 around max / largest.
#[inline(always)]
fn best_inverse<L: Lanes, const N: usize>(
    lanes: L,
    max: i32,
    x: &[L::F; N],
    w: &[L::F; N],
    largest: L::F,
) -> L::F {
    let one = lanes.splat(1.0);
    let mut best = lanes.div(lanes.splat(max as f32), largest);
    let scale = lanes.div(one, best);
    let mut best_error = lanes.splat(0.0);
    for i in 0..N {
        // The reference's first candidate keeps its levels in bytes and does not cap them.
        let level = as_byte(lanes, lanes.nearest(lanes.mul(best, x[i])));
        best_error = lanes.add(best_error, squared(lanes, x[i], w[i], scale, level));
    }
    for offset in [-4.0_f32, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0] {
        let inverse = lanes.div(lanes.splat(0.1 * offset + max as f32), largest);
        let scale = lanes.div(one, inverse);
        let mut error = lanes.splat(0.0);
        for i in 0..N {
            let level = lanes.to_float(capped(lanes, lanes.mul(inverse, x[i]), max));
            error = lanes.add(error, squared(lanes, x[i], w[i], scale, level));
        }
        let better = lanes.lt(error, best_error);
        best_error = lanes.select(better, error, best_error);
        best = lanes.select(better, inverse, best);
    }
    best
}

#[inline(always)]
fn squared<L: Lanes>(lanes: L, x: L::F, w: L::F, scale: L::F, level: L::F) -> L::F {
    let off = lanes.sub(x, lanes.mul(scale, level));
    lanes.mul(lanes.mul(w, off), off)
}

/// The nearest level, at most `max`.
#[inline(always)]
fn capped<L: Lanes>(lanes: L, v: L::F, max: i32) -> L::I {
    lanes.min_i(lanes.splat_i(max), lanes.nearest(v))
}

/// What is left of a level that is stored in a byte.
#[inline(always)]
fn as_byte<L: Lanes>(lanes: L, level: L::I) -> L::F {
    lanes.to_float(lanes.and_i(level, lanes.splat_i(0xff)))
}
