//! IQ1_S and IQ1_M: eight ternary levels at a time from a codebook, shifted up or down by an eighth.
//!
//! 256 elements a super-block, in 32 groups of eight; levels are -1, 0, 1. Element = d × (2 scale + 1) × (level ±
//! ⅛). Numbers are little-endian.
//!
//! IQ1_S, 50 bytes. Indices have 11 bits: 8 in `qs`, 3 in `qh`, whose 16-bit words serve 32 elements each: four
//! times 3 bits of index, 3 bits of scale, and the top bit for a shift down:
//!
//! ```text
//! 0   2                34            50
//! | d | qs: 32 indices | qh: 8 words |
//! ```
//!
//! IQ1_M, 56 bytes. A nibble of `qh` serves one group: 3 bits of index and the shift. The 16-bit words of `scales`
//! hold four scales of 3 bits (16 elements each) and a quarter of `d`, lowest first:
//!
//! ```text
//! 0                32   48              56
//! | qs: 32 indices | qh | scales: 4 words |
//! ```

use std::sync::OnceLock;

use super::batch::{BATCH, Batches, element_weights, square_sums};
use super::float::{half_bits, half_value, read_half, write_half};
use super::iq1_fit::{DELTA, DOWN, Fit, SUPER, Slab, Sorted, Split, Splitting, UP, prefix_sums};
use super::lattice::Lattice;
use super::{Block, Rows, grids};
use crate::gguf::TensorType;
use crate::simd::lanes::{Lanes, MAX_WIDTH, nearest};

const S_BYTES: usize = 50;
const M_BYTES: usize = 56;

fn lattice() -> &'static Lattice<8, 2> {
    static LATTICE: OnceLock<Lattice<8, 2>> = OnceLock::new();
    LATTICE.get_or_init(|| Lattice::new(&grids::IQ1, 2, 3))
}

/// Fits all sub-blocks of `rows` and has `pack` write each super-block: its fits, elements, number of the first
/// element and mean square, to its bytes.
#[inline(always)]
fn encode<L: Lanes, T: Splitting>(
    lanes: L,
    rows: Rows<'_>,
    dst: &mut [u8],
    block_bytes: usize,
    pack: impl Fn(&[Fit], (&[f32], usize, f32), &mut [u8]),
) {
    let lattice = lattice();
    let mut batches = Batches::new(rows);
    let mut blocks = dst.chunks_exact_mut(block_bytes);
    let mut means = [0.0; BATCH / SUPER];
    let mut fits = [Fit::default(); BATCH / 16];
    while let Some(batch) = batches.next() {
        square_sums(lanes, batch.values, SUPER, &mut means);
        means = means.map(|sum| 2.0 * sum / SUPER as f32);
        let slab_elements = L::WIDTH * T::ELEMENTS;
        for (s, start) in (0..batch.count).step_by(slab_elements).enumerate() {
            let own: [f32; MAX_WIDTH] = std::array::from_fn(|lane| {
                means.get((start + lane * T::ELEMENTS) / SUPER).copied().unwrap_or(0.0)
            });
            let slab = Slab::load::<T>(lanes, &rows, &batch.values[start..], batch.first + start, &own);
            slab.fit::<T>(lanes, lattice, &mut fits[s * L::WIDTH..]);
        }
        let super_blocks = fits.chunks_exact(SUPER / T::ELEMENTS).zip(batch.values.chunks_exact(SUPER));
        for (i, ((fits, values), mean)) in super_blocks.zip(means).enumerate().take(batch.count / SUPER) {
            let Some(block) = blocks.next() else { return };
            pack(fits, (values, batch.first + i * SUPER, mean), block);
        }
    }
}

/// The scale of a super-block for 3-bit scales of its sub-blocks, and the 3-bit scales; `None` if all are 0.
fn three_bit_scales<const N: usize>(fits: &[Fit]) -> Option<(f32, [u8; N])> {
    let most = fits.iter().fold(0.0f32, |most, fit| if most > fit.scale { most } else { fit.scale });
    if most == 0.0 {
        return None;
    }
    let d = most / 15.0;
    let inverse = 1.0 / d;
    let mut scales = [0; N];
    for (scale, fit) in scales.iter_mut().zip(fits) {
        *scale = nearest(0.5 * (inverse * fit.scale - 1.0)).clamp(0, 7) as u8;
    }
    Some((d, scales))
}

