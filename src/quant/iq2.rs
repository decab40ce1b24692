//! IQ2_XXS, IQ2_XS and IQ2_S: eight magnitudes at a time from a codebook, signs beside it.
//!
//! 256 elements a super-block, in 32 groups of eight; a magnitude is one of 8, 25, 43 (see [`grids`]). Element =
//! d × (scale + ½) / 4 × magnitude × sign. Numbers are little-endian.
//!
//! IQ2_XXS, 66 bytes, a scale every 32 elements. `qs` is eight pairs of 32-bit words: four codebook indices of
//! 8 bits, then four times 7 sign bits and a 4-bit scale; the eighth sign of a group makes the number of
//! negative ones even:
//!
//! ```text
//! 0   2                                              66
//! | d | 8 × (index index index index | signs×4 scale) |
//! ```
//!
//! IQ2_XS, 74 bytes, a scale every 16 elements (low nibble first). A 16-bit word a group: 9 bits of index, 7 of
//! signs:
//!
//! ```text
//! 0   2              66        74
//! | d | qs: 32 words | scales   |
//! ```
//!
//! IQ2_S, 82 bytes, scales as in IQ2_XS, all eight signs. Indices have 10 bits: 8 in `qs`, 2 in `qh`:
//!
//! ```text
//! 0   2                34              66   74        82
//! | d | qs: 32 indices | 32 sign bytes | qh | scales   |
//! ```

use std::sync::OnceLock;

use super::float::{read_half, write_half};
use super::lattice::Lattice;
use super::lattice_fit::{Fit, Fitting, Refit, SUPER, Start, Unweighted, encode};
use super::{Block, Rows, grids};
use crate::gguf::TensorType;
use crate::simd::lanes::{Lanes, nearest};

/// A codebook of eight coordinates.
type Lattice8 = Lattice<8, 2>;

/// The scale of a super-block for 4-bit scales of its sub-blocks, and the 4-bit scales; `None` if all are 0.
pub(super) fn nibble_scales<const N: usize>(fits: &[Fit]) -> Option<(f32, [u8; N])> {
    let most = fits.iter().fold(0.0f32, |most, fit| if most > fit.scale { most } else { fit.scale });
    if most == 0.0 {
        return None;
    }
    let d = most / 31.0;
    let inverse = 1.0 / d;
    let mut scales = [0; N];
    for (scale, fit) in scales.iter_mut().zip(fits) {
        *scale = nearest(0.5 * (inverse * fit.scale - 1.0)).clamp(0, 15) as u8;
    }
    Some((d, scales))
}

/// All eight signs from the seven stored: the number of negative ones is even.
#[inline(always)]
pub(super) fn eight_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// Writes eight elements: `scale` × magnitude × sign.
#[inline(always)]
fn write_group(point: u16, scale: f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let magnitude = grids::LEVELS_IQ2[usize::from((point >> (2 * i)) & 3)];
        let sign = if (signs >> i) & 1 != 0 { -1.0 } else { 1.0 };
        *out = scale * f32::from(magnitude) * sign;
    }
}

/// d × (scale + ½) / 4
#[inline(always)]
fn group_scale(d: f32, scale: u32) -> f32 {
    d * (0.5 + scale as f32) * 0.25
}

/// 2.06 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ2_XXS;

impl Fitting<8, 2> for IQ2_XXS {
    const ELEMENTS: usize = 32;
    const TOP: i32 = 2;
    const REACH: i32 = 6;
    const STEP: f32 = 0.1;
    const MEAN_FACTOR: f32 = 1.0;
    const EMPTY_BELOW: f32 = 1e-15;
    const EVEN_SIGNS: bool = true;
    const UNWEIGHTED: Unweighted = Unweighted::Square;
    const START: Start = Start::LeastSquares;
    const REFIT: Refit = Refit::All;

    fn lattice() -> &'static Lattice8 {
        static LATTICE: OnceLock<Lattice8> = OnceLock::new();
        LATTICE.get_or_init(|| Lattice::new(&grids::IQ2_XXS, 2, 2))
    }
}

impl Block for IQ2_XXS {
    const KIND: TensorType = TensorType::IQ2_XXS;
    const NEEDS_WEIGHTS: bool = true;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self, 8, 2>(lanes, rows, dst, 66, |fits, block| {
            block.fill(0);
            let Some((d, scales)) = nibble_scales::<8>(fits) else { return };
            write_half(block, 0, d);
            for ((fit, scale), pair) in fits.iter().zip(scales).zip(block[2..].chunks_exact_mut(8)) {
                let mut signs = u32::from(scale) << 28;
                for (k, &index) in fit.index[..4].iter().enumerate() {
                    pair[k] = index as u8;
                    signs |= ((fit.signs >> (8 * k)) & 127) << (7 * k);
                }
                pair[4..].copy_from_slice(&signs.to_le_bytes());
            }
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(66).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            for (pair, out) in block[2..].chunks_exact(8).zip(out.chunks_exact_mut(32)) {
                let signs = u32::from_le_bytes([pair[4], pair[5], pair[6], pair[7]]);
                let scale = group_scale(d, signs >> 28);
                for (k, out) in out.chunks_exact_mut(8).enumerate() {
                    let point = grids::IQ2_XXS[usize::from(pair[k])];
                    write_group(point, scale, eight_signs(signs >> (7 * k)), out);
                }
            }
        }
    }
}

