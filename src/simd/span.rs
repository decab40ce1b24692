//! Sums over a span of columns for a register tile: dot products of groups of columns times the scales of their rows.
//!
//! The dot products take the pipes that multiply, all the time; what counts is how few other instructions take them, too.

use super::{Isa, MAX_LANES, Partials};

/// The operands of [`Isa::f_span_tile`], laid out as [`Isa::w_group_tile`] wants each group's.
#[derive(Clone, Copy)]
pub struct SpanTile<'a> {
    /// Groups of columns.
    pub groups: usize,
    pub rows: &'a [i32],
    pub tokens: &'a [i32],
    pub starts: Option<&'a [i32]>,
    pub scales: Scales<'a>,
    pub largest: u8,
}

impl SpanTile<'_> {
    /// Rows and tokens of group `g`.
    #[inline(always)]
    fn group(&self, g: usize) -> (&[i32], &[i32]) {
        let (rows, tokens) = (self.rows.len() / self.groups, self.tokens.len() / self.groups);
        (&self.rows[g * rows..(g + 1) * rows], &self.tokens[g * tokens..(g + 1) * tokens])
    }
}

/// Scales of the rows for the groups of a span.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    /// All are 1.
    None,
    /// `[groups, R, LANES]`.
    Words(&'a [i32]),
    /// The same, where [`Isa::FLOAT_SCALES`] and sums over `exact` groups, which are all or half of them, fit a float.
    Floats { scales: &'a [f32], exact: usize },
    /// `[groups / 2, R, LANES]`, where [`Isa::PAIRED_SCALES`]: two groups' as two i16, the first in the low half.
    Pairs(&'a [i32]),
}

/// The operands of [`Isa::f_pairs_tile`] and [`Isa::f_sums_tile`]: a tile's rows and tokens over spans of columns.
#[derive(Clone, Copy)]
pub struct SpansTile<'a> {
    /// Two a block.
    pub spans: usize,
    /// Groups of columns in a span.
    pub groups: usize,
    /// Quads in a group.
    pub quads: usize,
    /// `[quads, R, LANES]`: lanes, raised and lowered ones for products of sums.
    pub rows: &'a [i32],
    /// The largest lane.
    pub largest_lane: u8,
    /// Whether each group's sums are rather scaled by themselves than two groups' at once, for which one has to be shifted and added to the
    /// other: where that takes the pipes that multiply.
    pub apart: bool,
    /// Whether then tokens are raised by 128 to bytes without a sign and lanes are bytes with one, so that what sums have too much depends on the row alone:
    /// scaled sums start from `correction`. There are no other starts.
    pub raised: bool,
    /// `[quads, T]`.
    pub tokens: &'a [i32],
    /// `[groups, T]`: what sums start from; empty if from 0.
    pub starts: &'a [i32],
    /// `[groups / 2, R, LANES]`, as [`Scales::Pairs`] are, and each a byte with a sign; for products of sums `[groups, R, LANES]`, i16 in the
    /// low halves and nothing in the high ones.
    pub scales: &'a [i32],
    /// For products of sums, `[groups, R, LANES]`: what depends on the row alone, negative.
    pub corrections: &'a [i32],
    /// `[spans, R, LANES]`: the sums of their groups' scales times corrections; also with raised tokens.
    pub correction: &'a [i32],
    /// Of each span, the largest size of a group's sum, whatever the rows.
    pub largest: &'a [i32],
    /// The largest size of a correction.
    pub largest_correction: &'a [i32],
    /// Of all blocks and spans.
    pub floats: SpanFloats<'a>,
}

impl SpansTile<'_> {
    /// The floats of span `s` of tiles of `wide` rows and `T` tokens.
    #[inline(always)]
    fn floats<const T: usize, const MINS: bool>(&self, s: usize, wide: usize) -> SpanFloats<'_> {
        let (all, block) = (&self.floats, s / 2);
        let (d, tokens) = (&all.d[block * wide..][..wide], &all.tokens[s * T..][..T]);
        if !MINS {
            return SpanFloats { d, dmin: &[], mins: &[], sums: &[], tokens };
        }
        let pairs = all.sums.len() / T / self.spans;
        SpanFloats {
            d,
            dmin: &all.dmin[block * wide..][..wide],
            mins: &all.mins[s * pairs * wide..][..pairs * wide],
            sums: &all.sums[s * pairs * T..][..pairs * T],
            tokens,
        }
    }
}

/// Whether sums up to such a size fit 16 bits.
#[inline(always)]
pub const fn fits(largest: i32) -> bool {
    largest <= i16::MAX as i32
}

