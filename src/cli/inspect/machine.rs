//! Which model of the family a file or a checkpoint is, and what it asks of this machine.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::table::{bits_per_weight, columns, plain};
use crate::Result;
use crate::backend::cpu::{CacheShape, available_memory, total_memory};
use crate::checkpoint::Checkpoint;
use crate::convert::{self, Conversion, OutType};
use crate::engine::KvType;
use crate::fs::human_bytes;
use crate::gguf::{Gguf, Output, Source as _, TensorInfo, Writer};
use crate::model::{EXPERTS_USED, Hyper, Shape};
use crate::quant::recipe::{FileType, Recipe};
use crate::quantize::{self, Plan};

/// The types that a checkpoint's sizes are shown for; of the 16-bit ones, the one it is stored in.
const TYPES: &[FileType] = &[
    FileType::BF16,
    FileType::F16,
    FileType::Q8_0,
    FileType::Q6_K,
    FileType::Q5_K_M,
    FileType::Q4_K_M,
    FileType::MXFP4_MOE,
    FileType::IQ4_XS,
    FileType::Q3_K_M,
    FileType::Q2_K,
];

/// What can be said about running a model.
pub(super) struct Machine {
    /// "Phi-4 (architecture phi3, 40 layers)", or why it cannot be run.
    summary: String,
    runnable: Option<Runnable>,
}

struct Runnable {
    member: Option<&'static str>,
    architecture: &'static str,
    contexts: Vec<Context>,
    forms: Forms,
    total: Option<u64>,
    available: Option<u64>,
}

/// What a model's weights take.
enum Forms {
    /// A file, as it is.
    File(Weights),
    /// A checkpoint, as a GGUF file of each of some types.
    Types(Vec<Made>),
}

struct Weights {
    /// Bytes of all tensors: what stays in memory when the model runs.
    all: u64,
    /// Of these, what computing one token reads.
    read: u64,
}

/// A checkpoint as a GGUF file of a type.
struct Made {
    name: &'static str,
    file: u64,
    elements: u64,
    weights: Weights,
}

/// A number of tokens and the bytes of its KV cache.
struct Context {
    tokens: usize,
    cache: u64,
}

impl Machine {
    /// Looks at a file's metadata and tensors.
    pub fn of(gguf: &Gguf) -> Self {
        Self::runnable(gguf, gguf.tensors(), || {
            let all = gguf.tensors().iter().map(TensorInfo::bytes).sum();
            Ok(Forms::File(Weights { all, read: read_per_token(gguf.tensors()) }))
        })
        .unwrap_or_else(|error| Self::refused(&error))
    }

    /// Looks at a checkpoint as if it had been converted.
    pub fn of_checkpoint(folder: &Path) -> Self {
        Self::converted(folder).unwrap_or_else(|error| Self::refused(&error))
    }

    fn converted(folder: &Path) -> Result<Self> {
        let options = convert::Options { outtype: OutType::Stored, ..convert::Options::default() };
        let conversion = Conversion::plan(&Checkpoint::open(folder)?, &options)?;
        // The model's numbers are read from a GGUF file's metadata, so it gets one without tensors.
        let Output::Memory(head) = Writer::in_memory(folder, conversion.metadata(), &[])?.finish()? else {
            unreachable!("it was written to memory")
        };
        Self::runnable(&Gguf::from_bytes(head, folder)?, conversion.tensors(), || made(&conversion))
    }

    fn refused(error: &crate::Error) -> Self {
        Self { summary: format!("cannot be run: {error}"), runnable: None }
    }

