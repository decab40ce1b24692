//! Sums of squared activations, and the two files they are kept in.
//!
//! The formats are llama-imatrix's: GGUF (`NAME.in_sum2` and `NAME.counts`, F32, with the metadata keys
//! `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`) and the older binary one (.dat).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::fs::AtomicFile;
use crate::gguf::{Array, Gguf, Metadata, TensorDecl, TensorInfo, TensorType, Value, Writer};
use crate::{Error, Result};

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What can be wrong with an importance matrix.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Fault {
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
    #[error(
        "the entry {name} has {found} values where {expected} were expected; it was made from another model"
    )]
    Mismatch { name: String, found: usize, expected: usize },
}

/// What was measured of one weight tensor's inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Sums of squares, [matrices, columns].
    pub sums: Vec<f64>,
    /// Rows of activations that were added up: one count a matrix (expert), or one for all.
    pub counts: Vec<i64>,
}

impl Entry {
    /// Columns that a count stands for.
    fn columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Sums over counts, [matrices, columns]; `unseen` for a matrix that had no input.
    pub fn means(&self, unseen: f32) -> Vec<f32> {
        let matrices = self.sums.chunks_exact(self.columns().max(1)).zip(&self.counts);
        let means = matrices.flat_map(|(sums, &count)| {
            sums.iter().map(move |&sum| if count > 0 { sum as f32 / count as f32 } else { unseen })
        });
        means.collect()
    }

    /// Sums over counts of the matrices that had input.
    pub fn seen_means(&self) -> impl Iterator<Item = f64> {
        let matrices = self.sums.chunks_exact(self.columns().max(1)).zip(&self.counts);
        let seen = matrices.filter(|(_, count)| **count > 0);
        seen.flat_map(|(sums, &count)| sums.iter().map(move |sum| sum / count as f64))
    }

    /// Adds another measurement of the same tensor.
    fn merge(&mut self, name: &str, other: &Entry) -> Result<(), Fault> {
        if self.sums.is_empty() {
            *self = other.clone();
            return Ok(());
        }
        let fits = other.sums.len() == self.sums.len()
            && (other.counts.len() == self.counts.len() || self.counts.len() == 1 || other.counts.len() == 1);
        if !fits {
            let (found, expected) = (other.sums.len(), self.sums.len());
            return Err(Fault::Mismatch { name: name.to_owned(), found, expected });
        }
        let matrices = self.counts.len().max(other.counts.len());
        spread(&mut self.counts, matrices);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
        let shared = (other.counts.len() == 1).then(|| other.counts[0]);
        for (at, count) in self.counts.iter_mut().enumerate() {
            *count = count.saturating_add(shared.unwrap_or_else(|| other.counts[at]));
        }
        Ok(())
    }
}

/// A count that stands for all matrices becomes one for each.
fn spread(counts: &mut Vec<i64>, matrices: usize) {
    if let [count] = counts[..] {
        counts.resize(matrices, count);
    }
}

/// An importance matrix before its sums are divided: what is measured, stored and added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// By the weight tensor's name.
    pub entries: BTreeMap<String, Entry>,
    /// The texts it was measured on.
    pub datasets: Vec<String>,
    /// Chunks of text it was measured on; 0 if unknown.
    pub chunks: u32,
    /// Tokens of a chunk; 0 in the older format, whose counts are chunks.
    pub chunk_size: u32,
}

/// Which file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Gguf,
    /// The older one; it has one count for all experts.
    Dat,
}

