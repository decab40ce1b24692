//! One model in several files and back: the parts that llama-gguf-split makes, byte for byte.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::fs::ensure_distinct;
use crate::gguf::{Gguf, Metadata, Source, TensorDecl, TensorInfo, Value, Writer, part_name};
use crate::{Error, Result};

/// When a part is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Tensors a part holds at most.
    Tensors(usize),
    /// Bytes of tensors a part holds at most, its metadata not counted; a larger tensor gets a part of its own.
    Bytes(u64),
}

/// How a model is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitOptions {
    pub limit: Limit,
    /// Put only the metadata into the first part.
    pub no_tensor_first: bool,
}

/// Bytes to which llama-gguf-split rounds a tensor's size when it counts.
const ROUNDING: u64 = 32;
/// Bytes copied between two calls of `progress`.
const STEP: usize = 16 << 20;

/// The tensors of each part, by their place in the file.
pub fn parts(gguf: &Gguf, options: SplitOptions) -> Vec<Range<usize>> {
    let sizes = gguf.tensors().iter().map(TensorInfo::bytes);
    let mut parts = cut(sizes, options.limit);
    if options.no_tensor_first {
        parts.insert(0, 0..0);
    }
    parts
}

fn cut(sizes: impl Iterator<Item = u64>, limit: Limit) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut end, mut bytes) = (0, 0, 0_u64);
    for size in sizes {
        let size = size.next_multiple_of(ROUNDING);
        let is_full = match limit {
            Limit::Tensors(most) => end - start == most.max(1),
            Limit::Bytes(most) => end > start && bytes + size > most,
        };
        if is_full {
            parts.push(start..end);
            (start, bytes) = (end, 0);
        }
        (end, bytes) = (end + 1, bytes + size);
    }
    parts.push(start..end);
    parts
}

/// The path of part `index` (from 0) of `count`: PREFIX-00001-of-00003.gguf.
pub fn part_path(prefix: &Path, index: usize, count: usize) -> PathBuf {
    let name = prefix.file_name().unwrap_or_default().to_string_lossy();
    prefix.with_file_name(part_name(&name, index as u32, count as u32))
}

/// Splits `gguf` into the files `prefix`-00001-of-N.gguf …, which appear when all are written.
///
/// `progress` is told the bytes copied since the last call. Errors: the disk refuses; more than 65,535 parts.
pub fn split(
    gguf: &Gguf,
    prefix: &Path,
    options: SplitOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<PathBuf>> {
    let parts = parts(gguf, options);
    let count = u16::try_from(parts.len()).map_err(|_| {
        Error::Usage(format!(
            "the model would have {} parts, 65535 are possible; raise the limit",
            parts.len()
        ))
    })?;
    let paths: Vec<PathBuf> = (0..parts.len()).map(|index| part_path(prefix, index, parts.len())).collect();
    for path in &paths {
        ensure_distinct(path, gguf.files())?;
    }
    let mut writers = Vec::with_capacity(parts.len());
    for ((index, tensors), path) in parts.into_iter().enumerate().zip(&paths) {
        let mut metadata = if index == 0 { gguf.metadata().clone() } else { Metadata::new() };
        for (key, value) in [
            ("split.no", Value::U16(index as u16)),
            ("split.tensors.count", Value::I32(gguf.tensors().len() as i32)),
            ("split.count", Value::U16(count)),
        ] {
            metadata.set(key, value);
        }
        writers.push(write(gguf, tensors, path, &metadata, progress)?);
    }
    writers.into_iter().try_for_each(|writer| writer.finish().map(|_| ()))?;
    Ok(paths)
}

/// Writes all parts of `gguf` into the one file `output`, without the `split.*` keys.
///
/// `progress` is told the bytes copied since the last call. Errors: the disk refuses; `output` is a part.
pub fn merge(gguf: &Gguf, output: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    ensure_distinct(output, gguf.files())?;
    let writer = write(gguf, 0..gguf.tensors().len(), output, gguf.metadata(), progress)?;
    writer.finish().map(|_| ())
}

/// Copies `tensors` of `gguf` to a file that is yet to be finished.
fn write(
    gguf: &Gguf,
    tensors: Range<usize>,
    path: &Path,
    metadata: &Metadata,
    progress: &mut dyn FnMut(u64),
) -> Result<Writer> {
    let infos = gguf.tensors().get(tensors.clone()).unwrap_or_default();
    let declared: Vec<TensorDecl> = infos.iter().map(TensorInfo::declaration).collect();
    let mut writer = Writer::create(path, metadata, &declared)?;
    for (index, info) in tensors.zip(infos) {
        for step in gguf.data(info).chunks(STEP) {
            writer.write(step)?;
            progress(step.len() as u64);
        }
        gguf.release(index, 0..info.rows());
    }
    Ok(writer)
}

/// Parses a size: "300M" and "2G" in powers of ten as llama.cpp has them, "2.2GiB" in powers of two, or bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong =
        || Error::Usage(format!("{text:?} is no size; expected one such as 300M, 2G, 2.2GiB or 5000000"));
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_by_count_or_by_size() {
        let sizes = [10, 64, 64, 200, 1];
        let cut = |limit| cut(sizes.into_iter(), limit);
        assert_eq!(cut(Limit::Tensors(2)), [0..2, 2..4, 4..5]);
        assert_eq!(cut(Limit::Tensors(5)), vec![0..5]);
        assert_eq!(cut(Limit::Bytes(128)), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(cut(Limit::Bytes(u64::MAX)), vec![0..5]);
        assert_eq!(cut(Limit::Bytes(1)), [0..1, 1..2, 2..3, 3..4, 4..5]);
    }

    #[test]
    fn sizes_have_the_units_people_write() {
        let parse = |text| parse_size(text).unwrap();
        assert_eq!(parse("300M"), 300_000_000);
        assert_eq!(parse("2G"), 2_000_000_000);
        assert_eq!(parse("2.5 GiB"), 2_684_354_560);
        assert_eq!(parse("12345"), 12345);
        for wrong in ["", "G", "-1G", "0", "2T", "1e9", "1.2.3M"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
