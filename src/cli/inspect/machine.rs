//! Which model of the family a file is, and what it asks of this machine.

use serde_json::{Value as Json, json};

use crate::backend::cpu::{CacheShape, available_memory, total_memory};
use crate::engine::KvType;
use crate::fs::human_bytes;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::{EXPERTS_USED, Hyper, Shape};

/// What can be said about running a file.
pub(super) struct Machine {
    /// "Phi-4 (architecture phi3, 40 layers)", or why it cannot be run.
    pub summary: String,
    runnable: Option<Runnable>,
}

struct Runnable {
    member: Option<&'static str>,
    architecture: &'static str,
    /// Bytes of all tensors: what stays in memory when the model runs.
    weights: u64,
    /// Of these, what computing one token reads.
    read: u64,
    contexts: Vec<Context>,
    total: Option<u64>,
    available: Option<u64>,
}

/// A number of tokens and the bytes of its KV cache.
struct Context {
    tokens: usize,
    cache: u64,
}

impl Machine {
    /// Looks at a file's metadata and tensors.
    pub fn of(gguf: &Gguf) -> Self {
        let hyper = match Hyper::read(gguf) {
            Ok(hyper) => hyper,
            Err(error) => return Self { summary: format!("cannot be run: {error}"), runnable: None },
        };
        let vocabulary = gguf.tensor("token_embd.weight").map_or(0, |embedding| embedding.rows() as usize);
        let member = Shape::of(&hyper, vocabulary).member();
        let named = member.map_or("a shape of its own".to_owned(), |member| format!("the shape of {member}"));
        let architecture = hyper.architecture.name();
        let summary = format!(
            "{named}: architecture {architecture}, {} layers of {}, {} query and {} KV heads, {vocabulary} tokens",
            hyper.layers, hyper.hidden, hyper.heads, hyper.kv_heads
        );
        let cache = |tokens: usize| {
            let (keys, values) = (KvType::F16, KvType::F16);
            let (layers, kv_heads, head) = (hyper.layers, hyper.kv_heads, hyper.head);
            CacheShape { layers, kv_heads, head, keys, values }.bytes(tokens)
        };
        let lengths = contexts(hyper.context).into_iter();
        Self {
            summary,
            runnable: Some(Runnable {
                member,
                architecture,
                weights: gguf.tensors().iter().map(TensorInfo::bytes).sum(),
                read: read_per_token(gguf.tensors(), hyper.experts),
                contexts: lengths.map(|tokens| Context { tokens, cache: cache(tokens) }).collect(),
                total: total_memory(),
                available: available_memory(),
            }),
        }
    }

    /// The rows of a table: tokens of context, KV cache, weights and KV cache, whether they fit; a title first.
    pub fn rows(&self) -> Vec<[String; 4]> {
        let Some(run) = &self.runnable else { return Vec::new() };
        let title = ["context", "KV cache (f16)", "with weights", "this machine"].map(str::to_owned);
        let row = |context: &Context| {
            let needed = run.weights.saturating_add(context.cache);
            [
                format!("{} tokens", context.tokens),
                human_bytes(context.cache),
                human_bytes(needed),
                run.verdict(needed).to_owned(),
            ]
        };
        std::iter::once(title).chain(run.contexts.iter().map(row)).collect()
    }

    /// A sentence about reading and memory; empty if the file cannot be run.
    pub fn memory(&self) -> String {
        let Some(run) = &self.runnable else { return String::new() };
        let mut text = format!("A token reads {} of weights.", human_bytes(run.read));
        if let (Some(total), Some(available)) = (run.total, run.available) {
            text.push_str(&format!(
                " This machine has {} of memory, {} of it free.",
                human_bytes(total),
                human_bytes(available)
            ));
        }
        text
    }

    /// The same as JSON.
    pub fn json(&self) -> Json {
        let Some(run) = &self.runnable else { return json!({ "runs": false, "reason": self.summary }) };
        let contexts = run.contexts.iter().map(|context| {
            let needed = run.weights.saturating_add(context.cache);
            json!({
                "tokens": context.tokens, "kv_cache_bytes": context.cache, "needed_bytes": needed,
                "this_machine": run.verdict(needed),
            })
        });
        json!({
            "runs": true, "member": run.member, "architecture": run.architecture, "weights_bytes": run.weights,
            "bytes_per_token": run.read, "contexts": contexts.collect::<Vec<_>>(),
            "memory_bytes": run.total, "free_memory_bytes": run.available,
        })
    }
}

impl Runnable {
    /// How `needed` bytes compare with the memory there is.
    fn verdict(&self, needed: u64) -> &'static str {
        match (self.total, self.available) {
            (Some(total), _) if needed > total => "too large",
            (_, Some(available)) if needed > available => "once memory is freed",
            (Some(_), Some(_)) => "fits",
            _ => "unknown",
        }
    }
}

/// The contexts to show for a model made for `most` tokens: some usual ones, and its own.
fn contexts(most: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = [2048, 8192, 32_768].into_iter().filter(|&length| length < most).collect();
    lengths.push(most);
    lengths
}

/// Bytes of weights that computing a token reads: of experts, those it goes through; of the embedding, no more than a
/// row, unless it is the head too.
fn read_per_token(tensors: &[TensorInfo], experts: usize) -> u64 {
    let tied = tensors.iter().all(|tensor| tensor.name != "output.weight");
    let read = tensors.iter().map(|tensor| match tensor.name.as_str() {
        "token_embd.weight" if !tied => tensor.row_bytes(),
        name if name.contains("_exps.") && experts > 0 => {
            tensor.bytes() / experts as u64 * EXPERTS_USED as u64
        }
        _ => tensor.bytes(),
    });
    read.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;

    #[test]
    fn contexts_end_with_the_models_own() {
        assert_eq!(contexts(4096), [2048, 4096]);
        assert_eq!(contexts(131_072), [2048, 8192, 32_768, 131_072]);
        assert_eq!(contexts(512), [512]);
    }

    #[test]
    fn of_experts_only_those_in_use_are_read() {
        let tensor = |name: &str, shape: &[u64]| TensorInfo {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind: TensorType::F16,
            offset: 0,
            file: 0,
        };
        let mut tensors =
            vec![tensor("token_embd.weight", &[8, 100]), tensor("blk.0.ffn_up_exps.weight", &[8, 4, 16])];
        assert_eq!(read_per_token(&tensors, 16), 1600 + 2 * 64);
        tensors.push(tensor("output.weight", &[8, 100]));
        assert_eq!(read_per_token(&tensors, 16), 16 + 2 * 64 + 1600);
    }
}
