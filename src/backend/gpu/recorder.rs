//! Operations are recorded and handed to the device together: when a result is read, or when there is work enough that
//! the device should begin.

use super::buffer::Storage;
use super::device::{Device, PARAMETER_BYTES};
use super::kernels::Pipeline;
use super::quick::QuickMap;
use crate::{Error, Result};

/// Multiplications after which recorded work is handed over: a few milliseconds of a fast device, well below what
/// makes systems take a device for hung on a slow one.
const ENOUGH: u64 = 200_000_000_000;

/// Dispatches after which recorded work is handed over, so that the device works while the host records the rest: a
/// token of 32 layers has about four times as many. On an H100, 2026-11-26: 285 tokens a second, 267 with one submission
/// a token.
const MANY: usize = 65;

/// The same after a result was read, when the device has nothing to do.
const FIRST: usize = 17;

/// Storages that a kernel sees, at most.
const MOST_STORAGES: usize = 6;

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
    /// Dispatches until the next submission.
    left: usize,
    /// By layout and storages.
    groups: QuickMap<GroupKey, wgpu::BindGroup>,
    /// What host data goes through on its way.
    uploads: Option<Storage>,
    /// What is to be in it before the recorded operations run.
    pending: Vec<u8>,
    download: Option<wgpu::Buffer>,
}

/// A layout, and the numbers of storages.
type GroupKey = [u64; MOST_STORAGES + 1];

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
        let mut key = GroupKey::default();
        key[0] = dispatch.pipeline.access.bytes().fold(0, |key, access| key << 8 | u64::from(access));
        for (room, storage) in key[1..].iter_mut().zip(dispatch.storages) {
            *room = storage.id;
        }
        if self.pass.is_none() {
            let pass = self.encoder(device).begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.pass = Some(pass.forget_lifetime());
        }
        let group = self.groups.entry(key).or_insert_with(|| bind(device, dispatch));
        let Some(pass) = &mut self.pass else { return };
        pass.set_pipeline(&dispatch.pipeline.raw);
        pass.set_bind_group(0, &*group, &[]);
        let mut parameters = [0; PARAMETER_BYTES as usize];
        for (room, word) in parameters.as_chunks_mut().0.iter_mut().zip(dispatch.parameters) {
            *room = word.to_le_bytes();
        }
        pass.set_immediates(0, &parameters[..dispatch.parameters.len() * 4]);
        let [x, y, z] = dispatch.groups;
        pass.dispatch_workgroups(x, y, z);
        self.work += dispatch.work;
        self.left = self.left.saturating_sub(1);
        if self.work >= ENOUGH || self.left == 0 {
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
        let at = self.pending.len() as u64;
        let raw = match &self.uploads {
            Some(storage) if storage.size() - at >= bytes => storage.raw.clone(),
            _ => {
                // What was recorded reads the old one, which is there until then.
                self.write_pending(device);
                let storage = device.storage(bytes.max(UPLOAD_BYTES))?;
                self.uploads.insert(storage).raw.clone()
            }
        };
        let at = self.pending.len() as u64;
        self.pending.extend_from_slice(data);
        self.pending.resize((at + bytes) as usize, 0);
        self.encoder(device).copy_buffer_to_buffer(&raw, at, &to.raw, to.offset + offset, bytes);
        Ok(())
    }

    /// What a submission begins with, for the copies that were recorded.
    fn write_pending(&mut self, device: &Device) {
        if let (Some(storage), false) = (&self.uploads, self.pending.is_empty()) {
            device.queue.write_buffer(&storage.raw, 0, &self.pending);
            self.pending.clear();
        }
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
        self.left = FIRST;
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
        self.left = MANY;
        if let Some(encoder) = self.encoder.take() {
            self.write_pending(device);
            device.queue.submit([encoder.finish()]);
        }
    }

    /// Drops what refers to storages that are gone.
    fn bury(&mut self, device: &Device) {
        let gone = device.ledger.gone();
        if !gone.is_empty() {
            self.groups.retain(|key, _| !key[1..].iter().any(|id| gone.contains(id)));
        }
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
        .zip(dispatch.pipeline.access.bytes())
        .filter(|(_, access)| *access != b'-')
        .map(|((binding, storage), _)| wgpu::BindGroupEntry {
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
