//! Attention on a device: rotate, append to the cache, attend segment by segment, put the splits together.

use std::ops::Range;

use super::cache::{Cache, Segment};
use super::device::lock;
use super::kernels::Kernel;
use super::{Buffer, Gpu, Scratch};
use crate::Result;
use crate::backend::{Heads, Rotation};
use crate::kernel::kv::padded_head;

/// Up to so many rows, each is attended by itself.
const FEW_ROWS: usize = 8;
/// Positions of a split of attend_row.wgsl.
const SPLIT: usize = 128;
/// Queries of a tile of attend_tile.wgsl.
const TILE: usize = 32;

/// Rows of a batch that continue one sequence.
pub(super) struct Sequence<'a> {
    pub cache: &'a Cache,
    pub rows: Range<usize>,
    /// Of the first row.
    pub position: usize,
}

impl Sequence<'_> {
    /// Positions after this batch.
    fn end(&self) -> usize {
        self.position + self.rows.len()
    }
}

/// Part of a segment that a dispatch attends to.
struct Span<'a> {
    segment: &'a Segment,
    /// Within the segment.
    start: usize,
    /// Positions of the segment that hold something.
    length: usize,
    first_split: usize,
    splits: usize,
}

impl Gpu {
    pub(super) fn attend(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Buffer,
        sequences: &mut [Sequence<'_>],
        out: &Buffer,
    ) -> Result<()> {
        let mut scratch = lock(&self.scratch);
        if scratch.rotation != rotation.id() {
            self.ensure(&mut scratch.cosines, rotation.cos.len());
            self.ensure(&mut scratch.sines, rotation.sin.len());
            if let (Some(cosines), Some(sines)) = (&scratch.cosines, &scratch.sines) {
                self.send(rotation.cos.iter().map(|x| x.to_bits()), cosines)?;
                self.send(rotation.sin.iter().map(|x| x.to_bits()), sines)?;
            }
            scratch.rotation = rotation.id();
        }
        self.ensure(&mut scratch.queries, qkv.rows * heads.count * padded_head(heads.size));
        for sequence in sequences {
            self.append(layer, heads, rotation.pairs, qkv, sequence, &scratch);
            self.attend_sequence(layer, heads, sequence, &mut scratch, out);
        }
        Ok(())
    }

    fn append(
        &self,
        layer: usize,
        heads: &Heads,
        pairs: usize,
        qkv: &Buffer,
        sequence: &Sequence<'_>,
        scratch: &Scratch,
    ) {
        let (Some(cosines), Some(sines), Some(queries)) =
            (&scratch.cosines, &scratch.sines, &scratch.queries)
        else {
            return;
        };
        let shape = &sequence.cache.shape;
        let kernel = Kernel::Append { keys: shape.keys, values: shape.values };
        let padded = padded_head(heads.size);
        let items = (heads.count + 2 * heads.kv_count) * padded / 32;
        for segment in sequence.cache.segments(layer) {
            let begin = sequence.position.max(segment.first);
            let end = sequence.end().min(segment.first + segment.positions);
            if begin >= end {
                continue;
            }
            let storages = [qkv.storage(), cosines, sines, queries, &segment.keys, &segment.values];
            let parameters = [
                sequence.rows.start + begin - sequence.position,
                end - begin,
                begin - segment.first,
                heads.count,
                heads.kv_count,
                heads.size,
                padded,
                pairs,
            ];
            let mut parameters = parameters.map(|n| n as u32).to_vec();
            parameters.push(heads.scale.to_bits());
            let groups = [items.div_ceil(64) as u32, (end - begin) as u32, 1];
            self.run(kernel, &storages, &parameters, groups, 0);
        }
    }

    fn attend_sequence(
        &self,
        layer: usize,
        heads: &Heads,
        sequence: &Sequence<'_>,
        scratch: &mut Scratch,
        out: &Buffer,
    ) {
        let few = sequence.rows.len() <= FEW_ROWS;
        let spans = spans(sequence.cache.segments(layer), sequence, heads.window, few);
        let splits: usize = spans.iter().map(|span| span.splits).sum();
        let padded = padded_head(heads.size);
        if splits > 1 {
            let words = sequence.rows.len() * heads.count * splits * (padded + 4);
            self.ensure(&mut scratch.splits, words);
        }
        let Some(queries) = &scratch.queries else { return };
        let left = match &scratch.splits {
            Some(left) if splits > 1 => left,
            _ => out.storage(),
        };
        let (keys, values) = (sequence.cache.shape.keys, sequence.cache.shape.values);
        for span in &spans {
            let storages = [queries, &span.segment.keys, &span.segment.values, left];
            let parameters = parameters(heads, sequence, span, splits);
            let padded = padded as u32;
            let rows = sequence.rows.len();
            let (kernel, groups) = if few {
                (Kernel::AttendRow { keys, values, padded }, [span.splits, heads.count, rows])
            } else {
                (Kernel::AttendTile { keys, values, padded }, [rows.div_ceil(TILE), heads.count, 1])
            };
            let work = (rows * (span.length - span.start) * heads.count * heads.size * 2) as u64;
            self.run(kernel, &storages, &parameters, groups.map(|n| n as u32), work);
        }
        if splits > 1 {
            let parameters = [sequence.rows.start, heads.count, heads.size, splits].map(|n| n as u32);
            let groups = [heads.count as u32, sequence.rows.len() as u32, 1];
            let kernel = Kernel::Combine { padded: padded as u32 };
            self.run(kernel, &[left, out.storage()], &parameters, groups, 0);
        }
    }
}

/// What of each segment any row sees; the splits of a few rows' kernel, or one for a tile's.
fn spans<'a>(segments: &'a [Segment], sequence: &Sequence<'_>, window: usize, few: bool) -> Vec<Span<'a>> {
    let oldest = (sequence.position + 1).saturating_sub(window);
    let mut spans = Vec::new();
    let mut first_split = 0;
    for segment in segments {
        let length = sequence.end().saturating_sub(segment.first).min(segment.positions);
        let start = oldest.saturating_sub(segment.first) / SPLIT * SPLIT;
        if start >= length {
            continue;
        }
        let splits = if few { (length - start).div_ceil(SPLIT) } else { 1 };
        spans.push(Span { segment, start, length, first_split, splits });
        first_split += splits;
    }
    spans
}

fn parameters(heads: &Heads, sequence: &Sequence<'_>, span: &Span<'_>, splits: usize) -> [u32; 16] {
    let sparse = heads.sparse;
    let of = |f: fn(&crate::backend::BlockSparse) -> usize| sparse.as_ref().map_or(0, f);
    [
        sequence.rows.start,
        sequence.rows.len(),
        sequence.position,
        heads.count,
        heads.kv_count,
        heads.size,
        // Room to add a position to it.
        heads.window.min(1 << 30),
        span.segment.first,
        span.length,
        span.start,
        span.first_split,
        splits,
        of(|sparse| sparse.block),
        of(|sparse| sparse.local),
        of(|sparse| sparse.stride),
        of(|sparse| sparse.head_step),
    ]
    .map(|n| n as u32)
}
