//! The flags that put layers on graphics processors, named as in llama.cpp.

use std::str::FromStr;
use std::sync::Arc;

use indicatif::ProgressBar;
use regex::Regex;

use super::progress;
use crate::backend::cpu::Cpu;
use crate::backend::hybrid::{Adapter, Device, Hybrid};
use crate::engine::{
    Engine, EngineOptions, KvType, Offload, OffloadEvent, OffloadLayers, Offloaded, offload,
};
use crate::fs::human_bytes;
use crate::gguf::Gguf;
use crate::machine::default_threads;
use crate::model::Model;
use crate::{Error, Result};

/// Tokens of context that memory is left for when nobody said how many there will be.
const LIKELY_CONTEXT: usize = 8192;

/// How many layers go to GPUs, and to which.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Graphics processors")]
pub struct OffloadArgs {
    /// -ngl: layers to put on GPUs, counted from the last: a number, all, or auto: as many as fit and are faster there
    /// [default: auto]
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N", allow_negative_numbers = true)]
    #[arg(env = "PHI_GPU_LAYERS", hide_env_values = true)]
    gpu_layers: Option<GpuLayers>,
    #[command(flatten)]
    devices: DeviceArgs,
}

/// Which GPUs take part, and how.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Graphics processors")]
pub struct DeviceArgs {
    /// -dev: which GPUs, by the names that --list-devices shows; none for the CPU alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',', env = "PHI_DEVICE", hide_env_values = true)]
    device: Vec<String>,
    /// How to reach NVIDIA's GPUs when no --device is named: cuda is their own driver, wgpu is Vulkan, auto the first that there is
    #[arg(long, value_name = "HOW", default_value = "auto")]
    gpu_backend: GpuBackend,
    /// List the GPUs of this machine and leave
    #[arg(long)]
    list_devices: bool,
    /// -sm: how to use several GPUs: layer shares the layers out, none takes one
    #[arg(long, value_name = "HOW", default_value = "layer")]
    split_mode: SplitMode,
    /// -ts: shares of the layers for each GPU: 3,1 [default: by their free memory]
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    tensor_split: Vec<f32>,
    /// -mg: the number of the GPU that -sm none takes
    #[arg(long, value_name = "I", default_value_t = 0)]
    main_gpu: usize,
    /// -nkvo: keep keys and values in the CPU's memory
    #[arg(long)]
    no_kv_offload: bool,
    /// -ot: put tensors whose names match a regular expression elsewhere: 'ffn_.*_exps=CPU'
    #[arg(long, value_name = "REGEX=DEVICE", value_delimiter = ',')]
    override_tensor: Vec<Override>,
}

/// How to reach GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GpuBackend {
    #[default]
    Auto,
    Cuda,
    Wgpu,
}

impl GpuBackend {
    /// Whether `adapter`, of `all`, is one of those that are used unasked: each processor once, by auto through NVIDIA's own
    /// driver where there is a choice.
    fn has(self, adapter: &Adapter, all: &[(String, Adapter)]) -> bool {
        match self {
            Self::Auto => {
                let is_same = |other: &Adapter| other.is_cuda() && other.name() == adapter.name();
                adapter.is_cuda() || !all.iter().any(|(_, other)| is_same(other))
            }
            Self::Cuda => adapter.is_cuda(),
            Self::Wgpu => !adapter.is_cuda(),
        }
    }
}

/// How to use several GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitMode {
    None,
    #[default]
    Layer,
}

/// How many layers to put on GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    Auto,
    All,
    Count(usize),
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "-1" => Ok(Self::Auto),
            "all" | "-2" => Ok(Self::All),
            _ => text.parse().map(Self::Count).map_err(|_| "expected a number of layers, auto or all".into()),
        }
    }
}

/// Where to put tensors with certain names.
#[derive(Clone, Debug)]
struct Override {
    pattern: Regex,
    device: String,
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, device) = text.rsplit_once('=').ok_or("expected REGEX=DEVICE, as in ffn_down=CPU")?;
        let pattern =
            Regex::new(pattern).map_err(|error| format!("{pattern:?} is no regular expression: {error}"))?;
        Ok(Self { pattern, device: device.to_owned() })
    }
}

/// The GPUs of this machine and their names: Vulkan0, Vulkan1 …, CUDA0 …; software ones last.
fn named() -> Vec<(String, Adapter)> {
    let mut all = Adapter::all(true);
    all.sort_by_key(Adapter::is_software);
    let mut named: Vec<(String, Adapter)> = Vec::new();
    for adapter in all {
        let driver = adapter.driver();
        let interface = driver.split(',').next().unwrap_or_default();
        let number = named.iter().filter(|(name, _)| name.starts_with(interface)).count();
        named.push((format!("{interface}{number}"), adapter));
    }
    named
}

