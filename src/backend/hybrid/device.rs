//! A graphics processor, whichever way it is reached: through wgpu or through NVIDIA's driver. In a build with neither
//! there are no values of these types.

#![cfg_attr(not(feature = "gpu"), allow(unused_variables, clippy::ptr_arg))]

use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::backend::cuda;
pub(super) use crate::backend::device_cache::CacheShape as DeviceShape;
#[cfg(feature = "gpu")]
use crate::backend::gpu;
use crate::backend::{Backend, Gate, Heads, Largest, Matrix, MatrixId, Mixture, Part, Rotation, Vector};
use crate::{Error, Result};

/// `$body` for what is in an [`Adapter`] or a [`Device`]; fields `$side` of buffers and caches are those of that kind.
macro_rules! inside {
    ($value:expr, $inner:ident, $side:ident => $body:expr) => {
        match *$value {
            #[cfg(feature = "gpu")]
            Self::Wgpu(ref $inner, ..) => {
                macro_rules! $side {
                    ($of:expr) => {
                        $of.wgpu
                    };
                }
                $body
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(ref $inner, ..) => {
                macro_rules! $side {
                    ($of:expr) => {
                        $of.cuda
                    };
                }
                $body
            }
        }
    };
    ($value:expr, $inner:ident => $body:expr) => {
        match *$value {
            #[cfg(feature = "gpu")]
            Self::Wgpu(ref $inner, ..) => $body,
            #[cfg(feature = "cuda")]
            Self::Cuda(ref $inner, ..) => $body,
        }
    };
}

/// A graphics processor that was found.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a handful")]
pub enum Adapter {
    #[cfg(feature = "gpu")]
    Wgpu(gpu::Adapter),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Adapter),
}

impl Adapter {
    /// Those of this machine: wgpu's, software on demand, then CUDA's. One processor may be among both.
    pub fn all(software: bool) -> Vec<Adapter> {
        let found: &[Vec<Adapter>] = &[
            #[cfg(feature = "gpu")]
            gpu::Adapter::all(software).into_iter().map(Self::Wgpu).collect(),
            #[cfg(feature = "cuda")]
            cuda::Adapter::all().into_iter().map(Self::Cuda).collect(),
        ];
        found.concat()
    }

    /// Whether it is reached through NVIDIA's own driver.
    pub fn is_cuda(&self) -> bool {
        match *self {
            #[cfg(feature = "gpu")]
            Self::Wgpu(_) => false,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => true,
        }
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        inside!(self, adapter => adapter.name())
    }

    /// What it is reached through, and the driver's version.
    pub fn driver(&self) -> String {
        inside!(self, adapter => adapter.driver())
    }

    /// "discrete GPU", "integrated GPU" …
    pub fn kind(&self) -> &'static str {
        inside!(self, adapter => adapter.kind())
    }

    /// Whether it is a program that runs on the CPU.
    pub fn is_software(&self) -> bool {
        match *self {
            #[cfg(feature = "gpu")]
            Self::Wgpu(ref adapter) => adapter.is_software(),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => false,
        }
    }

    /// Whether its memory is the machine's.
    pub fn shares_memory(&self) -> bool {
        inside!(self, adapter => adapter.shares_memory())
    }

    /// Bytes of its memory that can be taken, where the driver says so.
    pub fn free_memory(&self) -> Option<u64> {
        inside!(self, adapter => adapter.free_memory())
    }
}

/// A graphics processor, and what is on it.
#[allow(clippy::large_enum_variant, reason = "there are a handful")]
pub enum Device {
    #[cfg(feature = "gpu")]
    Wgpu(gpu::Gpu, Adapter),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Cuda, Adapter),
}

impl Device {
    /// # Errors
    /// What the driver refuses.
    pub fn open(adapter: &Adapter) -> Result<Self> {
        match *adapter {
            #[cfg(feature = "gpu")]
            Adapter::Wgpu(ref found) => Ok(Self::Wgpu(gpu::Gpu::open(found)?, adapter.clone())),
            #[cfg(feature = "cuda")]
            Adapter::Cuda(ref found) => Ok(Self::Cuda(cuda::Cuda::open(found)?, adapter.clone())),
        }
    }

