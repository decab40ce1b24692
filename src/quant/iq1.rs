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
use super::iq1_fit::{DELTA, DOWN, Fit, SUPER, Slab, Sorted, Split, Splitting, UP};
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

/// 1.56 bits an element.
pub struct IQ1_S;

impl Splitting for IQ1_S {
    const ELEMENTS: usize = 32;
    const EMPTY_BELOW: f32 = 1e-12;

    /// Combination 0 is a shift up, 1 a shift down.
    #[inline(always)]
    fn split<L: Lanes>(lanes: L, sorted: &Sorted<L>, start: Split<L>) -> Split<L> {
        const N: usize = IQ1_S::ELEMENTS;
        let zero = lanes.splat(0.0);
        let by = |v: L::F, factor: f32| lanes.mul(v, lanes.splat(factor));
        let twice = |v: L::F, factor: f32| by(by(v, factor), factor);
        let sx = Sorted::prefix(lanes, N, |j| sorted.wx[j]);
        let sw = Sorted::prefix(lanes, N, |j| sorted.w[j]);
        // Contributions of the places from an upper border on, shifted up and down.
        let above_x = |shift: &[f32; 4]| -> [L::F; N + 1] {
            std::array::from_fn(|i| by(lanes.sub(sx[N], sx[i]), shift[2]))
        };
        let above_w = |shift: &[f32; 4]| -> [L::F; N + 1] {
            std::array::from_fn(|i| twice(lanes.sub(sw[N], sw[i]), shift[2]))
        };
        let (x_up, x_down, w_up, w_down) = (above_x(&UP), above_x(&DOWN), above_w(&UP), above_w(&DOWN));
        let Split { mut scale, mut best, mut choice } = start;
        for lower in 0..=N {
            let below_up = (by(sx[lower], UP[0]), twice(sw[lower], UP[0]));
            let below_down = (by(sx[lower], DOWN[0]), twice(sw[lower], DOWN[0]));
            for upper in lower..=N {
                let (dx, dw) = (lanes.sub(sx[upper], sx[lower]), lanes.sub(sw[upper], sw[lower]));
                // The middle level is plus or minus the same number.
                let (mx, mw) = (by(dx, UP[1]), twice(dw, UP[1]));
                let qx_up = lanes.add(lanes.add(below_up.0, mx), x_up[upper]);
                let qq_up = lanes.add(lanes.add(below_up.1, mw), w_up[upper]);
                let qx_down = lanes.add(lanes.sub(below_down.0, mx), x_down[upper]);
                let qq_down = lanes.add(lanes.add(below_down.1, mw), w_down[upper]);
                for (combination, (qx, qq)) in [(0, (qx_up, qq_up)), (1, (qx_down, qq_down))] {
                    let better =
                        lanes.and(lanes.gt(qq, zero), lanes.gt(lanes.mul(qx, qx), lanes.mul(best, qq)));
                    let ratio = lanes.div(qx, qq);
                    scale = lanes.select(better, ratio, scale);
                    best = lanes.select(better, lanes.mul(ratio, qx), best);
                    let this = lanes.splat_i((lower | (upper << 8) | (combination << 16)) as i32);
                    choice = lanes.select_i(better, this, choice);
                }
            }
        }
        Split { scale, best, choice }
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
pub struct IQ1_M;

impl Splitting for IQ1_M {
    const ELEMENTS: usize = 16;
    const EMPTY_BELOW: f32 = 1e-7;

    /// Bit 1 of a combination shifts the first group down, bit 0 the second.
    #[inline(always)]
    fn split<L: Lanes>(lanes: L, sorted: &Sorted<L>, start: Split<L>) -> Split<L> {
        const N: usize = IQ1_M::ELEMENTS;
        // Differences of squares of neighbouring levels.
        const UP_STEPS: [f32; 2] = [UP[0] * UP[0] - UP[1] * UP[1], UP[1] * UP[1] - UP[2] * UP[2]];
        const DOWN_STEPS: [f32; 2] =
            [DOWN[0] * DOWN[0] - DOWN[1] * DOWN[1], DOWN[1] * DOWN[1] - DOWN[2] * DOWN[2]];
        let zero = lanes.splat(0.0);
        let by = |v: L::F, factor: f32| lanes.mul(v, lanes.splat(factor));
        let halves: [_; 2] = std::array::from_fn(|half| {
            let own = |values: &[L::F], j: usize| {
                let picked: [i32; MAX_WIDTH] =
                    std::array::from_fn(|lane| i32::from(sorted.from[j][lane] >= 8) ^ half as i32);
                lanes.select(lanes.eq_i(lanes.load_i(&picked), lanes.splat_i(0)), values[j], zero)
            };
            let sx = Sorted::prefix(lanes, N, |j| own(&sorted.wx, j));
            let sw = Sorted::prefix(lanes, N, |j| own(&sorted.w, j));
            (sx, sw)
        });
        let Split { mut scale, mut best, mut choice } = start;
        for lower in 0..=N {
            for upper in lower..=N {
                // Of each half: the two sums shifted up, then shifted down.
                let sums = |half: usize| {
                    let (sx, sw) = &halves[half];
                    let inner = lanes.add(sx[lower], sx[upper]);
                    let qx = |shift: &[f32; 4]| lanes.sub(by(sx[N], shift[2]), inner);
                    let qq = |shift: &[f32; 4], steps: &[f32; 2]| {
                        let all = by(by(sw[N], shift[2]), shift[2]);
                        lanes.add(lanes.add(all, by(sw[lower], steps[0])), by(sw[upper], steps[1]))
                    };
                    [(qx(&UP), qq(&UP, &UP_STEPS)), (qx(&DOWN), qq(&DOWN, &DOWN_STEPS))]
                };
                let (first, second) = (sums(0), sums(1));
                for combination in 0..4 {
                    let (a, b) = (first[combination >> 1], second[combination & 1]);
                    let (qx, qq) = (lanes.add(a.0, b.0), lanes.add(a.1, b.1));
                    let better =
                        lanes.and(lanes.gt(qq, zero), lanes.gt(lanes.mul(qx, qx), lanes.mul(best, qq)));
                    let ratio = lanes.div(qx, qq);
                    scale = lanes.select(better, ratio, scale);
                    best = lanes.select(better, lanes.mul(ratio, qx), best);
                    let this = lanes.splat_i((lower | (upper << 8) | (combination << 16)) as i32);
                    choice = lanes.select_i(better, this, choice);
                }
            }
        }
        Split { scale, best, choice }
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
