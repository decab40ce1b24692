//! The online softmax of a block: scores become weights relative to the largest score so far.
//!
//! Each pass over the queries does one thing to all of them, in groups of as many as a vector has lanes: what is one number for a query
//! is one lane for its group.

use super::{Attention, BLOCK, Scratch};
use crate::kernel::kv::{KvData, LARGEST_VALUE, PAGE, store_integers};
use crate::simd::{Isa, MAX_LANES};

/// The largest weight as an integer, and the largest sum of a block's.
const LARGEST_WEIGHT: i32 = 32767;
const LARGEST_SUM: i32 = 260_000;

// A block's sums of products fit 32 bits, with every weight rounded up.
const _: () = assert!((LARGEST_SUM as i64 + BLOCK as i64) * (LARGEST_VALUE as i64) < 1 << 31);

/// A vector for each query of a group, before it becomes one number: `[LANES, LANES]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lanes {
    largest: [f32; MAX_LANES * MAX_LANES],
    sums: [f32; MAX_LANES * MAX_LANES],
    /// Of weights times their values' scales.
    scaled_sums: [f32; MAX_LANES * MAX_LANES],
}

impl Default for Lanes {
    fn default() -> Self {
        let zeros = [0.0; MAX_LANES * MAX_LANES];
        Self { largest: zeros, sums: zeros, scaled_sums: zeros }
    }
}

/// What becomes of weights before they are multiplied with values.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    Floats,
    /// Rounded to bf16, two in a word.
    Rounded,
    /// Times their values' scales, as integers, two in a word.
    Integers(&'a [f32]),
}

/// What is known of as many queries as a vector has lanes, or of the first `count`.
pub(super) struct Group<'a> {
    pub count: usize,
    /// Keys of the block up to the last that is seen, whole grains.
    pub keys: usize,
    /// `[count, BLOCK]`: scores, then weights.
    pub scores: &'a mut [f32],
    /// What a unit of each query's scores is worth.
    pub score_units: &'a [f32],
    /// See [`Scratch`], each a vector.
    pub largest: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub shrink: &'a mut [f32],
    pub units: &'a mut [f32],
    pub inverse: &'a mut [f32],
    pub lanes: &'a mut Lanes,
}

impl<'a> Group<'a> {
    /// The `count` queries from number `first` on, whose scores begin at `at`.
    #[inline(always)]
    pub(super) fn of<I: Isa>(
        _isa: I,
        (first, count): (usize, usize),
        keys: usize,
        at: usize,
        scratch: &'a mut Scratch,
    ) -> Self {
        let Scratch { scores, largest, sum, shrink, inverse, queries, weights, lanes, .. } = scratch;
        Self {
            count,
            keys,
            scores: &mut scores[at..][..count * BLOCK],
            score_units: &queries.units[first..][..I::LANES],
            largest: &mut largest[first..][..I::LANES],
            sum: &mut sum[first..][..I::LANES],
            shrink: &mut shrink[first..][..I::LANES],
            units: &mut weights.units[first..][..I::LANES],
            inverse: &mut inverse[first..][..I::LANES],
            lanes,
        }
    }
}

