//! Types of the metadata keys that other programs insist on.

use super::Report;
use crate::gguf::{Gguf, Value};

/// Keys and the types that llama.cpp reads them as; `*` stands for the architecture's name.
const TYPES: &[(&str, &str)] = &[
    ("general.architecture", "STRING"),
    ("general.name", "STRING"),
    ("general.type", "STRING"),
    ("general.file_type", "UINT32"),
    ("general.quantization_version", "UINT32"),
    ("general.tags", "ARRAY[STRING]"),
    ("general.languages", "ARRAY[STRING]"),
    ("*.context_length", "UINT32"),
    ("*.embedding_length", "UINT32"),
    ("*.block_count", "UINT32"),
    ("*.feed_forward_length", "UINT32"),
    ("*.vocab_size", "UINT32"),
    ("*.expert_count", "UINT32"),
    ("*.expert_used_count", "UINT32"),
    ("*.attention.head_count", "UINT32"),
    ("*.attention.head_count_kv", "UINT32"),
    ("*.attention.sliding_window", "UINT32"),
    ("*.attention.layer_norm_rms_epsilon", "FLOAT32"),
    ("*.attention.layer_norm_epsilon", "FLOAT32"),
    ("*.rope.dimension_count", "UINT32"),
    ("*.rope.freq_base", "FLOAT32"),
    ("*.rope.scaling.type", "STRING"),
    ("*.rope.scaling.factor", "FLOAT32"),
    ("*.rope.scaling.attn_factor", "FLOAT32"),
    ("*.rope.scaling.original_context_length", "UINT32"),
    ("tokenizer.ggml.model", "STRING"),
    ("tokenizer.ggml.pre", "STRING"),
    ("tokenizer.ggml.tokens", "ARRAY[STRING]"),
    ("tokenizer.ggml.scores", "ARRAY[FLOAT32]"),
    ("tokenizer.ggml.token_type", "ARRAY[INT32]"),
    ("tokenizer.ggml.merges", "ARRAY[STRING]"),
    ("tokenizer.ggml.bos_token_id", "UINT32"),
    ("tokenizer.ggml.eos_token_id", "UINT32"),
    ("tokenizer.ggml.eot_token_id", "UINT32"),
    ("tokenizer.ggml.unknown_token_id", "UINT32"),
    ("tokenizer.ggml.padding_token_id", "UINT32"),
    ("tokenizer.ggml.add_bos_token", "BOOL"),
    ("tokenizer.ggml.add_eos_token", "BOOL"),
    ("tokenizer.ggml.add_space_prefix", "BOOL"),
    ("tokenizer.chat_template", "STRING"),
];

/// Keys that may also be an array, with a value for each layer.
const BY_LAYER: &[&str] = &["*.feed_forward_length", "*.attention.head_count", "*.attention.head_count_kv"];

/// Reports keys of a type that they are not read as, and values that are not finite.
pub fn check(gguf: &Gguf, report: &mut Report) {
    let architecture = report.architecture.clone().unwrap_or_default();
    let metadata = gguf.metadata();
    for (pattern, expected) in TYPES {
        let key = pattern.replace('*', &architecture);
        let Some(value) = metadata.get(&key) else { continue };
        let by_layer = BY_LAYER.contains(pattern) && matches!(value, Value::Array(_));
        // An empty array may have been written with any element type.
        let empty = matches!(value, Value::Array(array) if array.is_empty());
        if value.type_name() != *expected && !by_layer && !empty {
            let found = value.type_name();
            report.error("metadata", format!("{key} is of type {found}; {expected} was expected"));
        }
    }
    for (key, value) in metadata.iter() {
        let finite = match value {
            Value::F32(number) => number.is_finite(),
            Value::F64(number) => number.is_finite(),
            _ => true,
        };
        if !finite {
            report.error("metadata", format!("{key} is NaN or infinite"));
        }
    }
}
