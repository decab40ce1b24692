//! Products of weights and tokens, span by span.
//!
//! A *unit* of work is a span of 32 tokens with one row vector in two planes, or with both row vectors where there is one plane: eight products in
//! four registers of sums, two operands of tokens and two of rows. While a unit is multiplied, vectors make floats of the sums of the one before
//! the last, and with those of the last span they store the result.
//!
//! Safety, for every `unsafe` in this file: [`check`] compares the lengths of operands with what the loops read; registers are set up
//! by [`Setup`] as long as they are used; what places of a [`Unit`] and its [`Target`] are made of stays borrowed in `products`.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Amx, NARROW, Setup, WHOLE};
use crate::simd::MAX_LANES;
use crate::simd::avx512::Avx512With;
use crate::simd::avx512::blocks::add_pairs;
use crate::simd::sum_of_vectors;
use crate::simd::tiles::{
    NARROW_SPAN, PANEL, PART, Planes, SPAN, TileOperands, place_of_chunk, place_of_quad, plane_bytes, turn_of,
};

/// Sums of a unit as they leave the registers: `[planes or vectors, sixteens, 16 tokens, 16 rows]`.
#[repr(C, align(64))]
struct Sums([[[[i32; 16]; 16]; 2]; 2]);

const UNSIGNED: u8 = Planes::Unsigned as u8;
const SIGNED: u8 = Planes::Signed as u8;
const TWO: u8 = Planes::Two as u8;

/// [`Tiles::products`](crate::simd::Tiles::products).
#[inline(always)]
pub(super) fn multiply(
    amx: Amx,
    planes: Planes,
    operands: &TileOperands,
    totals: &mut [f32],
    out: &mut [&mut [f32]],
) {
    // Sound: the proof covers the features of these functions.
    unsafe {
        match (planes, operands.pairs, operands.span) {
            (Planes::Unsigned, 4, SPAN) => products::<UNSIGNED, 4, SPAN>(amx, operands, totals, out),
            (Planes::Signed, 0, SPAN) => products::<SIGNED, 0, SPAN>(amx, operands, totals, out),
            (Planes::Two, 0, SPAN) => products::<TWO, 0, SPAN>(amx, operands, totals, out),
            (Planes::Two, 2, SPAN) => products::<TWO, 2, SPAN>(amx, operands, totals, out),
            (Planes::Unsigned, 1, NARROW_SPAN) => {
                products::<UNSIGNED, 1, NARROW_SPAN>(amx, operands, totals, out);
            }
            (Planes::Signed, 0, NARROW_SPAN) => {
                products::<SIGNED, 0, NARROW_SPAN>(amx, operands, totals, out)
            }
            (planes, pairs, span) => {
                unreachable!("no format has {planes:?}, {pairs} pairs of mins and spans of {span}")
            }
        }
    }
}

/// Panics unless the slices of `operands`, `totals` and `out` are as long as the counts say. Gives the parts.
fn check(planes: usize, operands: &TileOperands, totals: &[f32], out: &[&mut [f32]]) -> usize {
    let &TileOperands { span, spans, token_spans, pairs, panels, .. } = operands;
    let blocks = if span == SPAN { spans.div_ceil(2) } else { spans };
    let each = 256 / span * panels.len() * PANEL * PART;
    let parts = totals.len() / each;
    assert!(spans > 0 && spans <= token_spans);
    assert!(parts > 0 && totals.len() == parts * each);
    assert!(out.len() <= parts * PART);
    assert!(out.iter().all(|rows| rows.len() == out[0].len() && rows.len() <= panels.len() * PANEL));
    assert!(operands.tokens.len() * 4 >= parts * token_spans * span * PART);
    assert!(operands.floats.len() >= parts * token_spans * PART);
    assert!(operands.sums.len() >= parts * token_spans * pairs * PART);
    for panel in panels {
        assert!(panel.planes.len() * 4 >= spans * 2 * planes * plane_bytes(span));
        assert!(panel.d.len() >= blocks * PANEL);
        assert!(pairs == 0 || panel.dmin.len() >= blocks * PANEL);
        assert!(span == NARROW_SPAN || panel.mins.len() >= spans * pairs * PANEL);
    }
    parts
}

