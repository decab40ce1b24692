//! Matrix products: which kernel, and how its work is shared out.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::MutexGuard;

use super::{Buffer, Cpu, Scratch};
use crate::backend::Matrix;
use crate::gguf::TensorType;
use crate::kernel::float::{Bf16, F16, F32, FEW_TOKENS, Float, FloatProducts, FloatTokens, TASK_ROWS};
use crate::kernel::matmul::{MAX_FEW_TOKENS, PackedTokens, Panel, PanelProducts, few_tokens, panel_rows};
use crate::kernel::matvec::{MAX_GROUP_ROWS, RowProducts, sweep_rows};
use crate::kernel::{Lines, SharedMut, activations, elementwise};
use crate::quant::unpack::*;
use crate::{Result, quant};

/// Panels of a task, at most.
const PANELS: usize = 4;

/// Tasks that each thread gets, at least, if there are enough panels.
const TASKS_EACH: usize = 4;

/// Bytes of weights a task of the memory-bound product takes: large enough to stream, small enough to share.
const TASK_BYTES: usize = 256 * 1024;

/// Small tasks that take about as long as a large one, for the end of a matrix.
const SMALL_PARTS: usize = 4;

/// Bytes after which addresses share a set of the first cache.
const WAY: usize = 4096;

/// How the rows of a matrix are shared out for products by rows: in large parts, and at the end in small ones, so that no thread waits long.
struct RowTasks {
    rows: usize,
    /// Rows of a large part, and how many of these there are.
    large: usize,
    whole: usize,
    /// Rows of a small part.
    small: usize,
}

impl RowTasks {
    /// `sweep` rows are multiplied side by side.
    fn new(rows: usize, row_bytes: usize, threads: usize, sweep: usize) -> Self {
        let large = Self::of_bytes(TASK_BYTES, row_bytes, sweep);
        let whole = (rows / large).saturating_sub(threads);
        Self { rows, large, whole, small: Self::of_bytes(TASK_BYTES / SMALL_PARTS, row_bytes, sweep) }
    }

    /// Rows that have about so many bytes. A sweep goes along some that lie as far apart as there are sweeps, which would push each
    /// other out of the first cache if these places were nearly the same ones within [`WAY`].
    fn of_bytes(bytes: usize, row_bytes: usize, sweep: usize) -> usize {
        let least = (bytes / row_bytes.max(1) / sweep).max(1);
        let nearest = |apart: &usize| {
            let places = (1..sweep).map(|r| r * apart * row_bytes % WAY);
            places.map(|place| place.min(WAY - place)).min()
        };
        // The fewest of those that are equally good.
        let apart = (least..=least + least / 4).rev().max_by_key(nearest).unwrap_or(least);
        apart * sweep
    }

    fn count(&self) -> usize {
        self.whole + (self.rows - self.whole * self.large).div_ceil(self.small)
    }

    /// The rows of task `i`; none beyond the last one.
    fn range(&self, i: usize) -> Range<usize> {
        let (large, small) = (i.min(self.whole), i.saturating_sub(self.whole));
        let start = (large * self.large + small * self.small).min(self.rows);
        let size = if i < self.whole { self.large } else { self.small };
        start..(start + size).min(self.rows)
    }
}

/// How the panels of a matrix are shared out: several a task, so that what a thread needs next is known, and at the end single ones, so that no thread
/// waits long.
struct PanelTasks {
    rows: usize,
    /// Rows of a panel.
    each: usize,
    /// Panels of a large task, and how many of these there are.
    large: usize,
    whole: usize,
    threads: usize,
}

impl PanelTasks {
    fn new(rows: usize, each: usize, threads: usize) -> Self {
        let panels = rows.div_ceil(each);
        let large = (panels / threads / TASKS_EACH).clamp(1, PANELS);
        Self { rows, each, large, whole: panels * 3 / 4 / large, threads }
    }

    fn count(&self) -> usize {
        self.whole + self.rows.div_ceil(self.each) - self.whole * self.large
    }