impl Attention<'_> {
    /// Turns the scores of the first `keys` from `start` on, whole grains, into weights, and rescales what was summed so far.
    #[inline(always)]
    pub(super) fn softmax_step<I: Isa>(&mut self, isa: I, start: usize, keys: usize, scratch: &mut Scratch) {
        let form = match &self.pages[start / PAGE].values {
            KvData::F32(_) | KvData::Q8_0(..) | KvData::Q4_0(..) => Form::Floats,
            KvData::Bf16(_) => Form::Rounded,
            KvData::Sixteen(values) => Form::Integers(&values.scales[start % PAGE..][..keys]),
        };
        let rows = self.positions.len();
        let mut first = 0;
        while first < rows {
            let count = (rows - first).min(I::LANES);
            let mut group = Group::of(isa, (first, count), keys, first * BLOCK, scratch);
            self.find_largest(isa, start, first, &mut group);
            first += I::LANES;
        }
        first = 0;
        while first < rows {
            let count = (rows - first).min(I::LANES);
            let mut group = Group::of(isa, (first, count), keys, first * BLOCK, scratch);
            weigh(isa, form, &mut group);
            end_weights(isa, form, &mut group);
            first += I::LANES;
        }
        match form {
            Form::Floats => {}
            Form::Rounded => {
                let Scratch { scores, weights, .. } = scratch;
                for row in 0..rows {
                    for i in (row * BLOCK..row * BLOCK + keys).step_by(I::LANES) {
                        isa.f_store_bf16(isa.f_load(&scores[i..]), &mut weights.words[i / 2..]);
                    }
                }
            }
            Form::Integers(_) => weights_as_integers(isa, rows, keys, scratch),
        }
        self.shrink(isa, scratch);
    }

    /// Finds the largest scores of the queries from number `first` on, and how much the weights before shrink by that. The scores of keys that a query
    /// does not see become -∞.
    #[inline(always)]
    pub(super) fn find_largest<I: Isa>(&self, isa: I, start: usize, first: usize, group: &mut Group) {
        for r in 0..group.count {
            let scores = &mut group.scores[r * BLOCK..][..group.keys];
            let (low, high) = self.visible(first + r, self.positions[first + r], start);
            // Nearly all blocks are seen whole.
            if high - low < group.keys {
                scores[..low].fill(f32::NEG_INFINITY);
                scores[high..].fill(f32::NEG_INFINITY);
            }
            let mut largest = isa.f_splat(f32::NEG_INFINITY);
            for s in scores.chunks_exact(I::LANES) {
                largest = isa.f_max(isa.f_load(s), largest);
            }
            isa.f_store(largest, &mut group.lanes.largest[r * I::LANES..]);
        }
        let before = isa.f_load(group.largest);
        let largest = isa.f_across::<true>(&group.lanes.largest, group.count);
        let now = isa.f_max(isa.f_mul(largest, isa.f_load(group.score_units)), before);
        isa.f_store(now, group.largest);
        isa.f_store(isa.f_exp2(isa.f_sub(before, now)), group.shrink);
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

/// Makes weights of the group's scores, and adds them up lane by lane.
#[inline(always)]
pub(super) fn weigh<I: Isa>(isa: I, form: Form, group: &mut Group) {
    match form {
        Form::Floats => weigh_as::<I, FLOATS>(isa, &[], group),
        Form::Rounded => weigh_as::<I, ROUNDED>(isa, &[], group),
        Form::Integers(scales) => weigh_as::<I, INTEGERS>(isa, scales, group),
    }
}

/// The form of weights, where what is computed for each depends on it.
const FLOATS: u8 = 0;
const ROUNDED: u8 = 1;
const INTEGERS: u8 = 2;

/// As [`weigh`]; `scales` are those of [`Form::Integers`].
#[inline(always)]
fn weigh_as<I: Isa, const FORM: u8>(isa: I, scales: &[f32], group: &mut Group) {
    let (zero, lanes) = (isa.f_splat(0.0), &mut *group.lanes);
    for r in 0..group.count {
        let scores = group.scores[r * BLOCK..][..group.keys].as_chunks_mut::<MAX_LANES>().0;
        let scales = match FORM {
            INTEGERS => &scales.as_chunks::<MAX_LANES>().0[..scores.len()],
            _ => &[],
        };
        let reference = isa.f_splat(-group.largest[r]);
        let unit = isa.f_splat(group.score_units[r]);
        // As many sums, lane by lane, on every ISA.
        let (mut sum, mut scaled_sum) = ([zero; MAX_LANES], [zero; MAX_LANES]);
        let mut largest = zero;
        for i in 0..scores.len() {
            for v in 0..MAX_LANES / I::LANES {
                let at = v * I::LANES;
                let mut weight = isa.f_exp2(isa.f_fma(isa.f_load(&scores[i][at..]), unit, reference));
                if FORM == ROUNDED {
                    weight = isa.f_round_bf16(weight);
                }
                sum[v] = isa.f_add(sum[v], weight);
                if FORM == INTEGERS {
                    weight = isa.f_mul(weight, isa.f_load(&scales[i][at..]));
                    scaled_sum[v] = isa.f_add(scaled_sum[v], weight);
                    largest = isa.f_max(weight, largest);
                }
                isa.f_store(weight, &mut scores[i][at..]);
            }
        }
        for v in 1..MAX_LANES / I::LANES {
            sum[0] = isa.f_add(sum[0], sum[v]);
            scaled_sum[0] = isa.f_add(scaled_sum[0], scaled_sum[v]);
        }
        isa.f_store(sum[0], &mut lanes.sums[r * I::LANES..]);
        if FORM == INTEGERS {
            isa.f_store(scaled_sum[0], &mut lanes.scaled_sums[r * I::LANES..]);
            isa.f_store(largest, &mut lanes.largest[r * I::LANES..]);
        }
    }
}

/// Adds up what [`weigh`] has left; of weights that become [`Form::Integers`], finds the units.
#[inline(always)]
pub(super) fn end_weights<I: Isa>(isa: I, form: Form, group: &mut Group) {
    let (count, lanes) = (group.count, &*group.lanes);
    let (before, shrink) = (isa.f_load(group.sum), isa.f_load(group.shrink));
    let sum = isa.f_fma(before, shrink, isa.f_across::<false>(&lanes.sums, count));
    isa.f_store(sum, group.sum);
    if let Form::Integers(_) = form {
        let largest = isa.f_across::<true>(&lanes.largest, count);
        let sum = isa.f_across::<false>(&lanes.scaled_sums, count);
        let unit = isa.f_max(
            isa.f_mul(largest, isa.f_splat(1.0 / LARGEST_WEIGHT as f32)),
            isa.f_mul(sum, isa.f_splat(1.0 / LARGEST_SUM as f32)),
        );
        let unit = isa.f_max(unit, isa.f_splat(f32::MIN_POSITIVE));
        isa.f_store(unit, group.units);
        isa.f_store(isa.f_div(isa.f_splat(1.0), unit), group.inverse);
    }
}

/// Makes integers of the weights of `rows` queries, as [`end_weights`] found their units.
#[inline(always)]
fn weights_as_integers<I: Isa>(isa: I, rows: usize, keys: usize, scratch: &mut Scratch) {
    for row in 0..rows {
        let weights = &scratch.scores[row * BLOCK..][..keys];
        let words = &mut scratch.weights.words[row * BLOCK / 2..][..keys / 2];
        store_integers(isa, weights, scratch.inverse[row], words);
    }
}