/// Writes eight elements.
#[inline(always)]
fn write_group(index: usize, scale: f32, down: bool, out: &mut [f32]) {
    let point = grids::IQ1[index];
    let delta = if down { -DELTA } else { DELTA };
    for (i, out) in out.iter_mut().enumerate() {
        let level = grids::LEVELS_IQ1[usize::from((point >> (2 * i)) & 3)];
        *out = scale * (f32::from(level) + delta);
    }
}

#[inline(always)]
fn times<L: Lanes>(lanes: L, v: L::F, factor: f32) -> L::F {
    lanes.mul(v, lanes.splat(factor))
}

/// What the places below each border, and from it on, contribute to the two sums under one shift.
struct Contributions<L: Lanes> {
    below_x: [L::F; 33],
    below_w: [L::F; 33],
    above_x: [L::F; 33],
    above_w: [L::F; 33],
}

impl<L: Lanes> Contributions<L> {
    #[inline(always)]
    fn new(lanes: L, sx: &[L::F; 33], sw: &[L::F; 33], shift: &[f32; 4]) -> Self {
        let zeros = [lanes.splat(0.0); 33];
        let mut all = Self { below_x: zeros, below_w: zeros, above_x: zeros, above_w: zeros };
        for i in 0..33 {
            all.below_x[i] = times(lanes, sx[i], shift[0]);
            all.below_w[i] = times(lanes, times(lanes, sw[i], shift[0]), shift[0]);
            all.above_x[i] = times(lanes, lanes.sub(sx[32], sx[i]), shift[2]);
            all.above_w[i] = times(lanes, times(lanes, lanes.sub(sw[32], sw[i]), shift[2]), shift[2]);
        }
        all
    }
}

/// 1.56 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ1_S;

impl Splitting for IQ1_S {
    const ELEMENTS: usize = 32;
    const EMPTY_BELOW: f32 = 1e-12;

    /// Combination 0 is a shift up, 1 a shift down.
    #[inline(always)]
    fn split<L: Lanes>(lanes: L, sorted: &Sorted<L>, start: Split<L>) -> Split<L> {
        const N: usize = IQ1_S::ELEMENTS;
        let sx = prefix_sums(lanes, &sorted.wx[..N]);
        let sw = prefix_sums(lanes, &sorted.w[..N]);
        let up = Contributions::new(lanes, &sx, &sw, &UP);
        let down = Contributions::new(lanes, &sx, &sw, &DOWN);
        let mut split = start;
        for lower in 0..=N {
            for upper in lower..=N {
                // The middle level is plus or minus the same number, so its contributions differ in sign alone.
                let mx = times(lanes, lanes.sub(sx[upper], sx[lower]), UP[1]);
                let mw = times(lanes, times(lanes, lanes.sub(sw[upper], sw[lower]), UP[1]), UP[1]);
                let qx = lanes.add(lanes.add(up.below_x[lower], mx), up.above_x[upper]);
                let qq = lanes.add(lanes.add(up.below_w[lower], mw), up.above_w[upper]);
                split.consider(lanes, (qx, qq), (lower, upper, 0));
                let qx = lanes.add(lanes.sub(down.below_x[lower], mx), down.above_x[upper]);
                let qq = lanes.add(lanes.add(down.below_w[lower], mw), down.above_w[upper]);
                split.consider(lanes, (qx, qq), (lower, upper, 1));
            }
        }
        split
    }

    #[inline(always)]
    fn down(combination: u8, _: usize) -> bool {
        combination != 0
    }

    #[inline(always)]
    fn opposite(combination: u8) -> u8 {
        1 - combination
    }
}

