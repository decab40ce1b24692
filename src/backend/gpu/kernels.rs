//! The kernels: WGSL sources put together for a weight type and a variant, compiled once.
//!
//! A source is plain WGSL but for lines that begin with `//:FLAGS`: such a line is taken, without the mark, if each of its
//! flags (joined by `-`) is one of the variant's. The flag `each` repeats the line for every token that the variant takes at
//! once, with the token's number for `#`; the flag `part` repeats a whole run of lines four times, with the time's number
//! for `@`.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use super::blocks;
use super::device::{Device, PARAMETER_BYTES, lock};
use super::pipeline_cache::PipelineCache;
use crate::backend::Gate;
use crate::gguf::TensorType;
use crate::kernel::kv::KvType;

/// What a kernel does with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    Store,
    Add,
    /// Meets the other half of the rows.
    Gate(Activation),
}

/// A [`Gate`] without its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Activation {
    Swiglu,
    Gegelu,
}

impl Activation {
    /// The gate's kind and its parameter.
    pub fn of(gate: Gate) -> (Self, f32) {
        match gate {
            Gate::Swiglu => (Self::Swiglu, 0.0),
            Gate::Gegelu { limit } => (Self::Gegelu, limit),
        }
    }

    /// The function in gates.wgsl.
    fn name(self) -> &'static str {
        match self {
            Self::Swiglu => "swiglu",
            Self::Gegelu => "gegelu",
        }
    }
}

/// Operations of elementwise.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    Add,
    AddBias,
    Scale,
    Gelu,
    Gate(Activation),
    Concat,
    Gather,
    ScatterAdd,
    Mix,
}

impl Element {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::AddBias => "add_bias",
            Self::Scale => "scale",
            Self::Gelu => "gelu",
            Self::Gate(_) => "gate",
            Self::Concat => "concat",
            Self::Gather => "gather",
            Self::ScatterAdd => "scatter_add",
            Self::Mix => "mix",
        }
    }
}

/// A kernel in one of its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    RmsNorm,
    LayerNorm,
    Element(Element),
    Embed(TensorType),
    /// Products with `tokens` columns at once.
    MatVec {
        kind: TensorType,
        tokens: u32,
        ending: Ending,
    },
    /// Products of rows with matrices of the experts that they go through.
    MatVecPicked {
        kind: TensorType,
    },
    MatMul {
        kind: TensorType,
        ending: Ending,
    },
    Route,
    Append {
        keys: KvType,
        values: KvType,
    },
    AttendRow {
        keys: KvType,
        values: KvType,
        padded: u32,
    },
    AttendTile {
        keys: KvType,
        values: KvType,
        padded: u32,
    },
    Combine {
        padded: u32,
    },
    Largest {
        is_first: bool,
    },
}

/// How a kernel sees its buffers, in the order of its bindings: `r` reads, `w` writes.
type Access = &'static str;

/// A compiled kernel.
pub(super) struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// Tells layouts apart.
    pub access: Access,
}

/// The kernels of a device, compiled when they are first wanted.
pub(super) struct Kernels {
    compiled: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    layouts: Mutex<HashMap<Access, wgpu::BindGroupLayout>>,
    cache: PipelineCache,
    /// Whether sums over 32 threads are a subgroup's.
    subgroups: bool,
}

impl Kernels {
    pub fn new(cache: PipelineCache, subgroups: bool) -> Self {
        Self { compiled: Mutex::default(), layouts: Mutex::default(), cache, subgroups }
    }

    pub fn get(&self, device: &Device, kernel: Kernel) -> Arc<Pipeline> {
        let mut compiled = lock(&self.compiled);
        if let Some(pipeline) = compiled.get(&kernel) {
            return Arc::clone(pipeline);
        }
        let pipeline = Arc::new(self.compile(device, kernel));
        compiled.insert(kernel, Arc::clone(&pipeline));
        pipeline
    }

    /// Keeps what was compiled for the next time.
    pub fn save(&self) {
        self.cache.save();
    }

    fn compile(&self, device: &Device, kernel: Kernel) -> Pipeline {
        let (source, access) = kernel.source(self.subgroups);
        let layout =
            lock(&self.layouts).entry(access).or_insert_with(|| bind_group_layout(device, access)).clone();
        let checks =
            wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) };
        // Sound: every loop in shaders/ counts up to, or down from, a bound that it does not change.
        let module = unsafe { device.raw.create_shader_module_trusted(descriptor, checks) };
        let pipeline_layout = device.raw.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: PARAMETER_BYTES,
        });
        let raw = device.raw.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.cache.raw(),
        });
        self.cache.grown();
        Pipeline { raw, layout, access }
    }
}

fn bind_group_layout(device: &Device, access: Access) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = access
        .bytes()
        .enumerate()
        .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: access == b'r' },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.raw.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

