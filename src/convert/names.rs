//! The tensors of a `Phi3ForCausalLM`: their names there and in GGUF, and the shapes that config.json implies.

use super::fault::Fault;
use crate::checkpoint::Phi3Config;

/// What a tensor of the checkpoint becomes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expected {
    /// Its name in a GGUF file.
    pub gguf_name: String,
    /// Hugging Face order: rows first.
    pub shape: Vec<u64>,
    /// The fields of config.json that the shape comes from.
    pub fields: &'static str,
}

/// What is expected of the tensor `name`; `None` if a model of this size has none of that name.
pub(super) fn expected(name: &str, config: &Phi3Config) -> Option<Expected> {
    let hidden = u64::from(config.hidden_size);
    let ffn = u64::from(config.intermediate_size);
    let vocab = u64::from(config.vocab_size);
    let make = |gguf_name: &str, shape: &[u64], fields| {
        Some(Expected { gguf_name: gguf_name.to_owned(), shape: shape.to_vec(), fields })
    };
    const EMBEDDING: &str = "vocab_size, hidden_size";
    match name {
        "model.embed_tokens.weight" => return make("token_embd.weight", &[vocab, hidden], EMBEDDING),
        "lm_head.weight" => return make("output.weight", &[vocab, hidden], EMBEDDING),
        "model.norm.weight" => return make("output_norm.weight", &[hidden], "hidden_size"),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let number: u32 = layer.parse().ok().filter(|number| *number < config.num_hidden_layers)?;
    if number.to_string() != layer {
        return None;
    }
    let qkv = config.qkv_rows();
    let (part, shape, fields): (_, &[u64], _) = match part {
        "input_layernorm.weight" => ("attn_norm", &[hidden], "hidden_size"),
        "self_attn.qkv_proj.weight" => {
            ("attn_qkv", &[qkv, hidden], "hidden_size, num_attention_heads, num_key_value_heads")
        }
        "self_attn.o_proj.weight" => ("attn_output", &[hidden, hidden], "hidden_size"),
        "post_attention_layernorm.weight" => ("ffn_norm", &[hidden], "hidden_size"),
        "mlp.gate_up_proj.weight" => ("ffn_up", &[2 * ffn, hidden], "hidden_size, intermediate_size"),
        "mlp.down_proj.weight" => ("ffn_down", &[hidden, ffn], "hidden_size, intermediate_size"),
        _ => return None,
    };
    make(&format!("blk.{layer}.{part}.weight"), shape, fields)
}

/// Whether the tensor holds nothing that a model needs: buffers that old versions saved with it.
pub(super) fn is_ignored(name: &str) -> bool {
    [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Fails if one of the tensors that every such model has is not among those that `has` knows.
pub(super) fn check_complete(config: &Phi3Config, has: impl Fn(&str) -> bool) -> Result<(), Fault> {
    const PARTS: [&str; 6] = [
        "input_layernorm",
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ];
    let require = |name: String| if has(&name) { Ok(()) } else { Err(Fault::MissingTensor(name)) };
    require("model.embed_tokens.weight".into())?;
    for layer in 0..config.num_hidden_layers {
        for part in PARTS {
            require(format!("model.layers.{layer}.{part}.weight"))?;
        }
    }
    require("model.norm.weight".into())?;
    if !config.tie_word_embeddings && !has("lm_head.weight") {
        return Err(Fault::MissingHead("lm_head.weight".into()));
    }
    Ok(())
}
