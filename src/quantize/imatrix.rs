//! Importance matrices: how much each input column of a matrix matters, measured on text.
//!
//! Reads both of llama-imatrix's formats: GGUF (`NAME.in_sum2` and `NAME.counts`, F32, with the metadata
//! keys `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`) and the older binary one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Planned;
use crate::gguf::{Gguf, Metadata, TensorInfo, TensorType};
use crate::{Error, Result};

/// The importance of the input columns of a model's matrices.
#[derive(Clone, Debug)]
pub struct Imatrix {
    path: PathBuf,
    dataset: Option<String>,
    chunks: u32,
    /// Mean squared activations by tensor name: [matrices, columns].
    entries: BTreeMap<String, Vec<f32>>,
}

/// What can be wrong with an importance matrix.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ImatrixFault {
    #[error("the importance matrix ends within {0}; it is incomplete, make or fetch it again")]
    Truncated(&'static str),
    #[error("neither a GGUF file nor an importance matrix of the older format (it begins with {0} entries)")]
    NotAnImatrix(i32),
    #[error("a GGUF file, but no importance matrix: the metadata key {0} is missing")]
    NoMetadata(&'static str),
    #[error("the importance matrix has no entries")]
    Empty,
    #[error("the entry {0} has only one of its two tensors, .in_sum2 and .counts")]
    Unpaired(String),
    #[error("the tensor {name} is {kind}, but importance matrices are F32")]
    Type { name: String, kind: TensorType },
    #[error("the entry {name} has {values} values for {counts} counts, which does not divide")]
    Shape { name: String, values: u64, counts: u64 },
    #[error("the entry {0} has a value that is NaN or infinite; make the importance matrix again")]
    NotFinite(String),
    #[error("an entry's name is not valid UTF-8")]
    Name,
}

impl Imatrix {
    /// Reads the importance matrix at `path`, in either format.
    ///
    /// # Errors
    /// A file that cannot be read; an [`ImatrixFault`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut magic = [0; 4];
        let mut file = std::fs::File::open(path).map_err(|error| Error::io("open", path, error))?;
        let is_gguf = std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"GGUF";
        let read = if is_gguf {
            Self::from_gguf(path, &Gguf::open(path)?)
        } else {
            let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
            Self::from_legacy(path, &bytes)
        };
        let imatrix = read.map_err(|fault| Error::invalid(path, fault))?;
        imatrix.check().map_err(|fault| Error::invalid(path, fault))?;
        Ok(imatrix)
    }

    fn check(&self) -> Result<(), ImatrixFault> {
        if self.entries.is_empty() {
            return Err(ImatrixFault::Empty);
        }
        let broken = self.entries.iter().find(|(_, values)| values.iter().any(|value| !value.is_finite()));
        broken.map_or(Ok(()), |(name, _)| Err(ImatrixFault::NotFinite(name.clone())))
    }

    fn from_gguf(path: &Path, gguf: &Gguf) -> Result<Self, ImatrixFault> {
        let (dataset, chunks) = description(gguf.metadata())?;
        let mut pairs = BTreeMap::<&str, (Option<&TensorInfo>, Option<&TensorInfo>)>::new();
        for tensor in gguf.tensors() {
            if let Some(name) = tensor.name.strip_suffix(".in_sum2") {
                pairs.entry(name).or_default().0 = Some(tensor);
            } else if let Some(name) = tensor.name.strip_suffix(".counts") {
                pairs.entry(name).or_default().1 = Some(tensor);
            }
        }
        let mut entries = BTreeMap::new();
        for (name, pair) in pairs {
            let (Some(sums), Some(counts)) = pair else {
                return Err(ImatrixFault::Unpaired(name.to_owned()));
            };
            let means = means(name, floats(gguf, sums)?, &floats(gguf, counts)?)?;
            entries.insert(name.to_owned(), means);
        }
        Ok(Self { path: path.to_owned(), dataset, chunks, entries })
    }

    /// The older format: a count, entries of name, calls and values, then chunks and dataset.
    fn from_legacy(path: &Path, bytes: &[u8]) -> Result<Self, ImatrixFault> {
        let mut rest = Reader { bytes };
        let count = rest.i32("the number of entries")?;
        if !(1..=1 << 20).contains(&count) {
            return Err(ImatrixFault::NotAnImatrix(count));
        }
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let length = rest.i32("a name's length")?;
            let name = rest.take(length, 1, "a name")?;
            let name = std::str::from_utf8(name).map_err(|_| ImatrixFault::Name)?.to_owned();
            let calls = rest.i32("a number of calls")?;
            let length = rest.i32("a number of values")?;
            let values = rest.take(length, 4, "values")?;
            let mut values: Vec<f32> = to_floats(values);
            if calls > 0 {
                values.iter_mut().for_each(|value| *value /= calls as f32);
            }
            entries.insert(name, values);
        }
        // What follows is optional.
        let chunks = rest.i32("the number of chunks").unwrap_or(0);
        let dataset = rest.i32("a length").and_then(|length| rest.take(length, 1, "the dataset"));
        let dataset = dataset.ok().filter(|text| !text.is_empty());
        let dataset = dataset.map(|text| String::from_utf8_lossy(text).into_owned());
        Ok(Self { path: path.to_owned(), dataset, chunks: chunks.try_into().unwrap_or(0), entries })
    }

    /// Keeps only the entries whose name contains one of `parts`; all if there are none.
    pub fn include(&mut self, parts: &[String]) {
        if !parts.is_empty() {
            self.entries.retain(|name, _| parts.iter().any(|part| name.contains(part)));
        }
    }

    /// Drops the entries whose name contains one of `parts`.
    pub fn exclude(&mut self, parts: &[String]) {
        self.entries.retain(|name, _| !parts.iter().any(|part| name.contains(part)));
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The (first) text it was measured on.
    pub fn dataset(&self) -> Option<&str> {
        self.dataset.as_deref()
    }

    /// Chunks of text it was measured on; 0 if unknown.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry called `name`, [matrices, columns].
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.entries.get(name).map(Vec::as_slice)
    }

    /// The weights for `tensor`, [matrices, columns].
    ///
    /// # Errors
    /// An entry of another size, unless the tensor is the embedding, for which there can be no right one.
    pub fn weights_for(&self, tensor: &Planned) -> Result<Option<&[f32]>> {
        let Some(values) = self.get(&tensor.source_name) else { return Ok(None) };
        let expected = tensor.elements() / tensor.rows_per_matrix();
        if values.len() as u64 == expected {
            return Ok(Some(values));
        }
        if super::plan::is_embedding(&tensor.name) {
            return Ok(None);
        }
        Err(Error::invalid(
            &self.path,
            format!(
                "the entry {} has {} values where the model's tensor needs {expected}; it was made from another model",
                tensor.source_name,
                values.len()
            ),
        ))
    }
}

