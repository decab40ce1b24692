//! The graphics processors of this machine, and opening one.

use std::sync::{Arc, Mutex, PoisonError};

use super::buffer::{Ledger, Storage};
use super::fault::Fault;
use super::kernels::{Matrices, Subgroups};
use crate::{Error, Result};

/// What kernels need of a device beyond WebGPU's least.
const FEATURES: wgpu::Features = wgpu::Features::IMMEDIATES;

/// What products by matrix units need.
const MATRICES: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// Bytes of parameters that a dispatch may have: what every Vulkan device grants.
pub(super) const PARAMETER_BYTES: u32 = 128;

/// Bytes of workgroup memory that the attention of a prompt takes, at most.
const WORKGROUP_BYTES: u32 = 32 * 1024;

/// A graphics processor that was found.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(super) raw: wgpu::Adapter,
    info: wgpu::AdapterInfo,
    /// Bytes of its memory that may be taken, where that is to be less than there are.
    most_memory: Option<u64>,
    matrices: Matrices,
}

impl Adapter {
    /// Those of this machine that phi can compute with, in the system's order. Without a driver there are none.
    /// Software that passes for a graphics processor (Mesa's llvmpipe) is listed on demand only: it is slower than the
    /// CPU kernels.
    pub fn all(software: bool) -> Vec<Adapter> {
        let mut options = wgpu::InstanceDescriptor::new_without_display_handle();
        options.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        options.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(options);
        let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let mut adapters: Vec<Adapter> = Vec::new();
        for raw in found {
            let (info, matrices) = (raw.get_info(), matrices(&raw));
            let adapter = Adapter { raw, info, most_memory: None, matrices };
            let usable = adapter.raw.features().contains(FEATURES)
                && adapter.raw.limits().max_compute_workgroup_storage_size >= WORKGROUP_BYTES;
            // Windows shows each processor through Vulkan and Direct3D.
            let known = adapters.iter().any(|other| other.is_the_same(&adapter));
            if usable && !known && (software || !adapter.is_software()) {
                adapters.push(adapter);
            }
        }
        adapters
    }

    fn is_the_same(&self, other: &Adapter) -> bool {
        let key = |info: &wgpu::AdapterInfo| (info.vendor, info.device, info.name.clone());
        self.info.backend != other.info.backend && key(&self.info) == key(&other.info)
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// What it is reached through, and the driver's name and version.
    pub fn driver(&self) -> String {
        let driver = format!("{} {}", self.info.driver, self.info.driver_info);
        format!("{:?}, {}", self.info.backend, driver.trim())
    }

    /// "discrete GPU", "integrated GPU" …
    pub fn kind(&self) -> &'static str {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        }
    }

    /// Whether it is a program that runs on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Whether its memory is the machine's.
    pub fn shares_memory(&self) -> bool {
        !matches!(self.info.device_type, wgpu::DeviceType::DiscreteGpu)
    }

    /// Bytes of its memory that can be taken, where the driver says so.
    pub fn free_memory(&self) -> Option<u64> {
        let free = super::memory::free(&self.raw);
        self.most_memory.map_or(free, |most| Some(free.unwrap_or(most).min(most)))
    }

    /// The same device, of whose memory at most `bytes` are taken; it goes without matrix units, as they are tried in memory.
    pub fn limited(self, bytes: u64) -> Self {
        Self { most_memory: Some(bytes), matrices: Matrices::None, ..self }
    }

    /// The same device; the kernels for matrix units are those that go without.
    #[cfg(test)]
    pub(super) fn emulating_matrices(self) -> Self {
        Self { matrices: Matrices::Emulated, ..self }
    }

    /// How threads may sum without memory.
    pub(super) fn subgroups(&self) -> Subgroups {
        let there = self.raw.features().contains(wgpu::Features::SUBGROUP);
        let (smallest, largest) = (self.info.subgroup_min_size, self.info.subgroup_max_size);
        Subgroups {
            smallest: if there { smallest } else { 0 },
            fixed: there && smallest == largest && smallest >= 4,
            matrices: self.matrices,
        }
    }

    /// A file name for what is compiled for this device and driver.
    pub(super) fn cache_name(&self) -> Option<String> {
        wgpu::util::pipeline_cache_key(&self.info)
    }
}

/// Whether an adapter multiplies squares of 16 in half precision, with sums in single, by subgroups of one size.
fn matrices(adapter: &wgpu::Adapter) -> Matrices {
    use wgpu::CooperativeScalarType as Scalar;
    let info = adapter.get_info();
    let needed = MATRICES | wgpu::Features::SUBGROUP;
    let there = adapter.features().contains(needed)
        && info.subgroup_min_size == info.subgroup_max_size
        && matches!(info.subgroup_min_size, 32 | 64)
        && adapter.limits().max_compute_invocations_per_workgroup >= 8 * info.subgroup_min_size
        && adapter.cooperative_matrix_properties().iter().any(|one| {
            (one.m_size, one.n_size, one.k_size) == (16, 16, 16)
                && (one.ab_type, one.cr_type) == (Scalar::F16, Scalar::F32)
        });
    if there { Matrices::Units } else { Matrices::None }
}

/// An opened graphics processor.
pub(super) struct Device {
    pub raw: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Bytes that a kernel may see of one buffer.
    pub most_bytes: u64,
    /// Of the storages.
    pub ledger: Ledger,
    pub fault: Fault,
}

impl Device {
    pub fn open(adapter: &Adapter) -> Result<Self> {
        let limits = adapter.raw.limits();
        let mut optional = wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if adapter.matrices != Matrices::None {
            optional |= wgpu::Features::SHADER_F16;
        }
        if adapter.matrices == Matrices::Units {
            optional |= MATRICES;
            // Sound: what is asked for is cooperative matrices alone. Their loads and stores go unchecked; those of
            // matmul_half.wgsl have constant places within workgroup memory. Gpu::open tries them before they are used.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let asked = wgpu::DeviceDescriptor {
            label: Some("phi"),
            required_features: FEATURES | (adapter.raw.features() & optional),
            required_limits: wgpu::Limits { max_immediate_size: PARAMETER_BYTES, ..limits.clone() },
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let (raw, queue) = pollster::block_on(adapter.raw.request_device(&asked)).map_err(|cause| {
            Error::Device(format!("cannot open {}: {cause}; go on without it with -ngl 0", adapter.name()))
        })?;
        let fault = Fault::new(adapter.name());
        let sink = fault.clone();
        raw.on_uncaptured_error(Arc::new(move |error: wgpu::Error| sink.note(&error.to_string())));
        let sink = fault.clone();
        raw.set_device_lost_callback(move |_, message| sink.note(&format!("it was lost ({message})")));
        let most_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let ledger = Ledger::new(adapter.most_memory.unwrap_or(u64::MAX));
        Ok(Self { raw, queue, most_bytes, ledger, fault })
    }

    /// A storage of `bytes`, which are unspecified.
    ///
    /// # Errors
    /// Too little memory on the device.
    pub fn storage(&self, bytes: u64) -> Result<Storage> {
        let bytes = bytes.next_multiple_of(4).max(16);
        let too_little = || {
            Error::Resources(format!(
                "{} has no {} MiB of memory left: put fewer layers on it with -ngl",
                self.fault.device(),
                (bytes >> 20) + 1
            ))
        };
        if !self.ledger.has_room(bytes) {
            return Err(too_little());
        }
        let scope = self.raw.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.raw.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(Storage::new(buffer, &self.ledger)),
            Some(_) => Err(too_little()),
        }
    }
}

/// Locks; a thread that panicked elsewhere left nothing half-done that matters.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
