//! The CPU and the graphics processors as one backend: every operation runs where its weights are, or its input is.
//!
//! Layers lie on the host first and then on one device after the other; the residual stream moves on when a layer of
//! another place begins. Nothing above knows where anything is.

mod buffer;
mod cache;
mod device;

pub use buffer::Buffer;
pub use cache::{Cache, CacheShape};
pub use device::{Adapter, Device};
use device::{DeviceBuffer, DeviceCache, DeviceShape};

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::cpu::Cpu;
use super::{Backend, Gate, Heads, Largest, Matrix, MatrixId, Mixture, Part, Rotation, Vector};
use crate::Result;
use buffer::Visitor;

/// Where a weight, a buffer or a layer's cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Host,
    /// A number in the list of devices.
    Device(usize),
}

/// Up to so many rows, a pass is limited by memory, as generation is.
const FEW_ROWS: usize = 8;

/// The CPU, and the devices with what was put on them.
pub struct Hybrid {
    cpu: Cpu,
    /// For prompts, where that is to have another number of threads.
    prompt_cpu: Option<Cpu>,
    devices: Vec<Device>,
    /// Where each layer's operations without weights run; layers beyond are the host's.
    layers: Vec<Place>,
    /// Where each layer's keys and values are kept.
    caches: Vec<Place>,
    /// Matrices that are not the host's.
    matrices: HashMap<MatrixId, usize>,
    /// For what visits a device for one operation.
    visitors: Mutex<HashMap<usize, Vec<DeviceBuffer>>>,
}

impl Hybrid {
    /// Computes on the host alone until something is put on a device.
    pub fn new(cpu: Cpu, prompt_cpu: Option<Cpu>, devices: Vec<Device>) -> Self {
        Self {
            cpu,
            prompt_cpu,
            devices,
            layers: Vec::new(),
            caches: Vec::new(),
            matrices: HashMap::new(),
            visitors: Mutex::default(),
        }
    }

    /// The threads that generate.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The devices, in the order of their numbers.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Copies `matrix` to device number `device`, where its products are computed from now on. `progress` is told of the
    /// bytes that went over.
    ///
    /// # Errors
    /// Too little memory there.
    pub fn put(&mut self, matrix: &Matrix, device: usize, progress: &mut dyn FnMut(usize)) -> Result<()> {
        self.devices[device].upload(matrix, progress)?;
        self.matrices.insert(matrix.id(), device);
        Ok(())
    }

    /// Takes everything off the devices.
    pub fn clear(&mut self) {
        for matrix in self.matrices.drain() {
            self.devices[matrix.1].remove(matrix.0);
        }
        self.layers.clear();
        self.caches.clear();
    }

    /// Sets where the operations of each layer run, and where its keys and values are kept. Both go from the host to
    /// one device after the other.
    pub fn set_layers(&mut self, layers: Vec<Place>, caches: Vec<Place>) {
        (self.layers, self.caches) = (layers, caches);
    }

    /// Layers whose keys and values are kept on `device`.
    fn cached_on(&self, device: usize) -> Range<usize> {
        let place = Place::Device(device);
        let first = self.caches.iter().position(|cache| *cache == place).unwrap_or(0);
        let last = self.caches.iter().rposition(|cache| *cache == place);
        first..last.map_or(first, |last| last + 1)
    }

    /// Layers whose keys and values the host keeps, of `layers`.
    fn cached_on_host(&self, layers: usize) -> usize {
        self.caches.iter().take(layers).position(|cache| *cache != Place::Host).unwrap_or(layers)
    }

    fn home(&self, matrix: &Matrix) -> Place {
        self.matrices.get(&matrix.id()).map_or(Place::Host, |device| Place::Device(*device))
    }

    /// The threads for `rows`: those for prompts if the work is limited by arithmetic, not by memory.
    fn host(&self, rows: usize) -> &Cpu {
        match &self.prompt_cpu {
            Some(cpu) if rows > FEW_ROWS => cpu,
            _ => &self.cpu,
        }
    }

    /// Moves `buffer` to `place`.
    fn bring(&self, buffer: &mut Buffer, place: Place) -> Result<()> {
        if buffer.place == place {
            return Ok(());
        }
        let (rows, columns) = self.shape(buffer);
        let data = self.read(buffer)?;
        buffer.aim(place);
        match place {
            Place::Host => buffer.host.fill(&data, columns),
            Place::Device(device) => {
                self.devices[device].write(&data, rows, columns, &mut buffer.device)?;
            }
        }
        Ok(())
    }

    fn shape(&self, buffer: &Buffer) -> (usize, usize) {
        match buffer.place {
            Place::Host => buffer.host.shape(),
            Place::Device(_) => buffer.device.shape(),
        }
    }