/// [`multiply`] with `PAIRS` of mins in spans of `SPAN_` columns; `PLANES` is one of [`Planes`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<const PLANES: u8, const PAIRS: usize, const SPAN_: usize>(
    amx: Amx,
    operands: &TileOperands,
    totals: &mut [f32],
    out: &mut [&mut [f32]],
) {
    let planes = const { if PLANES == TWO { 2 } else { 1 } };
    let parts = check(planes, operands, totals, out);
    let _setup = Setup::new(amx, if SPAN_ == NARROW_SPAN { &NARROW } else { &WHOLE });
    let mut ring = [const { Slot::EMPTY }; 3];
    let [mut to, mut from, mut complete] = ring.each_mut();
    let (panels, partials) = (operands.panels.len(), 256 / SPAN_);
    let columns = Columns { spans: operands.spans, partials, panels, vectors: planes };
    let lines = operands.next.len().div_ceil(64).div_ceil(columns.count());
    let first_place = Place::of(out, columns.last(), totals.len() / partials);
    let totals = totals.as_mut_ptr();
    let mut column = Column::default();
    let mut units = 0;
    for number in 0..columns.count() {
        ask(operands.next, number * lines..(number + 1) * lines);
        let mut unit = Unit::<PLANES, PAIRS, SPAN_>::of(operands, totals, parts, columns, column);
        let left = columns.left_of_last(column.span);
        let mut place = Place { row: column.panel * PANEL + column.vector * MAX_LANES, ..first_place };
        for _ in 0..parts {
            to.target = unit.target;
            to.place = if left == Some(0) { Some(place) } else { None };
            if let Some(left @ 1..=ASKED) = left {
                place.ask(2 / planes, (left - 1) * PART / ASKED..left * PART / ASKED);
            }
            // Sound: operands were checked, the registers are set up, and of the two units before this one, if there are, `complete` holds
            // the sums of the first, and `from` those of the second but for what is still in registers 2 and 3.
            unsafe {
                if units < 2 {
                    unit.multiply::<false>(amx, to, from, complete);
                } else {
                    unit.multiply::<true>(amx, to, from, complete);
                }
            }
            units += 1;
            unit.go_on(operands);
            place.go_on();
            (to, from, complete) = (complete, to, from);
        }
        column = columns.after(column);
    }
    // Sound: as above.
    unsafe {
        take_rest(&mut from.sums);
        if units > 1 {
            Unit::<PLANES, PAIRS, SPAN_>::add::<0, 32>(amx, complete);
        }
        if units > 0 {
            Unit::<PLANES, PAIRS, SPAN_>::add::<0, 32>(amx, from);
        }
    }
}

/// What parts of tokens are multiplied with, one after the other.
#[derive(Clone, Copy)]
struct Columns {
    spans: usize,
    /// Partial sums, which spans go to in turns.
    partials: usize,
    panels: usize,
    /// Row vectors of a panel that are apart: 1 where both are multiplied at once.
    vectors: usize,
}

/// A span of a row vector, or of both.
#[derive(Clone, Copy, Default)]
struct Column {
    span: usize,
    panel: usize,
    vector: usize,
}

impl Columns {
    #[inline(always)]
    fn count(self) -> usize {
        self.spans * self.panels * self.vectors
    }

    /// The one after `column`, or the first one again.
    #[inline(always)]
    fn after(self, column: Column) -> Column {
        let Column { span, panel, vector } = column;
        if vector + 1 < self.vectors {
            Column { span, panel, vector: vector + 1 }
        } else if panel + 1 < self.panels {
            Column { span, panel: panel + 1, vector: 0 }
        } else {
            Column { span: self.span_after(span), panel: 0, vector: 0 }
        }
    }

