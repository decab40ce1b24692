//! Activations as int8, the other operand of the quantized products.

use super::{Lines, Pool, SharedMut, pair, sum, word_of};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, Kernel, Level, MAX_ROWS, dispatch, dispatch_at};

/// Rows of activations (one a token), quantized to int8 with a scale per span.
///
/// Columns are padded with zeros to a multiple of 256.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    /// Tokens.
    pub rows: usize,
    /// Columns of the source.
    pub columns: usize,
    /// Columns that share a scale.
    pub span: usize,
    /// `[rows, padded]`.
    pub quants: Vec<i8>,
    /// `[rows, padded / span]`.
    pub scales: Vec<f32>,
    /// `[rows, padded / 16]`: the sum of each 16 quants.
    pub sums: Vec<i16>,
    /// See [`Activations::arrange`].
    arranged: Lines<i32>,
    arrangement: Option<Arrangement>,
}

/// What is prepared for products by rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arrangement {
    /// `[rows, padded / 32, copies, 32]`: every 32 columns as often as a narrow vector has rows.
    Copies(usize),
    /// `[padded / 256, rows, words]`: all that products of eight rows side by side need of 256 columns of a token, in whole cache lines. So the
    /// tokens of a block lie at constant distances from each other, and do not push each other out of the first cache.
    Eights(usize),
}

impl Activations {
    /// Columns of `quants`.
    pub fn padded(&self) -> usize {
        padded(self.columns)
    }

    /// Makes room for `rows` × `columns` at `span`; contents are then unspecified.
    pub fn resize(&mut self, rows: usize, columns: usize, span: usize) {
        (self.rows, self.columns, self.span) = (rows, columns, span);
        let padded = padded(columns);
        self.quants.resize(rows * padded, 0);
        self.scales.resize(rows * padded / span, 0.0);
        self.sums.resize(rows * padded / 16, 0);
        self.arrangement = None;
    }

    /// Prepares products by rows of `format` at `level`. Where eight rows are multiplied side by side, what they need of a block is brought together;
    /// elsewhere every 32 quants are copied as often as a narrow vector has rows, for then vectors are loaded by the load pipes alone, while
    /// copies made in registers take turns of the pipes for shuffles.
    pub fn arrange<F: Unpack>(&mut self, format: F, level: Level, pool: &Pool) {
        dispatch_at(level, Arrange { all: self, pool, _format: format });
    }

    /// The quants of `row` in narrow vectors for `I`, four a word.
    #[inline(always)]
    pub(super) fn vectors<I: Isa>(&self, row: usize) -> &[i32] {
        assert_eq!(self.arrangement, Some(Arrangement::Copies(I::ROWS)), "quants are arranged otherwise");
        let words = self.padded() / 4 * I::ROWS;
        &self.arranged[row * words..][..words]
    }

    /// What products of eight rows side by side need of `row`, block by block, each [`eights_words`] long and as many words as there are in all
    /// rows after the one before it.
    #[inline(always)]
    pub(super) fn eights<F: Unpack>(&self, row: usize) -> &[i32] {
        let words = const { eights_words::<F>() };
        assert_eq!(self.arrangement, Some(Arrangement::Eights(words)), "quants are arranged otherwise");
        &self.arranged[row * words..self.padded() / 256 * self.rows * words]
    }

    /// Quantizes `source` (`[rows, columns]`) for products with `_format`.
    pub fn quantize<F: Unpack>(&mut self, _format: F, source: &[f32], columns: usize) {
        let span = F::SPAN;
        let rows = source.len() / columns;
        self.resize(rows, columns, span);
        let padded = self.padded();
        for (row, source) in source.chunks_exact(columns).enumerate() {
            quantize_row(
                source,
                (span, F::REACH),
                &mut self.quants[row * padded..][..padded],
                &mut self.scales[row * padded / span..][..padded / span],
                &mut self.sums[row * padded / 16..][..padded / 16],
            );
        }
    }
}

struct Arrange<'a, F> {
    all: &'a mut Activations,
    pool: &'a Pool,
    _format: F,
}

