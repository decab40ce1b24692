//! The hyper-parameters' keys, in the order in which convert_hf_to_gguf.py writes them.
//!
//! phi2, phi3 and phimoe are llama.cpp's architectures. phi3small is not one of them: its keys follow the conventions of
//! those (docs/formats.md).

use crate::checkpoint::{Architecture, ModelConfig, Phi3Small};
use crate::gguf::{Metadata, Value};

/// Writes LongRoPE's attention factor, which llama.cpp computes from the two context lengths.
pub(super) fn write_attention_factor(config: &ModelConfig, metadata: &mut Metadata) {
    let key = format!("{}.rope.scaling.attn_factor", config.architecture.name());
    metadata.set(key, Value::F32(config.rope_attention_factor() as f32));
}

/// Writes the numbers that shape the model, and `general.file_type`.
pub(super) fn write(config: &ModelConfig, file_type: u32, metadata: &mut Metadata) {
    let arch = config.architecture.name();
    let mut set = |key: &str, value: Value| drop(metadata.set(format!("{arch}.{key}"), value));
    let phi2 = config.architecture == Architecture::Phi2;
    set("context_length", Value::U32(config.max_position_embeddings));
    if !phi2 {
        set("rope.scaling.original_context_length", Value::U32(config.original_max_position_embeddings));
    }
    set("embedding_length", Value::U32(config.hidden_size));
    set("feed_forward_length", Value::U32(config.intermediate_size));
    set("block_count", Value::U32(config.num_hidden_layers));
    set("attention.head_count", Value::U32(config.num_attention_heads));
    set("attention.head_count_kv", Value::U32(config.num_key_value_heads));
    let norm = match config.architecture {
        Architecture::Phi2 | Architecture::Phi3Small(_) => "layer_norm_epsilon",
        // Of PhiMoE's LayerNorm too: llama.cpp reads it under this name.
        Architecture::Phi3 | Architecture::PhiMoe(_) => "layer_norm_rms_epsilon",
    };
    set(&format!("attention.{norm}"), Value::F32(config.norm_eps as f32));
    set("rope.dimension_count", Value::U32(config.rope_dimensions()));
    // Where the key is missing, 10,000 is meant; every Phi-2 has that, and its files have no such key.
    if !phi2 || config.rope_theta != 10000.0 {
        set("rope.freq_base", Value::F32(config.rope_theta as f32));
    }
    metadata.set("general.file_type", Value::U32(file_type));
    match config.architecture {
        Architecture::Phi2 => drop(metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(false))),
        Architecture::Phi3 | Architecture::PhiMoe(_) => {
            let window = Value::U32(config.sliding_window.unwrap_or(0));
            metadata.set(format!("{arch}.attention.sliding_window"), window);
        }
        Architecture::Phi3Small(small) => write_small(config, &small, metadata),
    }
    if let Architecture::PhiMoe(experts) = config.architecture {
        metadata.set("phimoe.expert_used_count", Value::U32(experts.used));
        metadata.set("phimoe.expert_count", Value::U32(experts.count));
    }
}

fn write_small(config: &ModelConfig, small: &Phi3Small, metadata: &mut Metadata) {
    let arch = config.architecture.name();
    let mut set = |key: &str, value: Value| drop(metadata.set(format!("{arch}.{key}"), value));
    set("attention.scale", Value::F32(small.attention_scale as f32));
    set("embedding_scale", Value::F32(small.embedding_multiplier as f32));
    set("logit_scale", Value::F32((1.0 / small.width_multiplier) as f32));
    if let Some(limit) = small.gegelu_limit {
        set("feed_forward.limit", Value::F32(limit as f32));
    }
    let sparse = small.block_sparse;
    set("attention.block_sparse.block_size", Value::U32(sparse.block_size));
    set("attention.block_sparse.local_blocks", Value::U32(sparse.local_blocks));
    set("attention.block_sparse.vertical_stride", Value::U32(sparse.vertical_stride));
    set("attention.block_sparse.head_step", Value::U32(sparse.head_step));
    set("attention.block_sparse.dense_every", Value::U32(sparse.dense_every));
}

/// Writes what llama.cpp's keys have no place for.
pub(super) fn write_own_keys(config: &ModelConfig, metadata: &mut Metadata) {
    if let Some((long, short)) = config.rope_factors.as_ref().and_then(|factors| factors.scales) {
        metadata.set("phi.rope.long_scale", Value::F32(long as f32));
        metadata.set("phi.rope.short_scale", Value::F32(short as f32));
    }
    if let Architecture::PhiMoe(experts) = config.architecture {
        metadata.set("phi.router.jitter_noise", Value::F32(experts.router_jitter_noise as f32));
        if u64::from(config.hidden_size) != config.q_rows() {
            metadata.set("phimoe.attention.key_length", Value::U32(config.head_dim));
            metadata.set("phimoe.attention.value_length", Value::U32(config.head_dim));
        }
    }
}
