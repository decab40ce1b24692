//! What can be wrong with a model's tokenizer or chat template.

/// Why a tokenizer or chat template could not be made from a model's metadata.
///
/// The caller knows the file: `.map_err(|fault| Error::invalid(path, fault))`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A key that every tokenizer needs is absent.
    #[error(
        "the metadata has no {0}; a model needs its vocabulary to turn text into tokens: convert it again with its tokenizer files"
    )]
    Missing(&'static str),
    /// A key is there with a type that it must not have.
    #[error("the metadata's {key} cannot be read: {reason}")]
    Key { key: String, reason: String },
    /// Two arrays that belong together differ in length.
    #[error(
        "the metadata's {key} has {found} entries where the vocabulary has {expected}; both must be equally long"
    )]
    Length { key: &'static str, found: usize, expected: usize },
    /// A token id outside the vocabulary.
    #[error("the metadata's {key} names token {id}, but the vocabulary has {size} entries")]
    TokenId { key: String, id: i64, size: usize },
    /// The vocabulary has no entries, or more than can be numbered.
    #[error("the vocabulary has {0} entries; expected 1 to 16,777,216")]
    VocabularySize(usize),
    /// tokenizer.json, which GGUF embeds as `tokenizer.huggingface.json`, is malformed.
    #[error("tokenizer.json (or tokenizer.huggingface.json in the metadata) is not a tokenizer: {0}")]
    Json(String),
    /// A well-formed tokenizer of a kind that is not implemented.
    #[error("{0}")]
    Unsupported(String),
    /// The chat template does not parse.
    #[error("the chat template is not valid: {0}")]
    Template(String),
    /// The chat template parses but failed on these messages.
    #[error("the chat template failed: {0}")]
    Render(String),
}

impl From<Fault> for crate::Error {
    /// For callers that have no path to name.
    fn from(fault: Fault) -> Self {
        Self::Unsupported(fault.to_string())
    }
}
