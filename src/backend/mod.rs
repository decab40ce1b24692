//! The operations a forward pass needs, as one trait.
//!
//! A forward pass is written against [`Backend`] and does not know where its buffers are.

#[cfg(any(feature = "gpu", feature = "cuda"))]
mod codebooks;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device_cache;
#[cfg(any(feature = "gpu", feature = "cuda"))]
mod device_largest;
#[cfg(all(test, any(feature = "gpu", feature = "cuda")))]
mod device_tests;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(any(feature = "gpu", feature = "cuda"))]
mod halving;
pub mod hybrid;
#[cfg(test)]
mod test_matrices;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

    /// Bytes of the matrix.
    pub fn size(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// What tells it from every other matrix of the files that are open.
    pub fn id(&self) -> MatrixId {
        MatrixId { file: Arc::as_ptr(&self.file) as usize, tensor: self.tensor, first_row: self.first_row }
    }
}

impl MatrixId {
    /// The same for all experts of a tensor.
    #[cfg(feature = "gpu")]
    fn of_tensor(self) -> Self {
        Self { first_row: 0, ..self }
    }
}

/// Identity of a [`Matrix`] while its file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixId {
    file: usize,
    tensor: usize,
    first_row: usize,
}

/// A small weight (of a norm, or a bias), decoded; devices keep copies of it under its number.
#[derive(Debug)]
pub struct Vector {
    id: u64,
    values: Vec<f32>,
}

impl Vector {
    pub fn new(values: Vec<f32>) -> Self {
        Self { id: serial(), values }
    }

    /// No other vector of this process has the same.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Deref for Vector {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

/// A number that no other caller gets.
fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
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
    pub const GRAIN: usize = crate::kernel::attention::GRAIN;
}

/// Angles of the rotary embedding for the rows of a batch.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    id: u64,
    /// Element pairs that are rotated in each head.
    pub pairs: usize,
    /// `[rows, pairs]`, the attention factor multiplied in.
    pub cos: Vec<f32>,
    /// `[rows, pairs]`, likewise.
    pub sin: Vec<f32>,
}

impl Rotation {
    /// Forgets its angles for those of another batch.
    pub fn clear(&mut self) {
        self.cos.clear();
        self.sin.clear();
        self.id = serial();
    }

    /// Changes with every batch: devices that keep a copy compare it.
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// Rows of a batch that belong to one sequence, which they continue.
pub struct Part<'a, C> {
    pub cache: &'a mut C,
    /// Rows of the batch.
    pub rows: std::ops::Range<usize>,
    /// The sequence's position of the first row.
    pub position: usize,
}

/// How the two halves of a gated feed-forward layer meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// `silu(gate) * up`.
    Swiglu,
    /// `quick_gelu(min(gate, limit)) * (clamp(up, -limit, limit) + 1)`.
    Gegelu { limit: f32 },
}

/// A row's largest elements with their numbers: the largest first, and of equals the one with the lower number.
pub type Largest = Vec<(u32, f32)>;

/// The experts of a mixture, each a SwiGLU; a row goes through two of them, which SparseMixer chooses.
pub struct Mixture<'a> {
    /// An expert each: `[feed_forward, hidden]`.
    pub gate: &'a [Matrix],
    /// An expert each: `[feed_forward, hidden]`.
    pub up: &'a [Matrix],
    /// An expert each: `[hidden, feed_forward]`.
    pub down: &'a [Matrix],
    /// SparseMixer's threshold.
    pub jitter: f32,
}

impl Mixture<'_> {
    /// Experts of a row.
    pub const USED: usize = 2;
    /// Rows up to which a device takes each through its experts by itself; of more, those of one expert are better taken together.
    #[cfg(any(feature = "gpu", feature = "cuda"))]
    const FEW_ROWS: usize = 8;
}

/// What a device can do. Buffers are `[rows, columns]` of f32.
///
/// Devices may run behind: what goes wrong in an operation that returns nothing is told by [`Self::read`].
pub trait Backend: Send + Sync {
    type Buffer: Default + Send;
    /// Keys and values of one sequence, all layers.
    type Cache: Send;