    /// The partial sum that is complete last.
    #[inline(always)]
    fn last(self) -> usize {
        self.partials.min(self.spans) - 1
    }

    /// How many spans of the last partial sum follow on `span`, if that is one of them.
    #[inline(always)]
    fn left_of_last(self, span: usize) -> Option<usize> {
        if span % self.partials == self.last() { Some((self.spans - 1 - span) / self.partials) } else { None }
    }

    /// The spans of one partial sum, then those of the next: one of them is all that the first cache has to hold of the totals.
    #[inline(always)]
    fn span_after(self, span: usize) -> usize {
        let (next, other) = (span + self.partials, span % self.partials + 1);
        if next < self.spans {
            next
        } else if other < self.partials.min(self.spans) {
            other
        } else {
            0
        }
    }
}

/// Spans before the last one, during which units ask for where they will store.
const ASKED: usize = 4;

/// Where sums are stored that are complete with those of a unit. Rows of the result lie far apart, so that each store is likely to miss
/// the caches; a store of all sums at once would have to wait for that.
#[derive(Clone, Copy)]
struct Place {
    /// The rows of the part's first token, and how many tokens there are from it on.
    out: *mut &'static mut [f32],
    tokens: usize,
    /// The unit's first row.
    row: usize,
    /// The partial sum that the unit's sums complete, and how far these are from each other in the totals.
    last: usize,
    apart: usize,
}

impl Place {
    /// Row 0 of the first part of `out`.
    #[inline(always)]
    fn of(out: &mut [&mut [f32]], last: usize, apart: usize) -> Self {
        Self { out: out.as_mut_ptr().cast(), tokens: out.len(), row: 0, last, apart }
    }

    /// Goes on to the next part.
    #[inline(always)]
    fn go_on(&mut self) {
        self.out = self.out.wrapping_add(PART);
        self.tokens = self.tokens.saturating_sub(PART);
    }

    /// Asks for the lines of `vectors` row vectors of `tokens`, to store to them.
    #[inline(always)]
    fn ask(&self, vectors: usize, tokens: std::ops::Range<usize>) {
        for t in tokens.start..tokens.end.min(self.tokens) {
            for vector in 0..vectors {
                // Sound: there is such a token; asking for an address that is not mapped does nothing.
                unsafe {
                    let rows = (*self.out.add(t)).as_ptr().wrapping_add(self.row + vector * MAX_LANES);
                    asm!("prefetchw [{}]", in(reg) rows, options(nostack, preserves_flags));
                }
            }
        }
    }

    /// Stores `sum` as that of token `t` and row vector `vector` of the unit.
    ///
    /// # Safety
    /// There is such a token.
    #[inline(always)]
    unsafe fn store(&self, sum: __m512, t: usize, vector: usize) {
        unsafe {
            let rows = &mut *self.out.add(t);
            let row = self.row + vector * MAX_LANES;
            if row < rows.len() {
                let lanes = u16::MAX >> (MAX_LANES - (rows.len() - row).min(MAX_LANES));
                _mm512_mask_storeu_ps(rows.as_mut_ptr().add(row), lanes, sum);
            }
        }
    }
}

/// Asks for `lines` of `bytes`, if there are so many.
#[inline(always)]
fn ask(bytes: &[u8], lines: std::ops::Range<usize>) {
    for line in lines.start..lines.end.min(bytes.len().div_ceil(64)) {
        // Sound: a prefetch of an address that is not mapped does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(64 * line).cast()) }
    }
}

