//! The CPU backend: kernels spread over the thread pool.

mod attention;
mod cache;
mod linear;
mod saved;

pub use cache::{Cache, CacheShape, available_memory, total_memory};
pub use saved::LAYOUT;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Backend, Gate, Heads, Matrix, Part, Rotation, Vector};
use crate::kernel::float::FloatTokens;
use crate::kernel::matmul::PackedTokens;
use crate::kernel::{Activations, Lines, Pool, SharedMut, activation, elementwise};
use crate::simd::Level;
use crate::{Result, quant};

/// Runs kernels on this machine's cores.
pub struct Cpu {
    pool: Pool,
    level: Level,
    /// The activations of the product in progress.
    scratch: Mutex<Scratch>,
}

#[derive(Default)]
struct Scratch {
    activations: Activations,
    packed: PackedTokens,
    floats: FloatTokens,
}

/// `[rows, columns]` of f32.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    /// Keeps the length of the largest use, so that growing back costs nothing.
    storage: Lines<f32>,
    rows: usize,
    columns: usize,
}

impl Buffer {
    /// Becomes `data` in rows of `columns`.
    pub fn fill(&mut self, data: &[f32], columns: usize) {
        self.resize(data.len() / columns.max(1), columns);
        self.data_mut().copy_from_slice(data);
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// All rows.
    pub(super) fn contents(&self) -> &[f32] {
        self.data()
    }

    /// Makes it `[rows, columns]`; contents are then unspecified.
    fn resize(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns) = (rows, columns);
        if self.storage.len() < rows * columns {
            // Rows of a column lie far apart: without large pages each has its own.
            self.storage = Lines::in_large_pages(rows * columns);
        }
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn data(&self) -> &[f32] {
        &self.storage[..self.rows * self.columns]
    }

    fn data_mut(&mut self) -> &mut [f32] {
        &mut self.storage[..self.rows * self.columns]
    }
}

/// Elements below which a row-wise operation is not worth waking the other threads.
const SMALL: usize = 16 * 1024;

impl Cpu {
    /// A backend with `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { pool: Pool::new(threads), level: Level::current(), scratch: Mutex::default() }
    }

    /// Tokens of a prompt that are best computed at once. More share what unpacking a panel of weights costs, which counts where panels are
    /// multiplied by a matrix unit.
    pub fn tokens_at_once() -> usize {
        match Level::current() {
            Level::Amx => 1024,
            _ => 512,
        }
    }

    /// Threads it computes with.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Calls `f(i)` once on each thread, the caller included.
    pub fn on_each_thread(&self, f: impl Fn(usize) + Sync) {
        let begun = AtomicUsize::new(0);
        self.pool.run(self.threads(), |i| {
            f(i);
            // Who has one task waits here, so that the next goes to another thread.
            begun.fetch_add(1, Ordering::AcqRel);
            while begun.load(Ordering::Acquire) < self.threads() {
                std::thread::yield_now();
            }
        });
    }

    /// Calls `f(row)` for every row, on all threads if there is enough to do.
    fn each_row(&self, rows: usize, columns: usize, f: impl Fn(usize) + Sync) {
        if rows * columns <= SMALL {
            (0..rows).for_each(f);
        } else {
            self.pool.run(rows, f);
        }
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Cache = Cache;

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer) -> Result<()> {
        out.resize(ids.len(), table.columns);
        let (bytes, row_bytes) = (table.bytes(), table.row_bytes());
        for (&id, row) in ids.iter().zip(out.data_mut().chunks_exact_mut(table.columns)) {
            quant::decode(table.kind, &bytes[id as usize * row_bytes..][..row_bytes], row)?;
        }
        Ok(())
    }

    fn rms_norm(&self, x: &Buffer, weight: &Vector, eps: f32, out: &mut Buffer) {
        out.resize(x.rows(), x.columns);
        let to = SharedMut::new(out.data_mut());
        self.each_row(x.rows(), x.columns, |row| {
            let at = row * x.columns;
            // Sound: each task writes its own row.
            let out = unsafe { to.slice(at, x.columns) };
            elementwise::rms_norm(&x.data()[at..at + x.columns], weight, eps, out);
        });
    }

