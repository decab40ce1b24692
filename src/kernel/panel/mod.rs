//! Panels: a few vectors of rows unpacked to int8 lanes, with their scales, mins and floats beside them, row by row next to each other.

mod columns;
mod packed;
mod planes;
mod rows;
mod sums;

use self::columns::{Turned, block_words, is_turned};
pub(super) use self::packed::{Ahead, Operands, span as packed_span};
pub(super) use self::planes::{has_tiles, planes};
use self::rows::Square;
use super::{Lines, largest_quant, prefetch_ahead};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, MAX_LANES, reach};

/// How a panel is multiplied, and so what it is made of.
pub(super) trait Product {
    /// Whether lanes stay packed.
    const PACKED: bool = false;
    /// Whether lanes are raised and lowered, for products of sums.
    const SUMS: bool = false;
    /// Whether lanes are multiplied by their scales, for a matrix unit.
    const TILES: bool = false;
    /// Whether lanes have signs, for tokens that have none.
    const RAISED: bool = false;
}

/// By the dot products of lanes.
pub(super) struct OfLanes;
/// The same, of lanes that are made then.
pub(super) struct OfPacked;
/// By the dot products of lanes with [raised tokens](crate::simd::SpansTile::raised).
pub(super) struct OfRaised;
/// By [`Isa::f_sums_tile`].
pub(super) struct OfSums;
/// By [`Isa::tiles`].
pub(super) struct OfTiles;

impl Product for OfLanes {}
impl Product for OfPacked {
    const PACKED: bool = true;
}
impl Product for OfRaised {
    const RAISED: bool = true;
}
impl Product for OfSums {
    const SUMS: bool = true;
}
impl Product for OfTiles {
    const TILES: bool = true;
}

/// Whether there are products of sums of `F` for `I`.
pub(super) const fn has_sums<F: Unpack, I: Isa>() -> bool {
    I::SUMS && F::SCALED && F::BLOCK == 256 && F::REACH <= reach(F::LARGEST)
}

/// Whether tokens are raised for products of `F` where groups' sums are scaled by themselves: what lanes have too much is then taken off once a span, not
/// once a group and token. Sums become larger, so that is of use only where they do not fit 16 bits anyway.
pub(super) const fn raises<F: Unpack, I: Isa>() -> bool {
    matches!(scaling::<F, I, OfLanes>(), Scaling::Pairs)
        && is_turned::<F, I>()
        && F::OFFSET != 0
        && F::LARGEST > i8::MAX as u8
        && F::GROUP == 32
        && !F::MINS
}

/// What a tile sees of a format.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// Whether scales were folded into the lanes of the panel: a span is one group then, without a scale.
    pub folded: bool,
    /// Whether what was folded is to be doubled before the starts are added.
    pub halved: bool,
    /// As of the format.
    pub group: usize,
    pub offset: i32,
    pub largest: u8,
    pub scaled: bool,
}

impl Seen {
    #[inline(always)]
    pub(super) const fn of<F: Unpack, I: Isa, P: Product>() -> Self {
        match F::FOLD {
            Some(fold) if fold.largest <= I::LARGEST_FOLDED && !P::SUMS && !P::TILES => Self {
                folded: true,
                halved: fold.halved,
                group: F::SPAN,
                offset: fold.offset,
                largest: fold.largest,
                scaled: false,
            },
            _ => Self {
                folded: false,
                halved: false,
                group: F::GROUP,
                offset: F::OFFSET,
                largest: F::LARGEST,
                scaled: F::SCALED,
            },
        }
    }
}

/// Columns that share a min: the pair of them that one 16-bit dot product takes is twice that.
#[inline(always)]
pub(super) const fn min_columns<F: Unpack>() -> usize {
    if F::SPAN < 64 { 16 } else { F::GROUP }
}

/// Unpacked rows.
#[derive(Default)]
pub(super) struct Lanes {
    /// `[columns / 4 / WORDS, panel rows, WORDS]`: four lanes a word.
    pub lanes: Lines<i32>,
    /// For a matrix unit, quants times scales: see [`place_of_quad`](crate::simd::place_of_quad).
    pub planes: Lines<i32>,
    /// Instead of lanes, where they are made as they are multiplied: `[row vectors, block_words]` of one block.
    pub packed: Lines<i32>,
    /// `[columns / group, panel rows]`; where they are [`Scaling::Pairs`] half as many, two i16 a word.
    pub scales: Lines<i32>,
    /// For products of sums, `[columns / group, panel rows]`: what depends on the row alone, negative.
    pub corrections: Lines<i32>,
    /// `[columns / span, panel rows]`: the sums of them times their scales. Also with raised tokens.
    pub correction: Lines<i32>,
    /// `[columns / span]`: the largest size of a span's corrections.
    pub largest_correction: Vec<i32>,
    /// Instead of them, where they are [`Scaling::Floats`].
    pub float_scales: Lines<f32>,
    /// `[columns / 2 / min columns, panel rows]`: two i16 a word.
    pub mins: Lines<i32>,
    /// `[columns / block, panel rows]`.
    pub d: Lines<f32>,
    pub dmin: Lines<f32>,
}

