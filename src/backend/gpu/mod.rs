//! The backend for graphics processors, through WebGPU's API (wgpu): Vulkan, Metal, Direct3D 12.
//!
//! Operations are recorded and handed over together, a few times a token, so that the device works while the host records.
//! Weights stay in their GGUF blocks; each kernel is one WGSL source, put together with its weight type's decoder.

mod attention;
mod blocks;
mod buffer;
mod cache;
mod device;
mod fault;
mod kernels;
mod largest;
mod linear;
mod memory;
mod mixture;
mod pipeline_cache;
mod quick;
mod recorder;
#[cfg(test)]
mod tests;
mod trial;
mod weights;

pub use buffer::Buffer;
pub use cache::{Cache, CacheShape};
pub use device::Adapter;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use super::{Backend, Gate, Heads, Largest, Matrix, MatrixId, Mixture, Part, Rotation, Vector};
use crate::gguf::TensorType;
use crate::{Error, Result};
use buffer::Storage;
use device::{Device, lock};
use kernels::{Activation, Element, Kernel, Kernels, Matrices};
use mixture::MixtureScratch;
use pipeline_cache::PipelineCache;
use quick::QuickMap;
use recorder::{Dispatch, Recorder, spread};
use weights::{Resident, Stack};

/// Threads of a workgroup of the element-wise kernels.
const ELEMENT_THREADS: usize = 256;

/// Threads of a norm's workgroup, at most: what every device grants.
const NORM_THREADS: usize = 256;

/// A graphics processor, and what is on it.
pub struct Gpu {
    adapter: Adapter,
    device: Device,
    kernels: Kernels,
    recorder: Mutex<Recorder>,
    matrices: RwLock<QuickMap<MatrixId, Arc<Resident>>>,
    /// By the first expert's matrix.
    stacks: Mutex<HashMap<MatrixId, Stack>>,
    vectors: Mutex<QuickMap<u64, Arc<Storage>>>,
    codebooks: Mutex<QuickMap<TensorType, Arc<Storage>>>,
    /// Stands for what a kernel's variant does not use.
    nothing: Storage,
    scratch: Mutex<Scratch>,
    mixture: Mutex<MixtureScratch>,
}

/// Storages of operations in progress, reused from one to the next.
#[derive(Default)]
struct Scratch {
    /// The batch whose angles these are.
    rotation: u64,
    cosines: Option<Storage>,
    sines: Option<Storage>,
    /// Rotated, `[rows, heads, padded_head]`.
    queries: Option<Storage>,
    /// What splits of the cache add up to.
    splits: Option<Storage>,
    /// Rows in half precision, and what their products are multiplied with.
    halves: Option<Storage>,
    scales: Option<Storage>,
    /// Row numbers.
    rows: Option<Storage>,
    /// What a pass leaves of the largest elements, and what the next does.
    largest: [Option<Storage>; 2],
}

