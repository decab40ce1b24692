//! An opened model: one GGUF file or the parts of a split one.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Fault, Metadata, TensorInfo, reader, split};
use crate::fs::Map;
use crate::{Error, Result};

/// An opened GGUF model, mapped into memory; its head is checked, so that every tensor's bytes exist.
pub struct Gguf {
    path: PathBuf,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    alignment: u64,
    parts: Vec<Part>,
}

/// One file of a model.
struct Part {
    path: PathBuf,
    bytes: Bytes,
    data_start: u64,
}

enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Gguf {
    /// Opens the model at `path`. Given any part of a split model, opens all parts.
    ///
    /// Errors: a file that cannot be read, every [`Fault`], a missing part (named).
    pub fn open(path: &Path) -> Result<Self> {
        let (head, part) = open_part(path)?;
        let Some(position) = split::position(path, &head.metadata).map_err(|f| Error::invalid(path, f))?
        else {
            return Self::assemble(path.to_owned(), vec![(head, part)]);
        };
        let mut files = Vec::with_capacity(position.count as usize);
        let mut given = Some((head, part));
        for no in 0..position.count {
            let file = match given.take_if(|_| no == position.no) {
                Some(file) => file,
                None => open_sibling(path, &position, no)?,
            };
            files.push(file);
        }
        Self::assemble(path.to_owned(), files)
    }

    /// Everything that is wrong with the one file at `path`: a single fault where its head cannot be read, otherwise
    /// those of its tensors' ranges.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn faults(path: &Path) -> Result<Vec<Fault>> {
        Ok(reader::faults(&Map::open(path)?))
    }

    /// Opens an image of a GGUF file; `label` stands for its path in messages. A part of a split model is refused.
    pub fn from_bytes(bytes: Vec<u8>, label: impl Into<PathBuf>) -> Result<Self> {
        let label = label.into();
        let head = reader::parse(&bytes).map_err(|fault| Error::invalid(&label, fault))?;
        let count = split::count(&head.metadata).map_err(|fault| Error::invalid(&label, fault))?;
        if count > 1 {
            return Err(Error::invalid(&label, Fault::SplitName { count }));
        }
        let part = Part { path: label.clone(), bytes: Bytes::Owned(bytes), data_start: head.data_start };
        Self::assemble(label, vec![(head, part)])
    }

    /// Joins the heads of all parts, in order.
    fn assemble(path: PathBuf, files: Vec<(reader::Head, Part)>) -> Result<Self> {
        let mut files = files.into_iter();
        let (first, part) = files.next().expect("a model has a first part");
        let mut gguf = Gguf {
            path,
            version: first.version,
            alignment: first.alignment,
            metadata: first.metadata,
            tensors: first.tensors,
            by_name: HashMap::new(),
            parts: vec![part],
        };
        for (head, part) in files {
            let file = gguf.parts.len();
            gguf.parts.push(part);
            gguf.tensors.extend(head.tensors.into_iter().map(|tensor| TensorInfo { file, ..tensor }));
        }
        for (index, tensor) in gguf.tensors.iter().enumerate() {
            if gguf.by_name.insert(tensor.name.clone(), index).is_some() {
                let fault = Fault::DuplicateTensor { tensor: tensor.name.clone() };
                return Err(Error::invalid(&gguf.parts[tensor.file].path, fault));
            }
        }
        if gguf.parts.len() > 1 {
            split::check_tensor_count(&gguf.metadata, gguf.tensors.len())
                .map_err(|fault| Error::invalid(&gguf.parts[0].path, fault))?;
        }
        split::strip(&mut gguf.metadata);
        Ok(gguf)
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format's version (2 or 3).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The files it consists of, in order (one, unless the model is split).
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Bytes of all its files together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.as_slice().len() as u64).sum()
    }

    /// Bytes of the file that holds `tensor`.
    pub fn file_bytes_of(&self, tensor: &TensorInfo) -> u64 {
        self.parts[tensor.file].bytes.as_slice().len() as u64
    }

    /// The first file's metadata, without the `split.*` keys.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&index| self.tensors.get(index))
    }

    /// The bytes of `tensor`, which must be one of [`Self::tensors`]. No alignment is promised.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        // In bounds for every tensor of this model: `reader::parse` checked its range against the file.
        &self.parts[tensor.file].bytes.as_slice()[self.file_range(tensor)]
    }

    /// Where `tensor` starts in its file, in bytes.
    pub fn file_offset(&self, tensor: &TensorInfo) -> u64 {
        self.parts[tensor.file].data_start + tensor.offset
    }

    /// The bytes of each of its files before the tensors' bytes: metadata and tensor table.
    pub fn heads(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| {
            let bytes = part.bytes.as_slice();
            &bytes[..bytes.len().min(part.data_start as usize)]
        })
    }

    /// Bytes to which tensors are aligned in the (first) file.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Drops `range` of `tensor`'s bytes from resident memory; they are read again when touched.
    pub(super) fn forget(&self, tensor: &TensorInfo, range: Range<usize>) {
        if let Some(Part { bytes: Bytes::Mapped(map), .. }) = self.parts.get(tensor.file) {
            let start = self.file_range(tensor).start;
            map.forget(start + range.start..start + range.end);
        }
    }

    /// Has `range` of `tensor`'s bytes read from disk ahead of their use.
    pub(super) fn read_ahead(&self, tensor: &TensorInfo, range: Range<usize>) {
        if let Some(Part { bytes: Bytes::Mapped(map), .. }) = self.parts.get(tensor.file) {
            let start = self.file_range(tensor).start;
            map.prefetch(start + range.start..start + range.end);
        }
    }

    fn file_range(&self, tensor: &TensorInfo) -> Range<usize> {
        let start = self.file_offset(tensor) as usize;
        start..start + tensor.bytes() as usize
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

fn open_part(path: &Path) -> Result<(reader::Head, Part)> {
    let map = Map::open(path)?;
    let head = reader::parse(&map).map_err(|fault| Error::invalid(path, fault))?;
    let data_start = head.data_start;
    Ok((head, Part { path: path.to_owned(), bytes: Bytes::Mapped(map), data_start }))
}

/// Opens part `no` of the model that `path` is a part of, and checks that it says so too.
fn open_sibling(path: &Path, position: &split::Position, no: u32) -> Result<(reader::Head, Part)> {
    let sibling = position.sibling(path, no);
    if !sibling.exists() {
        return Err(Error::invalid(&sibling, Fault::SplitMissing { no: no + 1, count: position.count }));
    }
    let (head, part) = open_part(&sibling)?;
    let found = split::position(&sibling, &head.metadata).map_err(|f| Error::invalid(&sibling, f))?;
    if found.is_none() {
        let fault = Fault::MissingKey(split::COUNT.to_owned());
        return Err(Error::invalid(&sibling, fault));
    }
    Ok((head, part))
}
