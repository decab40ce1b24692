//! Norms, activations, residual sums and rotary embedding.

use super::{SharedMut, prefetch_bytes};
use crate::simd::{Isa, Kernel, Level, dispatch, dispatch_at};

/// `out = x / sqrt(mean(x²) + eps) * weight` for one row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    struct RmsNorm<'a>(&'a [f32], &'a [f32], f32, &'a mut [f32]);
    impl Kernel for RmsNorm<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let Self(x, weight, eps, out) = self;
            // Squares are summed in f64: a row has thousands of them and one outlier may dwarf the rest.
            let (eights, rest) = x.as_chunks::<8>();
            let mut squares = [0.0f64; 8];
            for eight in eights {
                for i in 0..8 {
                    squares[i] += f64::from(eight[i]) * f64::from(eight[i]);
                }
            }
            let mut square = 0.0;
            for s in squares {
                square += s;
            }
            for &v in rest {
                square += f64::from(v) * f64::from(v);
            }
            let scale = (1.0 / (square / x.len() as f64 + f64::from(eps)).sqrt()) as f32;
            let whole = x.len() / I::LANES * I::LANES;
            let s = isa.f_splat(scale);
            let mut i = 0;
            while i < whole {
                let y = isa.f_mul(isa.f_mul(isa.f_load(&x[i..]), s), isa.f_load(&weight[i..]));
                isa.f_store(y, &mut out[i..]);
                i += I::LANES;
            }
            for i in whole..x.len() {
                out[i] = x[i] * scale * weight[i];
            }
        }
    }
    assert!(x.len() == weight.len() && x.len() == out.len());
    dispatch(RmsNorm(x, weight, eps, out));
}

/// `out = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    struct Swiglu<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Kernel for Swiglu<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let Self(gate, up, out) = self;
            swiglu_row(isa, gate, up, out);
        }
    }
    assert!(gate.len() == out.len() && up.len() == out.len());
    dispatch(Swiglu(gate, up, out));
}

/// The same for some columns of all rows: a row of `gate_up` has `count` of gate, then as many of up; what comes out are columns `first ..` of
/// `out`, whose rows have `width`.
///
/// # Safety
/// Nobody else reads or writes these columns meanwhile.
pub unsafe fn swiglu_columns(
    level: Level,
    gate_up: &[f32],
    count: usize,
    out: &SharedMut<f32>,
    width: usize,
    first: usize,
) {
    struct Columns<'a>(&'a [f32], usize, &'a SharedMut<'a, f32>, usize, usize);
    impl Kernel for Columns<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let Self(gate_up, count, out, width, first) = self;
            for row in 0..gate_up.len() / (2 * count) {
                let (gate, up) = gate_up[row * 2 * count..][..2 * count].split_at(count);
                // Sound: the caller keeps others away from these columns, and rows lie apart.
                swiglu_row(isa, gate, up, unsafe { out.slice(row * width + first, count) });
            }
        }
    }
    assert!(count > 0 && first + count <= width);
    dispatch_at(level, Columns(gate_up, count, out, width, first));
}

/// As [`swiglu`].
#[inline(always)]
fn swiglu_row<I: Isa>(isa: I, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let one = isa.f_splat(1.0);
    let mut i = 0;
    // A short last vector is filled up with zeros, so that every element goes the same way.
    while i < out.len() {
        let mut tail = [0.0f32; 2 * crate::simd::MAX_LANES];
        let count = I::LANES.min(out.len() - i);
        let (g, u) = if count == I::LANES {
            (isa.f_load(&gate[i..]), isa.f_load(&up[i..]))
        } else {
            tail[..count].copy_from_slice(&gate[i..]);
            tail[I::LANES..][..count].copy_from_slice(&up[i..]);
            (isa.f_load(&tail), isa.f_load(&tail[I::LANES..]))
        };
        let e = isa.f_exp(isa.f_sub(isa.f_splat(0.0), g));
        let y = isa.f_mul(isa.f_div(g, isa.f_add(one, e)), u);
        if count == I::LANES {
            isa.f_store(y, &mut out[i..]);
        } else {
            isa.f_store(y, &mut tail);
            out[i..].copy_from_slice(&tail[..count]);
        }
        i += I::LANES;
    }
}

/// `x += y`.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    struct Add<'a>(&'a mut [f32], &'a [f32]);
    impl Kernel for Add<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, _isa: I) {
            for (x, y) in self.0.iter_mut().zip(self.1) {
                *x += y;
            }
        }
    }
    assert_eq!(x.len(), y.len());
    dispatch(Add(x, y));
}

/// Asks for `values`, which are needed soon. Heads of the same number lie as far apart as rows are long, so that processors do not foresee them.
pub fn ask_for(values: &[f32]) {
    struct Ask<'a>(&'a [f32]);
    impl Kernel for Ask<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            prefetch_bytes(isa, self.0.as_ptr().cast(), size_of_val(self.0));
        }
    }
    dispatch(Ask(values));
}