    /// What it is.
    pub fn adapter(&self) -> &Adapter {
        match *self {
            #[cfg(feature = "gpu")]
            Self::Wgpu(_, ref adapter) => adapter,
            #[cfg(feature = "cuda")]
            Self::Cuda(_, ref adapter) => adapter,
        }
    }

    /// Whether its kernels can compute with `matrix`.
    pub fn takes(&self, matrix: &Matrix) -> bool {
        inside!(self, device => device.takes(matrix))
    }

    /// Bytes of a device's memory that `matrix` takes.
    pub fn bytes_for(matrix: &Matrix) -> u64 {
        (matrix.size() as u64).next_multiple_of(512)
    }

    /// Copies `matrix` to the device, where it stays. `progress` is told of the bytes that went over.
    ///
    /// # Errors
    /// Too little memory on the device; a matrix that [`Self::takes`] refuses; a device that failed.
    pub fn upload(&self, matrix: &Matrix, progress: &mut dyn FnMut(usize)) -> Result<()> {
        inside!(self, device => device.upload(matrix, progress))
    }

    /// Takes a matrix off the device.
    pub fn remove(&self, matrix: MatrixId) {
        inside!(self, device => device.remove(matrix))
    }

    /// Copies host data to the device, where it becomes `to`.
    pub fn write(&self, data: &[f32], rows: usize, columns: usize, to: &mut DeviceBuffer) -> Result<()> {
        inside!(self, device, side => device.write(data, rows, columns, &mut side!(to)))
    }

    /// Notes an error of an operation that returns nothing: the next result that is read says it.
    pub fn note(&self, error: &Error) {
        inside!(self, device => device.note(error))
    }
}

/// A buffer on one device: of the kind that the device is; the other stays empty.
#[derive(Default)]
pub struct DeviceBuffer {
    #[cfg(feature = "gpu")]
    wgpu: gpu::Buffer,
    #[cfg(feature = "cuda")]
    cuda: cuda::Buffer,
}

impl DeviceBuffer {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        let shapes: &[(usize, usize)] = &[
            #[cfg(feature = "gpu")]
            self.wgpu.shape(),
            #[cfg(feature = "cuda")]
            self.cuda.shape(),
        ];
        shapes.iter().copied().find(|shape| *shape != (0, 0)).unwrap_or_default()
    }
}

/// Keys and values on one device, likewise.
pub struct DeviceCache {
    #[cfg(feature = "gpu")]
    wgpu: gpu::Cache,
    #[cfg(feature = "cuda")]
    cuda: cuda::Cache,
}

impl DeviceCache {
    /// An empty cache.
    pub fn new(shape: DeviceShape) -> Self {
        Self {
            #[cfg(feature = "gpu")]
            wgpu: gpu::Cache::new(shape.clone()),
            #[cfg(feature = "cuda")]
            cuda: cuda::Cache::new(shape),
        }
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// Too little memory on the device.
    pub fn reserve(&mut self, device: &Device, positions: usize) -> Result<()> {
        match *device {
            #[cfg(feature = "gpu")]
            Device::Wgpu(ref device, _) => self.wgpu.reserve(device, positions),
            #[cfg(feature = "cuda")]
            Device::Cuda(ref device, _) => self.cuda.reserve(device, positions),
        }
    }

    /// Appends keys and values of `positions`, layer by layer, to `out`.
    pub fn save(&self, device: &Device, positions: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        match *device {
            #[cfg(feature = "gpu")]
            Device::Wgpu(ref device, _) => self.wgpu.save(device, positions, out),
            #[cfg(feature = "cuda")]
            Device::Cuda(ref device, _) => self.cuda.save(device, positions, out),
        }
    }

    /// Takes back what [`Self::save`] wrote for the same positions from the beginning of `bytes`.
    pub fn restore(&self, device: &Device, positions: Range<usize>, bytes: &mut &[u8]) -> Result<()> {
        match *device {
            #[cfg(feature = "gpu")]
            Device::Wgpu(ref device, _) => self.wgpu.restore(device, positions, bytes),
            #[cfg(feature = "cuda")]
            Device::Cuda(ref device, _) => self.cuda.restore(device, positions, bytes),
        }
    }
}

impl Backend for Device {
    type Buffer = DeviceBuffer;
    type Cache = DeviceCache;

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut DeviceBuffer) -> Result<()> {
        inside!(self, device, side => device.embed(table, ids, &mut side!(out)))
    }

