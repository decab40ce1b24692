//! The KV cache of a sequence, each layer's where the layer is.

use std::ops::Range;

use super::{DeviceCache, DeviceShape, Hybrid};
use crate::Result;
use crate::backend::{Part, cpu};
use crate::kernel::kv::KvType;

/// What a cache's layers look like, and where they are.
#[derive(Clone, Debug)]
pub struct CacheShape {
    /// Of the layers on the host, which are the first ones.
    host: cpu::CacheShape,
    /// Of those on each device.
    devices: Vec<DeviceShape>,
    /// Of all layers, wherever they are.
    pub layers: usize,
}

impl CacheShape {
    /// Elements of a head.
    pub fn head(&self) -> usize {
        self.host.head
    }

    pub fn kv_heads(&self) -> usize {
        self.host.kv_heads
    }

    /// Element types of keys and values.
    pub fn types(&self) -> (KvType, KvType) {
        (self.host.keys, self.host.values)
    }

    /// Layers on the host.
    pub fn host_layers(&self) -> usize {
        self.host.layers
    }

    /// Bytes that `positions` take, wherever.
    pub fn bytes(&self, positions: usize) -> u64 {
        self.host_bytes(positions) + self.devices.iter().map(|shape| shape.bytes(positions)).sum::<u64>()
    }

    /// Bytes of the host's memory that `positions` take.
    pub fn host_bytes(&self, positions: usize) -> u64 {
        self.host.bytes(positions)
    }

    /// Bytes of keys and values that attention reads when `positions` are in the cache.
    pub fn bytes_read(&self, positions: usize) -> u64 {
        cpu::CacheShape { layers: self.layers, ..self.host }.bytes_read(positions)
    }

    /// Pages that `positions` take.
    pub fn pages(&self, positions: usize) -> usize {
        self.host.pages(positions)
    }

    /// Bytes of page number `page` of all layers when `positions` in all are saved.
    pub fn saved_bytes(&self, page: usize, positions: usize) -> usize {
        let page_positions = page_positions(page, positions).len();
        let devices = self.devices.iter().map(|shape| shape.saved_bytes(page_positions));
        self.host.saved_bytes(page, positions) + devices.sum::<usize>()
    }
}

/// Positions of page number `page` of `positions`.
fn page_positions(page: usize, positions: usize) -> Range<usize> {
    let first = page * crate::kernel::kv::PAGE;
    first..(first + crate::kernel::kv::PAGE).min(positions)
}

/// Keys and values of one sequence, all layers.
pub struct Cache {
    pub(super) host: cpu::Cache,
    /// One a device.
    pub(super) devices: Vec<DeviceCache>,
}

impl Hybrid {
    /// The shape of caches for a model with `shape.layers` layers.
    pub fn cache_shape(&self, shape: cpu::CacheShape) -> CacheShape {
        let on_device = |device| DeviceShape {
            layers: self.cached_on(device),
            kv_heads: shape.kv_heads,
            head: shape.head,
            keys: shape.keys,
            values: shape.values,
        };
        CacheShape {
            host: cpu::CacheShape { layers: self.cached_on_host(shape.layers), ..shape },
            devices: (0..self.devices.len()).map(on_device).collect(),
            layers: shape.layers,
        }
    }

    /// An empty cache.
    pub fn cache(&self, shape: &CacheShape) -> Cache {
        let devices = shape.devices.iter().map(|shape| DeviceCache::new(shape.clone())).collect();
        Cache { host: cpu::Cache::new(shape.host), devices }
    }

    /// Makes room in `cache` for `positions` in all.
    ///
    /// # Errors
    /// Too little memory, on the host or on a device.
    pub fn reserve(&self, cache: &mut Cache, positions: usize) -> Result<()> {
        cache.host.reserve(positions)?;
        for (device, cache) in self.devices.iter().zip(&mut cache.devices) {
            cache.reserve(device, positions)?;
        }
        Ok(())
    }

    /// Appends page number `page` of all layers to `out`, as far as it belongs to the first `positions`, which are in
    /// the cache: [`CacheShape::saved_bytes`].
    pub fn save_page(
        &self,
        cache: &mut Cache,
        shape: &CacheShape,
        page: usize,
        positions: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        cache.host.save_page(&shape.host, page, positions, out);
        for (device, cache) in self.devices.iter().zip(&cache.devices) {
            cache.save(device, page_positions(page, positions), out)?;
        }
        Ok(())
    }

    /// Takes back what [`Self::save_page`] wrote for the same shape, page and positions. The cache has room for
    /// the page, and `bytes` are [`CacheShape::saved_bytes`].
    pub fn restore_page(
        &self,
        cache: &mut Cache,
        shape: &CacheShape,
        page: usize,
        positions: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let (host, mut rest) = bytes.split_at(shape.host.saved_bytes(page, positions));
        cache.host.restore_page(&shape.host, page, positions, host);
        for (device, cache) in self.devices.iter().zip(&cache.devices) {
            cache.restore(device, page_positions(page, positions), &mut rest)?;
        }
        Ok(())
    }
}

/// The parts of a batch as one of the backends sees them.
pub(super) fn parts<'a, C>(
    parts: &'a mut [Part<'_, Cache>],
    of: impl Fn(&'a mut Cache) -> &'a mut C,
) -> Vec<Part<'a, C>> {
    parts
        .iter_mut()
        .map(|part| Part { cache: of(part.cache), rows: part.rows.clone(), position: part.position })
        .collect()
}