    /// The operations that follow are those of `layer`, whose residual stream is `x`.
    fn begin_layer(&self, _layer: usize, _x: &mut Self::Buffer) -> Result<()> {
        Ok(())
    }

    /// `out[i] = table[ids[i]]`. Ids are below `table.rows`.
    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Self::Buffer) -> Result<()>;

    /// `out = x / rms(x) * weight`, row by row.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Vector, eps: f32, out: &mut Self::Buffer);

    /// `out = (x - mean(x)) / √(var(x) + eps) * weight + bias`, row by row.
    fn layer_norm(&self, x: &Self::Buffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut Self::Buffer);

    /// `out = x · wᵀ`.
    fn linear(&self, w: &Matrix, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;

    /// `out = x · wᵀ + bias`.
    fn linear_bias(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.linear(w, x, out)?;
        if let Some(bias) = bias {
            self.add_bias(out, bias);
        }
        Ok(())
    }

    /// `x += y`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer);

    /// `out = gate(gate, up)`, where a row of `gate_up` is gate then up.
    fn gate(&self, gate: Gate, gate_up: &Self::Buffer, out: &mut Self::Buffer);

    /// `x = gelu(x)`, by the approximation with tanh.
    fn gelu(&self, x: &mut Self::Buffer);

    /// Adds `bias` to each row of `x`.
    fn add_bias(&self, x: &mut Self::Buffer, bias: &Vector);

    /// `x *= factor`; a factor of 1 costs nothing.
    fn scale(&self, x: &mut Self::Buffer, factor: f32);

    /// `out` gets the rows of all `parts` side by side; they have equally many.
    fn concat(&self, parts: &[&Self::Buffer], out: &mut Self::Buffer);

    /// `out` becomes zeros of the shape of `x`.
    fn zeros_like(&self, x: &Self::Buffer, out: &mut Self::Buffer);

    /// `out = Σ weight · expert(x)` over the two experts of each row, which its `scores` `[rows, experts]` decide, if that
    /// needs nobody to look at them. Otherwise false, and nothing is done.
    fn mixture(
        &self,
        _mixture: &Mixture<'_>,
        _scores: &Self::Buffer,
        _x: &Self::Buffer,
        _out: &mut Self::Buffer,
    ) -> Result<bool> {
        Ok(false)
    }

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
    ) -> Result<()>;

    /// `out` gets the rows of `x` numbered in `rows`.
    fn gather(&self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer);

    /// Whether the last layer is to be computed for rows that nobody wants logits of, too.
    fn wants_every_row(&self) -> bool {
        false
    }

    /// `sum += x · wᵀ + bias`. `scratch` may be used, and is then unspecified.
    fn linear_add(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Self::Buffer,
        scratch: &mut Self::Buffer,
        sum: &mut Self::Buffer,
    ) -> Result<()> {
        self.linear_bias(w, bias, x, scratch)?;
        self.add(sum, scratch);
        Ok(())
    }

    /// `out = gate(x · wᵀ + bias)`, where the rows of `w` are those of the gate, then those of up. `scratch` may be used,
    /// and is then unspecified.
    fn linear_gate(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        gate: Gate,
        x: &Self::Buffer,
        scratch: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.linear_bias(w, bias, x, scratch)?;
        self.gate(gate, scratch, out);
        Ok(())
    }

    /// The `count` largest elements of each row (fewer if it has fewer), found where `x` is. NaN counts as larger than
    /// anything, and -0 as 0. `None` if that saves nothing over [`Self::read`].
    ///
    /// # Errors
    /// What went wrong on the device before.
    fn largest(&self, _x: &Self::Buffer, _count: usize) -> Result<Option<Vec<Largest>>> {
        Ok(None)
    }

    /// The buffer's contents, copied to the host.
    ///
    /// # Errors
    /// What went wrong on the device before.
    fn read(&self, x: &Self::Buffer) -> Result<Vec<f32>>;
}
