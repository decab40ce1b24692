//! LayerNorm, GELU and Phi-3-small's GEGELU, row by row.

use crate::simd::{Isa, Kernel, Level, MAX_LANES, dispatch_at};

/// Applies `f` to vectors of `a` and `b` and stores what it gives in `out`. A short last vector is filled up with zeros,
/// so that every element goes the same way.
#[inline(always)]
fn zip_into<I: Isa>(isa: I, a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(I::F, I::F) -> I::F) {
    let whole = out.len() / I::LANES * I::LANES;
    let mut i = 0;
    while i < whole {
        isa.f_store(f(isa.f_load(&a[i..]), isa.f_load(&b[i..])), &mut out[i..]);
        i += I::LANES;
    }
    if whole < out.len() {
        let (mut x, mut y) = ([0.0f32; MAX_LANES], [0.0f32; MAX_LANES]);
        let rest = out.len() - whole;
        x[..rest].copy_from_slice(&a[whole..]);
        y[..rest].copy_from_slice(&b[whole..]);
        let mut last = [0.0f32; MAX_LANES];
        isa.f_store(f(isa.f_load(&x), isa.f_load(&y)), &mut last);
        out[whole..].copy_from_slice(&last[..rest]);
    }
}

/// `x · sigmoid(k · x)` for `k · x` given as `z`: `x / (1 + e^-z)`.
#[inline(always)]
fn gated<I: Isa>(isa: I, x: I::F, z: I::F) -> I::F {
    let e = isa.f_exp(isa.f_sub(isa.f_splat(0.0), z));
    isa.f_div(x, isa.f_add(isa.f_splat(1.0), e))
}

/// `out = (x - mean) / √(var + eps) * weight + bias` for one row; all of one length.
pub fn layer_norm(level: Level, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    struct LayerNorm<'a> {
        x: &'a [f32],
        weight: &'a [f32],
        bias: &'a [f32],
        eps: f32,
        out: &'a mut [f32],
    }
    impl Kernel for LayerNorm<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let Self { x, weight, bias, eps, out } = self;
            // Sums in f64, as in the RMS norm: a row has thousands of elements and one may dwarf the rest.
            let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
                x.chunks(64).map(|chunk| chunk.iter().map(|&v| f(f64::from(v))).sum::<f64>()).sum()
            };
            let mean = sum(&|v| v) / x.len() as f64;
            let variance = sum(&|v| (v - mean) * (v - mean)) / x.len() as f64;
            let scale = isa.f_splat((1.0 / (variance + f64::from(eps)).sqrt()) as f32);
            let mean = isa.f_splat(mean as f32);
            zip_into(isa, x, weight, out, |x, w| isa.f_mul(isa.f_mul(isa.f_sub(x, mean), scale), w));
            for (out, bias) in out.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
    assert!(x.len() == weight.len() && x.len() == bias.len() && x.len() == out.len());
    dispatch_at(level, LayerNorm { x, weight, bias, eps, out });
}

/// `x = gelu(x)` with the approximation `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))` (Hendrycks & Gimpel 2016),
/// which is `x · sigmoid(2 · √(2/π) · (x + 0.044715 x³))`.
pub fn gelu(level: Level, x: &mut [f32]) {
    struct Gelu<'a>(&'a mut [f32]);
    impl Kernel for Gelu<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            /// 2 · √(2/π).
            const SLOPE: f32 = 1.595_769;
            let (one, cube, slope) = (isa.f_splat(1.0), isa.f_splat(0.044_715), isa.f_splat(SLOPE));
            let activate = |x: I::F| {
                let inner = isa.f_mul(x, isa.f_fma(isa.f_mul(x, x), cube, one));
                gated(isa, x, isa.f_mul(inner, slope))
            };
            let (whole, rest) = self.0.split_at_mut(self.0.len() / I::LANES * I::LANES);
            for chunk in whole.chunks_exact_mut(I::LANES) {
                isa.f_store(activate(isa.f_load(chunk)), chunk);
            }
            let mut last = [0.0f32; MAX_LANES];
            last[..rest.len()].copy_from_slice(rest);
            let activated = activate(isa.f_load(&last));
            isa.f_store(activated, &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
    dispatch_at(level, Gelu(x));
}

