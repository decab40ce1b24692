//! Sequences, batches, the prefill/decode loop and its stop rules.

mod cost;
pub mod evaluate;
pub mod generate;
mod offload;
mod prompt_cache;
pub mod score;
pub(crate) mod shift;
mod speculate;
mod step;

pub use cost::Cost;
pub use offload::{Offload, OffloadEvent, OffloadLayers, Offloaded, offload};
pub use prompt_cache::Useless;
pub use speculate::{DraftModel, Drafter, Lookup, Range as DraftRange, Speculator};

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use crate::backend::cpu::{self, Cpu, total_memory};
use crate::backend::hybrid::{Cache, CacheShape, Device, Hybrid};
use crate::backend::{Largest, Part};
use crate::gguf::Gguf;
pub use crate::kernel::kv::KvType;
use crate::kernel::kv::MAX_HEAD;
use crate::machine::{self, Numa};
use crate::model::{Model, Regime, Workspace, forward};
use crate::{Error, Result};

/// How an [`Engine`] is set up.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Worker threads; `None` takes what the machine, the cgroup and the affinity mask allow.
    pub threads: Option<usize>,
    /// Worker threads for prompts; `None` takes as many as `threads`.
    pub threads_batch: Option<usize>,
    /// On which processors they run; `None` leaves that to the system.
    pub numa: Option<Numa>,
    /// Element type of the cached keys.
    pub cache_type_k: KvType,
    /// Element type of the cached values.
    pub cache_type_v: KvType,
    /// Tokens fed through the model at once while a prompt is read.
    pub batch: usize,
    /// What goes to graphics processors; by default nothing.
    pub offload: Offload,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            threads_batch: None,
            numa: None,
            cache_type_k: KvType::F16,
            cache_type_v: KvType::F16,
            batch: Cpu::tokens_at_once(),
            offload: Offload::default(),
        }
    }
}

/// More threads than any machine has processors.
const MOST_THREADS: usize = 1024;

/// Puts each thread of `cpu` on its processors.
fn placed(cpu: Cpu, placement: Option<&[Vec<usize>]>) -> Cpu {
    if let Some(placement) = placement {
        cpu.on_each_thread(|i| {
            if let Some(cpus) = placement.get(i) {
                // A processor may have gone offline; the thread then stays where it is.
                let _ = machine::pin_thread(cpus);
            }
        });
    }
    cpu
}

/// What is known of the logits after a token.
#[derive(Clone, Debug, PartialEq)]
pub enum Logits {
    /// `[vocab]`.
    All(Vec<f32>),
    /// The highest ones.
    Highest(Largest),
}

/// Takes what it wants from the workspace after a batch.
type Taker<'a> = dyn FnMut(&Workspace<Hybrid>) -> Result<()> + 'a;

/// A model made ready to run. Shared by all sequences.
pub struct Engine {
    model: Model,
    backend: Hybrid,
    offloaded: Offloaded,
    options: EngineOptions,
    /// One batch at a time.
    work: Mutex<Workspace<Hybrid>>,
}

/// One sequence of tokens with its KV cache.
pub struct Sequence {
    tokens: Vec<u32>,
    cache: Cache,
    regime: Regime,
    context: usize,
}

impl Engine {
    /// Binds the weights of `file`.
    ///
    /// # Errors
    /// A file that is no complete model of a supported architecture; an option that cannot be met.
    pub fn new(file: Arc<Gguf>, options: EngineOptions) -> Result<Self> {
        Self::with_events(file, options, &mut |_| {})
    }

