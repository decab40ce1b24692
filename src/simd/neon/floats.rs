//! [`WideFloats`] of NEON.
//!
//! Safety, for every `unsafe` in this file: as in the module above.

use std::arch::aarch64::*;

use super::products::Products;
use super::{Floats, On, from_halves, to_halves};
use crate::simd::{WideFloats, checked, checked_mut};

impl<P: Products> WideFloats for On<P> {
    const LANES: usize = 8;
    type F = Floats;

    #[inline(always)]
    fn f_splat(self, x: f32) -> Floats {
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    fn f_load(self, from: &[f32]) -> Floats {
        let from = checked::<8, _>(from);
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }
    #[inline(always)]
    fn f_store(self, v: Floats, to: &mut [f32]) {
        let to = checked_mut::<8, _>(to);
        unsafe {
            vst1q_f32(to, v[0]);
            vst1q_f32(to.add(4), v[1]);
        }
    }
    #[inline(always)]
    fn f_store_f16(self, v: Floats, to: &mut [u16]) {
        let to = checked_mut::<8, _>(to);
        unsafe { vst1q_u16(to, vcombine_u16(to_halves(v[0]), to_halves(v[1]))) }
    }
    #[inline(always)]
    fn f_load_f16(self, from: &[u16]) -> Floats {
        let from = checked::<8, _>(from);
        unsafe { [from_halves(vld1_u16(from)), from_halves(vld1_u16(from.add(4)))] }
    }
    #[inline(always)]
    fn f_load_bf16(self, from: &[u16]) -> Floats {
        unsafe {
            let bits = vld1q_u16(checked::<8, _>(from));
            let words = [vshll_n_u16::<16>(vget_low_u16(bits)), vshll_high_n_u16::<16>(bits)];
            both!(vreinterpretq_f32_u32(words))
        }
    }
    #[inline(always)]
    fn f_add(self, a: Floats, b: Floats) -> Floats {
        unsafe { both!(vaddq_f32(a, b)) }
    }
    #[inline(always)]
    fn f_sub(self, a: Floats, b: Floats) -> Floats {
        unsafe { both!(vsubq_f32(a, b)) }
    }
    #[inline(always)]
    fn f_mul(self, a: Floats, b: Floats) -> Floats {
        unsafe { both!(vmulq_f32(a, b)) }
    }
    #[inline(always)]
    fn f_div(self, a: Floats, b: Floats) -> Floats {
        unsafe { both!(vdivq_f32(a, b)) }
    }
    #[inline(always)]
    fn f_max(self, a: Floats, b: Floats) -> Floats {
        // As the other ISAs have it, `b` where either is NaN; `fmax` would give NaN.
        let larger = unsafe { both!(vcgtq_f32(a, b)) };
        unsafe { both!(vbslq_f32(larger, a, b)) }
    }
    #[inline(always)]
    fn f_min(self, a: Floats, b: Floats) -> Floats {
        let smaller = unsafe { both!(vcltq_f32(a, b)) };
        unsafe { both!(vbslq_f32(smaller, a, b)) }
    }
    #[inline(always)]
    fn f_abs(self, a: Floats) -> Floats {
        unsafe { both!(vabsq_f32(a)) }
    }
    #[inline(always)]
    fn f_fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        unsafe { both!(vfmaq_f32(c, a, b)) }
    }
    #[inline(always)]
    fn f_fnma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        unsafe { both!(vfmsq_f32(c, a, b)) }
    }
    #[inline(always)]
    fn f_raise(self, a: Floats, by: Floats) -> Floats {
        unsafe {
            let (a, by) = (both!(vreinterpretq_s32_f32(a)), both!(vreinterpretq_s32_f32(by)));
            // (A shift's distance is a const argument, which the macro does not pass on.)
            let exponent = [vshlq_n_s32::<23>(by[0]), vshlq_n_s32::<23>(by[1])];
            let raised = both!(vaddq_s32(a, exponent));
            both!(vreinterpretq_f32_s32(raised))
        }
    }
    #[inline(always)]
    fn f_raise_from(self, a: Floats, by: Floats, x: Floats, least: Floats) -> Floats {
        unsafe {
            let raised = self.f_raise(a, by);
            let (raised, keep) = (both!(vreinterpretq_u32_f32(raised)), both!(vcgeq_f32(x, least)));
            let kept = both!(vandq_u32(raised, keep));
            both!(vreinterpretq_f32_u32(kept))
        }
    }
}
