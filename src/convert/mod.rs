//! HF checkpoint to GGUF: the same tensors and metadata as llama.cpp's convert_hf_to_gguf.py, plus a few keys of
//! our own (docs/formats.md).

mod cast;
mod fault;
mod general;
mod model_id;
mod names;
mod special;
mod stream;
mod vocabulary;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use fault::Fault;
pub use stream::stream;

use crate::checkpoint::{Checkpoint, DataType, Phi3Config, Weights};
use crate::gguf::{Metadata, Source, TensorDecl, TensorInfo, TensorType, Value, Writer, no_such_rows};
use crate::{Error, Result, fs};
use general::Naming;
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

enum Origin {
    /// A tensor of the checkpoint, by its place there.
    Stored { tensor: usize, dtype: DataType },
    /// Numbers from config.json, as F32 bytes.
    Made(Vec<u8>),
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
            names::check_complete(config, |name| weights.tensor(name).is_some())?;
        }
        let parameters = this.tensors.iter().map(TensorInfo::elements).sum();
        this.naming = Naming::of(checkpoint, parameters, options.model_name.as_deref());
        this.write_metadata(checkpoint, parameters, file_type(base))?;
        Ok(this)
    }

    fn add_rope_factors(&mut self, config: &Phi3Config) {
        let Some(factors) = &config.rope_factors else { return };
        for (name, factors) in
            [("rope_factors_long.weight", &factors.long), ("rope_factors_short.weight", &factors.short)]
        {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| (*factor as f32).to_le_bytes()).collect();
            self.add(name.to_owned(), &[factors.len() as u64], TensorType::F32, Origin::Made(bytes));
        }
    }

    fn add_weights(&mut self, config: &Phi3Config, outtype: OutType, base: TensorType) -> Result<(), Fault> {
        let weights = Arc::clone(&self.weights);
        for (index, tensor) in weights.tensors().iter().enumerate() {
            if names::is_ignored(&tensor.name) {
                continue;
            }
            let expected = names::expected(&tensor.name, config)
                .ok_or_else(|| Fault::UnknownTensor(tensor.name.clone()))?;
            if tensor.shape != expected.shape {
                return Err(Fault::Shape {
                    tensor: tensor.name.clone(),
                    found: tensor.shape.clone(),
                    expected: expected.shape,
                    fields: expected.fields,
                });
            }
            let dtype = tensor.dtype.ok_or_else(|| Fault::DataType {
                tensor: tensor.name.clone(),
                found: tensor.dtype_name.clone(),
            })?;
            let kind = self.kind_of(&expected.gguf_name, &tensor.shape, dtype, outtype, base);
            self.add(expected.gguf_name, &tensor.shape, kind, Origin::Stored { tensor: index, dtype });
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
        if shape.len() == 1 {
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
        let vocabulary = Vocabulary::of(checkpoint)?;
        let metadata = &mut self.metadata;
        metadata.set("general.architecture", Value::from("phi3"));
        if config.rope_factors.is_some() && !self.vocab_only {
            let factor = config.rope_attention_factor() as f32;
            metadata.set("phi3.rope.scaling.attn_factor", Value::F32(factor));
        }
        self.naming.write(checkpoint, parameters, metadata);
        let numbers = [
            ("context_length", Value::U32(config.max_position_embeddings)),
            ("rope.scaling.original_context_length", Value::U32(config.original_max_position_embeddings)),
            ("embedding_length", Value::U32(config.hidden_size)),
            ("feed_forward_length", Value::U32(config.intermediate_size)),
            ("block_count", Value::U32(config.num_hidden_layers)),
            ("attention.head_count", Value::U32(config.num_attention_heads)),
            ("attention.head_count_kv", Value::U32(config.num_key_value_heads)),
            ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
            ("rope.dimension_count", Value::U32(config.rope_dimensions())),
            ("rope.freq_base", Value::F32(config.rope_theta as f32)),
        ];
        for (key, value) in numbers {
            metadata.set(format!("phi3.{key}"), value);
        }
        metadata.set("general.file_type", Value::U32(file_type));
        metadata.set("phi3.attention.sliding_window", Value::U32(config.sliding_window.unwrap_or(0)));
        // The version of the block formats (GGML_QNT_VERSION).
        metadata.set("general.quantization_version", Value::U32(2));
        let vocab_size = vocabulary.len() as u32;
        vocabulary.write(metadata);
        special::write(checkpoint, vocab_size, metadata);
        self.warnings.extend(vocabulary::write_own_keys(checkpoint, metadata));
        Ok(())
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
        fs::ensure_distinct(path, self.weights.files())?;
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
            Origin::Stored { tensor: stored, dtype } if stored_type(*dtype) == tensor.kind => {
                self.weights.tensors().get(*stored).map(|stored| self.weights.data(stored))
            }
            Origin::Stored { .. } => None,
        }
    }

    fn bytes(&self, index: usize, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        self.read_rows(index, &rows, out).ok_or_else(|| no_such_rows(&self.folder, index, &rows))
    }

    fn release(&self, index: usize, rows: Range<u64>) {
        if let Some((stored, _, range)) = self.stored_range(index, &rows) {
            self.weights.forget(stored, range);
        }
    }

    fn prefetch(&self, index: usize, rows: Range<u64>) {
        if let Some((stored, _, range)) = self.stored_range(index, &rows) {
            self.weights.prefetch(stored, range);
        }
    }
}

impl Conversion {
    /// Fills `out` with rows; `None` if there are no such rows or `out` is of another size.
    fn read_rows(&self, index: usize, rows: &Range<u64>, out: &mut [u8]) -> Option<()> {
        let tensor = self.tensors.get(index)?;
        if let Origin::Made(bytes) = self.origins.get(index)? {
            let bytes = bytes.get(tensor.row_range(rows)?).filter(|bytes| bytes.len() == out.len())?;
            out.copy_from_slice(bytes);
            return Some(());
        }
        let (stored, dtype, range) = self.stored_range(index, rows)?;
        self.weights.prefetch(stored, range.clone());
        let bytes = self.weights.data(stored).get(range)?;
        cast::convert(dtype, bytes, tensor.kind, out).then_some(())
    }

    /// Where `rows` of a stored tensor lie among its bytes.
    fn stored_range(
        &self,
        index: usize,
        rows: &Range<u64>,
    ) -> Option<(&crate::checkpoint::Tensor, DataType, Range<usize>)> {
        let tensor = self.tensors.get(index)?;
        let Origin::Stored { tensor: stored, dtype } = self.origins.get(index)? else { return None };
        if rows.start > rows.end || rows.end > tensor.rows() {
            return None;
        }
        let row_bytes = tensor.columns().checked_mul(dtype.bytes() as u64)?;
        let start = usize::try_from(rows.start.checked_mul(row_bytes)?).ok()?;
        let end = usize::try_from(rows.end.checked_mul(row_bytes)?).ok()?;
        Some((self.weights.tensors().get(*stored)?, *dtype, start..end))
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
