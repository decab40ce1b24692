//! What went wrong on a device, kept until somebody waits for a result.

use std::sync::{Arc, Mutex};

use super::device::lock;
use crate::{Error, Result};

/// The first thing that went wrong.
#[derive(Clone)]
pub(super) struct Fault {
    device: Arc<str>,
    first: Arc<Mutex<Option<String>>>,
}

impl Fault {
    pub fn new(device: &str) -> Self {
        Self { device: device.into(), first: Arc::default() }
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn note(&self, what: &str) {
        // Messages of the validation have the sentence in their last line.
        let last = what.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or(what);
        lock(&self.first).get_or_insert_with(|| last.to_owned());
    }

    pub fn is_clear(&self) -> bool {
        lock(&self.first).is_none()
    }

    /// # Errors
    /// What was noted.
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.first) {
            None => Ok(()),
            Some(what) => {
                Err(Error::Device(format!("{} failed: {what}; go on without it with -ngl 0", self.device)))
            }
        }
    }
}
