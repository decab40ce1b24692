//! Operations are recorded and handed to the device together: when a result is read, or when there is work enough that
//! the device should begin.

use std::collections::HashMap;

use super::buffer::Storage;
use super::device::Device;
use super::kernels::Pipeline;
use crate::{Error, Result};

/// Multiplications after which recorded work is handed over: a few milliseconds of a fast device, well below what
/// makes systems take a device for hung on a slow one.
const ENOUGH: u64 = 200_000_000_000;

/// Bytes of the memory that small uploads go through.
const UPLOAD_BYTES: u64 = 4 << 20;

/// Groups a dispatch may have in one dimension, in WebGPU.
const MOST_GROUPS: u32 = 65_535;

/// What is to be done next.
#[derive(Default)]
pub(super) struct Recorder {
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    /// Multiplications recorded since the last submission.
    work: u64,
    /// By layout and storages.
    groups: HashMap<Vec<u64>, wgpu::BindGroup>,
    /// What host data goes through on its way, and how much of it is taken since the last submission.
    uploads: Option<(Storage, u64)>,
    download: Option<wgpu::Buffer>,
}

/// One run of a kernel.
pub(super) struct Dispatch<'a> {
    pub pipeline: &'a Pipeline,
    /// In the order of its bindings.
    pub storages: &'a [&'a Storage],
    /// Its parameters, 32 bits each.
    pub parameters: &'a [u32],
    /// Workgroups in each dimension.
    pub groups: [u32; 3],
    /// Multiplications it makes.
    pub work: u64,
}

/// `groups` workgroups in two dimensions; there may be some too many.
pub(super) fn spread(groups: usize) -> [u32; 3] {
    let groups = groups.max(1) as u32;
    let rows = groups.div_ceil(MOST_GROUPS);
    [groups.div_ceil(rows), rows, 1]
}

impl Recorder {
    pub fn dispatch(&mut self, device: &Device, dispatch: &Dispatch<'_>) {
        self.bury(device);
        let mut key = Vec::with_capacity(dispatch.storages.len() + 1);
        key.push(dispatch.pipeline.access.bytes().fold(0, |key, access| key << 8 | u64::from(access)));
        key.extend(dispatch.storages.iter().map(|storage| storage.id));
        let group = self.groups.entry(key).or_insert_with(|| bind(device, dispatch)).clone();
        let pass = self.pass(device);
        pass.set_pipeline(&dispatch.pipeline.raw);
        pass.set_bind_group(0, &group, &[]);
        let parameters: Vec<u8> = dispatch.parameters.iter().flat_map(|word| word.to_le_bytes()).collect();
        pass.set_immediates(0, &parameters);
        let [x, y, z] = dispatch.groups;
        pass.dispatch_workgroups(x, y, z);
        self.work += dispatch.work;
        if self.work >= ENOUGH {
            self.submit(device);
        }
    }

    /// Copies bytes between storages.
    pub fn copy(&mut self, device: &Device, from: &Storage, to: &Storage, bytes: u64) {
        self.encoder(device).copy_buffer_to_buffer(&from.raw, from.offset, &to.raw, to.offset, bytes);
    }

    /// Fills the beginning of a storage with zeros.
    pub fn clear(&mut self, device: &Device, storage: &Storage, bytes: u64) {
        self.encoder(device).clear_buffer(&storage.raw, storage.offset, Some(bytes));
    }

    /// Writes `data` to `to` from byte `offset` on, in its turn among the recorded operations.
    pub fn upload(&mut self, device: &Device, data: &[u8], to: &Storage, offset: u64) -> Result<()> {
        let bytes = (data.len() as u64).next_multiple_of(4);
        let room = self.uploads.as_ref().map_or(0, |(storage, used)| storage.size() - used);
        if room < bytes {
            // What was recorded still reads the old one; the device keeps it until then.
            let storage = device.storage(bytes.max(UPLOAD_BYTES))?;
            self.uploads = Some((storage, 0));
        }
        let Some((storage, used)) = &mut self.uploads else { return Ok(()) };
        let at = *used;
        *used += bytes;
        if data.len() as u64 == bytes {
            device.queue.write_buffer(&storage.raw, at, data);
        } else {
            let mut padded = data.to_vec();
            padded.resize(bytes as usize, 0);
            device.queue.write_buffer(&storage.raw, at, &padded);
        }
        let raw = storage.raw.clone();
        self.encoder(device).copy_buffer_to_buffer(&raw, at, &to.raw, to.offset + offset, bytes);
        Ok(())
    }

    /// Waits for everything recorded and reads a storage from byte `at` on.
    pub fn read(&mut self, device: &Device, storage: &Storage, at: u64, bytes: u64) -> Result<Vec<u8>> {
        if bytes == 0 {
            self.submit(device);
            return device.fault.check().map(|()| Vec::new());
        }
        if self.download.as_ref().is_none_or(|buffer| buffer.size() < bytes) {
            self.download = Some(device.raw.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: bytes.next_multiple_of(4),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
        }
        let Some(download) = self.download.clone() else { return Ok(Vec::new()) };
        self.encoder(device).copy_buffer_to_buffer(&storage.raw, storage.offset + at, &download, 0, bytes);
        self.submit(device);
        device.fault.check()?;
        let slice = download.slice(..bytes);
        slice.map_async(wgpu::MapMode::Read, |_| {});
        let waited = device.raw.poll(wgpu::PollType::wait_indefinitely());
        device.fault.check()?;
        let broken = |what: String| {
            device.fault.note(&what);
            device.fault.check().err().unwrap_or(Error::Device(what))
        };
        waited.map_err(|error| broken(error.to_string()))?;
        let mapped = slice.get_mapped_range().map_err(|error| broken(error.to_string()))?;
        let data = mapped.to_vec();
        drop(mapped);
        download.unmap();
        Ok(data)
    }

    /// Hands over what is recorded.
    pub fn submit(&mut self, device: &Device) {
        self.pass = None;
        self.work = 0;
        if let Some(encoder) = self.encoder.take() {
            device.queue.submit([encoder.finish()]);
        }
        if let Some((_, used)) = &mut self.uploads {
            *used = 0;
        }
    }

    /// Drops what refers to storages that are gone.
    fn bury(&mut self, device: &Device) {
        let gone = device.ledger.gone();
        if !gone.is_empty() {
            self.groups.retain(|key, _| !key[1..].iter().any(|id| gone.contains(id)));
        }
    }

    fn pass(&mut self, device: &Device) -> &mut wgpu::ComputePass<'static> {
        if self.pass.is_none() {
            let begin = wgpu::ComputePassDescriptor::default();
            self.pass = Some(self.encoder(device).begin_compute_pass(&begin).forget_lifetime());
        }
        self.pass.as_mut().expect("it was just begun")
    }

    /// The encoder, outside of a pass.
    fn encoder(&mut self, device: &Device) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.encoder.get_or_insert_with(|| {
            device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
        })
    }
}

fn bind(device: &Device, dispatch: &Dispatch<'_>) -> wgpu::BindGroup {
    let entries: Vec<_> = dispatch
        .storages
        .iter()
        .enumerate()
        .map(|(binding, storage)| wgpu::BindGroupEntry {
            binding: binding as u32,
            resource: storage.binding(),
        })
        .collect();
    device.raw.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &dispatch.pipeline.layout,
        entries: &entries,
    })
}
