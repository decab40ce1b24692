//! Products by a unit that multiplies whole matrices of bytes (Intel's AMX), where an ISA has one.
//!
//! It has registers of 16 rows of 64 bytes. One holds 64 columns of 16 tokens, another the same columns of 16 rows of the weights, four columns
//! of each row side by side, and one instruction adds all 16 × 16 sums of 64 products to a third. A scale for every 16 or 32 columns
//! would mean to take sums out of the unit as often, so scales are multiplied into the weights before: quants times scales have up to 14
//! bits and are split into *planes*, a low unsigned byte and a high signed one. A span's sums then leave the unit once a plane, and vectors
//! make floats of them while the unit is at the next ones.

use super::Isa;

/// Tokens that go through the unit side by side.
pub const PART: usize = 32;

/// Rows of weights that do: two row vectors.
pub const PANEL: usize = 32;

/// Columns of a span, after which sums leave the unit: four registers' halves, or for formats with a float for each so many columns, two halves of
/// registers.
pub const SPAN: usize = 128;
pub const NARROW_SPAN: usize = 32;

/// Bytes of a register.
const TILE: usize = 1024;

/// Columns of a register.
const TILE_COLUMNS: usize = 64;

/// Products of bytes of a turn of [`Tiles::probe`], and how many of them one sum has.
pub const PROBED: usize = 4 * 16 * 16 * 64;
pub const PROBED_OF_SUM: usize = 64;

/// How quants times scales lie in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planes {
    /// They fit unsigned bytes.
    Unsigned,
    /// They fit signed bytes.
    Signed,
    /// They take two planes: low bytes, unsigned, and high bytes, signed.
    Two,
}

impl Planes {
    /// What numbers from `least` to `most` need, which fit 16 bits.
    pub const fn of(least: i32, most: i32) -> Self {
        assert!(least >= i16::MIN as i32 && most <= i16::MAX as i32);
        if least >= 0 && most <= u8::MAX as i32 {
            Planes::Unsigned
        } else if least >= i8::MIN as i32 && most <= i8::MAX as i32 {
            Planes::Signed
        } else {
            Planes::Two
        }
    }

    /// How many.
    #[inline(always)]
    pub const fn count(self) -> usize {
        match self {
            Planes::Unsigned | Planes::Signed => 1,
            Planes::Two => 2,
        }
    }
}

/// When span `number` of `spans`, of `span` columns each, is multiplied: those of the first partial sum come first, then those of the second, so that
/// the first cache has to hold one partial sum of the totals only. Operands lie in that order, for then they are read from one end to the other.
#[inline(always)]
pub const fn turn_of(number: usize, spans: usize, span: usize) -> usize {
    let partials = 256 / span;
    let (partial, rest) = (number % partials, spans % partials);
    partial * (spans / partials) + if partial < rest { partial } else { rest } + number / partials
}

/// The place, in bytes, of columns `4 quad ..` of a span of row 0 of row vector `vector` (0 or 1) in a panel's planes, if the span's turn is `turn`; rows
/// follow each other there, four bytes each. Spans have `span` columns; the place in the second plane, if there are `planes` of them, is
/// [`plane_bytes`] further.
#[inline(always)]
pub const fn place_of_quad(turn: usize, quad: usize, vector: usize, planes: usize, span: usize) -> usize {
    (turn * 2 + vector) * planes * plane_bytes(span) + quad * 64
}

/// Bytes of a span of a row vector in one plane.
#[inline(always)]
pub const fn plane_bytes(span: usize) -> usize {
    16 * span
}

/// Columns of a span that are a row of a register.
#[inline(always)]
pub const fn chunk_columns(span: usize) -> usize {
    if span < TILE_COLUMNS { span } else { TILE_COLUMNS }
}

/// The place, in bytes, of chunk number `chunk` of [`chunk_columns`] of a span of token `token` of a part, if the span's turn is `turn`.
#[inline(always)]
pub const fn place_of_chunk(turn: usize, chunk: usize, token: usize, span: usize) -> usize {
    let row = chunk_columns(span);
    turn * span * PART + (chunk * PART + token) * row
}

/// Words of 64 columns of sixteen rows of 16-bit numbers in both planes: two registers, the low bytes first.
pub const CHUNK_WORDS: usize = 2 * TILE / 4;

/// The place, in words, of columns `64 chunk ..` of row `row` of sixteen in the lower plane; that in the higher one is half of [`CHUNK_WORDS`] further.
/// The columns are in the order of [`Tiles::split`].
#[inline(always)]
pub const fn place_of_row(chunk: usize, row: usize) -> usize {
    chunk * CHUNK_WORDS + row * 16
}

/// The place, in words, of row number 0 of sixteen of the other operand in the lower plane, as [`place_of_row`], of columns `4 quad ..`: they are in
/// one word.
#[inline(always)]
pub const fn place_of_columns(quad: usize) -> usize {
    place_of_row(quad / 16, quad % 4 * 4 + quad % 16 / 4)
}

/// Sums of [`Tiles::multiply`]: `[sixteens of the left operand, planes, rows of the left one, rows of the right one]`, where planes are
/// the products of high bytes, of high with low ones, and of low ones.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct PlaneSums(pub [[[[i32; 16]; 16]; 3]; 2]);

/// Rows of 16-bit numbers that are multiplied with each other, in sixteens: `apart` times [`CHUNK_WORDS`] for each.
#[derive(Clone, Copy)]
pub struct Sixteens<'a> {
    /// Two of them.
    pub left: &'a [i32],
    /// `count` of them.
    pub right: &'a [i32],
    pub count: usize,
    pub apart: usize,
    /// 64 columns each, at least 1.
    pub chunks: usize,
}

