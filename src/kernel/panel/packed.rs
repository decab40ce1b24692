//! Products of panels that stay packed: lanes are made as they are multiplied. For few tokens that costs less than to store them.

use super::columns::{Columns, block_words, is_turned};
use super::{Lanes, Scaling, exact, scaling};
use crate::quant::unpack::Unpack;
use crate::simd::span::{add_pairs, half_of_pairs, raise};
use crate::simd::{Isa, MAX_LANES};

/// Vectors of 32 columns in a span.
const PARTS: usize = 4;

/// What [`span`] multiplies.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Operands<'a, const T: usize> {
    /// A block.
    pub panel: &'a Lanes,
    /// Number of the span in the block.
    pub span: usize,
    /// `[SPAN / 4, T]`: four i8 a word.
    pub tokens: &'a [[i32; T]],
    /// `[SPAN / GROUP, T]`; empty if the format has no offset.
    pub starts: &'a [[i32; T]],
    /// Whether no group's sum exceeds 16 bits.
    pub fit: bool,
    pub ahead: Ahead<'a>,
}

/// What is asked for while a span is multiplied.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Ahead<'a> {
    /// What the panel after this one is made from.
    next: &'a [u8],
    /// Lines of it, from number `first` on.
    first: usize,
    count: usize,
}

/// Stretches of [`Ahead`] that lines are taken from in turns: memory delivers more to several streams than to one.
const STREAMS: usize = 4;

impl<'a> Ahead<'a> {
    /// Span number `span` of `spans`.
    #[inline(always)]
    pub fn new(next: &'a [u8], span: usize, spans: usize) -> Self {
        let lines = next.len().div_ceil(64 * STREAMS) * STREAMS;
        let first = lines * span / spans;
        Self { next, first, count: lines * (span + 1) / spans - first }
    }

    /// Asks for what goes with quad number `quad` of the span: more at once than a core can wait for would hold up everything else.
    #[inline(always)]
    fn ask<I: Isa>(self, isa: I, quad: usize) {
        const QUADS: usize = 8 * PARTS;
        let stretch = self.next.len().div_ceil(64 * STREAMS);
        for i in self.count * quad / QUADS..self.count * (quad + 1) / QUADS {
            let line = self.first + i;
            let at = 64 * (line % STREAMS * stretch + line / STREAMS);
            isa.prefetch_far(self.next.as_ptr().wrapping_add(at));
        }
    }
}

/// Sums of a span's products.
struct Sum<I: Isa, const R: usize, const T: usize> {
    /// Where scales are floats: exact over [`exact`] groups.
    exact: [[I::F; R]; T],
    /// The sum of those before.
    sum: [[I::F; R]; T],
    /// Where scales are integers.
    words: [[I::W; R]; T],
}

/// The integer sums of a span, rounded to floats, as of [`Isa::f_span_tile`].
#[inline(always)]
pub(in crate::kernel) fn span<F: Unpack, I: Isa, const R: usize, const T: usize>(
    isa: I,
    of: Operands<T>,
) -> [[I::F; R]; T] {
    const {
        assert!(!is_turned::<F, I>() || F::SPAN == 32 * PARTS && F::BLOCK == 2 * F::SPAN && F::SCALED);
        assert!(!is_turned::<F, I>() || F::FOLD.is_none());
    }
    let zero = [[isa.f_splat(0.0); R]; T];
    let mut sum: Sum<I, R, T> = Sum { exact: zero, sum: zero, words: [[isa.w_splat(0); R]; T] };
    if const { matches!(scaling::<F, I>(), Scaling::Pairs) } && of.fit {
        if of.span == 0 {
            pair_of_parts::<F, I, R, T, 0, 1>(isa, of, &mut sum);
            pair_of_parts::<F, I, R, T, 2, 3>(isa, of, &mut sum);
        } else {
            pair_of_parts::<F, I, R, T, 4, 5>(isa, of, &mut sum);
            pair_of_parts::<F, I, R, T, 6, 7>(isa, of, &mut sum);
        }
    } else if of.span == 0 {
        part::<F, I, R, T, 0>(isa, of, &mut sum);
        part::<F, I, R, T, 1>(isa, of, &mut sum);
        part::<F, I, R, T, 2>(isa, of, &mut sum);
        part::<F, I, R, T, 3>(isa, of, &mut sum);
    } else {
        part::<F, I, R, T, 4>(isa, of, &mut sum);
        part::<F, I, R, T, 5>(isa, of, &mut sum);
        part::<F, I, R, T, 6>(isa, of, &mut sum);
        part::<F, I, R, T, 7>(isa, of, &mut sum);
    }
    if const { !matches!(scaling::<F, I>(), Scaling::Floats) } {
        for t in 0..T {
            for r in 0..R {
                sum.sum[t][r] = isa.f_from_w(sum.words[t][r]);
            }
        }
    }
    sum.sum
}

/// Adds the products of columns `32 J .. 32 J + 32` of a block. (`J` is a constant so that no other lanes are made.)
#[inline(always)]
fn part<F: Unpack, I: Isa, const R: usize, const T: usize, const J: usize>(
    isa: I,
    of: Operands<T>,
    sum: &mut Sum<I, R, T>,
) {
    for g in 0..const { 32 / F::GROUP } {
        let mut dot = [[isa.w_splat(0); R]; T];
        let group = group_of::<F, J>(g);
        if F::OFFSET != 0 {
            for t in 0..T {
                dot[t] = [isa.w_splat(of.starts[group][t]); R];
            }
        }
        dots::<F, I, R, T, J>(isa, of, g, &mut dot);
        scale::<F, I, R, T>(isa, of, group, &dot, sum);
    }
}