impl<F: Unpack> Kernel for Arrange<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Activations { rows, quants, scales, sums, arranged, arrangement, .. } = self.all;
        if const { has_eights::<F, I>() } {
            let words = const { eights_words::<F>() };
            *arrangement = Some(Arrangement::Eights(words));
            let (quants, sums) = (quants.as_chunks().0, sums.as_chunks().0);
            let (scales, blocks) = (scales.as_chunks().0, quants.len() / (*rows).max(1));
            arranged.resize(quants.len() * words);
            let (rows, to) = (*rows, SharedMut::new(arranged));
            self.pool.run(rows, |row| {
                for b in 0..blocks {
                    let from = row * blocks + b;
                    // Sound: each task writes its own row.
                    let to = unsafe { to.slice((b * rows + row) * words, words) };
                    arrange_eights::<F>(&quants[from], &scales[from], &sums[from], to);
                }
            });
            return;
        }
        *arrangement = Some(Arrangement::Copies(I::ROWS));
        arranged.resize(quants.len() / 4 * I::ROWS);
        let vectors = quants.as_chunks::<32>().0;
        for i in 0..vectors.len() {
            isa.w_store(isa.w_from_b(isa.b_all_i8(&vectors[i])), &mut arranged[i * I::LANES..]);
        }
    }
}

/// Whether eight rows of `F` are multiplied side by side.
pub(super) const fn has_eights<F: Unpack, I: Isa>() -> bool {
    I::EIGHTS && F::EIGHTS.is_some()
}

/// Words of 256 quants.
const QUANT_WORDS: usize = 64;

/// The words of 256 columns of a token after their quants: the bits of the scales of both spans.
pub(super) const SCALE_WORDS: std::ops::Range<usize> = QUANT_WORDS..QUANT_WORDS + 2;

/// Then the sums of 32 columns, two i16 a word in the order of [`Eights::offsets`](crate::simd::Eights::offsets), for mins.
pub(super) const FIRST_SUM: usize = SCALE_WORDS.end;

/// Then, for an offset, what dot products of each 16 columns start from so that it is taken off.
pub(super) const fn first_start<F: Unpack>() -> usize {
    FIRST_SUM + if F::MINS { 4 } else { 0 }
}

/// All of these words, in whole cache lines.
pub(super) const fn eights_words<F: Unpack>() -> usize {
    (first_start::<F>() + if F::OFFSET == 0 { 0 } else { 2 * 16 }).next_multiple_of(16)
}

/// Fills `words` ([`eights_words`]) from 256 columns: their quants, the scales of both spans and the sums of each 16 quants.
#[inline(always)]
fn arrange_eights<F: Unpack>(quants: &[i8; 256], scales: &[f32; 2], sums: &[i16; 16], words: &mut [i32]) {
    let fours = quants.as_chunks::<4>().0;
    for i in 0..QUANT_WORDS {
        words[i] = word_of(fours[i]);
    }
    for (word, scale) in words[SCALE_WORDS].iter_mut().zip(scales) {
        *word = scale.to_bits().cast_signed();
    }
    if F::MINS {
        for (word, group) in [0, 4, 2, 6].into_iter().enumerate() {
            let (low, high) = sums[2 * group..][..4].split_at(2);
            words[FIRST_SUM + word] = pair(sum(low), sum(high));
        }
    }
    if F::OFFSET != 0 {
        let starts = &mut words[const { first_start::<F>() }..][..32];
        for i in 0..32 {
            let at = i / 2 * 4 + i % 2;
            let mut sum = 0;
            for j in 0..4 {
                sum += i32::from(fours[at][j]) + i32::from(fours[at + 2][j]);
            }
            starts[i] = -F::OFFSET * sum;
        }
    }
}

/// `columns` rounded up to whole super-blocks.
pub const fn padded(columns: usize) -> usize {
    columns.next_multiple_of(256)
}

/// Quantizes one row: per span, `d = max|x| / reach`, `q = round(x · reach / max|x|)`.
///
/// The destinations have the lengths of a row of [`Activations`].
pub fn quantize_row(
    source: &[f32],
    (span, reach): (usize, i32),
    quants: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i16],
) {
    dispatch(QuantizeRow { source, span, reach: reach as f32, quants, scales, sums });
}

struct QuantizeRow<'a> {
    source: &'a [f32],
    span: usize,
    reach: f32,
    quants: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i16],
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let whole = self.source.len() / self.span;
        for s in 0..whole {
            let at = s * self.span;
            let (source, quants) = (&self.source[at..at + self.span], &mut self.quants[at..at + self.span]);
            self.scales[s] = quantize_span(isa, source, self.reach, quants);
        }
        for s in whole..self.scales.len() {
            let mut tail = [0.0f32; 256];
            let at = s * self.span;
            let rest = self.source.get(at..).unwrap_or_default();
            tail[..rest.len()].copy_from_slice(rest);
            let quants = &mut self.quants[at..at + self.span];
            self.scales[s] = quantize_span(isa, &tail[..self.span], self.reach, quants);
        }
        let vectors = self.quants.as_chunks::<32>().0;
        for i in 0..vectors.len() {
            let both = sums_of_sixteen(isa, isa.b_splat(1), isa.b_all_i8(&vectors[i]));
            self.sums[2 * i..2 * i + 2].copy_from_slice(&both);
        }
    }
}

