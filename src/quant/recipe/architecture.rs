//! What a recipe needs to know of the model: how many layers, heads and experts it has.

use crate::gguf::{Array, Metadata, Value};

/// The facts about a model that a recipe's rules look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: String,
    /// `block_count`: transformer layers.
    pub layers: u32,
    /// Query heads that share a key/value head (the first layer's, where layers differ).
    pub heads_per_kv: u32,
    /// Experts a layer has; 0 in a dense model.
    pub experts: u32,
}

/// Why the facts could not be read from a file's metadata.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureFault {
    #[error("the metadata key {0} is missing, but a recipe depends on it")]
    Missing(String),
    #[error("the metadata key {key} is {found}, but a count of 0 to {max} is expected")]
    NotACount { key: String, found: String, max: u32 },
    #[error("recipes for the architecture {0} have rules of their own, which are not supported")]
    OtherRules(String),
}

/// The most layers or experts that llama.cpp allows are 512 each; counts beyond are damage.
const MOST_LAYERS: u32 = 512;

impl Architecture {
    /// Reads the facts from a GGUF's metadata.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, ArchitectureFault> {
        let name = match metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            Some(other) => return Err(not_a_count("general.architecture", other, 0)),
            None => return Err(ArchitectureFault::Missing("general.architecture".into())),
        };
        if ["glm5-next", "bailingmoe3"].contains(&name.as_str()) {
            return Err(ArchitectureFault::OtherRules(name));
        }
        let count = |suffix: &str, max| first_count(metadata, &format!("{name}.{suffix}"), max);
        let required = |suffix: &str| ArchitectureFault::Missing(format!("{name}.{suffix}"));

        let layers = count("block_count", MOST_LAYERS)?.ok_or_else(|| required("block_count"))?;
        let heads = count("attention.head_count", u32::MAX)?.unwrap_or(0);
        let kv_heads = count("attention.head_count_kv", u32::MAX)?.unwrap_or(heads);
        let experts = count("expert_count", MOST_LAYERS)?.unwrap_or(0);
        Ok(Self { layers, heads_per_kv: heads.checked_div(kv_heads).unwrap_or(0), experts, name })
    }

    pub(super) fn is_falcon(&self) -> bool {
        self.name == "falcon"
    }

    /// The 70 B models, whose recipes give the small shared `attn_v` more bits.
    pub(super) fn is_70b(&self) -> bool {
        match (self.name.as_str(), self.layers) {
            ("llama", 80) => self.heads_per_kv != 1 && self.experts != 8,
            ("deci" | "olmo" | "qwen2", 80) | ("jais2", 68) => true,
            _ => false,
        }
    }
}

/// The count stored under `key`, or the first one of an array of counts (one a layer).
fn first_count(metadata: &Metadata, key: &str, max: u32) -> Result<Option<u32>, ArchitectureFault> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let count = match value {
        Value::Array(Array::U32(counts)) => counts.first().map(|count| (*count).into()),
        Value::Array(Array::I32(counts)) => counts.first().map(|count| (*count).into()),
        value => value.as_integer(),
    };
    let count = count.and_then(|count| u32::try_from(count).ok()).filter(|count| *count <= max);
    count.map(Some).ok_or_else(|| not_a_count(key, value, max))
}

fn not_a_count(key: &str, found: &Value, max: u32) -> ArchitectureFault {
    let mut found = format!("{found:?}");
    if let Some((cut, _)) = found.char_indices().nth(60) {
        found.truncate(cut);
        found.push('…');
    }
    ArchitectureFault::NotACount { key: key.to_owned(), found, max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, Value)]) -> Metadata {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.set(*key, value.clone());
        }
        metadata
    }

    #[test]
    fn heads_that_differ_by_layer_count_as_the_first_layer() {
        let metadata = metadata(&[
            ("general.architecture", Value::String("phi3".into())),
            ("phi3.block_count", Value::U32(2)),
            ("phi3.attention.head_count", Value::Array(Array::I32(vec![8, 4]))),
            ("phi3.attention.head_count_kv", Value::U32(2)),
        ]);
        let read = Architecture::from_metadata(&metadata).unwrap();
        assert_eq!(read, Architecture { name: "phi3".into(), layers: 2, heads_per_kv: 4, experts: 0 });
    }

    #[test]
    fn each_fault_is_told() {
        use ArchitectureFault as Fault;
        let read = |pairs: &[(&str, Value)]| Architecture::from_metadata(&metadata(pairs)).unwrap_err();
        assert_eq!(read(&[]), Fault::Missing("general.architecture".into()));
        let phi3 = ("general.architecture", Value::String("phi3".into()));
        assert_eq!(read(std::slice::from_ref(&phi3)), Fault::Missing("phi3.block_count".into()));
        for bad in [Value::I64(-1), Value::U64(1 << 40), Value::F32(2.0), Value::U32(513)] {
            let fault = read(&[phi3.clone(), ("phi3.block_count", bad)]);
            assert!(matches!(fault, Fault::NotACount { max: 512, .. }), "{fault}");
        }
        assert!(matches!(read(&[("general.architecture", Value::U32(3))]), Fault::NotACount { .. }));
        let glm = read(&[("general.architecture", Value::String("glm5-next".into()))]);
        assert_eq!(glm, Fault::OtherRules("glm5-next".into()));
    }
}
