//! How shaders read weights: the WGSL decoder of every type, and the codebooks that some of them look into.
//!
//! A kernel's source is [`PRELUDE`], then [`source`] of the weight's type, then the kernel. The prelude says what functions
//! a type's source has.

#[cfg(test)]
mod tests;

pub use crate::backend::codebooks::codebook;
use crate::gguf::TensorType;

/// What every kernel that reads weights begins with; binds them as `@group(0) @binding(0)`.
pub const PRELUDE: &str = include_str!("shaders/blocks/prelude.wgsl");

/// The files that make up a type with `lanes16`: what it shares with others, its own, and `decode16`.
macro_rules! lanes {
    ($($name:literal),+) => {
        concat!(
            $(include_str!(concat!("shaders/blocks/", $name, ".wgsl")),)+
            include_str!("shaders/blocks/lanes.wgsl")
        )
    };
}

/// The WGSL that decodes blocks of `kind`, if there is any.
pub fn source(kind: TensorType) -> Option<&'static str> {
    use TensorType as T;
    Some(match kind {
        T::F32 => include_str!("shaders/blocks/f32.wgsl"),
        T::F16 => include_str!("shaders/blocks/f16.wgsl"),
        T::BF16 => include_str!("shaders/blocks/bf16.wgsl"),
        T::Q4_0 => lanes!("q4_0"),
        T::Q4_1 => lanes!("q4_1"),
        T::Q5_0 => lanes!("q5_0"),
        T::Q5_1 => lanes!("q5_1"),
        T::Q8_0 => lanes!("q8_0"),
        T::Q1_0 => lanes!("q1_0"),
        T::Q2_0 => lanes!("q2_0"),
        T::Q2_K => lanes!("q2_k"),
        T::Q3_K => lanes!("q3_k"),
        T::Q4_K => lanes!("k_head", "q4_k"),
        T::Q5_K => lanes!("k_head", "q5_k"),
        T::Q6_K => lanes!("q6_k"),
        T::IQ1_S => lanes!("iq1", "iq1_s"),
        T::IQ1_M => lanes!("iq1", "iq1_m"),
        T::IQ2_XXS => lanes!("codebook", "iq2_xxs"),
        T::IQ2_XS => lanes!("codebook", "iq2_xs"),
        T::IQ2_S => lanes!("codebook", "iq2_s"),
        T::IQ3_XXS => lanes!("codebook", "iq3_xxs"),
        T::IQ3_S => lanes!("codebook", "iq3_s"),
        T::IQ4_NL => lanes!("iq4", "iq4_nl"),
        T::IQ4_XS => lanes!("iq4", "iq4_xs"),
        T::TQ1_0 => lanes!("tq1_0"),
        T::TQ2_0 => lanes!("tq2_0"),
        T::MXFP4 => lanes!("e2m1", "mxfp4"),
        T::NVFP4 => lanes!("e2m1", "nvfp4"),
        T::I8 | T::I16 | T::I32 | T::I64 | T::F64 => return None,
    })
}

/// Whether [`source`] has `lanes16`, for integer products; all types with scales do.
pub fn has_lanes(kind: TensorType) -> bool {
    kind.is_quantized() && source(kind).is_some()
}

/// Elements that [`source`] takes as a block: as the file does, but 16 where the file has none.
pub fn elements(kind: TensorType) -> usize {
    if kind.is_quantized() { kind.block_elements() } else { 16 }
}

/// Bytes of a block of [`elements`].
pub fn bytes(kind: TensorType) -> usize {
    elements(kind) / kind.block_elements() * kind.block_bytes()
}
