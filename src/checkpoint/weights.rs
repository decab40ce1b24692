//! The tensors of a checkpoint: one or several safetensors files, mapped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use super::{Fault, read_json};
use crate::fs::Map;
use crate::{Error, Result};

pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Weights in a format that is not read.
pub const PYTORCH: &str = "pytorch_model.bin";

/// A data type that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    F32,
    F16,
    Bf16,
}

impl DataType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            DataType::F32 => 4,
            DataType::F16 | DataType::Bf16 => 2,
        }
    }

    fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(DataType::F32),
            safetensors::Dtype::F16 => Some(DataType::F16),
            safetensors::Dtype::BF16 => Some(DataType::Bf16),
            _ => None,
        }
    }
}

/// A stored tensor's entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    /// `None` for a type that is not supported; its name is in `dtype_name`.
    pub dtype: Option<DataType>,
    pub dtype_name: String,
    /// Hugging Face order: rows first, so a matrix is `[rows, columns]`.
    pub shape: Vec<u64>,
    /// Which file holds it.
    file: usize,
    /// Its bytes in that file.
    range: Range<usize>,
}

impl Tensor {
    /// Bytes it takes in its file.
    pub fn bytes(&self) -> u64 {
        self.range.len() as u64
    }

    /// Where it starts in its file, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.range.start as u64
    }
}

/// All tensors of a checkpoint.
#[derive(Debug)]
pub struct Weights {
    files: Vec<(PathBuf, Map)>,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

impl Weights {
    /// Maps the weights of the checkpoint in `folder`: those that its index names, or `model*.safetensors`.
    ///
    /// Errors: a missing or damaged file, tensors that are missing, doubled or not in the index.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        if index.is_file() {
            let map = weight_map(&index)?;
            let names = BTreeSet::from_iter(map.values());
            for name in &names {
                if !folder.join(name).is_file() {
                    let fault = Fault::MissingShard { shard: (*name).clone(), index: INDEX };
                    return Err(Error::invalid(folder, fault));
                }
            }
            let weights = Self::from_files(names.into_iter().map(|name| folder.join(name)).collect())?;
            weights.compare_with_index(&map).map_err(|fault| Error::invalid(folder, fault))?;
            return Ok(weights);
        }
        let files = weight_files(folder)?;
        if files.is_empty() {
            let hint =
                if folder.join(PYTORCH).exists() || folder.join("pytorch_model.bin.index.json").exists() {
                    "its pytorch_model.bin files are not supported, save the model again as safetensors"
                } else {
                    "download the whole checkpoint"
                };
            return Err(Error::invalid(folder, Fault::NoWeights { hint }));
        }
        Self::from_files(files)
    }

    /// Maps the given safetensors files; tensors are ordered by file, then by name.
    pub fn from_files(paths: Vec<PathBuf>) -> Result<Self> {
        let mut weights = Self { files: Vec::new(), tensors: Vec::new(), by_name: HashMap::new() };
        for path in paths {
            let map = Map::open(&path)?;
            let found = tensors(&map, weights.files.len()).map_err(|fault| Error::invalid(&path, fault))?;
            weights.files.push((path, map));
            for tensor in found {
                weights.add(tensor)?;
            }
        }
        Ok(weights)
    }

    fn add(&mut self, tensor: Tensor) -> Result<()> {
        if let Some(&other) = self.by_name.get(&tensor.name) {
            let (first, second) = (self.file_name(self.tensors[other].file), self.file_name(tensor.file));
            let fault = Fault::DuplicateTensor { tensor: tensor.name.clone(), first, second };
            return Err(Error::invalid(&self.files[tensor.file].0, fault));
        }
        self.by_name.insert(tensor.name.clone(), self.tensors.len());
        self.tensors.push(tensor);
        Ok(())
    }

    /// Every tensor, ordered by file, then by name.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).and_then(|&index| self.tensors.get(index))
    }

    /// The bytes of `tensor`, which must be one of [`Self::tensors`]. No alignment is promised.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        // In bounds: `SafeTensors::read_metadata` compared every range with the file's length.
        &self.files[tensor.file].1[tensor.range.clone()]
    }

    /// The files, in order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The file that holds `tensor`, one of [`Self::tensors`].
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file].0
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// Reads `range` of `tensor`'s bytes into memory ahead of their use.
    pub fn prefetch(&self, tensor: &Tensor, range: Range<usize>) {
        let start = tensor.range.start;
        self.files[tensor.file].1.prefetch(start + range.start..start + range.end);
    }

    /// Drops `range` of `tensor`'s bytes from resident memory; they are read again when touched.
    pub fn forget(&self, tensor: &Tensor, range: Range<usize>) {
        let start = tensor.range.start;
        self.files[tensor.file].1.forget(start + range.start..start + range.end);
    }

    fn file_name(&self, file: usize) -> String {
        self.files[file].0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn compare_with_index(&self, map: &BTreeMap<String, String>) -> Result<(), Fault> {
        for (name, shard) in map {
            let found = self.tensor(name).map(|tensor| self.file_name(tensor.file));
            if found.as_ref() != Some(shard) {
                return Err(Fault::NotInShard { tensor: name.clone(), shard: shard.clone(), index: INDEX });
            }
        }
        for tensor in &self.tensors {
            if !map.contains_key(&tensor.name) {
                let shard = self.file_name(tensor.file);
                return Err(Fault::NotInIndex { tensor: tensor.name.clone(), shard, index: INDEX });
            }
        }
        Ok(())
    }
}

/// Whether a file of a checkpoint holds weights, going by its name.
pub fn is_weight_file(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/')
}

/// The weight files that the index in `folder` names; `None` if there is no index.
pub fn shards(folder: &Path) -> Result<Option<BTreeSet<String>>> {
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Ok(None);
    }
    Ok(Some(weight_map(&index)?.into_values().collect()))
}

/// The index's map from tensor names to file names.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let invalid = |fault| Error::invalid(index, fault);
    let json = read_json(index)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| invalid(Fault::MissingField { field: "weight_map".into() }))?;
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| {
            invalid(Fault::Field {
                field: format!("weight_map.{tensor}"),
                found: file.to_string(),
                expected: "a file name".into(),
            })
        })?;
        // A plain name: an index must not lead out of its folder.
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(invalid(Fault::ShardName(file.to_owned())));
        }
        files.insert(tensor.clone(), file.to_owned());
    }
    Ok(files)
}

/// `model*.safetensors` in `folder`, sorted.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io("read", folder, error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io("read", folder, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if is_weight_file(name) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The tensors of one safetensors file, sorted by name.
fn tensors(bytes: &[u8], file: usize) -> Result<Vec<Tensor>, Fault> {
    let (header, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| Fault::Safetensors(error.to_string()))?;
    // The header is preceded by its length, 8 bytes.
    let data_start = header + 8;
    let mut tensors: Vec<Tensor> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Tensor {
            name,
            dtype: DataType::from_safetensors(info.dtype),
            dtype_name: format!("{:?}", info.dtype),
            shape: info.shape.iter().map(|&dim| dim as u64).collect(),
            file,
            range: data_start + info.data_offsets.0..data_start + info.data_offsets.1,
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