/// As [`part`] of parts `J` and `K`, whose groups are scaled in pairs, as in [`Isa::f_span_tile`].
#[inline(always)]
fn pair_of_parts<F: Unpack, I: Isa, const R: usize, const T: usize, const J: usize, const K: usize>(
    isa: I,
    of: Operands<T>,
    sum: &mut Sum<I, R, T>,
) {
    if F::GROUP == 32 {
        pair::<F, I, R, T, J, K>(isa, of, [0, 0], sum);
    } else {
        pair::<F, I, R, T, J, J>(isa, of, [0, 1], sum);
        pair::<F, I, R, T, K, K>(isa, of, [0, 1], sum);
    }
}

/// Adds the products of group `groups[0]` of part `J` and of group `groups[1]` of part `K`, which is the next.
#[inline(always)]
fn pair<F: Unpack, I: Isa, const R: usize, const T: usize, const J: usize, const K: usize>(
    isa: I,
    of: Operands<T>,
    groups: [usize; 2],
    sum: &mut Sum<I, R, T>,
) {
    let (low, high) = (group_of::<F, J>(groups[0]), group_of::<F, K>(groups[1]));
    let mut dot = [[isa.w_splat(0); R]; T];
    let mut low_starts = None;
    if F::OFFSET != 0 {
        low_starts = Some(&of.starts[low][..]);
        for t in 0..T {
            dot[t] = [isa.w_splat(of.starts[high][t]); R];
        }
    }
    dots::<F, I, R, T, K>(isa, of, groups[1], &mut dot);
    raise(isa, &mut dot, low_starts);
    dots::<F, I, R, T, J>(isa, of, groups[0], &mut dot);
    let at = (of.span * F::SPAN / F::GROUP + low) / 2 * R * I::LANES;
    add_pairs(isa, &mut sum.words, &dot, &of.panel.scales[at..at + R * I::LANES]);
}

/// The number of group `g` of part `J` in its span.
const fn group_of<F: Unpack, const J: usize>(g: usize) -> usize {
    J % PARTS * (32 / F::GROUP) + g
}

/// Adds the dot products of group `g` of part `J`.
#[inline(always)]
fn dots<F: Unpack, I: Isa, const R: usize, const T: usize, const J: usize>(
    isa: I,
    of: Operands<T>,
    g: usize,
    dot: &mut [[I::W; R]; T],
) {
    let each = const { block_words::<F, I>() };
    let block = &of.panel.packed[..R * each];
    let tokens = &of.tokens[J % PARTS * 8..][..8];
    let groups = const { 32 / F::GROUP };
    for part in g * 8 / groups..(g + 1) * 8 / groups {
        of.ahead.ask(isa, J % PARTS * 8 + part);
        let mut rows = [isa.w_splat(0); R];
        for r in 0..R {
            let words = &block[r * each..(r + 1) * each];
            rows[r] = isa.w_from_b(F::lanes_of(isa, Columns { words, part }).as_ref()[J]);
        }
        for t in 0..T {
            isa.w_dot_token(&mut dot[t], rows, &tokens[part][t]);
        }
    }
}

/// Adds the sums of `group` of the span times the rows' scales.
#[inline(always)]
fn scale<F: Unpack, I: Isa, const R: usize, const T: usize>(
    isa: I,
    of: Operands<T>,
    group: usize,
    dot: &[[I::W; R]; T],
    sum: &mut Sum<I, R, T>,
) {
    let groups = const { F::SPAN / F::GROUP };
    let (wide, number) = (R * I::LANES, of.span * groups + group);
    let floats = const { matches!(scaling::<F, I>(), Scaling::Floats) };
    let mut apart = [0; 2 * MAX_LANES];
    let mut scales = &of.panel.scales[..];
    if const { matches!(scaling::<F, I>(), Scaling::Pairs) } {
        half_of_pairs(isa, &scales[number / 2 * wide..][..wide], number % 2, &mut apart);
        scales = &apart[..];
    } else if !floats {
        scales = &scales[number * wide..];
    }
    for r in 0..R {
        let at = r * I::LANES;
        if floats {
            let scale = isa.f_load(&of.panel.float_scales[number * wide + at..]);
            for t in 0..T {
                sum.exact[t][r] = isa.f_fma(scale, isa.f_from_w(dot[t][r]), sum.exact[t][r]);
            }
        } else {
            let scale = isa.w_load(&scales[at..]);
            for t in 0..T {
                sum.words[t][r] = isa.w_add(sum.words[t][r], isa.w_mul(scale, dot[t][r]));
            }
        }
    }
    let exact = const { exact::<F>() };
    if floats && (group + 1).is_multiple_of(exact) {
        for t in 0..T {
            for r in 0..R {
                let more = sum.exact[t][r];
                sum.sum[t][r] = if group < exact { more } else { isa.f_add(sum.sum[t][r], more) };
                sum.exact[t][r] = isa.f_splat(0.0);
            }
        }
    }
}
