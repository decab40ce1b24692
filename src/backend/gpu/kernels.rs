//! The kernels: WGSL sources put together for a weight type and a variant, compiled once.
//!
//! A source is plain WGSL but for lines that begin with `//:FLAGS`: such a line is taken, without the mark, if each of its
//! flags (joined by `-`) is one of the variant's. Three flags repeat the run of lines that have them: `part` four times, with
//! the time's number for `@`; in it `each`, for every token that the variant takes at once, with the token's number for `#`;
//! in it `row`, for every row that a thread takes at once, with the row's number for `$`.

#[cfg(test)]
mod emulated;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use super::blocks;
use super::device::{Device, PARAMETER_BYTES, lock};
use super::pipeline_cache::PipelineCache;
use super::quick::QuickMap;
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
    Norm {
        is_layer: bool,
        /// Whether rows have a multiple of four elements.
        fours: bool,
        /// Threads of a workgroup, a power of two.
        threads: u32,
    },
    Element(Element),
    Embed(TensorType),
    /// Products with `tokens` columns at once.
    MatVec {
        kind: TensorType,
        tokens: u32,
        ending: Ending,
        team: Team,
    },
    /// Products of rows with matrices of the experts that they go through.
    MatVecPicked {
        kind: TensorType,
        team: Team,
    },
    MatMul {
        kind: TensorType,
        ending: Ending,
        /// Rows and tokens of a tile.
        tile: (u32, u32),
    },
    /// The same in half precision, by matrix units.
    MatMulHalf {
        kind: TensorType,
        ending: Ending,
        /// Rows of a tile: 64 or 128.
        rows: u32,
    },
    /// Makes what that multiplies with.
    Halves,
    /// The largest weight.
    Bound(TensorType),
    Route,
    Append {
        keys: KvType,
        values: KvType,
    },
    AttendRow {
        keys: KvType,
        values: KvType,
        padded: u32,
        /// Whether it appends the row first.
        appends: bool,
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

/// Threads that compute rows of a matrix-vector product together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Team {
    /// Threads of a workgroup.
    pub threads: u32,
    /// Threads of the team.
    pub lanes: u32,
    /// Rows that it takes.
    pub rows: u32,
}

/// How a kernel sees its buffers, in the order of its bindings: `r` reads, `w` writes, `-` takes none.
type Access = &'static str;

impl Team {
    /// Its constants, and how it sums.
    fn describe(self, kind: TensorType, subgroups: Subgroups, text: &mut String, flags: &mut Vec<&str>) {
        let Self { threads, lanes, rows } = self;
        let _ = writeln!(
            text,
            "const THREADS = {threads}u;\nconst LANES = {lanes}u;\nconst ROWS_EACH = {rows}u;"
        );
        flags.push(if lanes <= subgroups.smallest { "sum-subgroup" } else { "sum-shared" });
        if blocks::has_minimum(kind) {
            flags.push("min");
        }
    }
}

/// What kernels may expect of subgroups.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Subgroups {
    /// Threads that every subgroup has at least; 0 where there are no subgroups.
    pub smallest: u32,
    /// Whether all have as many.
    pub fixed: bool,
    pub matrices: Matrices,
}

/// Units that multiply squares of 16 in half precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Matrices {
    #[default]
    None,
    Units,
    /// What they do, written out.
    #[cfg(test)]
    Emulated,
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// Tells layouts apart.
    pub access: Access,
}

/// The kernels of a device, compiled when they are first wanted.
pub(super) struct Kernels {
    compiled: Mutex<QuickMap<Kernel, Arc<Pipeline>>>,
    /// Kernels that see buffers alike share them, so that bindings need not be looked at anew from one to the next.
    layouts: Mutex<HashMap<Access, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
    cache: PipelineCache,
    pub subgroups: Subgroups,
}

impl Kernels {
    pub fn new(cache: PipelineCache, subgroups: Subgroups) -> Self {
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
        let (layout, pipeline_layout) =
            lock(&self.layouts).entry(access).or_insert_with(|| layouts(device, access)).clone();
        let checks = wgpu::ShaderRuntimeChecks {
            force_loop_bounding: false,
            bounds_checks: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) };
        // Sound: every loop in shaders/ counts up to, or down from, a bound that it does not change. What kernels reach for
        // lies within their buffers, as parameters are made of the buffers' shapes; numbers of rows are compared with how
        // many there are; and after an error, which may have left a buffer too small, nothing is run.
        let module = unsafe { device.raw.create_shader_module_trusted(descriptor, checks) };
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

fn layouts(device: &Device, access: Access) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let entries: Vec<_> = access
        .bytes()
        .enumerate()
        .filter(|(_, access)| *access != b'-')
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
    let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
    let groups = device.raw.create_bind_group_layout(&descriptor);
    let pipelines = device.raw.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&groups)],
        immediate_size: PARAMETER_BYTES,
    });
    (groups, pipelines)
}

