//! Attention on the CPU: rotate, append to the cache, attend, spread over heads and query tiles.

use std::cell::RefCell;

use super::cache::Page;
use super::{Buffer, Cache, Cpu};
use crate::backend::{Heads, Part, Rotation};
use crate::kernel::attention::{self, Attention, BlockMask, HeadPage, Scratch};
use crate::kernel::kv::{PAGE, padded_head};
use crate::kernel::{Lines, SharedMut, elementwise};
use crate::simd::Level;

/// With so many tasks for each thread or more, the last ones hardly matter.
const TASKS_BY_HEAD: usize = 16;

/// So many rows ahead a head's elements are asked for.
const AHEAD: usize = 8;

/// Reused between the tasks of a thread.
#[derive(Default)]
struct TileScratch {
    kernel: Scratch,
    queries: Lines<f32>,
    positions: Vec<usize>,
    /// Of each query, where the model's attention is block-sparse.
    phases: Vec<usize>,
    out: Lines<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<TileScratch> = RefCell::default();
}

/// What all tasks of one sequence share.
struct Job<'a> {
    heads: &'a Heads,
    rotation: &'a Rotation,
    qkv: &'a Buffer,
    out: &'a SharedMut<'a, f32>,
    rows: std::ops::Range<usize>,
    position: usize,
}

impl Cpu {
    pub(super) fn attend(
        &self,
        layer: usize,
        heads: &Heads,
        rotation: &Rotation,
        qkv: &Buffer,
        parts: &mut [Part<'_, Cache>],
        out: &mut Buffer,
    ) {
        let out = SharedMut::new(out.data_mut());
        for part in parts {
            let job =
                Job { heads, rotation, qkv, out: &out, rows: part.rows.clone(), position: part.position };
            self.attend_part(&job, part.cache.pages(layer));
        }
    }

    fn attend_part(&self, job: &Job, pages: &mut [Page]) {
        self.append(job, pages);
        let pages = &*pages;
        let heads = job.heads.kv_count;
        let enough = TASKS_BY_HEAD * self.pool.threads();
        let tokens = |queries: usize| (queries * heads / job.heads.count).max(1);
        let many = tokens(attention::most_queries(self.level));
        let few = tokens(attention::FEWEST_QUERIES);
        let tokens = if job.rows.len().div_ceil(many) * heads >= enough { many } else { few };
        let tiles = job.rows.len().div_ceil(tokens);
        // Head after head, so that a head's keys and values stay in the caches for all its tiles; but where a thread has few tasks, no thread
        // should be left with a long one. Later tiles see more keys and come first.
        let by_head = tiles * heads >= enough;
        self.pool.run(tiles * heads, |task| {
            let (head, tile) =
                if by_head { (task / tiles, task % tiles) } else { (task % heads, task / heads) };
            let tile = tiles - 1 - tile;
            let start = job.rows.start + tile * tokens;
            SCRATCH.with_borrow_mut(|scratch| {
                job.attend_tile(self.level, pages, head, start..(start + tokens).min(job.rows.end), scratch);
            });
        });
    }

    /// Rotates the new keys and writes them and the values into the cache.
    fn append(&self, job: &Job, pages: &mut [Page]) {
        let Heads { count, kv_count, size, .. } = *job.heads;
        let padded = padded_head(size);
        let shared: Vec<_> = pages.iter_mut().map(|page| SharedMut::new(page)).collect();
        let store = |head: usize| {
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.key.clear();
                scratch.key.resize(padded, 0.0);
                scratch.value.clear();
                scratch.value.resize(padded, 0.0);
                for row in job.rows.clone() {
                    if row + AHEAD < job.rows.end {
                        elementwise::ask_for(job.head(row + AHEAD, count + head));
                        elementwise::ask_for(job.head(row + AHEAD, count + kv_count + head));
                    }
                    let position = job.position + row - job.rows.start;
                    let key = &mut scratch.key[..size];
                    key.copy_from_slice(job.head(row, count + head));
                    job.rotate(row, key);
                    scratch.value[..size].copy_from_slice(job.head(row, count + kv_count + head));
                    // Sound: each task writes its own head.
                    let page = unsafe { &mut shared[position / PAGE].slice(head, 1)[0] };
                    page.store(self.level, position % PAGE, &scratch.key, &scratch.value);
                }
            });
        };
        if job.rows.len() == 1 { (0..kv_count).for_each(store) } else { self.pool.run(kv_count, store) }
    }
}

impl Job<'_> {
    /// Head number `head` of `row`: queries' come first, then keys', then values'.
    fn head(&self, row: usize, head: usize) -> &[f32] {
        let Heads { size, .. } = *self.heads;
        &self.qkv.data()[row * self.qkv.columns + head * size..][..size]
    }

    fn rotate(&self, row: usize, head: &mut [f32]) {
        let pairs = self.rotation.pairs;
        let at = row * pairs;
        elementwise::rotate_head(
            head,
            &self.rotation.cos[at..at + pairs],
            &self.rotation.sin[at..at + pairs],
        );
    }

    /// The queries of `rows` that share KV head `kv_head`.
    fn attend_tile(
        &self,
        level: Level,
        pages: &[Page],
        kv_head: usize,
        rows: std::ops::Range<usize>,
        scratch: &mut TileScratch,
    ) {
        let Heads { count, kv_count, size, scale, window, sparse } = *self.heads;
        let (padded, group) = (padded_head(size), count / kv_count);
        let TileScratch { kernel, queries, positions, phases, out, .. } = scratch;
        queries.resize(rows.len() * group * padded);
        queries.fill(0.0);
        positions.clear();
        phases.clear();
        for (i, query) in queries.chunks_exact_mut(padded).enumerate() {
            let (row, head) = (rows.start + i / group, kv_head * group + i % group);
            if row + AHEAD < rows.end {
                elementwise::ask_for(self.head(row + AHEAD, head));
            }
            let query = &mut query[..size];
            query.copy_from_slice(self.head(row, head));
            self.rotate(row, query);
            query.iter_mut().for_each(|x| *x *= scale * std::f32::consts::LOG2_E);
            positions.push(self.position + row - self.rows.start);
            phases.push(sparse.map_or(0, |sparse| head * sparse.head_step));
        }
        let mask = sparse.map(|sparse| BlockMask {
            block: sparse.block,
            local: sparse.local,
            stride: sparse.stride,
            phases,
        });
        out.resize(queries.len());
        let pages: Vec<&HeadPage> = pages.iter().map(|page| &page[kv_head]).collect();
        Attention {
            pages: &pages,
            queries,
            positions,
            padded_head: padded,
            window,
            mask,
            scratch: kernel,
            out,
        }
        .compute(level);
        for (i, values) in out.chunks_exact(padded).enumerate() {
            let (row, head) = (rows.start + i / group, kv_head * group + i % group);
            // Sound: each task writes its own heads of its own rows.
            let to = unsafe { self.out.slice((row * count + head) * size, size) };
            to.copy_from_slice(&values[..size]);
        }
    }
}
