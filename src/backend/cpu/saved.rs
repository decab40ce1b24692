//! A cache's pages as bytes, for keeping them in a file.
//!
//! The bytes are the pages as the attention kernel lays them out, little-endian; [`LAYOUT`] tells one layout from
//! another.

use super::{Cache, CacheShape};
use crate::kernel::kv::{KvData, PAGE, padded_head};

/// Changes whenever the same positions would lie differently in a page.
pub const LAYOUT: u32 = 3;

/// Positions that a layout keeps together, whatever their order: a page's first positions are saved in whole
/// groups of so many, which lie at the start of each of its arrays.
const GROUP: usize = 32;

impl CacheShape {
    /// Pages that `positions` take.
    pub fn pages(&self, positions: usize) -> usize {
        positions.div_ceil(PAGE)
    }

    /// Bytes of page number `page` of all layers when `positions` in all are saved.
    pub fn saved_bytes(&self, page: usize, positions: usize) -> usize {
        let (saved, padded) = (saved_positions(page, positions), padded_head(self.head));
        self.layers * self.kv_heads * (self.keys.bytes(saved, padded) + self.values.bytes(saved, padded))
    }
}

/// Positions of a page that are saved: its part of `positions`, in whole groups.
fn saved_positions(page: usize, positions: usize) -> usize {
    positions.saturating_sub(page * PAGE).min(PAGE).next_multiple_of(GROUP)
}

impl Cache {
    /// Appends page number `page` of all layers to `out`, as far as it belongs to the first `positions`, which are
    /// in the cache: [`CacheShape::saved_bytes`].
    pub fn save_page(&mut self, shape: &CacheShape, page: usize, positions: usize, out: &mut Vec<u8>) {
        let saved = saved_positions(page, positions);
        for layer in 0..shape.layers {
            for head in &self.pages(layer)[page] {
                save(&head.keys, saved, out);
                save(&head.values, saved, out);
            }
        }
    }

    /// Takes back what [`Self::save_page`] wrote for the same shape, page and positions. The cache has room for
    /// the page, and `bytes` are [`CacheShape::saved_bytes`].
    pub fn restore_page(&mut self, shape: &CacheShape, page: usize, positions: usize, mut bytes: &[u8]) {
        let saved = saved_positions(page, positions);
        for layer in 0..shape.layers {
            for head in &mut self.pages(layer)[page] {
                restore(&mut head.keys, saved, &mut bytes);
                restore(&mut head.values, saved, &mut bytes);
            }
        }
    }
}

fn save(data: &KvData, saved: usize, out: &mut Vec<u8>) {
    match data {
        KvData::F32(array) => append(array, saved, out, f32::to_le_bytes),
        KvData::Sixteen(array) => {
            append(&array.pairs, saved, out, i32::to_le_bytes);
            append(&array.scales, saved, out, f32::to_le_bytes);
        }
        KvData::Bf16(array) => append(array, saved, out, i32::to_le_bytes),
        KvData::Q8_0(quants, scales) => {
            append(quants, saved, out, i8::to_le_bytes);
            append(scales, saved, out, u16::to_le_bytes);
        }
        KvData::Q4_0(nibbles, scales) => {
            append(nibbles, saved, out, u8::to_le_bytes);
            append(scales, saved, out, u16::to_le_bytes);
        }
    }
}

fn restore(data: &mut KvData, saved: usize, bytes: &mut &[u8]) {
    match data {
        KvData::F32(array) => fill(array, saved, bytes, f32::from_le_bytes),
        KvData::Sixteen(array) => {
            fill(&mut array.pairs, saved, bytes, i32::from_le_bytes);
            fill(&mut array.scales, saved, bytes, f32::from_le_bytes);
        }
        KvData::Bf16(array) => fill(array, saved, bytes, i32::from_le_bytes),
        KvData::Q8_0(quants, scales) => {
            fill(quants, saved, bytes, i8::from_le_bytes);
            fill(scales, saved, bytes, u16::from_le_bytes);
        }
        KvData::Q4_0(nibbles, scales) => {
            fill(nibbles, saved, bytes, u8::from_le_bytes);
            fill(scales, saved, bytes, u16::from_le_bytes);
        }
    }
}

/// Adds the elements of the first `saved` positions to `out`.
fn append<T: Copy, const BYTES: usize>(
    array: &[T],
    saved: usize,
    out: &mut Vec<u8>,
    to: impl Fn(T) -> [u8; BYTES],
) {
    array[..array.len() / PAGE * saved].iter().for_each(|&element| out.extend_from_slice(&to(element)));
}

/// Takes the elements of the first `saved` positions from the start of `bytes`.
fn fill<T, const BYTES: usize>(
    array: &mut [T],
    saved: usize,
    bytes: &mut &[u8],
    from: impl Fn([u8; BYTES]) -> T,
) {
    let count = array.len() / PAGE * saved;
    let (mine, rest) = bytes.split_at(count * BYTES);
    for (element, &bytes) in array[..count].iter_mut().zip(mine.as_chunks().0) {
        *element = from(bytes);
    }
    *bytes = rest;
}
