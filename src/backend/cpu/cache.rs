//! The KV cache on the CPU: pages that are allocated as the sequence grows.

use crate::gguf::TensorType;
use crate::kernel::attention::{KvElement, PAGE, PageView, padded_head};
use crate::{Error, Result};

/// Keys and values of one sequence, all layers.
pub struct Cache {
    layers: Pages,
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
    /// F16 or F32.
    pub kind: TensorType,
}

impl CacheShape {
    /// Bytes that `positions` take, in whole pages.
    pub fn bytes(&self, positions: usize) -> u64 {
        let element = if self.kind == TensorType::F32 { 4 } else { 2 };
        let page = 2 * self.kv_heads * PAGE * padded_head(self.head) * element;
        page as u64 * self.layers as u64 * positions.div_ceil(PAGE) as u64
    }

    /// Bytes of keys and values that attention reads when `positions` are in the cache.
    pub fn bytes_read(&self, positions: usize) -> u64 {
        self.bytes(PAGE) / PAGE as u64 * positions as u64
    }
}

/// `[layers][pages]`.
pub(super) enum Pages {
    F16(Vec<Vec<Page<u16>>>),
    F32(Vec<Vec<Page<f32>>>),
}

/// Keys and values of [`PAGE`] positions, all KV heads of a layer.
pub(super) struct Page<E> {
    /// `[kv_heads, PAGE, padded_head]` elements, each head as `PageView::keys` says.
    pub keys: Box<[E]>,
    pub values: Box<[E]>,
}

impl<E: KvElement> Page<E> {
    fn new(shape: &CacheShape) -> Self {
        let elements = shape.kv_heads * PAGE * padded_head(shape.head);
        Self {
            keys: vec![E::default(); elements].into_boxed_slice(),
            values: vec![E::default(); elements].into_boxed_slice(),
        }
    }

    /// The part of KV head `head`.
    pub fn view(&self, head: usize, padded: usize) -> PageView<'_, E> {
        let elements = PAGE * padded;
        PageView {
            keys: &self.keys[head * elements..][..elements],
            values: &self.values[head * elements..][..elements],
        }
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Self {
        let layers = match shape.kind {
            TensorType::F32 => Pages::F32((0..shape.layers).map(|_| Vec::new()).collect()),
            _ => Pages::F16((0..shape.layers).map(|_| Vec::new()).collect()),
        };
        Self { layers, shape, room: 0 }
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// [`Error::Resources`] if the machine has not enough memory left.
    pub fn reserve(&mut self, positions: usize) -> Result<()> {
        while self.room < positions {
            let needed = self.shape.bytes(PAGE);
            if let Some(available) = available_memory().filter(|&available| available < needed) {
                return Err(Error::Resources(format!(
                    "the KV cache cannot grow beyond {} tokens: {} MiB more are needed and {} MiB of memory are left",
                    self.room,
                    needed >> 20,
                    available >> 20
                )));
            }
            match &mut self.layers {
                Pages::F16(layers) => layers.iter_mut().for_each(|pages| pages.push(Page::new(&self.shape))),
                Pages::F32(layers) => layers.iter_mut().for_each(|pages| pages.push(Page::new(&self.shape))),
            }
            self.room += PAGE;
        }
        Ok(())
    }

    pub(super) fn pages(&mut self) -> &mut Pages {
        &mut self.layers
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
