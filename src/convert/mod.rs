//! HF checkpoint to GGUF: the same tensors and metadata as llama.cpp's convert_hf_to_gguf.py, plus a few keys of
//! our own (docs/formats.md).

mod byte_level;
mod cast;
mod fault;
mod general;
mod hyper;
mod model_id;
mod names;
mod origin;
mod special;
mod stream;
mod vocabulary;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use fault::Fault;
pub use stream::stream;

use crate::checkpoint::{Checkpoint, DataType, ModelConfig, Weights};
use crate::gguf::{Metadata, Source, TensorDecl, TensorInfo, TensorType, Value, Writer, no_such_rows};
use crate::{Error, Result, fs};
use byte_level::ByteLevel;
use general::Naming;
use names::{Layout, RowOrder};
use origin::{Origin, Stored};
use vocabulary::Vocabulary;

/// What the weights become. Vectors (norms, RoPE factors) are F32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutType {
    /// BF16 if the first matrix of 16 bits is stored so, otherwise F16.
    #[default]
    Auto,
    F32,
    F16,
    Bf16,
    Q8_0,
    /// Each matrix as it is stored: nothing is lost, for quantizing without an intermediate file.
    Stored,
}

impl OutType {
    /// The type with this name, as on the command line.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "auto" => Self::Auto,
            "f32" => Self::F32,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "q8_0" => Self::Q8_0,
            _ => return None,
        })
    }
}

/// How a checkpoint is converted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub outtype: OutType,
    /// Replaces the name found in the checkpoint.
    pub model_name: Option<String>,
    /// Metadata and vocabulary only, no tensors.
    pub vocab_only: bool,
}

/// A checkpoint's counterpart as a GGUF model: metadata and tensors, converted when they are read.
pub struct Conversion {
    folder: PathBuf,
    /// The checkpoint's own files.
    files: Vec<PathBuf>,
    weights: Arc<Weights>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Where each tensor's numbers come from; as long as `tensors`.
    origins: Vec<Origin>,
    naming: Naming,
    /// The file type's name: "F16".
    encoding: &'static str,
    vocab_only: bool,
    warnings: Vec<String>,
}

impl Conversion {
    /// Decides what each part of `checkpoint` becomes, and checks that the parts fit together.
    ///
    /// Errors: each [`Fault`].
    pub fn plan(checkpoint: &Checkpoint, options: &Options) -> Result<Self> {
        Self::try_plan(checkpoint, options).map_err(|fault| Error::invalid(checkpoint.path(), fault))
    }

    fn try_plan(checkpoint: &Checkpoint, options: &Options) -> Result<Self, Fault> {
        let config = checkpoint.config();
        let weights = checkpoint.weights();
        let base = base_type(weights, options.outtype);
        let mut this = Self {
            folder: checkpoint.path().to_owned(),
            files: checkpoint.files(),
            weights: Arc::clone(weights),
            metadata: Metadata::new(),
            tensors: Vec::new(),
            origins: Vec::new(),
            naming: Naming::default(),
            encoding: base.name(),
            vocab_only: options.vocab_only,
            warnings: Vec::new(),
        };
        if !options.vocab_only {
            this.add_rope_factors(config);
            this.add_weights(config, options.outtype, base)?;
        }
        let parameters = this.tensors.iter().map(TensorInfo::elements).sum();
        let label = (parameters > 0).then(|| this.size_label(parameters));
        this.naming = Naming::of(checkpoint, parameters, label, options.model_name.as_deref());
        this.write_metadata(checkpoint, parameters, file_type(base))?;
        Ok(this)
    }

    /// The model's size as names have it: "3.8B", or with experts "16x4.1B" (shared weights and one expert's).
    fn size_label(&self, parameters: u64) -> String {
        let stacked = || self.tensors.iter().filter(|tensor| tensor.name.contains("_exps."));
        let count = |tensor: &TensorInfo| tensor.shape.last().copied().unwrap_or(1).max(1);
        let (all, one) = stacked().fold((0, 0), |(all, one), tensor| {
            (all + tensor.elements(), one + tensor.elements() / count(tensor))
        });
        match stacked().map(count).max() {
            Some(experts) => format!("{experts}x{}", model_id::size_label(parameters - all + one)),
            None => model_id::size_label(parameters),
        }
    }

