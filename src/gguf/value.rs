//! Metadata: keys with typed values, in the file's order.

use std::collections::HashMap;

use super::Fault;

/// A metadata value. Numbers in the file: `gguf_type` in gguf.h.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array; all elements have one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    Array(Vec<Array>),
}

/// The type numbers a file uses.
pub(super) mod type_id {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

impl Value {
    /// The type's number in a file.
    pub fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => type_id::U8,
            Value::I8(_) => type_id::I8,
            Value::U16(_) => type_id::U16,
            Value::I16(_) => type_id::I16,
            Value::U32(_) => type_id::U32,
            Value::I32(_) => type_id::I32,
            Value::F32(_) => type_id::F32,
            Value::Bool(_) => type_id::BOOL,
            Value::String(_) => type_id::STRING,
            Value::Array(_) => type_id::ARRAY,
            Value::U64(_) => type_id::U64,
            Value::I64(_) => type_id::I64,
            Value::F64(_) => type_id::F64,
        }
    }

    /// The type's name as the format's documents write it: "UINT32", "ARRAY[STRING]".
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("ARRAY[{}]", array.element_type_name()),
            scalar => scalar_name(scalar.type_id()).to_owned(),
        }
    }

    /// The value as an integer, if it is of an integer type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_owned())
    }
}

impl Array {
    /// The element type's number in a file.
    pub fn element_type_id(&self) -> u32 {
        match self {
            Array::U8(_) => type_id::U8,
            Array::I8(_) => type_id::I8,
            Array::U16(_) => type_id::U16,
            Array::I16(_) => type_id::I16,
            Array::U32(_) => type_id::U32,
            Array::I32(_) => type_id::I32,
            Array::F32(_) => type_id::F32,
            Array::Bool(_) => type_id::BOOL,
            Array::String(_) => type_id::STRING,
            Array::U64(_) => type_id::U64,
            Array::I64(_) => type_id::I64,
            Array::F64(_) => type_id::F64,
            Array::Array(_) => type_id::ARRAY,
        }
    }

    /// The element type's name, such as "STRING".
    pub fn element_type_name(&self) -> &'static str {
        scalar_name(self.element_type_id())
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Array(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn scalar_name(id: u32) -> &'static str {
    match id {
        type_id::U8 => "UINT8",
        type_id::I8 => "INT8",
        type_id::U16 => "UINT16",
        type_id::I16 => "INT16",
        type_id::U32 => "UINT32",
        type_id::I32 => "INT32",
        type_id::F32 => "FLOAT32",
        type_id::BOOL => "BOOL",
        type_id::STRING => "STRING",
        type_id::U64 => "UINT64",
        type_id::I64 => "INT64",
        type_id::F64 => "FLOAT64",
        _ => "ARRAY",
    }
}

/// Keys and values, in the order in which they were set or read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Position in `entries` by key.
    index: HashMap<String, usize>,
}

impl Metadata {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&at| self.entries.get(at)).map(|(_, value)| value)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Sets `key`; one that exists keeps its place. Returns the value it had.
    pub fn set(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        let key = key.into();
        if let Some(&at) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Removes `key` and returns its value; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        let (_, value) = self.entries.remove(at);
        self.index.values_mut().filter(|position| **position > at).for_each(|position| *position -= 1);
        Some(value)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A non-negative integer of any integer type that fits 32 bits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Fault> {
        self.typed(key, "a non-negative 32-bit integer", |value| {
            value.as_integer().and_then(|number| u32::try_from(number).ok())
        })
    }

    /// A FLOAT32, or a FLOAT64 rounded to one.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Fault> {
        self.typed(key, "FLOAT32", |value| match *value {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.typed(key, "BOOL", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>, Fault> {
        self.typed(key, "STRING", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, Fault> {
        self.typed(key, "ARRAY[STRING]", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, Fault> {
        self.typed(key, "ARRAY[FLOAT32]", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, Fault> {
        self.typed(key, "ARRAY[INT32]", |value| match value {
            Value::Array(Array::I32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        take: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| Fault::WrongType {
            key: key.to_owned(),
            found: value.type_name(),
            expected,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_through_set_and_remove() {
        let mut metadata = Metadata::new();
        for key in ["a", "b", "c", "d"] {
            metadata.set(key, Value::U32(1));
        }
        assert_eq!(metadata.set("b", Value::Bool(true)), Some(Value::U32(1)));
        assert_eq!(metadata.remove("a"), Some(Value::U32(1)));
        assert_eq!(metadata.remove("a"), None);
        metadata.set("a", Value::U32(2));
        assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["b", "c", "d", "a"]);
        assert_eq!(metadata.get("d"), Some(&Value::U32(1)));
        assert_eq!(metadata.get("a"), Some(&Value::U32(2)));
    }

    #[test]
    fn getters_name_the_key_and_both_types() {
        let mut metadata = Metadata::new();
        metadata.set("n", Value::I64(-1));
        metadata.set("list", Value::Array(Array::U8(vec![1])));
        assert_eq!(metadata.u32("missing"), Ok(None));
        let fault = metadata.u32("n").unwrap_err().to_string();
        assert_eq!(fault, "metadata key \"n\" is of type INT64; a non-negative 32-bit integer was expected");
        assert!(metadata.strings("list").unwrap_err().to_string().contains("ARRAY[UINT8]"));
        metadata.set("n", Value::U64(7));
        assert_eq!(metadata.u32("n"), Ok(Some(7)));
    }
}