/// The sums of the first 16 and the last 16 products of a row's bytes, `u` unsigned, which must fit.
#[inline(always)]
fn sums_of_sixteen<I: Isa>(isa: I, u: I::B, a: I::B) -> [i16; 2] {
    let mut quads = [0i32; 8 * MAX_ROWS];
    isa.n_store(isa.n_dot4::<false>(isa.n_zero(), u, a), &mut quads);
    let [a, b, c, d, e, f, g, h] = *quads.first_chunk().expect("eight or more");
    [(a + b + c + d) as i16, (e + f + g + h) as i16]
}

/// The sums of the sizes of the first 16 and the last 16 of `quants`, none of which is -128.
#[inline(always)]
pub(super) fn sizes_of_sixteen<I: Isa>(isa: I, quants: &[i8; 32]) -> [i16; 2] {
    let (quants, one) = (isa.b_all_i8(quants), isa.b_splat(1));
    // -x is the complement of x plus one.
    let negative = isa.b_at_least(quants, 128);
    let sizes = isa.b_add(isa.b_xor(quants, negative), isa.b_and(negative, one));
    sums_of_sixteen(isa, sizes, one)
}

#[inline(always)]
fn quantize_span<I: Isa>(isa: I, source: &[f32], reach: f32, quants: &mut [i8]) -> f32 {
    let mut largest = isa.f_splat(0.0);
    for x in source.chunks_exact(I::LANES) {
        largest = isa.f_max(largest, isa.f_abs(isa.f_load(x)));
    }
    let largest = isa.f_largest(largest);
    // An infinite or NaN activation has no int8 image; zeros keep the rest of the row finite.
    if !(largest > 1e-30 && largest < f32::INFINITY) {
        quants.fill(0);
        return 0.0;
    }
    let inverse = isa.f_splat(reach / largest);
    let mut i = 0;
    while i < source.len() {
        let words = isa.f_to_w(isa.f_mul(isa.f_load(&source[i..]), inverse));
        isa.w_store_i8(words, &mut quants[i..]);
        i += I::LANES;
    }
    largest / reach
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::unpack::{Q3K, Q4_0, Q4K};

    #[test]
    fn quants_are_within_half_a_step_and_padding_is_zero() {
        let source: Vec<f32> = (0..2 * 96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let mut a = Activations::default();
        a.quantize(Q4_0, &source, 96);
        assert_eq!((a.rows, a.padded()), (2, 256));
        for (row, source) in source.chunks(96).enumerate() {
            for (i, x) in source.iter().enumerate() {
                let d = a.scales[row * 8 + i / 32];
                let q = f32::from(a.quants[row * 256 + i]);
                assert!((x - d * q).abs() <= 0.5001 * d, "column {i}: {x} is not near {q} * {d}");
            }
            assert!(a.quants[row * 256 + 96..][..160].iter().all(|&q| q == 0));
            let sum: i16 = a.quants[row * 256..][..16].iter().map(|&q| i16::from(q)).sum();
            assert_eq!(a.sums[row * 16], sum);
        }
    }

    #[test]
    fn the_largest_quant_leaves_room_for_the_lanes_that_are_added_to_it() {
        let source: Vec<f32> = (0..256).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let mut a = Activations::default();
        a.quantize(Q4_0, &source, 256);
        assert!(a.quants.iter().all(|q| q.abs() == 127));
        a.quantize(Q4K, &source, 256);
        assert!(a.quants.iter().all(|q| q.abs() == 120) && a.scales.iter().all(|&d| d == 1.0 / 120.0));
        a.quantize(Q3K, &source, 256);
        assert!(a.quants.iter().all(|q| q.abs() == 124));
    }

    #[test]
    fn a_span_without_a_finite_maximum_becomes_zero() {
        let mut a = Activations::default();
        a.quantize(Q4K, &[f32::INFINITY; 256], 256);
        assert!(a.quants.iter().all(|&q| q == 0) && a.scales.iter().all(|&d| d == 0.0));
    }
}
