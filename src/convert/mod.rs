//! HF checkpoint to GGUF.
