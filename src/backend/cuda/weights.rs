//! Weights on a device: matrices in their GGUF blocks, small vectors, codebooks.

use std::sync::{Arc, PoisonError};

use super::buffer::Storage;
use super::device::lock;
use super::modules::Module;
use super::repacking::{repack, stride};
use super::{Cuda, launch};
use crate::backend::codebooks::codebook;
use crate::backend::halving::halving;
use crate::backend::{Matrix, MatrixId, Vector};
use crate::gguf::TensorType;
use crate::{Error, Result};

/// Bytes that go to the device at once: what the host keeps a second copy of.
const PIECE: usize = 8 << 20;

/// A matrix on a device.
#[derive(Clone)]
pub(super) struct Resident {
    pub storage: Arc<Storage>,
    /// The power of two that brings its weights into the range of halves.
    pub factor: f32,
}

impl Cuda {
    /// Whether its kernels can compute with `matrix`.
    pub fn takes(&self, matrix: &Matrix) -> bool {
        // Float types have vectors of 16 bytes; the others, blocks of 32 elements or more.
        Module::weights(matrix.kind).is_some() && matrix.columns.is_multiple_of(16)
    }

    /// Bytes of the device's memory that `matrix` takes.
    pub fn bytes_for(matrix: &Matrix) -> u64 {
        ((matrix.rows * stride(matrix.row_bytes())) as u64).next_multiple_of(512)
    }

    /// Copies `matrix` to the device, where it stays. `progress` is told of the bytes that went over.
    ///
    /// # Errors
    /// Too little memory on the device; a matrix that [`Self::takes`] refuses; a device that failed.
    pub fn upload(&self, matrix: &Matrix, progress: &mut dyn FnMut(usize)) -> Result<()> {
        if !self.takes(matrix) {
            return Err(Error::Unsupported(format!(
                "{} cannot be put on {}: it is {} with {} columns, and kernels there want a multiple of 16",
                matrix.name(),
                self.context.name(),
                matrix.kind,
                matrix.columns
            )));
        }
        let (row_bytes, stride) = (matrix.row_bytes(), stride(matrix.row_bytes()));
        let storage = self.storage(matrix.rows * stride)?;
        let rows = (PIECE / stride).max(1);
        let mut piece = Vec::new();
        for (i, bytes) in matrix.bytes().chunks(rows * row_bytes).enumerate() {
            piece.clear();
            repack(matrix.kind, bytes, row_bytes, &mut piece);
            self.send(&piece, storage.pointer() + (i * rows * stride) as u64)?;
            progress(bytes.len());
        }
        self.context.wait()?;
        let factor = if matrix.kind == TensorType::F32 { 1.0 } else { self.factor(matrix, &storage)? };
        let mut matrices = self.matrices.write().unwrap_or_else(PoisonError::into_inner);
        matrices.insert(matrix.id(), Resident { storage: storage.into(), factor });
        lock(&self.tables).clear();
        Ok(())
    }

    /// See [`Resident::factor`].
    fn factor(&self, matrix: &Matrix, weights: &Storage) -> Result<f32> {
        let most = self.storage(4)?;
        self.send_words([0].into_iter(), &most)?;
        let codebook = self.codebook(matrix.kind)?;
        let parameters = launch::Bound {
            weights: weights.pointer(),
            codebook: codebook.pointer(),
            out: most.pointer(),
            columns: matrix.columns as u32,
            row_bytes: stride(matrix.row_bytes()) as u32,
        };
        let module = Module::weights(matrix.kind).expect("what is uploaded has kernels");
        self.launch(module, "bound", [matrix.rows, 1, 1], 128, &parameters)?;
        let mut bits = [0; 4];
        self.fetch(most.pointer(), &mut bits)?;
        Ok(halving(f32::from_le_bytes(bits)))
    }

    /// Takes a matrix off the device.
    pub fn remove(&self, matrix: MatrixId) {
        self.matrices.write().unwrap_or_else(PoisonError::into_inner).remove(&matrix);
        // It may be in any of them.
        lock(&self.tables).clear();
    }

    pub(super) fn resident(&self, matrix: &Matrix) -> Result<Resident> {
        let matrices = self.matrices.read().unwrap_or_else(PoisonError::into_inner);
        matrices
            .get(&matrix.id())
            .cloned()
            .ok_or_else(|| Error::Device(format!("{} was not put on {}", matrix.name(), self.context.name())))
    }

    /// The table that the blocks of `kind` look values up in; without one, anything will do.
    pub(super) fn codebook(&self, kind: TensorType) -> Result<Arc<Storage>> {
        let mut codebooks = lock(&self.codebooks);
        if let Some(storage) = codebooks.get(&kind) {
            return Ok(Arc::clone(storage));
        }
        let words = codebook(kind).unwrap_or_else(|| vec![0]);
        let storage = Arc::new(self.storage(words.len() * 4)?);
        self.send_words(words.into_iter(), &storage)?;
        codebooks.insert(kind, Arc::clone(&storage));
        Ok(storage)
    }

    /// The device's copy of `vector`, made when it is first wanted.
    pub(super) fn vector(&self, vector: &Vector) -> Result<Arc<Storage>> {
        let mut vectors = lock(&self.vectors);
        if let Some(storage) = vectors.get(&vector.id()) {
            return Ok(Arc::clone(storage));
        }
        let storage = Arc::new(self.storage(vector.len() * 4)?);
        self.send_words(vector.iter().map(|element| element.to_bits()), &storage)?;
        vectors.insert(vector.id(), Arc::clone(&storage));
        Ok(storage)
    }
}