/// Columns that are unpacked at a time: a block of 256, or eight of 32.
const UNIT: usize = 256;

/// Fills `panel` from `rows`. Rows that are missing to a whole panel repeat the last one.
#[inline(always)]
pub(super) fn unpack<F: Unpack, I: Isa, P: Product>(
    isa: I,
    rows: &[u8],
    row_bytes: usize,
    columns: usize,
    panel: &mut Lanes,
) {
    let wide = I::LANES * I::TILE.0;
    let count = rows.len() / row_bytes;
    assert!(count > 0 && count <= wide);
    // Squares are written whole, beyond the end of a short last block.
    panel.lanes.resize((columns / 4 + MAX_LANES) * wide);
    resize::<F, I, P>(columns, panel);
    // What the first units would otherwise have to wait for.
    let start = (2 * UNIT / F::BLOCK * F::BYTES).min(row_bytes);
    for row in 0..count {
        prefetch_ahead(isa, &rows[row * row_bytes..][..start], 0);
    }
    if const { is_turned::<F, I>() } {
        let vectors = row_vectors::<I>(rows, row_bytes);
        let mut words = Turned::default();
        let words = &mut words.0[..const { block_words::<F, I>() }];
        for block in 0..columns / F::BLOCK {
            for v in 0..I::TILE.0 {
                self::columns::prefetch::<F, I>(isa, &vectors[v], block);
                self::columns::unpack::<F, I, P>(isa, &vectors[v], words, block, block, v * I::LANES, panel);
            }
            prepare::<F, I, P>(isa, block, columns, panel);
        }
        return;
    }
    let mut square = Square::default();
    for unit in 0..columns.div_ceil(UNIT) {
        let blocks = unit * UNIT / F::BLOCK..((unit + 1) * UNIT).min(columns) / F::BLOCK;
        for v in 0..I::TILE.0 {
            let blocks = blocks.clone();
            self::rows::unpack::<F, I, P>(isa, rows, row_bytes, blocks, v * I::LANES, &mut square, panel);
        }
        for block in blocks {
            prepare::<F, I, P>(isa, block, columns, panel);
        }
    }
}

/// What is still to be done with block number `block` of `columns` when all its rows are unpacked.
#[inline(always)]
fn prepare<F: Unpack, I: Isa, P: Product>(isa: I, block: usize, columns: usize, panel: &mut Lanes) {
    if P::SUMS {
        self::sums::prepare::<F, I>(isa, block, panel);
    } else if P::TILES {
        self::planes::prepare::<F, I>(isa, block, columns, panel);
    }
}

/// The rows of each row vector of a panel.
pub(super) type RowVectors<'a> = [[&'a [u8]; MAX_LANES]; 2];

/// `rows`, of which the last one is repeated.
#[inline(always)]
pub(super) fn row_vectors<I: Isa>(rows: &[u8], row_bytes: usize) -> RowVectors<'_> {
    let mut vectors = [[&rows[..0]; MAX_LANES]; 2];
    let last = rows.len() / row_bytes - 1;
    for lane in 0..I::LANES * I::TILE.0 {
        let at = lane.min(last) * row_bytes;
        vectors[lane / I::LANES][lane % I::LANES] = &rows[at..at + row_bytes];
    }
    vectors
}

/// The most tokens for which panels of `F` are unpacked and multiplied block by block; 0 if they never are.
pub(super) const fn blockwise_tokens<F: Unpack, I: Isa>() -> usize {
    if is_turned::<F, I>() { I::BLOCKWISE } else { 0 }
}

/// Makes room in `panel` for [`unpack_block`].
#[inline(always)]
pub(super) fn resize_to_block<F: Unpack, I: Isa>(panel: &mut Lanes) {
    panel.packed.resize(I::TILE.0 * const { block_words::<F, I>() });
    if const { I::STAYS_PACKED } {
        resize::<F, I, OfPacked>(F::BLOCK, panel);
    } else {
        panel.lanes.resize(F::BLOCK / 4 * I::LANES * I::TILE.0);
        resize::<F, I, OfLanes>(F::BLOCK, panel);
    }
}

/// Fills `panel` with one block of `rows`, of a turned format, whose lanes stay packed where [`Isa::STAYS_PACKED`].
#[inline(always)]
pub(super) fn unpack_block<F: Unpack, I: Isa>(isa: I, rows: &RowVectors, block: usize, panel: &mut Lanes) {
    let each = const { block_words::<F, I>() };
    let mut packed = std::mem::take(&mut panel.packed);
    for v in 0..I::TILE.0 {
        let words = &mut packed[v * each..(v + 1) * each];
        if const { I::STAYS_PACKED } {
            self::columns::unpack::<F, I, OfPacked>(isa, &rows[v], words, block, 0, v * I::LANES, panel);
        } else {
            self::columns::unpack::<F, I, OfLanes>(isa, &rows[v], words, block, 0, v * I::LANES, panel);
        }
    }
    panel.packed = packed;
}