/// `out = quick_gelu(min(gate, limit)) · (clamp(up, -limit, limit) + 1)`, where `quick_gelu(x) = x · sigmoid(1.702 x)`;
/// all of one length.
pub fn gegelu(level: Level, gate: &[f32], up: &[f32], limit: f32, out: &mut [f32]) {
    struct Gegelu<'a>(&'a [f32], &'a [f32], f32, &'a mut [f32]);
    impl Kernel for Gegelu<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let Self(gate, up, limit, out) = self;
            let (one, slope) = (isa.f_splat(1.0), isa.f_splat(1.702));
            let (high, low) = (isa.f_splat(limit), isa.f_splat(-limit));
            zip_into(isa, gate, up, out, |gate, up| {
                let gate = isa.f_min(gate, high);
                let up = isa.f_max(isa.f_min(up, high), low);
                isa.f_mul(gated(isa, gate, isa.f_mul(gate, slope)), isa.f_add(up, one))
            });
        }
    }
    assert!(gate.len() == out.len() && up.len() == out.len());
    dispatch_at(level, Gegelu(gate, up, limit, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, k: f32, size: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * k).sin() * size).collect()
    }

    /// Runs `check` on every ISA and at lengths with and without a short last vector.
    fn everywhere(check: impl Fn(Level, usize)) {
        for level in Level::available() {
            for n in [1, 5, 16, 31, 96, 257] {
                check(level, n);
            }
        }
    }

    #[test]
    fn layer_norm_follows_its_formula() {
        everywhere(|level, n| {
            let x: Vec<f32> = wave(n, 0.7, 3.0).iter().map(|x| x + 40.0).collect();
            let (w, b) = (wave(n, 0.3, 2.0), wave(n, 0.9, 1.0));
            let mut out = vec![f32::NAN; n];
            layer_norm(level, &x, &w, &b, 1e-5, &mut out);
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let want =
                    (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(w[i]) + f64::from(b[i]);
                assert!(
                    (f64::from(out[i]) - want).abs() < 3e-5,
                    "{level:?}, element {i} of {n}: {} not {want}",
                    out[i]
                );
            }
        });
    }

    #[test]
    fn gelu_follows_its_formula() {
        everywhere(|level, n| {
            let x = wave(n, 0.7, 12.0);
            let mut out = x.clone();
            gelu(level, &mut out);
            for i in 0..n {
                let v = f64::from(x[i]);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v.powi(3));
                let want = v / 2.0 * (1.0 + inner.tanh());
                assert!(
                    (f64::from(out[i]) - want).abs() < 1e-5,
                    "{level:?}: gelu({v}) is {} not {want}",
                    out[i]
                );
            }
        });
        let mut extremes = [-1e6, -30.0, -0.0, 30.0, 1e6];
        gelu(Level::current(), &mut extremes);
        assert_eq!(extremes[2..], [0.0, 30.0, 1e6]);
        assert!(extremes[..2].iter().all(|x| x.abs() < 1e-30));
    }

    #[test]
    fn gegelu_follows_its_formula_and_its_limit() {
        everywhere(|level, n| {
            let (gate, up) = (wave(n, 0.7, 30.0), wave(n, 0.3, 30.0));
            let mut out = vec![f32::NAN; n];
            gegelu(level, &gate, &up, 20.0, &mut out);
            for i in 0..n {
                let g = f64::from(gate[i]).min(20.0);
                let want = g / (1.0 + (-1.702 * g).exp()) * (f64::from(up[i]).clamp(-20.0, 20.0) + 1.0);
                assert!(
                    (f64::from(out[i]) - want).abs() < 1e-3,
                    "{level:?}, element {i} of {n}: {} not {want}",
                    out[i]
                );
            }
            gegelu(level, &gate, &up, f32::INFINITY, &mut out);
            let g = f64::from(gate[0]);
            assert!(
                (f64::from(out[0]) - g / (1.0 + (-1.702 * g).exp()) * (f64::from(up[0]) + 1.0)).abs() < 1e-3
            );
        });
    }
}