    /// `buffer` at `place`: itself, or a copy for one operation.
    fn at<'a>(&'a self, buffer: &'a Buffer, place: Place) -> Result<Visitor<'a>> {
        if buffer.place == place {
            return Ok(Visitor::Same(buffer));
        }
        let (rows, columns) = self.shape(buffer);
        let mut copy = Buffer::default();
        copy.aim(place);
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        match place {
            Place::Host => copy.host.fill(&self.read(buffer)?, columns),
            Place::Device(device) => {
                copy.device = visitors.entry(device).or_default().pop().unwrap_or_default();
                let data = match buffer.place {
                    Place::Host => buffer.host.contents(),
                    Place::Device(_) => &self.read(buffer)?,
                };
                self.devices[device].write(data, rows, columns, &mut copy.device)?;
            }
        }
        Ok(Visitor::Copy { home: &self.visitors, copy })
    }

    /// Notes what an operation that returns nothing could not do; the next result that is read says it.
    fn note<T>(&self, result: Result<T>) -> Option<T> {
        result.inspect_err(|error| self.devices.iter().for_each(|device| device.note(error))).ok()
    }
}

impl Backend for Hybrid {
    type Buffer = Buffer;
    type Cache = Cache;

    fn begin_layer(&self, layer: usize, x: &mut Buffer) -> Result<()> {
        self.bring(x, self.layers.get(layer).copied().unwrap_or_default())
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer) -> Result<()> {
        out.aim(self.home(table));
        match out.place {
            Place::Host => self.host(ids.len()).embed(table, ids, &mut out.host),
            Place::Device(device) => self.devices[device].embed(table, ids, &mut out.device),
        }
    }

    fn rms_norm(&self, x: &Buffer, weight: &Vector, eps: f32, out: &mut Buffer) {
        out.aim(x.place);
        match x.place {
            Place::Host => self.host(x.host.shape().0).rms_norm(&x.host, weight, eps, &mut out.host),
            Place::Device(device) => self.devices[device].rms_norm(&x.device, weight, eps, &mut out.device),
        }
    }

    fn layer_norm(&self, x: &Buffer, weight: &Vector, bias: &Vector, eps: f32, out: &mut Buffer) {
        out.aim(x.place);
        match x.place {
            Place::Host => self.host(x.host.shape().0).layer_norm(&x.host, weight, bias, eps, &mut out.host),
            Place::Device(device) => {
                self.devices[device].layer_norm(&x.device, weight, bias, eps, &mut out.device);
            }
        }
    }

    fn linear(&self, w: &Matrix, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let place = self.home(w);
        let x = self.at(x, place)?;
        out.aim(place);
        match place {
            Place::Host => self.host(x.host.shape().0).linear(w, &x.host, &mut out.host),
            Place::Device(device) => self.devices[device].linear(w, &x.device, &mut out.device),
        }
    }

    fn linear_add(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        x: &Buffer,
        scratch: &mut Buffer,
        sum: &mut Buffer,
    ) -> Result<()> {
        let place = self.home(w);
        if let Place::Device(device) = place
            && sum.place == place
        {
            let x = self.at(x, place)?;
            scratch.aim(place);
            return self.devices[device].linear_add(w, bias, &x.device, &mut scratch.device, &mut sum.device);
        }
        self.linear_bias(w, bias, x, scratch)?;
        self.add(sum, scratch);
        Ok(())
    }

    fn linear_gate(
        &self,
        w: &Matrix,
        bias: Option<&Vector>,
        gate: Gate,
        x: &Buffer,
        scratch: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        let place = self.home(w);
        let x = self.at(x, place)?;
        out.aim(place);
        scratch.aim(place);
        match place {
            Place::Host => {
                let host = self.host(x.host.shape().0);
                host.linear_gate(w, bias, gate, &x.host, &mut scratch.host, &mut out.host)
            }
            Place::Device(device) => {
                let (scratch, out) = (&mut scratch.device, &mut out.device);
                self.devices[device].linear_gate(w, bias, gate, &x.device, scratch, out)
            }
        }
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) {
        let Some(y) = self.note(self.at(y, x.place)) else { return };
        match x.place {
            Place::Host => self.host(x.host.shape().0).add(&mut x.host, &y.host),
            Place::Device(device) => self.devices[device].add(&mut x.device, &y.device),
        }
    }

