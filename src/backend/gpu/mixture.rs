//! The mixture of experts without the host: which experts rows go through is in a storage that the products read.

use super::buffer::Storage;
use super::device::lock;
use super::kernels::{Element, Kernel};
use super::linear::{rows_at_once, team};
use super::recorder::spread;
use super::{Backend, Buffer, Gpu};
use crate::Result;
use crate::backend::{Gate, Matrix, Mixture};

/// Buffers of a mixture, reused from layer to layer.
#[derive(Default)]
pub(super) struct MixtureScratch {
    /// What route.wgsl makes of the scores.
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
    experts: &'a [Matrix],
    x: &'a Buffer,
    /// Experts that take each row of `x`: 2, or 1 where there is a row for each already.
    picks: usize,
    out: &'a Buffer,
    /// Where the result begins in a row of `out`.
    offset: usize,
}

impl Gpu {
    /// The mixture of a few rows, if each kind of matrix lies in one piece.
    pub(super) fn mix(
        &self,
        mixture: &Mixture<'_>,
        scores: &Buffer,
        x: &Buffer,
        out: &mut Buffer,
    ) -> Result<bool> {
        let all = [mixture.gate, mixture.up, mixture.down];
        if x.rows > Mixture::FEW_ROWS || !all.iter().all(|experts| self.stack(experts).is_some()) {
            return Ok(false);
        }
        let mut scratch = lock(&self.mixture);
        let MixtureScratch { routes, wide, inner, parts } = &mut *scratch;
        self.ensure(routes, 4 * x.rows);
        let Some(routes) = routes else { return self.device.fault.check().map(|()| false) };
        let parameters = [x.rows as u32, scores.columns as u32, (2.0 * mixture.jitter).to_bits()];
        self.run(Kernel::Route, &[scores.storage(), routes], &parameters, [1, 1, 1], 0);
        let pairs = Mixture::USED * x.rows;
        let width = mixture.down[0].columns;
        self.resize(wide, pairs, 2 * width);
        for (experts, offset) in [(mixture.gate, 0), (mixture.up, width)] {
            self.pick(routes, &Picked { experts, x, picks: Mixture::USED, out: wide, offset })?;
        }
        self.gate(Gate::Swiglu, wide, inner);
        self.resize(parts, pairs, x.columns);
        self.pick(routes, &Picked { experts: mixture.down, x: inner, picks: 1, out: parts, offset: 0 })?;
        self.resize(out, x.rows, x.columns);
        let storages = [parts.storage(), routes, out.storage()];
        self.each(Element::Mix, out.elements(), storages, [out.columns as u32, 0, 0, 0]);
        Ok(true)
    }

    fn pick(&self, routes: &Storage, picked: &Picked<'_>) -> Result<()> {
        let Picked { experts, x, picks, out, offset } = *picked;
        let w = &experts[0];
        let Some(stack) = self.stack(experts) else { return self.device.fault.check() };
        let codebook = self.codebook(w.kind)?;
        let storages = [&*stack.storage, &*codebook, x.storage(), routes, out.storage()];
        let parameters = [
            w.columns as u32,
            w.rows as u32,
            offset as u32,
            w.rows as u32,
            super::blocks::row_bytes(w) as u32,
            x.columns as u32,
            out.columns as u32,
            0,
            0,
            0,
            stack.stride as u32,
            picks as u32,
        ];
        let team = team(w.kind, w.columns, 1, false);
        let [groups, more, _] = spread(w.rows.div_ceil(rows_at_once(team)));
        let work = (w.rows * w.columns * out.rows) as u64;
        let kernel = Kernel::MatVecPicked { kind: w.kind, team };
        self.run(kernel, &storages, &parameters, [groups, more, out.rows as u32], work);
        Ok(())
    }
}