    /// The panels of task `i`.
    fn panels(&self, i: usize) -> Range<usize> {
        let first = i.min(self.whole) * self.large + i.saturating_sub(self.whole);
        first..first + if i < self.whole { self.large } else { 1 }
    }

    /// The panel that a thread is likely to need after `panel` of task `i`. Threads take turns, as long as none is held up.
    fn next(&self, i: usize, panel: usize) -> usize {
        let panels = self.panels(i);
        if panel + 1 < panels.end { panel + 1 } else { panel + (self.threads - 1) * panels.len() + 1 }
    }

    /// The rows of `panel`; none beyond the last one.
    fn rows(&self, panel: usize) -> Range<usize> {
        (panel * self.each).min(self.rows)..((panel + 1) * self.each).min(self.rows)
    }
}

/// What becomes of the products with a matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// They are the result.
    Keep,
    /// Its rows are those of a gate, then those of up: SwiGLU of both is the result.
    Swiglu,
}

thread_local! {
    static PANEL: RefCell<Panel> = RefCell::default();
    /// `[tokens, 2, rows of a panel]`.
    static GATE_UP: RefCell<Lines<f32>> = RefCell::default();
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Cpu {
    /// `out = x · wᵀ`; `out` has its final size.
    pub(super) fn product(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        if self.integer_product(w, x, out, Then::Keep) {
            return Ok(());
        }
        // Files align tensors to 32 bytes, but a file in memory may start anywhere.
        let bytes = w.bytes();
        // Sound: every bit pattern is a u16 and an f32.
        let (_, halves, rest) = unsafe { bytes.align_to::<u16>() };
        let whole_halves = halves.len() * 2 == bytes.len() && rest.is_empty();
        let (_, singles, rest) = unsafe { bytes.align_to::<f32>() };
        let whole_singles = singles.len() * 4 == bytes.len() && rest.is_empty();
        match w.kind {
            TensorType::F32 if whole_singles => self.float::<F32>(singles, w, x, out),
            TensorType::F16 if whole_halves => self.float::<F16>(halves, w, x, out),
            TensorType::BF16 if whole_halves => self.float::<Bf16>(halves, w, x, out),
            _ => return self.decoded(w, x, out),
        }
        Ok(())
    }

    /// What a product needs beside its operands, for one at a time.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The product by kernels for the format of `w`, if that has any and whole blocks in each row, and if `then` can be done with it. Otherwise false,
    /// and nothing is done.
    fn integer_product(&self, w: &Matrix, x: &Buffer, out: &mut Buffer, then: Then) -> bool {
        if !w.columns.is_multiple_of(w.kind.block_elements()) {
            return false;
        }
        match w.kind {
            TensorType::Q4_0 => self.quantized(Q4_0, w, x, out, then),
            TensorType::Q4_1 => self.quantized(Q4_1, w, x, out, then),
            TensorType::Q5_0 => self.quantized(Q5_0, w, x, out, then),
            TensorType::Q5_1 => self.quantized(Q5_1, w, x, out, then),
            TensorType::Q8_0 => self.quantized(Q8_0, w, x, out, then),
            TensorType::IQ4_NL => self.quantized(Iq4Nl, w, x, out, then),
            TensorType::Q2_K => self.quantized(Q2K, w, x, out, then),
            TensorType::Q3_K => self.quantized(Q3K, w, x, out, then),
            TensorType::Q4_K => self.quantized(Q4K, w, x, out, then),
            TensorType::Q5_K => self.quantized(Q5K, w, x, out, then),
            TensorType::Q6_K => self.quantized(Q6K, w, x, out, then),
            TensorType::IQ1_S => self.quantized(Iq1S, w, x, out, then),
            TensorType::IQ1_M => self.quantized(Iq1M, w, x, out, then),
            TensorType::IQ2_XXS => self.quantized(Iq2Xxs, w, x, out, then),
            TensorType::IQ2_XS => self.quantized(Iq2Xs, w, x, out, then),
            TensorType::IQ2_S => self.quantized(Iq2S, w, x, out, then),
            TensorType::IQ3_XXS => self.quantized(Iq3Xxs, w, x, out, then),
            TensorType::IQ3_S => self.quantized(Iq3S, w, x, out, then),
            TensorType::IQ4_XS => self.quantized(Iq4Xs, w, x, out, then),
            TensorType::TQ1_0 => self.quantized(Tq1_0, w, x, out, then),
            TensorType::TQ2_0 => self.quantized(Tq2_0, w, x, out, then),
            TensorType::MXFP4 => self.quantized(Mxfp4, w, x, out, then),
            _ => false,
        }
    }

    fn quantized<F: Unpack>(&self, format: F, w: &Matrix, x: &Buffer, out: &mut Buffer, then: Then) -> bool {
        let is_few = x.rows() <= few_tokens(format, self.level);
        if then == Then::Swiglu && (is_few || !w.rows.is_multiple_of(2)) {
            return false;
        }
        let mut scratch = self.scratch();
        self.quantize_activations(&mut scratch, x, (F::SPAN, F::REACH));
        if is_few {
            scratch.activations.arrange(format, self.level, &self.pool);
            self.few_tokens(format, w, &scratch, out);
            return true;
        }
        let Scratch { activations, packed, .. } = &mut *scratch;
        packed.pack(format, self.level, activations, &self.pool);
        match then {
            Then::Keep => self.many_tokens(format, w, packed, out),
            Then::Swiglu => {
                out.resize(x.rows(), w.rows / 2);
                self.many_tokens_gated(format, w, packed, out);
            }
        }
        true
    }

    fn quantize_activations(&self, scratch: &mut Scratch, x: &Buffer, (span, reach): (usize, i32)) {
        let a = &mut scratch.activations;
        a.resize(x.rows(), x.columns, span);
        let padded = a.padded();
        let (quants, scales, sums) =
            (SharedMut::new(&mut a.quants), SharedMut::new(&mut a.scales), SharedMut::new(&mut a.sums));
        self.each_row(x.rows(), x.columns, |row| {
            // Sound: each task writes its own row.
            unsafe {
                activations::quantize_row(
                    &x.data()[row * x.columns..][..x.columns],
                    (span, reach),
                    quants.slice(row * padded, padded),
                    scales.slice(row * padded / span, padded / span),
                    sums.slice(row * padded / 16, padded / 16),
                );
            }
        });
    }

    fn few_tokens<F: Unpack>(&self, format: F, w: &Matrix, scratch: &Scratch, out: &mut Buffer) {
        let (bytes, row_bytes) = (w.bytes(), w.row_bytes());
        let tokens = scratch.activations.rows;
        let sweep = sweep_rows(format, self.level, tokens);
        let tasks = RowTasks::new(w.rows, row_bytes, self.threads(), sweep);
        let to = SharedMut::new(out.data_mut());
        self.pool.run(tasks.count(), |i| {
            // Threads take turns, as long as none is held up.
            let (range, next) = (tasks.range(i), tasks.range(i + self.threads()));
            // Sound: each task writes its own rows' columns of every token.
            let mut slices: [&mut [f32]; MAX_FEW_TOKENS] = std::array::from_fn(|_| &mut [][..]);
            for (t, slice) in slices.iter_mut().enumerate().take(tokens) {
                *slice = unsafe { to.slice(t * w.rows + range.start, range.len()) };
            }
            RowProducts {
                format,
                rows: &bytes[range.start * row_bytes..range.end * row_bytes],
                row_bytes,
                next: &bytes[next.start * row_bytes..next.end * row_bytes],
                tokens: &scratch.activations,
                out: &mut slices[..tokens],
            }
            .compute(self.level);
        });
    }

    /// The products of panels with tokens that are laid out for them.
    fn many_tokens<F: Unpack>(&self, format: F, w: &Matrix, tokens: &PackedTokens, out: &mut Buffer) {
        let to = SharedMut::new(out.data_mut());
        let tasks = PanelTasks::new(w.rows, panel_rows(self.level, tokens), self.threads());
        self.pool.run(tasks.count(), |i| {
            for panel in tasks.panels(i) {
                let (rows, next) = (tasks.rows(panel), tasks.rows(tasks.next(i, panel)));
                self.panel(format, w, tokens, (rows.clone(), next), (&to, w.rows, rows.start));
            }
        });
    }

    /// The products of a panel's `rows`, while those that are `next` are asked for. A row of `out` has `out_stride` floats, of which number `first` is
    /// that of the panel's first row.
    fn panel<F: Unpack>(
        &self,
        format: F,
        w: &Matrix,
        tokens: &PackedTokens,
        (rows, next): (Range<usize>, Range<usize>),
        (out, out_stride, first): (&SharedMut<f32>, usize, usize),
    ) {
        let (bytes, row_bytes) = (w.bytes(), w.row_bytes());
        let bytes_of = |rows: Range<usize>| &bytes[rows.start * row_bytes..rows.end * row_bytes];
        PANEL.with_borrow_mut(|panel| {
            PanelProducts {
                format,
                rows: bytes_of(rows),
                row_bytes,
                columns: w.columns,
                next: bytes_of(next),
                tokens,
                panel,
                out,
                out_stride,
                first,
            }
            .compute(self.level);
        });
    }

    /// `out = swiglu(x · wᵀ)`, where `w` has the rows of the gate, then those of up, if that is best computed panel by panel: what both have to say
    /// of a panel's rows stays in the cache and is not kept. Otherwise false, and nothing is done.
    pub(super) fn gated_product(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> bool {
        self.integer_product(w, x, out, Then::Swiglu)
    }

    /// As [`Cpu::many_tokens`], to what SwiGLU makes of the products.
    fn many_tokens_gated<F: Unpack>(&self, format: F, w: &Matrix, tokens: &PackedTokens, out: &mut Buffer) {
        let (width, to) = (w.rows / 2, SharedMut::new(out.data_mut()));
        let tasks = PanelTasks::new(width, panel_rows(self.level, tokens), self.threads());
        let of_up = |rows: &Range<usize>| width + rows.start..width + rows.end;
        self.pool.run(tasks.count(), |i| {
            GATE_UP.with_borrow_mut(|both| {
                for panel in tasks.panels(i) {
                    let (rows, next) = (tasks.rows(panel), tasks.rows(tasks.next(i, panel)));
                    let stride = 2 * rows.len();
                    both.resize(tokens.rows * stride);
                    let both = &mut both[..tokens.rows * stride];
                    let panels = SharedMut::new(both);
                    self.panel(format, w, tokens, (rows.clone(), of_up(&rows)), (&panels, stride, 0));
                    self.panel(format, w, tokens, (of_up(&rows), next), (&panels, stride, rows.len()));
                    // Sound: each panel has its own columns.
                    unsafe {
                        elementwise::swiglu_columns(self.level, both, rows.len(), &to, width, rows.start);
                    }
                }
            });
        });
    }

    fn float<W: Float>(&self, weights: &[W::Bits], w: &Matrix, x: &Buffer, out: &mut Buffer) {
        let mut scratch = self.scratch();
        scratch.floats.pack(self.level, x.data(), w.columns, &self.pool);
        let to = SharedMut::new(out.data_mut());
        let products = |range: Range<usize>, group: usize| {
            let rows = &weights[range.start * w.columns..range.end * w.columns];
            self.float_rows::<W>(rows, range.start, w, (&scratch.floats, group), &to);
        };
        if x.rows() <= FEW_TOKENS {
            let tasks = RowTasks::new(w.rows, w.row_bytes(), self.threads(), MAX_GROUP_ROWS);
            self.pool.run(tasks.count(), |i| products(tasks.range(i), 0));
        } else {
            let tasks = w.rows.div_ceil(TASK_ROWS);
            self.pool.run(scratch.floats.groups() * tasks, |i| {
                let first = i % tasks * TASK_ROWS;
                products(first..(first + TASK_ROWS).min(w.rows), i / tasks);
            });
        }
    }

    /// The products of `rows`, which are `w`'s from row `first` on, with one group of tokens.
    fn float_rows<W: Float>(
        &self,
        rows: &[W::Bits],
        first: usize,
        w: &Matrix,
        (tokens, group): (&FloatTokens, usize),
        to: &SharedMut<f32>,
    ) {
        FloatProducts::<W> { rows, tokens, group, out: to, out_stride: w.rows, first }.compute(self.level);
    }

    /// For types without a kernel of their own: rows are decoded to f32 a few at a time.
    fn decoded(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let (bytes, row_bytes) = (w.bytes(), w.row_bytes());
        // Tells now whether the type can be decoded at all.
        quant::decode(w.kind, &[], &mut [])?;
        let mut scratch = self.scratch();
        scratch.floats.pack(self.level, x.data(), w.columns, &self.pool);
        let to = SharedMut::new(out.data_mut());
        self.pool.run_ranges(w.rows, TASK_ROWS, |range| {
            DECODED.with_borrow_mut(|rows| {
                rows.resize(range.len() * w.columns, 0.0);
                let source = &bytes[range.start * row_bytes..range.end * row_bytes];
                quant::decode(w.kind, source, rows).expect("the type and the lengths were checked");
                for group in 0..scratch.floats.groups() {
                    self.float_rows::<F32>(rows, range.start, w, (&scratch.floats, group), &to);
                }
            });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::test_matrices::matrices;
    use crate::backend::{Backend, Gate};
    use crate::simd::Level;

    #[test]
    fn gates_panel_by_panel_are_those_of_whole_products() {
        let wave = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        // Feed-forward widths that are whole panels and others, as few tokens as rows take and more than a tile has.
        for (kind, columns, width, tokens) in [
            (TensorType::Q4_K, 512, 192, 50),
            (TensorType::Q6_K, 256, 77, 131),
            (TensorType::Q8_0, 96, 33, 41),
            (TensorType::Q4_K, 256, 64, 3),
        ] {
            let [w, _] = matrices(kind, &wave(2 * width * columns, 0.37), columns);
            let mut x = Buffer::default();
            x.fill(&wave(tokens * columns, 0.71), columns);
            for level in Level::available() {
                let cpu = Cpu { level, ..Cpu::new(2) };
                let [mut scratch, mut out, mut both, mut want] = [(); 4].map(|()| Buffer::default());
                cpu.linear_gate(&w, None, Gate::Swiglu, &x, &mut scratch, &mut out).unwrap();
                cpu.linear(&w, &x, &mut both).unwrap();
                cpu.gate(Gate::Swiglu, &both, &mut want);
                assert!(tokens <= MAX_FEW_TOKENS || scratch.shape().0 == 0, "{level:?}, {kind:?}");
                assert_eq!(out.shape(), (tokens, width));
                assert_eq!(out.data(), want.data(), "{level:?}, {kind:?}");
            }
        }
    }

    #[test]
    fn panel_tasks_cover_every_panel_once() {
        for (rows, each, threads) in [(1, 32, 1), (8192, 32, 2), (3072, 64, 2), (32064, 24, 3), (777, 16, 64)]
        {
            let tasks = PanelTasks::new(rows, each, threads);
            let panels: Vec<usize> = (0..tasks.count()).flat_map(|i| tasks.panels(i)).collect();
            assert_eq!(panels, (0..rows.div_ceil(each)).collect::<Vec<_>>());
            assert_eq!(tasks.rows(panels[panels.len() - 1]).end, rows);
            assert!(tasks.rows(panels.len()).is_empty() && tasks.rows(panels.len() + 7 * threads).is_empty());
        }
    }

    #[test]
    fn row_tasks_cover_every_row_once() {
        for (rows, row_bytes, threads) in
            [(1, 144, 1), (8, 144, 2), (3072, 1728, 2), (16384, 1728, 8), (32064, 2520, 3), (777, 4608, 64)]
        {
            let tasks = RowTasks::new(rows, row_bytes, threads, 8 * threads.min(2));
            let mut end = 0;
            for i in 0..tasks.count() {
                let range = tasks.range(i);
                assert_eq!(range.start, end, "task {i} of {rows} rows");
                assert!(!range.is_empty());
                end = range.end;
            }
            assert_eq!(end, rows);
            assert!(tasks.range(tasks.count()).is_empty() && tasks.range(tasks.count() + threads).is_empty());
        }
    }
}
