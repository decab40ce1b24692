//! Sequences, batches, the prefill/decode loop and its stop rules.

pub mod generate;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::Result;
use crate::gguf::TensorType;

/// How an [`Engine`] is set up.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Worker threads; `None` takes what the machine, the cgroup and the affinity mask allow.
    pub threads: Option<usize>,
    /// Element type of the KV cache: F16 or F32.
    pub kv_type: TensorType,
    /// Tokens fed through the model at once while a prompt is read.
    pub batch: usize,
}

/// A model made ready to run. Shared by all sequences.
pub struct Engine {}

/// One sequence of tokens with its KV cache.
pub struct Sequence {}

impl Engine {
    /// Binds the weights of `model`.
    pub fn new(_model: Arc<crate::gguf::Gguf>, _options: EngineOptions) -> Result<Self> {
        unimplemented!()
    }

    /// The model's own context length in tokens (131,072 for Phi-3.5-mini).
    pub fn model_context(&self) -> usize {
        unimplemented!()
    }

    /// Logits a position has.
    pub fn vocab_size(&self) -> usize {
        unimplemented!()
    }

    /// An empty sequence that may grow to `context` tokens; memory is taken as it grows.
    /// Fails if its KV cache could never fit this machine's memory.
    pub fn sequence(&self, _context: usize) -> Result<Sequence> {
        unimplemented!()
    }

    /// Appends `tokens` and returns the logits of the last `last` of them, `[last, vocab]`, row-major.
    /// `progress` is told after each batch how many of `tokens` are done and may stop it
    /// (`Error::Interrupted`; the sequence then holds the tokens done).
    pub fn feed(
        &self,
        _sequence: &mut Sequence,
        _tokens: &[u32],
        _last: usize,
        _progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        unimplemented!()
    }

    /// Bytes read from memory to generate one token now: weights and the KV cache so far.
    pub fn bytes_per_token(&self, _sequence: &Sequence) -> u64 {
        unimplemented!()
    }
}

impl Sequence {
    /// The tokens in the KV cache, in order.
    pub fn tokens(&self) -> &[u32] {
        unimplemented!()
    }

    /// Tokens that may still be appended.
    pub fn room(&self) -> usize {
        unimplemented!()
    }

    /// Drops everything after the first `length` tokens.
    pub fn truncate(&mut self, _length: usize) {
        unimplemented!()
    }
}
