//! Writes a GGUF file (version 3) to disk, whole or not at all, or to memory.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::value::type_id;
use super::{Array, Fault, Metadata, TensorType, Value, reader};
use crate::fs::AtomicFile;
use crate::machine::prefer_large_pages;
use crate::{Error, Result};

const VERSION: u32 = 3;
/// What tensors are aligned to if the metadata says nothing.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDecl {
    pub name: String,
    /// ggml order: row length first.
    pub shape: Vec<u64>,
    pub kind: TensorType,
}

/// What a [`Writer`] made.
#[derive(Debug)]
pub enum Output {
    File(PathBuf),
    Memory(Vec<u8>),
}

enum Target {
    File(AtomicFile),
    Memory(Vec<u8>),
}

/// Writes a GGUF file: the head on creation, then the tensors' bytes in declared order.
pub struct Writer {
    target: Target,
    path: PathBuf,
    /// Bytes of each tensor.
    sizes: Vec<u64>,
    names: Vec<String>,
    /// The tensor being written, and its bytes that are still to come.
    current: usize,
    left: u64,
    alignment: u64,
}

impl Writer {
    /// Starts the file at `path`: a temporary file beside it until [`Self::finish`].
    ///
    /// Errors: a declaration without a size (see [`Fault`]), an unwritable folder, too little free space.
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[TensorDecl]) -> Result<Self> {
        let layout = Layout::new(metadata, tensors).map_err(|fault| Error::invalid(path, fault))?;
        let mut file = AtomicFile::create(path, layout.total())?;
        file.write_all(&layout.head).map_err(|error| file.write_error(error))?;
        Ok(Self::start(Target::File(file), path.to_owned(), layout, tensors))
    }

    /// Starts a file image in memory; `label` stands for its path in messages.
    pub fn in_memory(label: impl Into<PathBuf>, metadata: &Metadata, tensors: &[TensorDecl]) -> Result<Self> {
        let label = label.into();
        let layout = Layout::new(metadata, tensors).map_err(|fault| Error::invalid(&label, fault))?;
        let mut image = Vec::new();
        let total = usize::try_from(layout.total()).unwrap_or(usize::MAX);
        image.try_reserve_exact(total).map_err(|_| {
            Error::Resources(format!("{}: the model needs {total} bytes of memory", label.display()))
        })?;
        prefer_large_pages(&mut image);
        image.extend_from_slice(&layout.head);
        Ok(Self::start(Target::Memory(image), label, layout, tensors))
    }

    fn start(target: Target, path: PathBuf, layout: Layout, tensors: &[TensorDecl]) -> Self {
        Self {
            target,
            path,
            current: 0,
            left: layout.sizes.first().copied().unwrap_or(0),
            sizes: layout.sizes,
            names: tensors.iter().map(|tensor| tensor.name.clone()).collect(),
            alignment: layout.alignment,
        }
    }

    /// Appends tensor bytes, in declared order and in any chunking; padding between tensors is added here.
    ///
    /// Errors: the disk refuses, or there are more bytes than were declared.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                return Err(self.misuse(format!("{} bytes too many were written", bytes.len())));
            }
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(count);
            self.put(now)?;
            bytes = later;
            self.left -= count as u64;
            if self.left == 0 {
                self.next_tensor()?;
            }
        }
        Ok(())
    }

    /// Completes the file: synced, and at its place from now on.
    ///
    /// Errors: the disk refuses, or tensor bytes are missing.
    pub fn finish(self) -> Result<Output> {
        if let Some(name) = self.names.get(self.current) {
            return Err(self.misuse(format!("tensor {name:?} lacks {} bytes", self.left)));
        }
        match self.target {
            Target::File(file) => file.commit().map(|()| Output::File(self.path)),
            Target::Memory(image) => Ok(Output::Memory(image)),
        }
    }

    /// Pads the tensor just written and moves to the next.
    fn next_tensor(&mut self) -> Result<()> {
        let size = self.sizes.get(self.current).copied().unwrap_or(0);
        let padding = padding(size, self.alignment);
        self.put(&vec![0; padding as usize])?;
        self.current += 1;
        self.left = self.sizes.get(self.current).copied().unwrap_or(0);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.target {
            Target::File(file) => file.write_all(bytes).map_err(|error| file.write_error(error)),
            Target::Memory(image) => {
                image.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn misuse(&self, what: String) -> Error {
        Error::Usage(format!("{}: {what}, so the file was not written", self.path.display()))
    }
}

/// Bytes of the file that a [`Writer`] makes of this.
///
/// Errors: a declaration without a size (see [`Fault`]).
pub fn file_bytes(metadata: &Metadata, tensors: &[TensorDecl]) -> Result<u64, Fault> {
    Layout::new(metadata, tensors).map(|layout| layout.total())
}

/// A file's head and the sizes that follow from it.
struct Layout {
    /// Header, metadata and tensor table, padded.
    head: Vec<u8>,
    sizes: Vec<u64>,
    alignment: u64,
}

impl Layout {
    fn new(metadata: &Metadata, tensors: &[TensorDecl]) -> Result<Self, Fault> {
        let alignment = match metadata.u32("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(alignment) if alignment.is_power_of_two() => alignment.into(),
            Some(alignment) => return Err(Fault::AlignmentValue(alignment)),
        };
        let sizes = tensors
            .iter()
            .map(|tensor| reader::check_size(&tensor.name, &tensor.shape, tensor.kind))
            .collect::<Result<Vec<u64>, Fault>>()?;
        let mut head = Vec::new();
        head.extend_from_slice(b"GGUF");
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        head.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_string(&mut head, key);
            head.extend_from_slice(&value.type_id().to_le_bytes());
            put_value(&mut head, value);
        }
        let mut offset = 0_u64;
        for (tensor, &size) in tensors.iter().zip(&sizes) {
            put_string(&mut head, &tensor.name);
            head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|dim| head.extend_from_slice(&dim.to_le_bytes()));
            head.extend_from_slice(&tensor.kind.id().to_le_bytes());
            head.extend_from_slice(&offset.to_le_bytes());
            let end = offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.ok_or_else(|| Fault::SizeOverflow {
                tensor: tensor.name.clone(),
                shape: tensor.shape.clone(),
            })?;
        }
        head.resize(head.len() + padding(head.len() as u64, alignment) as usize, 0);
        Ok(Self { head, sizes, alignment })
    }

    /// Bytes of the whole file.
    fn total(&self) -> u64 {
        let data: u64 = self.sizes.iter().map(|&size| size + padding(size, self.alignment)).sum();
        self.head.len() as u64 + data
    }
}

/// Bytes from `position` to the next multiple of `alignment`, a power of two.
fn padding(position: u64, alignment: u64) -> u64 {
    position.wrapping_neg() & (alignment - 1)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => put_array(out, array),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    debug_assert!(array.element_type_id() <= type_id::F64);
    out.extend_from_slice(&array.element_type_id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&flag| u8::from(flag))),
        Array::String(v) => v.iter().for_each(|text| put_string(out, text)),
        Array::U64(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
        Array::Array(v) => v.iter().for_each(|inner| put_array(out, inner)),
    }
}
