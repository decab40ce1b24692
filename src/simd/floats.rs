//! Floats in wide vectors, for every ISA.

use super::MAX_LANES;

/// 1.5 · 2^23. Floats near it are integers, and the lowest bits say which: a small number plus it is rounded to the nearest integer, ties to even.
pub const ROUNDER: f32 = 12_582_912.0;

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
    /// `a * 2^n`, where `by` is [`ROUNDER`] + `n`; both `a` and the result are normal numbers.
    fn f_raise(self, a: Self::F, by: Self::F) -> Self::F;
    /// [`WideFloats::f_raise`] where `x` is at least `least`, 0 where it is less or NaN.
    fn f_raise_from(self, a: Self::F, by: Self::F, x: Self::F, least: Self::F) -> Self::F;

    /// `e^x`, within 2 units in the last place. Arguments are held to -87.3 … 88, where the result is still a
    /// normal number.
    ///
    /// x = n·ln 2 + r with |r| ≤ ln 2 / 2, then a degree-6 Taylor polynomial of e^r (its error there is
    /// below 2^-25) scaled by 2^n. ln 2 is split so that n·ln 2 is exact in its high part.
    #[inline(always)]
    fn f_exp(self, x: Self::F) -> Self::F {
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let x = self.f_min(x, self.f_splat(88.0));
        let clamped = self.f_max(x, self.f_splat(-87.336_54));
        let rounder = self.f_splat(ROUNDER);
        let rounded = self.f_add(self.f_mul(clamped, self.f_splat(std::f32::consts::LOG2_E)), rounder);
        let n = self.f_sub(rounded, rounder);
        let r = self.f_fnma(n, self.f_splat(LN2_HIGH), clamped);
        let r = self.f_fnma(n, self.f_splat(LN2_LOW), r);
        let mut p = self.f_splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.f_fma(p, r, self.f_splat(c));
        }
        self.f_raise(p, rounded)
    }

    /// `2^x` for `x` of at most 127, within 3 units in the last place, 1 for 0; 0 where `x` is below -126, the least normal number's, and for NaN.
    ///
    /// x = n + r with |r| ≤ 1/2, then the polynomial of degree 5 and value 1 at 0 whose relative error is smallest there (2^-23.4),
    /// scaled by 2^n.
    #[inline(always)]
    #[expect(
        clippy::approx_constant,
        reason = "the best polynomial's coefficient is near ln 2 but another number"
    )]
    fn f_exp2(self, x: Self::F) -> Self::F {
        let rounder = self.f_splat(ROUNDER);
        let rounded = self.f_add(x, rounder);
        let r = self.f_sub(x, self.f_sub(rounded, rounder));
        let mut p = self.f_splat(0.001_326_472_7);
        for c in [0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0] {
            p = self.f_fma(p, r, self.f_splat(c));
        }
        self.f_raise_from(p, rounded, x, self.f_splat(-126.0))
    }

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
