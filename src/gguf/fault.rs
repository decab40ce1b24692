//! What can be wrong with a GGUF file: one variant a fault.

/// A fault in a GGUF file. The message completes "FILE: …".
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error("not a GGUF file: it starts with {found:?}, a GGUF file starts with \"GGUF\"")]
    NotGguf { found: String },
    #[error(
        "the file ends at byte {end}, inside {what} (which needs {needed} bytes from byte {at}); it is probably an incomplete download or copy, get it again"
    )]
    Truncated { what: &'static str, at: u64, needed: u64, end: u64 },
    #[error(
        "this is a big-endian GGUF file; only little-endian ones can be read, convert the model again on a little-endian machine"
    )]
    BigEndian,
    #[error("GGUF version {0} is not supported; versions 2 and 3 are, convert the model again")]
    Version(u32),
    #[error(
        "the header announces {count} {what}, but the rest of the file has room for {room} at most; the file is damaged"
    )]
    Count { what: &'static str, count: u64, room: u64 },
    #[error("metadata key number {index} is empty; keys have names such as general.architecture")]
    EmptyKey { index: u64 },
    #[error("metadata key {key:?} occurs twice; each key may occur once")]
    DuplicateKey { key: String },
    #[error("{what} at byte {at} is not valid UTF-8 text")]
    Utf8 { what: &'static str, at: u64 },
    #[error("{what} at byte {at} claims to be {length} bytes long, but the file ends at byte {end}")]
    StringLength { what: &'static str, at: u64, length: u64, end: u64 },
    #[error("metadata key {key:?} has value type {id}; types 0 to 12 exist")]
    ValueType { key: String, id: u32 },
    #[error("metadata key {key:?} holds the byte {found} as a boolean; 0 or 1 was expected")]
    BoolValue { key: String, found: u8 },
    #[error(
        "metadata key {key:?} is an array of {length} elements, but the rest of the file has room for {room} at most"
    )]
    ArrayLength { key: String, length: u64, room: u64 },
    #[error("metadata key {key:?} nests arrays more than {limit} deep")]
    ArrayNesting { key: String, limit: usize },
    #[error("general.alignment is of type {found}; UINT32 was expected")]
    AlignmentType { found: &'static str },
    #[error("general.alignment is {0}; a power of two was expected")]
    AlignmentValue(u32),
    #[error("tensor number {index} has no name")]
    EmptyTensorName { index: u64 },
    #[error("tensor {tensor:?} occurs twice; each tensor may occur once")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor:?} has {count} dimensions; 1 to 4 were expected")]
    DimensionCount { tensor: String, count: u32 },
    #[error("tensor {tensor:?} has shape {shape:?}; every dimension must be at least 1")]
    ZeroDimension { tensor: String, shape: Vec<u64> },
    #[error(
        "tensor {tensor:?} of type number {id}: no such type is known; a newer version of this program may know it"
    )]
    UnknownTensorType { tensor: String, id: u32 },
    #[error(
        "tensor {tensor:?} has rows of {row} elements, which is no whole number of {kind} blocks ({block} elements each)"
    )]
    PartialBlock { tensor: String, row: u64, kind: &'static str, block: usize },
    #[error("tensor {tensor:?} has shape {shape:?}, whose size overflows 64 bits")]
    SizeOverflow { tensor: String, shape: Vec<u64> },
    #[error(
        "tensor {tensor:?} starts at offset {offset}, which is no multiple of the file's alignment, {alignment}"
    )]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error(
        "tensor {tensor:?} needs {bytes} bytes from offset {offset} of the data, but the data ends at {end}; the file is probably an incomplete download or copy, get it again"
    )]
    PastEnd { tensor: String, offset: u64, bytes: u64, end: u64 },
    #[error("tensors {first:?} and {second:?} overlap in the file")]
    Overlap { first: String, second: String },
    #[error("metadata key {key:?} is of type {found}; {expected} was expected")]
    WrongType { key: String, found: String, expected: &'static str },
    #[error("metadata key {0:?} is missing")]
    MissingKey(String),
    #[error(
        "this is one of {count} parts of a split model, but it is not named like one (NAME-00001-of-{count:05}.gguf), so the others cannot be found; give it its name back, or merge the parts into one file"
    )]
    SplitName { count: u32 },
    #[error(
        "the file is named as part {name_no} of {name_count}, but says in split.no and split.count that it is part {no} of {count}"
    )]
    SplitNumber { name_no: u32, name_count: u32, no: u32, count: u32 },
    #[error("part {no} of {count} of this split model is missing; put it beside the others")]
    SplitMissing { no: u32, count: u32 },
    #[error(
        "the parts of this split model hold {found} tensors together; split.tensors.count says {expected}"
    )]
    SplitTensorCount { found: usize, expected: u64 },
}
