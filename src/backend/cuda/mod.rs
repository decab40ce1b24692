//! The backend for NVIDIA's graphics processors, through their own driver.
//!
//! The kernels are CUDA C in kernels/, compiled ahead to PTX (scripts/build_ptx.py), which the driver compiles for its
//! device. Weights stay in their GGUF blocks, but for where blocks' scales are; what they are multiplied by is int8 with a scale for 32 elements. Launches
//! follow each other in one stream, and nobody waits until a result is read; those of a token are one graph.

mod attention;
mod buffer;
mod cache;
mod device;
mod driver;
mod graph;
mod largest;
mod launch;
mod linear;
mod mixture;
mod modules;
mod repacking;
mod rounding;
#[cfg(test)]
mod tests;
mod weights;

pub use buffer::Buffer;
pub use cache::{Cache, CacheShape};
pub use device::Adapter;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use super::{Backend, Gate, Heads, Largest, Matrix, MatrixId, Mixture, Part, Rotation, Vector};
use crate::gguf::TensorType;
use crate::{Error, Result};
use buffer::{Ring, Storage};
use device::{Context, lock};
use linear::Ending;
use mixture::MixtureScratch;
use modules::{Kernels, Module};
use rounding::{Form, Rounded};
use weights::Resident;

/// Bytes of host memory that uploads go through.
const RING_BYTES: usize = 32 << 20;

/// A graphics processor, and what is on it.
pub struct Cuda {
    // What has memory on the device goes before the context does.
    ring: Mutex<Ring>,
    matrices: RwLock<HashMap<MatrixId, Resident>>,
    vectors: Mutex<HashMap<u64, Arc<Storage>>>,
    codebooks: Mutex<HashMap<TensorType, Arc<Storage>>>,
    scratch: Mutex<Scratch>,
    mixture: Mutex<MixtureScratch>,
    /// Of the experts' matrices, by the first one's.
    tables: Mutex<HashMap<MatrixId, Arc<Storage>>>,
    kernels: Kernels,
    context: Arc<Context>,
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
    /// Where the rows of several sequences are, and what was written there.
    members: (Option<Storage>, Vec<u32>),
    /// What splits of the cache add up to.
    splits: Option<Storage>,
    /// What blocks leave of tiles that they have parts of.
    left: Option<Storage>,
    /// Row numbers.
    rows: Option<Storage>,
    /// What a pass leaves of the largest elements, and what the next does.
    largest: [Option<Storage>; 2],
    /// Of a product's input.
    rounded: Option<Rounded>,
}

/// The ending's number in kernels/gates.cuh, and the gate's parameter.
fn gate_number(gate: Gate) -> (u32, f32) {
    match gate {
        Gate::Swiglu => (2, 0.0),
        Gate::Gegelu { limit } => (3, limit),
    }
}

/// What an element-wise kernel is given beside its buffers.
#[derive(Default)]
struct Each {
    columns: usize,
    source_columns: usize,
    offset: usize,
    factor: f32,
}

