//! Matrix products: which kernel, and how it is cut up.

use super::blocks;
use super::kernels::{Activation, Ending, Kernel};
use super::recorder::spread;
use super::weights::Chunk;
use super::{Buffer, Gpu};
use crate::Result;
use crate::backend::{Gate, Matrix, Vector};
use crate::gguf::TensorType;

/// Tokens that a matrix-vector kernel takes at once.
const FEW_TOKENS: usize = 8;
/// Threads of a workgroup of matvec.wgsl, and those that share a row of blocks in slices of one part.
const THREADS: usize = 128;
const LANES: usize = 64;
/// Rows, and tokens, of a tile of matmul.wgsl.
const TILE: usize = 64;

/// Rows that a workgroup of matvec.wgsl takes.
pub(super) fn rows_at_once(kind: TensorType) -> usize {
    THREADS / (LANES / blocks::slice_parts(kind))
}

/// A product to be made: `x · wᵀ + bias`, ending as `ending` says.
struct Product<'a> {
    w: &'a Matrix,
    bias: Option<&'a Vector>,
    ending: Ending,
    /// The gate's parameter.
    limit: f32,
    x: &'a Buffer,
    out: &'a Buffer,
}

impl Gpu {
    /// `out = x · wᵀ + bias`.
    pub(super) fn product(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        self.resize(out, x.rows, w.rows);
        self.multiply(&Product { w, bias, ending: Ending::Store, limit: 0.0, x, out })
    }

    /// `sum += x · wᵀ + bias`.
    pub(super) fn product_add(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Buffer,
        sum: &Buffer,
    ) -> Result<()> {
        self.multiply(&Product { w, bias, ending: Ending::Add, limit: 0.0, x, out: sum })
    }

    /// `out = gate(x · wᵀ + bias)` in one go, where that is possible: for few tokens, and a matrix in one piece.
    pub(super) fn product_gate(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        gate: Gate,
        x: &Buffer,
        out: &mut Buffer,
    ) -> Result<bool> {
        if x.rows > FEW_TOKENS || self.resident(w)?.chunks.len() != 1 {
            return Ok(false);
        }
        let (activation, limit) = Activation::of(gate);
        self.resize(out, x.rows, w.rows / 2);
        self.multiply(&Product { w, bias, ending: Ending::Gate(activation), limit, x, out })?;
        Ok(true)
    }

    fn multiply(&self, product: &Product<'_>) -> Result<()> {
        let resident = self.resident(product.w)?;
        for chunk in &resident.chunks {
            if product.x.rows > FEW_TOKENS {
                self.many_tokens(product, chunk)?;
            } else {
                self.few_tokens(product, chunk)?;
            }
        }
        Ok(())
    }

    fn few_tokens(&self, product: &Product<'_>, chunk: &Chunk) -> Result<()> {
        let tokens = product.x.rows as u32;
        let kernel = Kernel::MatVec { kind: product.w.kind, tokens, ending: product.ending };
        let rows = product.out.columns.min(chunk.rows);
        let groups = spread(rows.div_ceil(rows_at_once(product.w.kind)));
        self.dispatch_product(kernel, product, chunk, 0, groups)
    }

    fn many_tokens(&self, product: &Product<'_>, chunk: &Chunk) -> Result<()> {
        let kernel = Kernel::MatMul { kind: product.w.kind, ending: product.ending };
        let tiles = |n: usize| n.div_ceil(TILE) as u32;
        let tokens = product.x.rows;
        self.dispatch_product(kernel, product, chunk, tokens as u32, [tiles(chunk.rows), tiles(tokens), 1])
    }

    /// `tokens` is the eighth parameter: the first of few tokens, or how many there are.
    fn dispatch_product(
        &self,
        kernel: Kernel,
        product: &Product<'_>,
        chunk: &Chunk,
        tokens: u32,
        groups: [u32; 3],
    ) -> Result<()> {
        let Product { w, bias, limit, x, out, .. } = *product;
        let codebook = self.codebook(w.kind)?;
        let bias_values = bias.map(|bias| self.vector(bias)).transpose()?;
        let storages = [
            &chunk.storage,
            &*codebook,
            x.storage(),
            bias_values.as_deref().unwrap_or(&self.nothing),
            out.storage(),
        ];
        let parameters = [
            w.columns as u32,
            chunk.rows as u32,
            chunk.first_row as u32,
            w.rows as u32,
            w.row_bytes() as u32,
            x.columns as u32,
            out.columns as u32,
            tokens,
            u32::from(bias.is_some()),
            limit.to_bits(),
        ];
        let work = (chunk.rows * w.columns * x.rows) as u64;
        self.run(kernel, &storages, &parameters, groups, work);
        Ok(())
    }
}