    fn add_rope_factors(&mut self, config: &ModelConfig) {
        let Some(factors) = &config.rope_factors else { return };
        for (name, factors) in
            [("rope_factors_long.weight", &factors.long), ("rope_factors_short.weight", &factors.short)]
        {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| (*factor as f32).to_le_bytes()).collect();
            self.add(name.to_owned(), &[factors.len() as u64], TensorType::F32, Origin::Made(bytes));
        }
    }

    fn add_weights(&mut self, config: &ModelConfig, outtype: OutType, base: TensorType) -> Result<(), Fault> {
        let weights = Arc::clone(&self.weights);
        let layout = Layout::of(config);
        // Experts wait until a layer's are complete: places of its tensors by GGUF name, in the order of experts.
        let mut experts: HashMap<String, Vec<Option<usize>>> = HashMap::new();
        for (index, tensor) in weights.tensors().iter().enumerate() {
            if names::is_ignored(&tensor.name) {
                continue;
            }
            let expected =
                layout.expected(&tensor.name).ok_or_else(|| Fault::UnknownTensor(tensor.name.clone()))?;
            if tensor.shape != expected.shape {
                return Err(Fault::Shape {
                    tensor: tensor.name.clone(),
                    found: tensor.shape.clone(),
                    expected: expected.shape.clone(),
                    fields: expected.fields,
                });
            }
            let dtype = tensor.dtype.ok_or_else(|| Fault::DataType {
                tensor: tensor.name.clone(),
                found: tensor.dtype_name.clone(),
            })?;
            let name = &expected.gguf_name;
            if let Some((expert, count)) = expected.expert {
                let places = experts.entry(name.clone()).or_insert_with(|| vec![None; count as usize]);
                places[expert as usize] = Some(index);
                self.add_experts(name, &mut experts, outtype, base)?;
                continue;
            }
            let kind = self.kind_of(name, &tensor.shape, dtype, outtype, base);
            let mut origin = Origin::Stored(Stored { parts: vec![index], dtype, order: expected.rows });
            if tensor.shape.len() == 1 && expected.rows != RowOrder::AsStored {
                origin = Origin::Made(origin::reordered_vector(weights.data(tensor), dtype, expected.rows));
            }
            self.add(name.clone(), &tensor.shape, kind, origin);
        }
        layout.check_complete(|name| weights.tensor(name).is_some())
    }

    /// Adds the three stacks of a layer's experts once the last of them was seen, as that of tensor `name` may be.
    fn add_experts(
        &mut self,
        name: &str,
        experts: &mut HashMap<String, Vec<Option<usize>>>,
        outtype: OutType,
        base: TensorType,
    ) -> Result<(), Fault> {
        let weights = Arc::clone(&self.weights);
        let layer = name.split(".ffn_").next().unwrap_or_default();
        let stacks = ["gate", "down", "up"].map(|part| format!("{layer}.ffn_{part}_exps.weight"));
        let complete = |name: &String| {
            experts.get(name).and_then(|places| places.iter().copied().collect::<Option<Vec<usize>>>())
        };
        let Some(parts) = stacks.iter().map(complete).collect::<Option<Vec<_>>>() else { return Ok(()) };
        for (name, parts) in stacks.into_iter().zip(parts) {
            let tensors: Vec<_> = parts.iter().filter_map(|part| weights.tensors().get(*part)).collect();
            let Some(first) = tensors.first() else { continue };
            let dtype = first.dtype;
            if let Some(other) = tensors.iter().find(|tensor| tensor.dtype != dtype) {
                let (tensor, found) = (other.name.clone(), other.dtype_name.clone());
                return Err(Fault::ExpertType { tensor, found, expected: first.dtype_name.clone() });
            }
            let Some(dtype) = dtype else { continue };
            let shape: Vec<u64> =
                [parts.len() as u64].into_iter().chain(first.shape.iter().copied()).collect();
            let kind = self.kind_of(&name, &shape, dtype, outtype, base);
            self.add(name, &shape, kind, Origin::Stored(Stored { parts, dtype, order: RowOrder::AsStored }));
        }
        Ok(())
    }

    /// The type that a tensor of `shape` gets.
    fn kind_of(
        &mut self,
        name: &str,
        shape: &[u64],
        dtype: DataType,
        outtype: OutType,
        base: TensorType,
    ) -> TensorType {
        if shape.len() == 1 || names::is_always_f32(name) {
            return TensorType::F32;
        }
        let kind = if outtype == OutType::Stored { stored_type(dtype) } else { base };
        let columns = shape.last().copied().unwrap_or(0);
        if kind.row_bytes(columns).is_none() {
            self.warnings.push(format!(
                "{name} has rows of {columns} elements, no whole number of {kind} blocks: it is written as F16"
            ));
            return TensorType::F16;
        }
        kind
    }

    /// Adds a tensor; `shape` has rows first, as in the checkpoint.
    fn add(&mut self, name: String, shape: &[u64], kind: TensorType, origin: Origin) {
        let shape = shape.iter().rev().copied().collect();
        self.tensors.push(TensorInfo { name, shape, kind, offset: 0, file: 0 });
        self.origins.push(origin);
    }

    /// All keys, in the order in which convert_hf_to_gguf.py writes them; our own come last.
    fn write_metadata(
        &mut self,
        checkpoint: &Checkpoint,
        parameters: u64,
        file_type: u32,
    ) -> Result<(), Fault> {
        let config = checkpoint.config();
        let byte_level =
            ByteLevel::is(checkpoint.tokenizer()).then(|| ByteLevel::of(checkpoint)).transpose()?;
        let sentencepiece = byte_level.is_none().then(|| Vocabulary::of(checkpoint)).transpose()?;
        let metadata = &mut self.metadata;
        metadata.set("general.architecture", Value::from(config.architecture.name()));
        if config.rope_factors.is_some() && !self.vocab_only {
            hyper::write_attention_factor(config, metadata);
        }
        self.naming.write(checkpoint, parameters, metadata);
        hyper::write(config, file_type, metadata);
        // The version of the block formats (GGML_QNT_VERSION).
        metadata.set("general.quantization_version", Value::U32(2));
        let sizes = (byte_level.as_ref().map(ByteLevel::len), sentencepiece.as_ref().map(Vocabulary::len));
        let vocab_size = sizes.0.or(sizes.1).unwrap_or(0) as u32;
        byte_level.into_iter().for_each(|vocabulary| vocabulary.write(metadata));
        sentencepiece.into_iter().for_each(|vocabulary| vocabulary.write(metadata));
        special::write(checkpoint, vocab_size, metadata);
        hyper::write_own_keys(config, metadata);
        vocabulary::write_own_keys(checkpoint, metadata)
    }

    /// What the user should know: one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::bytes).sum()
    }

    /// Where the file goes: `outfile` with "{ftype}" and its like replaced by the type's name; in a folder, or for
    /// `None` in the checkpoint's own folder, a file named after the model ("Phi-3.5-mini-instruct-F16.gguf").
    pub fn output_path(&self, outfile: Option<&Path>) -> PathBuf {
        let outfile = outfile.unwrap_or(&self.folder);
        if outfile.is_dir() {
            let encoding = (!self.vocab_only).then_some(self.encoding);
            return outfile.join(format!("{}.gguf", self.naming.file_stem(encoding)));
        }
        let Some(name) = outfile.file_name().and_then(|name| name.to_str()) else {
            return outfile.to_owned();
        };
        let (lower, upper) = (self.encoding.to_lowercase(), self.encoding.to_uppercase());
        let mut name = name.to_owned();
        for (placeholder, value) in [
            ("{ftype}", &lower),
            ("{outtype}", &lower),
            ("{}", &lower),
            ("{FTYPE}", &upper),
            ("{OUTTYPE}", &upper),
        ] {
            name = name.replace(placeholder, value);
        }
        outfile.with_file_name(name)
    }

    /// Writes the model to `path`, whole or not at all. `progress` is told how many tensor bytes are written so far.
    ///
    /// Errors: those of [`Writer`], an output that is one of the checkpoint's own files.
    pub fn write(&self, path: &Path, threads: usize, progress: &mut dyn FnMut(u64)) -> Result<()> {
        fs::ensure_distinct(path, self.files.iter().map(PathBuf::as_path))?;
        let declarations: Vec<TensorDecl> = self.tensors.iter().map(TensorInfo::declaration).collect();
        let mut writer = Writer::create(path, &self.metadata, &declarations)?;
        let mut written = 0;
        stream(self, threads, |bytes| {
            writer.write(bytes)?;
            written += bytes.len() as u64;
            progress(written);
            Ok(())
        })?;
        writer.finish().map(drop)
    }
}

