//! The tensors of each architecture: their names in a checkpoint and in GGUF, and the shapes that config.json implies.

use std::collections::HashMap;

use super::fault::Fault;
use crate::checkpoint::{Architecture, ModelConfig};

/// What a tensor of the checkpoint becomes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expected {
    /// Its name in a GGUF file.
    pub gguf_name: String,
    /// Hugging Face order: rows first.
    pub shape: Vec<u64>,
    /// The fields of config.json that the shape comes from.
    pub fields: &'static str,
    pub rows: RowOrder,
    /// Experts are stacked: which one this is, of how many.
    pub expert: Option<(u64, u64)>,
    required: bool,
}

/// Which row of the checkpoint's tensor becomes which of GGUF's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RowOrder {
    #[default]
    AsStored,
    /// Stored gate, up, gate, up, …; written as all of the gate, then all of up.
    Interleaved,
    /// Stored by KV head: its queries, its key, its value, of `head` rows each; written as all queries, keys, values.
    ByKvHead { kv_heads: u64, group: u64, head: u64 },
}

impl RowOrder {
    /// The stored row that becomes row `row` of `rows`.
    pub fn stored(self, row: u64, rows: u64) -> u64 {
        match self {
            Self::AsStored => row,
            Self::Interleaved => {
                let half = rows / 2;
                if row < half { 2 * row } else { 2 * (row - half) + 1 }
            }
            Self::ByKvHead { kv_heads, group, head } => {
                let (number, within) = (row / head, row % head);
                let queries = kv_heads * group;
                let (kv_head, place) = if number < queries {
                    (number / group, number % group)
                } else {
                    // Keys come after the queries of their KV head, values after the keys.
                    ((number - queries) % kv_heads, group + (number - queries) / kv_heads)
                };
                (kv_head * (group + 2) + place) * head + within
            }
        }
    }
}

/// Every tensor that a model of a config.json has.
pub(super) struct Layout {
    by_name: HashMap<String, Expected>,
    /// Names in a fixed order, for naming the first that is missing.
    order: Vec<String>,
}

const HEADS: &str = "hidden_size, num_attention_heads, num_key_value_heads";
const WIDTHS: &str = "hidden_size, intermediate_size";
const EMBEDDING: &str = "vocab_size, hidden_size";

impl Layout {
    /// The tensors of a model of this size.
    pub fn of(config: &ModelConfig) -> Self {
        let mut this = Self { by_name: HashMap::new(), order: Vec::new() };
        let (hidden, vocab) = (u64::from(config.hidden_size), u64::from(config.vocab_size));
        this.add("model.embed_tokens.weight", "token_embd.weight", &[vocab, hidden], EMBEDDING);
        for layer in 0..config.num_hidden_layers {
            this.add_layer(config, layer);
        }
        let (norm, bias) = match config.architecture {
            Architecture::Phi2 | Architecture::Phi3Small(_) => ("model.final_layernorm", true),
            Architecture::Phi3 => ("model.norm", false),
            Architecture::PhiMoe(_) => ("model.norm", true),
        };
        this.add_with_bias(norm, "output_norm", &[hidden], "hidden_size", bias);
        this.add_with_bias("lm_head", "output", &[vocab, hidden], EMBEDDING, config.head_bias);
        if config.tie_word_embeddings
            && let Some(head) = this.by_name.get_mut("lm_head.weight")
        {
            head.required = false;
        }
        this
    }

    fn add_layer(&mut self, config: &ModelConfig, layer: u32) {
        let hidden = u64::from(config.hidden_size);
        let (q, kv, ffn) = (config.q_rows(), config.kv_rows(), u64::from(config.intermediate_size));
        let here = |part: &str| format!("model.layers.{layer}.{part}");
        let there = |part: &str| format!("blk.{layer}.{part}");
        let norm_bias = config.architecture != Architecture::Phi3;
        let mut add = |part: &str, gguf: &str, shape: &[u64], fields, bias: bool| {
            self.add_with_bias(&here(part), &there(gguf), shape, fields, bias);
        };
        add("input_layernorm", "attn_norm", &[hidden], "hidden_size", norm_bias);
        if config.architecture != Architecture::Phi2 {
            add("post_attention_layernorm", "ffn_norm", &[hidden], "hidden_size", norm_bias);
        }
        match config.architecture {
            Architecture::Phi3 => {
                add("self_attn.qkv_proj", "attn_qkv", &[q + 2 * kv, hidden], HEADS, false);
                add("self_attn.o_proj", "attn_output", &[hidden, q], "hidden_size", false);
                add("mlp.gate_up_proj", "ffn_up", &[2 * ffn, hidden], WIDTHS, false);
                add("mlp.down_proj", "ffn_down", &[hidden, ffn], WIDTHS, false);
            }
            Architecture::Phi3Small(_) => {
                add("self_attn.query_key_value", "attn_qkv", &[q + 2 * kv, hidden], HEADS, true);
                add("self_attn.dense", "attn_output", &[hidden, q], "hidden_size", true);
                let widths = "hidden_size, ff_intermediate_size";
                add("mlp.up_proj", "ffn_up", &[2 * ffn, hidden], widths, true);
                add("mlp.down_proj", "ffn_down", &[hidden, ffn], widths, true);
                let kv_heads = u64::from(config.num_key_value_heads);
                let order = RowOrder::ByKvHead {
                    kv_heads,
                    group: u64::from(config.num_attention_heads) / kv_heads,
                    head: u64::from(config.head_dim),
                };
                self.reorder(&here("self_attn.query_key_value"), order);
                self.reorder(&here("mlp.up_proj"), RowOrder::Interleaved);
            }
            Architecture::Phi2 | Architecture::PhiMoe(_) => {
                let bias = config.attention_bias;
                add("self_attn.q_proj", "attn_q", &[q, hidden], HEADS, bias);
                add("self_attn.k_proj", "attn_k", &[kv, hidden], HEADS, bias);
                add("self_attn.v_proj", "attn_v", &[kv, hidden], HEADS, bias);
                if let Architecture::PhiMoe(experts) = config.architecture {
                    add("self_attn.o_proj", "attn_output", &[hidden, q], HEADS, bias);
                    let count = u64::from(experts.count);
                    let fields = "num_local_experts, hidden_size";
                    add("block_sparse_moe.gate", "ffn_gate_inp", &[count, hidden], fields, false);
                    self.add_experts(layer, count, hidden, ffn);
                } else {
                    add("self_attn.dense", "attn_output", &[hidden, q], "hidden_size", true);
                    add("mlp.fc1", "ffn_up", &[ffn, hidden], WIDTHS, true);
                    add("mlp.fc2", "ffn_down", &[hidden, ffn], WIDTHS, true);
                }
            }
        }
    }

