//! Some rows of a tensor, from the source's bytes to the output's.

use std::ops::Range;

use super::{Imatrix, Planned};
use crate::gguf::Source;
use crate::quant::{self, validity};
use crate::{Error, Result};

/// Rows of one tensor that are encoded in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Its place in the plan.
    pub tensor: usize,
    pub rows: Range<u64>,
}

/// Cuts all tensors into chunks of about `bytes` of the source, at least a row each.
pub(super) fn split(tensors: &[Planned], bytes: u64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (tensor, planned) in tensors.iter().enumerate() {
        let step = (bytes / planned.source_row_bytes().max(1)).max(1);
        let rows = planned.rows();
        let mut start = 0;
        while start < rows {
            let end = start.saturating_add(step).min(rows);
            chunks.push(Chunk { tensor, rows: start..end });
            start = end;
        }
    }
    chunks
}

/// What a thread keeps from chunk to chunk.
#[derive(Default)]
pub(super) struct Scratch {
    source: Vec<u8>,
    values: Vec<f32>,
}

/// Elements decoded at a time, so that they are still in the cache when they are encoded.
const BATCH: u64 = 16 << 10;

/// Appends the output bytes of `chunk`, which belongs to `tensor`, to `out`.
pub(super) fn encode(
    source: &dyn Source,
    tensor: &Planned,
    chunk: &Chunk,
    imatrix: Option<&Imatrix>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<()> {
    let Scratch { source: buffer, values } = scratch;
    let rows = chunk.rows.clone();
    let stored = source.tensors().get(tensor.source).and_then(|info| info.row_range(&rows));
    let from = match source.raw(tensor.source).zip(stored).and_then(|(all, range)| all.get(range)) {
        Some(bytes) => bytes,
        None => {
            buffer.resize(to_usize(tensor.bytes_of_source(&rows))?, 0);
            source.bytes(tensor.source, rows.clone(), buffer)?;
            &*buffer
        }
    };
    if let Some(block) = validity::first_invalid(tensor.from, from) {
        return Err(Error::invalid(source.path(), damaged(tensor, &rows, block)));
    }
    if tensor.is_copied() {
        out.extend_from_slice(from);
    } else {
        let weights = imatrix.map(|imatrix| imatrix.weights_for(tensor)).transpose()?.flatten();
        transcode(tensor, rows.clone(), from, weights, values, out)?;
        if let Some(block) = validity::first_invalid(tensor.kind, out) {
            return Err(Error::invalid(source.path(), too_large(tensor, &rows, block)));
        }
    }
    source.release(tensor.source, rows);
    Ok(())
}

/// Decodes and encodes `rows`, a batch at a time. `weights` is [matrices, columns].
fn transcode(
    tensor: &Planned,
    rows: Range<u64>,
    from: &[u8],
    weights: Option<&[f32]>,
    values: &mut Vec<f32>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let columns = to_usize(tensor.columns())?;
    let (from_bytes, to_bytes) = (to_usize(tensor.source_row_bytes())?, to_usize(tensor.row_bytes())?);
    let per_matrix = tensor.rows_per_matrix();
    let per_batch = (BATCH / tensor.columns().max(1)).max(1);
    out.resize(to_usize(rows.end - rows.start)? * to_bytes, 0);

    let mut row = rows.start;
    let (mut from, mut to) = (from, out.as_mut_slice());
    while row < rows.end {
        // Each matrix (expert) has weights of its own, so a batch stays within one.
        let matrix_end = (row / per_matrix + 1) * per_matrix;
        let end = (row + per_batch).min(rows.end).min(matrix_end);
        let count = (end - row) as usize;
        let (now, later) = from.split_at(count * from_bytes);
        let (dst, rest) = to.split_at_mut(count * to_bytes);
        values.resize(count * columns, 0.0);
        quant::decode(tensor.from, now, values)?;
        let matrix = (row / per_matrix) as usize;
        let weights = weights.and_then(|all| all.get(matrix * columns..(matrix + 1) * columns));
        quant::encode(tensor.kind, values, columns, weights, dst)?;
        (row, from, to) = (end, later, rest);
    }
    Ok(())
}

fn damaged(tensor: &Planned, rows: &Range<u64>, block: usize) -> String {
    let what = if tensor.from.is_quantized() { "a block scale" } else { "a value" };
    format!(
        "the tensor {} has {what} that is NaN or infinite, in row {}; the file is damaged or the model was not \
         trained properly, get it again",
        tensor.source_name,
        row_of(rows, block, tensor.source_row_bytes(), tensor.from.block_bytes())
    )
}

fn too_large(tensor: &Planned, rows: &Range<u64>, block: usize) -> String {
    format!(
        "the tensor {} has values too large for {}, in row {}; choose another type for it with --tensor-type",
        tensor.source_name,
        tensor.kind,
        row_of(rows, block, tensor.row_bytes(), tensor.kind.block_bytes())
    )
}

/// The row that holds block number `block` of `rows`.
fn row_of(rows: &Range<u64>, block: usize, row_bytes: u64, block_bytes: usize) -> u64 {
    rows.start + (block as u64 * block_bytes as u64) / row_bytes.max(1)
}

fn to_usize(bytes: u64) -> Result<usize> {
    usize::try_from(bytes)
        .map_err(|_| Error::Resources(format!("{bytes} bytes do not fit this machine's memory")))
}
