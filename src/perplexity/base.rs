//! The distributions of a base model on disk, in llama-perplexity's format (`--kl-divergence-base`).
//!
//! Little-endian: the bytes `_logits_`, the tokens of a chunk, the entries of the vocabulary, the chunks (32-bit
//! integers), all tokens (32-bit), then for each chunk a row for every token from the middle on but the last two: two
//! floats, the scale and the lowest log probability, and 16-bit levels, padded to an even number. A level times the
//! scale plus the lowest is the natural logarithm of the probability; what is below the highest by 16 or more is lowest.

use std::io::Write;
use std::path::Path;

use crate::fs::{AtomicFile, Map};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"_logits_";
const HEADER: usize = 8 + 3 * 4;
/// Logits further below the highest are all the same.
const RANGE: f32 = 16.0;

/// What can be wrong with such a file.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    #[error(
        "not a file of log probabilities: it does not begin with \"_logits_\"; make one with --kl-divergence-base"
    )]
    Magic,
    #[error(
        "the header has {context} tokens a chunk, {vocabulary} vocabulary entries and {chunks} chunks, which cannot be; the file is damaged"
    )]
    Header { context: u32, vocabulary: u32, chunks: u32 },
    #[error(
        "the file holds {found} bytes where its {chunks} chunks need {needed}; it was not completed, make it again"
    )]
    Truncated { found: u64, needed: u64, chunks: u32 },
    #[error("it names token {0}, which is not in its vocabulary")]
    Token(u32),
}

/// Tokens scored in a chunk.
fn scored(context: usize) -> usize {
    context - 1 - context / 2
}

/// Bytes of a row.
fn row_bytes(vocabulary: usize) -> usize {
    8 + 2 * vocabulary.next_multiple_of(2)
}

/// An opened file.
pub struct Base {
    map: Map,
    /// Tokens of a chunk.
    pub context: usize,
    pub vocabulary: usize,
    pub chunks: usize,
    /// [chunks, context].
    pub tokens: Vec<u32>,
}

impl Base {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read; a [`Fault`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(Map::open(path)?).map_err(|fault| Error::invalid(path, fault))
    }

    fn parse(map: Map) -> Result<Self, Fault> {
        if map.get(..8) != Some(MAGIC) {
            return Err(Fault::Magic);
        }
        let number = |at: usize| {
            let bytes = map.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let (context, vocabulary, chunks) = (number(8), number(12), number(16));
        if !(3..=1 << 28).contains(&context) || !(1..=1 << 28).contains(&vocabulary) || chunks == 0 {
            return Err(Fault::Header { context, vocabulary, chunks });
        }
        let chunk =
            4 * u64::from(context) + scored(context as usize) as u64 * row_bytes(vocabulary as usize) as u64;
        let needed = u64::from(chunks).checked_mul(chunk).and_then(|bytes| bytes.checked_add(HEADER as u64));
        let needed = needed.ok_or(Fault::Header { context, vocabulary, chunks })?;
        let found = map.len() as u64;
        if found < needed {
            return Err(Fault::Truncated { found, needed, chunks });
        }
        // Fits: all of it is in the file.
        let (context, chunks) = (context as usize, chunks as usize);
        let tokens: Vec<u32> = (0..context * chunks).map(|n| number(HEADER + 4 * n)).collect();
        if let Some(token) = tokens.iter().find(|&&token| token >= vocabulary) {
            return Err(Fault::Token(*token));
        }
        Ok(Self { map, context, vocabulary: vocabulary as usize, chunks, tokens })
    }

    /// The distribution at scored token `row` of `chunk`.
    pub fn row(&self, chunk: usize, row: usize) -> LogProbabilities<'_> {
        let bytes = row_bytes(self.vocabulary);
        let at = HEADER + 4 * self.tokens.len() + (chunk * scored(self.context) + row) * bytes;
        LogProbabilities::new(&self.map[at..at + bytes], self.vocabulary)
    }
}

/// One row, decoded as it is read.
pub struct LogProbabilities<'a> {
    scale: f32,
    lowest: f32,
    levels: &'a [[u8; 2]],
}

impl<'a> LogProbabilities<'a> {
    pub(super) fn new(row: &'a [u8], vocabulary: usize) -> Self {
        let float = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        let levels = &row[8..].as_chunks().0[..vocabulary];
        Self { scale: float(0), lowest: float(4), levels }
    }

