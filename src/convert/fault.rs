//! Why a well-formed checkpoint cannot be converted: its parts contradict each other or are not supported.

/// A fault found while planning a conversion. The message completes "FOLDER: …".
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error("tensor {0:?} is missing; download the whole checkpoint, or correct config.json")]
    MissingTensor(String),
    #[error(
        "tensor {0:?} is missing, and config.json does not say that the head is tied to the embeddings (tie_word_embeddings)"
    )]
    MissingHead(String),
    #[error("tensor {tensor:?} has shape {found:?}, but config.json ({fields}) asks for {expected:?}")]
    Shape { tensor: String, found: Vec<u64>, expected: Vec<u64>, fields: &'static str },
    #[error("tensor {0:?} belongs to no part of a model of the kind and size that config.json describes")]
    UnknownTensor(String),
    #[error("tensor {tensor:?} is stored as {found}; BF16, F16 or F32 was expected")]
    DataType { tensor: String, found: String },
    #[error(
        "tensor {tensor:?} is stored as {found}, but other experts of its layer as {expected}; all must be of one type"
    )]
    ExpertType { tensor: String, found: String, expected: String },
    #[error(
        "the folder has neither tokenizer.model nor tokenizer.json (nor, for Phi-3-small, cl100k_base.tiktoken); download the whole checkpoint"
    )]
    NoTokenizer,
    #[error("its tokenizer cannot be used: {0}")]
    Tokenizer(String),
    #[error(
        "its tokenizer is of the kind {0}; supported are BPE, byte-level or with byte_fallback, SentencePiece's tokenizer.model, and Phi-3-small's cl100k_base.tiktoken"
    )]
    TokenizerKind(String),
    #[error("tokenizer.json cannot stand in for the missing tokenizer.model: {0}")]
    TokenizerJson(&'static str),
    #[error(
        "token {token:?} has the id {id}, but the model has {vocab_size} tokens (vocab_size in config.json)"
    )]
    TokenId { token: String, id: u64, vocab_size: u64 },
    #[error("the entry of added token {token} is malformed; \"id\" and \"content\" were expected")]
    AddedToken { token: String },
}
