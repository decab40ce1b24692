//! Tensors' places in their files and their values.

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::Report;
use crate::gguf::{Gguf, Source, TensorInfo};
use crate::quant::validity::first_invalid;
use crate::{Error, Result};

/// Bytes a thread looks at at once: large enough to stream from disk.
const CHUNK_BYTES: u64 = 4 << 20;
/// Zeros of this many bytes in a row are no weights but a hole in the file.
const HOLE_BYTES: usize = 1 << 20;

/// Reports bytes of the files that belong to nothing.
pub fn layout(gguf: &Gguf, report: &mut Report) {
    let files: Vec<_> = gguf.files().collect();
    for (number, path) in files.iter().enumerate() {
        let mut tensors: Vec<&TensorInfo> =
            gguf.tensors().iter().filter(|tensor| tensor.file == number).collect();
        tensors.sort_by_key(|tensor| tensor.offset);
        let name = if files.len() > 1 { format!("{}: ", path.display()) } else { String::new() };
        for pair in tensors.windows(2) {
            let [first, second] = pair else { continue };
            let gap = second.offset - (first.offset + first.bytes());
            if gap >= gguf.alignment() {
                let (first, second) = (&first.name, &second.name);
                report.warning("file", format!("{name}{gap} bytes between {first} and {second} are unused"));
            }
        }
        if let Some(last) = tensors.last() {
            let rest = gguf.file_bytes_of(last) - (gguf.file_offset(last) + last.bytes());
            if rest >= gguf.alignment() {
                report.warning("file", format!("{name}{rest} bytes after the last tensor are unused"));
            }
        }
    }
}

/// Whole rows of a tensor.
struct Chunk {
    tensor: usize,
    rows: Range<u64>,
    bytes: u64,
}

/// What is wrong with a tensor's values.
#[derive(Clone, Default)]
struct Finding {
    /// The first row with a value that is no number, and in how many chunks there are such.
    invalid: Option<(u64, usize)>,
    /// The first row of zeros where there should be weights.
    hole: Option<u64>,
}

/// Looks at every block of every tensor.
pub fn values(
    gguf: &Gguf,
    threads: usize,
    report: &mut Report,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let chunks: Vec<Chunk> = gguf.tensors().iter().enumerate().flat_map(chunks_of).collect();
    let total = chunks.iter().map(|chunk| chunk.bytes).sum();
    let findings = Mutex::new(vec![Finding::default(); gguf.tensors().len()]);
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(number) else { break };
            if let Some(ahead) = chunks.get(number + 2 * threads) {
                gguf.prefetch(ahead.tensor, ahead.rows.clone());
            }
            let finding = look_at(gguf, chunk);
            if finding.invalid.is_some() || finding.hole.is_some() {
                let mut findings = findings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                findings[chunk.tensor].merge(finding);
            }
            gguf.release(chunk.tensor, chunk.rows.clone());
            done.fetch_add(chunk.bytes, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, 64)).map(|_| scope.spawn(work)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            if progress(done.load(Ordering::Relaxed), total).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    if stop.into_inner() {
        return Err(Error::Interrupted);
    }
    let findings = findings.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (tensor, finding) in gguf.tensors().iter().zip(findings) {
        finding.report(tensor, report);
    }
    Ok(())
}

fn chunks_of((index, tensor): (usize, &TensorInfo)) -> Vec<Chunk> {
    let row = tensor.row_bytes().max(1);
    let step = (CHUNK_BYTES / row).max(1);
    let rows = tensor.rows();
    let starts = (0..rows).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    let chunk = |start: u64| {
        let end = start.saturating_add(step).min(rows);
        Chunk { tensor: index, rows: start..end, bytes: (end - start) * row }
    };
    starts.map(chunk).collect()
}

fn look_at(gguf: &Gguf, chunk: &Chunk) -> Finding {
    let Some(tensor) = gguf.tensors().get(chunk.tensor) else { return Finding::default() };
    let bytes = tensor.row_range(&chunk.rows).and_then(|range| gguf.data(tensor).get(range));
    let bytes = bytes.unwrap_or_default();
    let row_of = |byte: usize| chunk.rows.start + byte as u64 / tensor.row_bytes().max(1);
    Finding {
        invalid: first_invalid(tensor.kind, bytes)
            .map(|block| (row_of(block * tensor.kind.block_bytes()), 1)),
        hole: hole(bytes).map(row_of),
    }
}

/// Where zeros that go on for about [`HOLE_BYTES`] begin, to half of that; `None` if there are none.
fn hole(bytes: &[u8]) -> Option<usize> {
    const STEP: usize = HOLE_BYTES / 2;
    let is_zero = |part: &[u8]| part.iter().all(|&byte| byte == 0);
    let zeros: Vec<bool> = bytes.chunks_exact(STEP).map(is_zero).collect();
    zeros.windows(2).position(|pair| pair == [true, true]).map(|part| part * STEP)
}

impl Finding {
    fn merge(&mut self, other: Self) {
        self.invalid = match (self.invalid, other.invalid) {
            (Some((a, n)), Some((b, m))) => Some((a.min(b), n + m)),
            (a, b) => a.or(b),
        };
        self.hole = match (self.hole, other.hole) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn report(&self, tensor: &TensorInfo, report: &mut Report) {
        let name = &tensor.name;
        if let Some((row, chunks)) = self.invalid {
            let what = if tensor.kind.is_quantized() { "a scale" } else { "a value" };
            let more =
                if chunks > 1 { format!(", and in {} further places", chunks - 1) } else { String::new() };
            report.error(
                "tensors",
                format!("the tensor {name} has {what} that is NaN or infinite in row {row}{more}"),
            );
        }
        if let Some(row) = self.hole {
            report.warning(
                "tensors",
                format!(
                    "the tensor {name} has a long run of zero bytes from row {row} on: perhaps a download that was not completed"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_from_a_megabyte_on() {
        let mut bytes = vec![1_u8; 5 << 20];
        assert_eq!(hole(&bytes), None);
        bytes[1 << 20..2 << 20].fill(0);
        assert_eq!(hole(&bytes), Some(1 << 20));
        bytes[1 << 20] = 1;
        assert_eq!(hole(&bytes), None);
        bytes[100..3 << 20].fill(0);
        assert_eq!(hole(&bytes), Some(1 << 19));
        assert_eq!(hole(&[0; 100]), None);
    }
}
