//! The operations a forward pass needs, as one trait.
//!
//! A forward pass is written against [`Backend`] and does not know where its buffers are.

pub mod cpu;

use std::sync::Arc;

use crate::Result;
use crate::gguf::{Gguf, TensorInfo, TensorType};

/// A weight matrix, left where its file has it.
#[derive(Clone)]
pub struct Matrix {
    file: Arc<Gguf>,
    tensor: usize,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    pub kind: TensorType,
}

impl Matrix {
    /// Tensor number `tensor` of `file`, seen as `[rows, columns]`.
    pub fn new(file: Arc<Gguf>, tensor: usize) -> Self {
        let info: &TensorInfo = &file.tensors()[tensor];
        let (rows, columns, kind) = (info.rows() as usize, info.columns() as usize, info.kind);
        Self { file, tensor, rows, columns, kind }
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.file.tensors()[self.tensor].name
    }

    /// The matrix's bytes, row by row.
    pub fn bytes(&self) -> &[u8] {
        self.file.data(&self.file.tensors()[self.tensor])
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.file.tensors()[self.tensor].row_bytes() as usize
    }
}

/// The attention heads of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub count: usize,
    /// Key and value heads; divides `count`.
    pub kv_count: usize,
    /// Elements of a head.
    pub size: usize,
    /// A query sees its last `window` positions, itself included.
    pub window: usize,
}

/// Angles of the rotary embedding for the rows of a batch.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Element pairs that are rotated in each head.
    pub pairs: usize,
    /// `[rows, pairs]`, the attention factor multiplied in.
    pub cos: Vec<f32>,
    /// `[rows, pairs]`, likewise.
    pub sin: Vec<f32>,
}

/// Rows of a batch that belong to one sequence, which they continue.
pub struct Part<'a, C> {
    pub cache: &'a mut C,
    /// Rows of the batch.
    pub rows: std::ops::Range<usize>,
    /// The sequence's position of the first row.
    pub position: usize,
}

/// What a device can do. Buffers are `[rows, columns]` of f32.
pub trait Backend: Send + Sync {
    type Buffer: Default + Send;
    /// Keys and values of one sequence, all layers.
    type Cache: Send;

    /// `out[i] = table[ids[i]]`. Ids are below `table.rows`.
    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Self::Buffer) -> Result<()>;

    /// `out = x / rms(x) * weight`, row by row.
    fn rms_norm(&self, x: &Self::Buffer, weight: &[f32], eps: f32, out: &mut Self::Buffer);

    /// `out = x · wᵀ`.
    fn linear(&self, w: &Matrix, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;

    /// `x += y`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer);

    /// `out = silu(gate) * up`, where a row of `gate_up` is gate then up.
    fn swiglu(&self, gate_up: &Self::Buffer, out: &mut Self::Buffer);

    /// Rotates queries and keys, appends keys and values of `layer` to each part's cache and attends.
    /// A row of `qkv` is all queries, then all keys, then all values. The caches have room.
    fn attention(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Self::Buffer,
        parts: &mut [Part<'_, Self::Cache>],
        out: &mut Self::Buffer,
    );

    /// `out` gets the rows of `x` numbered in `rows`.
    fn gather(&self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer);

    /// The buffer's contents, copied to the host.
    fn read(&self, x: &Self::Buffer) -> Vec<f32>;
}