/// Stores to `to` what [`Unit::multiply`] left in registers.
///
/// # Safety
/// The registers are set up.
#[inline(always)]
unsafe fn take_rest(to: &mut Sums) {
    unsafe {
        asm!(
            "tilestored [{to} + {stride} + 2048], tmm2",
            "tilestored [{to} + {stride} + 3072], tmm3",
            to = in(reg) &raw mut *to, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Where the operands of a unit are.
struct Unit<const PLANES: u8, const PAIRS: usize, const SPAN_: usize> {
    rows: *const u8,
    tokens: *const u8,
    /// What is asked for between steps: a part of the next span's tokens.
    tokens_ahead: *const u8,
    target: Target,
}

/// What a unit's sums are multiplied with, and where they go to.
#[derive(Clone, Copy)]
struct Target {
    d: *const f32,
    dmin: *const f32,
    mins: *const i32,
    sums: *const i32,
    floats: *const f32,
    totals: *mut f32,
    /// From one row vector of the totals to the next.
    apart: usize,
    /// What is kept of the totals so far: nothing where they start with it.
    kept: u16,
}

/// A unit's sums, complete when the one after it is under way.
struct Slot {
    sums: Sums,
    target: Target,
    /// Where sums go that are complete with these.
    place: Option<Place>,
}

impl Slot {
    const EMPTY: Self = Self {
        sums: Sums([[[[0; 16]; 16]; 2]; 2]),
        place: None,
        target: Target {
            d: std::ptr::null(),
            dmin: std::ptr::null(),
            mins: std::ptr::null(),
            sums: std::ptr::null(),
            floats: std::ptr::null(),
            totals: std::ptr::null_mut(),
            apart: 0,
            kept: 0,
        },
    };
}

/// The eight steps of a unit. Tokens are in registers 4 and 5, rows in 6 and 7; sums in 0 and 1 for the first plane or row vector, in 2 and 3 for the
/// second. What is stored was complete two products before.
macro_rules! steps {
    ($unit:ident, $to:ident, $from:ident, $first:literal, $second:literal, $between:ident) => {{
        let Unit { rows: b, tokens: a, .. } = *$unit;
        let (to, from) = ((&raw mut $to.sums).cast::<u8>(), (&raw mut $from.sums).cast::<u8>());
        asm!(
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{b} + {stride}]",
            "tilezero tmm0",
            product!($first, 0, 4, 6),
            "tileloadd tmm5, [{a} + {stride} + 1024]",
            "tilezero tmm1",
            product!($first, 1, 5, 6),
            "tilestored [{from} + {stride} + 2048], tmm2",
            a = in(reg) a, b = in(reg) b, from = in(reg) from, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
        $between!(0, 0, 4);
        asm!(
            "tileloadd tmm7, [{b} + {stride} + 2048]",
            "tilezero tmm2",
            product!($second, 2, 4, 7),
            "tilestored [{from} + {stride} + 3072], tmm3",
            b = in(reg) b, from = in(reg) from, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
        $between!(1, 4, 8);
        asm!(
            "tileloadd tmm4, [{a} + {stride} + 2048]",
            "tilezero tmm3",
            product!($second, 3, 5, 7),
            a = in(reg) a, stride = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        );
        $between!(2, 8, 12);
        asm!(
            "tileloadd tmm6, [{b} + {stride} + 1024]",
            product!($first, 0, 4, 6),
            b = in(reg) b, stride = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        );
        $between!(3, 12, 17);
        asm!(
            "tileloadd tmm5, [{a} + {stride} + 3072]",
            product!($first, 1, 5, 6),
            a = in(reg) a, stride = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        );
        $between!(4, 17, 22);
        asm!(
            "tileloadd tmm7, [{b} + {stride} + 3072]",
            product!($second, 2, 4, 7),
            "tilestored [{to} + {stride}], tmm0",
            b = in(reg) b, to = in(reg) to, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
        $between!(5, 22, 27);
        asm!(
            product!($second, 3, 5, 7),
            "tilestored [{to} + {stride} + 1024], tmm1",
            to = in(reg) to, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
        $between!(6, 27, 32);
    }};
}

/// The four steps of a unit of a narrow span: both row vectors. What is stored was complete one product before.
macro_rules! narrow_steps {
    ($unit:ident, $to:ident, $from:ident, $signs:literal, $between:ident) => {{
        let Unit { rows: b, tokens: a, .. } = *$unit;
        let (to, from) = ((&raw mut $to.sums).cast::<u8>(), (&raw mut $from.sums).cast::<u8>());
        asm!(
            "tileloadd tmm4, [{a} + {half}]",
            "tileloadd tmm6, [{b} + {stride}]",
            "tilezero tmm0",
            product!($signs, 0, 4, 6),
            "tilestored [{from} + {stride} + 2048], tmm2",
            a = in(reg) a, b = in(reg) b, from = in(reg) from, stride = in(reg) 64usize, half = in(reg) 32usize,
            options(nostack, preserves_flags),
        );
        $between!(0, 0, 8);
        asm!(
            "tileloadd tmm5, [{a} + {half} + 512]",
            "tilezero tmm1",
            product!($signs, 1, 5, 6),
            "tilestored [{from} + {stride} + 3072], tmm3",
            a = in(reg) a, from = in(reg) from, stride = in(reg) 64usize, half = in(reg) 32usize,
            options(nostack, preserves_flags),
        );
        $between!(1, 8, 16);
        asm!(
            "tileloadd tmm7, [{b} + {stride} + 512]",
            "tilezero tmm2",
            product!($signs, 2, 4, 7),
            "tilestored [{to} + {stride}], tmm0",
            b = in(reg) b, to = in(reg) to, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
        $between!(2, 16, 24);
        asm!(
            "tilezero tmm3",
            product!($signs, 3, 5, 7),
            "tilestored [{to} + {stride} + 1024], tmm1",
            to = in(reg) to, stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
        $between!(3, 24, 32);
    }};
}

impl<const PLANES: u8, const PAIRS: usize, const SPAN_: usize> Unit<PLANES, PAIRS, SPAN_> {
    const TWO: bool = PLANES == TWO;
    const NARROW: bool = SPAN_ == NARROW_SPAN;
    /// Times that something is done between steps, and lines that are asked for each time, if there are two parts and two panels.
    const STEPS: usize = if Self::NARROW { 4 } else { 7 };
    const TOKEN_LINES: usize = (PART * SPAN_ / 64).div_ceil(if Self::TWO { 4 } else { 2 } * Self::STEPS);

    /// `column` of the first part.
    #[inline(always)]
    fn of(operands: &TileOperands, totals: *mut f32, parts: usize, columns: Columns, column: Column) -> Self {
        let Column { span, panel, vector } = column;
        let span_after = columns.span_after(span);
        let turn = |span: usize| turn_of(span, operands.token_spans, SPAN_);
        let (panels, of) = (operands.panels, &operands.panels[panel]);
        let block = if Self::NARROW { span } else { span / 2 };
        let row = block * PANEL + vector * MAX_LANES;
        let each = panels.len() * PANEL * PART * parts;
        let total = span % columns.partials * each + (2 * panel + vector) * parts * PART * MAX_LANES;
        let tokens = operands.tokens.as_ptr().cast::<u8>();
        let planes = const { if Self::TWO { 2 } else { 1 } };
        let planes = place_of_quad(turn_of(span, columns.spans, SPAN_), 0, vector, planes, SPAN_);
        let share = (panel * columns.vectors + vector) * Self::STEPS * Self::TOKEN_LINES;
        Self {
            rows: of.planes.as_ptr().cast::<u8>().wrapping_add(planes),
            tokens: tokens.wrapping_add(place_of_chunk(turn(span), 0, 0, SPAN_)),
            tokens_ahead: tokens.wrapping_add(place_of_chunk(turn(span_after), 0, 0, SPAN_) + share * 64),
            target: Target {
                d: of.d.as_ptr().wrapping_add(row),
                dmin: of.dmin.as_ptr().wrapping_add(row),
                mins: of.mins.as_ptr().wrapping_add(span * PAIRS * PANEL + vector * MAX_LANES),
                sums: operands.sums.as_ptr().wrapping_add(turn(span) * PAIRS * PART),
                floats: operands.floats.as_ptr().wrapping_add(turn(span) * PART),
                totals: totals.wrapping_add(total),
                apart: parts * PART * MAX_LANES,
                kept: if span < columns.partials { 0 } else { u16::MAX },
            },
        }
    }

    /// Goes on to the next part.
    #[inline(always)]
    fn go_on(&mut self, operands: &TileOperands) {
        let tokens = operands.token_spans * PART;
        self.tokens = self.tokens.wrapping_add(tokens * SPAN_);
        self.tokens_ahead = self.tokens_ahead.wrapping_add(tokens * SPAN_);
        let target = &mut self.target;
        target.sums = target.sums.wrapping_add(tokens * PAIRS);
        target.floats = target.floats.wrapping_add(tokens);
        target.totals = target.totals.wrapping_add(PART * MAX_LANES);
    }

    /// Asks for what goes with step number `step`.
    #[inline(always)]
    fn ask_ahead(&self, step: usize) {
        // Sound: a prefetch of an address that is not mapped does nothing.
        unsafe {
            for line in 0..Self::TOKEN_LINES {
                let at = self.tokens_ahead.wrapping_add((step * Self::TOKEN_LINES + line) * 64);
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
            }
        }
    }

    /// Multiplies, so that half of the sums are in `to` and the others in registers 2 and 3, where those of the last unit are stored to `from`.
    /// Meanwhile those of the unit before that, if there `IS_ONE`, are added to their totals: what is loaded right after it was stored by
    /// rows of a register has to wait until it is in the cache.
    ///
    /// # Safety
    /// The unit's places, and the target of `complete`, are those of checked operands, and the registers are set up.
    #[inline(always)]
    unsafe fn multiply<const IS_ONE: bool>(&self, amx: Amx, to: &mut Slot, from: &mut Slot, complete: &Slot) {
        macro_rules! add {
            ($step:literal, $first:literal, $end:literal) => {
                self.ask_ahead($step);
                if IS_ONE {
                    Self::add::<$first, $end>(amx, complete);
                }
            };
        }
        unsafe {
            match PLANES {
                SIGNED if Self::NARROW => narrow_steps!(self, to, from, "ss", add),
                _ if Self::NARROW => narrow_steps!(self, to, from, "su", add),
                TWO => steps!(self, to, from, "su", "ss", add),
                SIGNED => steps!(self, to, from, "ss", "ss", add),
                _ => steps!(self, to, from, "su", "su", add),
            }
        }
    }

    /// Adds the sums of tokens `FIRST..END` to their totals.
    ///
    /// # Safety
    /// The target's places are those of checked operands.
    #[inline(always)]
    unsafe fn add<const FIRST: usize, const END: usize>(amx: Amx, slot: &Slot) {
        unsafe {
            if let Some(place) = &slot.place {
                return Self::finish(amx, slot, place, FIRST, END);
            }
            for vector in 0..const { if Self::TWO { 1 } else { 2 } } {
                // (Copied, or stores might change it as far as the compiler knows.)
                let target = slot.target;
                let factors = Self::factors(&target, vector);
                for t in FIRST..END {
                    let total = Self::total(&slot.sums, &target, &factors, vector, t);
                    _mm512_storeu_ps(target.totals.add(vector * target.apart + t * MAX_LANES), total);
                }
            }
        }
    }

    /// Adds the sums of tokens `first..end` to their totals and these to the other partial sums, and stores what comes of it to `place`.
    ///
    /// # Safety
    /// As [`Unit::add`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn finish(amx: Amx, slot: &Slot, place: &Place, first: usize, end: usize) {
        let (isa, target) = (Avx512With::<true>(Some(amx)), slot.target);
        for vector in 0..const { if Self::TWO { 1 } else { 2 } } {
            unsafe {
                let factors = Self::factors(&target, vector);
                for t in first..end.min(place.tokens) {
                    let at = target.totals.add(vector * target.apart + t * MAX_LANES);
                    let mut partials = [_mm512_setzero_ps(); 8];
                    for i in 0..const { 256 / SPAN_ } {
                        partials[i] = if i == place.last {
                            Self::total(&slot.sums, &target, &factors, vector, t)
                        } else {
                            _mm512_loadu_ps(
                                at.wrapping_add(i * place.apart).wrapping_sub(place.last * place.apart),
                            )
                        };
                    }
                    let sum = match const { 256 / SPAN_ } {
                        2 => sum_of_vectors(isa, &[partials[0], partials[1]]),
                        _ => sum_of_vectors(isa, &partials),
                    };
                    place.store(sum, t, vector);
                }
            }
        }
    }

    /// What sums of row vector `vector` are multiplied with.
    ///
    /// # Safety
    /// As [`Unit::add`].
    #[inline(always)]
    unsafe fn factors(target: &Target, vector: usize) -> Factors {
        unsafe {
            let d = _mm512_loadu_ps(target.d.add(vector * MAX_LANES));
            let (mut dmin, mut mins) = (d, [_mm512_setzero_si512(); 4]);
            if PAIRS > 0 {
                dmin = _mm512_loadu_ps(target.dmin.add(vector * MAX_LANES));
            }
            if !Self::NARROW {
                for p in 0..PAIRS {
                    mins[p] = _mm512_loadu_si512(target.mins.add(p * PANEL + vector * MAX_LANES).cast());
                }
            }
            Factors { d, dmin, mins }
        }
    }

    /// The total of token `t` and row vector `vector` with its sums of a span; where there is one plane, those of number `vector`.
    ///
    /// # Safety
    /// As [`Unit::add`].
    #[inline(always)]
    unsafe fn total(sums: &Sums, target: &Target, factors: &Factors, vector: usize, t: usize) -> __m512 {
        let &Factors { d, dmin, mins } = factors;
        unsafe {
            let mut sum = _mm512_load_si512(sums.0[vector][t / 16][t % 16].as_ptr().cast());
            if Self::TWO {
                let high = _mm512_load_si512(sums.0[1][t / 16][t % 16].as_ptr().cast());
                // (At most 128 · 127 · 128 in size, so times 256 it fits. A shuffle, for the pipe that shifts is the one that multiplies.)
                let by_one = _mm512_set4_epi32(0x0e0d_0c80, 0x0a09_0880, 0x0605_0480, 0x0201_0080);
                sum = _mm512_add_epi32(sum, _mm512_shuffle_epi8(high, by_one));
            }
            let sum = _mm512_cvtepi32_ps(sum);
            let mut value = _mm512_mul_ps(d, sum);
            if PAIRS > 0 && Self::NARROW {
                let min = _mm512_castsi512_ps(_mm512_set1_epi32(*target.sums.add(t)));
                value = _mm512_fnmadd_ps(dmin, min, value);
            } else if PAIRS > 0 {
                let mut min = _mm512_madd_epi16(mins[0], _mm512_set1_epi32(*target.sums.add(t)));
                for p in 1..PAIRS {
                    let pair = _mm512_set1_epi32(*target.sums.add(p * PART + t));
                    min = add_pairs(min, mins[p], pair);
                }
                value = _mm512_fnmadd_ps(dmin, _mm512_cvtepi32_ps(min), value);
            }
            let so_far =
                _mm512_maskz_loadu_ps(target.kept, target.totals.add(vector * target.apart + t * MAX_LANES));
            _mm512_fmadd_ps(_mm512_set1_ps(*target.floats.add(t)), value, so_far)
        }
    }
}

/// What a row vector's sums of a span are multiplied with.
struct Factors {
    d: __m512,
    dmin: __m512,
    mins: [__m512i; 4],
}
