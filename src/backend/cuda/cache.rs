//! Keys and values on a device: each layer's in one piece, which grows.

use std::ops::Range;

use super::Cuda;
use super::buffer::Storage;
use crate::Result;
pub use crate::backend::device_cache::CacheShape;
use crate::backend::device_cache::FIRST;
use crate::kernel::kv::KvType;

/// Positions that a cache grows by at most, unless more are wanted.
const MOST_SPARE: usize = 8192;

/// The number that kernels/kv.cuh has for it.
pub(super) fn kv_number(kind: KvType) -> u32 {
    match kind {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Bf16 => 2,
        KvType::Q8_0 => 3,
        KvType::Q4_0 => 4,
    }
}

/// Keys and values of one sequence.
pub struct Cache {
    pub(super) shape: CacheShape,
    layers: Vec<Layer>,
    /// Positions there is room for.
    room: usize,
}

/// Keys and values of a layer: `[positions, kv_heads, padded_head]` each.
pub(super) struct Layer {
    pub keys: Storage,
    pub values: Storage,
}

impl Cache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Self {
        Self { shape, layers: Vec::new(), room: 0 }
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// Too little memory on the device.
    pub fn reserve(&mut self, cuda: &Cuda, positions: usize) -> Result<()> {
        if self.room >= positions || self.shape.layers.is_empty() {
            return Ok(());
        }
        // Doubled, so that a long answer does not copy it over and over.
        let spare = self.room + self.room.min(MOST_SPARE);
        let room = positions.next_multiple_of(FIRST).max(spare);
        let storage = |kind| cuda.storage(self.shape.position_bytes(kind) as usize * room);
        let layer = || Ok(Layer { keys: storage(self.shape.keys)?, values: storage(self.shape.values)? });
        // All of them before any takes its place: a cache that could not grow is as it was.
        let grown: Vec<Layer> = self.shape.layers.clone().map(|_| layer()).collect::<Result<_>>()?;
        for (before, grown) in self.layers.iter().zip(&grown) {
            let bytes = |kind| self.shape.position_bytes(kind) as usize * self.room;
            cuda.copy(&before.keys, &grown.keys, bytes(self.shape.keys))?;
            cuda.copy(&before.values, &grown.values, bytes(self.shape.values))?;
        }
        (self.layers, self.room) = (grown, room);
        Ok(())
    }

    /// Appends keys and values of `positions`, layer by layer, to `out`: [`CacheShape::saved_bytes`].
    pub fn save(&self, cuda: &Cuda, positions: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        for (from, bytes) in self.pieces(&positions) {
            let start = out.len();
            out.resize(start + bytes, 0);
            cuda.fetch(from, &mut out[start..])?;
        }
        Ok(())
    }

    /// Takes back what [`Self::save`] wrote for the same positions from the beginning of `bytes`; the cache has room
    /// for them.
    pub fn restore(&self, cuda: &Cuda, positions: Range<usize>, bytes: &mut &[u8]) -> Result<()> {
        for (to, count) in self.pieces(&positions) {
            let (mine, rest) = bytes.split_at(count);
            cuda.send(mine, to)?;
            *bytes = rest;
        }
        Ok(())
    }

    /// Where `positions` lie, and how many bytes: each layer's keys, then its values.
    fn pieces(&self, positions: &Range<usize>) -> Vec<(u64, usize)> {
        let mut pieces = Vec::new();
        for layer in &self.layers {
            for (kind, storage) in [(self.shape.keys, &layer.keys), (self.shape.values, &layer.values)] {
                let position = self.shape.position_bytes(kind) as usize;
                pieces.push((
                    storage.pointer() + (positions.start * position) as u64,
                    positions.len() * position,
                ));
            }
        }
        pieces
    }

    /// Keys and values of `layer` (of the model).
    pub(super) fn layer(&self, layer: usize) -> &Layer {
        &self.layers[layer - self.shape.layers.start]
    }
}