    /// The same; `events` is told how the weights get to graphics processors.
    ///
    /// # Errors
    /// As for [`Self::new`]; a device that fails.
    pub fn with_events(
        file: Arc<Gguf>,
        options: EngineOptions,
        events: &mut dyn FnMut(OffloadEvent<'_>),
    ) -> Result<Self> {
        let model = Model::load(file)?;
        if model.hyper.head > MAX_HEAD {
            return Err(Error::Unsupported(format!(
                "{}: heads of {} elements are more than the {MAX_HEAD} that attention works with",
                model.file().path().display(),
                model.hyper.head
            )));
        }
        let count = |threads: usize| threads.clamp(1, MOST_THREADS);
        let threads = count(options.threads.unwrap_or_else(machine::default_threads));
        let more = options.threads_batch.map(count).filter(|&more| more != threads);
        let most = threads.max(more.unwrap_or(0));
        let placement = options.numa.and_then(|numa| machine::place(numa, most));
        let cpu = |threads| placed(Cpu::new(threads), placement.as_deref());
        let devices = options.offload.devices.iter().map(Device::open).collect::<Result<_>>()?;
        let mut backend = Hybrid::new(cpu(threads), more.map(cpu), devices);
        let offloaded = offload(&mut backend, &model, &options.offload, events)?;
        Ok(Self { model, backend, offloaded, options, work: Mutex::default() })
    }

    /// What runs on graphics processors.
    pub fn offloaded(&self) -> &Offloaded {
        &self.offloaded
    }

    /// The model's own context length in tokens (131,072 for Phi-3.5-mini).
    pub fn model_context(&self) -> usize {
        self.model.hyper.context
    }

    /// Logits a position has.
    pub fn vocab_size(&self) -> usize {
        self.model.vocabulary()
    }

    /// Threads it computes with.
    pub fn threads(&self) -> usize {
        self.backend.cpu().threads()
    }

    fn cache_shape(&self) -> CacheShape {
        let hyper = &self.model.hyper;
        self.backend.cache_shape(cpu::CacheShape {
            layers: hyper.layers,
            kv_heads: hyper.kv_heads,
            head: hyper.head,
            keys: self.options.cache_type_k,
            values: self.options.cache_type_v,
        })
    }

    /// Bytes of KV cache that `positions` tokens take.
    pub fn cache_bytes(&self, positions: usize) -> u64 {
        self.cache_shape().bytes(positions)
    }

    /// Whether a context that somebody asked for can be had.
    ///
    /// # Errors
    /// More than the model's own context, or a KV cache larger than the machine's memory.
    pub fn check_context(&self, context: usize) -> Result<()> {
        if context > self.model_context() {
            return Err(Error::Usage(format!(
                "a context of {context} tokens is more than the {} that the model was made for",
                self.model_context()
            )));
        }
        let needed = self.cache_shape().host_bytes(context);
        match total_memory() {
            Some(total) if needed > total => Err(Error::Resources(format!(
                "a context of {context} tokens needs {:.1} GiB of KV cache and this machine has {:.1} GiB of memory: \
                 ask for a smaller one with --ctx-size",
                needed as f64 / f64::from(1 << 30),
                total as f64 / f64::from(1 << 30)
            ))),
            _ => Ok(()),
        }
    }

    /// An empty sequence that may grow to `context` tokens; memory is taken as it grows.
    ///
    /// # Errors
    /// A context of 0 or beyond the model's own.
    pub fn sequence(&self, context: usize) -> Result<Sequence> {
        if context == 0 || context > self.model_context() {
            return Err(Error::Usage(format!(
                "a context of {context} tokens cannot be had: the model was made for 1 to {}",
                self.model_context()
            )));
        }
        Ok(Sequence {
            tokens: Vec::new(),
            cache: self.backend.cache(&self.cache_shape()),
            regime: Regime::Short,
            context,
        })
    }

    /// Appends `tokens` and returns the logits of the last `last` of them, `[last, vocab]`, row-major.
    ///
    /// `progress` is told after each batch how many of `tokens` are done and may stop it
    /// ([`Error::Interrupted`]; the sequence then holds the tokens done). When the sequence crosses the
    /// model's LongRoPE limit its whole cache is computed anew with the other factors.
    ///
    /// # Errors
    /// No tokens, a token that is not in the vocabulary, more tokens than there is room for, too little memory.
    pub fn feed(
        &self,
        sequence: &mut Sequence,
        tokens: &[u32],
        last: usize,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let mut take = |work: &Workspace<Hybrid>| {
            let some = work.logits(&self.backend)?;
            if logits.is_empty() {
                logits = some;
            } else {
                logits.extend_from_slice(&some);
            }
            Ok(())
        };
        self.feed_into(sequence, tokens, last, &mut take, progress)?;
        Ok(logits)
    }

    /// The same, one entry a token: its `highest` logits alone, if so many are enough and that is less work.
    ///
    /// # Errors
    /// As for [`Self::feed`].
    pub fn feed_for(
        &self,
        sequence: &mut Sequence,
        tokens: &[u32],
        last: usize,
        highest: Option<usize>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Logits>> {
        let mut rows = Vec::new();
        let mut take = |work: &Workspace<Hybrid>| {
            let found = highest.map(|count| work.highest(&self.backend, count)).transpose()?.flatten();
            match found {
                Some(found) => rows.extend(found.into_iter().map(Logits::Highest)),
                None => {
                    let all = work.logits(&self.backend)?;
                    if all.len() == self.vocab_size() {
                        rows.push(Logits::All(all));
                    } else {
                        let each = all.chunks_exact(self.vocab_size());
                        rows.extend(each.map(|row| Logits::All(row.to_vec())));
                    }
                }
            }
            Ok(())
        };
        self.feed_into(sequence, tokens, last, &mut take, progress)?;
        Ok(rows)
    }

    /// Appends `tokens`; `take` gets the workspace after each batch.
    fn feed_into(
        &self,
        sequence: &mut Sequence,
        tokens: &[u32],
        last: usize,
        take: &mut Taker<'_>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<()> {
        self.check_tokens(sequence, tokens)?;
        let before = sequence.tokens.len();
        let length = before + tokens.len();
        let regime = self.model.rope.regime(length);
        let mut all = std::mem::take(&mut sequence.tokens);
        all.extend_from_slice(tokens);
        let start = if regime == sequence.regime { before } else { 0 };
        sequence.regime = regime;
        let result = self.feed_from(sequence, &all, start, last.min(tokens.len()), take, &mut |done| {
            progress(done.saturating_sub(before))
        });
        let done = match &result {
            Ok(()) => length,
            Err((done, _)) => *done,
        };
        all.truncate(done);
        sequence.tokens = all;
        result.map_err(|(_, error)| error)
    }

    fn check_tokens(&self, sequence: &Sequence, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Usage("there are no tokens to feed to the model".to_owned()));
        }
        if tokens.len() > sequence.room() {
            return Err(Error::Usage(format!(
                "{} tokens do not fit the context of {}, which already holds {}",
                tokens.len(),
                sequence.context,
                sequence.tokens.len()
            )));
        }
        let vocabulary = self.vocab_size();
        match tokens.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::Usage(format!("token {id} is not one of the model's {vocabulary}"))),
            None => Ok(()),
        }
    }

    /// Computes `all[start..]`, batch by batch. An error comes with the tokens that are in the cache.
    fn feed_from(
        &self,
        sequence: &mut Sequence,
        all: &[u32],
        start: usize,
        last: usize,
        take: &mut Taker<'_>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> std::result::Result<(), (usize, Error)> {
        let mut work = self.work.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let first_output = all.len() - last;
        let mut position = start;
        while position < all.len() {
            let end = (position + self.options.batch.max(1)).min(all.len());
            self.backend.reserve(&mut sequence.cache, end).map_err(|error| (position, error))?;
            let outputs: Vec<usize> = (first_output.max(position)..end).map(|p| p - position).collect();
            let mut parts = [Part { cache: &mut sequence.cache, rows: 0..end - position, position }];
            let ids = &all[position..end];
            forward(&self.model, &self.backend, &mut work, ids, &mut parts, &[sequence.regime], &outputs)
                .and_then(|()| take(&work))
                .map_err(|error| (position, error))?;
            position = end;
            if progress(position).is_break() && position < all.len() {
                return Err((position, Error::Interrupted));
            }
        }
        Ok(())
    }

    /// Tokens that may be appended in one batch with the same logits as one by one: LongRoPE's factors are those of
    /// the whole sequence, so none may be beyond the limit that an earlier one is short of.
    pub fn stretch(&self, sequence: &Sequence) -> usize {
        let length = sequence.tokens.len();
        self.model.rope.regime_end(length + 1).saturating_sub(length).min(sequence.room())
    }

    /// Bytes read from memory to generate one token now: weights and the KV cache so far.
    pub fn bytes_per_token(&self, sequence: &Sequence) -> u64 {
        let seen = sequence.tokens.len().min(self.model.hyper.window);
        self.model.bytes_per_token() + self.cache_shape().bytes_read(seen)
    }
}

impl Sequence {
    /// The tokens in the KV cache, in order.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens that may still be appended.
    pub fn room(&self) -> usize {
        self.context - self.tokens.len()
    }

    /// Drops everything after the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
    }
}