    /// Of a model with the metadata in `head` and these tensors, which take what `forms` finds out.
    fn runnable(head: &Gguf, tensors: &[TensorInfo], forms: impl FnOnce() -> Result<Forms>) -> Result<Self> {
        let hyper = Hyper::read(head)?;
        let embedding = tensors.iter().find(|tensor| tensor.name == EMBEDDING);
        let vocabulary = embedding.map_or(0, |embedding| embedding.rows() as usize);
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
        Ok(Self {
            summary,
            runnable: Some(Runnable {
                member,
                architecture,
                contexts: lengths.map(|tokens| Context { tokens, cache: cache(tokens) }).collect(),
                forms: forms()?,
                total: total_memory(),
                available: available_memory(),
            }),
        })
    }

    /// Appends the summary and a table of the memory at each context.
    pub fn write(&self, out: &mut String) {
        let _ = writeln!(out, "\nModel: {}", plain(&self.summary));
        let Some(run) = &self.runnable else { return };
        match &run.forms {
            Forms::File(weights) => {
                columns(out, &run.file_rows(weights), &[true, true, true, false]);
                let _ = writeln!(
                    out,
                    "  A token reads {} of weights.{}",
                    human_bytes(weights.read),
                    run.memory()
                );
            }
            Forms::Types(types) => {
                let _ = writeln!(
                    out,
                    "\nAs a GGUF file, and the memory that it takes with an f16 KV cache for a context"
                );
                let rows = run.type_rows(types);
                let right: Vec<bool> =
                    (0..rows[0].len()).map(|at| at > 0 && at + 1 < rows[0].len()).collect();
                columns(out, &rows, &right);
                let memory = run.memory();
                if !memory.is_empty() {
                    let _ = writeln!(out, " {memory}");
                }
            }
        }
    }

    /// The same as JSON.
    pub fn json(&self) -> Json {
        let Some(run) = &self.runnable else { return json!({ "runs": false, "reason": self.summary }) };
        let mut report = json!({
            "runs": true, "member": run.member, "architecture": run.architecture,
            "memory_bytes": run.total, "free_memory_bytes": run.available,
        });
        match &run.forms {
            Forms::File(weights) => run.add_json(weights, &mut report),
            Forms::Types(types) => {
                let types = types.iter().map(|made| {
                    let bits = bits_per_weight(made.weights.all, made.elements);
                    let mut entry =
                        json!({ "type": made.name, "file_bytes": made.file, "bits_per_weight": bits });
                    run.add_json(&made.weights, &mut entry);
                    entry
                });
                report["as_gguf"] = types.collect();
            }
        }
        report
    }
}

impl Runnable {
    /// Tokens of context, KV cache, weights and KV cache, whether they fit; a title first.
    fn file_rows(&self, weights: &Weights) -> Vec<[String; 4]> {
        let title = ["context", "KV cache (f16)", "with weights", "this machine"].map(str::to_owned);
        let row = |context: &Context| {
            let needed = weights.all.saturating_add(context.cache);
            [
                format!("{} tokens", context.tokens),
                human_bytes(context.cache),
                human_bytes(needed),
                self.verdict(needed).to_owned(),
            ]
        };
        std::iter::once(title).chain(self.contexts.iter().map(row)).collect()
    }

    /// Type, size, bits per weight, what a token reads, the memory at each context, what fits; a title first.
    fn type_rows(&self, types: &[Made]) -> Vec<Vec<String>> {
        let mut title = ["type", "size", "bits per weight", "a token reads"].map(str::to_owned).to_vec();
        title.extend(self.contexts.iter().map(|context| format!("{} tokens", context.tokens)));
        title.push("this machine".to_owned());
        let row = |made: &Made| {
            let mut row = vec![
                made.name.to_owned(),
                human_bytes(made.file),
                format!("{:.2}", bits_per_weight(made.weights.all, made.elements)),
                human_bytes(made.weights.read),
            ];
            let needed = |context: &Context| made.weights.all.saturating_add(context.cache);
            row.extend(self.contexts.iter().map(|context| human_bytes(needed(context))));
            row.push(self.longest(made));
            row
        };
        std::iter::once(title).chain(types.iter().map(row)).collect()
    }

