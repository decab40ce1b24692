//! Products of panels that stay packed: lanes are made as they are multiplied. For few tokens that costs less than to store them.

use super::columns::{Columns, block_words, is_turned};
use super::{Lanes, OfPacked, Scaling, exact, scaling};
use crate::quant::unpack::Unpack;
use crate::simd::Isa;

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

/// Whether scales are floats.
const fn has_floats<F: Unpack, I: Isa>() -> bool {
    matches!(scaling::<F, I, OfPacked>(), Scaling::Floats)
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
    if of.span == 0 {
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
    if const { !has_floats::<F, I>() } {
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
    let each = const { block_words::<F, I>() };
    let block = &of.panel.packed[..R * each];
    let tokens = &of.tokens[J % PARTS * 8..][..8];
    let groups = const { 32 / F::GROUP };
    for g in 0..groups {
        let group = J % PARTS * groups + g;
        let mut dot = [[isa.w_splat(0); R]; T];
        if F::OFFSET != 0 {
            for t in 0..T {
                dot[t] = [isa.w_splat(of.starts[group][t]); R];
            }
        }
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
        scale::<F, I, R, T>(isa, of, group, &dot, sum);
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
    let at = (of.span * groups + group) * R * I::LANES;
    for r in 0..R {
        let at = at + r * I::LANES;
        if const { has_floats::<F, I>() } {
            let scale = isa.f_load(&of.panel.float_scales[at..]);
            for t in 0..T {
                sum.exact[t][r] = isa.f_fma(scale, isa.f_from_w(dot[t][r]), sum.exact[t][r]);
            }
        } else {
            let scale = isa.w_load(&of.panel.scales[at..]);
            for t in 0..T {
                sum.words[t][r] = isa.w_add(sum.words[t][r], isa.w_mul(scale, dot[t][r]));
            }
        }
    }
    let exact = const { exact::<F>() };
    if const { has_floats::<F, I>() } && (group + 1).is_multiple_of(exact) {
        for t in 0..T {
            for r in 0..R {
                let more = sum.exact[t][r];
                sum.sum[t][r] = if group < exact { more } else { isa.f_add(sum.sum[t][r], more) };
                sum.exact[t][r] = isa.f_splat(0.0);
            }
        }
    }
}
