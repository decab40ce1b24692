//! Matrix products: which kernel, and what it is given.

use super::buffer::Quantized;
use super::device::lock;
use super::launch;
use super::modules::Module;
use super::{Buffer, Cuda, Scratch, gate_number};
use crate::Result;
use crate::backend::{Gate, Matrix, Vector};

/// Tokens up to which a warp takes a row for all of them; more are tiled.
const FEW_TOKENS: usize = 8;
/// Rows of a block of the matvec kernels.
pub(super) const ROWS: usize = 4;

/// What a kernel does with its result.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Store,
    Add,
    /// Meets the other half of the rows; for one token.
    Gate(Gate),
}

impl Cuda {
    /// `out = x · wᵀ + bias`, or as `ending` says; `out` has its shape.
    pub(super) fn product(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        ending: Ending,
        x: &Buffer,
        out: &Buffer,
    ) -> Result<()> {
        let module = Module::weights(w.kind).expect("what is resident has kernels");
        let weights = self.resident(w)?;
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        let mut scratch = lock(&self.scratch);
        let mut parameters = self.product_of(w, x, &mut scratch)?;
        parameters.weights = weights.pointer();
        parameters.bias = bias.map_or(0, |bias| bias.pointer());
        parameters.out = out.pointer();
        parameters.out_stride = out.columns as u32;
        (parameters.ending, parameters.limit) = match ending {
            Ending::Store => (0, 0.0),
            Ending::Add => (1, 0.0),
            Ending::Gate(gate) => gate_number(gate),
        };
        let (name, groups, threads) = match (x.rows, ending) {
            (_, Ending::Gate(_)) => ("matvec_gate", [(w.rows / 2).div_ceil(ROWS), x.rows, 1], 128),
            (1, _) => ("matvec_1", [w.rows.div_ceil(ROWS), 1, 1], 128),
            (2..=4, _) => ("matvec_4", [w.rows.div_ceil(ROWS), 1, 1], 128),
            (..=FEW_TOKENS, _) => ("matvec_8", [w.rows.div_ceil(ROWS), 1, 1], 128),
            (tokens, _) if w.kind.is_quantized() => {
                ("matmul", [tokens.div_ceil(64), w.rows.div_ceil(128), 1], 256)
            }
            (tokens, _) => ("matmul", [tokens.div_ceil(64), w.rows.div_ceil(64), 1], 128),
        };
        self.launch(module, name, groups, threads, &parameters)
    }

    /// The product of `x` with a matrix like `w`, but for where the matrix and the result are; it stores. `x` is in int8
    /// where the kernels want that.
    pub(super) fn product_of(
        &self,
        w: &Matrix,
        x: &Buffer,
        scratch: &mut Scratch,
    ) -> Result<launch::Product> {
        let codebook = self.codebook(w.kind)?;
        let quantized = match &x.quantized {
            _ if !w.kind.is_quantized() => None,
            Some(quantized) if x.is_quantized => Some(quantized),
            _ => {
                self.ensure_quantized(&mut scratch.quantized, x.elements())?;
                let quantized = scratch.quantized.as_ref();
                quantized.map(|quantized| self.quantize(x, quantized)).transpose()?;
                quantized
            }
        };
        Ok(launch::Product {
            weights: 0,
            codebook: codebook.pointer(),
            x: x.pointer(),
            q: quantized.map_or(0, |quantized| quantized.q.pointer()),
            scales: quantized.map_or(0, |quantized| quantized.scales.pointer()),
            bias: 0,
            out: 0,
            columns: w.columns as u32,
            rows: w.rows as u32,
            row_bytes: w.row_bytes() as u32,
            tokens: x.rows as u32,
            out_stride: 0,
            ending: 0,
            limit: 0.0,
        })
    }

    /// Makes room for `elements` in int8.
    pub(super) fn ensure_quantized(&self, quantized: &mut Option<Quantized>, elements: usize) -> Result<()> {
        if quantized.as_ref().is_none_or(|quantized| quantized.q.size() < elements) {
            let (q, scales) = (self.storage(elements)?, self.storage(elements / 16 * 8)?);
            *quantized = Some(Quantized { q, scales });
        }
        Ok(())
    }

    fn quantize(&self, x: &Buffer, to: &Quantized) -> Result<()> {
        let parameters = launch::Quantize {
            x: x.pointer(),
            q: to.q.pointer(),
            scales: to.scales.pointer(),
            elements: x.elements() as u32,
        };
        let groups = [x.elements().div_ceil(256), 1, 1];
        self.launch(Module::elementwise(), "quantize", groups, 256, &parameters)
    }
}