impl Gpu {
    /// Opens `adapter`.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn open(adapter: &Adapter) -> Result<Self> {
        Self::with_limit(adapter, u64::MAX)
    }

    /// The same; kernels see at most `bytes` of a buffer, as on a device that allows no more.
    pub(crate) fn with_limit(adapter: &Adapter, bytes: u64) -> Result<Self> {
        let mut device = Device::open(adapter)?;
        device.most_bytes = device.most_bytes.min(bytes);
        let nothing = device.storage(16)?;
        let mut gpu = Self {
            kernels: Kernels::new(PipelineCache::open(adapter, &device), adapter.subgroups()),
            adapter: adapter.clone(),
            device,
            recorder: Mutex::default(),
            matrices: RwLock::default(),
            stacks: Mutex::default(),
            vectors: Mutex::default(),
            codebooks: Mutex::default(),
            nothing,
            scratch: Mutex::default(),
            mixture: Mutex::default(),
        };
        if gpu.kernels.subgroups.matrices != Matrices::None && !gpu.matrices_are_right()? {
            gpu.kernels.subgroups.matrices = Matrices::None;
        }
        Ok(gpu)
    }

    /// What it is.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Notes an error of an operation that returns nothing: the next result that is read says it.
    pub fn note(&self, error: &Error) {
        self.device.fault.note(&error.to_string());
    }

    fn storage(&self, bytes: u64) -> Result<Storage> {
        self.device.storage(bytes)
    }

    fn run(&self, kernel: Kernel, storages: &[&Storage], parameters: &[u32], groups: [u32; 3], work: u64) {
        // Storages may be too small where there was no memory for them.
        if !self.device.fault.is_clear() {
            return;
        }
        let pipeline = self.kernels.get(&self.device, kernel);
        let dispatch = Dispatch { pipeline: &pipeline, storages, parameters, groups, work };
        lock(&self.recorder).dispatch(&self.device, &dispatch);
    }

    fn copy(&self, from: &Storage, to: &Storage, bytes: u64) {
        lock(&self.recorder).copy(&self.device, from, to, bytes);
    }

    /// Reads bytes of a storage after everything recorded.
    fn fetch(&self, storage: &Storage, at: u64, bytes: u64) -> Result<Vec<u8>> {
        lock(&self.recorder).read(&self.device, storage, at, bytes)
    }

    /// Writes bytes to a storage after everything recorded.
    fn store(&self, storage: &Storage, at: u64, bytes: &[u8]) -> Result<()> {
        lock(&self.recorder).upload(&self.device, bytes, storage, at)
    }

    /// Waits until everything recorded is done.
    fn wait(&self) -> Result<()> {
        lock(&self.recorder).submit(&self.device);
        let waited = self.device.raw.poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|error| Error::Device(format!("{} failed: {error}", self.device.fault.device())))?;
        self.device.fault.check()
    }

    /// Makes `buffer` `[rows, columns]`; contents are then unspecified.
    ///
    /// Too little memory is told when a result is read, so that operations need not fail one by one.
    fn resize(&self, buffer: &mut Buffer, rows: usize, columns: usize) {
        (buffer.rows, buffer.columns) = (rows, columns);
        // Kernels read whole vectors of four.
        self.ensure(&mut buffer.storage, (rows * columns).next_multiple_of(4));
    }

    /// Makes room for `words` of 32 bits.
    fn ensure(&self, storage: &mut Option<Storage>, words: usize) {
        let bytes = words as u64 * 4;
        if storage.as_ref().is_some_and(|storage| storage.size() >= bytes) {
            return;
        }
        match self.storage(bytes) {
            Ok(new) => *storage = Some(new),
            Err(error) => {
                self.note(&error);
                // Something valid: nothing is computed any more.
                *storage = storage.take().or_else(|| self.storage(16).ok());
            }
        }
    }

    /// Copies host data to the device, where it becomes `buffer`.
    pub fn write(&self, data: &[f32], rows: usize, columns: usize, buffer: &mut Buffer) -> Result<()> {
        self.resize(buffer, rows, columns);
        self.send(data.iter().map(|element| element.to_bits()), buffer.storage())
    }

    /// Writes words to the beginning of `to`, in their turn.
    fn send(&self, words: impl Iterator<Item = u32>, to: &Storage) -> Result<()> {
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.store(to, 0, &bytes)
    }

    /// Runs an element-wise operation over `items`.
    fn each(&self, element: Element, items: usize, storages: [&Storage; 3], parameters: [u32; 4]) {
        if items > 0 {
            let [columns, source_columns, offset, factor] = parameters;
            let parameters = [items as u32, columns, source_columns, offset, factor];
            let groups = spread(items.div_ceil(ELEMENT_THREADS));
            self.run(Kernel::Element(element), &storages, &parameters, groups, items as u64);
        }
    }

    fn norm(&self, is_layer: bool, x: &Buffer, vectors: [&Vector; 2], eps: f32, out: &mut Buffer) {
        self.resize(out, x.rows, x.columns);
        match (self.vector(vectors[0]), self.vector(vectors[1])) {
            (Ok(weight), Ok(bias)) => {
                let storages = [x.storage(), &weight, &bias, out.storage()];
                let fours = x.columns.is_multiple_of(4);
                let items = x.columns / if fours { 4 } else { 1 };
                // Each takes four if there are not too many.
                let threads = items.div_ceil(4).next_power_of_two().clamp(64, NORM_THREADS) as u32;
                let kernel = Kernel::Norm { is_layer, fours, threads };
                let parameters = [items as u32, eps.to_bits()];
                self.run(kernel, &storages, &parameters, [x.rows as u32, 1, 1], x.elements() as u64);
            }
            (Err(error), _) | (_, Err(error)) => self.note(&error),
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.kernels.save();
    }
}

