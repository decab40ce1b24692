//! How shaders read weights: the WGSL decoder of every type, and the codebooks that some of them look into.
//!
//! A kernel's source is [`prelude`], then [`source`] of the weight's type, then the kernel. The prelude says what functions
//! a type's source has.
//!
//! Blocks are as the file has them, but for some that are lengthened, so that each begins at a multiple of 16 bytes:
//! kernels take four words at once there.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::backend::Matrix;
pub use crate::backend::codebooks::codebook;
use crate::gguf::TensorType;

/// What every kernel that reads weights of `kind` begins with; binds them as `@group(0) @binding(0)`.
pub fn prelude(kind: TensorType) -> String {
    let words = if padded_bytes(kind).is_multiple_of(16) || !kind.is_quantized() {
        include_str!("shaders/blocks/words_by_4.wgsl")
    } else {
        include_str!("shaders/blocks/words_by_1.wgsl")
    };
    [words, include_str!("shaders/blocks/prelude.wgsl")].concat()
}

/// The files that make up a type with lanes: what it shares with others, its own, how blocks are cut, and `decode`.
macro_rules! lanes {
    ($($name:literal),+) => {
        concat!(
            $(include_str!(concat!("shaders/blocks/", $name, ".wgsl")),)+
            include_str!("shaders/blocks/lanes.wgsl")
        )
    };
}

/// The files that make up a type without scales.
macro_rules! plain {
    ($name:literal) => {
        concat!(
            include_str!(concat!("shaders/blocks/", $name, ".wgsl")),
            include_str!("shaders/blocks/slices_of_1.wgsl")
        )
    };
}

/// The WGSL that decodes blocks of `kind`, if there is any.
pub fn source(kind: TensorType) -> Option<&'static str> {
    use TensorType as T;
    Some(match kind {
        T::F32 => plain!("f32"),
        T::F16 => plain!("f16"),
        T::BF16 => plain!("bf16"),
        T::Q4_0 => lanes!("q4_0", "slices_of_2"),
        T::Q4_1 => lanes!("q4_1", "slices_of_2"),
        T::Q5_0 => lanes!("q5_0", "slices_of_2"),
        T::Q5_1 => lanes!("q5_1", "slices_of_2"),
        T::Q8_0 => lanes!("q8_0", "slices_of_2"),
        T::Q1_0 => lanes!("q1_0", "slices_of_4"),
        T::Q2_0 => lanes!("q2_0", "slices_of_4"),
        T::Q2_K => lanes!("q2_k", "slices_of_k"),
        T::Q3_K => lanes!("q3_k", "slices_of_k"),
        T::Q4_K => lanes!("k_head", "q4_k", "slices_of_k"),
        T::Q5_K => lanes!("k_head", "q5_k", "slices_of_k"),
        T::Q6_K => lanes!("q6_k", "slices_of_k"),
        T::IQ1_S => lanes!("iq1", "iq1_s", "slices_of_4"),
        T::IQ1_M => lanes!("iq1", "iq1_m", "slices_of_4"),
        T::IQ2_XXS => lanes!("codebook", "iq2_xxs", "slices_of_4"),
        T::IQ2_XS => lanes!("codebook", "iq2_xs", "slices_of_4"),
        T::IQ2_S => lanes!("codebook", "iq2_s", "slices_of_4"),
        T::IQ3_XXS => lanes!("codebook", "iq3_xxs", "slices_of_4"),
        T::IQ3_S => lanes!("codebook", "iq3_s", "slices_of_4"),
        T::IQ4_NL => lanes!("iq4", "iq4_nl", "slices_of_2"),
        T::IQ4_XS => lanes!("iq4", "iq4_xs", "slices_of_4"),
        T::TQ1_0 => lanes!("tq1_0", "slices_of_4"),
        T::TQ2_0 => lanes!("tq2_0", "slices_of_k"),
        T::MXFP4 => lanes!("e2m1", "mxfp4", "slices_of_2"),
        T::NVFP4 => lanes!("e2m1", "nvfp4", "slices_of_4"),
        T::I8 | T::I16 | T::I32 | T::I64 | T::F64 => return None,
    })
}

/// Parts of 16 elements that [`source`] decodes together: its SLICE_PARTS.
pub fn slice_parts(kind: TensorType) -> usize {
    match kind.block_elements() {
        1 => 1,
        32 => 2,
        _ => 4,
    }
}

/// Whether elements are a scale's multiples less a minimum.
pub fn has_minimum(kind: TensorType) -> bool {
    use TensorType as T;
    matches!(kind, T::Q4_1 | T::Q5_1 | T::Q2_K | T::Q4_K | T::Q5_K)
}

/// Bytes of a block on the device.
fn padded_bytes(kind: TensorType) -> usize {
    match kind {
        TensorType::Q3_K => 112,
        TensorType::Q6_K => 224,
        _ => kind.block_bytes(),
    }
}

/// Bytes of a row of `matrix` on the device.
pub fn row_bytes(matrix: &Matrix) -> usize {
    matrix.row_bytes() / matrix.kind.block_bytes() * padded_bytes(matrix.kind)
}

/// Blocks of `kind` as the device has them.
pub fn padded(kind: TensorType, blocks: &[u8]) -> Cow<'_, [u8]> {
    let (from, to) = (kind.block_bytes(), padded_bytes(kind));
    if from == to {
        return blocks.into();
    }
    let mut padded = vec![0; blocks.len() / from * to];
    for (block, room) in blocks.chunks_exact(from).zip(padded.chunks_exact_mut(to)) {
        room[..from].copy_from_slice(block);
    }
    padded.into()
}

/// Elements that [`source`] takes as a block: as the file does, but 16 where the file has none.
#[cfg(test)]
pub fn elements(kind: TensorType) -> usize {
    if kind.is_quantized() { kind.block_elements() } else { 16 }
}

/// Bytes of a block of [`elements`].
#[cfg(test)]
pub fn bytes(kind: TensorType) -> usize {
    elements(kind) / kind.block_elements() * kind.block_bytes()
}