/// Adds span `s` to its total, whether sums fit 16 bits or not.
#[inline(always)]
pub(super) fn add_span_of_pairs<I: Isa, const R: usize, const T: usize, const MINS: bool>(
    isa: I,
    totals: &mut [Partials<R, T>; 2],
    tile: &SpansTile,
    s: usize,
) {
    let (wide, groups) = (R * I::LANES, tile.groups);
    let quads = tile.quads * groups;
    let span = SpanTile {
        groups,
        rows: &tile.rows[s * quads * wide..][..quads * wide],
        tokens: &tile.tokens[s * quads * T..][..quads * T],
        starts: if tile.starts.is_empty() {
            None
        } else {
            Some(&tile.starts[s * groups * T..][..groups * T])
        },
        scales: Scales::Pairs(&tile.scales[s * groups / 2 * wide..][..groups / 2 * wide]),
        largest: tile.largest_lane,
    };
    let mut sum = [[isa.f_splat(0.0); R]; T];
    isa.f_span_tile::<R, T>(&mut sum, &span);
    add_span_to::<I, R, T, MINS>(isa, totals, &sum, tile, s);
}

/// Adds the integer `sum`s of span `s` to its total.
#[inline(always)]
pub(super) fn add_span_to<I: Isa, const R: usize, const T: usize, const MINS: bool>(
    isa: I,
    totals: &mut [Partials<R, T>; 2],
    sum: &[[I::F; R]; T],
    tile: &SpansTile,
    s: usize,
) {
    let (total, floats) = (&mut totals[s % 2], tile.floats::<T, MINS>(s, R * I::LANES));
    if s < 2 {
        add_span::<I, R, T, true>(isa, total, sum, floats);
    } else {
        add_span::<I, R, T, false>(isa, total, sum, floats);
    }
}

/// What a span's integer sums become floats with.
#[derive(Clone, Copy)]
pub struct SpanFloats<'a> {
    /// `[R, LANES]`: of the rows, for sums.
    pub d: &'a [f32],
    /// Of the rows, for mins.
    pub dmin: &'a [f32],
    /// `[pairs of groups, R, LANES]`: two i16 a word; empty if there are none.
    pub mins: &'a [i32],
    /// `[pairs of groups, T]`: the sums of the groups' activations, two i16 a word.
    pub sums: &'a [i32],
    /// `[T]`: of the tokens.
    pub tokens: &'a [f32],
}

/// Pairs of groups with mins in a span, at most: 128 columns of 16 each.
const MAX_MIN_PAIRS: usize = 4;

/// Adds a span to `total` (0 if it is the `FIRST`): its integer `sum`s, and mins times the sums of their groups' activations, times the
/// floats of rows and tokens.
#[inline(always)]
pub fn add_span<I: Isa, const R: usize, const T: usize, const FIRST: bool>(
    isa: I,
    total: &mut Partials<R, T>,
    sum: &[[I::F; R]; T],
    floats: SpanFloats,
) {
    let SpanFloats { d, dmin, mins, sums, tokens } = floats;
    let (wide, pairs) = (I::LANES * R, mins.len() / (I::LANES * R));
    for r in 0..R {
        let at = r * I::LANES;
        let mut row_mins = [isa.w_splat(0); MAX_MIN_PAIRS];
        for p in 0..pairs {
            row_mins[p] = isa.w_load(&mins[p * wide + at..]);
        }
        let d = isa.f_load(&d[at..]);
        let dmin = if pairs > 0 { isa.f_load(&dmin[at..]) } else { d };
        for t in 0..T {
            let mut value = isa.f_mul(d, sum[t][r]);
            if pairs > 0 {
                let mut min = isa.w_splat(0);
                for p in 0..pairs {
                    min = isa.w_dot2_i16(min, row_mins[p], isa.w_splat(sums[p * T + t]));
                }
                value = isa.f_fnma(dmin, isa.f_from_w(min), value);
            }
            let total = &mut total[t][r];
            let before = if FIRST { isa.f_splat(0.0) } else { isa.f_load(&*total) };
            isa.f_store(isa.f_fma(isa.f_splat(tokens[t]), value, before), total);
        }
    }
}

/// [`Isa::w_group_tile`] by [`Isa::w_dot4`].
#[inline(always)]
pub(super) fn group_of_words<I: Isa, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::W; R]; T],
    rows: &[i32],
    tokens: &[i32],
    starts: Option<&[i32]>,
    scales: Option<&[i32]>,
    largest: u8,
) {
    let mut dot = started::<I, R, T>(isa, starts);
    isa.w_dots(&mut dot, rows, tokens, largest);
    for r in 0..R {
        for t in 0..T {
            let scaled = match scales {
                Some(scales) => isa.w_mul(isa.w_load(&scales[r * I::LANES..]), dot[t][r]),
                None => dot[t][r],
            };
            sum[t][r] = isa.w_add(sum[t][r], scaled);
        }
    }
}

