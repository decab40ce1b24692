//! config.json of the Phi architectures, checked: the fields that transformers' `PhiConfig`, `Phi3Config` and
//! `PhimoeConfig`, and Phi-3-small's own configuration, read.

use serde_json::Value;

use super::Fault;

/// The model classes that can be converted, as config.json names them.
pub const SUPPORTED: &[&str] =
    &["PhiForCausalLM", "Phi3ForCausalLM", "Phi3SmallForCausalLM", "PhiMoEForCausalLM", "PhimoeForCausalLM"];

/// Which kind of Phi it is, with what only that kind has.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    /// Phi-1, Phi-1.5, Phi-2.
    Phi2,
    /// Phi-3-mini and -medium, Phi-3.5-mini, Phi-4, Phi-4-mini.
    Phi3,
    Phi3Small(Phi3Small),
    /// Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE.
    PhiMoe(Experts),
}

impl Architecture {
    /// Its name in GGUF.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Phi2 => "phi2",
            Self::Phi3 => "phi3",
            Self::Phi3Small(_) => "phi3small",
            Self::PhiMoe(_) => "phimoe",
        }
    }
}

/// The mixture of experts of a `PhiMoEForCausalLM`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    pub count: u32,
    /// Experts a token goes through; SparseMixer knows 2.
    pub used: u32,
    /// SparseMixer's threshold: experts whose score is this far below the best are no candidates.
    pub router_jitter_noise: f64,
}

/// What only a `Phi3SmallForCausalLM` has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phi3Small {
    /// Embeddings are multiplied by it (muP).
    pub embedding_multiplier: f64,
    /// Logits are divided by it (muP).
    pub width_multiplier: f64,
    /// Attention scores are multiplied by it.
    pub attention_scale: f64,
    /// GEGELU clamps its inputs here.
    pub gegelu_limit: Option<f64>,
    pub block_sparse: BlockSparse,
}

/// Block-sparse attention: a block of queries sees the last blocks of keys, and every so many blocks before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSparse {
    /// Tokens of a block.
    pub block_size: u32,
    /// Blocks back that are seen, the query's own included.
    pub local_blocks: u32,
    /// Of the blocks before, one in so many is seen.
    pub vertical_stride: u32,
    /// Blocks that the pattern moves from head to head.
    pub head_step: u32,
    /// Every so many layers, one attends to everything; 0 for none.
    pub dense_every: u32,
}

/// Hyper-parameters of a model. Fields that config.json leaves out have transformers' defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: u32,
    pub hidden_size: u32,
    /// Width of the feed-forward layer (of one expert); where it is gated, the gate has as many rows again.
    pub intermediate_size: u32,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    /// Dimensions of a head.
    pub head_dim: u32,
    pub max_position_embeddings: u32,
    pub original_max_position_embeddings: u32,
    /// Of the RMSNorm (Phi-3) or LayerNorm (the others).
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub partial_rotary_factor: f64,
    /// LongRoPE's factors, where the model has them.
    pub rope_factors: Option<RopeFactors>,
    /// Tokens a position attends to; `None` for all.
    pub sliding_window: Option<u32>,
    pub tie_word_embeddings: bool,
    /// Whether the attention's projections have biases.
    pub attention_bias: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
}

/// LongRoPE: a factor per pair of rotated dimensions, for long and for short sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFactors {
    pub long: Vec<f64>,
    pub short: Vec<f64>,
    /// What cosines and sines are multiplied by, where config.json says: for long and for short sequences.
    pub scales: Option<(f64, f64)>,
}

impl ModelConfig {
    /// Reads and checks a config.json's fields; `class` is one of [`SUPPORTED`].
    pub fn from_json(class: &str, json: &Value) -> Result<Self, Fault> {
        let config = match class {
            "PhiForCausalLM" => Self::phi2(json)?,
            "Phi3SmallForCausalLM" => Self::phi3_small(json)?,
            "PhiMoEForCausalLM" | "PhimoeForCausalLM" => Self::phi_moe(json)?,
            _ => Self::phi3(json)?,
        };
        config.check(json)?;
        Ok(config)
    }

