//! Floats in wide vectors, for every ISA.

use super::MAX_LANES;

/// Wide vectors of floats. Arithmetic is IEEE single precision, `fma` fused on every ISA, so results do not depend on the ISA.
pub trait WideFloats: Copy + Send + Sync + 'static {
    /// 32-bit lanes of a wide vector: 8 or 16.
    const LANES: usize;

    /// Wide: `LANES` f32.
    type F: Copy;

    fn f_splat(self, x: f32) -> Self::F;
    /// The first `LANES` values of `from`.
    fn f_load(self, from: &[f32]) -> Self::F;
    fn f_store(self, v: Self::F, to: &mut [f32]);
    /// Rounded to half precision, ties to even.
    fn f_store_f16(self, v: Self::F, to: &mut [u16]);
    /// The first `LANES` half-precision values of `from`.
    fn f_load_f16(self, from: &[u16]) -> Self::F;
    /// The first `LANES` bfloat16 values of `from`.
    fn f_load_bf16(self, from: &[u16]) -> Self::F;
    fn f_add(self, a: Self::F, b: Self::F) -> Self::F;
    fn f_sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn f_mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn f_div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where it is greater, else `b`, also where either is NaN.
    fn f_max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where it is less, else `b`, also where either is NaN.
    fn f_min(self, a: Self::F, b: Self::F) -> Self::F;
    fn f_abs(self, a: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn f_fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    fn f_fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * 2^n`, where `by` is [`ROUNDER`](super::ROUNDER) + `n`; both `a` and the result are normal numbers.
    fn f_raise(self, a: Self::F, by: Self::F) -> Self::F;
    /// [`WideFloats::f_raise`] where `x` is at least `least`, 0 where it is less or NaN.
    fn f_raise_from(self, a: Self::F, by: Self::F, x: Self::F, least: Self::F) -> Self::F;
    /// The sum of all lanes, as lane pairs 8 (where there are 16), 4, 2, 1 apart are added.
    #[inline(always)]
    fn f_sum(self, v: Self::F) -> f32 {
        let mut lanes = [0.0f32; MAX_LANES];
        self.f_store(v, &mut lanes);
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    fn f_largest(self, v: Self::F) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
        self.f_store(v, &mut lanes);
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = lanes[i].max(lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }

    /// Lane `i` is [`WideFloats::f_sum`] of the vector `v[i * LANES..]`, or [`WideFloats::f_largest`] if `LARGEST`, for the first `count`. There are `LANES`
    /// vectors.
    #[inline(always)]
    fn f_across<const LARGEST: bool>(self, v: &[f32], count: usize) -> Self::F {
        across_one_by_one::<Self, LARGEST>(self, v, count)
    }
}

/// [`WideFloats::f_across`], vector after vector.
#[inline(always)]
pub(super) fn across_one_by_one<I: WideFloats, const LARGEST: bool>(isa: I, v: &[f32], count: usize) -> I::F {
    let mut lanes = [0.0; MAX_LANES];
    for i in 0..count {
        let vector = isa.f_load(&v[i * I::LANES..]);
        lanes[i] = if LARGEST { isa.f_largest(vector) } else { isa.f_sum(vector) };
    }
    isa.f_load(&lanes)
}