impl Statistics {
    /// Reads the file at `path`, in either format.
    ///
    /// # Errors
    /// A file that cannot be read; a [`Fault`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut magic = [0; 4];
        let mut file = std::fs::File::open(path).map_err(|error| Error::io("open", path, error))?;
        let is_gguf = std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"GGUF";
        let read = if is_gguf {
            Self::from_gguf(&Gguf::open(path)?)
        } else {
            let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
            Self::from_dat(&bytes)
        };
        read.and_then(Self::checked).map_err(|fault| Error::invalid(path, fault))
    }

    fn checked(self) -> Result<Self, Fault> {
        if self.entries.is_empty() {
            return Err(Fault::Empty);
        }
        match self.entries.iter().find(|(_, entry)| entry.sums.iter().any(|sum| !sum.is_finite())) {
            Some((name, _)) => Err(Fault::NotFinite(name.clone())),
            None => Ok(self),
        }
    }

    fn from_gguf(gguf: &Gguf) -> Result<Self, Fault> {
        let metadata = gguf.metadata();
        let keys = [DATASETS, CHUNK_COUNT, CHUNK_SIZE];
        if let Some(missing) = keys.into_iter().find(|key| !metadata.contains(key)) {
            return Err(Fault::NoMetadata(missing));
        }
        let mut pairs = BTreeMap::<&str, (Option<&TensorInfo>, Option<&TensorInfo>)>::new();
        for tensor in gguf.tensors() {
            if let Some(name) = tensor.name.strip_suffix(SUMS) {
                pairs.entry(name).or_default().0 = Some(tensor);
            } else if let Some(name) = tensor.name.strip_suffix(COUNTS) {
                pairs.entry(name).or_default().1 = Some(tensor);
            }
        }
        let mut entries = BTreeMap::new();
        for (name, pair) in pairs {
            let (Some(sums), Some(counts)) = pair else { return Err(Fault::Unpaired(name.to_owned())) };
            let sums: Vec<f64> = floats(gguf, sums)?.map(f64::from).collect();
            let counts: Vec<i64> = floats(gguf, counts)?.map(|count| count.round() as i64).collect();
            if !sums.len().is_multiple_of(counts.len()) {
                let (values, counts) = (sums.len() as u64, counts.len() as u64);
                return Err(Fault::Shape { name: name.to_owned(), values, counts });
            }
            entries.insert(name.to_owned(), Entry { sums, counts });
        }
        let number = |key: &str| metadata.u32(key).ok().flatten().unwrap_or(0);
        let datasets = metadata.strings(DATASETS).ok().flatten().unwrap_or_default().to_vec();
        Ok(Self { entries, datasets, chunks: number(CHUNK_COUNT), chunk_size: number(CHUNK_SIZE) })
    }

    /// The older format: a count, entries of name, calls and values, then chunks and dataset.
    fn from_dat(bytes: &[u8]) -> Result<Self, Fault> {
        let mut rest = Reader { bytes };
        let count = rest.i32("the number of entries")?;
        if !(1..=1 << 20).contains(&count) {
            return Err(Fault::NotAnImatrix(count));
        }
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let length = rest.i32("a name's length")?;
            let name = rest.take(length, 1, "a name")?;
            let name = std::str::from_utf8(name).map_err(|_| Fault::Name)?.to_owned();
            let calls = rest.i32("a number of calls")?;
            let length = rest.i32("a number of values")?;
            let values = rest.take(length, 4, "values")?;
            let sums = to_floats(values).map(f64::from).collect();
            // Entries without calls hold means already.
            entries.insert(name, Entry { sums, counts: vec![i64::from(calls.max(1))] });
        }
        // What follows is optional.
        let chunks = rest.i32("the number of chunks").unwrap_or(0);
        let dataset = rest.i32("a length").and_then(|length| rest.take(length, 1, "the dataset"));
        let dataset = dataset.ok().filter(|text| !text.is_empty());
        let datasets = dataset.map(|text| String::from_utf8_lossy(text).into_owned()).into_iter().collect();
        Ok(Self { entries, datasets, chunks: chunks.try_into().unwrap_or(0), chunk_size: 0 })
    }

    /// Adds `other`; one of the older format counts in chunks, which are taken to have `chunk_size` tokens.
    ///
    /// # Errors
    /// [`Fault::Mismatch`] for an entry of another size.
    pub fn merge(&mut self, other: &Statistics, chunk_size: u32) -> Result<(), Fault> {
        self.chunk_size = chunk_size;
        let factor = if other.chunk_size == 0 { i64::from(chunk_size) } else { 1 };
        for (name, entry) in &other.entries {
            let mut scaled = entry.clone();
            scaled.counts.iter_mut().for_each(|count| *count = count.saturating_mul(factor));
            scaled.sums.iter_mut().for_each(|sum| *sum *= factor as f64);
            self.entries.entry(name.clone()).or_default().merge(name, &scaled)?;
        }
        self.datasets.extend(other.datasets.iter().cloned());
        self.count_chunks();
        Ok(())
    }

    /// Adds the squares of `rows`, [n, columns], to matrix `matrix` of the `matrices` that tensor `name` holds.
    ///
    /// # Errors
    /// [`Fault::Mismatch`] if the entry has another size, from a file of another model; [`Fault::NotFinite`].
    pub fn add_rows(
        &mut self,
        name: &str,
        (matrices, matrix): (usize, usize),
        columns: usize,
        rows: &[f32],
    ) -> Result<(), Fault> {
        if !self.entries.contains_key(name) {
            let entry = Entry { sums: vec![0.0; matrices * columns], counts: vec![0; matrices] };
            self.entries.insert(name.to_owned(), entry);
        }
        let entry = self.entries.entry(name.to_owned()).or_default();
        spread(&mut entry.counts, matrices);
        if entry.sums.len() != matrices * columns || entry.counts.len() != matrices {
            let (found, expected) = (entry.sums.len(), matrices * columns);
            return Err(Fault::Mismatch { name: name.to_owned(), found, expected });
        }
        let sums = &mut entry.sums[matrix * columns..][..columns];
        for row in rows.chunks_exact(columns) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        entry.counts[matrix] = entry.counts[matrix].saturating_add((rows.len() / columns) as i64);
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Err(Fault::NotFinite(name.to_owned()));
        }
        Ok(())
    }

    /// Sets the number of chunks to what the largest count makes.
    pub fn count_chunks(&mut self) {
        let most = self.entries.values().flat_map(|entry| &entry.counts).max().copied().unwrap_or(0);
        self.chunks = u32::try_from(most / i64::from(self.chunk_size.max(1))).unwrap_or(u32::MAX);
    }

    /// Entries some of whose matrices (experts) had no input.
    pub fn partial(&self) -> impl Iterator<Item = &str> {
        let partial = |entry: &Entry| entry.counts.contains(&0);
        self.entries.iter().filter(move |(_, entry)| partial(entry)).map(|(name, _)| name.as_str())
    }

    /// Writes the file at `path`, whole or not at all.
    ///
    /// # Errors
    /// A folder or disk that refuses.
    pub fn save(&self, path: &Path, format: Format) -> Result<()> {
        match format {
            Format::Gguf => self.write_gguf(path),
            Format::Dat => {
                let bytes = self.to_dat();
                let mut file = AtomicFile::create(path, bytes.len() as u64)?;
                file.write_all(&bytes).map_err(|error| file.write_error(error))?;
                file.commit()
            }
        }
    }

    fn write_gguf(&self, path: &Path) -> Result<()> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", Value::from("imatrix"));
        metadata.set(DATASETS, Value::Array(Array::String(self.datasets.clone())));
        metadata.set(CHUNK_COUNT, Value::U32(self.chunks));
        metadata.set(CHUNK_SIZE, Value::U32(self.chunk_size));
        let declare = |name: &str, suffix: &str, columns: usize, rows: usize| TensorDecl {
            name: format!("{name}{suffix}"),
            // As ggml counts dimensions: one of 1 at the end is none.
            shape: if rows == 1 { vec![columns as u64] } else { vec![columns as u64, rows as u64] },
            kind: TensorType::F32,
        };
        let mut tensors = Vec::with_capacity(2 * self.entries.len());
        for (name, entry) in &self.entries {
            tensors.push(declare(name, SUMS, entry.columns(), entry.counts.len()));
            tensors.push(declare(name, COUNTS, 1, entry.counts.len()));
        }
        let mut writer = Writer::create(path, &metadata, &tensors)?;
        for entry in self.entries.values() {
            let bytes: Vec<u8> = entry.sums.iter().flat_map(|&sum| (sum as f32).to_le_bytes()).collect();
            writer.write(&bytes)?;
            let bytes: Vec<u8> =
                entry.counts.iter().flat_map(|&count| (count as f32).to_le_bytes()).collect();
            writer.write(&bytes)?;
        }
        writer.finish().map(|_| ())
    }

    /// The older format's bytes. It has no counts by expert, so means are stored, times the calls.
    fn to_dat(&self) -> Vec<u8> {
        let chunk = i64::from(self.chunk_size.max(1));
        let kept = self.entries.iter().filter(|(_, entry)| entry.counts.iter().any(|&count| count > 0));
        let kept: Vec<(&String, &Entry)> = kept.collect();
        let mut bytes = (kept.len() as i32).to_le_bytes().to_vec();
        let put_text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as i32).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        for (name, entry) in kept {
            put_text(&mut bytes, name);
            let most = entry.counts.iter().max().copied().unwrap_or(0);
            let calls = i32::try_from(most.saturating_add(chunk - 1) / chunk).unwrap_or(i32::MAX);
            bytes.extend(calls.to_le_bytes());
            bytes.extend((entry.sums.len() as i32).to_le_bytes());
            for mean in entry.means(1.0) {
                bytes.extend((mean * calls as f32).to_le_bytes());
            }
        }
        bytes.extend(i32::try_from(self.chunks).unwrap_or(i32::MAX).to_le_bytes());
        put_text(&mut bytes, self.datasets.last().map_or("", String::as_str));
        bytes
    }
}

