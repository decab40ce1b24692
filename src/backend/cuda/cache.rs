//! Keys and values on a device: each layer's in one piece, which grows.

use std::ops::Range;

use super::Cuda;
use super::buffer::Storage;
use super::driver::Pointer;
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
    /// Each layer's keys, then its values: `[room, kv_heads, padded_head]` each. In one piece, as it takes the driver long
    /// to find memory.
    memory: Option<Storage>,
    /// Positions there is room for.
    room: usize,
}

/// Where keys and values of a layer are: `[positions, kv_heads, padded_head]` each.
pub(super) struct Layer {
    pub keys: Pointer,
    pub values: Pointer,
}

impl Cache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Self {
        Self { shape, memory: None, room: 0 }
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
        let mut grown = Self { shape: self.shape.clone(), memory: None, room };
        // It is there before it takes its place: a cache that could not grow is as it was.
        grown.memory = Some(cuda.storage(grown.layer_bytes() * self.shape.layers.len())?);
        for layer in self.shape.layers.clone().filter(|_| self.room > 0) {
            let (before, grown) = (self.layer(layer), grown.layer(layer));
            cuda.copy(before.keys, grown.keys, self.bytes(self.shape.keys))?;
            cuda.copy(before.values, grown.values, self.bytes(self.shape.values))?;
        }
        *self = grown;
        Ok(())
    }

    /// Bytes of a layer's keys, or values.
    fn bytes(&self, kind: KvType) -> usize {
        self.shape.position_bytes(kind) as usize * self.room
    }

    /// Room is a multiple of [`FIRST`]: layers begin at multiples of 256 bytes.
    fn layer_bytes(&self) -> usize {
        self.bytes(self.shape.keys) + self.bytes(self.shape.values)
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
        for layer in self.shape.layers.clone().filter(|_| !positions.is_empty()) {
            let layer = self.layer(layer);
            for (kind, start) in [(self.shape.keys, layer.keys), (self.shape.values, layer.values)] {
                let position = self.shape.position_bytes(kind) as usize;
                pieces.push((start + (positions.start * position) as u64, positions.len() * position));
            }
        }
        pieces
    }

    /// Where the layers begin, and bytes of a layer and of its keys.
    ///
    /// # Panics
    /// As [`Self::layer`].
    pub(super) fn place(&self) -> [u64; 3] {
        let memory = self.memory.as_ref().expect("a cache has room before it is used").pointer();
        [memory, self.layer_bytes() as u64, self.bytes(self.shape.keys) as u64]
    }

    /// Keys and values of `layer` (of the model).
    ///
    /// # Panics
    /// If there is no room for any position.
    pub(super) fn layer(&self, layer: usize) -> Layer {
        let [memory, layer_bytes, key_bytes] = self.place();
        let keys = memory + (layer - self.shape.layers.start) as u64 * layer_bytes;
        Layer { keys, values: keys + key_bytes }
    }
}
