//! What brings numbers into the range of half precision on devices, whatever their size.

/// The power of two that gives `largest` an exponent of 13, well within halves; it and its inverse are not subnormal.
pub(super) fn halving(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    2_f32.powi((13 - exponent).min(126))
}
