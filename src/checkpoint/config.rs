//! config.json of the phi3 architecture (`Phi3Config` of transformers), checked.

use serde_json::Value;

use super::Fault;

/// The architectures that can be converted, as config.json names them.
pub const SUPPORTED: &[&str] = &["Phi3ForCausalLM"];

/// Hyper-parameters of a `Phi3ForCausalLM`. Fields that config.json leaves out have `Phi3Config`'s defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Phi3Config {
    pub vocab_size: u32,
    pub hidden_size: u32,
    /// Width of the feed-forward layer; gate and up projection are stored as one matrix of twice as many rows.
    pub intermediate_size: u32,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    pub max_position_embeddings: u32,
    pub original_max_position_embeddings: u32,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub partial_rotary_factor: f64,
    /// LongRoPE's factors, where the model has them.
    pub rope_factors: Option<RopeFactors>,
    /// Tokens a position attends to; `None` for all.
    pub sliding_window: Option<u32>,
    pub tie_word_embeddings: bool,
}

/// LongRoPE: a factor per pair of rotated dimensions, for long and for short sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFactors {
    pub long: Vec<f64>,
    pub short: Vec<f64>,
}

impl Phi3Config {
    /// Reads and checks a config.json's fields.
    pub fn from_json(json: &Value) -> Result<Self, Fault> {
        let rope = json.get("rope_parameters").or_else(|| json.get("rope_scaling")).filter(|v| !v.is_null());
        if rope.is_some_and(|rope| !rope.is_object()) {
            return Err(field("rope_scaling", rope, "an object or null"));
        }
        let in_rope = |name: &str| rope.and_then(|rope| rope.get(name)).filter(|value| !value.is_null());
        let num_attention_heads = count(json, "num_attention_heads", None)?;
        let config = Self {
            vocab_size: count(json, "vocab_size", Some(32064))?,
            hidden_size: count(json, "hidden_size", None)?,
            intermediate_size: count(json, "intermediate_size", None)?,
            num_hidden_layers: count(json, "num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads: count(json, "num_key_value_heads", Some(num_attention_heads))?,
            max_position_embeddings: count(json, "max_position_embeddings", Some(4096))?,
            original_max_position_embeddings: match in_rope("original_max_position_embeddings") {
                Some(value) => positive(Some(value), "rope_scaling.original_max_position_embeddings")?,
                None => count(json, "original_max_position_embeddings", Some(4096))?,
            },
            rms_norm_eps: number(json.get("rms_norm_eps"), "rms_norm_eps", 1e-5)?,
            rope_theta: number(in_rope("rope_theta").or(json.get("rope_theta")), "rope_theta", 10000.0)?,
            partial_rotary_factor: number(
                in_rope("partial_rotary_factor").or(json.get("partial_rotary_factor")),
                "partial_rotary_factor",
                1.0,
            )?,
            rope_factors: rope_factors(rope)?,
            sliding_window: match json.get("sliding_window").filter(|value| !value.is_null()) {
                Some(value) => Some(positive(Some(value), "sliding_window")?),
                None => None,
            },
            tie_word_embeddings: flag(json, "tie_word_embeddings")?,
        };
        config.check(json)?;
        Ok(config)
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> u32 {
        self.hidden_size / self.num_attention_heads
    }

    /// Dimensions of a head that are rotated.
    pub fn rope_dimensions(&self) -> u32 {
        (self.partial_rotary_factor * f64::from(self.hidden_size)) as u32 / self.num_attention_heads
    }

    /// What attention scores are scaled by when LongRoPE is used (the LongRoPE paper's formula, as in transformers).
    pub fn rope_attention_factor(&self) -> f64 {
        let original = f64::from(self.original_max_position_embeddings);
        let scale = f64::from(self.max_position_embeddings) / original;
        if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 }
    }

    /// Rows of the fused query, key and value projection.
    pub fn qkv_rows(&self) -> u64 {
        let heads = u64::from(self.num_attention_heads) + 2 * u64::from(self.num_key_value_heads);
        heads * u64::from(self.head_dim())
    }

    /// Compares the fields with each other.
    fn check(&self, json: &Value) -> Result<(), Fault> {
        let divides = |of: u32, by: u32, name: &str, by_name: &str| {
            if of.is_multiple_of(by) {
                return Ok(());
            }
            Err(field(by_name, json.get(by_name), &format!("a divisor of {name} ({of})")))
        };
        divides(self.hidden_size, self.num_attention_heads, "hidden_size", "num_attention_heads")?;
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
        if let Some(act) = json.get("hidden_act").filter(|act| act.as_str() != Some("silu")) {
            return Err(field("hidden_act", Some(act), "\"silu\""));
        }
        if flag(json, "attention_bias")? {
            return Err(field("attention_bias", json.get("attention_bias"), "false"));
        }
        if let Some(RopeFactors { long, short }) = &self.rope_factors {
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

/// LongRoPE's factors; `None` for plain RoPE. Older files say "su" or "yarn" and mean "longrope".
fn rope_factors(rope: Option<&Value>) -> Result<Option<RopeFactors>, Fault> {
    let Some(rope) = rope else { return Ok(None) };
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
        })),
        _ => Err(field("rope_scaling.type", rope.get("rope_type").or(rope.get("type")), "\"longrope\"")),
    }
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
        let config = Phi3Config::from_json(&minimal()).unwrap();
        assert_eq!(config.num_key_value_heads, 4);
        assert_eq!(config.original_max_position_embeddings, 4096);
        assert_eq!(
            (config.vocab_size, config.sliding_window, config.rope_factors.is_none()),
            (32064, None, true)
        );
        assert_eq!((config.head_dim(), config.rope_dimensions(), config.qkv_rows()), (16, 16, 192));
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
            let fault = Phi3Config::from_json(&config).unwrap_err().to_string();
            assert!(fault.contains(&format!("{name:?}")), "{value}: {fault}");
        }
    }
}
