//! The KV cache on the CPU: pages that are allocated as the sequence grows.

use std::fmt::Display;

use crate::kernel::attention::HeadPage;
use crate::kernel::kv::{KvType, PAGE, padded_head};
use crate::kernel::region::Region;
use crate::machine::map_zeros;
use crate::{Error, Result};

/// Keys and values of one sequence, all layers.
pub struct Cache {
    /// `[layers][pages][kv_heads]`.
    layers: Vec<Vec<Page>>,
    shape: CacheShape,
    /// Positions there is room for.
    room: usize,
}

/// What a cache's pages look like.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    pub layers: usize,
    pub kv_heads: usize,
    /// Elements of a head.
    pub head: usize,
    pub keys: KvType,
    pub values: KvType,
}

impl CacheShape {
    /// Bytes that `positions` take, in whole pages.
    pub fn bytes(&self, positions: usize) -> u64 {
        let page = HeadPage::bytes(self.keys, self.values, padded_head(self.head));
        (page * self.kv_heads) as u64 * self.layers as u64 * positions.div_ceil(PAGE) as u64
    }

    /// Bytes of keys and values that attention reads when `positions` are in the cache.
    pub fn bytes_read(&self, positions: usize) -> u64 {
        self.bytes(PAGE) / PAGE as u64 * positions as u64
    }

    /// A page of one layer, from the next bytes of `region`.
    fn page(&self, region: &mut Region) -> Page {
        let padded = padded_head(self.head);
        (0..self.kv_heads).map(|_| HeadPage::new(self.keys, self.values, padded, region)).collect()
    }
}

/// Keys and values of [`PAGE`] positions: `[kv_heads]`.
pub(super) type Page = Box<[HeadPage]>;

impl Cache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Self {
        let layers = (0..shape.layers).map(|_| Vec::new()).collect();
        Self { layers, shape, room: 0 }
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// [`Error::Resources`] if the machine has not enough memory left.
    pub fn reserve(&mut self, positions: usize) -> Result<()> {
        let needed = self.shape.bytes(positions).saturating_sub(self.shape.bytes(self.room));
        if needed == 0 {
            return Ok(());
        }
        if let Some(available) = available_memory().filter(|&available| available < needed) {
            return Err(self.too_large(positions, format_args!("{} MiB of memory are left", available >> 20)));
        }
        while self.room < positions {
            // All layers at once: one of them alone would not fill a large page.
            let bytes = self.shape.bytes(PAGE) as usize;
            let memory = map_zeros(bytes).map_err(|error| self.too_large(positions, error))?;
            let mut region = Region::new(memory);
            self.layers.iter_mut().for_each(|pages| pages.push(self.shape.page(&mut region)));
            self.room += PAGE;
        }
        Ok(())
    }

    fn too_large(&self, positions: usize, why: impl Display) -> Error {
        Error::Resources(format!(
            "the KV cache cannot grow from {} to {positions} tokens: {} MiB more are needed and {why}",
            self.room,
            (self.shape.bytes(positions) - self.shape.bytes(self.room)) >> 20,
        ))
    }

    /// The pages of `layer`, in order of position.
    pub(super) fn pages(&mut self, layer: usize) -> &mut [Page] {
        &mut self.layers[layer]
    }
}

/// Bytes of memory that can be taken without swapping, where the system says so.
pub fn available_memory() -> Option<u64> {
    memory_line("MemAvailable:")
}

/// Bytes of memory the machine has, where the system says so.
pub fn total_memory() -> Option<u64> {
    memory_line("MemTotal:")
}

fn memory_line(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}
