//! The scale that fits non-negative levels to values best, found as the reference finds it; a sub-block a lane.

use crate::simd::lanes::Lanes;

const MAX_ELEMENTS: usize = 32;

/// A scale for rounding `values` to levels 0 ..= `top`, by weighted least squares: first the best of nine
/// near `peak` / `top`, then single levels changed while that helps. 0 where no scale is sensible.
///
/// Levels are kept as unsigned bytes, so that a slightly negative value wraps to a high level just as it does in
/// the reference.
#[inline(always)]
pub(super) fn least_squares_scale<L: Lanes>(
    lanes: L,
    top: i32,
    (values, weights): (&[L::F], &[L::F]),
    peak: L::F,
) -> L::F {
    let byte = lanes.splat_i(0xff);
    let highest = lanes.splat_i(top);
    let one = lanes.splat(1.0);
    let elements = || values.iter().zip(weights);

    let mut inverse = lanes.div(lanes.splat(top as f32), peak);
    let scale = lanes.div(one, inverse);
    let mut least = lanes.splat(0.0);
    for (&x, &w) in elements() {
        let level = lanes.to_float(lanes.and_i(lanes.nearest(lanes.mul(inverse, x)), byte));
        let off = lanes.sub(x, lanes.mul(scale, level));
        least = lanes.add(least, lanes.mul(lanes.mul(w, off), off));
    }
    for step in (-4..=4).filter(|&step| step != 0) {
        let candidate = lanes.div(lanes.splat(0.1 * step as f32 + top as f32), peak);
        let scale = lanes.div(one, candidate);
        let mut error = lanes.splat(0.0);
        for (&x, &w) in elements() {
            let level = lanes.to_float(lanes.min_i(lanes.nearest(lanes.mul(candidate, x)), highest));
            let off = lanes.sub(x, lanes.mul(scale, level));
            error = lanes.add(error, lanes.mul(lanes.mul(w, off), off));
        }
        let better = lanes.lt(error, least);
        least = lanes.select(better, error, least);
        inverse = lanes.select(better, candidate, inverse);
    }

    let mut levels = [lanes.splat(0.0); MAX_ELEMENTS];
    let (mut xl, mut ll) = (lanes.splat(0.0), lanes.splat(0.0));
    for ((&x, &w), stored) in elements().zip(&mut levels) {
        let signed = lanes.min_i(lanes.nearest(lanes.mul(inverse, x)), highest);
        let level = lanes.to_float(signed);
        *stored = lanes.to_float(lanes.and_i(signed, byte));
        xl = lanes.add(xl, lanes.mul(lanes.mul(w, x), level));
        ll = lanes.add(ll, lanes.mul(lanes.mul(w, level), level));
    }
    let zero = lanes.splat(0.0);
    for _ in 0..5 {
        let mut changed = lanes.lt(one, zero);
        for ((&x, &w), stored) in elements().zip(&mut levels) {
            let wx = lanes.mul(w, x);
            let rest_xl = lanes.sub(xl, lanes.mul(wx, *stored));
            let rest_ll = lanes.sub(ll, lanes.mul(lanes.mul(w, *stored), *stored));
            let sensible = lanes.and(lanes.gt(rest_xl, zero), lanes.gt(rest_ll, zero));
            let ideal = lanes.div(lanes.mul(x, rest_ll), rest_xl);
            let signed = lanes.min_i(lanes.nearest(ideal), highest);
            let level = lanes.to_float(signed);
            let differs = lanes.and(sensible, lanes.not(lanes.eq(level, *stored)));
            let new_xl = lanes.add(rest_xl, lanes.mul(wx, level));
            let new_ll = lanes.add(rest_ll, lanes.mul(lanes.mul(w, level), level));
            let ours = lanes.mul(lanes.mul(new_xl, new_xl), ll);
            let theirs = lanes.mul(lanes.mul(xl, xl), new_ll);
            let better = lanes.and(differs, lanes.gt(ours, theirs));
            *stored = lanes.select(better, lanes.to_float(lanes.and_i(signed, byte)), *stored);
            xl = lanes.select(better, new_xl, xl);
            ll = lanes.select(better, new_ll, ll);
            changed = lanes.not(lanes.and(lanes.not(better), lanes.not(changed)));
        }
        if !lanes.any(changed) {
            break;
        }
    }
    lanes.select(lanes.gt(ll, zero), lanes.div(xl, ll), zero)
}