impl Kernel {
    /// Its WGSL, and how it sees its buffers.
    fn source(self, subgroups: Subgroups) -> (String, Access) {
        let mut text = String::new();
        // Gives the second access where blocks look nothing up.
        let blocks = |text: &mut String, kind, all: Access, fewer: Access| {
            let source = blocks::source(kind).expect("only types with a source are taken");
            text.push_str(&blocks::prelude(kind));
            text.push_str(source);
            if source.contains("@binding(1)") { all } else { fewer }
        };
        let mut flags: Vec<&str> = Vec::new();
        let (mut each, mut rows) = (0, 0);
        let access = match self {
            Self::Norm { is_layer, fours, threads } => {
                flags.push(if is_layer { "layer" } else { "rms" });
                flags.push(if fours { "four" } else { "one" });
                flags.push(if subgroups.fixed { "sum-subgroup" } else { "sum-shared" });
                let (v, per) = if fours { ("vec4<f32>", "4.0") } else { ("f32", "1.0") };
                let _ = writeln!(text, "alias V = {v};\nconst PER_V = {per};\nconst THREADS = {threads}u;");
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
                let access = blocks(&mut text, kind, "rrrw", "r-rw");
                text.push_str(include_str!("shaders/embed.wgsl"));
                access
            }
            Self::MatVec { kind, tokens, ending, team } => {
                let access = blocks(&mut text, kind, "rrrrw", "r-rrw");
                let halves = if matches!(ending, Ending::Gate(_)) { 2 } else { 1 };
                let _ = writeln!(text, "const TOKENS = {tokens}u;\nconst HALVES = {halves}u;");
                flags.push("given");
                team.describe(kind, subgroups, &mut text, &mut flags);
                text.push_str(&ended(include_str!("shaders/matvec.wgsl"), ending, &mut flags));
                (each, rows) = (tokens, team.rows);
                access
            }
            Self::MatVecPicked { kind, team } => {
                let access = blocks(&mut text, kind, "rrrrw", "r-rrw");
                text.push_str("const TOKENS = 1u;\nconst HALVES = 1u;\n");
                flags.extend(["picked", "store"]);
                team.describe(kind, subgroups, &mut text, &mut flags);
                text.push_str(include_str!("shaders/matvec.wgsl"));
                (each, rows) = (1, team.rows);
                access
            }
            Self::Route => {
                text.push_str(include_str!("shaders/route.wgsl"));
                "rw"
            }
            Self::MatMul { kind, ending, tile: (rows, tokens) } => {
                let access = blocks(&mut text, kind, "rrrrw", "r-rrw");
                let _ = writeln!(text, "const TILE_ROWS = {rows}u;\nconst TILE_TOKENS = {tokens}u;");
                text.push_str(&ended(include_str!("shaders/matmul.wgsl"), ending, &mut flags));
                each = 4;
                access
            }
            Self::MatMulHalf { kind, ending, rows } => {
                text.push_str("enable f16;\nenable wgpu_cooperative_matrix;\n");
                let access = blocks(&mut text, kind, "rrrrwr", "r-rrwr");
                // What emulates them takes any.
                let subgroup = subgroups.smallest.max(32);
                let _ = writeln!(text, "const SUBGROUP = {subgroup}u;\nconst TILE_ROWS = {rows}u;");
                text.push_str(&ended(include_str!("shaders/matmul_half.wgsl"), ending, &mut flags));
                each = rows / 64;
                #[cfg(test)]
                if subgroups.matrices == Matrices::Emulated {
                    text = emulated::without_units(&text);
                }
                access
            }
            Self::Halves => {
                text.push_str(include_str!("shaders/halves.wgsl"));
                "rww"
            }
            Self::Bound(kind) => {
                let access = blocks(&mut text, kind, "rrw", "r-w");
                text.push_str(include_str!("shaders/bound.wgsl"));
                access
            }
            Self::Append { keys, values } => {
                text.push_str(include_str!("shaders/append.wgsl"));
                text.push_str(include_str!("shaders/rotate.wgsl"));
                flags.push("save");
                store(&mut text, keys, values);
                "rrrwww"
            }
            Self::AttendRow { keys, values, padded, appends } => {
                let _ = writeln!(text, "const PADDED = {padded}u;");
                text.push_str(include_str!("shaders/attention.wgsl"));
                text.push_str(include_str!("shaders/attend_row.wgsl"));
                flags.push("load");
                if appends {
                    text.push_str(include_str!("shaders/append_own.wgsl"));
                    text.push_str(include_str!("shaders/rotate.wgsl"));
                    flags.push("appends-save");
                } else {
                    flags.push("appended");
                }
                store(&mut text, keys, values);
                if appends { "rwwwrr" } else { "rrrw" }
            }
            Self::AttendTile { keys, values, padded } => {
                let _ = writeln!(text, "const PADDED = {padded}u;");
                text.push_str(include_str!("shaders/attention.wgsl"));
                text.push_str(include_str!("shaders/attend_tile.wgsl"));
                flags.extend(["load", "appended"]);
                store(&mut text, keys, values);
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
        (take_marked(&text, &flags, each, rows), access)
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
fn take_marked(text: &str, flags: &[&str], each: u32, rows: u32) -> String {
    let flags: Vec<&str> = flags.iter().flat_map(|flags| flags.split('-')).collect();
    let lines = text.lines().filter(|line| {
        let mut marks = marks(line).unwrap_or_default().split('-').filter(|mark| !mark.is_empty());
        marks.all(|mark| matches!(mark, "part" | "each" | "row") || flags.contains(&mark))
    });
    let lines = repeated(lines.map(str::to_owned).collect(), "part", 4, "@");
    let lines = repeated(lines, "each", each, "#");
    let mut out = String::with_capacity(text.len());
    for line in repeated(lines, "row", rows, "$") {
        let plain = marks(&line).map(|marks| line.trim_start()[3 + marks.len()..].trim_start_matches(' '));
        out.push_str(plain.unwrap_or(&line));
        out.push('\n');
    }
    out
}

/// Each run of lines with `mark`, as often as `times` says, with the time's number for `sign`.
fn repeated(lines: Vec<String>, mark: &str, times: u32, sign: &str) -> Vec<String> {
    let has = |line: &String| marks(line).is_some_and(|marks| marks.split('-').any(|one| one == mark));
    let mut out = Vec::with_capacity(lines.len());
    for run in lines.chunk_by(|a, b| has(a) == has(b)) {
        if has(&run[0]) {
            for i in 0..times {
                out.extend(run.iter().map(|line| line.replace(sign, &i.to_string())));
            }
        } else {
            out.extend_from_slice(run);
        }
    }
    out
}

/// The flags before a marked line.
fn marks(line: &str) -> Option<&str> {
    let marked = line.trim_start().strip_prefix("//:")?;
    Some(marked.split(' ').next().unwrap_or(marked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_lines_are_taken_by_their_flags() {
        let text = "a\n  //:x b\n//:x-each c#\n//:y d\n//:each e#\n";
        assert_eq!(take_marked(text, &["x"], 2, 0), "a\nb\nc0\ne0\nc1\ne1\n");
        assert_eq!(take_marked(text, &["y"], 1, 0), "a\nd\ne0\n");
        let text = "//:part f@\n//:part-each g@#\nh\n//:each-row-x i#$\n//:row-x j$\n";
        assert_eq!(take_marked(text, &["x"], 1, 2).split_once("h\n").unwrap().1, "i00\nj0\ni01\nj1\n");
        assert_eq!(take_marked(text, &[], 1, 2), "f0\ng00\nf1\ng10\nf2\ng20\nf3\ng30\nh\n");
    }

    fn all_kernels() -> Vec<Kernel> {
        let mut all = vec![Kernel::Combine { padded: 96 }, Kernel::Route];
        all.extend([true, false].map(|is_first| Kernel::Largest { is_first }));
        all.push(Kernel::Halves);
        all.extend([true, false].map(|same| Kernel::Norm { is_layer: same, fours: same, threads: 256 }));
        let team = Team { threads: 128, lanes: 16, rows: 2 };
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
            all.push(Kernel::Bound(kind));
            all.push(Kernel::MatVec { kind, tokens: 2, ending: Ending::Gate(gate), team });
            all.push(Kernel::MatVecPicked { kind, team });
            all.push(Kernel::MatMul { kind, ending: Ending::Add, tile: (64, 128) });
        }
        for kind in KvType::ALL {
            let (keys, values, padded) = (kind, kind, 128);
            all.push(Kernel::Append { keys, values });
            all.extend([true, false].map(|appends| Kernel::AttendRow { keys, values, padded, appends }));
            all.push(Kernel::AttendTile { keys, values, padded });
        }
        all
    }

    /// Metal and Direct3D have other ways.
    #[test]
    fn kernels_for_matrix_units_translate_to_vulkans_language() {
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        let subgroups = Subgroups { smallest: 32, fixed: true, matrices: Matrices::Units };
        for kind in TensorType::all().filter(|kind| blocks::source(*kind).is_some()) {
            let (source, _) = Kernel::MatMulHalf {
                kind,
                ending: Ending::Store,
                rows: if kind.is_quantized() { 128 } else { 64 },
            }
            .source(subgroups);
            let mut frontend = naga::front::wgsl::Frontend::new_with_options(naga::front::wgsl::Options {
                parse_doc_comments: false,
                capabilities: Capabilities::all(),
            });
            let module = frontend
                .parse(&source)
                .unwrap_or_else(|error| panic!("{kind:?}: {}", error.emit_to_string(&source)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::all())
                .validate(&module)
                .unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
            let options = naga::back::spv::Options { lang_version: (1, 6), ..Default::default() };
            naga::back::spv::write_vec(&module, &info, &options, None)
                .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        }
    }

    /// What there is no device for here is at least translated: to Metal's language and to Direct3D's.
    #[test]
    fn kernels_translate_to_every_language() {
        use naga::back::{hlsl, msl};
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        for kernel in all_kernels() {
            for smallest in [0, 32] {
                let subgroups = Subgroups { smallest, fixed: smallest > 0, matrices: Matrices::None };
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