    fn add_experts(&mut self, layer: u32, count: u64, hidden: u64, ffn: u64) {
        let parts = [
            ("w1", "ffn_gate_exps", [ffn, hidden]),
            ("w2", "ffn_down_exps", [hidden, ffn]),
            ("w3", "ffn_up_exps", [ffn, hidden]),
        ];
        for (part, gguf, shape) in parts {
            for expert in 0..count {
                let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight");
                self.add(&name, &format!("blk.{layer}.{gguf}.weight"), &shape, WIDTHS);
                if let Some(expected) = self.by_name.get_mut(&name) {
                    expected.expert = Some((expert, count));
                }
            }
        }
    }

    fn add(&mut self, name: &str, gguf_name: &str, shape: &[u64], fields: &'static str) {
        let expected = Expected {
            gguf_name: gguf_name.to_owned(),
            shape: shape.to_vec(),
            fields,
            rows: RowOrder::AsStored,
            expert: None,
            required: true,
        };
        self.by_name.insert(name.to_owned(), expected);
        self.order.push(name.to_owned());
    }

    /// A tensor's weight and, where it has one, its bias of as many elements as the weight has rows.
    fn add_with_bias(
        &mut self,
        name: &str,
        gguf_name: &str,
        shape: &[u64],
        fields: &'static str,
        bias: bool,
    ) {
        self.add(&format!("{name}.weight"), &format!("{gguf_name}.weight"), shape, fields);
        if bias {
            self.add(&format!("{name}.bias"), &format!("{gguf_name}.bias"), &shape[..1], fields);
        }
    }

    /// The rows of `name`'s weight, and the elements of its bias, are in another order.
    fn reorder(&mut self, name: &str, order: RowOrder) {
        for part in ["weight", "bias"] {
            if let Some(expected) = self.by_name.get_mut(&format!("{name}.{part}")) {
                expected.rows = order;
            }
        }
    }

    /// What is expected of the tensor `name`; `None` if the model has none of that name.
    pub fn expected(&self, name: &str) -> Option<&Expected> {
        self.by_name.get(name)
    }

    /// Fails if one of the tensors that every such model has is not among those that `has` knows.
    pub fn check_complete(&self, has: impl Fn(&str) -> bool) -> Result<(), Fault> {
        let required = |name: &&String| self.by_name.get(*name).is_some_and(|expected| expected.required);
        match self.order.iter().filter(required).find(|name| !has(name)) {
            None => Ok(()),
            Some(name) if name == "lm_head.weight" => Err(Fault::MissingHead(name.clone())),
            Some(name) => Err(Fault::MissingTensor(name.clone())),
        }
    }
}

/// Whether the tensor holds nothing that a model needs: buffers that old versions saved with it.
pub(super) fn is_ignored(name: &str) -> bool {
    [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Whether a tensor is F32 in any case: the router, as llama.cpp's converter has it.
pub(super) fn is_always_f32(gguf_name: &str) -> bool {
    gguf_name.ends_with(".ffn_gate_inp.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_what_they_are() {
        let order = |rows: RowOrder, count: u64| -> Vec<u64> {
            (0..count).map(|row| rows.stored(row, count)).collect()
        };
        assert_eq!(order(RowOrder::AsStored, 3), [0, 1, 2]);
        assert_eq!(order(RowOrder::Interleaved, 6), [0, 2, 4, 1, 3, 5]);
        // Two KV heads with two queries each, heads of one row: q q k v q q k v.
        let by_kv_head = RowOrder::ByKvHead { kv_heads: 2, group: 2, head: 1 };
        assert_eq!(order(by_kv_head, 8), [0, 1, 4, 5, 2, 6, 3, 7]);
        // Heads of two rows move as a whole.
        let wide = RowOrder::ByKvHead { kv_heads: 2, group: 1, head: 2 };
        assert_eq!(order(wide, 12), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }
}
