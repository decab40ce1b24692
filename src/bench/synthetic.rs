//! Models made up in memory: the shape and the tensor types of a real one, filled with noise in no time.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::Random;
use crate::backend::cpu::available_memory;
use crate::fs::human_bytes;
use crate::gguf::{Gguf, Metadata, Output, Source, TensorDecl, TensorInfo, TensorType, Value, Writer};
use crate::quant::{self, recipe::FileType, recipe::Recipe};
use crate::quantize::{Options, Plan};
use crate::{Error, Result};

/// The sizes of a model, as its config.json has them.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What `--shape` takes.
    pub name: &'static str,
    layers: u32,
    hidden: u32,
    feed_forward: u32,
    heads: u32,
    kv_heads: u32,
    /// Elements of a head that are rotated.
    rotary: u32,
    vocabulary: u32,
    context: u32,
    /// LongRoPE: the context of the short factors.
    original_context: Option<u32>,
    /// Sliding window in tokens.
    window: Option<u32>,
    /// Whether the token embedding is also the output matrix.
    tied: bool,
}

/// The shapes there are; the first is the default.
pub const SHAPES: &[Shape] = &[
    PHI_3_5_MINI,
    Shape {
        name: "phi-3-mini-4k",
        context: 4096,
        original_context: None,
        window: Some(2047),
        ..PHI_3_5_MINI
    },
    Shape {
        name: "phi-3-medium",
        layers: 40,
        hidden: 5120,
        feed_forward: 17_920,
        heads: 40,
        kv_heads: 10,
        rotary: 128,
        window: Some(131_072),
        ..PHI_3_5_MINI
    },
    Shape { name: "phi-4-mini", heads: 24, kv_heads: 8, vocabulary: 200_064, tied: true, ..PHI_3_5_MINI },
    // As models/phi-tiny.
    Shape {
        name: "tiny",
        layers: 4,
        hidden: 256,
        feed_forward: 512,
        heads: 4,
        kv_heads: 2,
        rotary: 64,
        vocabulary: 1504,
        context: 4096,
        original_context: Some(256),
        window: Some(8192),
        tied: false,
    },
];

const PHI_3_5_MINI: Shape = Shape {
    name: "phi-3.5-mini",
    layers: 32,
    hidden: 3072,
    feed_forward: 8192,
    heads: 32,
    kv_heads: 32,
    rotary: 96,
    vocabulary: 32_064,
    context: 131_072,
    original_context: Some(4096),
    window: Some(262_144),
    tied: false,
};

/// Rows of noise that a tensor repeats.
const TILE_ROWS: usize = 16;
/// About the size of weights in a trained model; it keeps activations in range.
const DEVIATION: f32 = 0.02;

impl Shape {
    /// The shape with this name.
    pub fn find(name: &str) -> Option<Self> {
        SHAPES.iter().find(|shape| shape.name == name).copied()
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        let text = |text: &str| Value::String(text.to_owned());
        metadata.set("general.architecture", text("phi3"));
        metadata.set("general.name", text(self.name));
        let mut number = |key: &str, value: u32| metadata.set(format!("phi3.{key}"), Value::U32(value));
        number("context_length", self.context);
        number("embedding_length", self.hidden);
        number("feed_forward_length", self.feed_forward);
        number("block_count", self.layers);
        number("attention.head_count", self.heads);
        number("attention.head_count_kv", self.kv_heads);
        number("rope.dimension_count", self.rotary);
        number("rope.scaling.original_context_length", self.original_context.unwrap_or(self.context));
        if let Some(window) = self.window {
            number("attention.sliding_window", window);
        }
        metadata.set("phi3.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        metadata.set("phi3.rope.freq_base", Value::F32(10_000.0));
        metadata
    }

    /// The tensors as a checkpoint of this shape has them: matrices of 16 bits, vectors of 32.
    fn tensors(&self) -> Vec<TensorInfo> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u32]| {
            let kind = if shape.len() > 1 { TensorType::F16 } else { TensorType::F32 };
            let shape = shape.iter().map(|&size| size.into()).collect();
            tensors.push(TensorInfo { name: format!("{name}.weight"), shape, kind, offset: 0, file: 0 });
        };
        let head = self.hidden / self.heads;
        add("token_embd".into(), &[self.hidden, self.vocabulary]);
        if !self.tied {
            add("output".into(), &[self.hidden, self.vocabulary]);
        }
        add("output_norm".into(), &[self.hidden]);
        if self.original_context.is_some() {
            add("rope_factors_long".into(), &[self.rotary / 2]);
            add("rope_factors_short".into(), &[self.rotary / 2]);
        }
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[u32]| add(format!("blk.{layer}.{name}"), shape);
            add("attn_norm", &[self.hidden]);
            add("attn_qkv", &[self.hidden, (self.heads + 2 * self.kv_heads) * head]);
            add("attn_output", &[self.heads * head, self.hidden]);
            add("ffn_norm", &[self.hidden]);
            add("ffn_up", &[self.hidden, 2 * self.feed_forward]);
            add("ffn_down", &[self.feed_forward, self.hidden]);
        }
        tensors
    }
}

