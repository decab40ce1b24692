//! What keys and values on a device look like, whichever way it is reached.

use std::ops::Range;

use crate::kernel::kv::{KvType, padded_head};

/// Positions that a cache begins with, and grows by a multiple of.
pub(super) const FIRST: usize = 256;

/// What a cache holds.
#[derive(Clone, Debug)]
pub struct CacheShape {
    /// Which of the model's layers are kept here.
    pub layers: Range<usize>,
    pub kv_heads: usize,
    /// Elements of a head.
    pub head: usize,
    pub keys: KvType,
    pub values: KvType,
}

/// Words of 32 bits that 32 elements take.
fn group_words(kind: KvType) -> usize {
    match kind {
        KvType::F32 => 32,
        KvType::F16 | KvType::Bf16 => 16,
        KvType::Q8_0 => 9,
        KvType::Q4_0 => 5,
    }
}

impl CacheShape {
    /// Bytes of a position's keys, or values, in one layer.
    pub(super) fn position_bytes(&self, kind: KvType) -> u64 {
        (self.kv_heads * padded_head(self.head) / 32 * group_words(kind) * 4) as u64
    }

    /// Bytes of `positions` in a file.
    pub fn saved_bytes(&self, positions: usize) -> usize {
        let position = self.position_bytes(self.keys) + self.position_bytes(self.values);
        position as usize * self.layers.len() * positions
    }

    /// Bytes that `positions` take.
    pub fn bytes(&self, positions: usize) -> u64 {
        let position = self.position_bytes(self.keys) + self.position_bytes(self.values);
        position * self.layers.len() as u64 * positions.next_multiple_of(FIRST) as u64
    }
}