impl Backend for Gpu {
    type Buffer = Buffer;
    type Cache = Cache;

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer) -> Result<()> {
        self.resize(out, ids.len(), table.columns);
        let resident = self.resident(table)?;
        let codebook = self.codebook(table.kind)?;
        let mut scratch = lock(&self.scratch);
        self.ensure(&mut scratch.rows, ids.len());
        let Some(rows) = &scratch.rows else { return self.device.fault.check() };
        self.send(ids.iter().copied(), rows)?;
        for chunk in &resident.chunks {
            let storages = [&chunk.storage, &*codebook, rows, out.storage()];
            let parameters =
                [table.columns, chunk.rows, chunk.first_row, blocks::row_bytes(table), ids.len()];
            let groups = [(table.columns / 16).div_ceil(64) as u32, ids.len() as u32, 1];
            self.run(Kernel::Embed(table.kind), &storages, &parameters.map(|n| n as u32), groups, 0);
        }
        Ok(())
    }

    fn rms_norm(&self, x: &Buffer, weight: &Vector, eps: f32, out: &mut Buffer) {
        self.norm(false, x, [weight, weight], eps, out);
    }

    fn layer_norm(&self, x: &Buffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut Buffer) {
        self.norm(true, x, [weight, bias], eps, out);
    }

    fn linear(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.product(w, None, x, out)
    }

    fn linear_add(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Buffer,
        _scratch: &mut Buffer,
        sum: &mut Buffer,
    ) -> Result<()> {
        self.product_add(w, bias, x, sum)
    }

    fn linear_gate(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        gate: Gate,
        x: &Buffer,
        scratch: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        if self.product_gate(w, bias, gate, x, out)? {
            return Ok(());
        }
        self.product(w, bias, x, scratch)?;
        self.gate(gate, scratch, out);
        Ok(())
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) {
        let storages = [y.storage(), &self.nothing, x.storage()];
        self.each(Element::Add, x.elements(), storages, [0; 4]);
    }

    fn gate(&self, gate: Gate, gate_up: &Buffer, out: &mut Buffer) {
        let (activation, limit) = Activation::of(gate);
        let width = gate_up.columns / 2;
        self.resize(out, gate_up.rows, width);
        let storages = [gate_up.storage(), &self.nothing, out.storage()];
        let parameters = [width as u32, gate_up.columns as u32, 0, limit.to_bits()];
        self.each(Element::Gate(activation), out.elements(), storages, parameters);
    }

    fn gelu(&self, x: &mut Buffer) {
        self.each(Element::Gelu, x.elements(), [&self.nothing, &self.nothing, x.storage()], [0; 4]);
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Vector) {
        match self.vector(bias) {
            Ok(bias) => {
                let storages = [&*bias, &self.nothing, x.storage()];
                self.each(Element::AddBias, x.elements(), storages, [x.columns as u32, 0, 0, 0]);
            }
            Err(error) => self.note(&error),
        }
    }

    fn scale(&self, x: &mut Buffer, factor: f32) {
        if factor != 1.0 {
            let storages = [&self.nothing, &self.nothing, x.storage()];
            self.each(Element::Scale, x.elements(), storages, [0, 0, 0, factor.to_bits()]);
        }
    }

    fn concat(&self, parts: &[&Buffer], out: &mut Buffer) {
        let rows = parts.first().map_or(0, |part| part.rows);
        self.resize(out, rows, parts.iter().map(|part| part.columns).sum());
        let mut offset = 0;
        for part in parts {
            let storages = [part.storage(), &self.nothing, out.storage()];
            let parameters = [out.columns as u32, part.columns as u32, offset, 0];
            self.each(Element::Concat, part.elements(), storages, parameters);
            offset += part.columns as u32;
        }
    }

    fn zeros_like(&self, x: &Buffer, out: &mut Buffer) {
        self.resize(out, x.rows, x.columns);
        let bytes = out.elements() as u64 * 4;
        lock(&self.recorder).clear(&self.device, out.storage(), bytes);
    }

    fn mixture(&self, mixture: &Mixture<'_>, scores: &Buffer, x: &Buffer, out: &mut Buffer) -> Result<bool> {
        self.mix(mixture, scores, x, out)
    }

    fn scatter_add(&self, x: &Buffer, rows: &[usize], weights: &[f32], out: &mut Buffer) {
        assert!(rows.iter().all(|&row| row < out.rows), "rows that there are");
        let words = rows.iter().map(|&row| row as u32).chain(weights.iter().map(|weight| weight.to_bits()));
        let mut scratch = lock(&self.scratch);
        self.ensure(&mut scratch.rows, 2 * rows.len());
        let Some(numbers) = &scratch.rows else { return };
        if let Err(error) = self.send(words, numbers) {
            self.note(&error);
        }
        let storages = [x.storage(), numbers, out.storage()];
        self.each(Element::ScatterAdd, x.elements(), storages, [x.columns as u32, 0, 0, 0]);
    }

    fn attention(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Buffer,
        parts: &mut [Part<'_, Cache>],
        out: &mut Buffer,
    ) -> Result<()> {
        self.resize(out, qkv.rows, heads.count * heads.size);
        let sequences: Vec<attention::Sequence<'_>> = parts
            .iter()
            .map(|part| attention::Sequence {
                cache: part.cache,
                rows: part.rows.clone(),
                position: part.position,
            })
            .collect();
        self.attend(layer, heads, rotation, qkv, &sequences, out)
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) {
        self.resize(out, rows.len(), x.columns);
        assert!(rows.iter().all(|&row| row < x.rows), "rows that there are");
        let mut scratch = lock(&self.scratch);
        self.ensure(&mut scratch.rows, rows.len());
        let Some(numbers) = &scratch.rows else { return };
        if let Err(error) = self.send(rows.iter().map(|&row| row as u32), numbers) {
            self.note(&error);
        }
        let storages = [x.storage(), numbers, out.storage()];
        self.each(Element::Gather, out.elements(), storages, [x.columns as u32, 0, 0, 0]);
    }

    fn largest(&self, x: &Buffer, count: usize) -> Result<Option<Vec<Largest>>> {
        self.find_largest(x, count)
    }

    fn read(&self, x: &Buffer) -> Result<Vec<f32>> {
        let bytes = self.fetch(x.storage(), 0, x.elements() as u64 * 4)?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }
}