/// 2.31 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ2_XS;

impl Fitting<8, 2> for IQ2_XS {
    const ELEMENTS: usize = 16;
    const TOP: i32 = 2;
    const REACH: i32 = 9;
    const STEP: f32 = 0.1;
    const MEAN_FACTOR: f32 = 1.0;
    const EMPTY_BELOW: f32 = 1e-15;
    const EVEN_SIGNS: bool = true;
    const UNWEIGHTED: Unweighted = Unweighted::Square;
    const START: Start = Start::Peak;
    const REFIT: Refit = Refit::Moved;

    fn lattice() -> &'static Lattice8 {
        static LATTICE: OnceLock<Lattice8> = OnceLock::new();
        LATTICE.get_or_init(|| Lattice::new(&grids::IQ2_XS, 2, 2))
    }
}

impl Block for IQ2_XS {
    const KIND: TensorType = TensorType::IQ2_XS;
    const NEEDS_WEIGHTS: bool = true;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self, 8, 2>(lanes, rows, dst, 74, |fits, block| {
            block.fill(0);
            let Some((d, scales)) = nibble_scales::<16>(fits) else { return };
            write_half(block, 0, d);
            let (words, nibbles) = block[2..].split_at_mut(64);
            for (fit, words) in fits.iter().zip(words.chunks_exact_mut(4)) {
                for (k, word) in words.chunks_exact_mut(2).enumerate() {
                    let signs = (fit.signs >> (8 * k)) as u16 & 127;
                    word.copy_from_slice(&(fit.index[k] | (signs << 9)).to_le_bytes());
                }
            }
            pack_nibbles(&scales, nibbles);
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(74).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            let (words, nibbles) = block[2..].split_at(64);
            let groups = words.chunks_exact(2).zip(out.chunks_exact_mut(8));
            for (g, (word, out)) in groups.enumerate() {
                let word = u16::from_le_bytes([word[0], word[1]]);
                let point = grids::IQ2_XS[usize::from(word & 511)];
                let scale = group_scale(d, nibble(nibbles, g / 2));
                write_group(point, scale, eight_signs(u32::from(word >> 9)), out);
            }
        }
    }
}

/// 2.56 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ2_S;

impl Fitting<8, 2> for IQ2_S {
    const ELEMENTS: usize = 16;
    const TOP: i32 = 2;
    const REACH: i32 = 9;
    const STEP: f32 = 0.1;
    const MEAN_FACTOR: f32 = 2.0;
    const EMPTY_BELOW: f32 = 1e-8;
    const EVEN_SIGNS: bool = false;
    const UNWEIGHTED: Unweighted = Unweighted::SquareAndMean;
    const START: Start = Start::Peak;
    const REFIT: Refit = Refit::Moved;

    fn lattice() -> &'static Lattice8 {
        static LATTICE: OnceLock<Lattice8> = OnceLock::new();
        LATTICE.get_or_init(|| Lattice::new(&grids::IQ2_S, 2, 1))
    }
}

impl Block for IQ2_S {
    const KIND: TensorType = TensorType::IQ2_S;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self, 8, 2>(lanes, rows, dst, 82, |fits, block| {
            block.fill(0);
            for (s, fit) in fits.iter().enumerate() {
                for k in 0..2 {
                    let g = 2 * s + k;
                    block[2 + g] = fit.index[k] as u8;
                    block[34 + g] = (fit.signs >> (8 * k)) as u8;
                    block[66 + g / 4] |= ((fit.index[k] >> 8) as u8) << (2 * (g % 4));
                }
            }
            let Some((d, scales)) = nibble_scales::<16>(fits) else { return };
            // The reference's correction for what the rounding of scales loses.
            write_half(block, 0, d * 0.9875);
            pack_nibbles(&scales, &mut block[74..]);
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(82).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            for (g, out) in out.chunks_exact_mut(8).enumerate() {
                let high = usize::from(block[66 + g / 4] >> (2 * (g % 4))) & 3;
                let point = grids::IQ2_S[usize::from(block[2 + g]) | (high << 8)];
                let scale = group_scale(d, nibble(&block[74..], g / 2));
                write_group(point, scale, block[34 + g], out);
            }
        }
    }
}

fn pack_nibbles(values: &[u8], bytes: &mut [u8]) {
    for (byte, pair) in bytes.iter_mut().zip(values.chunks_exact(2)) {
        *byte = pair[0] | (pair[1] << 4);
    }
}

#[inline(always)]
fn nibble(bytes: &[u8], at: usize) -> u32 {
    u32::from(bytes[at / 2] >> (4 * (at % 2))) & 15
}
