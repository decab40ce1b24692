//! GGUF files: reading (single and split) and writing.
//!
//! A leaf: no tensor arithmetic here. Format: docs/gguf.md of the ggml project, versions 2 and 3.

mod fault;
mod file;
mod reader;
mod source;
mod split;
mod tensor_type;
mod value;
mod writer;

use std::ops::Range;

pub use fault::Fault;
pub use file::Gguf;
pub use source::Source;
pub(crate) use source::no_such_rows;
pub use split::{parse_part_name, part_name};
pub use tensor_type::TensorType;
pub use value::{Array, Metadata, Value};
pub use writer::{Output, TensorDecl, Writer, file_bytes};

/// A tensor's entry in a file's table.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// 1 to 4 dimensions in ggml order: row length first, so a matrix is `[columns, rows]`.
    pub shape: Vec<u64>,
    pub kind: TensorType,
    /// Bytes from the start of its file's tensor data.
    pub offset: u64,
    /// Which file of a split model holds it, from 0.
    pub file: usize,
}

impl TensorInfo {
    /// Elements in total. Does not overflow for a tensor that was read or declared.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Elements in a row.
    pub fn columns(&self) -> u64 {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Rows in total, over all further dimensions.
    pub fn rows(&self) -> u64 {
        self.shape.get(1..).unwrap_or_default().iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.kind.row_bytes(self.columns()).unwrap_or(0)
    }

    /// Bytes in total.
    pub fn bytes(&self) -> u64 {
        self.row_bytes() * self.rows()
    }

    /// The bytes of `rows` within the tensor; `None` if there are no such rows.
    pub fn row_range(&self, rows: &Range<u64>) -> Option<Range<usize>> {
        if rows.start > rows.end || rows.end > self.rows() {
            return None;
        }
        let row_bytes = self.row_bytes();
        let start = usize::try_from(rows.start.checked_mul(row_bytes)?).ok()?;
        let end = usize::try_from(rows.end.checked_mul(row_bytes)?).ok()?;
        Some(start..end)
    }

    /// Its name, shape and type, for writing it.
    pub fn declaration(&self) -> TensorDecl {
        TensorDecl { name: self.name.clone(), shape: self.shape.clone(), kind: self.kind }
    }
}

#[cfg(test)]
mod tests;