/// What is done with sums while the next ones are computed.
pub trait TakeSums {
    /// Takes those of number `sixteen` of the right operand.
    fn take(&mut self, sixteen: usize, sums: &PlaneSums);
}

/// What is multiplied: panels of rows with parts of tokens, over all spans of columns.
#[derive(Clone, Copy)]
pub struct TileOperands<'a> {
    /// Columns of a span: [`SPAN`] or [`NARROW_SPAN`].
    pub span: usize,
    /// Of the rows.
    pub spans: usize,
    /// Of the tokens, at least as many.
    pub token_spans: usize,
    /// Pairs of groups with mins in a span: 0, 1, 2 or 4.
    pub pairs: usize,
    pub panels: &'a [TilePanel<'a>],
    /// `[parts, token_spans, span / chunk, PART, chunk]` bytes, spans in their turn: see [`place_of_chunk`].
    pub tokens: &'a [i32],
    /// `[parts, token_spans, pairs, PART]`, likewise: the sums of two groups' activations, two i16 a word; of narrow spans both sums' sum, the bits of
    /// a float.
    pub sums: &'a [i32],
    /// `[parts, token_spans, PART]`, likewise.
    pub floats: &'a [f32],
    /// Bytes that are asked for meanwhile.
    pub next: &'a [u8],
}

/// [`PANEL`] rows of weights.
#[derive(Clone, Copy)]
pub struct TilePanel<'a> {
    /// `[spans, vectors, planes, span / 4, 16]` words, spans in their turn: see [`place_of_quad`].
    pub planes: &'a [i32],
    /// `[blocks, PANEL]`: of two spans, or of one narrow span.
    pub d: &'a [f32],
    pub dmin: &'a [f32],
    /// `[spans, pairs, PANEL]`: two i16 a word. Those of narrow spans are all 1 and not needed.
    pub mins: &'a [i32],
}

/// Proof that there is such a unit and that this process may use it.
pub trait Tiles<I: Isa>: Copy {
    /// What [`Tiles::planes`] multiplies with.
    type Factors: Copy;

    /// The scales of a group of a row vector, a word each, for [`Tiles::planes`].
    fn factors(self, scales: I::W) -> Self::Factors;

    /// Lanes of a row vector, four a word, less `offset`, times their factors, as `planes` of bytes. Where there is one plane only, the second
    /// vector means nothing.
    fn planes(self, planes: Planes, lanes: I::W, offset: u8, factors: Self::Factors) -> [I::W; 2];

    /// Multiplies registers of ones, [`PROBED`] products of bytes a turn, and gives one of the sums: to find out how fast the unit is by itself.
    fn probe(self, turns: usize) -> i32;

    /// The products of all parts: of every token a slice of `out`, all of them as long as there are rows. On the way there are partial sums in
    /// `totals`, `[256 / span, panels, vectors, parts, PART, LANES]`, of which spans take turns, as [`add_span`](super::add_span) adds them up;
    /// those that no span goes to must be 0.
    fn products(self, planes: Planes, operands: &TileOperands, totals: &mut [f32], out: &mut [&mut [f32]]);

    /// The unit, ready for [`Tiles::multiply`] as long as there is one; until it is dropped, the thread must make no second one and use neither
    /// [`Tiles::products`] nor [`Tiles::probe`], which leave the unit unready.
    type Ready;

    /// Makes it ready.
    fn ready(self) -> Self::Ready;

    /// Low and high bytes of 64 16-bit numbers, a word each. The order of columns: of every sixteen numbers, those of the four vectors come from
    /// the same quarter of each.
    fn split(self, words: [I::W; 4]) -> [I::W; 2];

    /// Low and high bytes of two pairs of 16-bit numbers, each a word: four columns of each row, in order.
    fn quads(self, first: I::W, last: I::W) -> [I::W; 2];

    /// Multiplies all of `operands`; `sums` are where sums are on their way to `take`.
    fn multiply<T: TakeSums>(
        ready: &Self::Ready,
        operands: &Sixteens,
        sums: &mut [PlaneSums; 2],
        take: &mut T,
    );

    /// The sums of products of 16-bit numbers, of [`PlaneSums`]' three planes.
    fn sum_of_planes(self, sums: [I::W; 3]) -> I::W;
}

/// No ISA without such a unit has this.
#[derive(Clone, Copy, Debug)]
pub enum NoTiles {}

impl<I: Isa> Tiles<I> for NoTiles {
    type Factors = ();
    #[inline(always)]
    fn factors(self, _scales: I::W) {
        match self {}
    }
    #[inline(always)]
    fn planes(self, _planes: Planes, _lanes: I::W, _offset: u8, _factors: ()) -> [I::W; 2] {
        match self {}
    }
    #[inline(always)]
    fn probe(self, _turns: usize) -> i32 {
        match self {}
    }
    #[inline(always)]
    fn products(
        self,
        _planes: Planes,
        _operands: &TileOperands,
        _totals: &mut [f32],
        _out: &mut [&mut [f32]],
    ) {
        match self {}
    }
    type Ready = Self;
    #[inline(always)]
    fn ready(self) -> Self {
        self
    }
    #[inline(always)]
    fn split(self, _words: [I::W; 4]) -> [I::W; 2] {
        match self {}
    }
    #[inline(always)]
    fn quads(self, _first: I::W, _last: I::W) -> [I::W; 2] {
        match self {}
    }
    #[inline(always)]
    fn multiply<T: TakeSums>(ready: &Self, _operands: &Sixteens, _sums: &mut [PlaneSums; 2], _take: &mut T) {
        match *ready {}
    }
    #[inline(always)]
    fn sum_of_planes(self, _sums: [I::W; 3]) -> I::W {
        match self {}
    }
}
