//! Attention on a device: rotate, append to the cache, attend, put the splits together.

use std::ops::Range;

use super::cache::{Cache, CacheShape, kv_number};
use super::device::lock;
use super::driver::Pointer;
use super::launch;
use super::modules::Module;
use super::rounding::Form;
use super::{Buffer, Cuda, Scratch};
use crate::backend::{BlockSparse, Heads, Rotation};
use crate::kernel::kv::{KvType, padded_head};
use crate::{Error, Result};

/// Up to so many rows, each is attended by itself.
const FEW_ROWS: usize = 8;
/// Positions of a split of `attend_row`.
const SPLIT: usize = 128;

/// Queries of a tile of `attend_tile`: more where they are multiplied as halves, by the tensor cores.
fn tile(keys: KvType, values: KvType) -> usize {
    match (keys, values) {
        (KvType::F16, KvType::F16) | (KvType::Q8_0, KvType::Q8_0) | (KvType::Q4_0, KvType::Q4_0) => 64,
        _ => 32,
    }
}

/// Rows of a batch that continue one sequence.
pub(super) struct Sequence<'a> {
    pub cache: &'a Cache,
    pub rows: Range<usize>,
    /// Of the first row.
    pub position: usize,
}

/// What attention is launched for: rows of one sequence, or one of each of several.
struct Attended<'a> {
    /// Of any of the caches.
    shape: &'a CacheShape,
    keys: Pointer,
    values: Pointer,
    rows: Range<usize>,
    /// Of the first row.
    position: usize,
    /// Of the cache, the first position that any row sees, in whole splits, and the end.
    start: usize,
    length: usize,
    splits: usize,
    /// Whether rows are not in the cache yet.
    appends: bool,
    /// A table on the device of where several sequences' rows are; keys to length are then theirs.
    members: Pointer,
}

/// Names of the kernels for a few rows and for a tile, by the padded size of a head.
fn kernels(padded: usize) -> Option<[&'static str; 2]> {
    Some(match padded {
        32 => ["attend_row_32", "attend_tile_32"],
        64 => ["attend_row_64", "attend_tile_64"],
        96 => ["attend_row_96", "attend_tile_96"],
        128 => ["attend_row_128", "attend_tile_128"],
        _ => return None,
    })
}