    /// How much of a context fits into this machine's memory, as words.
    fn longest(&self, made: &Made) -> String {
        let Some(total) = self.total else { return "unknown".to_owned() };
        let fits = |context: &&Context| made.weights.all.saturating_add(context.cache) <= total;
        match self.contexts.iter().take_while(fits).count() {
            0 => "too large".to_owned(),
            count if count == self.contexts.len() => "fits".to_owned(),
            count => format!("fits up to {} tokens", self.contexts[count - 1].tokens),
        }
    }

    /// A sentence about this machine's memory, after a space; empty if it is not known.
    fn memory(&self) -> String {
        match (self.total, self.available) {
            (Some(total), Some(available)) => {
                let (total, available) = (human_bytes(total), human_bytes(available));
                format!(" This machine has {total} of memory, {available} of it free.")
            }
            _ => String::new(),
        }
    }

    fn add_json(&self, weights: &Weights, entry: &mut Json) {
        let contexts = self.contexts.iter().map(|context| {
            let needed = weights.all.saturating_add(context.cache);
            json!({
                "tokens": context.tokens, "kv_cache_bytes": context.cache, "needed_bytes": needed,
                "this_machine": self.verdict(needed),
            })
        });
        entry["weights_bytes"] = weights.all.into();
        entry["bytes_per_token"] = weights.read.into();
        entry["contexts"] = contexts.collect();
    }

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

/// What a checkpoint takes as a file of each of [`TYPES`] that suits it.
fn made(conversion: &Conversion) -> Result<Forms> {
    let has_experts = conversion.tensors().iter().any(is_expert);
    let is_stored =
        |kind| conversion.tensors().iter().any(|tensor| tensor.shape.len() > 1 && tensor.kind == kind);
    let bf16 = is_stored(FileType::BF16.base());
    let suits = |file_type: &&FileType| match file_type {
        FileType::BF16 => bf16,
        FileType::F16 => !bf16,
        FileType::MXFP4_MOE => has_experts,
        _ => true,
    };
    let form = |&file_type: &FileType| {
        let plan = Plan::new(conversion, &quantize::Options::new(Some(Recipe::new(file_type))))?;
        let tensors: Vec<TensorInfo> = plan.tensors.iter().map(|tensor| tensor.info()).collect();
        Ok(Made {
            name: file_type.name(),
            file: plan.file_bytes(conversion)?,
            elements: plan.elements(),
            weights: Weights { all: plan.bytes_out(), read: read_per_token(&tensors) },
        })
    };
    TYPES.iter().filter(suits).map(form).collect::<Result<_>>().map(Forms::Types)
}

/// The contexts to show for a model made for `most` tokens: some usual ones, and its own.
fn contexts(most: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = [2048, 8192, 32_768].into_iter().filter(|&length| length < most).collect();
    lengths.push(most);
    lengths
}

const EMBEDDING: &str = "token_embd.weight";

/// Whether a tensor holds the matrices of a layer's experts, which are its last dimension.
fn is_expert(tensor: &TensorInfo) -> bool {
    tensor.name.contains("_exps.")
}

/// Bytes of weights that computing a token reads: of experts, those it goes through; of the embedding, no more than a
/// row, unless it is the head too.
fn read_per_token(tensors: &[TensorInfo]) -> u64 {
    let tied = tensors.iter().all(|tensor| tensor.name != "output.weight");
    let read = tensors.iter().map(|tensor| match tensor.name.as_str() {
        EMBEDDING if !tied => tensor.row_bytes(),
        _ if is_expert(tensor) => {
            let experts = tensor.shape.last().copied().unwrap_or(1).max(1);
            tensor.bytes() / experts * (EXPERTS_USED as u64).min(experts)
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
        assert_eq!(read_per_token(&tensors), 1600 + 2 * 64);
        tensors.push(tensor("output.weight", &[8, 100]));
        assert_eq!(read_per_token(&tensors), 16 + 2 * 64 + 1600);
    }
}