/// What [`OffloadArgs::plan`] found: what to put where, and what the devices are called.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub offload: Offload,
    names: Vec<String>,
    /// Whether somebody asked for it.
    explicit: bool,
}

impl OffloadArgs {
    /// Whether only a list of GPUs was asked for, which is printed then.
    pub fn listed(&self) -> bool {
        self.devices.listed()
    }

    /// What is asked for, on the devices that there are; a context of 0 tokens is one that nobody chose.
    ///
    /// # Errors
    /// A device that there is not.
    pub fn plan(&self, context: usize, cache_types: (KvType, KvType)) -> Result<Wanted> {
        self.devices.plan(self.gpu_layers, context, cache_types)
    }

    /// The same, with nothing on GPUs unless somebody asked for it.
    pub fn plan_if_asked(&self, context: usize, cache_types: (KvType, KvType)) -> Result<Wanted> {
        self.devices.plan(self.gpu_layers.or(Some(GpuLayers::Count(0))), context, cache_types)
    }
}

impl DeviceArgs {
    /// Whether only a list was asked for, which is printed then.
    pub fn listed(&self) -> bool {
        if self.list_devices {
            let all = named();
            if all.is_empty() {
                println!("no GPU was found");
            }
            for (name, adapter) in all {
                let memory = adapter.free_memory().map(|free| format!(", {} free", human_bytes(free)));
                println!(
                    "{name}: {} ({}; {}{})",
                    adapter.name(),
                    adapter.kind(),
                    adapter.driver(),
                    memory.unwrap_or_default()
                );
            }
        }
        self.list_devices
    }

    /// `layers` layers on the devices that there are: as [`OffloadArgs::plan`].
    pub fn plan(
        &self,
        layers: Option<GpuLayers>,
        context: usize,
        cache_types: (KvType, KvType),
    ) -> Result<Wanted> {
        let explicit = !matches!(layers, None | Some(GpuLayers::Count(0))) || !self.device.is_empty();
        let layers = match layers {
            None | Some(GpuLayers::Auto) => OffloadLayers::Auto,
            Some(GpuLayers::All) => OffloadLayers::All,
            Some(GpuLayers::Count(count)) => OffloadLayers::Count(count),
        };
        let none = layers == OffloadLayers::Count(0) && self.override_tensor.is_empty();
        if none || self.device.iter().any(|name| name == "none") {
            return Ok(Wanted::default());
        }
        let (names, devices): (Vec<_>, Vec<_>) = self.choose(named())?.into_iter().unzip();
        if devices.is_empty() && explicit {
            eprintln!("phi: no GPU was found, so the CPU does all the work");
        }
        let overrides = self.override_tensor.iter().map(|one| {
            let device = match one.device.eq_ignore_ascii_case("cpu") {
                true => None,
                false => Some(position(&names, &one.device)?),
            };
            Ok((one.pattern.clone(), device))
        });
        let offload = Offload {
            layers,
            shares: self.tensor_split.clone(),
            kv_on_host: self.no_kv_offload,
            overrides: if devices.is_empty() { Vec::new() } else { overrides.collect::<Result<_>>()? },
            context: if context == 0 { LIKELY_CONTEXT } else { context },
            cache_types: Some(cache_types),
            devices,
        };
        Ok(Wanted { offload, names, explicit })
    }

    /// Those of `all` that are to be used: the ones that -dev names, or all but software.
    fn choose(&self, all: Vec<(String, Adapter)>) -> Result<Vec<(String, Adapter)>> {
        let mut chosen: Vec<(String, Adapter)> = if self.device.is_empty() {
            all.iter()
                .filter(|(_, adapter)| !adapter.is_software() && self.gpu_backend.has(adapter, &all))
                .cloned()
                .collect()
        } else {
            let names: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
            let find = |name: &String| position(&names, name).map(|at| all[at].clone());
            self.device.iter().map(find).collect::<Result<_>>()?
        };
        if self.split_mode == SplitMode::None && !chosen.is_empty() {
            if self.main_gpu >= chosen.len() {
                let count = chosen.len();
                return Err(Error::Usage(format!(
                    "--main-gpu {} is not one of the {count} GPUs",
                    self.main_gpu
                )));
            }
            chosen.swap(0, self.main_gpu);
            chosen.truncate(1);
        }
        Ok(chosen)
    }
}

