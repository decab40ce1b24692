//! What a job will do: metadata, order, names and types of the tensors, decided before any work.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Imatrix, Options};
use crate::gguf::{self, Metadata, Source, TensorDecl, TensorInfo, TensorType, Value};
use crate::quant::recipe::{Architecture, Choice, FileType, Recipe, Role, Tensor, layer_of};
use crate::{Error, Result, quant};

/// The version of the block formats: `GGML_QNT_VERSION` in ggml.h.
const QUANTIZATION_VERSION: u32 = 2;
/// llama.cpp keeps texts of these keys in 128 bytes, the last one 0.
const TEXT_BYTES: usize = 127;

/// A job, ready to be run.
#[derive(Debug)]
pub struct Plan {
    /// The files to write: one, unless the source's parts are kept.
    pub parts: Vec<Part>,
    /// The tensors in the order they are written.
    pub tensors: Vec<Planned>,
    /// Whether files are named as parts of a split model.
    pub split: bool,
}

/// One file to be written.
#[derive(Debug)]
pub struct Part {
    pub metadata: Metadata,
}

/// What becomes of one tensor.
#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    /// Row length first.
    pub shape: Vec<u64>,
    /// Its number in the source.
    pub source: usize,
    /// Its name in the source, and in an importance matrix.
    pub source_name: String,
    /// Its type in the source.
    pub from: TensorType,
    /// Its type in the output.
    pub kind: TensorType,
    /// The type it would have if its row length allowed.
    pub instead_of: Option<TensorType>,
    /// Whether the recipe refuses to make it without an importance matrix.
    pub needs_imatrix: bool,
    /// Which output file it goes to, from 0.
    pub part: usize,
}

impl Planned {
    /// Elements of a row.
    pub fn columns(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Rows over all further dimensions.
    pub fn rows(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    /// Rows of each of the matrices it is made of (experts).
    pub fn rows_per_matrix(&self) -> u64 {
        self.shape.get(1).copied().unwrap_or(1).max(1)
    }

    pub fn elements(&self) -> u64 {
        self.columns() * self.rows()
    }

    /// Whether its bytes go to the output as they are.
    pub fn is_copied(&self) -> bool {
        self.from == self.kind
    }

    /// Bytes of a row in the source.
    pub fn source_row_bytes(&self) -> u64 {
        self.from.row_bytes(self.columns()).unwrap_or(0)
    }

    /// Bytes of a row in the output.
    pub fn row_bytes(&self) -> u64 {
        self.kind.row_bytes(self.columns()).unwrap_or(0)
    }

    /// Bytes in the output.
    pub fn bytes(&self) -> u64 {
        self.row_bytes() * self.rows()
    }

    /// Bytes of `rows` in the source.
    pub fn bytes_of_source(&self, rows: &Range<u64>) -> u64 {
        self.source_row_bytes() * (rows.end - rows.start)
    }

    /// What it is in the output, but for its place there.
    pub fn info(&self) -> TensorInfo {
        let TensorDecl { name, shape, kind } = self.declaration();
        TensorInfo { name, shape, kind, offset: 0, file: self.part }
    }

    fn declaration(&self) -> TensorDecl {
        TensorDecl { name: self.name.clone(), shape: self.shape.clone(), kind: self.kind }
    }
}

impl Plan {
    /// Decides what becomes of `source`.
    ///
    /// # Errors
    /// Metadata that a recipe needs and does not find, a type whose block fits no tensor's rows, layers to
    /// leave out that are not there.
    pub fn new(source: &dyn Source, options: &Options) -> Result<Self> {
        let mut metadata = describe(source, options)?;
        let invalid = |fault: String| Error::invalid(source.path(), fault);

        let (mut tensors, layers) = order(source, options)?;
        let choices = match &options.recipe {
            None => tensors.iter().map(|tensor| keep(tensor.from)).collect(),
            Some(recipe) => {
                let architecture =
                    Architecture::from_metadata(&metadata).map_err(|fault| invalid(fault.to_string()))?;
                let recipe = Recipe { imatrix: options.imatrix.is_some(), ..recipe.clone() };
                let subjects: Vec<Tensor<'_>> = tensors.iter().map(subject).collect();
                recipe.plan(&architecture, &subjects).map_err(|fault| invalid(fault.to_string()))?
            }
        };
        for (tensor, choice) in tensors.iter_mut().zip(choices) {
            tensor.apply(choice);
        }
        if let Some(layers) = layers {
            let key = format!(
                "{}.block_count",
                metadata.string("general.architecture").ok().flatten().unwrap_or_default()
            );
            put(&mut metadata, &key, Value::U32(layers));
        }
        let parts = into_parts(metadata, &tensors);
        Ok(Self { parts, tensors, split: options.keep_split })
    }

    /// Refuses what [`Self::new`] can plan but nobody should run: types that cannot be made, a missing or
    /// wrong importance matrix, quantizing again.
    pub fn check(&self, source: &dyn Source, options: &Options) -> Result<()> {
        for tensor in self.tensors.iter().filter(|tensor| !tensor.is_copied()) {
            let Planned { name, from, kind, .. } = tensor;
            let weights = match &options.imatrix {
                Some(imatrix) => imatrix.weights_for(tensor)?,
                None => None,
            };
            if weights.is_none() && (tensor.needs_imatrix || quant::needs_weights(*kind)) {
                return Err(missing_imatrix(tensor, options));
            }
            if let Some(unknown) = [*kind, *from].into_iter().find(|&kind| !quant::is_supported(kind)) {
                return Err(Error::Unsupported(format!(
                    "the tensor {name} of {} is {from} and would become {kind}, but {unknown} cannot be converted",
                    source.path().display()
                )));
            }
            if from.is_quantized() && !options.allow_requantize {
                return Err(Error::Usage(format!(
                    "{}: the tensor {name} is quantized already ({from}), and quantizing it again to {kind} loses \
                     quality twice; start from the F16, BF16 or F32 model, or allow it with --allow-requantize",
                    source.path().display()
                )));
            }
        }
        Ok(())
    }

    /// The first tensor that cannot be made without an importance matrix, if there is none in `options`.
    pub fn lacks_imatrix(&self, options: &Options) -> Option<&Planned> {
        let needs = |tensor: &&Planned| tensor.needs_imatrix && !tensor.is_copied();
        self.tensors.iter().find(needs).filter(|_| options.imatrix.is_none())
    }

    /// Tensor bytes of the source.
    pub fn bytes_in(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.source_row_bytes() * tensor.rows()).sum()
    }

    /// Tensor bytes of the output.
    pub fn bytes_out(&self) -> u64 {
        self.tensors.iter().map(Planned::bytes).sum()
    }

    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(Planned::elements).sum()
    }