fn floats<'a>(gguf: &'a Gguf, tensor: &TensorInfo) -> Result<impl Iterator<Item = f32> + 'a, Fault> {
    if tensor.kind != TensorType::F32 {
        return Err(Fault::Type { name: tensor.name.clone(), kind: tensor.kind });
    }
    Ok(to_floats(gguf.data(tensor)))
}

fn to_floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// What is left of a file's bytes.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn i32(&mut self, what: &'static str) -> Result<i32, Fault> {
        let bytes = self.take(4, 1, what)?;
        Ok(bytes.try_into().map_or(0, i32::from_le_bytes))
    }

    /// The next `count` items of `size` bytes each.
    fn take(&mut self, count: i32, size: usize, what: &'static str) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        let split = length.and_then(|length| self.bytes.split_at_checked(length));
        let (taken, rest) = split.ok_or(Fault::Truncated(what))?;
        self.bytes = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dat(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
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

    fn means(statistics: &Statistics, name: &str) -> Vec<f32> {
        statistics.entries[name].means(1.0)
    }

    #[test]
    fn the_older_format_is_read_with_and_without_its_tail() {
        let mut bytes = dat(&[("a.weight", 2, &[2.0, 4.0]), ("b.weight", 0, &[3.0])]);
        let read = Statistics::from_dat(&bytes).unwrap();
        assert_eq!(means(&read, "a.weight"), [1.0, 2.0]);
        assert_eq!(means(&read, "b.weight"), [3.0]);
        assert_eq!((read.chunks, &read.datasets[..]), (0, &[][..]));
        bytes.extend(7_i32.to_le_bytes());
        bytes.extend(4_i32.to_le_bytes());
        bytes.extend(b"text");
        let read = Statistics::from_dat(&bytes).unwrap();
        assert_eq!((read.chunks, &read.datasets[..]), (7, &["text".to_owned()][..]));
    }

    #[test]
    fn every_fault_of_the_older_format_is_told() {
        let read = |bytes: &[u8]| Statistics::from_dat(bytes).map(|_| ()).unwrap_err();
        let whole = dat(&[("a.weight", 2, &[2.0, 4.0])]);
        for end in 0..whole.len() {
            assert!(matches!(read(&whole[..end]), Fault::Truncated(_)), "{end}");
        }
        assert_eq!(read(&(-1_i32).to_le_bytes()), Fault::NotAnImatrix(-1));
        assert_eq!(read(b"PK\x03\x04zip"), Fault::NotAnImatrix(0x0403_4b50));
        let mut name = whole.clone();
        name[8] = 0xff;
        assert_eq!(read(&name), Fault::Name);
        let mut negative = whole.clone();
        negative[4..8].copy_from_slice(&(-8_i32).to_le_bytes());
        assert_eq!(read(&negative), Fault::Truncated("a name"));
        let huge = dat(&[("a.weight", 1, &[f32::NAN])]);
        let broken = Statistics::from_dat(&huge).unwrap().checked();
        assert_eq!(broken, Err(Fault::NotFinite("a.weight".into())));
    }

    #[test]
    fn rows_are_squared_and_counted_by_matrix() {
        let mut statistics = Statistics { chunk_size: 2, ..Statistics::default() };
        statistics.add_rows("w", (2, 1), 2, &[1.0, 2.0, 3.0, -4.0]).unwrap();
        statistics.count_chunks();
        assert_eq!(statistics.entries["w"].sums, [0.0, 0.0, 10.0, 20.0]);
        assert_eq!((&statistics.entries["w"].counts[..], statistics.chunks), (&[0, 2][..], 1));
        assert_eq!(means(&statistics, "w"), [1.0, 1.0, 5.0, 10.0], "even where nothing was counted");
        assert_eq!(statistics.partial().collect::<Vec<_>>(), ["w"]);
        let other = statistics.add_rows("w", (1, 0), 2, &[1.0, 2.0]).unwrap_err();
        assert_eq!(other, Fault::Mismatch { name: "w".into(), found: 4, expected: 2 });
        let broken = statistics.add_rows("w", (2, 0), 2, &[f32::NAN, 2.0]);
        assert_eq!(broken, Err(Fault::NotFinite("w".into())));
    }

    #[test]
    fn what_is_merged_adds_up() {
        let entry = |sums: &[f64], counts: &[i64]| Entry { sums: sums.to_vec(), counts: counts.to_vec() };
        let mut one = entry(&[1.0, 2.0], &[4]);
        one.merge("w", &entry(&[1.0, 1.0], &[2, 3])).unwrap();
        assert_eq!(one, entry(&[2.0, 3.0], &[6, 7]));
        assert!(matches!(one.merge("w", &entry(&[1.0], &[1])), Err(Fault::Mismatch { .. })));
        let old = Statistics::from_dat(&dat(&[("w", 3, &[6.0, 9.0])])).unwrap();
        let mut sum = Statistics::default();
        sum.merge(&old, 10).unwrap();
        sum.merge(&old, 10).unwrap();
        assert_eq!(sum.entries["w"], entry(&[120.0, 180.0], &[60]));
        assert_eq!((sum.chunks, sum.chunk_size), (6, 10));
    }

    #[test]
    fn both_formats_lead_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut statistics =
            Statistics { chunk_size: 2, datasets: vec!["text".into()], ..Statistics::default() };
        statistics.add_rows("a.weight", (1, 0), 2, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        statistics.add_rows("b.weight", (2, 0), 1, &[2.0, 2.0, 2.0]).unwrap();
        statistics.count_chunks();
        let (new, old) = (folder.path().join("m.gguf"), folder.path().join("m.dat"));
        statistics.save(&new, Format::Gguf).unwrap();
        assert_eq!(Statistics::open(&new).unwrap(), statistics);
        statistics.save(&old, Format::Dat).unwrap();
        let read = Statistics::open(&old).unwrap();
        assert_eq!(means(&read, "a.weight"), means(&statistics, "a.weight"));
        assert_eq!(means(&read, "b.weight"), [4.0, 1.0]);
        assert_eq!((read.chunks, read.datasets), (1, vec!["text".to_owned()]));
    }
}