impl Block for IQ1_S {
    const KIND: TensorType = TensorType::IQ1_S;
    const NEEDS_WEIGHTS: bool = true;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self>(lanes, rows, dst, S_BYTES, |fits, _, block| {
            block.fill(0);
            let scales = three_bit_scales::<8>(fits);
            if let Some((d, _)) = scales {
                // The reference's correction for what the rounding of scales loses.
                write_half(block, 0, d * 1.125);
            }
            let scales = scales.map_or([None; 8], |(_, scales)| scales.map(Some));
            for (s, (fit, scale)) in fits.iter().zip(scales).enumerate() {
                let mut word = 0;
                for (k, index) in fit.index.iter().enumerate() {
                    block[2 + 4 * s + k] = *index as u8;
                    word |= (index >> 8) << (3 * k);
                }
                if let Some(scale) = scale {
                    word |= (u16::from(scale) | (u16::from(fit.down[0]) << 3)) << 12;
                }
                block[34 + 2 * s..][..2].copy_from_slice(&word.to_le_bytes());
            }
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(S_BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            for (s, out) in out.chunks_exact_mut(32).enumerate() {
                let word = u16::from_le_bytes([block[34 + 2 * s], block[35 + 2 * s]]);
                let scale = d * f32::from(2 * ((word >> 12) & 7) + 1);
                for (k, out) in out.chunks_exact_mut(8).enumerate() {
                    let high = usize::from((word >> (3 * k)) & 7);
                    let index = usize::from(block[2 + 4 * s + k]) | (high << 8);
                    write_group(index, scale, word & 0x8000 != 0, out);
                }
            }
        }
    }
}

/// 1.75 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ1_M;

impl Splitting for IQ1_M {
    const ELEMENTS: usize = 16;
    const EMPTY_BELOW: f32 = 1e-7;

    /// Bit 1 of a combination shifts the first group down, bit 0 the second.
    #[inline(always)]
    fn split<L: Lanes>(lanes: L, sorted: &Sorted<L>, start: Split<L>) -> Split<L> {
        const N: usize = IQ1_M::ELEMENTS;
        let first = Half::new(lanes, sorted, 0);
        let second = Half::new(lanes, sorted, 1);
        let mut split = start;
        for lower in 0..=N {
            for upper in lower..=N {
                let (a, b) = (first.sums(lanes, lower, upper), second.sums(lanes, lower, upper));
                for combination in 0..4 {
                    let (a, b) = (a[combination >> 1], b[combination & 1]);
                    let sums = (lanes.add(a.0, b.0), lanes.add(a.1, b.1));
                    split.consider(lanes, sums, (lower, upper, combination));
                }
            }
        }
        split
    }

    #[inline(always)]
    fn down(combination: u8, group: usize) -> bool {
        (combination >> (1 - group.min(1))) & 1 != 0
    }

    #[inline(always)]
    fn opposite(combination: u8) -> u8 {
        3 - combination
    }
}

/// The two sums of one group of eight in an IQ1_M sub-block, in closed form: levels are 1 apart, so borders only
/// take prefix sums off what the highest level everywhere would give.
struct Half<L: Lanes> {
    /// Σ weight · x over the places before each.
    sx: [L::F; 33],
    /// All at the highest level, shifted up, then down.
    full_x: [L::F; 2],
    /// The lower border's part of the sum of squares together with all at the highest level; then the upper's.
    lower_w: [[L::F; 17]; 2],
    upper_w: [[L::F; 17]; 2],
}

impl<L: Lanes> Half<L> {
    #[inline(always)]
    fn new(lanes: L, sorted: &Sorted<L>, group: u8) -> Self {
        const N: usize = IQ1_M::ELEMENTS;
        let zero = lanes.splat(0.0);
        let (mut wx, mut w) = ([zero; N], [zero; N]);
        for (j, from) in sorted.from.iter().enumerate().take(N) {
            let mut others = [0; MAX_WIDTH];
            for (other, from) in others.iter_mut().zip(from) {
                *other = i32::from(from / 8 != group);
            }
            let ours = lanes.eq_i(lanes.load_i(&others), lanes.splat_i(0));
            wx[j] = lanes.select(ours, sorted.wx[j], zero);
            w[j] = lanes.select(ours, sorted.w[j], zero);
        }
        let sx = prefix_sums(lanes, &wx);
        let sw = prefix_sums(lanes, &w);
        let mut half = Self { sx, full_x: [zero; 2], lower_w: [[zero; 17]; 2], upper_w: [[zero; 17]; 2] };
        for (s, shift) in [UP, DOWN].iter().enumerate() {
            half.full_x[s] = times(lanes, sx[N], shift[2]);
            let full_w = times(lanes, times(lanes, sw[N], shift[2]), shift[2]);
            // Differences of squares of neighbouring levels.
            let first_step = shift[0] * shift[0] - shift[1] * shift[1];
            let second_step = shift[1] * shift[1] - shift[2] * shift[2];
            let borders = half.lower_w[s].iter_mut().zip(&mut half.upper_w[s]);
            for ((lower, upper), &sum) in borders.zip(&sw) {
                *lower = lanes.add(full_w, times(lanes, sum, first_step));
                *upper = times(lanes, sum, second_step);
            }
        }
        half
    }

