//! Some rows of a tensor, from the source's bytes to the output's.

use std::ops::Range;

use super::measure::{ErrorSums, Sample};
use super::{Options, Planned};
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
    decoded: Vec<f32>,
}

/// Elements decoded at a time, so that they are still in the cache when they are encoded.
const BATCH: u64 = 16 << 10;

/// Errors are measured on at least this many elements of a tensor …
const MEASURED: u64 = 256 << 10;
/// … and else on one batch in this many, which costs little beside encoding.
const MEASURED_PART: u64 = 8;

/// Appends the output bytes of `chunk`, which belongs to `tensor`, to `out`; measures errors if asked to.
pub(super) fn encode(
    source: &dyn Source,
    tensor: &Planned,
    chunk: &Chunk,
    options: &Options,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<ErrorSums> {
    let Scratch { source: buffer, values, decoded } = scratch;
    let rows = chunk.rows.clone();
    let from = read(source, tensor, rows.clone(), buffer)?;
    if let Some(block) = validity::first_invalid(tensor.from, from) {
        return Err(Error::invalid(source.path(), damaged(tensor, &rows, block)));
    }
    let mut sums = ErrorSums::default();
    if tensor.is_copied() {
        out.extend_from_slice(from);
    } else {
        let imatrix = options.imatrix.as_ref();
        let weights = imatrix.map(|imatrix| imatrix.weights_for(tensor)).transpose()?.flatten();
        out.resize(to_usize((rows.end - rows.start) * tensor.row_bytes())?, 0);
        let mut coder =
            Coder { tensor, weights, values, decoded, sums: options.measure.then_some(&mut sums) };
        coder.transcode(rows.clone(), from, out)?;
        if let Some(block) = validity::first_invalid(tensor.kind, out) {
            return Err(Error::invalid(source.path(), too_large(tensor, &rows, block)));
        }
    }
    source.release(tensor.source, rows);
    Ok(sums)
}

/// The stored bytes of `rows`, where they lie or in `buffer`.
fn read<'a>(
    source: &'a dyn Source,
    tensor: &Planned,
    rows: Range<u64>,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    let stored = source.tensors().get(tensor.source).and_then(|info| info.row_range(&rows));
    if let Some(bytes) = source.raw(tensor.source).zip(stored).and_then(|(all, range)| all.get(range)) {
        return Ok(bytes);
    }
    buffer.resize(to_usize(tensor.bytes_of_source(&rows))?, 0);
    source.bytes(tensor.source, rows, buffer)?;
    Ok(buffer)
}

/// Decodes rows of one tensor and encodes them again.
struct Coder<'a> {
    tensor: &'a Planned,
    /// [matrices, columns].
    weights: Option<&'a [f32]>,
    values: &'a mut Vec<f32>,
    decoded: &'a mut Vec<f32>,
    /// Where measured errors go, if they are wanted.
    sums: Option<&'a mut ErrorSums>,
}

impl Coder<'_> {
    /// Turns `rows`, which are `from`, into `to`, a batch at a time.
    fn transcode(&mut self, rows: Range<u64>, mut from: &[u8], mut to: &mut [u8]) -> Result<()> {
        let tensor = self.tensor;
        let (from_bytes, to_bytes) = (tensor.source_row_bytes() as usize, tensor.row_bytes() as usize);
        let per_matrix = tensor.rows_per_matrix();
        let per_batch = (BATCH / tensor.columns().max(1)).max(1);
        let mut row = rows.start;
        while row < rows.end {
            // Each matrix (expert) has weights of its own, so a batch stays within one.
            let matrix = row / per_matrix;
            let end = (row + per_batch).min(rows.end).min((matrix + 1) * per_matrix);
            let count = (end - row) as usize;
            let (now, later) = from.split_at(count * from_bytes);
            let (dst, rest) = to.split_at_mut(count * to_bytes);
            self.batch(row / per_batch, matrix as usize, now, dst)?;
            (row, from, to) = (end, later, rest);
        }
        Ok(())
    }

    /// Encodes batch `number` of the tensor, whose rows belong to `matrix`.
    fn batch(&mut self, number: u64, matrix: usize, from: &[u8], to: &mut [u8]) -> Result<()> {
        let tensor = self.tensor;
        let columns = to_usize(tensor.columns())?;
        let elements = from.len() / tensor.from.block_bytes() * tensor.from.block_elements();
        self.values.resize(elements, 0.0);
        quant::decode(tensor.from, from, self.values)?;
        let weights = self.weights.and_then(|all| all.get(matrix * columns..(matrix + 1) * columns));
        quant::encode(tensor.kind, self.values, columns, weights, to)?;

        let step = (tensor.elements() / MEASURED).clamp(1, MEASURED_PART);
        if let Some(sums) = self.sums.as_deref_mut().filter(|_| number.is_multiple_of(step)) {
            self.decoded.resize(elements, 0.0);
            quant::decode(tensor.kind, to, self.decoded)?;
            for (values, decoded) in self.values.chunks(columns).zip(self.decoded.chunks(columns)) {
                sums.add_row(values, decoded, weights);
            }
        }
        Ok(())
    }
}

/// About `elements` of `tensor`, in whole rows spread evenly over it.
pub(super) fn sample<'a>(
    source: &dyn Source,
    tensor: &Planned,
    elements: u64,
    scratch: &'a mut Scratch,
) -> Result<Sample<'a>> {
    let Scratch { source: buffer, values, .. } = scratch;
    let (rows, columns) = (tensor.rows(), to_usize(tensor.columns())?);
    let count = (elements / tensor.columns().max(1)).clamp(1, rows);
    values.resize(to_usize(count)? * columns, 0.0);
    let mut matrices = Vec::new();
    for (at, values) in values.chunks_exact_mut(columns).enumerate() {
        let row = (at as u64 * 2 + 1) * rows / (2 * count);
        let from = read(source, tensor, row..row + 1, buffer)?;
        if let Some(block) = validity::first_invalid(tensor.from, from) {
            return Err(Error::invalid(source.path(), damaged(tensor, &(row..row + 1), block)));
        }
        quant::decode(tensor.from, from, values)?;
        matrices.push((row / tensor.rows_per_matrix()) as usize);
    }
    Ok(Sample { values, matrices })
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
