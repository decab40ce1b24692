//! Which part of the model a tensor is, told from its name, and whether it may be quantized at all.

/// The part of the model a tensor belongs to, as far as recipes tell parts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    TokenEmbedding,
    Output,
    /// Query, key and value in one matrix, as phi3 has it.
    AttentionQkv,
    AttentionKvB,
    AttentionV,
    AttentionK,
    AttentionQ,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

/// Parts of a name and the role they give, in the order they are looked for.
const BY_PART: &[(&str, Role)] = &[
    ("attn_qkv.weight", Role::AttentionQkv),
    ("attn_kv_b.weight", Role::AttentionKvB),
    ("attn_v.weight", Role::AttentionV),
    ("attn_k.weight", Role::AttentionK),
    ("attn_q.weight", Role::AttentionQ),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::FfnUp),
    ("ffn_gate", Role::FfnGate),
    ("ffn_down", Role::FfnDown),
];

impl Role {
    /// The role of the tensor called `name`.
    pub fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::TokenEmbedding,
            _ => BY_PART.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, role)| *role),
        }
    }

    /// Whether the tensor holds attention values, which suffer most from few bits.
    pub fn holds_values(self) -> bool {
        matches!(self, Self::AttentionV | Self::AttentionQkv | Self::AttentionKvB)
    }
}

/// Names kept as they are, in full.
const KEPT_NAMES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// Parts of names kept as they are: norms, routers and other small or sensitive tensors.
const KEPT_PARTS: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whether a recipe may change the type of the tensor `name` of `shape` (row length first): a matrix
/// whose name ends in "weight" and that is none of the small ones kept as they are.
pub fn may_quantize(name: &str, shape: &[u64]) -> bool {
    // Trailing dimensions of 1 do not count: [3072, 1] is a vector.
    shape.iter().skip(1).any(|&n| n > 1)
        && name.ends_with("weight")
        && !KEPT_NAMES.contains(&name)
        && !KEPT_PARTS.iter().any(|part| name.contains(part))
}

/// The layer a tensor belongs to: N in "blk.N.…"; -1 without one, as llama.cpp orders tensors.
pub fn layer_of(name: &str) -> i64 {
    let Some(rest) = name.strip_prefix("blk.") else { return -1 };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits).and_then(|number| number.parse::<i32>().ok()).map_or(-1, i64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_names() {
        assert_eq!(Role::of("blk.3.attn_qkv.weight"), Role::AttentionQkv);
        assert_eq!(Role::of("blk.3.ffn_down_exps.weight"), Role::FfnDown);
        assert_eq!(Role::of("output.weight"), Role::Output);
        assert_eq!(Role::of("blk.0.attn_output.weight"), Role::AttentionOutput);
        assert_eq!(Role::of("blk.3.attn_qkv.bias"), Role::Other);
        assert_eq!(Role::of("output_norm.weight"), Role::Other);
    }

    #[test]
    fn vectors_norms_routers_and_biases_are_kept() {
        assert!(may_quantize("blk.0.ffn_up.weight", &[256, 512]));
        assert!(may_quantize("blk.0.ffn_up_exps.weight", &[256, 1, 8]));
        assert!(!may_quantize("rope_factors_long.weight", &[48]));
        assert!(!may_quantize("blk.0.ffn_up.weight", &[256, 1]));
        assert!(!may_quantize("blk.0.attn_norm.weight", &[256, 2]));
        assert!(!may_quantize("blk.0.ffn_gate_inp.weight", &[256, 16]));
        assert!(!may_quantize("blk.0.ffn_up.bias", &[256, 16]));
    }

    #[test]
    fn layers_are_read_from_names() {
        assert_eq!(layer_of("blk.12.attn_norm.weight"), 12);
        assert_eq!(layer_of("output.weight"), -1);
        assert_eq!(layer_of("blk.x"), -1);
        assert_eq!(layer_of("blk.99999999999.ffn"), -1);
    }
}