/// The device that is called `name`.
fn position(names: &[String], name: &str) -> Result<usize> {
    names.iter().position(|one| one.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known = if names.is_empty() { "no GPU was found".to_owned() } else { names.join(", ") };
        Error::Usage(format!("there is no device {name}: {known}"))
    })
}

impl Wanted {
    /// Whether anything may go to a GPU.
    pub fn any(&self) -> bool {
        !self.offload.devices.is_empty()
    }

    /// The devices that took part, as their drivers call them.
    pub fn names(&self, done: &Offloaded) -> String {
        let used = self.offload.devices.iter().zip(&done.devices).filter(|(_, (_, bytes))| *bytes > 0);
        used.map(|(adapter, _)| adapter.name()).collect::<Vec<_>>().join(", ")
    }

    /// Says what went where, if anything did or somebody asked for it.
    pub fn report(&self, done: &Offloaded) {
        if !self.any() {
            return;
        }
        let because = done.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let parts: Vec<String> = self
            .names
            .iter()
            .zip(&self.offload.devices)
            .zip(&done.devices)
            .filter(|(_, (_, bytes))| *bytes > 0)
            .map(|((name, adapter), (layers, bytes))| {
                format!(
                    "{layers} of {} layers on {name}, {} ({})",
                    done.layers,
                    adapter.name(),
                    human_bytes(*bytes)
                )
            })
            .collect();
        if parts.is_empty() {
            if self.explicit {
                eprintln!("phi: the CPU does all the work{because}");
            }
            return;
        }
        let head = if done.head { ", the head too" } else { "" };
        eprintln!("phi: {}{head}{because}", parts.join("; "));
    }
}

/// Shows how weights are copied to GPUs.
pub struct Copying {
    bar: ProgressBar,
}

impl Copying {
    pub fn new() -> Self {
        Self { bar: progress::bytes("to the GPU") }
    }

    pub fn show(&mut self, event: OffloadEvent<'_>) {
        match event {
            OffloadEvent::Begin { bytes } => {
                self.bar.set_length(bytes);
                self.bar.set_position(0);
            }
            OffloadEvent::Copied { bytes } => self.bar.inc(bytes as u64),
            OffloadEvent::Note(text) => self.bar.suspend(|| eprintln!("phi: {text}")),
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A backend of `threads` threads with what is `wanted` of `model` on GPUs, which is reported.
pub fn backend(model: &Model, threads: Option<usize>, wanted: &Wanted) -> Result<Hybrid> {
    let cpu = Cpu::new(threads.unwrap_or_else(default_threads).clamp(1, 1024));
    let devices = wanted.offload.devices.iter().map(Device::open).collect::<Result<_>>()?;
    let mut backend = Hybrid::new(cpu, None, devices);
    let mut copying = Copying::new();
    let done = offload(&mut backend, model, &wanted.offload, &mut |event| copying.show(event))?;
    drop(copying);
    wanted.report(&done);
    Ok(backend)
}

/// An engine with what is `wanted` on GPUs, which is reported.
pub fn engine(file: Arc<Gguf>, options: EngineOptions, wanted: &Wanted) -> Result<Engine> {
    let mut copying = Copying::new();
    let engine = Engine::with_events(file, options, &mut |event| copying.show(event))?;
    drop(copying);
    wanted.report(engine.offloaded());
    Ok(engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_layers() {
        assert_eq!("10".parse(), Ok(GpuLayers::Count(10)));
        assert_eq!("auto".parse(), Ok(GpuLayers::Auto));
        assert_eq!("all".parse(), Ok(GpuLayers::All));
        assert!("some".parse::<GpuLayers>().is_err());
    }

    #[test]
    fn overrides() {
        let one: Override = r"blk\.(0|1)\.ffn_.*=CPU".parse().unwrap();
        assert!(one.pattern.is_match("blk.1.ffn_down.weight") && one.device == "CPU");
        assert!("ffn".parse::<Override>().is_err());
        assert!("(=CPU".parse::<Override>().unwrap_err().contains("no regular expression"));
    }

    #[test]
    fn devices_go_by_their_names() {
        let names = ["Vulkan0".to_owned(), "Vulkan1".to_owned()];
        assert_eq!(position(&names, "vulkan1").unwrap(), 1);
        let error = position(&names, "CUDA0").unwrap_err().to_string();
        assert!(error.contains("Vulkan0, Vulkan1"), "{error}");
    }
}
