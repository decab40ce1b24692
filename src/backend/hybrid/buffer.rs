//! A buffer that is somewhere.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use super::{DeviceBuffer, Place};
use crate::backend::cpu;

/// `[rows, columns]` of f32 on the host or on one of the devices.
#[derive(Default)]
pub struct Buffer {
    pub(super) place: Place,
    pub(super) host: cpu::Buffer,
    /// Memory of the device that the buffer was last on.
    pub(super) device: DeviceBuffer,
    last_device: Option<usize>,
}

impl Buffer {
    /// What is written to it next is at `place`.
    pub(super) fn aim(&mut self, place: Place) {
        self.place = place;
        if let Place::Device(device) = place
            && self.last_device.replace(device) != Some(device)
        {
            self.device = DeviceBuffer::default();
        }
    }
}

/// A buffer where an operation wants it.
#[allow(clippy::large_enum_variant, reason = "it lives on the stack for one operation")]
pub(super) enum Visitor<'a> {
    Same(&'a Buffer),
    /// A copy, whose memory goes home when the operation is recorded.
    Copy {
        home: &'a Mutex<HashMap<usize, Vec<DeviceBuffer>>>,
        copy: Buffer,
    },
}

impl Deref for Visitor<'_> {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        match self {
            Self::Same(buffer) => buffer,
            Self::Copy { copy, .. } => copy,
        }
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        if let Self::Copy { home, copy } = self
            && let Place::Device(device) = copy.place
        {
            let mut home = home.lock().unwrap_or_else(PoisonError::into_inner);
            home.entry(device).or_default().push(std::mem::take(&mut copy.device));
        }
    }
}