impl Source for Conversion {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn raw(&self, index: usize) -> Option<&[u8]> {
        let tensor = self.tensors.get(index)?;
        match self.origins.get(index)? {
            Origin::Made(bytes) => Some(bytes),
            Origin::Stored(stored) if stored_type(stored.dtype) == tensor.kind => stored.raw(&self.weights),
            Origin::Stored(_) => None,
        }
    }

    fn bytes(&self, index: usize, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        self.read_rows(index, &rows, out).ok_or_else(|| no_such_rows(&self.folder, index, &rows))
    }

    fn release(&self, index: usize, rows: Range<u64>) {
        self.each_run(index, &rows, |stored, range| self.weights.forget(stored, range));
    }

    fn prefetch(&self, index: usize, rows: Range<u64>) {
        self.each_run(index, &rows, |stored, range| self.weights.prefetch(stored, range));
    }
}

impl Conversion {
    /// Fills `out` with rows; `None` if there are no such rows or `out` is of another size.
    fn read_rows(&self, index: usize, rows: &Range<u64>, out: &mut [u8]) -> Option<()> {
        let tensor = self.tensors.get(index)?;
        match self.origins.get(index)? {
            Origin::Made(bytes) => {
                let bytes = bytes.get(tensor.row_range(rows)?).filter(|bytes| bytes.len() == out.len())?;
                out.copy_from_slice(bytes);
                Some(())
            }
            Origin::Stored(stored) => stored.read(&self.weights, tensor, rows, out),
        }
    }

