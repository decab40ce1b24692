//! Block formats: one file a family, with layout, encoding, scalar decoding and SIMD unpacking; and the recipes.

pub mod unpack;
