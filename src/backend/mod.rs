//! The operations a forward pass needs, as one trait.
//!
//! A forward pass is written against [`Backend`] and does not know where its buffers are.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;

use std::sync::Arc;

use crate::Result;
use crate::gguf::{Gguf, TensorInfo, TensorType};

/// A weight matrix, left where its file has it.
#[derive(Clone)]
pub struct Matrix {
    file: Arc<Gguf>,
    tensor: usize,
    /// The tensor's row that is this matrix's first: not 0 for an expert of a stack.
    first_row: usize,
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
        Self { file, tensor, first_row: 0, rows, columns, kind }
    }

    /// `rows` of its rows from `first` on, as a matrix of their own: one expert of a stack.
    ///
    /// # Panics
    /// If it has no such rows.
    pub fn rows_of(&self, first: usize, rows: usize) -> Self {
        assert!(first.checked_add(rows).is_some_and(|end| end <= self.rows));
        Self { first_row: self.first_row + first, rows, ..self.clone() }
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.file.tensors()[self.tensor].name
    }

    /// How many such matrices the tensor holds, and which of them this is: an expert of a stack, or (1, 0).
    pub fn place(&self) -> (usize, usize) {
        let rows = self.file.tensors()[self.tensor].rows() as usize;
        (rows / self.rows.max(1), self.first_row / self.rows.max(1))
    }

    /// The matrix's bytes, row by row.
    pub fn bytes(&self) -> &[u8] {
        let row_bytes = self.row_bytes();
        &self.file.data(&self.file.tensors()[self.tensor])[self.first_row * row_bytes..]
            [..self.rows * row_bytes]
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
    /// Scores are multiplied by it: 1/√size, unless the model says otherwise.
    pub scale: f32,
    /// A query sees its last `window` positions, itself included.
    pub window: usize,
    /// Which blocks of positions a query sees; all, if none.
    pub sparse: Option<BlockSparse>,
}

/// Block-sparse attention (Phi-3 report, arXiv 2404.14219): of the blocks up to its own, a query sees the last `local`
/// ones and every `stride`-th, which ones depending on the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSparse {
    /// Positions of a block, a multiple of [`Self::GRAIN`].
    pub block: usize,
    /// Blocks back that are seen, the query's own included.
    pub local: usize,
    /// Of the blocks before, number `k` is seen by head `h` if `k + h · head_step + 1` is a multiple of it.
    pub stride: usize,
    /// Blocks that the pattern moves from head to head.
    pub head_step: usize,
}

impl BlockSparse {
    /// What blocks are made of: positions that attention takes at once.
    pub const GRAIN: usize = crate::kernel::attention::BLOCK;
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

    /// `out = (x - mean(x)) / √(var(x) + eps) * weight + bias`, row by row.
    fn layer_norm(&self, x: &Self::Buffer, weight: &[f32], bias: &[f32], eps: f32, out: &mut Self::Buffer);

    /// `out = x · wᵀ`.
    fn linear(&self, w: &Matrix, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;

    /// `x += y`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer);

    /// `out = silu(gate) * up`, where a row of `gate_up` is gate then up.
    fn swiglu(&self, gate_up: &Self::Buffer, out: &mut Self::Buffer);

    /// `out = quick_gelu(min(gate, limit)) * (clamp(up, -limit, limit) + 1)`, where a row of `gate_up` is gate then up.
    fn gegelu(&self, gate_up: &Self::Buffer, limit: f32, out: &mut Self::Buffer);

    /// `x = gelu(x)`, by the approximation with tanh.
    fn gelu(&self, x: &mut Self::Buffer);

    /// Adds `bias` to each row of `x`.
    fn add_bias(&self, x: &mut Self::Buffer, bias: &[f32]);

    /// `x *= factor`; a factor of 1 costs nothing.
    fn scale(&self, x: &mut Self::Buffer, factor: f32);

    /// `out` gets the rows of all `parts` side by side; they have equally many.
    fn concat(&self, parts: &[&Self::Buffer], out: &mut Self::Buffer);

    /// `out` becomes zeros of the shape of `x`.
    fn zeros_like(&self, x: &Self::Buffer, out: &mut Self::Buffer);

    /// `out[rows[i]] += weights[i] * x[i]`; no row is named twice.
    fn scatter_add(&self, x: &Self::Buffer, rows: &[usize], weights: &[f32], out: &mut Self::Buffer);

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

    /// Whether the last layer is to be computed for rows that nobody wants logits of, too.
    fn wants_every_row(&self) -> bool {
        false
    }

    /// The buffer's contents, copied to the host.
    fn read(&self, x: &Self::Buffer) -> Vec<f32>;
}