    fn phi2(json: &Value) -> Result<Self, Fault> {
        expect(json, "hidden_act", &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"], "gelu_new")?;
        forbid(json, "qk_layernorm")?;
        let rope = Rope::of(json)?;
        if rope.factors()?.is_some() {
            return Err(field("rope_scaling", rope.json, "null: Phi-2 has plain RoPE"));
        }
        let hidden_size = count(json, "hidden_size", None)?;
        let num_attention_heads = count(json, "num_attention_heads", None)?;
        let max_position_embeddings = count(json, "max_position_embeddings", Some(2048))?;
        Ok(Self {
            architecture: Architecture::Phi2,
            vocab_size: count(json, "vocab_size", Some(51200))?,
            hidden_size,
            intermediate_size: count(json, "intermediate_size", Some(hidden_size.saturating_mul(4)))?,
            num_hidden_layers: count(json, "num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads: count(json, "num_key_value_heads", Some(num_attention_heads))?,
            head_dim: hidden_size / num_attention_heads,
            max_position_embeddings,
            original_max_position_embeddings: max_position_embeddings,
            norm_eps: number(json.get("layer_norm_eps"), "layer_norm_eps", 1e-5)?,
            rope_theta: rope.number("rope_theta", 10000.0)?,
            partial_rotary_factor: rope.number("partial_rotary_factor", 0.5)?,
            rope_factors: None,
            sliding_window: None,
            tie_word_embeddings: flag(json, "tie_word_embeddings")?,
            attention_bias: true,
            head_bias: true,
        })
    }

    fn phi3(json: &Value) -> Result<Self, Fault> {
        expect(json, "hidden_act", &["silu"], "silu")?;
        forbid(json, "attention_bias")?;
        let rope = Rope::of(json)?;
        let hidden_size = count(json, "hidden_size", None)?;
        let num_attention_heads = count(json, "num_attention_heads", None)?;
        Ok(Self {
            architecture: Architecture::Phi3,
            vocab_size: count(json, "vocab_size", Some(32064))?,
            hidden_size,
            intermediate_size: count(json, "intermediate_size", None)?,
            num_hidden_layers: count(json, "num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads: count(json, "num_key_value_heads", Some(num_attention_heads))?,
            head_dim: hidden_size / num_attention_heads,
            max_position_embeddings: count(json, "max_position_embeddings", Some(4096))?,
            original_max_position_embeddings: rope.original_context(Some(4096))?,
            norm_eps: number(json.get("rms_norm_eps"), "rms_norm_eps", 1e-5)?,
            rope_theta: rope.number("rope_theta", 10000.0)?,
            partial_rotary_factor: rope.number("partial_rotary_factor", 1.0)?,
            rope_factors: rope.factors()?,
            sliding_window: window(json)?,
            tie_word_embeddings: flag(json, "tie_word_embeddings")?,
            attention_bias: false,
            head_bias: false,
        })
    }

    fn phi_moe(json: &Value) -> Result<Self, Fault> {
        let experts = Experts {
            count: count(json, "num_local_experts", Some(16))?,
            used: count(json, "num_experts_per_tok", Some(2))?,
            router_jitter_noise: match json.get("router_jitter_noise").and_then(Value::as_f64) {
                Some(0.0) => 0.0,
                _ => number(json.get("router_jitter_noise"), "router_jitter_noise", 0.01)?,
            },
        };
        if experts.used != 2 {
            return Err(field("num_experts_per_tok", json.get("num_experts_per_tok"), "2"));
        }
        let num_attention_heads = count(json, "num_attention_heads", None)?;
        let hidden_size = count(json, "hidden_size", None)?;
        let head_dim = count(json, "head_dim", Some((hidden_size / num_attention_heads).max(1)))?;
        Ok(Self {
            architecture: Architecture::PhiMoe(experts),
            num_key_value_heads: count(json, "num_key_value_heads", Some(8))?,
            head_dim,
            original_max_position_embeddings: Rope::of(json)?.original_context(None)?,
            attention_bias: flag(json, "attention_bias")?,
            head_bias: flag(json, "lm_head_bias")?,
            // What is left is as in Phi-3.
            ..Self::phi3(&without(json, "attention_bias"))?
        })
    }

    fn phi3_small(json: &Value) -> Result<Self, Fault> {
        expect(json, "hidden_act", &["gegelu"], "gegelu")?;
        let rope = Rope::of(json)?;
        let hidden_size = count(json, "hidden_size", Some(4096))?;
        let num_attention_heads = count(json, "num_attention_heads", Some(32))?;
        let head_dim = hidden_size / num_attention_heads;
        let max_position_embeddings = count(json, "max_position_embeddings", Some(8192))?;
        if number(json.get("rope_position_scale"), "rope_position_scale", 1.0)? != 1.0 {
            return Err(field("rope_position_scale", json.get("rope_position_scale"), "1"));
        }
        let attention = number(json.get("mup_attn_multiplier"), "mup_attn_multiplier", 1.0)?;
        // Missing is not the same as null, which is no limit.
        let limit = match json.get("gegelu_limit") {
            Some(Value::Null) => None,
            limit => Some(number(limit, "gegelu_limit", 20.0)?),
        };
        Ok(Self {
            architecture: Architecture::Phi3Small(Phi3Small {
                embedding_multiplier: number(
                    json.get("mup_embedding_multiplier"),
                    "mup_embedding_multiplier",
                    10.0,
                )?,
                width_multiplier: number(json.get("mup_width_multiplier"), "mup_width_multiplier", 8.0)?,
                attention_scale: if json.get("mup_use_scaling").is_none() || flag(json, "mup_use_scaling")? {
                    attention / f64::from(head_dim)
                } else {
                    1.0 / f64::from(head_dim).sqrt()
                },
                gegelu_limit: limit,
                block_sparse: block_sparse(json, num_attention_heads)?,
            }),
            vocab_size: count(json, "vocab_size", Some(100352))?,
            hidden_size,
            intermediate_size: count(json, "ff_intermediate_size", Some(14336))?,
            num_hidden_layers: count(json, "num_hidden_layers", Some(32))?,
            num_attention_heads,
            num_key_value_heads: count(json, "num_key_value_heads", Some(8))?,
            head_dim,
            max_position_embeddings,
            original_max_position_embeddings: rope.original_context(Some(max_position_embeddings))?,
            norm_eps: number(json.get("layer_norm_epsilon"), "layer_norm_epsilon", 1e-5)?,
            rope_theta: number(json.get("rope_embedding_base"), "rope_embedding_base", 1e6)?,
            partial_rotary_factor: 1.0,
            rope_factors: rope.factors()?,
            sliding_window: None,
            // The published files have no head of their own; where there is one it is used.
            tie_word_embeddings: true,
            attention_bias: true,
            head_bias: false,
        })
    }

    /// Dimensions of a head that are rotated.
    pub fn rope_dimensions(&self) -> u32 {
        match self.architecture {
            Architecture::PhiMoe(_) => self.head_dim,
            _ => (self.partial_rotary_factor * f64::from(self.hidden_size)) as u32 / self.num_attention_heads,
        }
    }

    /// What attention scores are scaled by when LongRoPE is used (the LongRoPE paper's formula, as in transformers).
    pub fn rope_attention_factor(&self) -> f64 {
        let original = f64::from(self.original_max_position_embeddings);
        let scale = f64::from(self.max_position_embeddings) / original;
        if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 }
    }

    /// Rows of the query projection.
    pub fn q_rows(&self) -> u64 {
        u64::from(self.num_attention_heads) * u64::from(self.head_dim)
    }

    /// Rows of the key, and of the value projection.
    pub fn kv_rows(&self) -> u64 {
        u64::from(self.num_key_value_heads) * u64::from(self.head_dim)
    }

    /// Compares the fields with each other.
    fn check(&self, json: &Value) -> Result<(), Fault> {
        let divides = |of: u32, by: u32, name: &str, by_name: &str| {
            if of.is_multiple_of(by) {
                return Ok(());
            }
            Err(field(by_name, json.get(by_name), &format!("a divisor of {name} ({of})")))
        };
        if json.get("head_dim").is_none_or(Value::is_null) {
            divides(self.hidden_size, self.num_attention_heads, "hidden_size", "num_attention_heads")?;
        }
        divides(
            self.num_attention_heads,
            self.num_key_value_heads,
            "num_attention_heads",
            "num_key_value_heads",
        )?;
        if !(0.0..=1.0).contains(&self.partial_rotary_factor) || self.rope_dimensions() == 0 {
            let expected = "a number above 0 and up to 1";
            return Err(field("partial_rotary_factor", json.get("partial_rotary_factor"), expected));
        }
        if let Some(RopeFactors { long, short, .. }) = &self.rope_factors {
            let expected = (self.rope_dimensions() / 2) as usize;
            for (name, factors) in [("long_factor", long), ("short_factor", short)] {
                if factors.len() != expected {
                    return Err(Fault::Field {
                        field: format!("rope_scaling.{name}"),
                        found: format!("a list of {} numbers", factors.len()),
                        expected: format!(
                            "a list of {expected} (half of the {} rotated dimensions)",
                            self.rope_dimensions()
                        ),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The architecture that a config.json names, and whether it is supported.
pub fn architecture(json: &Value) -> Result<&str, Fault> {
    let names = json.get("architectures").and_then(Value::as_array);
    let first = names.and_then(|names| names.first()).and_then(Value::as_str);
    first.ok_or_else(|| Fault::MissingField { field: "architectures".into() })
}

/// What config.json says about the rotary embedding, in `rope_parameters`, `rope_scaling` or fields of its own.
struct Rope<'a> {
    config: &'a Value,
    json: Option<&'a Value>,
}

impl<'a> Rope<'a> {
    fn of(config: &'a Value) -> Result<Self, Fault> {
        let json =
            config.get("rope_parameters").or_else(|| config.get("rope_scaling")).filter(|v| !v.is_null());
        if json.is_some_and(|rope| !rope.is_object()) {
            return Err(field("rope_scaling", json, "an object or null"));
        }
        Ok(Self { config, json })
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.json.and_then(|rope| rope.get(name)).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, Fault> {
        number(self.get(name).or(self.config.get(name)), name, default)
    }

    /// The context that the model was made for first; `None` as default stands for `max_position_embeddings`.
    fn original_context(&self, default: Option<u32>) -> Result<u32, Fault> {
        const NAME: &str = "original_max_position_embeddings";
        match (self.get(NAME), default) {
            (Some(value), _) => positive(Some(value), &format!("rope_scaling.{NAME}")),
            (None, Some(default)) => count(self.config, NAME, Some(default)),
            (None, None) => {
                count(self.config, NAME, Some(count(self.config, "max_position_embeddings", Some(4096))?))
            }
        }
    }

    /// LongRoPE's factors; `None` for plain RoPE. Older files say "su" or "yarn" and mean "longrope".
    fn factors(&self) -> Result<Option<RopeFactors>, Fault> {
        let Some(rope) = self.json else { return Ok(None) };
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).filter(|value| !value.is_null());
        let kind = match kind {
            None => None,
            Some(Value::String(kind)) => Some(kind.as_str()),
            other => return Err(field("rope_scaling.type", other, "a text")),
        };
        match kind {
            None | Some("default") if rope.get("long_factor").is_none_or(Value::is_null) => Ok(None),
            Some("longrope" | "su" | "yarn") => Ok(Some(RopeFactors {
                long: numbers(rope.get("long_factor"), "rope_scaling.long_factor")?,
                short: numbers(rope.get("short_factor"), "rope_scaling.short_factor")?,
                scales: match (self.get("long_mscale"), self.get("short_mscale")) {
                    (None, None) => None,
                    (long, short) => Some((
                        number(long, "rope_scaling.long_mscale", 1.0)?,
                        number(short, "rope_scaling.short_mscale", 1.0)?,
                    )),
                },
            })),
            _ => Err(field("rope_scaling.type", rope.get("rope_type").or(rope.get("type")), "\"longrope\"")),
        }
    }
}

fn block_sparse(json: &Value, heads: u32) -> Result<BlockSparse, Fault> {
    let vertical_stride = count(json, "blocksparse_vert_stride", Some(8))?;
    let dense_every = json.get("dense_attention_every_n_layers");
    Ok(BlockSparse {
        block_size: count(json, "blocksparse_block_size", Some(64))?,
        local_blocks: count(json, "blocksparse_num_local_blocks", Some(16))?,
        vertical_stride,
        head_step: if flag(json, "blocksparse_homo_head_pattern")? {
            0
        } else {
            (vertical_stride / heads).max(1)
        },
        dense_every: match dense_every {
            None => 2,
            Some(value) if value.is_null() || value.as_u64() == Some(0) => 0,
            value => positive(value, "dense_attention_every_n_layers")?,
        },
    })
}

fn window(json: &Value) -> Result<Option<u32>, Fault> {
    let value = json.get("sliding_window").filter(|value| !value.is_null());
    value.map(|value| positive(Some(value), "sliding_window")).transpose()
}

/// `json` without the field `name`.
fn without(json: &Value, name: &str) -> Value {
    let mut json = json.clone();
    if let Some(fields) = json.as_object_mut() {
        fields.remove(name);
    }
    json
}

/// Fails unless the text field `name` is missing or one of `accepted`.
fn expect(json: &Value, name: &str, accepted: &[&str], expected: &str) -> Result<(), Fault> {
    match json.get(name) {
        Some(value) if !value.as_str().is_some_and(|text| accepted.contains(&text)) => {
            Err(field(name, Some(value), &format!("{expected:?}")))
        }
        _ => Ok(()),
    }
}

/// Fails if the flag `name` is set.
fn forbid(json: &Value, name: &str) -> Result<(), Fault> {
    if flag(json, name)? { Err(field(name, json.get(name), "false")) } else { Ok(()) }
}

fn field(name: &str, found: Option<&Value>, expected: &str) -> Fault {
    match found {
        None => Fault::MissingField { field: name.to_owned() },
        Some(value) => {
            let mut found = value.to_string();
            if found.chars().count() > 60 {
                found = found.chars().take(57).chain("...".chars()).collect();
            }
            Fault::Field { field: name.to_owned(), found, expected: expected.to_owned() }
        }
    }
}

/// A positive integer below 2^31 (what GGUF readers take).
fn count(json: &Value, name: &str, default: Option<u32>) -> Result<u32, Fault> {
    match (json.get(name).filter(|value| !value.is_null()), default) {
        (None, Some(default)) => Ok(default),
        (value, _) => positive(value, name),
    }
}

fn positive(value: Option<&Value>, name: &str) -> Result<u32, Fault> {
    let number = value.and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    match number {
        Some(number) if (1..=i32::MAX as u32).contains(&number) => Ok(number),
        _ => Err(field(name, value, "a positive integer")),
    }
}

/// A positive, finite number.
fn number(value: Option<&Value>, name: &str, default: f64) -> Result<f64, Fault> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(default) };
    match value.as_f64() {
        Some(number) if number > 0.0 && (number as f32).is_finite() => Ok(number),
        _ => Err(field(name, Some(value), "a positive number")),
    }
}

fn numbers(value: Option<&Value>, name: &str) -> Result<Vec<f64>, Fault> {
    let list = value.and_then(Value::as_array).ok_or_else(|| field(name, value, "a list of numbers"))?;
    let number = |(at, value): (usize, &Value)| match value.as_f64() {
        Some(number) if number > 0.0 && (number as f32).is_finite() => Ok(number),
        _ => Err(field(&format!("{name}[{at}]"), Some(value), "a positive number")),
    };
    list.iter().enumerate().map(number).collect()
}

fn flag(json: &Value, name: &str) -> Result<bool, Fault> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        other => Err(field(name, other, "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minimal() -> Value {
        json!({
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4
        })
    }

    #[test]
    fn what_is_left_out_has_the_defaults_of_transformers() {
        let config = ModelConfig::from_json("Phi3ForCausalLM", &minimal()).unwrap();
        assert_eq!(config.num_key_value_heads, 4);
        assert_eq!(config.original_max_position_embeddings, 4096);
        assert_eq!(
            (config.vocab_size, config.sliding_window, config.rope_factors.is_none()),
            (32064, None, true)
        );
        assert_eq!((config.head_dim, config.rope_dimensions()), (16, 16));
        assert_eq!((config.q_rows(), config.kv_rows()), (64, 64));
    }

    #[test]
    fn each_class_has_its_own_defaults() {
        let phi2 = ModelConfig::from_json("PhiForCausalLM", &minimal()).unwrap();
        assert_eq!((phi2.architecture.name(), phi2.rope_dimensions(), phi2.vocab_size), ("phi2", 8, 51200));
        assert!(phi2.attention_bias && phi2.head_bias);
        let moe = json!({
            "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "attention_bias": true
        });
        let moe = ModelConfig::from_json("PhimoeForCausalLM", &moe).unwrap();
        assert_eq!((moe.q_rows(), moe.kv_rows(), moe.rope_dimensions()), (32, 16, 16));
        let Architecture::PhiMoe(experts) = moe.architecture else { panic!("{moe:?}") };
        assert_eq!(experts, Experts { count: 16, used: 2, router_jitter_noise: 0.01 });
        let small = ModelConfig::from_json("Phi3SmallForCausalLM", &json!({})).unwrap();
        let Architecture::Phi3Small(small) = small.architecture else { panic!("{small:?}") };
        assert_eq!((small.gegelu_limit, small.embedding_multiplier), (Some(20.0), 10.0));
        assert_eq!(small.attention_scale, 1.0 / 128.0);
        let published = BlockSparse {
            block_size: 64,
            local_blocks: 16,
            vertical_stride: 8,
            head_step: 1,
            dense_every: 2,
        };
        assert_eq!(small.block_sparse, published);
    }

    #[test]
    fn what_a_class_cannot_have_is_named() {
        let wrong = [
            ("PhiForCausalLM", "hidden_act", json!("relu")),
            ("PhiForCausalLM", "qk_layernorm", json!(true)),
            ("PhiMoEForCausalLM", "num_experts_per_tok", json!(4)),
            ("PhiMoEForCausalLM", "router_jitter_noise", json!(-1)),
            ("Phi3SmallForCausalLM", "hidden_act", json!("silu")),
            ("Phi3SmallForCausalLM", "rope_position_scale", json!(2.0)),
            ("Phi3SmallForCausalLM", "blocksparse_vert_stride", json!(0)),
        ];
        for (class, name, value) in wrong {
            let mut config = minimal();
            config["num_key_value_heads"] = json!(2);
            config[name] = value.clone();
            let fault = ModelConfig::from_json(class, &config).unwrap_err().to_string();
            assert!(fault.contains(&format!("{name:?}")), "{class} {value}: {fault}");
        }
    }

    #[test]
    fn every_wrong_field_is_named() {
        let factors = |count: usize| vec![1.0; count];
        let wrong = [
            ("hidden_size", json!(0)),
            ("hidden_size", json!(-64)),
            ("hidden_size", json!(64.5)),
            ("hidden_size", json!(1_u64 << 40)),
            ("hidden_size", Value::Null),
            ("num_attention_heads", json!(5)),
            ("num_key_value_heads", json!(3)),
            ("num_hidden_layers", json!("two")),
            ("rms_norm_eps", json!(0)),
            ("rope_theta", json!(1e300)),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("tie_word_embeddings", json!(1)),
            ("sliding_window", json!(-1)),
            ("partial_rotary_factor", json!(1.5)),
            ("rope_scaling", json!(3)),
            ("rope_scaling.type", json!({"type": "linear", "factor": 2.0})),
            ("rope_scaling.long_factor", json!({"type": "longrope", "short_factor": factors(8)})),
            (
                "rope_scaling.short_factor",
                json!({"type": "su", "long_factor": factors(8), "short_factor": factors(7)}),
            ),
        ];
        for (name, value) in wrong {
            let mut config = minimal();
            config[name.split('.').next().unwrap()] = value.clone();
            let fault = ModelConfig::from_json("Phi3ForCausalLM", &config).unwrap_err().to_string();
            assert!(fault.contains(&format!("{name:?}")), "{value}: {fault}");
        }
    }
}
