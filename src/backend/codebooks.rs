//! The tables that kernels on devices decode the IQ types with.

use crate::gguf::TensorType;
use crate::quant::grids;

/// The table that blocks of `kind` look values up in, if they do; 1 to 8 KiB.
pub fn codebook(kind: TensorType) -> Option<Vec<u32>> {
    use TensorType as T;
    Some(match kind {
        T::IQ1_S | T::IQ1_M => two_a_word(&grids::IQ1),
        T::IQ2_XXS => two_words(&grids::eight_bytes(&grids::IQ2_XXS, grids::LEVELS_IQ2)),
        T::IQ2_XS => two_words(&grids::eight_bytes(&grids::IQ2_XS, grids::LEVELS_IQ2)),
        T::IQ2_S => two_words(&grids::eight_bytes(&grids::IQ2_S, grids::LEVELS_IQ2)),
        T::IQ3_XXS => grids::four_bytes(&grids::IQ3_XXS, grids::LEVELS_IQ3_XXS).to_vec(),
        T::IQ3_S => grids::four_bytes(&grids::IQ3_S, grids::LEVELS_IQ3_S).to_vec(),
        _ => return None,
    })
}

fn two_a_word(points: &[u16]) -> Vec<u32> {
    points.chunks_exact(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

fn two_words(points: &[u64]) -> Vec<u32> {
    points.iter().flat_map(|&point| [point as u32, (point >> 32) as u32]).collect()
}
