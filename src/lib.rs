//! `phi`: Microsoft's Phi models, from a Hugging Face checkpoint to fast answers on the user's own machine.
//!
//! Imports point downward only; `docs/architecture.md` has the picture and `tests/architecture.rs` checks it.

pub mod cli;

pub mod bench;
pub mod check;
pub mod convert;
pub mod imatrix;
pub mod perplexity;
pub mod quantize;

pub mod engine;

pub mod model;
pub mod text;

pub mod backend;
pub mod kernel;
pub mod quant;
pub mod simd;

pub mod checkpoint;
pub mod error;
pub mod gguf;
pub mod hub;
pub mod machine;

pub use error::{Error, Result};

pub mod fs;
