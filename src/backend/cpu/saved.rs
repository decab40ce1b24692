//! A cache's pages as bytes, for keeping them in a file.
//!
//! The bytes are the pages as the attention kernel lays them out, little-endian; [`LAYOUT`] tells one layout from
//! another.

use super::cache::{Page, Pages};
use super::{Cache, CacheShape};
use crate::gguf::TensorType;
use crate::kernel::attention::{PAGE, padded_head};

/// Changes whenever the same positions would lie differently in a page.
pub const LAYOUT: u32 = 1;

/// Positions that a layout keeps together, whatever their order: a page's first positions are saved in whole
/// groups of so many.
const GROUP: usize = 32;

/// An element that has bytes; every bit pattern is a value.
trait Stored: Copy {
    const BYTES: usize;
    fn put(self, out: &mut Vec<u8>);
    /// From exactly [`Self::BYTES`] bytes.
    fn get(bytes: &[u8]) -> Self;
}

impl Stored for u16 {
    const BYTES: usize = 2;

    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("the length is a caller's promise"))
    }
}

impl Stored for f32 {
    const BYTES: usize = 4;

    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("the length is a caller's promise"))
    }
}

impl CacheShape {
    /// Pages that `positions` take.
    pub fn pages(&self, positions: usize) -> usize {
        positions.div_ceil(PAGE)
    }

    /// Bytes of page number `page` when `positions` in all are saved.
    pub fn saved_bytes(&self, page: usize, positions: usize) -> usize {
        let element = if self.kind == TensorType::F32 { f32::BYTES } else { u16::BYTES };
        2 * self.layers * self.kv_heads * saved_positions(page, positions) * padded_head(self.head) * element
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
        let saved = saved_positions(page, positions) * padded_head(shape.head);
        match self.pages() {
            Pages::F16(layers) => layers.iter().for_each(|pages| save(&pages[page], shape, saved, out)),
            Pages::F32(layers) => layers.iter().for_each(|pages| save(&pages[page], shape, saved, out)),
        }
    }

    /// Takes back what [`Self::save_page`] wrote for the same shape, page and positions. The cache has room for
    /// the page.
    pub fn restore_page(&mut self, shape: &CacheShape, page: usize, positions: usize, bytes: &[u8]) {
        let saved = saved_positions(page, positions) * padded_head(shape.head);
        let layer = bytes.len() / shape.layers;
        match self.pages() {
            Pages::F16(layers) => {
                let parts = layers.iter_mut().zip(bytes.chunks_exact(layer));
                parts.for_each(|(pages, bytes)| restore(&mut pages[page], shape, saved, bytes));
            }
            Pages::F32(layers) => {
                let parts = layers.iter_mut().zip(bytes.chunks_exact(layer));
                parts.for_each(|(pages, bytes)| restore(&mut pages[page], shape, saved, bytes));
            }
        }
    }
}

/// The first `saved` elements of each head's keys, then of its values.
fn save<E: Stored>(page: &Page<E>, shape: &CacheShape, saved: usize, out: &mut Vec<u8>) {
    let head = PAGE * padded_head(shape.head);
    for elements in [&page.keys, &page.values] {
        for elements in elements.chunks_exact(head) {
            elements[..saved].iter().for_each(|element| element.put(out));
        }
    }
}

fn restore<E: Stored>(page: &mut Page<E>, shape: &CacheShape, saved: usize, bytes: &[u8]) {
    let head = PAGE * padded_head(shape.head);
    let (keys, values) = bytes.split_at(bytes.len() / 2);
    for (elements, bytes) in [(&mut page.keys, keys), (&mut page.values, values)] {
        for (elements, bytes) in elements.chunks_exact_mut(head).zip(bytes.chunks_exact(saved * E::BYTES)) {
            for (element, bytes) in elements[..saved].iter_mut().zip(bytes.chunks_exact(E::BYTES)) {
                *element = E::get(bytes);
            }
        }
    }
}