    /// Σ weight · x · q and Σ weight · q² for two borders, shifted up, then down.
    #[inline(always)]
    fn sums(&self, lanes: L, lower: usize, upper: usize) -> [(L::F, L::F); 2] {
        let off = lanes.add(self.sx[lower], self.sx[upper]);
        let up = lanes.add(self.lower_w[0][lower], self.upper_w[0][upper]);
        let down = lanes.add(self.lower_w[1][lower], self.upper_w[1][upper]);
        [(lanes.sub(self.full_x[0], off), up), (lanes.sub(self.full_x[1], off), down)]
    }
}

impl Block for IQ1_M {
    const KIND: TensorType = TensorType::IQ1_M;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self>(lanes, rows, dst, M_BYTES, |fits, (values, first, mean), block| {
            block.fill(0);
            for (s, fit) in fits.iter().enumerate() {
                block[2 * s] = fit.index[0] as u8;
                block[2 * s + 1] = fit.index[1] as u8;
                block[32 + s] = (fit.index[0] >> 8) as u8 | (((fit.index[1] >> 8) as u8) << 4);
            }
            let Some((d, scales)) = three_bit_scales::<16>(fits) else { return };
            let mut weights = [0.0; SUPER];
            match rows.weights {
                Some(importance) => {
                    let column = first % rows.columns;
                    element_weights(lanes, values, &importance[column..column + SUPER], mean, &mut weights);
                }
                None => weights.iter_mut().zip(values).for_each(|(w, x)| *w = x * x),
            }
            let d = best_scale(fits, &scales, values, &weights).unwrap_or(d);
            // The reference's correction for what the rounding of scales loses.
            let d = half_bits(d * 1.1125);
            for (s, (fit, scale)) in fits.iter().zip(scales).enumerate() {
                block[32 + s] |= (u8::from(fit.down[0]) << 3) | (u8::from(fit.down[1]) << 7);
                let at = 48 + s / 4 * 2;
                let word =
                    u16::from_le_bytes([block[at], block[at + 1]]) | (u16::from(scale) << (3 * (s % 4)));
                block[at..at + 2].copy_from_slice(&word.to_le_bytes());
            }
            for (part, word) in block[48..].chunks_exact_mut(2).enumerate() {
                word[1] |= (((d >> (4 * part)) & 15) << 4) as u8;
            }
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(M_BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let words: [u16; 4] =
                std::array::from_fn(|i| u16::from_le_bytes([block[48 + 2 * i], block[49 + 2 * i]]));
            let d = (0..4).fold(0, |bits, part| bits | ((words[part] >> 12) << (4 * part)));
            let d = half_value(d);
            for (g, out) in out.chunks_exact_mut(8).enumerate() {
                let nibble = usize::from(block[32 + g / 2] >> (4 * (g % 2))) & 15;
                let index = usize::from(block[g]) | ((nibble & 7) << 8);
                let scale = (words[g / 8] >> (3 * (g / 2 % 4))) & 7;
                write_group(index, d * f32::from(2 * scale + 1), nibble & 8 != 0, out);
            }
        }
    }
}

/// The super-block scale that fits the chosen points and 3-bit scales best, if there is one.
#[inline(always)]
fn best_scale(fits: &[Fit], scales: &[u8; 16], values: &[f32], weights: &[f32]) -> Option<f32> {
    let (mut qx, mut qq) = (0.0, 0.0);
    let parts = values.chunks_exact(16).zip(weights.chunks_exact(16));
    for ((fit, scale), (values, weights)) in fits.iter().zip(scales).zip(parts) {
        let factor = f32::from(2 * scale + 1);
        for (i, (x, w)) in values.iter().zip(weights).enumerate() {
            let point = fit.point[i / 8];
            let shift = if fit.down[i / 8] { &DOWN } else { &UP };
            let q = shift[usize::from((point >> (2 * (i % 8))) & 3)] * factor;
            qx += w * q * x;
            qq += w * q * q;
        }
    }
    (qq > 0.0).then(|| qx / qq)
}
