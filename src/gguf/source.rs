//! A model's tensors as something to read from: a GGUF file, or a checkpoint converted on the fly.

use std::ops::Range;
use std::path::Path;

use super::{Gguf, Metadata, TensorInfo};
use crate::{Error, Result};

/// Metadata and tensors in GGUF terms, whatever they are stored as.
pub trait Source: Send + Sync {
    /// What error messages name.
    fn path(&self) -> &Path;

    fn metadata(&self) -> &Metadata;

    /// In file order. For a source that is no GGUF file, `offset` and `file` mean nothing.
    fn tensors(&self) -> &[TensorInfo];

    /// Tensor `index`'s bytes as they lie in memory, where it is stored in its `kind`.
    fn raw(&self, index: usize) -> Option<&[u8]>;

    /// Writes `rows` of tensor `index` to `out`, in its `kind`.
    ///
    /// `out` has exactly the rows' bytes. Errors: an index or row that does not exist, an `out` of another size.
    fn bytes(&self, index: usize, rows: Range<u64>, out: &mut [u8]) -> Result<()>;

    /// Says that `rows` of tensor `index` will not be read again soon: what backs them need not stay resident.
    fn release(&self, _index: usize, _rows: Range<u64>) {}

    /// Says that `rows` of tensor `index` will be read soon. Only a hint; it does not wait.
    fn prefetch(&self, _index: usize, _rows: Range<u64>) {}
}

impl Source for Gguf {
    fn path(&self) -> &Path {
        self.path()
    }

    fn metadata(&self) -> &Metadata {
        self.metadata()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }

    fn raw(&self, index: usize) -> Option<&[u8]> {
        self.tensors().get(index).map(|tensor| self.data(tensor))
    }

    fn bytes(&self, index: usize, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        let tensor = self.tensors().get(index);
        let range = tensor.and_then(|tensor| tensor.row_range(&rows));
        let from = tensor.zip(range).and_then(|(tensor, range)| self.data(tensor).get(range));
        match from {
            Some(from) if from.len() == out.len() => {
                out.copy_from_slice(from);
                Ok(())
            }
            _ => Err(no_such_rows(self.path(), index, &rows)),
        }
    }

    fn release(&self, index: usize, rows: Range<u64>) {
        if let Some(tensor) = self.tensors().get(index)
            && let Some(range) = tensor.row_range(&rows)
        {
            self.forget(tensor, range);
        }
    }

    fn prefetch(&self, index: usize, rows: Range<u64>) {
        if let Some(tensor) = self.tensors().get(index)
            && let Some(range) = tensor.row_range(&rows)
        {
            self.read_ahead(tensor, range);
        }
    }
}

/// The error for a request that [`Source::bytes`] cannot serve.
pub(crate) fn no_such_rows(path: &Path, index: usize, rows: &Range<u64>) -> Error {
    Error::Usage(format!(
        "{}: rows {} to {} of tensor number {index} do not exist or do not fit the buffer given",
        path.display(),
        rows.start,
        rows.end
    ))
}