/// The (first) dataset and the number of chunks.
fn description(metadata: &Metadata) -> Result<(Option<String>, u32), ImatrixFault> {
    let [datasets, chunks, size] = ["imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"];
    if let Some(missing) = [datasets, chunks, size].into_iter().find(|key| !metadata.contains(key)) {
        return Err(ImatrixFault::NoMetadata(missing));
    }
    let names = metadata.strings(datasets).ok().flatten().unwrap_or_default();
    Ok((names.first().cloned(), metadata.u32(chunks).ok().flatten().unwrap_or(0)))
}

/// Sums over counts; where nothing was counted, all columns matter alike.
fn means(name: &str, mut sums: Vec<f32>, counts: &[f32]) -> Result<Vec<f32>, ImatrixFault> {
    if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        let (values, counts) = (sums.len() as u64, counts.len() as u64);
        return Err(ImatrixFault::Shape { name: name.to_owned(), values, counts });
    }
    let columns = sums.len() / counts.len();
    for (sums, count) in sums.chunks_exact_mut(columns.max(1)).zip(counts) {
        let count = count.round();
        if count > 0.0 {
            sums.iter_mut().for_each(|sum| *sum /= count);
        } else {
            sums.fill(1.0);
        }
    }
    Ok(sums)
}

fn floats(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, ImatrixFault> {
    if tensor.kind != TensorType::F32 {
        return Err(ImatrixFault::Type { name: tensor.name.clone(), kind: tensor.kind });
    }
    Ok(to_floats(gguf.data(tensor)))
}

fn to_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// What is left of a file's bytes.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn i32(&mut self, what: &'static str) -> Result<i32, ImatrixFault> {
        let bytes = self.take(4, 1, what)?;
        Ok(bytes.try_into().map_or(0, i32::from_le_bytes))
    }

    /// The next `count` items of `size` bytes each.
    fn take(&mut self, count: i32, size: usize, what: &'static str) -> Result<&'a [u8], ImatrixFault> {
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        let split = length.and_then(|length| self.bytes.split_at_checked(length));
        let (taken, rest) = split.ok_or(ImatrixFault::Truncated(what))?;
        self.bytes = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
        let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, values) in entries {
            bytes.extend((name.len() as i32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(calls.to_le_bytes());
            bytes.extend((values.len() as i32).to_le_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes
    }

    #[test]
    fn the_older_format_is_read_with_and_without_its_tail() {
        let mut bytes = legacy(&[("a.weight", 2, &[2.0, 4.0]), ("b.weight", 0, &[3.0])]);
        let read = Imatrix::from_legacy(Path::new("x"), &bytes).unwrap();
        assert_eq!(read.get("a.weight"), Some(&[1.0, 2.0][..]));
        assert_eq!(read.get("b.weight"), Some(&[3.0][..]));
        assert_eq!((read.chunks(), read.dataset()), (0, None));
        bytes.extend(7_i32.to_le_bytes());
        bytes.extend(4_i32.to_le_bytes());
        bytes.extend(b"text");
        let read = Imatrix::from_legacy(Path::new("x"), &bytes).unwrap();
        assert_eq!((read.chunks(), read.dataset()), (7, Some("text")));
    }

    #[test]
    fn every_fault_of_the_older_format_is_told() {
        let read = |bytes: &[u8]| Imatrix::from_legacy(Path::new("x"), bytes).map(|_| ()).unwrap_err();
        let whole = legacy(&[("a.weight", 2, &[2.0, 4.0])]);
        for end in 0..whole.len() {
            assert!(matches!(read(&whole[..end]), ImatrixFault::Truncated(_)), "{end}");
        }
        assert_eq!(read(&(-1_i32).to_le_bytes()), ImatrixFault::NotAnImatrix(-1));
        assert_eq!(read(b"PK\x03\x04zip"), ImatrixFault::NotAnImatrix(0x0403_4b50));
        let mut name = whole.clone();
        name[8] = 0xff;
        assert_eq!(read(&name), ImatrixFault::Name);
        let mut negative = whole.clone();
        negative[4..8].copy_from_slice(&(-8_i32).to_le_bytes());
        assert_eq!(read(&negative), ImatrixFault::Truncated("a name"));
        let huge = legacy(&[("a.weight", 1, &[f32::NAN])]);
        let broken = Imatrix::from_legacy(Path::new("x"), &huge).unwrap().check();
        assert_eq!(broken, Err(ImatrixFault::NotFinite("a.weight".into())));
    }

    #[test]
    fn means_are_by_matrix_and_even_where_nothing_was_counted() {
        let means = means("a", vec![2.0, 4.0, 9.0, 9.0], &[2.0, 0.0]).unwrap();
        assert_eq!(means, [1.0, 2.0, 1.0, 1.0]);
        let fault = super::means("a", vec![1.0; 3], &[1.0, 1.0]).unwrap_err();
        assert_eq!(fault, ImatrixFault::Shape { name: "a".into(), values: 3, counts: 2 });
    }
}
