//! GGUF (or checkpoint) to a quantized GGUF: the job behind `phi quantize`.
//!
//! [`Plan::new`] decides everything before any work: metadata, the order of the tensors and their types, as
//! llama-quantize does. [`run`] then reads, encodes and writes in a bounded pipeline.

mod chunk;
mod imatrix;
mod measure;
mod overrides;
mod pipeline;
mod plan;
pub mod report;
pub mod split;
mod target;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::gguf::{Output, Source, TensorType, Value, Writer};
use crate::quant::recipe::Recipe;
use crate::{Error, Result};

pub use imatrix::Imatrix;
pub use measure::ErrorSums;
pub use overrides::{parse_key_value, parse_kind, parse_layers, parse_tensor_type, parse_tensor_type_file};
pub use plan::{Part, Plan, Planned};
pub use target::Budget;

/// What is to be made of a model.
#[derive(Debug)]
pub struct Options {
    /// The types to choose; `None` copies every tensor as it is. The plan sets its `imatrix` flag.
    pub recipe: Option<Recipe>,
    pub imatrix: Option<Imatrix>,
    /// Encode tensors that are quantized already, which loses quality twice.
    pub allow_requantize: bool,
    /// Metadata to set, in this order.
    pub overrides: Vec<(String, Value)>,
    /// Layers to leave out, ascending.
    pub prune: Vec<u32>,
    /// Write the model in the parts the source has.
    pub keep_split: bool,
    /// Encoding threads; `None` takes what the machine and its limits allow.
    pub threads: Option<usize>,
    /// Bytes that tensor rows in flight may take.
    pub max_buffer: u64,
    /// Measure what quantization changes, for a report.
    pub measure: bool,
}

impl Options {
    /// The plain job for `recipe`; `None` copies.
    pub fn new(recipe: Option<Recipe>) -> Self {
        Self {
            recipe,
            imatrix: None,
            allow_requantize: false,
            overrides: Vec::new(),
            prune: Vec::new(),
            keep_split: false,
            threads: None,
            max_buffer: DEFAULT_BUFFER,
            measure: false,
        }
    }

    fn threads(&self) -> usize {
        self.threads.filter(|&n| n > 0).unwrap_or_else(available_threads)
    }
}

/// Enough for every thread to have rows to encode while others are written.
const DEFAULT_BUFFER: u64 = 256 << 20;

/// Where the result goes.
#[derive(Clone, Copy, Debug)]
pub enum Sink<'a> {
    /// The file that appears when all is done; with [`Options::keep_split`] on, what the parts' names begin with.
    File(&'a Path),
    /// A file image in memory; the label stands for its path in messages.
    Memory(&'a str),
}

/// What the caller is told while a job runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The first rows of `tensor`, the `index`th, come next.
    Tensor { index: usize, tensor: &'a Planned },
    /// Bytes of the source that are done.
    Bytes { done: u64, total: u64 },
}

/// What a job did.
#[derive(Debug)]
pub struct Summary {
    /// One, or one a part.
    pub outputs: Vec<Output>,
    /// Tensor bytes read and written.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub elements: u64,
    /// Tensors whose row length ruled out the type wanted.
    pub fallbacks: usize,
    pub time: Duration,
    /// What was measured of each tensor of the plan; zeros where nothing was.
    pub errors: Vec<ErrorSums>,
}

impl Summary {
    /// Bits an element takes in the output on average.
    pub fn bits_per_element(&self) -> f64 {
        self.bytes_out as f64 * 8.0 / self.elements.max(1) as f64
    }
}

/// Quantizes `source` into `sink`.
///
/// # Errors
/// Everything [`Plan::new`] refuses; values that are not finite in the source or that do not fit the type;
/// a disk that refuses; [`Error::Interrupted`] if `progress` breaks. Nothing is left behind then.
pub fn run(
    source: &dyn Source,
    sink: Sink<'_>,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Summary> {
    let plan = Plan::new(source, options)?;
    execute(source, sink, &plan, options, progress)
}

/// Does what `plan` says; see [`run`].
pub fn execute(
    source: &dyn Source,
    sink: Sink<'_>,
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Summary> {
    let start = Instant::now();
    plan.check(source, options)?;
    let mut writers = plan.writers(sink)?;
    let threads = options.threads();
    let chunks = chunk::split(&plan.tensors, chunk_bytes(options.max_buffer, threads));
    let (total, mut done) = (plan.bytes_in(), 0);

    let ahead = pipeline::window(threads);
    let prefetch =
        |chunk: &chunk::Chunk| source.prefetch(plan.tensors[chunk.tensor].source, chunk.rows.clone());
    chunks.iter().take(ahead).for_each(prefetch);
    let make = |index: usize, scratch: &mut chunk::Scratch, out: &mut Vec<u8>| {
        let chunk = &chunks[index];
        chunks.get(index + ahead).into_iter().for_each(prefetch);
        chunk::encode(source, &plan.tensors[chunk.tensor], chunk, options, scratch, out)
    };
    let mut next_tensor = 0;
    let mut errors = vec![ErrorSums::default(); plan.tensors.len()];
    let take = |index: usize, bytes: &[u8], sums: ErrorSums| {
        let chunk = &chunks[index];
        let tensor = &plan.tensors[chunk.tensor];
        if chunk.tensor == next_tensor {
            stop_if(progress(Progress::Tensor { index: next_tensor, tensor }))?;
            next_tensor += 1;
        }
        writers[tensor.part].write(bytes)?;
        errors[chunk.tensor].merge(&sums);
        done += tensor.bytes_of_source(&chunk.rows);
        stop_if(progress(Progress::Bytes { done, total }))
    };
    pipeline::run_in_order(threads, chunks.len(), make, take)?;

    let outputs = writers.into_iter().map(Writer::finish).collect::<Result<Vec<Output>>>()?;
    Ok(Summary {
        outputs,
        bytes_in: plan.bytes_in(),
        bytes_out: plan.bytes_out(),
        elements: plan.elements(),
        fallbacks: plan.tensors.iter().filter(|tensor| tensor.instead_of.is_some()).count(),
        time: start.elapsed(),
        errors,
    })
}

impl Plan {
    /// The path of part `index` of the output called `path`.
    pub fn output_path(&self, path: &Path, index: usize) -> PathBuf {
        if self.split { split::part_path(path, index, self.parts.len()) } else { path.to_owned() }
    }

    /// The started outputs, one a part.
    fn writers(&self, sink: Sink<'_>) -> Result<Vec<Writer>> {
        let start = |(index, part): (usize, &Part)| match sink {
            Sink::Memory(label) => Writer::in_memory(label, &part.metadata, &self.declarations(index)),
            Sink::File(path) => {
                Writer::create(&self.output_path(path, index), &part.metadata, &self.declarations(index))
            }
        };
        self.parts.iter().enumerate().map(start).collect()
    }
}

/// Bytes of source rows that one task takes: small enough to stay within the buffer, whatever waits.
fn chunk_bytes(max_buffer: u64, threads: usize) -> u64 {
    const MOST: u64 = 4 << 20;
    (max_buffer / pipeline::window(threads) as u64 / 2).clamp(1, MOST)
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn stop_if(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Whether `kind` can be made from other types here.
fn can_encode(kind: TensorType) -> bool {
    crate::quant::is_supported(kind)
}