    fn rms_norm(&self, x: &DeviceBuffer, weight: &Vector, eps: f32, out: &mut DeviceBuffer) {
        inside!(self, device, side => device.rms_norm(&side!(x), weight, eps, &mut side!(out)))
    }

    fn layer_norm(&self, x: &DeviceBuffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut DeviceBuffer) {
        inside!(self, device, side => device.layer_norm(&side!(x), weight, bias, eps, &mut side!(out)))
    }

    fn linear(&self, w: &Matrix, x: &DeviceBuffer, out: &mut DeviceBuffer) -> Result<()> {
        inside!(self, device, side => device.linear(w, &side!(x), &mut side!(out)))
    }

    fn linear_add(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &DeviceBuffer,
        scratch: &mut DeviceBuffer,
        sum: &mut DeviceBuffer,
    ) -> Result<()> {
        inside!(self, device, side => {
            device.linear_add(w, bias, &side!(x), &mut side!(scratch), &mut side!(sum))
        })
    }

    fn linear_gate(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        gate: Gate,
        x: &DeviceBuffer,
        scratch: &mut DeviceBuffer,
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        inside!(self, device, side => {
            device.linear_gate(w, bias, gate, &side!(x), &mut side!(scratch), &mut side!(out))
        })
    }

    fn add(&self, x: &mut DeviceBuffer, y: &DeviceBuffer) {
        inside!(self, device, side => device.add(&mut side!(x), &side!(y)))
    }

    fn gate(&self, gate: Gate, gate_up: &DeviceBuffer, out: &mut DeviceBuffer) {
        inside!(self, device, side => device.gate(gate, &side!(gate_up), &mut side!(out)))
    }

    fn gelu(&self, x: &mut DeviceBuffer) {
        inside!(self, device, side => device.gelu(&mut side!(x)))
    }

    fn add_bias(&self, x: &mut DeviceBuffer, bias: &Vector) {
        inside!(self, device, side => device.add_bias(&mut side!(x), bias))
    }

    fn scale(&self, x: &mut DeviceBuffer, factor: f32) {
        inside!(self, device, side => device.scale(&mut side!(x), factor))
    }

    fn concat(&self, parts: &[&DeviceBuffer], out: &mut DeviceBuffer) {
        inside!(self, device, side => {
            let parts: Vec<_> = parts.iter().map(|part| &side!(part)).collect();
            device.concat(&parts, &mut side!(out))
        })
    }

    fn zeros_like(&self, x: &DeviceBuffer, out: &mut DeviceBuffer) {
        inside!(self, device, side => device.zeros_like(&side!(x), &mut side!(out)))
    }

    fn mixture(
        &self,
        mixture: &Mixture<'_>,
        scores: &DeviceBuffer,
        x: &DeviceBuffer,
        out: &mut DeviceBuffer,
    ) -> Result<bool> {
        inside!(self, device, side => device.mixture(mixture, &side!(scores), &side!(x), &mut side!(out)))
    }

    fn scatter_add(&self, x: &DeviceBuffer, rows: &[usize], weights: &[f32], out: &mut DeviceBuffer) {
        inside!(self, device, side => device.scatter_add(&side!(x), rows, weights, &mut side!(out)))
    }

    fn attention(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &DeviceBuffer,
        parts: &mut [Part<'_, DeviceCache>],
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        inside!(self, device, side => {
            let mut parts: Vec<_> = parts
                .iter_mut()
                .map(|part| Part {
                    cache: &mut side!(part.cache),
                    rows: part.rows.clone(),
                    position: part.position,
                })
                .collect();
            device.attention(layer, heads, rotation, &side!(qkv), &mut parts, &mut side!(out))
        })
    }

    fn gather(&self, x: &DeviceBuffer, rows: &[usize], out: &mut DeviceBuffer) {
        inside!(self, device, side => device.gather(&side!(x), rows, &mut side!(out)))
    }

    fn largest(&self, x: &DeviceBuffer, count: usize) -> Result<Option<Vec<Largest>>> {
        inside!(self, device, side => device.largest(&side!(x), count))
    }

    fn read(&self, x: &DeviceBuffer) -> Result<Vec<f32>> {
        inside!(self, device, side => device.read(&side!(x)))
    }
}
