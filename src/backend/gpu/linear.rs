//! Matrix products: which kernel, and how it is cut up.

use super::blocks;
use super::buffer::Storage;
use super::device::lock;
use super::kernels::{Activation, Ending, Kernel, Matrices, Team};
use super::recorder::spread;
use super::weights::{Chunk, Resident};
use super::{Buffer, Gpu, Scratch};
use crate::Result;
use crate::backend::{Gate, Matrix, Vector};
use crate::gguf::TensorType;

/// Tokens that a matrix-vector kernel takes at once.
const FEW_TOKENS: usize = 8;
/// Threads that share a row of blocks in slices of one part, at least.
const LANES: usize = 64;
/// Threads that share any row, at most.
const MOST_LANES: usize = 32;
/// Rows that threads share at once, of one token or two.
const ROWS: usize = 2;
/// Tokens of a tile of matmul_half.wgsl.
const HALF_TOKENS: usize = 128;
/// Tiles that keep all of a large device busy.
const TILES: usize = 200;

/// Who computes rows of a matrix with a few tokens; `lanes` depends on the matrix alone, as it is the order of sums.
pub(super) fn team(kind: TensorType, columns: usize, tokens: usize, is_gate: bool) -> Team {
    let parts = blocks::slice_parts(kind);
    let slices = columns / 16 / parts;
    let mut lanes = LANES / parts;
    while lanes < MOST_LANES && slices > lanes * 4 {
        lanes *= 2;
    }
    // Each of them is two of a gate's.
    let most = if is_gate { 1 } else { ROWS };
    let rows_each = most / tokens.next_power_of_two().div_ceil(2);
    Team { threads: 128, lanes: lanes as u32, rows: rows_each.max(1) as u32 }
}

/// Rows that a workgroup of matvec.wgsl takes.
pub(super) fn rows_at_once(team: Team) -> usize {
    (team.threads / team.lanes * team.rows) as usize
}

/// Rows and tokens of a tile: larger ones read less, smaller ones keep more of the device busy.
fn tile(rows: usize, tokens: usize) -> (u32, u32) {
    for tile in [(128, 128), (128, 64)] {
        if rows.div_ceil(tile.0) * tokens.div_ceil(tile.1) >= TILES {
            return (tile.0 as u32, tile.1 as u32);
        }
    }
    (64, 64)
}

/// A product to be made: `x · wᵀ + bias`, ending as `ending` says.
pub(super) struct Product<'a> {
    w: &'a Matrix,
    bias: Option<&'a Vector>,
    ending: Ending,
    /// The gate's parameter.
    limit: f32,
    x: &'a Buffer,
    out: &'a Buffer,
}

impl<'a> Product<'a> {
    /// `out = x · wᵀ`.
    pub fn plain(w: &'a Matrix, x: &'a Buffer, out: &'a Buffer) -> Self {
        Self { w, bias: None, ending: Ending::Store, limit: 0.0, x, out }
    }
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
                self.many_tokens(product, &resident, chunk)?;
            } else {
                self.few_tokens(product, &resident, chunk)?;
            }
        }
        Ok(())
    }

    fn few_tokens(&self, product: &Product<'_>, resident: &Resident, chunk: &Chunk) -> Result<()> {
        let tokens = product.x.rows as u32;
        let is_gate = matches!(product.ending, Ending::Gate(_));
        let team = team(product.w.kind, product.w.columns, product.x.rows, is_gate);
        let kernel = Kernel::MatVec { kind: product.w.kind, tokens, ending: product.ending, team };
        let rows = product.out.columns.min(chunk.rows);
        let groups = spread(rows.div_ceil(rows_at_once(team)));
        self.dispatch_product(kernel, product, (resident, chunk), 0, groups, None)
    }

    fn many_tokens(&self, product: &Product<'_>, resident: &Resident, chunk: &Chunk) -> Result<()> {
        // Of F32, halves would lose more than half.
        if self.kernels.subgroups.matrices == Matrices::None || product.w.kind == TensorType::F32 {
            return self.many_singles(product, resident, chunk);
        }
        let tiles = chunk.rows.div_ceil(128) * product.x.rows.div_ceil(HALF_TOKENS);
        self.many_halves(product, resident, chunk, if tiles >= TILES { 128 } else { 64 })
    }

    /// Many tokens, in single precision.
    pub(super) fn many_singles(
        &self,
        product: &Product<'_>,
        resident: &Resident,
        chunk: &Chunk,
    ) -> Result<()> {
        let tokens = product.x.rows;
        let tile = tile(chunk.rows, tokens);
        let kernel = Kernel::MatMul { kind: product.w.kind, ending: product.ending, tile };
        let groups = [(chunk.rows as u32).div_ceil(tile.0), (tokens as u32).div_ceil(tile.1), 1];
        self.dispatch_product(kernel, product, (resident, chunk), tokens as u32, groups, None)
    }

    /// Many tokens, by matrix units; a tile has `rows` rows, 64 or 128.
    pub(super) fn many_halves(
        &self,
        product: &Product<'_>,
        resident: &Resident,
        chunk: &Chunk,
        rows: u32,
    ) -> Result<()> {
        let x = product.x;
        let mut scratch = lock(&self.scratch);
        let Scratch { halves, scales, .. } = &mut *scratch;
        self.ensure(halves, (x.elements() / 2).next_multiple_of(4));
        self.ensure(scales, x.rows);
        let (Some(x_halves), Some(scales)) = (halves, scales) else { return self.device.fault.check() };
        let groups = [x.rows as u32, 1, 1];
        self.run(Kernel::Halves, &[x.storage(), x_halves, scales], &[x.columns as u32 / 4], groups, 0);
        let kernel = Kernel::MatMulHalf { kind: product.w.kind, ending: product.ending, rows };
        let groups = [(chunk.rows as u32).div_ceil(rows), x.rows.div_ceil(HALF_TOKENS) as u32, 1];
        let halves = Some((&*x_halves, &*scales));
        self.dispatch_product(kernel, product, (resident, chunk), x.rows as u32, groups, halves)
    }

    /// `tokens` is the eighth parameter: the first of few tokens, or how many there are. `halves` go in place of `x`, with
    /// what undoes their scaling.
    fn dispatch_product(
        &self,
        kernel: Kernel,
        product: &Product<'_>,
        (resident, chunk): (&Resident, &Chunk),
        tokens: u32,
        groups: [u32; 3],
        halves: Option<(&Storage, &Storage)>,
    ) -> Result<()> {
        let Product { w, bias, limit, x, out, .. } = *product;
        let codebook = self.codebook(w.kind)?;
        let bias_values = bias.map(|bias| self.vector(bias)).transpose()?;
        let bias_values = bias_values.as_deref().unwrap_or(&self.nothing);
        let parameters = [
            w.columns as u32,
            chunk.rows as u32,
            chunk.first_row as u32,
            w.rows as u32,
            resident.row_bytes as u32,
            x.columns as u32,
            out.columns as u32,
            tokens,
            u32::from(bias.is_some()),
            limit.to_bits(),
            resident.factor.to_bits(),
            resident.factor.recip().to_bits(),
        ];
        let work = (chunk.rows * w.columns * x.rows) as u64;
        let weights = &chunk.storage;
        if let Some((x, scales)) = halves {
            let storages = [weights, &*codebook, x, bias_values, out.storage(), scales];
            self.run(kernel, &storages, &parameters, groups, work);
        } else {
            let storages = [weights, &*codebook, x.storage(), bias_values, out.storage()];
            self.run(kernel, &storages, &parameters[..10], groups, work);
        }
        Ok(())
    }
}
