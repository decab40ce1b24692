//! Memory on a device.

use std::sync::{Arc, Mutex};

use super::device::{Device, lock};
use crate::Result;
use crate::backend::serial;

/// Numbers of storages that are gone: what refers to them can be dropped.
pub(super) type Graveyard = Arc<Mutex<Vec<u64>>>;

/// A piece of a device's memory.
pub(super) struct Storage {
    pub raw: wgpu::Buffer,
    /// No other storage has the same.
    pub id: u64,
    graveyard: Graveyard,
}

impl Storage {
    /// # Errors
    /// Too little memory on the device.
    pub fn new(device: &Device, graveyard: &Graveyard, bytes: u64) -> Result<Self> {
        let raw = device.allocate(bytes, wgpu::BufferUsages::STORAGE)?;
        Ok(Self { raw, id: serial(), graveyard: Arc::clone(graveyard) })
    }

    /// Bytes it has.
    pub fn size(&self) -> u64 {
        self.raw.size()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        lock(&self.graveyard).push(self.id);
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
