//! The mixture of experts without the host: which experts rows go through is in memory that the products read.

use std::sync::{Arc, PoisonError};

use super::buffer::{Buffer, Storage};
use super::device::lock;
use super::linear::ROWS;
use super::modules::Module;
use super::rounding::Form;
use super::{Cuda, Each, launch};
use crate::Result;
use crate::backend::{Gate, Matrix, Mixture};

/// Buffers of a mixture, reused from layer to layer.
#[derive(Default)]
pub(super) struct MixtureScratch {
    /// What `route` makes of the scores.
    routes: Option<Storage>,
    /// `[rows · 2, 2 · feed_forward]`: gate and up of each of a row's experts.
    wide: Buffer,
    /// `[rows · 2, feed_forward]`.
    inner: Buffer,
    /// `[rows · 2, hidden]`.
    parts: Buffer,
}

/// A product of rows with their experts' matrices.
struct Picked<'a> {
    /// One of the matrices.
    like: &'a Matrix,
    /// Where they are.
    table: &'a Storage,
    x: &'a Buffer,
    /// Experts that take each row of `x`: 2, or 1 where there is a row for each already.
    picks: usize,
    out: &'a Buffer,
    /// Where the result begins in a row of `out`.
    offset: usize,
}

impl Cuda {
    /// The mixture of a few rows, if all experts are on the device.
    pub(super) fn mix(
        &self,
        mixture: &Mixture<'_>,
        scores: &Buffer,
        x: &Buffer,
        out: &mut Buffer,
    ) -> Result<bool> {
        if x.rows > Mixture::FEW_ROWS {
            return Ok(false);
        }
        let [gate, up, down] = [mixture.gate, mixture.up, mixture.down].map(|experts| self.table(experts));
        let (Some(gate), Some(up), Some(down)) = (gate?, up?, down?) else { return Ok(false) };
        let mut scratch = lock(&self.mixture);
        let MixtureScratch { routes, wide, inner, parts } = &mut *scratch;
        self.ensure(routes, 4 * x.rows)?;
        let routes = routes.as_ref().map_or(0, |routes| routes.pointer());
        let parameters = launch::Route {
            scores: scores.pointer(),
            routes,
            rows: x.rows as u32,
            experts: scores.columns as u32,
            closeness: 2.0 * mixture.jitter,
        };
        self.launch(Module::elementwise(), "route", [1, 1, 1], 32, &parameters)?;
        let pairs = Mixture::USED * x.rows;
        let width = mixture.down[0].columns;
        self.resize(wide, pairs, 2 * width)?;
        for (like, table, offset) in [(mixture.gate, gate, 0), (mixture.up, up, width)] {
            self.pick(
                routes,
                &Picked { like: &like[0], table: &table, x, picks: Mixture::USED, out: wide, offset },
            )?;
        }
        self.gate_each(Gate::Swiglu, wide, inner)?;
        self.resize(parts, pairs, x.columns)?;
        let like = &mixture.down[0];
        self.pick(routes, &Picked { like, table: &down, x: inner, picks: 1, out: parts, offset: 0 })?;
        self.resize(out, x.rows, x.columns)?;
        let each = Each { columns: out.columns, ..Each::default() };
        self.each("mix", out.elements(), [parts.pointer(), routes, out.pointer()], &each)?;
        Ok(true)
    }

    /// Where each of the experts' matrices is, for kernels, if all are on the device.
    fn table(&self, experts: &[Matrix]) -> Result<Option<Arc<Storage>>> {
        let id = experts[0].id();
        if let Some(table) = lock(&self.tables).get(&id) {
            return Ok(Some(Arc::clone(table)));
        }
        let matrices = self.matrices.read().unwrap_or_else(PoisonError::into_inner);
        let pointers: Option<Vec<u64>> =
            experts.iter().map(|matrix| Some(matrices.get(&matrix.id())?.storage.pointer())).collect();
        let Some(pointers) = pointers else { return Ok(None) };
        let bytes: Vec<u8> = pointers.into_iter().flat_map(u64::to_le_bytes).collect();
        let table = Arc::new(self.storage(bytes.len())?);
        self.send(&bytes, table.pointer())?;
        lock(&self.tables).insert(id, Arc::clone(&table));
        Ok(Some(table))
    }

    fn pick(&self, routes: u64, picked: &Picked<'_>) -> Result<()> {
        let Picked { like: w, table, x, picks, out, offset } = *picked;
        let module = Module::weights(w.kind).expect("what is resident has kernels");
        let mut scratch = lock(&self.scratch);
        let mut product = self.product_of(w, x, Form::Int8, &mut scratch)?;
        product.out = out.pointer() + 4 * offset as u64;
        product.tokens = out.rows as u32;
        product.out_stride = out.columns as u32;
        let parameters = launch::Picked { product, table: table.pointer(), routes, picks: picks as u32 };
        self.launch(module, "matvec_picked", [w.rows.div_ceil(ROWS), out.rows, 1], 128, &parameters)
    }
}