impl Cuda {
    pub(super) fn attend(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Buffer,
        sequences: &[Sequence<'_>],
        out: &mut Buffer,
    ) -> Result<()> {
        let mut scratch = lock(&self.scratch);
        if scratch.rotation != rotation.id() {
            self.ensure(&mut scratch.cosines, rotation.cos.len())?;
            self.ensure(&mut scratch.sines, rotation.sin.len())?;
            for (storage, angles) in [(&scratch.cosines, &rotation.cos), (&scratch.sines, &rotation.sin)] {
                if let Some(storage) = storage {
                    self.send_words(angles.iter().map(|angle| angle.to_bits()), storage)?;
                }
            }
            scratch.rotation = rotation.id();
        }
        self.ensure(&mut scratch.queries, qkv.rows * heads.count * padded_head(heads.size))?;
        // What follows is a product, with int8 for a few rows.
        let rounds = Form::of(qkv.rows) == Form::Int8 && heads.size.is_multiple_of(32);
        let to = if rounds {
            self.ensure_rounded(&mut out.rounded, Form::Int8, out.rows, out.columns)?.parameters()
        } else {
            launch::Rounded::NONE
        };
        let from = launch::Rows {
            qkv: qkv.pointer(),
            cosines: scratch.cosines.as_ref().map_or(0, |storage| storage.pointer()),
            sines: scratch.sines.as_ref().map_or(0, |storage| storage.pointer()),
            heads: heads.count as u32,
            kv_heads: heads.kv_count as u32,
            size: heads.size as u32,
            padded: padded_head(heads.size) as u32,
            pairs: rotation.pairs as u32,
            scale: heads.scale,
        };
        // What answers are made of: a row of each of several sequences.
        let is_batch = sequences.len() > 1 && sequences.iter().all(|sequence| sequence.rows.len() == 1);
        if is_batch {
            self.attend_members(layer, heads, &from, sequences, &mut scratch, (out, to))?;
        }
        for sequence in sequences.iter().filter(|_| !is_batch) {
            if sequence.rows.len() > 1 {
                self.append(layer, &from, sequence, &scratch)?;
            }
            self.attend_sequence(layer, heads, &from, sequence, &mut scratch, (out, to))?;
        }
        out.is_rounded = rounds;
        Ok(())
    }

    fn append(
        &self,
        layer: usize,
        from: &launch::Rows,
        sequence: &Sequence<'_>,
        scratch: &Scratch,
    ) -> Result<()> {
        let shape = &sequence.cache.shape;
        let storages = sequence.cache.layer(layer);
        let parameters = launch::Append {
            from: *from,
            queries: scratch.queries.as_ref().map_or(0, |storage| storage.pointer()),
            keys: storages.keys,
            values: storages.values,
            first_row: sequence.rows.start as u32,
            at: sequence.position as u32,
            key_kind: kv_number(shape.keys),
            value_kind: kv_number(shape.values),
        };
        let items = (from.heads + 2 * from.kv_heads) as usize * (from.padded as usize / 32);
        // Blocks of four warps, each of which takes several.
        let groups = [items.div_ceil(4 * 8), sequence.rows.len(), 1];
        self.launch(Module::attention(shape.keys, shape.values), "append", groups, 128, &parameters)
    }

    fn attend_sequence(
        &self,
        layer: usize,
        heads: &Heads,
        from: &launch::Rows,
        sequence: &Sequence<'_>,
        scratch: &mut Scratch,
        out: (&Buffer, launch::Rounded),
    ) -> Result<()> {
        let rows = sequence.rows.len();
        let storages = sequence.cache.layer(layer);
        let length = sequence.position + rows;
        let start = first_position(sequence.position, heads.window);
        let attended = Attended {
            shape: &sequence.cache.shape,
            keys: storages.keys,
            values: storages.values,
            rows: sequence.rows.clone(),
            position: sequence.position,
            start,
            length,
            splits: if rows <= FEW_ROWS { (length - start).div_ceil(SPLIT) } else { 1 },
            // One row appends itself.
            appends: rows == 1,
            members: 0,
        };
        self.launch_attention(layer, heads, from, &attended, scratch, out)
    }

    /// A row of each of `sequences` at once.
    fn attend_members(
        &self,
        layer: usize,
        heads: &Heads,
        from: &launch::Rows,
        sequences: &[Sequence<'_>],
        scratch: &mut Scratch,
        out: (&Buffer, launch::Rounded),
    ) -> Result<()> {
        let mut words = Vec::with_capacity(sequences.len() * 8);
        for sequence in sequences {
            let place = sequence.cache.place();
            words.extend(place.into_iter().flat_map(|word| [word as u32, (word >> 32) as u32]));
            words.extend([sequence.rows.start as u32, sequence.position as u32]);
        }
        // They are the same for all layers.
        if scratch.members.1 != words {
            self.ensure(&mut scratch.members.0, words.len())?;
            if let Some(storage) = &scratch.members.0 {
                self.send_words(words.iter().copied(), storage)?;
            }
            scratch.members.1 = words;
        }
        let positions =
            |sequence: &Sequence<'_>| sequence.position + 1 - first_position(sequence.position, heads.window);
        let first = sequences.iter().map(|sequence| sequence.rows.start).min().unwrap_or(0);
        let attended = Attended {
            shape: &sequences[0].cache.shape,
            keys: 0,
            values: 0,
            rows: first..first + sequences.len(),
            position: 0,
            start: 0,
            length: 0,
            splits: sequences.iter().map(positions).max().unwrap_or(1).div_ceil(SPLIT),
            appends: true,
            members: scratch.members.0.as_ref().map_or(0, |storage| storage.pointer()),
        };
        self.launch_attention(layer, heads, from, &attended, scratch, out)
    }

    fn launch_attention(
        &self,
        layer: usize,
        heads: &Heads,
        from: &launch::Rows,
        attended: &Attended<'_>,
        scratch: &mut Scratch,
        (out, to): (&Buffer, launch::Rounded),
    ) -> Result<()> {
        let padded = padded_head(heads.size);
        let Some(names) = kernels(padded) else {
            let size = heads.size;
            return Err(Error::Unsupported(format!(
                "attention heads of {size} elements are not for CUDA, which takes up to 128: use --gpu-backend wgpu"
            )));
        };
        let Attended { shape, splits, ref rows, .. } = *attended;
        let module = Module::attention(shape.keys, shape.values);
        if splits > 1 {
            self.ensure(&mut scratch.splits, rows.len() * heads.count * splits * (padded + 4))?;
        }
        let left = match &scratch.splits {
            Some(left) if splits > 1 => left.pointer(),
            _ => out.pointer(),
        };
        let of = |f: fn(&BlockSparse) -> usize| heads.sparse.as_ref().map_or(0, f) as u32;
        let parameters = launch::Attend {
            from: launch::Rows { qkv: if attended.appends { from.qkv } else { 0 }, ..*from },
            queries: scratch.queries.as_ref().map_or(0, |storage| storage.pointer()),
            keys: attended.keys,
            values: attended.values,
            out: left,
            first_row: rows.start as u32,
            rows: rows.len() as u32,
            position: attended.position as u32,
            heads: heads.count as u32,
            kv_heads: heads.kv_count as u32,
            size: heads.size as u32,
            // Room to add a position to it.
            window: heads.window.min(1 << 30) as u32,
            length: attended.length as u32,
            start: attended.start as u32,
            splits: splits as u32,
            block: of(|sparse| sparse.block),
            local: of(|sparse| sparse.local),
            stride: of(|sparse| sparse.stride),
            head_step: of(|sparse| sparse.head_step),
            key_kind: kv_number(shape.keys),
            value_kind: kv_number(shape.values),
            to,
            members: attended.members,
            layer: (layer - shape.layers.start) as u32,
        };
        let (name, groups) = if rows.len() <= FEW_ROWS || attended.members != 0 {
            (names[0], [splits, heads.count, rows.len()])
        } else {
            (names[1], [rows.len().div_ceil(tile(shape.keys, shape.values)), heads.count, 1])
        };
        self.launch(module, name, groups, 128, &parameters)?;
        if splits == 1 {
            return Ok(());
        }
        let parameters = launch::Combine {
            splits: left,
            out: out.pointer(),
            first_row: rows.start as u32,
            heads: heads.count as u32,
            size: heads.size as u32,
            padded: padded as u32,
            count: splits as u32,
            to,
        };
        self.launch(module, "combine", [heads.count, rows.len(), 1], 128, &parameters)
    }
}

/// The first position of the split that the oldest position seen from `position` on is in.
fn first_position(position: usize, window: usize) -> usize {
    (position + 1).saturating_sub(window) / SPLIT * SPLIT
}