/// What dot products are added to.
#[inline(always)]
fn started<I: Isa, const R: usize, const T: usize>(isa: I, starts: Option<&[i32]>) -> [[I::W; R]; T] {
    let mut dot = [[isa.w_splat(0); R]; T];
    if let Some(starts) = starts {
        for t in 0..T {
            dot[t] = [isa.w_splat(starts[t]); R];
        }
    }
    dot
}

/// Integer sums as floats, rounded once.
#[inline(always)]
pub(super) fn to_floats<I: Isa, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::F; R]; T],
    words: &[[I::W; R]; T],
) {
    for t in 0..T {
        for r in 0..R {
            sum[t][r] = isa.f_from_w(words[t][r]);
        }
    }
}

/// [`Isa::f_span_tile`] where there are dot products: for them scales are best in pairs, or floats, or none at all.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn span_of_dots<I: Isa, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::F; R]; T],
    span: &SpanTile,
) {
    match span.scales {
        Scales::Floats { scales, exact } => return span_of_floats(isa, sum, span, scales, exact),
        Scales::None if span.groups == 1 => {}
        _ => return span_of_words(isa, sum, span),
    }
    let mut dot = started::<I, R, T>(isa, span.starts);
    isa.w_dots(&mut dot, span.rows, span.tokens, span.largest);
    to_floats(isa, sum, &dot);
}

/// [`Isa::f_span_tile`] with scales as floats: a multiplication of words takes two turns of the pipes, a conversion and an FMA
/// one each.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn span_of_floats<I: Isa, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::F; R]; T],
    span: &SpanTile,
    scales: &[f32],
    in_a_float: usize,
) {
    let wide = R * I::LANES;
    for part in 0..span.groups / in_a_float {
        let mut exact = [[isa.f_splat(0.0); R]; T];
        for g in part * in_a_float..(part + 1) * in_a_float {
            let mut dot = started::<I, R, T>(isa, section(span.starts, g, T));
            dots_of_group(isa, &mut dot, span, g);
            for r in 0..R {
                let scale = isa.f_load(&scales[g * wide + r * I::LANES..]);
                for t in 0..T {
                    exact[t][r] = isa.f_fma(scale, isa.f_from_w(dot[t][r]), exact[t][r]);
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                sum[t][r] = if part == 0 { exact[t][r] } else { isa.f_add(sum[t][r], exact[t][r]) };
            }
        }
    }
}

/// Adds the dot products of group `g`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn dots_of_group<I: Isa, const R: usize, const T: usize>(
    isa: I,
    dot: &mut [[I::W; R]; T],
    span: &SpanTile,
    g: usize,
) {
    let (rows, tokens) = span.group(g);
    isa.w_dots(dot, rows, tokens, span.largest);
}

/// Section `g` of `all`, if there is any, in sections of `length`. (A closure of `Option::map` would be a function of its own, for which
/// a kernel has to put all its vectors aside.)
#[inline(always)]
fn section<T>(all: Option<&[T]>, g: usize, length: usize) -> Option<&[T]> {
    match all {
        Some(all) => Some(&all[g * length..(g + 1) * length]),
        None => None,
    }
}

/// [`Isa::f_span_tile`] by integers.
#[inline(always)]
pub(super) fn span_of_words<I: Isa, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::F; R]; T],
    span: &SpanTile,
) {
    let mut words = [[isa.w_splat(0); R]; T];
    let wide = R * I::LANES;
    let mut apart = [0; MAX_WIDE];
    for g in 0..span.groups {
        let scales = match span.scales {
            Scales::Words(scales) => Some(&scales[g * wide..(g + 1) * wide]),
            Scales::Pairs(scales) => {
                half_of_pairs(isa, &scales[g / 2 * wide..(g / 2 + 1) * wide], g % 2, &mut apart);
                Some(&apart[..wide])
            }
            Scales::None => None,
            Scales::Floats { .. } => unreachable!("only ISAs that want floats are given them"),
        };
        let (rows, tokens) = span.group(g);
        let starts = section(span.starts, g, T);
        isa.w_group_tile::<R, T>(&mut words, rows, tokens, starts, scales, span.largest);
    }
    to_floats(isa, sum, &words);
}

/// Rows of a tile, at most.
const MAX_WIDE: usize = 2 * MAX_LANES;

/// Scales out of pairs: the low ones (0) or the high ones (1).
#[inline(always)]
fn half_of_pairs<I: Isa>(isa: I, pairs: &[i32], half: usize, scales: &mut [i32; MAX_WIDE]) {
    // A product of pairs with (1, 0) is the low half, with (0, 1) the high one.
    let one = isa.w_splat(1 << (16 * half));
    for at in (0..pairs.len()).step_by(I::LANES) {
        let scale = isa.w_dot2_i16(isa.w_splat(0), isa.w_load(&pairs[at..]), one);
        isa.w_store(scale, &mut scales[at..]);
    }
}
