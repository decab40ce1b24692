//! Parses a GGUF file's head: header, metadata, tensor table. The input is hostile until checked.
//!
//! Format: docs/gguf.md of the ggml project. Every count is compared with the bytes that are left
//! before anything is allocated for it, so memory stays proportional to the file.

use std::collections::HashSet;

use super::value::type_id;
use super::{Array, Fault, Metadata, TensorInfo, TensorType, Value};

/// Deepest nesting of arrays that is read; nothing in use nests at all.
const ARRAY_NESTING: usize = 4;
/// Bytes the shortest metadata entry takes: key length, one byte of key, value type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Bytes the shortest tensor entry takes: name length, one byte of name, dimension count, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u32 = 32;

/// What precedes the tensors' bytes.
pub(super) struct Head {
    pub version: u32,
    pub metadata: Metadata,
    /// Offsets are relative to `data_start`; `file` is 0.
    pub tensors: Vec<TensorInfo>,
    pub alignment: u64,
    /// Byte of the file at which tensor data starts.
    pub data_start: u64,
}

/// Parses and checks the head of `file`, a whole GGUF file; every tensor's range lies inside it.
pub(super) fn parse(file: &[u8]) -> Result<Head, Fault> {
    let head = parse_head(file)?;
    match range_faults(&head, file.len() as u64).into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(head),
    }
}

/// Everything that is wrong with `file`: one fault if its head cannot be read, or all faults of its tensors' ranges.
pub(super) fn faults(file: &[u8]) -> Vec<Fault> {
    match parse_head(file) {
        Ok(head) => range_faults(&head, file.len() as u64),
        Err(fault) => vec![fault],
    }
}

/// Parses the head without asking whether the tensors are there.
fn parse_head(file: &[u8]) -> Result<Head, Fault> {
    let mut input = Input { bytes: file, at: 0 };
    let version = header(&mut input)?;
    let tensor_count = input.u64("the tensor count")?;
    let entry_count = input.u64("the metadata count")?;
    input.room_for("metadata entries", entry_count, MIN_ENTRY_BYTES)?;
    input.room_for("tensors", tensor_count, MIN_TENSOR_BYTES)?;
    let metadata = metadata(&mut input, entry_count)?;
    let alignment = alignment(&metadata)?;
    let tensors = (0..tensor_count).map(|index| tensor(&mut input, index)).collect::<Result<Vec<_>, _>>()?;
    let data_start = (input.at as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    Ok(Head { version, metadata, tensors, alignment, data_start })
}

/// Reads magic and version.
fn header(input: &mut Input) -> Result<u32, Fault> {
    let found = input.bytes.get(..4).unwrap_or(input.bytes);
    if found != b"GGUF" {
        return Err(Fault::NotGguf { found: String::from_utf8_lossy(found).into_owned() });
    }
    input.at = 4;
    match input.u32("the version")? {
        version @ 2..=3 => Ok(version),
        version if (1..=0xff).contains(&version.swap_bytes()) => Err(Fault::BigEndian),
        version => Err(Fault::Version(version)),
    }
}

fn metadata(input: &mut Input, count: u64) -> Result<Metadata, Fault> {
    let mut metadata = Metadata::new();
    for index in 0..count {
        let key = input.string("a metadata key")?;
        if key.is_empty() {
            return Err(Fault::EmptyKey { index });
        }
        let id = input.u32("a metadata value's type")?;
        let value = value(input, &key, id)?;
        if metadata.contains(&key) {
            return Err(Fault::DuplicateKey { key });
        }
        metadata.set(key, value);
    }
    Ok(metadata)
}

fn value(input: &mut Input, key: &str, id: u32) -> Result<Value, Fault> {
    const WHAT: &str = "a metadata value";
    Ok(match id {
        type_id::U8 => Value::U8(u8::from_le_bytes(input.array(WHAT)?)),
        type_id::I8 => Value::I8(i8::from_le_bytes(input.array(WHAT)?)),
        type_id::U16 => Value::U16(u16::from_le_bytes(input.array(WHAT)?)),
        type_id::I16 => Value::I16(i16::from_le_bytes(input.array(WHAT)?)),
        type_id::U32 => Value::U32(input.u32(WHAT)?),
        type_id::I32 => Value::I32(i32::from_le_bytes(input.array(WHAT)?)),
        type_id::F32 => Value::F32(f32::from_le_bytes(input.array(WHAT)?)),
        type_id::BOOL => Value::Bool(boolean(key, u8::from_le_bytes(input.array(WHAT)?))?),
        type_id::STRING => Value::String(input.string("a metadata text")?),
        type_id::ARRAY => Value::Array(array(input, key, 1)?),
        type_id::U64 => Value::U64(input.u64(WHAT)?),
        type_id::I64 => Value::I64(i64::from_le_bytes(input.array(WHAT)?)),
        type_id::F64 => Value::F64(f64::from_le_bytes(input.array(WHAT)?)),
        _ => return Err(Fault::ValueType { key: key.to_owned(), id }),
    })
}

fn boolean(key: &str, byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Fault::BoolValue { key: key.to_owned(), found }),
    }
}

