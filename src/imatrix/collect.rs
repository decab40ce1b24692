//! A backend that looks at what goes into the matrices.

use std::sync::{Mutex, PoisonError};

use super::{Fault, Statistics};
use crate::backend::{Backend, Gate, Heads, Matrix, Part, Rotation, Vector};
use crate::{Error, Result};

/// Computes as `backend` does and adds up the squares of every matrix's inputs.
pub struct Collecting<'a, B> {
    backend: &'a B,
    statistics: Mutex<Statistics>,
    /// Whether output.weight counts, too.
    output: bool,
}

impl<'a, B: Backend> Collecting<'a, B> {
    /// Goes on from `statistics`.
    pub fn new(backend: &'a B, statistics: Statistics, output: bool) -> Self {
        Self { backend, statistics: Mutex::new(statistics), output }
    }

    /// Shows `look` what was collected so far.
    pub fn with<T>(&self, look: impl FnOnce(&mut Statistics) -> T) -> T {
        look(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn into_statistics(self) -> Statistics {
        self.statistics.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers' matrices count; the embedding and, unless asked for, the head do not.
    fn wants(&self, matrix: &Matrix) -> bool {
        matrix.name().starts_with("blk.") || (self.output && matrix.name() == "output.weight")
    }

    fn collect(&self, matrix: &Matrix, x: &B::Buffer) -> Result<()> {
        let rows = self.backend.read(x)?;
        self.with(|statistics| statistics.add_rows(matrix.name(), matrix.place(), matrix.columns, &rows)).map_err(
            |fault| match fault {
                Fault::NotFinite(name) => Error::Unsupported(format!(
                    "the model computes NaN or infinite values (the inputs of {name}): try it with another text, \
                     and look at the model with `phi check`"
                )),
                other => Error::Usage(format!("the importance matrix to add to does not fit the model: {other}")),
            },
        )
    }
}

impl<B: Backend> Backend for Collecting<'_, B> {
    type Buffer = B::Buffer;
    type Cache = B::Cache;

    fn begin_layer(&self, layer: usize, x: &mut B::Buffer) -> Result<()> {
        self.backend.begin_layer(layer, x)
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut B::Buffer) -> Result<()> {
        self.backend.embed(table, ids, out)
    }

    fn rms_norm(&self, x: &B::Buffer, weight: &Vector, eps: f32, out: &mut B::Buffer) {
        self.backend.rms_norm(x, weight, eps, out);
    }

    fn layer_norm(&self, x: &B::Buffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut B::Buffer) {
        self.backend.layer_norm(x, weight, bias, eps, out);
    }

    fn linear(&self, w: &Matrix, x: &B::Buffer, out: &mut B::Buffer) -> Result<()> {
        if self.wants(w) {
            self.collect(w, x)?;
        }
        self.backend.linear(w, x, out)
    }

    fn add(&self, x: &mut B::Buffer, y: &B::Buffer) {
        self.backend.add(x, y);
    }

    fn gate(&self, gate: Gate, gate_up: &B::Buffer, out: &mut B::Buffer) {
        self.backend.gate(gate, gate_up, out);
    }

    fn gelu(&self, x: &mut B::Buffer) {
        self.backend.gelu(x);
    }

    fn add_bias(&self, x: &mut B::Buffer, bias: &Vector) {
        self.backend.add_bias(x, bias);
    }

    fn scale(&self, x: &mut B::Buffer, factor: f32) {
        self.backend.scale(x, factor);
    }

    fn concat(&self, parts: &[&B::Buffer], out: &mut B::Buffer) {
        self.backend.concat(parts, out);
    }

    fn zeros_like(&self, x: &B::Buffer, out: &mut B::Buffer) {
        self.backend.zeros_like(x, out);
    }

    fn scatter_add(&self, x: &B::Buffer, rows: &[usize], weights: &[f32], out: &mut B::Buffer) {
        self.backend.scatter_add(x, rows, weights, out);
    }

    fn attention(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &B::Buffer,
        parts: &mut [Part<'_, B::Cache>],
        out: &mut B::Buffer,
    ) -> Result<()> {
        self.backend.attention(layer, heads, rotation, qkv, parts, out)
    }

    fn gather(&self, x: &B::Buffer, rows: &[usize], out: &mut B::Buffer) {
        self.backend.gather(x, rows, out);
    }

    fn wants_every_row(&self) -> bool {
        true
    }

    fn read(&self, x: &B::Buffer) -> Result<Vec<f32>> {
        self.backend.read(x)
    }
}
