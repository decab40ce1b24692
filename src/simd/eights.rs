//! Eight rows side by side, where an ISA has vectors of 64 bytes: eight columns of each.
//!
//! Row `r` has bytes `8 r ..` of such a vector, or words `2 r` and `2 r + 1`. The eight columns of a token that go with them are the same
//! for all rows, and a load repeats eight bytes at no cost; sums over columns then grow in two words a row, so that little is left to add
//! up across lanes. A *quarter* is 16 of the 64 bytes: those of rows `2 q` and `2 q + 1`.

use super::Isa;

/// Rows side by side.
pub const EIGHT: usize = 8;

/// Rows of two such vectors.
pub const SIXTEEN: usize = 2 * EIGHT;

/// A span of sixteen rows, and tokens: what [`Eights::sixteen`] multiplies. Vectors are of 16 words.
#[derive(Clone, Copy)]
pub struct SixteenRows<'a> {
    /// `[steps, eights, 2]` vectors of lanes: eight columns of rows 0, 1, 4, 5, 8, 9, 12 and 13, then of the others.
    pub lanes: &'a [i32],
    /// `[steps]` vectors, from [`Eights::factor`].
    pub factors: &'a [i32],
    pub steps: usize,
    /// Of token `t` from word `t * stride` on `[steps, eights, 2]` words of four quants.
    pub tokens: &'a [i32],
    pub stride: usize,
    /// Of token `t` likewise `[steps, 2]` words that dot products start from; may be empty where they start from 0.
    pub starts: &'a [i32],
}

/// Proof that there are vectors of 64 bytes and their instructions.
pub trait Eights<I: Isa>: Copy {
    /// Of 32 bytes of each row, bytes `8 i ..` in vector `i`.
    fn turn(self, bytes: [&[u8; 32]; EIGHT]) -> [I::B; 4];
    /// The same eight columns for every row, four quants a word.
    fn all(self, columns: &[i32; 2]) -> I::B;
    /// The same two words for every row.
    fn start(self, words: &[i32; 2]) -> I::N;
    /// 16 bytes of each row: of row `2 q` in quarter `q` of the first vector, of row `2 q + 1` in that of the second.
    fn heads(self, bytes: [&[u8; 16]; EIGHT]) -> [I::B; 2];
    /// The first eight of the bytes in `heads` of each row, and the last eight.
    fn halves(self, heads: [I::B; 2]) -> [I::B; 2];
    /// Of heads, the eight scales and the eight mins of 6 bits in bytes 4..16 of each quarter, packed as Q4_K has them: a byte each.
    fn six_bits(self, heads: I::B) -> I::B;
    /// The factors of [`Eights::scaled`]: bytes `2 pair` and `2 pair + 1` of each row's eight, `SIGNED` or not.
    fn factors<const SIGNED: bool>(self, scales: I::B, pair: usize) -> I::B;
    /// The rows' words of `dots[0]` times their first factor and those of `dots[1]` times the second, though not word by word: see
    /// [`Eights::spans`]. All words fit i16.
    fn scaled(self, dots: [I::N; 2], factors: I::B) -> I::N;
    /// Adds them to `sum`.
    fn add_scaled(self, sum: I::N, dots: [I::N; 2], factors: I::B) -> I::N;
    /// In word `2 r + s` the sum of what [`Eights::scaled`] made for row `r` in `sums[s]`.
    fn spans(self, sums: [I::N; 2]) -> I::N;
    /// Eight bytes a row as i16 for [`Eights::offsets`].
    fn mins(self, mins: I::B) -> [I::B; 2];
    /// In word `2 r + s` the sum of the mins of the groups of span `s` of row `r`, four of eight, times the groups' `sums`: those of groups 0, 1,
    /// 4, 5, 2, 3, 6 and 7 as two i16 a word.
    fn offsets(self, mins: [I::B; 2], sums: [&[i32; 2]; 2]) -> I::N;
    /// The half-precision numbers in bytes `2 AT ..` of rows' heads, each of them twice.
    fn floats<const AT: i32>(self, heads: [I::B; 2]) -> I::G;
    /// The floats of the two spans, of which `bits` are those, the same for every row.
    fn of_spans(self, bits: &[i32; 2]) -> I::G;
    /// Byte `byte` of each word as both its i16, `SIGNED` or not.
    fn factor<const SIGNED: bool>(self, scales: I::B, byte: usize) -> I::W;
    /// Bytes `2 pair` and `2 pair + 1` of each word as its two i16.
    fn two(self, bytes: I::B, pair: usize) -> I::W;
    /// The dot products of sixteen rows with `T` tokens (4 to 8), those of each step times the step's factor: a word for each row. A step has `EIGHTS` (2
    /// or 4) times eight columns; the sum over every second four of its columns fits i16. Dot products start from 0 unless `STARTS`.
    fn sixteen<const T: usize, const EIGHTS: usize, const STARTS: bool>(self, of: &SixteenRows) -> [I::W; T];
    /// Keeps the compiler from computing what comes later before it has `v`, for which there are too few registers.
    fn in_order(self, v: I::N) -> I::N;
}

/// No ISA without such vectors has this.
#[derive(Clone, Copy, Debug)]
pub enum NoEights {}

impl<I: Isa> Eights<I> for NoEights {
    #[inline(always)]
    fn turn(self, _bytes: [&[u8; 32]; EIGHT]) -> [I::B; 4] {
        match self {}
    }
    #[inline(always)]
    fn all(self, _columns: &[i32; 2]) -> I::B {
        match self {}
    }
    #[inline(always)]
    fn start(self, _words: &[i32; 2]) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn heads(self, _bytes: [&[u8; 16]; EIGHT]) -> [I::B; 2] {
        match self {}
    }
    #[inline(always)]
    fn halves(self, _heads: [I::B; 2]) -> [I::B; 2] {
        match self {}
    }
    #[inline(always)]
    fn six_bits(self, _heads: I::B) -> I::B {
        match self {}
    }
    #[inline(always)]
    fn factors<const SIGNED: bool>(self, _scales: I::B, _pair: usize) -> I::B {
        match self {}
    }
    #[inline(always)]
    fn scaled(self, _dots: [I::N; 2], _factors: I::B) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn add_scaled(self, _sum: I::N, _dots: [I::N; 2], _factors: I::B) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn spans(self, _sums: [I::N; 2]) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn mins(self, _mins: I::B) -> [I::B; 2] {
        match self {}
    }
    #[inline(always)]
    fn offsets(self, _mins: [I::B; 2], _sums: [&[i32; 2]; 2]) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn floats<const AT: i32>(self, _heads: [I::B; 2]) -> I::G {
        match self {}
    }
    #[inline(always)]
    fn of_spans(self, _bits: &[i32; 2]) -> I::G {
        match self {}
    }
    #[inline(always)]
    fn factor<const SIGNED: bool>(self, _scales: I::B, _byte: usize) -> I::W {
        match self {}
    }
    #[inline(always)]
    fn two(self, _bytes: I::B, _pair: usize) -> I::W {
        match self {}
    }
    #[inline(always)]
    fn sixteen<const T: usize, const EIGHTS: usize, const STARTS: bool>(
        self,
        _of: &SixteenRows,
    ) -> [I::W; T] {
        match self {}
    }
    #[inline(always)]
    fn in_order(self, _v: I::N) -> I::N {
        match self {}
    }
}
