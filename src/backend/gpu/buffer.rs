//! Memory on a device.

use std::sync::{Arc, Mutex};

use super::device::lock;
use crate::backend::serial;

/// The storages of a device: bytes they take, and which are gone, so that what refers to them can be dropped.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Mutex<Entries>>);

struct Entries {
    taken: u64,
    most: u64,
    gone: Vec<u64>,
}

impl Ledger {
    /// Of a device with `most` bytes.
    pub fn new(most: u64) -> Self {
        Self(Arc::new(Mutex::new(Entries { taken: 0, most, gone: Vec::new() })))
    }

    /// Whether there are `bytes` left.
    pub fn has_room(&self, bytes: u64) -> bool {
        let entries = lock(&self.0);
        entries.taken.saturating_add(bytes) <= entries.most
    }

    /// Numbers of storages that have gone since the last call.
    pub fn gone(&self) -> Vec<u64> {
        std::mem::take(&mut lock(&self.0).gone)
    }
}

/// A piece of a device's memory.
pub(super) struct Storage {
    pub raw: wgpu::Buffer,
    /// Where in `raw` it begins, and its bytes.
    pub offset: u64,
    size: u64,
    /// No other storage has the same.
    pub id: u64,
    ledger: Ledger,
    /// Bytes of memory that go with it: none if it is a part of another.
    owned: u64,
}

impl Storage {
    pub fn new(raw: wgpu::Buffer, ledger: &Ledger) -> Self {
        lock(&ledger.0).taken += raw.size();
        let size = raw.size();
        Self { raw, offset: 0, size, id: serial(), ledger: ledger.clone(), owned: size }
    }

    /// `size` bytes of it from `offset` on, a multiple of [`Self::GRAIN`].
    pub fn part(&self, offset: u64, size: u64) -> Self {
        let (raw, ledger) = (self.raw.clone(), self.ledger.clone());
        Self { raw, offset: self.offset + offset, size, id: serial(), ledger, owned: 0 }
    }

    /// What parts begin at multiples of: WebGPU's default limit, which no device exceeds.
    pub const GRAIN: u64 = 256;

    /// Bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// As kernels see it.
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.raw,
            offset: self.offset,
            size: std::num::NonZero::new(self.size),
        })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let mut entries = lock(&self.ledger.0);
        entries.taken -= self.owned;
        entries.gone.push(self.id);
    }
}

/// `[rows, columns]` of f32 on a device.
#[derive(Default)]
pub struct Buffer {
    /// Keeps the size of the largest use.
    pub(super) storage: Option<Storage>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Buffer {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Its memory.
    ///
    /// # Panics
    /// If it was never written to.
    pub(super) fn storage(&self) -> &Storage {
        self.storage.as_ref().expect("a buffer is written before it is read")
    }
}
