//! The online softmax of a block: scores become weights relative to the largest score so far.

use super::{Attention, BLOCK, Pairs, Scratch};
use crate::kernel::kv::{KvData, PAGE};
use crate::simd::{Isa, IsaExt, MAX_LANES};

/// The largest weight as an integer, and the largest sum of a block's: times [`kv::LARGEST_VALUE`](crate::kernel::kv::LARGEST_VALUE), and
/// with each of the weights rounded up, it is below 2^31.
const LARGEST_WEIGHT: f32 = 32767.0;
const LARGEST_SUM: f32 = 260_000.0;

impl Attention<'_> {
    /// Turns the scores of block `start / BLOCK` into weights, and rescales what was summed so far.
    ///
    /// Each pass over the queries does one thing to all of them: the next one's begins while this one's, which waits for itself, goes on.
    #[inline(always)]
    pub(super) fn softmax_step<I: Isa>(&mut self, isa: I, start: usize, scratch: &mut Scratch) {
        self.find_largest(isa, start, scratch);
        let values = &self.pages[start / PAGE].values;
        self.weigh(isa, matches!(values, KvData::Bf16(_)), scratch);
        let Scratch { scores, weights, .. } = scratch;
        match values {
            KvData::Sixteen(values) => {
                let scales = &values.scales[start % PAGE..][..BLOCK];
                for row in 0..self.positions.len() {
                    weights_as_integers(isa, &scores[row * BLOCK..][..BLOCK], scales, row, weights);
                }
            }
            KvData::Bf16(_) => {
                let mut i = 0;
                while i < self.positions.len() * BLOCK {
                    isa.f_store_bf16(isa.f_load(&scores[i..]), &mut weights.words[i / 2..]);
                    i += I::LANES;
                }
            }
            KvData::F32(_) | KvData::Q8_0(..) | KvData::Q4_0(..) => {}
        }
        self.shrink(isa, scratch);
    }

    /// Finds the keys that each query sees, its largest score, and how much the weights before shrink by that.
    #[inline(always)]
    fn find_largest<I: Isa>(&self, isa: I, start: usize, scratch: &mut Scratch) {
        for (row, &position) in self.positions.iter().enumerate() {
            let (low, high) = self.visible(row, position, start);
            scratch.seen[row] = (low, high);
            scratch.shrink[row] = 0.0;
            if low == high {
                continue;
            }
            let scores = &mut scratch.scores[row * BLOCK..][..BLOCK];
            scores[..low].fill(f32::NEG_INFINITY);
            scores[high..].fill(f32::NEG_INFINITY);
            let mut largest = isa.f_splat(f32::NEG_INFINITY);
            for s in scores.chunks_exact(I::LANES) {
                largest = isa.f_max(isa.f_load(s), largest);
            }
            let before = scratch.largest[row];
            let largest = isa.f_largest(largest).max(before);
            scratch.largest[row] = largest;
            scratch.shrink[row] = before - largest;
        }
        for shrink in scratch.shrink.chunks_exact_mut(I::LANES) {
            isa.f_store(isa.f_exp2(isa.f_load(shrink)), shrink);
        }
    }

    /// Makes weights of the scores, `round`ed to bf16 if so, and adds them up.
    #[inline(always)]
    fn weigh<I: Isa>(&self, isa: I, round: bool, scratch: &mut Scratch) {
        for row in 0..self.positions.len() {
            let scores = &mut scratch.scores[row * BLOCK..][..BLOCK];
            let (low, high) = scratch.seen[row];
            if low == high {
                scores.fill(0.0);
                continue;
            }
            let largest = isa.f_splat(scratch.largest[row]);
            for s in scores.chunks_exact_mut(I::LANES) {
                let weight = isa.f_exp2(isa.f_sub(isa.f_load(s), largest));
                isa.f_store(if round { isa.f_round_bf16(weight) } else { weight }, s);
            }
            // 2^x is tiny but not 0 for masked keys; they must weigh nothing at all.
            scores[..low].fill(0.0);
            scores[high..].fill(0.0);
            // As many sums, lane by lane, on every ISA.
            let mut sums = [isa.f_splat(0.0); MAX_LANES];
            for i in (0..BLOCK).step_by(MAX_LANES) {
                for v in 0..MAX_LANES / I::LANES {
                    sums[v] = isa.f_add(sums[v], isa.f_load(&scores[i + v * I::LANES..]));
                }
            }
            scratch.sum[row] = scratch.sum[row] * scratch.shrink[row] + sum_of_lanes(isa, sums);
        }
    }

    /// Rescales the sums of values where the largest score has grown.
    #[inline(always)]
    fn shrink<I: Isa>(&mut self, isa: I, scratch: &Scratch) {
        for (row, out) in self.out.chunks_exact_mut(self.padded_head).enumerate() {
            let shrink = scratch.shrink[row];
            if shrink == 1.0 {
                continue;
            }
            for chunk in out.chunks_exact_mut(I::LANES) {
                isa.f_store(isa.f_mul(isa.f_load(chunk), isa.f_splat(shrink)), chunk);
            }
        }
    }
}

/// Query number `row`'s weights, times their values' `scales`, as integers.
#[inline(always)]
fn weights_as_integers<I: Isa>(isa: I, weights: &[f32], scales: &[f32], row: usize, to: &mut Pairs) {
    let mut sums = [isa.f_splat(0.0); MAX_LANES];
    let mut largest = isa.f_splat(0.0);
    for i in (0..BLOCK).step_by(MAX_LANES) {
        for v in 0..MAX_LANES / I::LANES {
            let at = i + v * I::LANES;
            let weight = isa.f_mul(isa.f_load(&weights[at..]), isa.f_load(&scales[at..]));
            sums[v] = isa.f_add(sums[v], weight);
            largest = isa.f_max(weight, largest);
        }
    }
    let unit = isa.f_largest(largest) * (1.0 / LARGEST_WEIGHT);
    let unit = unit.max(sum_of_lanes(isa, sums) * (1.0 / LARGEST_SUM));
    to.units[row] = unit;
    let inverse = isa.f_splat(if unit >= f32::MIN_POSITIVE { 1.0 / unit } else { 0.0 });
    let words = &mut to.words[row * BLOCK / 2..][..BLOCK / 2];
    let mut i = 0;
    while i < BLOCK {
        let weight = isa.f_mul(isa.f_load(&weights[i..]), isa.f_load(&scales[i..]));
        isa.w_store_i16(isa.f_to_w(isa.f_mul(weight, inverse)), &mut words[i / 2..]);
        i += I::LANES;
    }
}

/// The sum of what is summed in [`MAX_LANES`] lanes, in as many vectors as these are: to the same bits on every ISA.
#[inline(always)]
fn sum_of_lanes<I: Isa>(isa: I, mut sums: [I::F; MAX_LANES]) -> f32 {
    for v in 1..MAX_LANES / I::LANES {
        sums[0] = isa.f_add(sums[0], sums[v]);
    }
    isa.f_sum(sums[0])
}
