//! Keys and values on a device: each layer's in segments that a kernel sees whole, the first of which grows.

use std::ops::Range;

use super::Gpu;
use super::buffer::Storage;
use crate::Result;
pub use crate::backend::device_cache::CacheShape;
use crate::backend::device_cache::FIRST;

/// Positions that a segment may grow to.
const MOST: usize = 32 * 1024;

/// Keys and values of one sequence.
pub struct Cache {
    pub(super) shape: CacheShape,
    /// `[layers][segments]`.
    layers: Vec<Vec<Segment>>,
    /// Positions there is room for.
    room: usize,
}

/// Keys and values of some positions of a layer: `[positions, kv_heads, padded_head]` each.
pub(super) struct Segment {
    pub keys: Storage,
    pub values: Storage,
    /// Positions before it.
    pub first: usize,
    /// Positions it has room for.
    pub positions: usize,
}

impl Segment {
    /// Where in this segment those of `positions` begin that are in it, and how many they are.
    fn part(&self, positions: &Range<usize>) -> Option<(u64, u64)> {
        let begin = positions.start.max(self.first);
        let end = positions.end.min(self.first + self.positions);
        (begin < end).then(|| ((begin - self.first) as u64, (end - begin) as u64))
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Self {
        let layers = shape.layers.clone().map(|_| Vec::new()).collect();
        Self { shape, layers, room: 0 }
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// Too little memory on the device.
    pub fn reserve(&mut self, gpu: &Gpu, positions: usize) -> Result<()> {
        while self.room < positions && !self.layers.is_empty() {
            let widest =
                self.shape.position_bytes(self.shape.keys).max(self.shape.position_bytes(self.shape.values));
            let most = (gpu.device.most_bytes / widest.max(1)) as usize / FIRST * FIRST;
            let most = most.clamp(FIRST, MOST);
            let last = self.layers[0].last().map_or((0, 0), |segment| (segment.first, segment.positions));
            let (first, old) = if last.1 < most { last } else { (last.0 + last.1, 0) };
            // Doubled, so that a long answer does not copy it over and over.
            let wanted = (positions - first).next_multiple_of(FIRST);
            let new = wanted.max(old * 2).clamp(FIRST, most);
            // All of them before any takes its place: a cache that could not grow is as it was.
            let grown: Vec<Segment> =
                self.layers.iter().map(|_| self.segment(gpu, first, new)).collect::<Result<_>>()?;
            for (segments, grown) in self.layers.iter_mut().zip(grown) {
                if let Some(before) = segments.pop_if(|_| old > 0) {
                    gpu.copy(&before.keys, &grown.keys, before.keys.size());
                    gpu.copy(&before.values, &grown.values, before.values.size());
                }
                segments.push(grown);
            }
            self.room = first + new;
        }
        Ok(())
    }

    /// Appends keys and values of `positions`, layer by layer, to `out`: [`CacheShape::saved_bytes`].
    pub fn save(&self, gpu: &Gpu, positions: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        for segment in self.layers.iter().flatten() {
            let Some((at, count)) = segment.part(&positions) else { continue };
            for (kind, storage) in [(self.shape.keys, &segment.keys), (self.shape.values, &segment.values)] {
                let position = self.shape.position_bytes(kind);
                out.extend(gpu.fetch(storage, at * position, count * position)?);
            }
        }
        Ok(())
    }

    /// Takes back what [`Self::save`] wrote for the same positions from the beginning of `bytes`; the cache has room
    /// for them.
    pub fn restore(&self, gpu: &Gpu, positions: Range<usize>, bytes: &mut &[u8]) -> Result<()> {
        for segment in self.layers.iter().flatten() {
            let Some((at, count)) = segment.part(&positions) else { continue };
            for (kind, storage) in [(self.shape.keys, &segment.keys), (self.shape.values, &segment.values)] {
                let position = self.shape.position_bytes(kind);
                let (mine, rest) = bytes.split_at((count * position) as usize);
                gpu.store(storage, at * position, mine)?;
                *bytes = rest;
            }
        }
        Ok(())
    }

    fn segment(&self, gpu: &Gpu, first: usize, positions: usize) -> Result<Segment> {
        let storage = |kind| gpu.storage(self.shape.position_bytes(kind) * positions as u64);
        Ok(Segment { keys: storage(self.shape.keys)?, values: storage(self.shape.values)?, first, positions })
    }

    /// The segments of `layer` (of the model), in order of position.
    pub(super) fn segments(&self, layer: usize) -> &[Segment] {
        &self.layers[layer - self.shape.layers.start]
    }
}
