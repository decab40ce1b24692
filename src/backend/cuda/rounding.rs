//! Activations as products with quantized weights take them: int8 for a few rows, halves for many.

use super::buffer::{Buffer, Storage};
use super::linear::FEW_TOKENS;
use super::modules::Module;
use super::{Cuda, launch};
use crate::Result;

/// What elements are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// With a scale and a sum for every 16, for matrix-vector kernels.
    Int8,
    /// With a factor a row, for tiles.
    Halves,
}

impl Form {
    /// What a product of so many rows takes.
    pub fn of(rows: usize) -> Self {
        if rows <= FEW_TOKENS { Self::Int8 } else { Self::Halves }
    }
}

/// A buffer's elements, as kernels/elementwise.cu makes them.
pub(super) struct Rounded {
    pub form: Form,
    /// `[rows, columns]`.
    values: Storage,
    /// `[rows, columns / 16]` pairs of f32, or `[rows]` of f32.
    scales: Storage,
}

impl Rounded {
    /// What kernels are told of it.
    pub fn parameters(&self) -> launch::Rounded {
        let (values, scales) = (self.values.pointer(), self.scales.pointer());
        match self.form {
            Form::Int8 => launch::Rounded { q: values, scales, ..launch::Rounded::NONE },
            Form::Halves => launch::Rounded { halves: values, factors: scales, ..launch::Rounded::NONE },
        }
    }
}

impl Cuda {
    /// Makes room for `[rows, columns]`; contents are then unspecified.
    pub(super) fn ensure_rounded<'a>(
        &self,
        rounded: &'a mut Option<Rounded>,
        form: Form,
        rows: usize,
        columns: usize,
    ) -> Result<&'a Rounded> {
        let (values, scales) = match form {
            Form::Int8 => (rows * columns, rows * columns / 16 * 8),
            Form::Halves => (rows * columns * 2, rows * 4),
        };
        let kept = rounded.take().filter(|kept| kept.values.size() >= values && kept.scales.size() >= scales);
        let (values, scales) = match kept {
            Some(kept) => (kept.values, kept.scales),
            None => (self.storage(values)?, self.storage(scales)?),
        };
        Ok(rounded.insert(Rounded { form, values, scales }))
    }

    /// Rounds the elements of `x` to what `to` is; rows are of whole groups of 32, or of 16 for halves.
    pub(super) fn round(&self, x: &Buffer, to: &Rounded) -> Result<()> {
        let parameters = launch::Round {
            x: x.pointer(),
            to: to.parameters(),
            columns: x.columns as u32,
            elements: x.elements() as u32,
        };
        let (name, groups) = match to.form {
            Form::Int8 => ("quantize", x.elements().div_ceil(4 * 256)),
            Form::Halves => ("halve_rows", x.rows),
        };
        self.launch(Module::elementwise(), name, [groups, 1, 1], 256, &parameters)
    }
}
