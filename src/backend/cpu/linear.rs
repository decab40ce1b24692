//! Matrix products: which kernel, and how its work is shared out.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::MutexGuard;

use super::{Buffer, Cpu, Scratch};
use crate::backend::Matrix;
use crate::gguf::TensorType;
use crate::kernel::float::{Bf16, F16, F32, FEW_TOKENS, Float, FloatProducts, FloatTokens, TASK_ROWS};
use crate::kernel::matmul::{MAX_FEW_TOKENS, Panel, PanelProducts, few_tokens, panel_rows};
use crate::kernel::matvec::{MAX_GROUP_ROWS, RowProducts, sweep_rows};
use crate::kernel::{SharedMut, activations};
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

thread_local! {
    static PANEL: RefCell<Panel> = RefCell::default();
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Cpu {
    /// `out = x · wᵀ`; `out` has its final size.
    pub(super) fn product(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        if w.columns.is_multiple_of(w.kind.block_elements()) {
            match w.kind {
                TensorType::Q4_0 => return self.quantized(Q4_0, w, x, out),
                TensorType::Q4_1 => return self.quantized(Q4_1, w, x, out),
                TensorType::Q5_0 => return self.quantized(Q5_0, w, x, out),
                TensorType::Q5_1 => return self.quantized(Q5_1, w, x, out),
                TensorType::Q8_0 => return self.quantized(Q8_0, w, x, out),
                TensorType::IQ4_NL => return self.quantized(Iq4Nl, w, x, out),
                TensorType::Q2_K => return self.quantized(Q2K, w, x, out),
                TensorType::Q3_K => return self.quantized(Q3K, w, x, out),
                TensorType::Q4_K => return self.quantized(Q4K, w, x, out),
                TensorType::Q5_K => return self.quantized(Q5K, w, x, out),
                TensorType::Q6_K => return self.quantized(Q6K, w, x, out),
                TensorType::IQ1_S => return self.quantized(Iq1S, w, x, out),
                TensorType::IQ1_M => return self.quantized(Iq1M, w, x, out),
                TensorType::IQ2_XXS => return self.quantized(Iq2Xxs, w, x, out),
                TensorType::IQ2_XS => return self.quantized(Iq2Xs, w, x, out),
                TensorType::IQ2_S => return self.quantized(Iq2S, w, x, out),
                TensorType::IQ3_XXS => return self.quantized(Iq3Xxs, w, x, out),
                TensorType::IQ3_S => return self.quantized(Iq3S, w, x, out),
                TensorType::IQ4_XS => return self.quantized(Iq4Xs, w, x, out),
                TensorType::TQ1_0 => return self.quantized(Tq1_0, w, x, out),
                TensorType::TQ2_0 => return self.quantized(Tq2_0, w, x, out),
                TensorType::MXFP4 => return self.quantized(Mxfp4, w, x, out),
                _ => {}
            }
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

    fn quantized<F: Unpack>(&self, format: F, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let mut scratch = self.scratch();
        self.quantize_activations(&mut scratch, x, (F::SPAN, F::REACH));
        if x.rows() <= few_tokens(format, self.level) {
            scratch.activations.arrange(format, self.level, &self.pool);
            self.few_tokens(format, w, &scratch, out);
        } else {
            let Scratch { activations, packed, .. } = &mut *scratch;
            packed.pack(format, self.level, activations, &self.pool);
            self.many_tokens(format, w, &scratch, out);
        }
        Ok(())
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

    fn many_tokens<F: Unpack>(&self, format: F, w: &Matrix, scratch: &Scratch, out: &mut Buffer) {
        let (bytes, row_bytes) = (w.bytes(), w.row_bytes());
        let to = SharedMut::new(out.data_mut());
        let panel_rows = panel_rows(self.level, &scratch.packed);
        // Several panels a task, so that what a thread needs next is known, and at the end single ones, so that no thread waits long.
        let panels = w.rows.div_ceil(panel_rows);
        let each = (panels / self.threads() / TASKS_EACH).clamp(1, PANELS);
        let whole = panels * 3 / 4 / each;
        self.pool.run(whole + panels - whole * each, |i| {
            let (first, count) = if i < whole { (i * each, each) } else { (whole * each + i - whole, 1) };
            let range = first * panel_rows..((first + count) * panel_rows).min(w.rows);
            for first in range.clone().step_by(panel_rows) {
                let last = (first + panel_rows).min(range.end);
                // Threads take turns, as long as none is held up.
                let next = if last < range.end {
                    last
                } else {
                    first + ((self.threads() - 1) * count + 1) * panel_rows
                };
                let next = next.min(w.rows)..(next + panel_rows).min(w.rows);
                PANEL.with_borrow_mut(|panel| {
                    PanelProducts {
                        format,
                        rows: &bytes[first * row_bytes..last * row_bytes],
                        row_bytes,
                        columns: w.columns,
                        next: &bytes[next.start * row_bytes..next.end * row_bytes],
                        tokens: &scratch.packed,
                        panel,
                        out: &to,
                        out_stride: w.rows,
                        first,
                    }
                    .compute(self.level);
                });
            }
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
