//! Exponential functions, of every ISA's own operations.

use super::WideFloats;

/// 1.5 · 2^23. Floats near it are integers, and the lowest bits say which: a small number plus it is rounded to the nearest integer, ties to even.
pub const ROUNDER: f32 = 12_582_912.0;

/// What every ISA builds from its own operations.
pub trait IsaExt: WideFloats {
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
}

impl<I: WideFloats> IsaExt for I {}