/// Makes room for everything but lanes.
#[inline(always)]
fn resize<F: Unpack, I: Isa, P: Product>(columns: usize, panel: &mut Lanes) {
    let wide = I::LANES * I::TILE.0;
    panel.d.resize(columns / F::BLOCK * wide);
    if P::SUMS || P::RAISED {
        panel.correction.resize(columns / F::SPAN * wide);
    }
    if P::SUMS {
        panel.corrections.resize(columns / F::GROUP * wide);
        panel.largest_correction.resize(columns / F::SPAN, 0);
    }
    if P::TILES {
        self::planes::resize::<F, I>(columns, &mut panel.planes);
    }
    match const { scaling::<F, I, P>() } {
        Scaling::None => {}
        Scaling::Words | Scaling::Halves => panel.scales.resize(columns / F::GROUP * wide),
        Scaling::Floats => panel.float_scales.resize(columns / F::GROUP * wide),
        Scaling::Pairs => panel.scales.resize(columns / 2 / F::GROUP * wide),
    }
    if F::MINS {
        panel.dmin.resize(columns / F::BLOCK * wide);
        panel.mins.resize(columns / 2 / min_columns::<F>() * wide);
    }
}

/// Stores the scales of two groups as those of pair number `pair` of the panel; `at` is the place of the rows.
#[inline(always)]
fn store_scales<F: Unpack, I: Isa, P: Product>(
    isa: I,
    scales: [I::W; 2],
    pair: usize,
    at: usize,
    panel: &mut Lanes,
) {
    let wide = I::LANES * I::TILE.0;
    let (first, second) = (2 * pair * wide + at, (2 * pair + 1) * wide + at);
    match const { scaling::<F, I, P>() } {
        Scaling::None => {}
        Scaling::Words => {
            isa.w_store(scales[0], &mut panel.scales[first..]);
            isa.w_store(scales[1], &mut panel.scales[second..]);
        }
        Scaling::Floats => {
            isa.f_store(isa.f_from_w(scales[0]), &mut panel.float_scales[first..]);
            isa.f_store(isa.f_from_w(scales[1]), &mut panel.float_scales[second..]);
        }
        Scaling::Halves => {
            let zero = isa.w_splat(0);
            isa.w_store(halves(isa, [scales[0], zero]), &mut panel.scales[first..]);
            isa.w_store(halves(isa, [scales[1], zero]), &mut panel.scales[second..]);
        }
        Scaling::Pairs => {
            isa.w_store(halves(isa, scales), &mut panel.scales[pair * wide + at..]);
        }
    }
}

/// Two numbers of 16 bits in a word, the first in the low half.
#[inline(always)]
fn halves<I: Isa>(isa: I, [low, high]: [I::W; 2]) -> I::W {
    let low = isa.b_and(isa.b_from_w(low), isa.b_from_w(isa.w_splat(0xffff)));
    isa.w_from_b(isa.b_or(low, isa.b_from_w(isa.w_raised(high))))
}

/// Groups of columns whose scaled sum fits a float whatever the operands.
const fn exact_groups<F: Unpack>() -> usize {
    let group = F::GROUP as i32 * largest_quant::<F>() * 127 * F::LARGEST_SCALE;
    (1 << f32::MANTISSA_DIGITS) / group as usize
}

/// Groups of a span whose sum is exact as a float: all, or half of them.
pub(super) const fn exact<F: Unpack>() -> usize {
    let groups = F::SPAN / F::GROUP;
    if exact_groups::<F>() >= groups { groups } else { groups / 2 }
}

/// How a panel has its scales.
#[derive(Clone, Copy)]
pub(super) enum Scaling {
    None,
    Words,
    /// As i16 in the low halves of words, for products of sums.
    Halves,
    /// Exact over a span's groups, or halves of them.
    Floats,
    /// Two groups' in a word: their sums may share one, too, where they fit 16 bits.
    Pairs,
}

/// How a panel of `F` for `I` has its scales. Where it stays packed, the pipes that shift are busy with its lanes: pairs gain nothing there.
#[inline(always)]
pub(super) const fn scaling<F: Unpack, I: Isa, P: Product>() -> Scaling {
    if !Seen::of::<F, I, P>().scaled {
        Scaling::None
    } else if P::TILES {
        Scaling::Words
    } else if P::SUMS {
        Scaling::Halves
    } else if I::PAIRED_SCALES && !P::PACKED && F::BLOCK == 2 * F::SPAN {
        Scaling::Pairs
    } else if I::FLOAT_SCALES && 2 * exact_groups::<F>() >= F::SPAN / F::GROUP {
        Scaling::Floats
    } else {
        Scaling::Words
    }
}

/// The largest size of a group's sum, whatever the rows, for activations that add up to `sum` and in size to `size`.
#[inline(always)]
pub(super) fn largest_sum<F: Unpack>(sum: i32, size: i32) -> i32 {
    let above = const { F::LARGEST as i32 - F::OFFSET };
    let (positive, negative) = ((size + sum) / 2, (size - sum) / 2);
    (above * positive + F::OFFSET * negative).max(above * negative + F::OFFSET * positive)
}