    /// The log probability of `token`.
    pub fn get(&self, token: usize) -> f32 {
        self.scale * f32::from(u16::from_le_bytes(self.levels[token])) + self.lowest
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = f32> {
        self.levels.iter().map(|&level| self.scale * f32::from(u16::from_le_bytes(level)) + self.lowest)
    }
}

/// The bytes of a row.
pub fn encode_row(logits: &[f32]) -> Vec<u8> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let lowest = logits.iter().copied().fold(f32::INFINITY, f32::min).max(highest - RANGE);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - highest).exp())).sum();
    let log_sum = sum.ln() as f32;
    let scale = (highest - lowest) / 65535.0;
    let mut row = Vec::with_capacity(row_bytes(logits.len()));
    row.extend(scale.to_le_bytes());
    row.extend((lowest - highest - log_sum).to_le_bytes());
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for &logit in logits {
        let level = if logit > lowest { (inverse * (logit - lowest)).round_ties_even() as u16 } else { 0 };
        row.extend(level.to_le_bytes());
    }
    row.resize(row_bytes(logits.len()), 0);
    row
}

/// Writes such a file, whole or not at all.
pub struct BaseWriter {
    file: AtomicFile,
}

impl BaseWriter {
    /// Starts the file for `tokens`, whole chunks of `context`.
    ///
    /// # Errors
    /// A folder that refuses; too little free space.
    pub fn create(path: &Path, context: usize, vocabulary: usize, tokens: &[u32]) -> Result<Self> {
        let chunks = tokens.len() / context;
        let rows = (chunks * scored(context)) as u64;
        let bytes = (HEADER + 4 * tokens.len()) as u64 + rows * row_bytes(vocabulary) as u64;
        let mut writer = Self { file: AtomicFile::create(path, bytes)? };
        let mut head = MAGIC.to_vec();
        let numbers = [context as u32, vocabulary as u32, chunks as u32];
        head.extend(numbers.iter().chain(tokens).flat_map(|number| number.to_le_bytes()));
        writer.write_row(&head)?;
        Ok(writer)
    }

    /// Appends a row of [`encode_row`].
    pub fn write_row(&mut self, row: &[u8]) -> Result<()> {
        self.file.write_all(row).map_err(|error| self.file.write_error(error))
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result<()> {
        self.file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(logits: &[Vec<f32>], tokens: &[u32], context: usize) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        let mut writer = BaseWriter::create(&path, context, logits[0].len(), tokens).unwrap();
        logits.iter().for_each(|logits| writer.write_row(&encode_row(logits)).unwrap());
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    }

    fn parse(bytes: &[u8]) -> Result<Base, Fault> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Base::parse(Map::open(file.path()).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let logits = vec![vec![1.0, 2.0, -3.0], vec![0.5; 3], vec![100.0, 0.0, 90.0]];
        let tokens = [0, 1, 2, 1, 0, 0, 2, 2];
        let base = parse(&written(&logits, &tokens, 8)).unwrap();
        assert_eq!((base.context, base.vocabulary, base.chunks, &base.tokens[..]), (8, 3, 1, &tokens[..]));
        for (row, logits) in logits.iter().enumerate() {
            let sum: f32 = base.row(0, row).iter().map(f32::exp).sum();
            assert!((sum - 1.0).abs() < 1e-3, "{sum}");
            let difference = base.row(0, row).get(0) - base.row(0, row).get(2);
            assert!((difference - (logits[0] - logits[2])).abs() < 1e-3);
        }
        assert_eq!(base.row(0, 2).get(1), base.row(0, 2).iter().fold(0.0, f32::min));
    }

    #[test]
    fn every_fault_is_told() {
        let whole = written(&[vec![1.0, 2.0]], &[0, 1, 1, 0], 4);
        assert!(parse(&whole).is_ok());
        for end in 0..8 {
            assert_eq!(parse(&whole[..end]).err(), Some(Fault::Magic));
        }
        for end in 20..whole.len() {
            assert!(matches!(parse(&whole[..end]), Err(Fault::Truncated { .. })), "{end}");
        }
        let with = |at: usize, number: u32| {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            parse(&bytes).err()
        };
        assert!(matches!(with(8, 0), Some(Fault::Header { context: 0, .. })));
        assert!(matches!(with(12, u32::MAX), Some(Fault::Header { .. })));
        assert!(matches!(with(16, 0), Some(Fault::Header { chunks: 0, .. })));
        assert!(matches!(with(16, u32::MAX), Some(Fault::Truncated { .. })));
        assert_eq!(with(20, 2), Some(Fault::Token(2)));
    }
}