/// A model of this shape whose tensors have the types that `phi quantize` would give them. It knows no text:
/// there is no tokenizer in it.
///
/// # Errors
/// [`Error::Resources`] if it does not fit this machine's memory; a type that does not fit the shape.
pub fn synthetic(shape: &Shape, file_type: FileType) -> Result<Gguf> {
    let label = format!("{} {file_type} (synthetic)", shape.name);
    let source = Blueprint { metadata: shape.metadata(), tensors: shape.tensors() };
    let plan = Plan::new(&source, &Options::new(Some(Recipe::new(file_type))))?;
    let needed = plan.bytes_out();
    if let Some(available) = available_memory().filter(|&available| available < needed) {
        return Err(Error::Resources(format!(
            "{label} takes {} of memory and this machine has {} left: choose a smaller --type or --shape",
            human_bytes(needed),
            human_bytes(available)
        )));
    }
    let metadata = plan.parts.first().map(|part| &part.metadata).unwrap_or(&source.metadata);
    let declarations: Vec<TensorDecl> = plan
        .tensors
        .iter()
        .map(|tensor| TensorDecl {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            kind: tensor.kind,
        })
        .collect();
    let mut writer = Writer::in_memory(&label, metadata, &declarations)?;
    let mut tiles = HashMap::new();
    for tensor in &declarations {
        let columns = tensor.shape.first().map_or(0, |&columns| columns as usize);
        let rows: u64 = tensor.shape[1..].iter().product();
        if tensor.shape.len() == 1 {
            let ones: Vec<u8> = (0..columns).flat_map(|_| 1.0f32.to_le_bytes()).collect();
            writer.write(&factors(&tensor.name, columns).unwrap_or(ones))?;
            continue;
        }
        let tile = match tiles.entry((tensor.kind, columns)) {
            std::collections::hash_map::Entry::Occupied(tile) => tile.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => free.insert(noise(tensor.kind, columns)?),
        };
        let row_bytes = tile.len() / TILE_ROWS;
        let mut left = rows as usize;
        while left > 0 {
            let now = left.min(TILE_ROWS);
            writer.write(&tile[..now * row_bytes])?;
            left -= now;
        }
    }
    match writer.finish()? {
        Output::Memory(image) => Gguf::from_bytes(image, label),
        Output::File(_) => unreachable!("the file was started in memory"),
    }
}

/// LongRoPE factors that differ, so that the two regimes do too.
fn factors(name: &str, count: usize) -> Option<Vec<u8>> {
    let step = match name {
        "rope_factors_long.weight" => 1.0,
        "rope_factors_short.weight" => 0.02,
        _ => return None,
    };
    Some((0..count).flat_map(|i| (1.0f32 + step * i as f32).to_le_bytes()).collect())
}

/// [`TILE_ROWS`] rows of noise as `kind`.
fn noise(kind: TensorType, columns: usize) -> Result<Vec<u8>> {
    let mut random = Random(0x0123_4567_89ab_cdef);
    // The sum of four uniform numbers is close to a normal one; each of them has a variance of 1/12.
    let scale = DEVIATION * 3.0f32.sqrt();
    let mut uniform = || (random.next() % (1 << 24)) as f32 / (1 << 24) as f32 - 0.5;
    let values: Vec<f32> =
        (0..TILE_ROWS * columns).map(|_| scale * (uniform() + uniform() + uniform() + uniform())).collect();
    let row_bytes = kind.row_bytes(columns as u64).expect("the plan chose a type that fits") as usize;
    let mut blocks = vec![0; TILE_ROWS * row_bytes];
    let ones = vec![1.0; columns];
    quant::encode(kind, &values, columns, quant::needs_weights(kind).then_some(&ones), &mut blocks)?;
    Ok(blocks)
}

