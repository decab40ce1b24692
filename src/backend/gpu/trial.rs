//! Matrix units are new in drivers and wgpu: a small product tells whether a device has them as the kernels take them.

use std::sync::Arc;

use super::linear::Product;
use super::{Buffer, Gpu};
use crate::Result;
use crate::backend::Matrix;
use crate::gguf::{Gguf, Metadata, Output, TensorDecl, TensorType, Writer};

/// Neither a multiple of a tile's.
const ROWS: usize = 150;
const TOKENS: usize = 140;
const COLUMNS: usize = 96;
/// Bytes of a block of Q8_0, which has 32 elements.
const BLOCK_BYTES: usize = 34;

/// What products in half precision may differ by in the l2 norm: they do by about 0.0005, and by 1 where elements are not
/// where they should be.
const TOLERANCE: f32 = 0.01;

impl Gpu {
    /// Whether products by matrix units are those without.
    ///
    /// # Errors
    /// A device that failed altogether.
    pub(super) fn matrices_are_right(&self) -> Result<bool> {
        let invalid = self.device.raw.push_error_scope(wgpu::ErrorFilter::Validation);
        let refused = self.device.raw.push_error_scope(wgpu::ErrorFilter::Internal);
        let same = self.try_matrices();
        let refused = pollster::block_on(refused.pop());
        let invalid = pollster::block_on(invalid.pop());
        Ok(same? && refused.is_none() && invalid.is_none())
    }

    fn try_matrices(&self) -> Result<bool> {
        // Numbers between -1 and 1 that have no pattern.
        let mut state = 1_u32;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut blocks = Vec::with_capacity(ROWS * COLUMNS / 32 * BLOCK_BYTES);
        for _ in 0..ROWS * COLUMNS / 32 {
            blocks.extend(half::f16::from_f32(number() * 0.001).to_le_bytes());
            blocks.extend((0..32).map(|_| (number() * 127.0) as i8 as u8));
        }
        let values: Vec<f32> = (0..TOKENS * COLUMNS).map(|_| number()).collect();
        let w = matrix(&blocks)?;
        self.upload(&w, &mut |_| {})?;
        let resident = self.resident(&w)?;
        let (mut x, mut out) = (Buffer::default(), Buffer::default());
        self.write(&values, TOKENS, COLUMNS, &mut x)?;
        self.resize(&mut out, TOKENS, ROWS);
        let product = Product::plain(&w, &x, &out);
        let mut results = Vec::new();
        for rows in [None, Some(64), Some(128)] {
            match rows {
                None => self.many_singles(&product, &resident, &resident.chunks[0])?,
                Some(rows) => self.many_halves(&product, &resident, &resident.chunks[0], rows)?,
            }
            results.push(self.fetch(out.storage(), 0, (TOKENS * ROWS * 4) as u64)?);
        }
        self.remove(w.id());
        Ok(results[1..].iter().all(|result| difference(result, &results[0]) <= TOLERANCE))
    }
}

/// A matrix of [`ROWS`] rows.
fn matrix(blocks: &[u8]) -> Result<Matrix> {
    let shape = vec![COLUMNS as u64, ROWS as u64];
    let tensor = TensorDecl { name: "trial".to_owned(), shape, kind: TensorType::Q8_0 };
    let mut writer = Writer::in_memory("trial", &Metadata::new(), &[tensor])?;
    writer.write(blocks)?;
    let image = match writer.finish()? {
        Output::Memory(image) => image,
        Output::File(_) => Vec::new(),
    };
    Ok(Matrix::new(Arc::new(Gguf::from_bytes(image, "trial")?), 0))
}

/// The relative difference of two results in the l2 norm; not a number where there is one in them.
fn difference(ours: &[u8], want: &[u8]) -> f32 {
    let floats = |bytes| <[u8]>::as_chunks::<4>(bytes).0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let error: f32 = floats(ours).zip(floats(want)).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / floats(want).map(|x| x * x).sum::<f32>()).sqrt()
}
