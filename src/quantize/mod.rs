//! GGUF (or checkpoint) to a quantized GGUF.