    /// Bytes of all output files, metadata and padding included.
    ///
    /// # Errors
    /// A tensor without a size.
    pub fn file_bytes(&self, source: &dyn Source) -> Result<u64> {
        let bytes = |(index, part): (usize, &Part)| {
            gguf::file_bytes(&part.metadata, &self.declarations(index))
                .map_err(|fault| Error::invalid(source.path(), fault))
        };
        self.parts.iter().enumerate().map(bytes).sum()
    }

    /// The tensors of part `index`.
    pub(super) fn declarations(&self, index: usize) -> Vec<TensorDecl> {
        let tensors = self.tensors.iter().filter(|tensor| tensor.part == index);
        tensors.map(Planned::declaration).collect()
    }
}

impl Planned {
    /// Takes over what a recipe chose.
    pub(super) fn apply(&mut self, choice: Choice) {
        self.kind = choice.kind;
        self.instead_of = choice.instead_of;
        self.needs_imatrix = choice.needs_imatrix;
    }
}

fn keep(kind: TensorType) -> Choice {
    Choice { kind, instead_of: None, needs_imatrix: false }
}

fn subject(tensor: &Planned) -> Tensor<'_> {
    Tensor { name: &tensor.name, shape: &tensor.shape, kind: tensor.from }
}

fn missing_imatrix(tensor: &Planned, options: &Options) -> Error {
    let recipe =
        options.recipe.as_ref().map_or("this copy".to_owned(), |recipe| recipe.file_type.to_string());
    let why = match options.imatrix {
        Some(_) => "has no entry for it; make one from this model, with text that reaches every layer",
        None => "is not given; make one with `phi imatrix` and pass it with --imatrix",
    };
    Error::Usage(format!(
        "{recipe} makes the tensor {} a {}, which is useless without an importance matrix, and one {why}",
        tensor.name, tensor.kind
    ))
}

/// Sets `key` as its last entry, which is where llama-quantize puts what it sets.
fn put(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.remove(key);
    metadata.set(key, value);
}

