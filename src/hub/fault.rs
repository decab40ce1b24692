//! What can go wrong between here and the hub.

use crate::fs::human_bytes;

/// Why the hub, or a server in its place, did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error(
        "{0:?} is no name of a model on the hub; expected USER/MODEL, as in microsoft/Phi-3.5-mini-instruct"
    )]
    RepoName(String),
    #[error("{endpoint} cannot be reached: {cause}; check the connection")]
    Unreachable { endpoint: String, cause: String },
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error(
        "there is no such model, or it is private; check the name, or set HF_TOKEN to a token that may read it"
    )]
    NoSuchRepo,
    #[error("the model has no such file")]
    NoSuchFile,
    #[error(
        "the model is gated: accept its licence on {page} and set HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)"
    )]
    Gated { page: String },
    #[error("the token was refused; set HF_TOKEN to a valid one, or unset it for a public model")]
    TokenRefused,
    #[error(
        "access was denied; accept the licence on {page} if it asks for that, and set HF_TOKEN to a token that may read the model"
    )]
    Denied { page: String },
    #[error("the hub answered with status {0}; try again later")]
    Status(u16),
    #[error("the hub's answer makes no sense: {0}")]
    Answer(String),
    #[error("the hub lists a file {0:?}, which is no name to write to; nothing was downloaded")]
    FileName(String),
    #[error(
        "the download broke off after {} of {}: {cause}; run the command again to go on from there",
        human_bytes(*done),
        human_bytes(*of)
    )]
    BrokeOff { done: u64, of: u64, cause: String },
    #[error("what arrived has the SHA-256 {found}, the hub says {expected}; it was thrown away, try again")]
    Checksum { found: String, expected: String },
    #[error("{0}")]
    NothingToRun(String),
    #[error(
        "it has not been downloaded yet; `phi run -hf` does that, unless --offline or HF_HUB_OFFLINE forbids it"
    )]
    NotThere,
}

impl Fault {
    /// Whether asking again may help.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken(_) | Self::Status(408 | 429 | 500..))
    }
}
