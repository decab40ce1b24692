//! The searches for a block's scale (and minimum), each once, one sub-block a lane.
//!
//! Every lane does the reference's operations in the reference's order: sums run over the elements one by one,
//! products associate as written there, nothing is fused. Where the reference branches, lanes mask.

mod affine;
mod level_fit;
mod symmetric;

pub use affine::{Affine, AffineSearch};
pub use level_fit::fit_levels;
pub use symmetric::{Symmetric, fit_by_descent, fit_symmetric, largest_by_magnitude};

use crate::simd::lanes::Lanes;

/// Sub-blocks whose largest magnitude is below this count as all zeros.
pub const NEGLIGIBLE: f32 = 1e-15;

/// `nearest` clamped to `low ..= high`, as a float; right for any `v`, see [`Lanes::nearest`].
#[inline(always)]
fn clamped_level<L: Lanes>(lanes: L, v: L::F, low: i32, high: i32) -> L::F {
    let level = lanes.nearest(v);
    lanes.to_float(lanes.max_i(lanes.splat_i(low), lanes.min_i(lanes.splat_i(high), level)))
}
