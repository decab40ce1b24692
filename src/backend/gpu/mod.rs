//! The GPU backend: WGSL kernels through wgpu.

pub mod blocks;
