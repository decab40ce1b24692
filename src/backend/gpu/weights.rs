//! Weights on a device: matrices in their GGUF blocks, cut between rows where a kernel may not see all of a buffer.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError};

use super::Gpu;
use super::blocks;
use super::buffer::Storage;
use super::device::lock;
use crate::backend::{Matrix, MatrixId, Vector};
use crate::gguf::TensorType;
use crate::{Error, Result};

/// Bytes that go to the device at once: what the host keeps a second copy of.
const PIECE: usize = 8 << 20;

/// A matrix on the device.
pub(super) struct Resident {
    pub chunks: Vec<Chunk>,
}

/// Rows of a matrix that lie in one storage.
pub(super) struct Chunk {
    pub storage: Storage,
    pub first_row: usize,
    pub rows: usize,
}

/// The matrices of a tensor's experts in one storage.
#[derive(Clone)]
pub(super) struct Stack {
    pub storage: Arc<Storage>,
    /// Bytes from one to the next.
    pub stride: u64,
    /// Those that were uploaded.
    there: BTreeSet<usize>,
}

impl Gpu {
    /// Whether its kernels can compute with `matrix`.
    pub fn takes(&self, matrix: &Matrix) -> bool {
        blocks::source(matrix.kind).is_some()
            && matrix.columns.is_multiple_of(16)
            && matrix.row_bytes() as u64 <= self.device.most_bytes
    }

    /// Bytes of the device's memory that `matrix` takes.
    pub fn bytes_for(matrix: &Matrix) -> u64 {
        (matrix.size() as u64).next_multiple_of(256)
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
                self.device.fault.device(),
                matrix.kind,
                matrix.columns
            )));
        }
        let row_bytes = matrix.row_bytes();
        let most_rows = (self.device.most_bytes as usize / row_bytes).max(1);
        let mut chunks = Vec::new();
        for (number, bytes) in matrix.bytes().chunks(most_rows * row_bytes).enumerate() {
            let storage = match self.place_in_stack(matrix)? {
                Some(storage) => storage,
                None => self.storage(bytes.len() as u64)?,
            };
            for (i, piece) in bytes.chunks(PIECE).enumerate() {
                self.fill(&storage, i * PIECE, piece);
                // What is written waits in host memory until something is submitted.
                self.device.queue.submit([]);
                progress(piece.len());
            }
            chunks.push(Chunk { storage, first_row: number * most_rows, rows: bytes.len() / row_bytes });
        }
        self.wait()?;
        if let Some(stack) = lock(&self.stacks).get_mut(&matrix.id().of_tensor()) {
            stack.there.insert(matrix.place().1);
        }
        self.matrices
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(matrix.id(), Resident { chunks }.into());
        Ok(())
    }

    /// Takes a matrix off the device.
    pub fn remove(&self, matrix: MatrixId) {
        self.matrices.write().unwrap_or_else(PoisonError::into_inner).remove(&matrix);
        lock(&self.stacks).remove(&matrix.of_tensor());
    }

    /// Where among the others of its tensor an expert's matrix is to lie, if a kernel can see all of them.
    fn place_in_stack(&self, matrix: &Matrix) -> Result<Option<Storage>> {
        let (count, number) = matrix.place();
        let stride = (matrix.size() as u64).next_multiple_of(Storage::GRAIN);
        let bytes = stride * count as u64;
        // Kernels count bytes in 32 bits.
        if count == 1 || bytes > self.device.most_bytes.min(u32::MAX.into()) {
            return Ok(None);
        }
        let mut stacks = lock(&self.stacks);
        let stack = match stacks.entry(matrix.id().of_tensor()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let storage = self.storage(bytes)?.into();
                entry.insert(Stack { storage, stride, there: BTreeSet::new() })
            }
        };
        let size = (matrix.size() as u64).next_multiple_of(4);
        Ok(Some(stack.storage.part(number as u64 * stride, size)))
    }

    /// The storage that all of `experts` are in, one after the other, if there is one.
    pub(super) fn stack(&self, experts: &[Matrix]) -> Option<Stack> {
        let id = experts.first()?.id().of_tensor();
        lock(&self.stacks).get(&id).filter(|stack| stack.there.len() == experts.len()).cloned()
    }

    pub(super) fn resident(&self, matrix: &Matrix) -> Result<Arc<Resident>> {
        let matrices = self.matrices.read().unwrap_or_else(PoisonError::into_inner);
        matrices.get(&matrix.id()).cloned().ok_or_else(|| {
            Error::Device(format!("{} was not put on {}", matrix.name(), self.device.fault.device()))
        })
    }

    /// The table that the blocks of `kind` look values up in; without one, anything will do.
    pub(super) fn codebook(&self, kind: TensorType) -> Result<Arc<Storage>> {
        let mut codebooks = lock(&self.codebooks);
        if let Some(storage) = codebooks.get(&kind) {
            return Ok(Arc::clone(storage));
        }
        let words = blocks::codebook(kind).unwrap_or_else(|| vec![0]);
        let storage = Arc::new(self.storage(words.len() as u64 * 4)?);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.fill(&storage, 0, &bytes);
        codebooks.insert(kind, Arc::clone(&storage));
        Ok(storage)
    }

    /// The device's copy of `vector`, made when it is first wanted.
    pub(super) fn vector(&self, vector: &Vector) -> Result<Arc<Storage>> {
        let mut vectors = lock(&self.vectors);
        if let Some(storage) = vectors.get(&vector.id()) {
            return Ok(Arc::clone(storage));
        }
        let storage = Arc::new(self.storage(vector.len() as u64 * 4)?);
        let bytes: Vec<u8> = vector.iter().flat_map(|element| element.to_le_bytes()).collect();
        self.fill(&storage, 0, &bytes);
        vectors.insert(vector.id(), Arc::clone(&storage));
        Ok(storage)
    }

    /// Writes to a storage that nothing recorded uses yet.
    fn fill(&self, storage: &Storage, at: usize, bytes: &[u8]) {
        let at = storage.offset + at as u64;
        if bytes.len().is_multiple_of(4) {
            self.device.queue.write_buffer(&storage.raw, at, bytes);
        } else {
            let mut padded = bytes.to_vec();
            padded.resize(bytes.len().next_multiple_of(4), 0);
            self.device.queue.write_buffer(&storage.raw, at, &padded);
        }
    }
}