impl Kernel {
    /// Its WGSL, and how it sees its buffers.
    fn source(self, subgroups: bool) -> (String, Access) {
        let mut text = String::new();
        let blocks = |text: &mut String, kind| {
            text.push_str(blocks::PRELUDE);
            text.push_str(blocks::source(kind).expect("only types with a source are taken"));
        };
        let mut flags: Vec<&str> = Vec::new();
        let mut each = 0;
        let access = match self {
            Self::RmsNorm | Self::LayerNorm => {
                flags.push(if self == Self::RmsNorm { "rms" } else { "layer" });
                text.push_str(include_str!("shaders/norm.wgsl"));
                "rrrw"
            }
            Self::Element(element) => {
                text.push_str(include_str!("shaders/gates.wgsl"));
                let gate = if let Element::Gate(gate) = element { gate.name() } else { "swiglu" };
                let source = include_str!("shaders/elementwise.wgsl");
                text.push_str(&source.replace("OP", element.name()).replace("GATE", gate));
                "rrw"
            }
            Self::Embed(kind) => {
                blocks(&mut text, kind);
                text.push_str(include_str!("shaders/embed.wgsl"));
                "rrrw"
            }
            Self::MatVec { kind, tokens, ending } => {
                blocks(&mut text, kind);
                let halves = if matches!(ending, Ending::Gate(_)) { 2 } else { 1 };
                let _ = writeln!(text, "const TOKENS = {tokens}u;\nconst HALVES = {halves}u;");
                // More threads share a row of floats than a subgroup has.
                flags.push(if subgroups && kind.is_quantized() { "sum-subgroup" } else { "sum-shared" });
                flags.push("given");
                text.push_str(&ended(include_str!("shaders/matvec.wgsl"), ending, &mut flags));
                each = tokens;
                "rrrrw"
            }
            Self::MatVecPicked { kind } => {
                blocks(&mut text, kind);
                text.push_str("const TOKENS = 1u;\nconst HALVES = 1u;\n");
                flags.push(if subgroups && kind.is_quantized() { "sum-subgroup" } else { "sum-shared" });
                flags.extend(["picked", "store"]);
                text.push_str(include_str!("shaders/matvec.wgsl"));
                each = 1;
                "rrrrw"
            }
            Self::Route => {
                text.push_str(include_str!("shaders/route.wgsl"));
                "rw"
            }
            Self::MatMul { kind, ending } => {
                blocks(&mut text, kind);
                text.push_str(&ended(include_str!("shaders/matmul.wgsl"), ending, &mut flags));
                each = 8;
                "rrrrw"
            }
            Self::Append { keys, values } => {
                text.push_str(include_str!("shaders/append.wgsl"));
                flags.push("save");
                store(&mut text, keys, values);
                "rrrwww"
            }
            Self::AttendRow { keys, values, padded } | Self::AttendTile { keys, values, padded } => {
                let _ = writeln!(text, "const PADDED = {padded}u;");
                text.push_str(include_str!("shaders/attention.wgsl"));
                flags.push("load");
                store(&mut text, keys, values);
                text.push_str(match self {
                    Self::AttendRow { .. } => include_str!("shaders/attend_row.wgsl"),
                    _ => include_str!("shaders/attend_tile.wgsl"),
                });
                "rrrw"
            }
            Self::Combine { padded } => {
                let _ = writeln!(text, "const PADDED = {padded}u;");
                text.push_str(include_str!("shaders/combine.wgsl"));
                "rw"
            }
            Self::Largest { is_first } => {
                flags.push(if is_first { "first" } else { "later" });
                text.push_str(include_str!("shaders/largest.wgsl"));
                "rw"
            }
        };
        (take_marked(&text, &flags, each), access)
    }
}

/// A product kernel's source with its ending.
fn ended(source: &str, ending: Ending, flags: &mut Vec<&str>) -> String {
    match ending {
        Ending::Store => flags.push("store"),
        Ending::Add => flags.push("add"),
        Ending::Gate(gate) => {
            flags.push("gate");
            return format!("{}{}", include_str!("shaders/gates.wgsl"), source.replace("GATE", gate.name()));
        }
    }
    source.to_owned()
}

/// Adds how keys and values are loaded and stored.
fn store(text: &mut String, keys: KvType, values: KvType) {
    for (kind, side, array) in [(keys, "key", "keys"), (values, "value", "values")] {
        let source = match kind {
            KvType::F32 => include_str!("shaders/kv/f32.wgsl"),
            KvType::F16 => include_str!("shaders/kv/f16.wgsl"),
            KvType::Bf16 => include_str!("shaders/kv/bf16.wgsl"),
            KvType::Q8_0 => include_str!("shaders/kv/q8_0.wgsl"),
            KvType::Q4_0 => include_str!("shaders/kv/q4_0.wgsl"),
        };
        text.push_str(&source.replace("SIDE", side).replace("ARRAY", array));
    }
}