    fn layer_norm(&self, x: &Buffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut Buffer) {
        out.resize(x.rows(), x.columns);
        let to = SharedMut::new(out.data_mut());
        self.each_row(x.rows(), x.columns, |row| {
            let at = row * x.columns;
            // Sound: each task writes its own row.
            let out = unsafe { to.slice(at, x.columns) };
            activation::layer_norm(self.level, &x.data()[at..at + x.columns], weight, bias, eps, out);
        });
    }

    fn linear(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        out.resize(x.rows(), w.rows);
        self.product(w, x, out)
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
        if bias.is_none() && gate == Gate::Swiglu && self.gated_product(w, x, out) {
            return Ok(());
        }
        self.linear_bias(w, bias, x, scratch)?;
        self.gate(gate, scratch, out);
        Ok(())
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) {
        let columns = x.columns;
        let rows = x.rows();
        let to = SharedMut::new(x.data_mut());
        self.each_row(rows, columns, |row| {
            // Sound: each task writes its own row.
            let x = unsafe { to.slice(row * columns, columns) };
            elementwise::add_assign(x, &y.data()[row * columns..][..columns]);
        });
    }

    fn gate(&self, gate: Gate, gate_up: &Buffer, out: &mut Buffer) {
        let width = gate_up.columns / 2;
        out.resize(gate_up.rows(), width);
        let to = SharedMut::new(out.data_mut());
        self.each_row(gate_up.rows(), gate_up.columns, |row| {
            let (opened, up) = gate_up.data()[row * 2 * width..][..2 * width].split_at(width);
            // Sound: each task writes its own row.
            let out = unsafe { to.slice(row * width, width) };
            match gate {
                Gate::Swiglu => elementwise::swiglu(opened, up, out),
                Gate::Gegelu { limit } => activation::gegelu(self.level, opened, up, limit, out),
            }
        });
    }

    fn gelu(&self, x: &mut Buffer) {
        let (rows, columns) = (x.rows(), x.columns);
        let to = SharedMut::new(x.data_mut());
        // Sound: each task writes its own row.
        self.each_row(rows, columns, |row| {
            activation::gelu(self.level, unsafe { to.slice(row * columns, columns) })
        });
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Vector) {
        let (rows, columns) = (x.rows(), x.columns);
        let to = SharedMut::new(x.data_mut());
        // Sound: each task writes its own row.
        self.each_row(rows, columns, |row| {
            elementwise::add_assign(unsafe { to.slice(row * columns, columns) }, bias);
        });
    }

    fn scale(&self, x: &mut Buffer, factor: f32) {
        if factor != 1.0 {
            x.data_mut().iter_mut().for_each(|x| *x *= factor);
        }
    }

    fn concat(&self, parts: &[&Buffer], out: &mut Buffer) {
        let rows = parts.first().map_or(0, |part| part.rows());
        out.resize(rows, parts.iter().map(|part| part.columns).sum());
        let columns = out.columns.max(1);
        for (row, to) in out.data_mut().chunks_exact_mut(columns).enumerate() {
            let mut rest = to;
            for part in parts {
                let (to, after) = rest.split_at_mut(part.columns);
                to.copy_from_slice(&part.data()[row * part.columns..][..part.columns]);
                rest = after;
            }
        }
    }

    fn zeros_like(&self, x: &Buffer, out: &mut Buffer) {
        out.resize(x.rows(), x.columns);
        out.data_mut().fill(0.0);
    }

    fn scatter_add(&self, x: &Buffer, rows: &[usize], weights: &[f32], out: &mut Buffer) {
        for ((x, &row), &weight) in x.data().chunks_exact(x.columns.max(1)).zip(rows).zip(weights) {
            let columns = out.columns;
            let to = &mut out.data_mut()[row * columns..][..columns];
            to.iter_mut().zip(x).for_each(|(to, x)| *to += weight * x);
        }
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
        out.resize(qkv.rows(), heads.count * heads.size);
        self.attend(layer, heads, rotation, qkv, parts, out);
        Ok(())
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) {
        out.resize(rows.len(), x.columns);
        for (&row, out) in rows.iter().zip(out.data_mut().chunks_exact_mut(x.columns.max(1))) {
            out.copy_from_slice(&x.data()[row * x.columns..][..x.columns]);
        }
    }

    fn read(&self, x: &Buffer) -> Result<Vec<f32>> {
        Ok(x.data().to_vec())
    }
}
