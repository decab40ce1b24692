//! Weights on a device: matrices in their GGUF blocks, cut between rows where a kernel may not see all of a buffer.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError};

use super::Gpu;
use super::blocks;
use super::buffer::Storage;
use super::device::lock;
use super::kernels::{Kernel, Matrices};
use crate::backend::halving::halving;
use crate::backend::{Matrix, MatrixId, Vector};
use crate::gguf::TensorType;
use crate::{Error, Result};

/// Bytes that go to the device at once: what the host keeps a second copy of.
const PIECE: usize = 8 << 20;

/// A matrix on the device.
pub(super) struct Resident {
    pub chunks: Vec<Chunk>,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// The power of two that brings its weights into the range of halves, where they are multiplied as such.
    pub factor: f32,
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

/// Bytes of a matrix as the device has it.
fn device_bytes(matrix: &Matrix) -> u64 {
    (matrix.rows * blocks::row_bytes(matrix)) as u64
}

impl Gpu {
    /// Whether its kernels can compute with `matrix`.
    pub fn takes(&self, matrix: &Matrix) -> bool {
        blocks::source(matrix.kind).is_some()
            && matrix.columns.is_multiple_of(16)
            && blocks::row_bytes(matrix) as u64 <= self.device.most_bytes
    }

    /// Bytes of the device's memory that `matrix` takes.
    pub fn bytes_for(matrix: &Matrix) -> u64 {
        device_bytes(matrix).next_multiple_of(256)
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
        let device_row = blocks::row_bytes(matrix);
        let most_rows = (self.device.most_bytes as usize / device_row).max(1);
        // Whole rows, which end at a multiple of 4 bytes.
        let piece_bytes = (PIECE / row_bytes).next_multiple_of(4).max(4) * row_bytes;
        let mut chunks = Vec::new();
        for (number, bytes) in matrix.bytes().chunks(most_rows * row_bytes).enumerate() {
            let storage = match self.place_in_stack(matrix)? {
                Some(storage) => storage,
                None => self.storage((bytes.len() / row_bytes * device_row) as u64)?,
            };
            for (i, piece) in bytes.chunks(piece_bytes).enumerate() {
                let at = i * (piece_bytes / row_bytes) * device_row;
                self.fill(&storage, at, &blocks::padded(matrix.kind, piece));
                // What is written waits in host memory until something is submitted.
                self.device.queue.submit([]);
                progress(piece.len());
            }
            chunks.push(Chunk { storage, first_row: number * most_rows, rows: bytes.len() / row_bytes });
        }
        self.wait()?;
        let factor = match self.kernels.subgroups.matrices {
            Matrices::None => 1.0,
            _ => halving(self.largest_weight(matrix, &chunks)?),
        };
        if let Some(stack) = lock(&self.stacks).get_mut(&matrix.id().of_tensor()) {
            stack.there.insert(matrix.place().1);
        }
        self.matrices
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(matrix.id(), Resident { chunks, row_bytes: device_row, factor }.into());
        Ok(())
    }

    /// The size of the largest of `matrix`'s weights.
    fn largest_weight(&self, matrix: &Matrix, chunks: &[Chunk]) -> Result<f32> {
        let most = self.storage(4)?;
        let codebook = self.codebook(matrix.kind)?;
        lock(&self.recorder).clear(&self.device, &most, 4);
        for chunk in chunks {
            let parameters = [matrix.columns, chunk.rows, blocks::row_bytes(matrix)].map(|n| n as u32);
            let groups = [chunk.rows.min(4096) as u32, 1, 1];
            let work = (chunk.rows * matrix.columns) as u64;
            self.run(
                Kernel::Bound(matrix.kind),
                &[&chunk.storage, &codebook, &most],
                &parameters,
                groups,
                work,
            );
        }
        let bits = self.fetch(&most, 0, 4)?;
        Ok(bits.first_chunk().map_or(0.0, |&bits| f32::from_le_bytes(bits)))
    }

    /// Takes a matrix off the device.
    pub fn remove(&self, matrix: MatrixId) {
        self.matrices.write().unwrap_or_else(PoisonError::into_inner).remove(&matrix);
        lock(&self.stacks).remove(&matrix.of_tensor());
    }

    /// Where among the others of its tensor an expert's matrix is to lie, if a kernel can see all of them.
    fn place_in_stack(&self, matrix: &Matrix) -> Result<Option<Storage>> {
        let (count, number) = matrix.place();
        let stride = device_bytes(matrix).next_multiple_of(Storage::GRAIN);
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
        let size = device_bytes(matrix).next_multiple_of(4);
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