/// Rotates the first `2 * cos.len()` elements of a head in place (the NeoX pairing: element `i` with
/// element `i + cos.len()`); the rest stays.
pub fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    struct Rotate<'a>(&'a mut [f32], &'a [f32], &'a [f32]);
    impl Kernel for Rotate<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, _isa: I) {
            let Self(head, cos, sin) = self;
            let (low, rest) = head.split_at_mut(cos.len());
            for (((a, b), c), s) in low.iter_mut().zip(rest).zip(cos).zip(sin) {
                let (x, y) = (*a, *b);
                *a = x * c - y * s;
                *b = y * c + x * s;
            }
        }
    }
    assert!(cos.len() == sin.len() && head.len() >= 2 * cos.len());
    dispatch(Rotate(head, cos, sin));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, k: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * k).sin() * 3.0).collect()
    }

    #[test]
    fn norm_and_swiglu_follow_their_formulas_at_any_length() {
        for n in [1, 5, 16, 31, 96, 257] {
            let (x, w) = (wave(n, 0.7), wave(n, 0.3));
            let mut out = vec![f32::NAN; n];
            rms_norm(&x, &w, 1e-5, &mut out);
            let mean = x.iter().map(|&v| f64::from(v * v)).sum::<f64>() / n as f64;
            for i in 0..n {
                let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                assert!((f64::from(out[i]) - want).abs() < 1e-5, "norm of {n}, element {i}");
            }
            out.fill(f32::NAN);
            swiglu(&x, &w, &mut out);
            for i in 0..n {
                let g = f64::from(x[i]);
                let want = g / (1.0 + (-g).exp()) * f64::from(w[i]);
                assert!((f64::from(out[i]) - want).abs() < 1e-5, "swiglu of {n}, element {i}");
            }
        }
    }

    /// `2^x` of each `x` if `two`, else `e^x`.
    struct Exponential<'a> {
        two: bool,
        x: &'a [f32],
        y: &'a mut [f32],
    }

    impl Kernel for Exponential<'_> {
        type Output = ();
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            for (x, y) in self.x.chunks_exact(I::LANES).zip(self.y.chunks_exact_mut(I::LANES)) {
                let x = isa.f_load(x);
                isa.f_store(if self.two { isa.f_exp2(x) } else { isa.f_exp(x) }, y);
            }
        }
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        let x: Vec<f32> = (0..4096).map(|i| -87.0 + i as f32 * (175.0 / 4096.0)).collect();
        for level in crate::simd::Level::available() {
            let mut y = vec![f32::NAN; x.len()];
            crate::simd::dispatch_at(level, Exponential { two: false, x: &x, y: &mut y });
            for (x, y) in x.iter().zip(&y) {
                let want = f64::from(*x).exp();
                assert!((f64::from(*y) / want - 1.0).abs() < 3e-7, "e^{x} is {want}, not {y}, on {level:?}");
            }
        }
    }

    #[test]
    fn powers_of_two_are_accurate_and_end_in_zero() {
        let x: Vec<f32> = (0..4096).map(|i| -126.0 + i as f32 * (253.0 / 4096.0)).collect();
        let ends = [0.0, -0.0, -1.0, 1.0, -127.0, -1e30, f32::NEG_INFINITY, f32::NAN];
        let ends = [ends, ends].concat();
        for level in crate::simd::Level::available() {
            let mut y = vec![f32::NAN; x.len()];
            crate::simd::dispatch_at(level, Exponential { two: true, x: &x, y: &mut y });
            for (x, y) in x.iter().zip(&y) {
                let want = f64::from(*x).exp2();
                assert!((f64::from(*y) / want - 1.0).abs() < 3e-7, "2^{x} is {want}, not {y}, on {level:?}");
            }
            let mut y = [f32::NAN; 16];
            crate::simd::dispatch_at(level, Exponential { two: true, x: &ends, y: &mut y });
            assert_eq!(y[..8], [1.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0, 0.0], "{level:?}");
        }
    }

    #[test]
    fn rotation_keeps_the_length_of_each_pair_and_the_tail() {
        let mut head = wave(24, 0.5);
        let before = head.clone();
        let angles = wave(8, 0.9);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        rotate_head(&mut head, &cos, &sin);
        for i in 0..8 {
            let (x, y) = (before[i], before[i + 8]);
            assert!((head[i] - (x * cos[i] - y * sin[i])).abs() < 1e-6);
            assert!((head[i] * head[i] + head[i + 8] * head[i + 8] - x * x - y * y).abs() < 1e-5);
        }
        assert_eq!(head[16..], before[16..]);
    }
}