fn array(input: &mut Input, key: &str, depth: usize) -> Result<Array, Fault> {
    if depth > ARRAY_NESTING {
        return Err(Fault::ArrayNesting { key: key.to_owned(), limit: ARRAY_NESTING });
    }
    let id = input.u32("an array's element type")?;
    let length = input.u64("an array's length")?;
    // A string takes at least its length, an array its type and length.
    let least = match id {
        type_id::U8 | type_id::I8 | type_id::BOOL => 1,
        type_id::U16 | type_id::I16 => 2,
        type_id::U32 | type_id::I32 | type_id::F32 => 4,
        type_id::U64 | type_id::I64 | type_id::F64 | type_id::STRING => 8,
        type_id::ARRAY => 12,
        _ => return Err(Fault::ValueType { key: key.to_owned(), id }),
    };
    let room = input.left() / least;
    if length > room {
        return Err(Fault::ArrayLength { key: key.to_owned(), length, room });
    }
    // Fits: length ≤ room ≤ the file's length in memory.
    let length = length as usize;
    Ok(match id {
        type_id::U8 => Array::U8(input.numbers(length, u8::from_le_bytes)?),
        type_id::I8 => Array::I8(input.numbers(length, i8::from_le_bytes)?),
        type_id::U16 => Array::U16(input.numbers(length, u16::from_le_bytes)?),
        type_id::I16 => Array::I16(input.numbers(length, i16::from_le_bytes)?),
        type_id::U32 => Array::U32(input.numbers(length, u32::from_le_bytes)?),
        type_id::I32 => Array::I32(input.numbers(length, i32::from_le_bytes)?),
        type_id::F32 => Array::F32(input.numbers(length, f32::from_le_bytes)?),
        type_id::U64 => Array::U64(input.numbers(length, u64::from_le_bytes)?),
        type_id::I64 => Array::I64(input.numbers(length, i64::from_le_bytes)?),
        type_id::F64 => Array::F64(input.numbers(length, f64::from_le_bytes)?),
        type_id::BOOL => {
            let bytes = input.take(length as u64, "an array")?;
            Array::Bool(bytes.iter().map(|&byte| boolean(key, byte)).collect::<Result<_, _>>()?)
        }
        type_id::STRING => {
            let mut texts = Vec::with_capacity(length);
            for _ in 0..length {
                texts.push(input.string("a text in an array")?);
            }
            Array::String(texts)
        }
        _ => Array::Array((0..length).map(|_| array(input, key, depth + 1)).collect::<Result<_, _>>()?),
    })
}

fn alignment(metadata: &Metadata) -> Result<u64, Fault> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(&Value::U32(alignment)) => alignment,
        Some(Value::Array(_)) => return Err(Fault::AlignmentType { found: "ARRAY" }),
        Some(Value::String(_)) => return Err(Fault::AlignmentType { found: "STRING" }),
        Some(_) => return Err(Fault::AlignmentType { found: "another number type" }),
    };
    if !alignment.is_power_of_two() {
        return Err(Fault::AlignmentValue(alignment));
    }
    Ok(alignment.into())
}

fn tensor(input: &mut Input, index: u64) -> Result<TensorInfo, Fault> {
    let name = input.string("a tensor's name")?;
    if name.is_empty() {
        return Err(Fault::EmptyTensorName { index });
    }
    let count = input.u32("a tensor's dimension count")?;
    if !(1..=MAX_DIMENSIONS).contains(&count) {
        return Err(Fault::DimensionCount { tensor: name, count });
    }
    let shape = (0..count).map(|_| input.u64("a tensor's dimension")).collect::<Result<Vec<u64>, _>>()?;
    let id = input.u32("a tensor's type")?;
    let offset = input.u64("a tensor's offset")?;
    let kind =
        TensorType::from_id(id).ok_or_else(|| Fault::UnknownTensorType { tensor: name.clone(), id })?;
    check_size(&name, &shape, kind)?;
    Ok(TensorInfo { name, shape, kind, offset, file: 0 })
}

