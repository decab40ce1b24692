//! Matrix products: which kernel, and what it is given.

use super::device::lock;
use super::launch;
use super::modules::Module;
use super::repacking::stride;
use super::rounding::Form;
use super::{Buffer, Cuda, Scratch, gate_number};
use crate::Result;
use crate::backend::{Gate, Matrix, Vector};
use crate::gguf::TensorType;

/// Tokens up to which a warp takes a row for all of them; more are tiled.
pub(super) const FEW_TOKENS: usize = 8;
/// Rows of a block of the matvec kernels, and pairs of rows of that for gates.
pub(super) const ROWS: usize = 8;
const PAIRS: usize = 32;
/// Rows of a tile of products of many tokens, and columns of a step of it.
const TILE_ROWS: usize = 128;
const STEP: usize = 64;

/// Tiles by how many tokens they have, and the kernels: that multiplies, and that puts together what blocks had parts of.
const TILES: [(usize, &str, &str); 2] = [(32, "matmul_32", "mend_32"), (128, "matmul_128", "mend_128")];

/// What a kernel does with its result.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Store,
    Add,
    /// Meets the other half of the rows; for one token.
    Gate(Gate),
}

impl Cuda {
    /// `out = x · wᵀ + bias`, or as `ending` says; `out` has its shape. Gates are rounded in the same go.
    pub(super) fn product(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        ending: Ending,
        x: &Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        let module = Module::weights(w.kind).expect("what is resident has kernels");
        let weights = self.resident(w)?;
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        let mut scratch = lock(&self.scratch);
        let mut parameters = self.product_of(w, x, Form::of(x.rows), &mut scratch)?;
        parameters.weights = weights.storage.pointer();
        (parameters.factor, parameters.unscale) = (weights.factor, 1.0 / weights.factor);
        parameters.bias = bias.map_or(0, |bias| bias.pointer());
        parameters.out = out.pointer();
        parameters.out_stride = out.columns as u32;
        (parameters.ending, parameters.limit) = match ending {
            Ending::Store => (0, 0.0),
            Ending::Add => (1, 0.0),
            Ending::Gate(gate) => gate_number(gate),
        };
        if matches!(ending, Ending::Gate(_)) && out.columns.is_multiple_of(32) {
            parameters.to =
                self.ensure_rounded(&mut out.rounded, Form::Int8, out.rows, out.columns)?.parameters();
            out.is_rounded = true;
        }
        let (name, groups, threads) = match (x.rows, ending) {
            (_, Ending::Gate(_)) => ("matvec_gate", [(w.rows / 2).div_ceil(PAIRS), x.rows, 1], 256),
            (1, _) => ("matvec_1", [w.rows.div_ceil(ROWS), 1, 1], 128),
            (2..=4, _) => ("matvec_4", [w.rows.div_ceil(ROWS), 1, 1], 128),
            (..=FEW_TOKENS, _) => ("matvec_8", [w.rows.div_ceil(ROWS), 1, 1], 128),
            _ if w.kind != TensorType::F32 => return self.tiles(module, &mut scratch, parameters),
            (tokens, _) => ("matmul", [tokens.div_ceil(64), w.rows.div_ceil(64), 1], 128),
        };
        self.launch(module, name, groups, threads, &parameters)
    }

    /// A product of many tokens with weights that halves are good enough for: as many blocks as the multiprocessors take at
    /// a time share all tiles.
    fn tiles(&self, module: Module, scratch: &mut Scratch, mut product: launch::Product) -> Result<()> {
        const BLOCKS: usize = 2;
        // Fewer steps are not worth a block.
        const LEAST_STEPS: usize = 4;
        let (rows, tokens) = (product.rows as usize, product.tokens as usize);
        // Decoding weights costs about as much as multiplying them by 48 tokens.
        let (tile, multiply, mend) = TILES[usize::from(tokens > 64)];
        let tiles = rows.div_ceil(TILE_ROWS) * tokens.div_ceil(tile);
        let steps = tiles * (product.columns as usize).div_ceil(STEP);
        let at_once = BLOCKS * self.context.processors();
        // A last round that is nearly full is not worth parting tiles.
        let rounds = tiles.div_ceil(at_once);
        let is_even = tiles * 20 >= rounds * at_once * 17;
        let blocks = if is_even { tiles } else { at_once.min(steps.div_ceil(LEAST_STEPS)) };
        if tiles.is_multiple_of(blocks) {
            return self.launch(module, multiply, [blocks, 1, 1], 256, &product);
        }
        // Two parts a block at most: of the tile that it begins within, and of the one that it ends within.
        self.ensure(&mut scratch.left, blocks * 2 * TILE_ROWS * tile)?;
        product.left = scratch.left.as_ref().map_or(0, |left| left.pointer());
        product.blocks = blocks as u32;
        self.launch(module, multiply, [blocks, 1, 1], 256, &product)?;
        self.launch(Module::mend(), mend, [tiles % blocks, 1, 1], 256, &product)
    }

    /// The product of `x` with a matrix like `w`, but for where the matrix and the result are; it stores. `x` is rounded
    /// to `form` where the kernels want that.
    pub(super) fn product_of(
        &self,
        w: &Matrix,
        x: &Buffer,
        form: Form,
        scratch: &mut Scratch,
    ) -> Result<launch::Product> {
        let codebook = self.codebook(w.kind)?;
        let rounded = match &x.rounded {
            _ if w.kind == TensorType::F32 => launch::Rounded::NONE,
            _ if form == Form::Int8 && !w.kind.is_quantized() => launch::Rounded::NONE,
            Some(rounded) if x.is_rounded && rounded.form == form => rounded.parameters(),
            _ => {
                let rounded = self.ensure_rounded(&mut scratch.rounded, form, x.rows, x.columns)?;
                self.round(x, rounded)?;
                rounded.parameters()
            }
        };
        Ok(launch::Product {
            weights: 0,
            codebook: codebook.pointer(),
            x: x.pointer(),
            rounded,
            bias: 0,
            out: 0,
            columns: w.columns as u32,
            rows: w.rows as u32,
            row_bytes: stride(w.row_bytes()) as u32,
            tokens: x.rows as u32,
            out_stride: 0,
            ending: 0,
            limit: 0.0,
            factor: 1.0,
            unscale: 1.0,
            to: launch::Rounded::NONE,
            left: 0,
            blocks: 0,
        })
    }
}