/// The output's metadata, except for what the tensors decide.
fn describe(source: &dyn Source, options: &Options) -> Result<Metadata> {
    let mut metadata = source.metadata().clone();
    let file_type = match &options.recipe {
        Some(recipe) => recipe.file_type.id(),
        None => {
            let stated = metadata.u32("general.file_type");
            let stated = stated.map_err(|fault| Error::invalid(source.path(), fault))?;
            stated.unwrap_or_else(|| FileType::guess(in_order(source).map(|(_, tensor)| tensor.kind)))
        }
    };
    put(&mut metadata, "general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    put(&mut metadata, "general.file_type", Value::U32(file_type));
    for key in ["split.no", "split.count", "split.tensors.count"] {
        metadata.remove(key);
    }
    for (key, value) in &options.overrides {
        put(&mut metadata, key, value.clone());
    }
    if let Some(imatrix) = &options.imatrix {
        credit(&mut metadata, imatrix);
    }
    Ok(metadata)
}

/// Says in the metadata which importance matrix was used.
fn credit(metadata: &mut Metadata, imatrix: &Imatrix) {
    let text = |text: &str| Value::String(text[..text.floor_char_boundary(TEXT_BYTES)].to_owned());
    put(metadata, "quantize.imatrix.file", text(&imatrix.path().to_string_lossy()));
    if let Some(dataset) = imatrix.dataset() {
        put(metadata, "quantize.imatrix.dataset", text(dataset));
    }
    put(metadata, "quantize.imatrix.entries_count", Value::U32(imatrix.len() as u32));
    if imatrix.chunks() > 0 {
        put(metadata, "quantize.imatrix.chunks_count", Value::U32(imatrix.chunks()));
    }
}

/// The source's tensors by layer and name, which is the order of llama-quantize's outputs.
fn in_order(source: &dyn Source) -> impl Iterator<Item = (usize, &TensorInfo)> {
    let mut tensors: Vec<(usize, &TensorInfo)> = source.tensors().iter().enumerate().collect();
    tensors.sort_by(|(_, a), (_, b)| {
        layer_of(&a.name).cmp(&layer_of(&b.name)).then_with(|| a.name.cmp(&b.name))
    });
    tensors.into_iter()
}

/// The tensors in the order they are written, without the layers left out; and how many layers stay, if
/// any are left out.
fn order(source: &dyn Source, options: &Options) -> Result<(Vec<Planned>, Option<u32>)> {
    let mut renumbering = Renumbering::new(&options.prune);
    let mut tensors = Vec::new();
    for (index, info) in in_order(source) {
        let Some(name) = renumbering.rename(&info.name) else { continue };
        tensors.push(Planned {
            name,
            shape: info.shape.clone(),
            source: index,
            source_name: info.name.clone(),
            from: info.kind,
            kind: info.kind,
            instead_of: None,
            needs_imatrix: false,
            part: if options.keep_split { info.file } else { 0 },
        });
    }
    if let Some(layer) = options.prune.iter().find(|layer| !renumbering.names.contains_key(layer)) {
        return Err(Error::Usage(format!(
            "--prune-layers: there is no layer {layer} in {}",
            source.path().display()
        )));
    }
    if options.keep_split {
        let infos = source.tensors();
        tensors.sort_by_key(|tensor| (tensor.part, infos.get(tensor.source).map(|info| info.offset)));
    }
    let layers = (!options.prune.is_empty()).then_some(renumbering.next);
    Ok((tensors, layers))
}

/// New numbers for the layers behind those that are left out.
struct Renumbering<'a> {
    prune: &'a [u32],
    /// Layers met so far, with their new numbers; `None` for those left out.
    names: BTreeMap<u32, Option<u32>>,
    next: u32,
}

impl<'a> Renumbering<'a> {
    fn new(prune: &'a [u32]) -> Self {
        Self { prune, names: BTreeMap::new(), next: 0 }
    }

    /// The name that the tensor `name` gets, or `None` if its layer is left out. To be called layer by layer.
    fn rename(&mut self, name: &str) -> Option<String> {
        let layer = u32::try_from(layer_of(name)).ok().filter(|_| !self.prune.is_empty());
        let Some(layer) = layer else { return Some(name.to_owned()) };
        let is_pruned = self.prune.contains(&layer);
        let next = &mut self.next;
        let number = *self.names.entry(layer).or_insert_with(|| {
            (!is_pruned).then(|| {
                *next += 1;
                *next - 1
            })
        });
        let rest = name.strip_prefix("blk.")?.trim_start_matches(|c: char| c.is_ascii_digit());
        number.map(|number| format!("blk.{number}{rest}"))
    }
}

/// One file, or one a part of the source.
fn into_parts(metadata: Metadata, tensors: &[Planned]) -> Vec<Part> {
    let count = tensors.iter().map(|tensor| tensor.part + 1).max().unwrap_or(1);
    let mut parts = vec![Part { metadata }];
    parts.resize_with(count, || Part { metadata: Metadata::new() });
    if count > 1 {
        for (index, part) in parts.iter_mut().enumerate() {
            put(&mut part.metadata, "split.no", Value::U16(index as u16));
            put(&mut part.metadata, "split.count", Value::U16(count as u16));
            put(&mut part.metadata, "split.tensors.count", Value::I32(tensors.len() as i32));
        }
    }
    parts
}

/// Whether importance matrices ever cover the tensor.
pub(super) fn is_embedding(name: &str) -> bool {
    Role::of(name) == Role::TokenEmbedding
}