    fn gate(&self, gate: Gate, gate_up: &Buffer, out: &mut Buffer) {
        out.aim(gate_up.place);
        match gate_up.place {
            Place::Host => {
                self.host(gate_up.host.shape().0).gate(gate, &gate_up.host, &mut out.host);
            }
            Place::Device(device) => self.devices[device].gate(gate, &gate_up.device, &mut out.device),
        }
    }

    fn gelu(&self, x: &mut Buffer) {
        match x.place {
            Place::Host => self.host(x.host.shape().0).gelu(&mut x.host),
            Place::Device(device) => self.devices[device].gelu(&mut x.device),
        }
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Vector) {
        match x.place {
            Place::Host => self.host(x.host.shape().0).add_bias(&mut x.host, bias),
            Place::Device(device) => self.devices[device].add_bias(&mut x.device, bias),
        }
    }

    fn scale(&self, x: &mut Buffer, factor: f32) {
        match x.place {
            Place::Host => self.cpu.scale(&mut x.host, factor),
            Place::Device(device) => self.devices[device].scale(&mut x.device, factor),
        }
    }

    fn concat(&self, parts: &[&Buffer], out: &mut Buffer) {
        let place = parts.first().map_or(Place::Host, |part| part.place);
        let Some(parts) =
            self.note(parts.iter().map(|part| self.at(part, place)).collect::<Result<Vec<_>>>())
        else {
            return;
        };
        out.aim(place);
        match place {
            Place::Host => {
                let parts: Vec<_> = parts.iter().map(|part| &part.host).collect();
                self.cpu.concat(&parts, &mut out.host);
            }
            Place::Device(device) => {
                let parts: Vec<_> = parts.iter().map(|part| &part.device).collect();
                self.devices[device].concat(&parts, &mut out.device);
            }
        }
    }

    fn zeros_like(&self, x: &Buffer, out: &mut Buffer) {
        out.aim(x.place);
        match x.place {
            Place::Host => self.cpu.zeros_like(&x.host, &mut out.host),
            Place::Device(device) => self.devices[device].zeros_like(&x.device, &mut out.device),
        }
    }

    fn mixture(&self, mixture: &Mixture<'_>, scores: &Buffer, x: &Buffer, out: &mut Buffer) -> Result<bool> {
        // Experts of a tensor are all in one place.
        let mut places =
            [mixture.gate, mixture.up, mixture.down].map(|experts| self.home(&experts[0])).into_iter();
        match places.next() {
            Some(Place::Device(device)) if places.all(|place| place == Place::Device(device)) => {
                let (scores, x) =
                    (self.at(scores, Place::Device(device))?, self.at(x, Place::Device(device))?);
                out.aim(Place::Device(device));
                self.devices[device].mixture(mixture, &scores.device, &x.device, &mut out.device)
            }
            _ => Ok(false),
        }
    }

    fn scatter_add(&self, x: &Buffer, rows: &[usize], weights: &[f32], out: &mut Buffer) {
        let Some(x) = self.note(self.at(x, out.place)) else { return };
        match out.place {
            Place::Host => self.cpu.scatter_add(&x.host, rows, weights, &mut out.host),
            Place::Device(device) => {
                self.devices[device].scatter_add(&x.device, rows, weights, &mut out.device);
            }
        }
    }

    fn attention(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Buffer,
        parts: &mut [Part<'_, Cache>],
        out: &mut Buffer,
    ) -> Result<()> {
        let place = self.caches.get(layer).copied().unwrap_or_default();
        let qkv = self.at(qkv, place)?;
        out.aim(place);
        match place {
            Place::Host => {
                let mut parts = cache::parts(parts, |cache| &mut cache.host);
                let cpu = self.host(qkv.host.shape().0);
                cpu.attention(layer, heads, rotation, &qkv.host, &mut parts, &mut out.host)
            }
            Place::Device(device) => {
                let mut parts = cache::parts(parts, |cache| &mut cache.devices[device]);
                let device = &self.devices[device];
                device.attention(layer, heads, rotation, &qkv.device, &mut parts, &mut out.device)
            }
        }
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) {
        out.aim(x.place);
        match x.place {
            Place::Host => self.cpu.gather(&x.host, rows, &mut out.host),
            Place::Device(device) => self.devices[device].gather(&x.device, rows, &mut out.device),
        }
    }

    fn largest(&self, x: &Buffer, count: usize) -> Result<Option<Vec<Largest>>> {
        match x.place {
            Place::Host => self.cpu.largest(&x.host, count),
            Place::Device(device) => self.devices[device].largest(&x.device, count),
        }
    }

    fn read(&self, x: &Buffer) -> Result<Vec<f32>> {
        match x.place {
            Place::Host => self.cpu.read(&x.host),
            Place::Device(device) => self.devices[device].read(&x.device),
        }
    }
}
