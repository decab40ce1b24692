//! What can be wrong with a checkpoint folder: one variant a fault.

/// A fault in a checkpoint. The message completes "FILE: …".
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error("it is a file; a checkpoint is the folder that config.json and the .safetensors files are in")]
    NotAFolder,
    #[error(
        "the folder has no {0}, so it is no Hugging Face checkpoint; give the folder that config.json and the .safetensors files are in"
    )]
    MissingFile(&'static str),
    #[error("not valid JSON: {0}; get the file again")]
    Json(String),
    #[error("the file is not valid UTF-8 text")]
    Utf8,
    #[error("the file is {bytes} bytes long; at most {limit} were expected")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("the field {field:?} is missing")]
    MissingField { field: String },
    #[error("the field {field:?} is {found}; {expected} was expected")]
    Field { field: String, found: String, expected: String },
    #[error("the folder has no .safetensors files; {hint}")]
    NoWeights { hint: &'static str },
    #[error("it names the weight file {0:?}, which is no plain file name")]
    ShardName(String),
    #[error("the weight file {shard:?}, which {index} names, is missing; download it")]
    MissingShard { shard: String, index: &'static str },
    #[error("not a valid safetensors file: {0}; it is probably an incomplete download, get it again")]
    Safetensors(String),
    #[error("tensor {tensor:?} is in {first:?} and in {second:?}; each tensor may occur once")]
    DuplicateTensor { tensor: String, first: String, second: String },
    #[error(
        "tensor {tensor:?} should be in {shard:?} according to {index}, but is not there; get the file again"
    )]
    NotInShard { tensor: String, shard: String, index: &'static str },
    #[error("tensor {tensor:?} in {shard:?} is not listed in {index}; get both again")]
    NotInIndex { tensor: String, shard: String, index: &'static str },
    #[error("tensor {tensor:?} is stored as {found}; BF16, F16 or F32 was expected")]
    DataType { tensor: String, found: String },
    #[error("no valid SentencePiece model: {0}; get the file again")]
    SentencePiece(String),
    #[error("line {line} is no line of a tiktoken vocabulary: {reason}")]
    Tiktoken { line: usize, reason: &'static str },
}