/// A model that has a shape but no content, for planning.
struct Blueprint {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

impl Source for Blueprint {
    fn path(&self) -> &Path {
        Path::new("synthetic")
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn raw(&self, _index: usize) -> Option<&[u8]> {
        None
    }

    fn bytes(&self, index: usize, _rows: Range<u64>, _out: &mut [u8]) -> Result<()> {
        Err(Error::Usage(format!("tensor {index} of a synthetic model has no source")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::{Engine, EngineOptions};

    #[test]
    fn every_type_of_the_tiny_shape_runs_and_gives_numbers() {
        let shape = Shape::find("tiny").unwrap();
        for file_type in FileType::all() {
            let gguf = synthetic(&shape, file_type).unwrap();
            assert_eq!(gguf.metadata().u32("general.file_type").unwrap(), Some(file_type.id()));
            let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
            let engine = Engine::new(Arc::new(gguf), options).unwrap();
            let mut sequence = engine.sequence(16).unwrap();
            let logits =
                engine.feed(&mut sequence, &[1, 2, 3], 1, &mut |_| std::ops::ControlFlow::Continue(()));
            let logits = logits.unwrap();
            assert!(logits.iter().all(|logit| logit.is_finite()), "{file_type}");
            assert!(logits.iter().any(|&logit| logit != logits[0]), "{file_type}");
        }
    }

    #[test]
    fn shapes_have_the_parameters_of_their_models() {
        // Billions of elements, as the models' cards have them.
        for (name, billions) in [("phi-3.5-mini", 3.82), ("phi-3-medium", 13.96), ("phi-4-mini", 3.84)] {
            let shape = Shape::find(name).unwrap();
            let elements: u64 = shape.tensors().iter().map(TensorInfo::elements).sum();
            assert_eq!((elements as f64 / 1e7).round() / 100.0, billions, "{name}");
        }
        assert_eq!(SHAPES[0].name, "phi-3.5-mini");
    }

    #[test]
    fn the_last_layer_costs_what_is_computed_of_it() {
        let shape = Shape::find("tiny").unwrap();
        let gguf = synthetic(&shape, FileType::Q8_0).unwrap();
        let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
        let engine = Engine::new(Arc::new(gguf), options).unwrap();
        let [hidden, feed, layers] = [shape.hidden, shape.feed_forward, shape.layers].map(u64::from);
        let head = hidden / u64::from(shape.heads);
        let qkv = hidden * (hidden + 2 * head * u64::from(shape.kv_heads));
        let rest = hidden * (hidden + 3 * feed);
        let head = hidden * u64::from(shape.vocabulary);
        for (parts, rows, outputs) in [(vec![(0, 7)], 7, 1), (vec![(9, 1), (4, 1)], 2, 2)] {
            let products = engine.cost(&parts).integer_products;
            let each = qkv + rest;
            assert_eq!(products, (layers - 1) * each * rows + qkv * rows + (rest + head) * outputs);
        }
    }

    #[test]
    fn types_are_the_recipes() {
        let shape = SHAPES[0];
        let source = Blueprint { metadata: shape.metadata(), tensors: shape.tensors() };
        let plan = Plan::new(&source, &Options::new(Some(Recipe::new(FileType::Q4_K_M)))).unwrap();
        // The tensor bytes of Phi-3.5-mini's own Q4_K_M file.
        assert_eq!(plan.bytes_out(), 2_396_032_896);
        let kind = |name: &str| plan.tensors.iter().find(|tensor| tensor.name == name).unwrap().kind;
        assert_eq!(kind("output.weight"), TensorType::Q6_K);
        assert_eq!(kind("blk.0.attn_qkv.weight"), TensorType::Q6_K);
        assert_eq!(kind("blk.0.ffn_up.weight"), TensorType::Q4_K);
    }
}
