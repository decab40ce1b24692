//! IQ3_XXS and IQ3_S: four magnitudes at a time from a codebook, signs beside it.
//!
//! 256 elements a super-block, in 64 groups of four. Numbers are little-endian.
//!
//! IQ3_XXS, 98 bytes, a scale every 32 elements; magnitudes 4 .. 62 (see [`grids`]). 64 indices of 8 bits, then
//! eight 32-bit words of four times 7 sign bits (the eighth makes the number of negative ones even) and a 4-bit
//! scale. Element = d × (scale + ½) / 2 × magnitude × sign:
//!
//! ```text
//! 0   2                66                          98
//! | d | qs: 64 indices | 8 × (signs×4 scale)        |
//! ```
//!
//! IQ3_S, 110 bytes, a scale every 32 elements (low nibble first), all signs; odd magnitudes 1 .. 15. Indices
//! have 9 bits: 8 in `qs`, 1 in `qh`. Element = d × (1 + 2 scale) × magnitude × sign:
//!
//! ```text
//! 0   2                66   74            106       110
//! | d | qs: 64 indices | qh | 32 signs     | scales   |
//! ```

use std::sync::OnceLock;

use super::float::{read_half, write_half};
use super::iq2::{eight_signs, nibble_scales};
use super::lattice::Lattice;
use super::lattice_fit::{Fitting, Refit, SUPER, Start, Unweighted, encode};
use super::{Block, Rows, grids};
use crate::gguf::TensorType;
use crate::simd::lanes::Lanes;

/// A codebook of four coordinates.
type Lattice4 = Lattice<4, 3>;

/// Writes four elements: `scale` × magnitude × sign.
#[inline(always)]
fn write_group(point: u16, levels: &[u8; 8], scale: f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let magnitude = levels[usize::from((point >> (3 * i)) & 7)];
        let sign = if (signs >> i) & 1 != 0 { -1.0 } else { 1.0 };
        *out = scale * f32::from(magnitude) * sign;
    }
}

/// 3.06 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ3_XXS;

impl Fitting<4, 3> for IQ3_XXS {
    const ELEMENTS: usize = 32;
    const TOP: i32 = 7;
    const REACH: i32 = 15;
    const STEP: f32 = 0.2;
    const MEAN_FACTOR: f32 = 2.0;
    const EMPTY_BELOW: f32 = 1e-8;
    const EVEN_SIGNS: bool = true;
    const UNWEIGHTED: Unweighted = Unweighted::Square;
    const START: Start = Start::Peak;
    const REFIT: Refit = Refit::Moved;

    fn lattice() -> &'static Lattice4 {
        static LATTICE: OnceLock<Lattice4> = OnceLock::new();
        LATTICE.get_or_init(|| Lattice::new(&grids::IQ3_XXS, 7, 2))
    }
}

impl Block for IQ3_XXS {
    const KIND: TensorType = TensorType::IQ3_XXS;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self, 4, 3>(lanes, rows, dst, 98, |fits, block| {
            block.fill(0);
            let Some((d, scales)) = nibble_scales::<8>(fits) else { return };
            // The reference's correction for what the rounding of scales loses.
            write_half(block, 0, d * 1.0125);
            let (indices, words) = block[2..].split_at_mut(64);
            for (s, (fit, scale)) in fits.iter().zip(scales).enumerate() {
                for (byte, &index) in indices[8 * s..8 * s + 8].iter_mut().zip(&fit.index) {
                    *byte = index as u8;
                }
                let signs = (0..4).fold(0, |word, k| word | (((fit.signs >> (8 * k)) & 127) << (7 * k)));
                let word = signs | (u32::from(scale) << 28);
                words[4 * s..4 * s + 4].copy_from_slice(&word.to_le_bytes());
            }
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(98).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            let (indices, words) = block[2..].split_at(64);
            let parts = indices.chunks_exact(8).zip(words.chunks_exact(4));
            for ((indices, word), out) in parts.zip(out.chunks_exact_mut(32)) {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
                for (k, out) in out.chunks_exact_mut(4).enumerate() {
                    let signs = eight_signs(word >> (7 * (k / 2))) >> (4 * (k % 2));
                    let point = grids::IQ3_XXS[usize::from(indices[k])];
                    write_group(point, &grids::LEVELS_IQ3_XXS, scale, signs, out);
                }
            }
        }
    }
}

/// 3.44 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ3_S;

impl Fitting<4, 3> for IQ3_S {
    const ELEMENTS: usize = 32;
    const TOP: i32 = 7;
    const REACH: i32 = 9;
    const STEP: f32 = 0.2;
    const MEAN_FACTOR: f32 = 2.0;
    /// Nothing but zeros is empty: this is the least positive number.
    const EMPTY_BELOW: f32 = f32::from_bits(1);
    const EVEN_SIGNS: bool = false;
    const UNWEIGHTED: Unweighted = Unweighted::Square;
    const START: Start = Start::Peak;
    const REFIT: Refit = Refit::AllIfMoved;

    fn lattice() -> &'static Lattice4 {
        static LATTICE: OnceLock<Lattice4> = OnceLock::new();
        LATTICE.get_or_init(|| Lattice::new(&grids::IQ3_S, 7, 3))
    }
}

impl Block for IQ3_S {
    const KIND: TensorType = TensorType::IQ3_S;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode::<L, Self, 4, 3>(lanes, rows, dst, 110, |fits, block| {
            block.fill(0);
            // The reference does not step over the low bits and signs of an all-zero sub-block: those of the next
            // one take their place. What that decodes to is wrong for the next one, but it is what files hold.
            for (place, (s, fit)) in fits.iter().enumerate().filter(|(_, fit)| !fit.empty).enumerate() {
                for (k, &index) in fit.index.iter().enumerate() {
                    block[2 + 8 * place + k] = index as u8;
                    block[66 + s] |= ((index >> 8) as u8) << k;
                }
                block[74 + 4 * place..][..4].copy_from_slice(&fit.signs.to_le_bytes());
            }
            let Some((d, scales)) = nibble_scales::<8>(fits) else { return };
            // The reference's correction for what the rounding of scales loses.
            write_half(block, 0, d * 1.033);
            for (byte, pair) in block[106..].iter_mut().zip(scales.chunks_exact(2)) {
                *byte = pair[0] | (pair[1] << 4);
            }
        });
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(110).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            for (s, out) in out.chunks_exact_mut(32).enumerate() {
                let nibble = (block[106 + s / 2] >> (4 * (s % 2))) & 15;
                let scale = d * f32::from(1 + 2 * nibble);
                for (k, out) in out.chunks_exact_mut(4).enumerate() {
                    let high = usize::from(block[66 + s] >> k) & 1;
                    let point = grids::IQ3_S[usize::from(block[2 + 8 * s + k]) | (high << 8)];
                    let signs = block[74 + 4 * s + k / 2] >> (4 * (k % 2));
                    write_group(point, &grids::LEVELS_IQ3_S, scale, signs, out);
                }
            }
        }
    }
}