impl Cuda {
    /// Opens `adapter`.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn open(adapter: &Adapter) -> Result<Self> {
        let context = Context::open(adapter)?;
        Ok(Self {
            ring: Mutex::new(Ring::new(&context, RING_BYTES)?),
            matrices: RwLock::default(),
            vectors: Mutex::default(),
            codebooks: Mutex::default(),
            scratch: Mutex::default(),
            mixture: Mutex::default(),
            tables: Mutex::default(),
            kernels: Kernels::new(&context),
            context,
        })
    }

    /// Notes an error of an operation that returns nothing: the next result that is read says it.
    pub fn note(&self, error: &Error) {
        self.context.note(&error.to_string());
    }

    fn noted(&self, result: Result<()>) {
        if let Err(error) = result {
            self.note(&error);
        }
    }

    fn storage(&self, bytes: usize) -> Result<Storage> {
        Storage::new(&self.context, bytes)
    }

    /// Makes room for `words` of 32 bits; contents are then unspecified.
    fn ensure(&self, storage: &mut Option<Storage>, words: usize) -> Result<()> {
        if storage.as_ref().is_none_or(|storage| storage.size() < words * 4) {
            *storage = Some(self.storage(words * 4)?);
        }
        Ok(())
    }

    /// Makes `buffer` `[rows, columns]`; contents are then unspecified.
    fn resize(&self, buffer: &mut Buffer, rows: usize, columns: usize) -> Result<()> {
        buffer.is_rounded = false;
        self.ensure(&mut buffer.storage, rows * columns)?;
        (buffer.rows, buffer.columns) = (rows, columns);
        Ok(())
    }

    /// Writes bytes to the device after everything launched.
    fn send(&self, bytes: &[u8], to: u64) -> Result<()> {
        lock(&self.ring).send(bytes, to)
    }

    /// The same in words. A few are a kernel's parameters on their way, as copies keep launches from being one graph.
    fn send_words(&self, words: impl Iterator<Item = u32>, to: &Storage) -> Result<()> {
        let mut words = words.peekable();
        let mut put = launch::Put { to: to.pointer(), count: 0, words: [0; launch::PUT] };
        while let Some(word) = words.next_if(|_| (put.count as usize) < launch::PUT) {
            put.words[put.count as usize] = word;
            put.count += 1;
        }
        if words.peek().is_none() {
            return self.launch(Module::elementwise(), "put", [1, 1, 1], 256, &put);
        }
        let words = put.words.into_iter().chain(words);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.send(&bytes, to.pointer())
    }

    /// Reads bytes of the device after everything launched.
    fn fetch(&self, from: u64, to: &mut [u8]) -> Result<()> {
        lock(&self.ring).fetch(from, to)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.context.queue_up()?;
        let call = self.context.driver.on_device;
        // Sound: both have that many bytes: they are of caches of at least the room of the smaller one.
        self.context.check(unsafe { call(to, from, bytes, self.context.stream) })
    }

    /// Copies host data to the device, where it becomes `buffer`.
    pub fn write(&self, data: &[f32], rows: usize, columns: usize, buffer: &mut Buffer) -> Result<()> {
        self.resize(buffer, rows, columns)?;
        lock(&self.ring).send_floats(data, buffer.pointer())
    }

    /// Runs an element-wise kernel over `items` of `to`; pointers may be null where it does not use them.
    fn each(&self, name: &'static str, items: usize, pointers: [u64; 3], each: &Each) -> Result<()> {
        let [source, rows, to] = pointers;
        let parameters = launch::Elements {
            source,
            rows,
            to,
            items: items as u32,
            columns: each.columns as u32,
            source_columns: each.source_columns as u32,
            offset: each.offset as u32,
            factor: each.factor,
        };
        self.launch(Module::elementwise(), name, [items.div_ceil(256), 1, 1], 256, &parameters)
    }

    fn norm(
        &self,
        x: &Buffer,
        weight: &Vector,
        bias: Option<&Vector>,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        self.resize(out, x.rows, x.columns)?;
        let weight = self.vector(weight)?;
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        // What is normed goes into products: it is rounded in the same go.
        let mut to = launch::Rounded::NONE;
        if x.columns.is_multiple_of(32) {
            to = self.ensure_rounded(&mut out.rounded, Form::of(x.rows), x.rows, x.columns)?.parameters();
            out.is_rounded = true;
        }
        let parameters = launch::Norm {
            x: x.pointer(),
            weight: weight.pointer(),
            bias: bias.map_or(0, |bias| bias.pointer()),
            out: out.pointer(),
            to,
            columns: x.columns as u32,
            eps,
        };
        self.launch(Module::elementwise(), "norm_rows", [x.rows, 1, 1], 1024, &parameters)
    }

    /// The gate, element by element.
    fn gate_each(&self, gate: Gate, gate_up: &Buffer, out: &mut Buffer) -> Result<()> {
        let (kind, factor) = gate_number(gate);
        let columns = gate_up.columns / 2;
        let each = Each { columns, source_columns: gate_up.columns, offset: kind as usize, factor };
        self.resize(out, gate_up.rows, columns)?;
        self.each("gate", out.elements(), [gate_up.pointer(), 0, out.pointer()], &each)
    }

    /// The gate of many rows, rounded for the product that follows.
    fn gate_rows(&self, gate: Gate, gate_up: &Buffer, out: &mut Buffer) -> Result<()> {
        let (kind, limit) = gate_number(gate);
        let columns = gate_up.columns / 2;
        self.resize(out, gate_up.rows, columns)?;
        let to = self.ensure_rounded(&mut out.rounded, Form::Halves, out.rows, columns)?.parameters();
        let parameters = launch::GateRows {
            x: gate_up.pointer(),
            out: out.pointer(),
            to,
            columns: columns as u32,
            kind,
            limit,
        };
        self.launch(Module::elementwise(), "gate_rows", [out.rows, 1, 1], 256, &parameters)?;
        out.is_rounded = true;
        Ok(())
    }

    /// Puts numbers where kernels read them.
    fn numbers(&self, scratch: &mut Scratch, words: impl ExactSizeIterator<Item = u32>) -> Result<u64> {
        self.ensure(&mut scratch.rows, words.len())?;
        let Some(storage) = &scratch.rows else { return Ok(0) };
        self.send_words(words, storage)?;
        Ok(storage.pointer())
    }
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Cache = Cache;

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer) -> Result<()> {
        self.resize(out, ids.len(), table.columns)?;
        let weights = self.resident(table)?;
        let module = Module::weights(table.kind).expect("what is resident has kernels");
        let codebook = self.codebook(table.kind)?;
        let mut scratch = lock(&self.scratch);
        let parameters = launch::Embed {
            weights: weights.storage.pointer(),
            codebook: codebook.pointer(),
            ids: self.numbers(&mut scratch, ids.iter().copied())?,
            out: out.pointer(),
            columns: table.columns as u32,
            row_bytes: repacking::stride(table.row_bytes()) as u32,
        };
        let groups = [(table.columns / 16).div_ceil(64), ids.len(), 1];
        self.launch(module, "embed", groups, 64, &parameters)
    }

    fn rms_norm(&self, x: &Buffer, weight: &Vector, eps: f32, out: &mut Buffer) {
        self.noted(self.norm(x, weight, None, eps, out));
    }

    fn layer_norm(&self, x: &Buffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut Buffer) {
        self.noted(self.norm(x, weight, Some(bias), eps, out));
    }

    fn linear(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.resize(out, x.rows, w.rows)?;
        self.product(w, None, Ending::Store, x, out)
    }

    fn linear_add(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Buffer,
        _scratch: &mut Buffer,
        sum: &mut Buffer,
    ) -> Result<()> {
        sum.is_rounded = false;
        self.product(w, bias, Ending::Add, x, sum)
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
        if x.rows == 1 {
            self.resize(out, 1, w.rows / 2)?;
            return self.product(w, bias, Ending::Gate(gate), x, out);
        }
        self.resize(scratch, x.rows, w.rows)?;
        self.product(w, bias, Ending::Store, x, scratch)?;
        self.gate(gate, scratch, out);
        Ok(())
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) {
        x.is_rounded = false;
        self.noted(self.each("add", x.elements(), [y.pointer(), 0, x.pointer()], &Each::default()));
    }

    fn gate(&self, gate: Gate, gate_up: &Buffer, out: &mut Buffer) {
        let rounds = Form::of(gate_up.rows) == Form::Halves && gate_up.columns.is_multiple_of(32);
        let gated =
            if rounds { self.gate_rows(gate, gate_up, out) } else { self.gate_each(gate, gate_up, out) };
        self.noted(gated);
    }

    fn gelu(&self, x: &mut Buffer) {
        x.is_rounded = false;
        self.noted(self.each("gelu", x.elements(), [0, 0, x.pointer()], &Each::default()));
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Vector) {
        x.is_rounded = false;
        let each = Each { columns: x.columns, ..Each::default() };
        self.noted(
            self.vector(bias).and_then(|bias| {
                self.each("add_bias", x.elements(), [bias.pointer(), 0, x.pointer()], &each)
            }),
        );
    }

    fn scale(&self, x: &mut Buffer, factor: f32) {
        if factor != 1.0 {
            x.is_rounded = false;
            let each = Each { factor, ..Each::default() };
            self.noted(self.each("scale", x.elements(), [0, 0, x.pointer()], &each));
        }
    }

    fn concat(&self, parts: &[&Buffer], out: &mut Buffer) {
        let rows = parts.first().map_or(0, |part| part.rows);
        let columns = parts.iter().map(|part| part.columns).sum();
        let mut offset = 0;
        self.noted(self.resize(out, rows, columns).and_then(|()| {
            for part in parts {
                let each = Each { columns, source_columns: part.columns, offset, factor: 0.0 };
                self.each("concat", part.elements(), [part.pointer(), 0, out.pointer()], &each)?;
                offset += part.columns;
            }
            Ok(())
        }));
    }

    fn zeros_like(&self, x: &Buffer, out: &mut Buffer) {
        self.noted(self.resize(out, x.rows, x.columns).and_then(|()| {
            self.context.queue_up()?;
            let call = self.context.driver.set_bytes;
            // Sound: the buffer has that many bytes.
            self.context.check(unsafe { call(out.pointer(), 0, out.elements() * 4, self.context.stream) })
        }));
    }

    fn mixture(&self, mixture: &Mixture<'_>, scores: &Buffer, x: &Buffer, out: &mut Buffer) -> Result<bool> {
        self.mix(mixture, scores, x, out)
    }

    fn scatter_add(&self, x: &Buffer, rows: &[usize], weights: &[f32], out: &mut Buffer) {
        out.is_rounded = false;
        let mut words: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        words.extend(weights.iter().map(|weight| weight.to_bits()));
        let each = Each { columns: x.columns, ..Each::default() };
        let mut scratch = lock(&self.scratch);
        self.noted(self.numbers(&mut scratch, words.into_iter()).and_then(|numbers| {
            self.each("scatter_add", x.elements(), [x.pointer(), numbers, out.pointer()], &each)
        }));
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
        self.resize(out, qkv.rows, heads.count * heads.size)?;
        let sequences: Vec<attention::Sequence<'_>> = parts
            .iter()
            .map(|part| attention::Sequence {
                cache: &*part.cache,
                rows: part.rows.clone(),
                position: part.position,
            })
            .collect();
        self.attend(layer, heads, rotation, qkv, &sequences, out)
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) {
        let each = Each { columns: x.columns, ..Each::default() };
        let mut scratch = lock(&self.scratch);
        self.noted(self.resize(out, rows.len(), x.columns).and_then(|()| {
            let numbers = self.numbers(&mut scratch, rows.iter().map(|&row| row as u32))?;
            self.each("gather", out.elements(), [x.pointer(), numbers, out.pointer()], &each)
        }));
    }

    fn largest(&self, x: &Buffer, count: usize) -> Result<Option<Vec<Largest>>> {
        self.context.faultless()?;
        self.find_largest(x, count)
    }

    fn read(&self, x: &Buffer) -> Result<Vec<f32>> {
        self.context.faultless()?;
        let mut bytes = vec![0; x.elements() * 4];
        self.fetch(x.pointer(), &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }
}
