//! Where a tensor's numbers come from: one tensor of the checkpoint, several that are stacked, or config.json.

use std::ops::Range;

use super::cast;
use super::names::RowOrder;
use crate::checkpoint::{DataType, Weights};
use crate::gguf::{TensorInfo, TensorType};

pub(super) enum Origin {
    Stored(Stored),
    /// Numbers from config.json, or small ones that were put in order already, as F32 bytes.
    Made(Vec<u8>),
}

/// Tensors of the checkpoint.
pub(super) struct Stored {
    /// Their places there. Several are stacked: each has as many of the rows.
    pub parts: Vec<usize>,
    pub dtype: DataType,
    pub order: RowOrder,
}

/// Rows that lie next to each other in one part.
pub(super) struct Run {
    /// The part's place in the checkpoint.
    pub part: usize,
    /// Its bytes there.
    pub bytes: Range<usize>,
    rows: u64,
}

impl Stored {
    /// The bytes as they are, if they are one piece in order.
    pub fn raw<'w>(&self, weights: &'w Weights) -> Option<&'w [u8]> {
        let [part] = self.parts[..] else { return None };
        let stored = weights.tensors().get(part).filter(|_| self.order == RowOrder::AsStored)?;
        Some(weights.data(stored))
    }

    /// Where `rows` of `tensor` lie; `None` if there are no such rows.
    pub fn runs(&self, tensor: &TensorInfo, rows: &Range<u64>) -> Option<Vec<Run>> {
        if rows.start > rows.end || rows.end > tensor.rows() {
            return None;
        }
        let of_part = tensor.rows().checked_div(self.parts.len() as u64)?;
        let row_bytes = tensor.columns().checked_mul(self.dtype.bytes() as u64)?;
        let mut runs = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let (part, within) = (row / of_part, row % of_part);
            let count = match self.order {
                RowOrder::AsStored => (rows.end - row).min(of_part - within),
                _ => 1,
            };
            let first = self.order.stored(within, of_part);
            let start = usize::try_from(first.checked_mul(row_bytes)?).ok()?;
            let length = usize::try_from(count.checked_mul(row_bytes)?).ok()?;
            let part = *self.parts.get(usize::try_from(part).ok()?)?;
            runs.push(Run { part, bytes: start..start.checked_add(length)?, rows: count });
            row += count;
        }
        Some(runs)
    }

    /// Fills `out` with `rows` of `tensor`, in its type; `None` if there are no such rows or `out` is of another size.
    pub fn read(
        &self,
        weights: &Weights,
        tensor: &TensorInfo,
        rows: &Range<u64>,
        out: &mut [u8],
    ) -> Option<()> {
        let row_bytes = usize::try_from(tensor.row_bytes()).ok()?;
        let mut rest = out;
        for run in self.runs(tensor, rows)? {
            let length = usize::try_from(run.rows).ok()?.checked_mul(row_bytes)?;
            let (target, after) = rest.split_at_mut_checked(length)?;
            let stored = weights.tensors().get(run.part)?;
            if self.order == RowOrder::AsStored {
                weights.prefetch(stored, run.bytes.clone());
            }
            let bytes = weights.data(stored).get(run.bytes)?;
            if !cast::convert(self.dtype, bytes, tensor.kind, target) {
                return None;
            }
            rest = after;
        }
        rest.is_empty().then_some(())
    }
}

/// A vector's elements in another order, as F32 bytes.
pub(super) fn reordered_vector(stored: &[u8], dtype: DataType, order: RowOrder) -> Vec<u8> {
    let count = stored.len() / dtype.bytes();
    let mut plain = vec![0; count * 4];
    // Both sizes are whole numbers of elements, so the conversion cannot fail.
    cast::convert(dtype, &stored[..count * dtype.bytes()], TensorType::F32, &mut plain);
    let element = |at: u64| plain.get(at as usize * 4..at as usize * 4 + 4).unwrap_or_default().to_vec();
    (0..count as u64).flat_map(|at| element(order.stored(at, count as u64))).collect()
}
