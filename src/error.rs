//! The one error type of the library.
//!
//! Every message is a sentence that names the file, the thing in it that is wrong, what was expected
//! and what to do. Modules that parse a format have a typed fault enum of their own (one variant a
//! fault) and carry it here in [`Error::Invalid`].

use std::path::{Path, PathBuf};

/// What a library call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a library call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        path: PathBuf,
        /// A verb for the message: "open", "read", "write", "create", "rename" …
        action: &'static str,
        /// Part of the message, and for that reason no `source`: a printed chain would say it twice.
        cause: std::io::Error,
    },
    /// A file is not what it says it is; `fault` says which thing in it, and what was expected.
    #[error("{}: {fault}", path.display())]
    Invalid { path: PathBuf, fault: Box<dyn std::error::Error + Send + Sync> },
    /// A server refused, failed or cannot be reached; `what` is the model or the file that it was asked for.
    #[error("{what}: {fault}")]
    Remote { what: String, fault: Box<dyn std::error::Error + Send + Sync> },
    /// The input is well-formed but nothing here can work with it; the text lists what can be.
    #[error("{0}")]
    Unsupported(String),
    /// The request contradicts itself or the model (a wrong flag, an unknown type name).
    #[error("{0}")]
    Usage(String),
    /// The machine lacks memory or disk: what is needed and what there is.
    #[error("{0}")]
    Resources(String),
    /// A graphics processor refused or was lost: which one, and why.
    #[error("{0}")]
    Device(String),
    /// The user asked to stop (Ctrl-C, SIGTERM); nothing was left behind.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An [`Error::Io`] for `path`; `action` completes "cannot … PATH".
    pub fn io(action: &'static str, path: impl AsRef<Path>, cause: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), action, cause }
    }

    /// An [`Error::Remote`] for `what`.
    pub fn remote(
        what: impl std::fmt::Display,
        fault: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Remote { what: what.to_string(), fault: fault.into() }
    }

    /// An [`Error::Invalid`] for `path`.
    pub fn invalid(
        path: impl AsRef<Path>,
        fault: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Invalid { path: path.as_ref().to_owned(), fault: fault.into() }
    }
}
