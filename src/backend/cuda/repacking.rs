//! Rows as kernels read them: blocks that have a scale of one or two bytes at one of their ends would begin at any even byte, or
//! any at all; so a row's blocks come first without those, in whole words, and then the scales.

use std::ops::Range;

use rayon::prelude::*;

use crate::gguf::TensorType;

/// Rows begin at multiples of that many bytes.
const ALIGNMENT: usize = 16;

/// The bytes of a block that lie apart from it, behind the row's blocks; none for types whose blocks are of whole words.
fn apart(kind: TensorType) -> Range<usize> {
    use TensorType as T;
    match kind {
        T::Q4_0 | T::Q5_0 | T::Q8_0 | T::Q1_0 | T::Q2_0 | T::IQ4_NL => 0..2,
        T::IQ1_S | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS | T::IQ3_S => 0..2,
        T::Q3_K => 108..110,
        T::Q6_K => 208..210,
        T::TQ1_0 => 52..54,
        T::TQ2_0 => 64..66,
        T::MXFP4 => 0..1,
        _ => 0..0,
    }
}

/// Bytes from row to row on the device, for rows of `bytes` in the file.
pub(super) fn stride(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Appends the rows of `kind` in `rows`, of `row_bytes` each, to `out` as kernels read them.
pub(super) fn repack(kind: TensorType, rows: &[u8], row_bytes: usize, out: &mut Vec<u8>) {
    let (start, stride) = (out.len(), stride(row_bytes));
    out.resize(start + rows.len() / row_bytes * stride, 0);
    let (apart, block) = (apart(kind), kind.block_bytes());
    let targets = out[start..].par_chunks_exact_mut(stride);
    targets.zip(rows.par_chunks_exact(row_bytes)).for_each(|(to, row)| {
        if apart.is_empty() {
            return to[..row_bytes].copy_from_slice(row);
        }
        let (bodies, scales) = to[..row_bytes].split_at_mut(row_bytes / block * (block - apart.len()));
        let bodies = bodies.chunks_exact_mut(block - apart.len());
        let scales = scales.chunks_exact_mut(apart.len());
        for ((block, body), scale) in row.chunks_exact(block).zip(bodies).zip(scales) {
            scale.copy_from_slice(&block[apart.clone()]);
            let rest = if apart.start == 0 { &block[apart.end..] } else { &block[..apart.start] };
            body.copy_from_slice(rest);
        }
    });
}
