//! GGUF files: reading (single and split) and writing.
//!
//! A leaf: no tensor arithmetic here.

mod tensor_type;

pub use tensor_type::TensorType;

/// An opened GGUF model.
pub struct Gguf {}
