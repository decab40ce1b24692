//! Attention on a device: rotate, append to the cache, attend segment by segment, put the splits together.

use std::ops::Range;

use super::cache::{Cache, Segment};
use super::device::lock;
use super::kernels::Kernel;
use super::{Buffer, Gpu, Scratch};
use crate::Result;
use crate::backend::{BlockSparse, Heads, Rotation};
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

/// What is attended to, of whatever sequence.
struct Attention<'a> {
    layer: usize,
    heads: &'a Heads,
    /// Rotated pairs of elements.
    pairs: usize,
    qkv: &'a Buffer,
    out: &'a Buffer,
}

impl Gpu {
    pub(super) fn attend(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Buffer,
        sequences: &[Sequence<'_>],
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
        let attention = Attention { layer, heads, pairs: rotation.pairs, qkv, out };
        for sequence in sequences {
            if sequence.rows.len() > 1 {
                self.append(&attention, sequence, &scratch);
            }
            self.attend_sequence(&attention, sequence, &mut scratch);
        }
        Ok(())
    }

    fn append(&self, attention: &Attention<'_>, sequence: &Sequence<'_>, scratch: &Scratch) {
        let (Some(cosines), Some(sines), Some(queries)) =
            (&scratch.cosines, &scratch.sines, &scratch.queries)
        else {
            return;
        };
        let Attention { layer, heads, pairs, qkv, .. } = *attention;
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
                (sequence.rows.start + begin - sequence.position) as u32,
                (end - begin) as u32,
                (begin - segment.first) as u32,
                heads.count as u32,
                heads.kv_count as u32,
                heads.size as u32,
                padded as u32,
                pairs as u32,
                heads.scale.to_bits(),
            ];
            let groups = [items.div_ceil(64) as u32, (end - begin) as u32, 1];
            self.run(kernel, &storages, &parameters, groups, 0);
        }
    }

    fn attend_sequence(&self, attention: &Attention<'_>, sequence: &Sequence<'_>, scratch: &mut Scratch) {
        let Attention { layer, heads, pairs, qkv, out } = *attention;
        let rows = sequence.rows.len();
        let few = rows <= FEW_ROWS;
        let spans = spans(sequence.cache.segments(layer), sequence, heads.window, few);
        let splits: usize = spans.iter().map(|span| span.splits).sum();
        let padded = padded_head(heads.size);
        if splits > 1 {
            self.ensure(&mut scratch.splits, rows * heads.count * splits * (padded + 4));
        }
        let (Some(queries), Some(cosines), Some(sines)) =
            (&scratch.queries, &scratch.cosines, &scratch.sines)
        else {
            return;
        };
        let left = match &scratch.splits {
            Some(left) if splits > 1 => left,
            _ => out.storage(),
        };
        let (keys, values) = (sequence.cache.shape.keys, sequence.cache.shape.values);
        let appends = rows == 1;
        for span in &spans {
            let from = if appends { qkv.storage() } else { queries };
            let storages = [from, &span.segment.keys, &span.segment.values, left, cosines, sines];
            let parameters = parameters(heads, pairs, sequence, span, splits);
            // A row that is not to be appended needs no angles.
            let (storages, parameters) =
                if appends { (&storages[..], &parameters[..]) } else { (&storages[..4], &parameters[..16]) };
            let padded = padded as u32;
            let (kernel, groups) = if few {
                (Kernel::AttendRow { keys, values, padded, appends }, [span.splits, heads.count, rows])
            } else {
                (Kernel::AttendTile { keys, values, padded }, [rows.div_ceil(TILE), heads.count, 1])
            };
            let work = (rows * (span.length - span.start) * heads.count * heads.size * 2) as u64;
            self.run(kernel, storages, parameters, groups.map(|n| n as u32), work);
        }
        if splits > 1 {
            let parameters = [sequence.rows.start, heads.count, heads.size, splits].map(|n| n as u32);
            let groups = [heads.count as u32, rows as u32, 1];
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

fn parameters(
    heads: &Heads,
    pairs: usize,
    sequence: &Sequence<'_>,
    span: &Span<'_>,
    splits: usize,
) -> [u32; 18] {
    let sparse = heads.sparse.as_ref();
    let of = |f: fn(&BlockSparse) -> usize| sparse.map_or(0, f) as u32;
    [
        sequence.rows.start as u32,
        sequence.rows.len() as u32,
        sequence.position as u32,
        heads.count as u32,
        heads.kv_count as u32,
        heads.size as u32,
        // Room to add a position to it.
        heads.window.min(1 << 30) as u32,
        span.segment.first as u32,
        span.length as u32,
        span.start as u32,
        span.first_split as u32,
        splits as u32,
        of(|sparse| sparse.block),
        of(|sparse| sparse.local),
        of(|sparse| sparse.stride),
        of(|sparse| sparse.head_step),
        pairs as u32,
        heads.scale.to_bits(),
    ]
}