    /// Calls `f` with the places of `rows` among stored bytes, where they lie in order.
    fn each_run(
        &self,
        index: usize,
        rows: &Range<u64>,
        f: impl Fn(&crate::checkpoint::Tensor, Range<usize>),
    ) {
        let (Some(tensor), Some(Origin::Stored(stored))) = (self.tensors.get(index), self.origins.get(index))
        else {
            return;
        };
        if stored.order != RowOrder::AsStored {
            return;
        }
        for run in stored.runs(tensor, rows).into_iter().flatten() {
            if let Some(part) = self.weights.tensors().get(run.part) {
                f(part, run.bytes);
            }
        }
    }
}

/// The type that most matrices get, and that the file is named after.
fn base_type(weights: &Weights, outtype: OutType) -> TensorType {
    let mut matrices = weights.tensors().iter().filter(|tensor| tensor.shape.len() >= 2).map(|t| t.dtype);
    match outtype {
        OutType::F32 => TensorType::F32,
        OutType::F16 => TensorType::F16,
        OutType::Bf16 => TensorType::BF16,
        OutType::Q8_0 => TensorType::Q8_0,
        // The first matrix of 16 bits decides; F32 alone becomes F16.
        OutType::Auto => match matrices.find(|dtype| matches!(dtype, Some(DataType::Bf16 | DataType::F16))) {
            Some(Some(DataType::Bf16)) => TensorType::BF16,
            _ => TensorType::F16,
        },
        OutType::Stored => matrices.next().flatten().map_or(TensorType::F16, stored_type),
    }
}

fn stored_type(dtype: DataType) -> TensorType {
    match dtype {
        DataType::F32 => TensorType::F32,
        DataType::F16 => TensorType::F16,
        DataType::Bf16 => TensorType::BF16,
    }
}

/// `general.file_type` (llama_ftype in llama.h).
fn file_type(base: TensorType) -> u32 {
    match base {
        TensorType::F32 => 0,
        TensorType::F16 => 1,
        TensorType::Q8_0 => 7,
        _ => 32,
    }
}