/// Resolves the marked lines; `flags` may themselves be joined by `-`.
fn take_marked(text: &str, flags: &[&str], each: u32) -> String {
    let flags: Vec<&str> = flags.iter().flat_map(|flags| flags.split('-')).collect();
    let mut out = String::with_capacity(text.len());
    let lines: Vec<&str> = text.lines().collect();
    for run in lines.chunk_by(|a, b| is_part(a) == is_part(b)) {
        if is_part(run[0]) {
            for i in 0..4 {
                let run: Vec<String> = run
                    .iter()
                    .map(|line| {
                        line.replace("//:part-", "//:")
                            .replace("//:part ", "//: ")
                            .replace('@', &i.to_string())
                    })
                    .collect();
                take_lines(run.iter().map(String::as_str), &flags, each, &mut out);
            }
        } else {
            take_lines(run.iter().copied(), &flags, each, &mut out);
        }
    }
    out
}

fn is_part(line: &str) -> bool {
    line.trim_start().starts_with("//:part")
}

fn take_lines<'a>(lines: impl Iterator<Item = &'a str>, flags: &[&str], each: u32, out: &mut String) {
    for line in lines {
        let Some(marked) = line.trim_start().strip_prefix("//:") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (marks, rest) = marked.split_once(' ').unwrap_or((marked, ""));
        let mut wanted = marks.split('-').filter(|mark| !mark.is_empty() && *mark != "each");
        if !wanted.all(|mark| flags.contains(&mark)) {
            continue;
        }
        let times = if marks.split('-').any(|mark| mark == "each") { each } else { 1 };
        for i in 0..times {
            out.push_str(&rest.replace('#', &i.to_string()));
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_lines_are_taken_by_their_flags() {
        let text = "a\n  //:x b\n//:x-each c#\n//:y d\n//:each e#\n";
        assert_eq!(take_marked(text, &["x"], 2), "a\nb\nc0\nc1\ne0\ne1\n");
        assert_eq!(take_marked(text, &["y"], 1), "a\nd\ne0\n");
        let text = "//:part f@\n//:part-each g@#\nh\n";
        assert_eq!(take_marked(text, &[], 1), "f0\ng00\nf1\ng10\nf2\ng20\nf3\ng30\nh\n");
    }

    fn all_kernels() -> Vec<Kernel> {
        let mut all = vec![Kernel::RmsNorm, Kernel::LayerNorm, Kernel::Combine { padded: 96 }, Kernel::Route];
        all.extend([true, false].map(|is_first| Kernel::Largest { is_first }));
        let gate = Activation::Gegelu;
        let elements = [
            Element::Add,
            Element::Gelu,
            Element::Gate(gate),
            Element::Gather,
            Element::ScatterAdd,
            Element::Mix,
        ];
        all.extend(elements.map(Kernel::Element));
        for kind in TensorType::all().filter(|kind| blocks::source(*kind).is_some()) {
            all.push(Kernel::Embed(kind));
            all.push(Kernel::MatVec { kind, tokens: 2, ending: Ending::Gate(gate) });
            all.push(Kernel::MatVecPicked { kind });
            all.push(Kernel::MatMul { kind, ending: Ending::Add });
        }
        for kind in KvType::ALL {
            let (keys, values, padded) = (kind, kind, 128);
            all.push(Kernel::Append { keys, values });
            all.push(Kernel::AttendRow { keys, values, padded });
            all.push(Kernel::AttendTile { keys, values, padded });
        }
        all
    }

    /// What there is no device for here is at least translated: to Metal's language and to Direct3D's.
    #[test]
    fn kernels_translate_to_every_language() {
        use naga::back::{hlsl, msl};
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        for kernel in all_kernels() {
            for subgroups in [false, true] {
                let (source, _) = kernel.source(subgroups);
                let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|error| {
                    panic!("{kernel:?}: {}", error.emit_to_string(&source));
                });
                let info = Validator::new(ValidationFlags::all(), Capabilities::all())
                    .validate(&module)
                    .unwrap_or_else(|error| panic!("{kernel:?}: {error:?}"));
                let options = msl::Options { lang_version: (2, 3), ..msl::Options::default() };
                msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                    .unwrap_or_else(|error| panic!("{kernel:?} in Metal: {error}"));
                let options = hlsl::Options {
                    shader_model: hlsl::ShaderModel::V6_0,
                    immediates_target: Some(hlsl::BindTarget::default()),
                    ..hlsl::Options::default()
                };
                let mut text = String::new();
                hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
                    .write(&module, &info, None)
                    .unwrap_or_else(|error| panic!("{kernel:?} in HLSL: {error}"));
            }
        }
    }
}
