//! Importance matrices as the quantizer uses them: how much each input column of a matrix matters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Planned;
use crate::imatrix::Statistics;
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

/// The importance of columns that nothing was measured of: all alike.
const UNSEEN: f32 = 1.0;

impl Imatrix {
    /// Reads the importance matrix at `path`, in either of its formats.
    ///
    /// # Errors
    /// A file that cannot be read; a [`Fault`](crate::imatrix::Fault).
    pub fn open(path: &Path) -> Result<Self> {
        let statistics = Statistics::open(path)?;
        let means = statistics.entries.iter().map(|(name, entry)| (name.clone(), entry.means(UNSEEN)));
        Ok(Self {
            path: path.to_owned(),
            entries: means.collect(),
            dataset: statistics.datasets.into_iter().next(),
            chunks: statistics.chunks,
        })
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