/// Checks that `shape` has a size: no dimension 0, whole blocks in a row, neither elements nor bytes overflow.
pub(super) fn check_size(name: &str, shape: &[u64], kind: TensorType) -> Result<u64, Fault> {
    if shape.is_empty() || shape.len() > MAX_DIMENSIONS as usize {
        return Err(Fault::DimensionCount { tensor: name.to_owned(), count: shape.len() as u32 });
    }
    if shape.contains(&0) {
        return Err(Fault::ZeroDimension { tensor: name.to_owned(), shape: shape.to_vec() });
    }
    let overflow = || Fault::SizeOverflow { tensor: name.to_owned(), shape: shape.to_vec() };
    let block = kind.block_elements();
    if !shape[0].is_multiple_of(block as u64) {
        return Err(Fault::PartialBlock { tensor: name.to_owned(), row: shape[0], kind: kind.name(), block });
    }
    let row_bytes = kind.row_bytes(shape[0]).ok_or_else(overflow)?;
    let elements = shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    // Signed: implementations count elements in int64_t.
    elements.filter(|&count| i64::try_from(count).is_ok()).ok_or_else(overflow)?;
    let bytes = shape[1..].iter().try_fold(row_bytes, |product, &dim| product.checked_mul(dim));
    bytes.filter(|&count| i64::try_from(count).is_ok()).ok_or_else(overflow)
}

/// Names that are not unique, and ranges that are not aligned, not inside the file's `length` bytes or not disjoint.
fn range_faults(head: &Head, length: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut names = HashSet::with_capacity(head.tensors.len());
    let (alignment, end) = (head.alignment, length.saturating_sub(head.data_start));
    for tensor in &head.tensors {
        let (name, offset, bytes) = (|| tensor.name.clone(), tensor.offset, tensor.bytes());
        if !names.insert(tensor.name.as_str()) {
            faults.push(Fault::DuplicateTensor { tensor: name() });
        }
        if !offset.is_multiple_of(alignment) {
            faults.push(Fault::Misaligned { tensor: name(), offset, alignment });
        }
        if offset.checked_add(bytes).is_none_or(|last| last > end) {
            faults.push(Fault::PastEnd { tensor: name(), offset, bytes, end });
        }
    }
    let mut order: Vec<&TensorInfo> = head.tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if let [first, second] = pair
            && first.offset.saturating_add(first.bytes()) > second.offset
        {
            faults.push(Fault::Overlap { first: first.name.clone(), second: second.name.clone() });
        }
    }
    faults
}

/// A cursor over the file that never reads past its end.
struct Input<'a> {
    bytes: &'a [u8],
    /// Bytes consumed; at most `bytes.len()`.
    at: usize,
}

impl<'a> Input<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], Fault> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(Fault::Truncated {
            what,
            at: self.at as u64,
            needed: count,
            end: self.bytes.len() as u64,
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let taken = self.take(N as u64, what)?;
        Ok(taken.try_into().expect("take returns as many bytes as asked"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &'static str) -> Result<String, Fault> {
        let at = self.at as u64;
        let length = self.u64(what)?;
        if length > self.left() {
            return Err(Fault::StringLength { what, at, length, end: self.bytes.len() as u64 });
        }
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Fault::Utf8 { what, at }),
        }
    }

    /// `length` little-endian numbers of `N` bytes each.
    fn numbers<T, const N: usize>(
        &mut self,
        length: usize,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Fault> {
        let bytes = self.take((length as u64).saturating_mul(N as u64), "an array")?;
        let (numbers, _) = bytes.as_chunks::<N>();
        Ok(numbers.iter().map(|number| decode(*number)).collect())
    }

    fn room_for(&self, what: &'static str, count: u64, least: u64) -> Result<(), Fault> {
        let room = self.left() / least;
        if count > room { Err(Fault::Count { what, count, room }) } else { Ok(()) }
    }
}
