//! Rows one by one in vectors of 64 bytes, where an ISA has these: blocks of 256 columns whose groups of 32 lie side by side.
//!
//! A *quarter* is 16 of the 64 bytes, or four of the words. In vectors of quants and activations quarter `q` belongs to group `2 q` or
//! `2 q + 1`, so that both halves of a group are added up in the same four words, one scaling does for two groups' words, and quarters 0 and
//! 1 make the first 128 columns. In vectors of what blocks begin with quarter `r` belongs to row `r`.

use super::Isa;

/// Proof that there are vectors of 64 bytes and their instructions.
pub trait Quarters<I: Isa>: Copy {
    /// Four vectors, in registers from here on.
    fn load(self, words: &[i32; 64]) -> [I::B; 4];
    /// Bytes of row `r` in quarter `r`.
    fn rows(self, bytes: [&[u8; 16]; 4]) -> I::B;
    /// The first halves of four 32s, then the second halves.
    fn halves(self, bytes: &[u8; 128]) -> [I::B; 2];
    /// Byte `i` of quarter `q` is 16 where bit `2 q + ODD` of `bytes[i]` is set, else 0; `ODD` is 0 or 1.
    fn bits<const ODD: i32>(self, bytes: &[u8; 16]) -> I::B;
    /// Of every row the eight scales and the eight mins of 6 bits in bytes 4..16 of its quarter, packed as Q4_K has them, as i16.
    fn six_bits(self, heads: I::B) -> [I::B; 2];
    /// The factors of [`Quarters::scaled`], from eight i16 a row, of one of them.
    fn spread(self, scales: I::B, row: usize) -> I::B;
    /// In quarter `q` the words of `dots[0]` times scale `2 q` and those of `dots[1]` times scale `2 q + 1`, though not word by word: the
    /// sum of the quarter's is theirs. All words fit i16.
    fn scaled(self, dots: [I::N; 2], factors: I::B) -> I::N;
    /// Four rows' sums of the first 128 columns of a block in lanes 0..4, of the last in lanes 4..8, then likewise of another block. `sums`
    /// has what [`Isa::n_half_sums4`] makes of the rows, for each block.
    fn spans(self, sums: [I::N; 2]) -> I::N;
    /// In that order, Σ mins · sums, with eight i16 mins a row and the sums of every 16 columns, both for each block.
    fn offsets(self, mins: [I::B; 2], sums: [&[i16; 16]; 2]) -> I::N;
    /// Keeps the compiler from loading what comes later before it has `v`, for which there are too few registers.
    fn in_order(self, v: I::N) -> I::N;
    /// In that order, the half-precision numbers in bytes 0..2 of rows' quarters, and those in bytes 2..4.
    fn floats(self, heads: [I::B; 2]) -> [I::G; 2];
    /// The floats for each block's spans, in that order.
    fn of_spans(self, blocks: [[f32; 2]; 2]) -> I::G;
    /// The other block's, where the first one's were.
    fn last(self, v: I::G) -> I::G;
}

/// No ISA without such vectors has this.
#[derive(Clone, Copy, Debug)]
pub enum NoQuarters {}

impl<I: Isa> Quarters<I> for NoQuarters {
    #[inline(always)]
    fn load(self, _words: &[i32; 64]) -> [I::B; 4] {
        match self {}
    }
    #[inline(always)]
    fn rows(self, _bytes: [&[u8; 16]; 4]) -> I::B {
        match self {}
    }
    #[inline(always)]
    fn halves(self, _bytes: &[u8; 128]) -> [I::B; 2] {
        match self {}
    }
    #[inline(always)]
    fn bits<const ODD: i32>(self, _bytes: &[u8; 16]) -> I::B {
        match self {}
    }
    #[inline(always)]
    fn six_bits(self, _heads: I::B) -> [I::B; 2] {
        match self {}
    }
    #[inline(always)]
    fn spread(self, _scales: I::B, _row: usize) -> I::B {
        match self {}
    }
    #[inline(always)]
    fn scaled(self, _dots: [I::N; 2], _factors: I::B) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn spans(self, _sums: [I::N; 2]) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn offsets(self, _mins: [I::B; 2], _sums: [&[i16; 16]; 2]) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn in_order(self, _v: I::N) -> I::N {
        match self {}
    }
    #[inline(always)]
    fn floats(self, _heads: [I::B; 2]) -> [I::G; 2] {
        match self {}
    }
    #[inline(always)]
    fn of_spans(self, _blocks: [[f32; 2]; 2]) -> I::G {
        match self {}
    }
    #[inline(always)]
    fn last(self, _v: I::G) -> I::G {
        match self {}
    }
}
