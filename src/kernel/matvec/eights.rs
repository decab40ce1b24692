//! Products of eight rows side by side.

use std::marker::PhantomData;

use super::{MAX_GROUP_ROWS, Sweep, ahead_of_eight};
use crate::kernel::activations::{Activations, FIRST_SUM, SCALE_WORDS, eights_words, first_start};
use crate::kernel::largest_quant;
use crate::quant::unpack::{Chunks, EightGroups, EightRows, Unpack, bytes_of_eight};
use crate::simd::{EIGHT, Eights, Isa, MAX_ROWS};

/// Tokens that share a sweep over rows, at most.
pub(in crate::kernel) const SWEPT: usize = 8;

/// What [`Unpack::EIGHTS`] says.
pub(super) const fn layout<F: Unpack>() -> EightRows {
    match F::EIGHTS {
        Some(layout) => layout,
        None => EightRows { first: 0, chunks: 0, signed: false },
    }
}

/// Eights of columns that words of 16 bits have room for the products of: four of each eight go to one word.
pub(super) const fn eights_that_fit<F: Unpack>() -> usize {
    let (fit, all) = ((i16::MAX as i32 / (4 * 127 * largest_quant::<F>())) as usize, F::GROUP / 8);
    if fit < all { fit } else { all }
}

/// Tokens' activations.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    /// See [`Activations::eights`].
    pub words: &'a [i32],
    /// Words from a block to the next one.
    pub block: usize,
}

impl<'a> Tokens<'a> {
    /// Those of `all` from number `first` on.
    #[inline(always)]
    pub fn of<F: Unpack>(all: &'a Activations, first: usize) -> Self {
        Self { words: all.eights::<F>(first), block: all.rows * const { eights_words::<F>() } }
    }
}

/// The bytes of a block of eight rows that lanes are made of, eight columns at a time.
#[derive(Clone, Copy)]
pub(super) struct Turned<'a, F, B> {
    pub chunks: &'a [[B; 4]; MAX_CHUNKS],
    /// Which eight of each 32 columns.
    pub eight: usize,
    pub _format: PhantomData<F>,
}

/// Chunks of a block, at most.
pub(super) const MAX_CHUNKS: usize = 6;

impl<F: Unpack, I: Isa> Chunks<I> for Turned<'_, F, I::B> {
    #[inline(always)]
    fn chunk(self, _isa: I, at: usize) -> I::B {
        self.chunks[(at - const { layout::<F>().first }) / 32][self.eight]
    }
    #[inline(always)]
    fn nibbles(self, _isa: I, _at: usize) -> I::B {
        unreachable!("no format of eights has nibbles of 16 bytes")
    }
}

/// What is asked for of each row while other bytes are multiplied.
pub(super) struct Ahead<'a, const ROWS: usize> {
    pub rows: &'a [*const u8; ROWS],
    /// How far after the beginning of each.
    pub at: usize,
}

impl<const ROWS: usize> Ahead<'_, ROWS> {
    /// Asks for part number `part` of `parts` of a block of each row, a line of each row in turns: several lines of one row at once take up to
    /// 1.4 times as long, probably because they wait for one channel of the memory.
    #[inline(always)]
    pub fn ask<F: Unpack, I: Isa>(&self, isa: I, part: usize, parts: usize) {
        let lines = const { F::BYTES.div_ceil(64) * ROWS };
        for line in lines * part / parts..lines * (part + 1) / parts {
            isa.prefetch(self.rows[line % ROWS].wrapping_add(self.at).wrapping_add(line / ROWS * 64));
        }
    }
}

/// A block of each of eight rows, with `T` tokens.
struct Block<'a, F: Unpack, I: Isa, const T: usize> {
    isa: I,
    eights: I::Eights,
    rows: [&'a [u8]; EIGHT],
    groups: EightGroups<I>,
    /// Of each token [`eights_words`].
    words: &'a [i32],
    ahead: Ahead<'a, EIGHT>,
    _format: PhantomData<F>,
}

impl<F: Unpack, I: Isa, const T: usize> Block<'_, F, I, T> {
    /// Words `at` and `at + 1` of token `t`.
    #[inline(always)]
    fn words(&self, t: usize, at: usize) -> &[i32; 2] {
        self.words[t * const { eights_words::<F>() } + at..].first_chunk().expect("a block's words")
    }

    /// Chunk `c`, if there are so many.
    #[inline(always)]
    fn chunk(&self, c: usize) -> [I::B; 4] {
        if c >= const { layout::<F>().chunks } {
            return [self.isa.b_splat(0); 4];
        }
        let at = const { layout::<F>().first } + 32 * c;
        self.eights.turn(bytes_of_eight(self.rows, at))
    }

    /// The sums of products of span `S` (0 or 1), for [`Eights::spans`]. What other lanes than the span's are made of is not computed.
    #[inline(always)]
    fn span<const S: usize>(&self) -> [I::N; T] {
        let chunks =
            &[self.chunk(0), self.chunk(1), self.chunk(2), self.chunk(3), self.chunk(4), self.chunk(5)];
        let mut sum = [self.isa.n_zero(); T];
        match (F::GROUP, S) {
            (32, 0) => {
                self.pair::<0, true>(chunks, &mut sum);
                self.pair::<1, false>(chunks, &mut sum);
            }
            (32, _) => {
                self.pair::<2, true>(chunks, &mut sum);
                self.pair::<3, false>(chunks, &mut sum);
            }
            (_, 0) => {
                self.pair::<0, true>(chunks, &mut sum);
                self.pair::<1, false>(chunks, &mut sum);
                self.pair::<2, false>(chunks, &mut sum);
                self.pair::<3, false>(chunks, &mut sum);
            }
            (_, _) => {
                self.pair::<4, true>(chunks, &mut sum);
                self.pair::<5, false>(chunks, &mut sum);
                self.pair::<6, false>(chunks, &mut sum);
                self.pair::<7, false>(chunks, &mut sum);
            }
        }
        sum
    }

    /// Adds the scaled products of groups `2 P` and `2 P + 1`; `FIRST` of a span. (`P` is a constant so that no other lanes are made.)
    #[inline(always)]
    fn pair<const P: usize, const FIRST: bool>(&self, chunks: &[[I::B; 4]; MAX_CHUNKS], sum: &mut [I::N; T]) {
        let (isa, eights) = (self.isa, self.eights);
        self.ahead.ask::<F, I>(self.isa, P, const { 256 / F::GROUP / 2 });
        let factors = if const { layout::<F>().signed } {
            eights.factors::<true>(self.groups.scales[P / 4], P % 4)
        } else {
            eights.factors::<false>(self.groups.scales[P / 4], P % 4)
        };
        let mut dots = [[isa.n_zero(); 2]; T];
        if F::OFFSET != 0 {
            for t in 0..T {
                let first = const { first_start::<F>() } + 4 * P;
                dots[t] = [eights.start(self.words(t, first)), eights.start(self.words(t, first + 2))];
            }
        }
        self.eight::<P, 0>(chunks, &mut dots);
        self.eight::<P, 1>(chunks, &mut dots);
        if F::GROUP == 32 {
            if const { eights_that_fit::<F>() < 4 } {
                self.scale::<FIRST>(factors, &dots, sum);
                dots = [[isa.n_zero(); 2]; T];
            }
            self.eight::<P, 2>(chunks, &mut dots);
            self.eight::<P, 3>(chunks, &mut dots);
            if const { eights_that_fit::<F>() < 4 } {
                return self.scale::<false>(factors, &dots, sum);
            }
        }
        self.scale::<FIRST>(factors, &dots, sum);
    }

    /// Adds the products of the `N`th eight columns of groups `2 P` and `2 P + 1`.
    #[inline(always)]
    fn eight<const P: usize, const N: usize>(
        &self,
        chunks: &[[I::B; 4]; MAX_CHUNKS],
        dots: &mut [[I::N; 2]; T],
    ) {
        let (isa, eights) = (self.isa, self.eights);
        for odd in 0..2 {
            // Of which 32 columns, and which eight of them.
            let (lane, eight) = if F::GROUP == 32 { (2 * P + odd, N) } else { (P, 2 * odd + N) };
            let turned = Turned::<F, I::B> { chunks, eight, _format: PhantomData };
            let lanes = F::lanes_of(isa, turned).as_ref()[lane];
            for t in 0..T {
                let columns = self.words(t, 2 * (4 * lane + eight));
                dots[t][odd] = isa.n_dot4::<false>(dots[t][odd], lanes, eights.all(columns));
            }
        }
    }

    /// Adds the products of two groups, scaled, to the sums, of which they are the `FIRST`.
    #[inline(always)]
    fn scale<const FIRST: bool>(&self, factors: I::B, dots: &[[I::N; 2]; T], sum: &mut [I::N; T]) {
        for t in 0..T {
            sum[t] = self.eights.in_order(if FIRST {
                self.eights.scaled(dots[t], factors)
            } else {
                self.eights.add_scaled(sum[t], dots[t], factors)
            });
        }
    }
}

/// Eight rows of a format with [`Unpack::EIGHTS`], to the same bits as [`super::super_block_rows`].
#[inline(always)]
pub(super) fn eight_rows<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    eights: I::Eights,
    sweep: &Sweep,
    tokens: Tokens,
    out: &mut [[f32; MAX_GROUP_ROWS]; T],
) {
    const { assert!(F::EIGHTS.is_none() || (F::SPAN == 128 && layout::<F>().chunks <= MAX_CHUNKS)) };
    const { assert!(F::EIGHTS.is_none() || !F::MINS || F::GROUP == 32) };
    const { assert!(F::EIGHTS.is_none() || eights_that_fit::<F>() == F::GROUP / 8 || F::OFFSET == 0) };
    const { assert!(F::EIGHTS.is_none() || F::OFFSET == 0 || F::GROUP == 16) };
    const { assert!(F::EIGHTS.is_none() || eights_that_fit::<F>() >= 2) };
    // All of one length, so that a block has to be looked for once.
    let mut rows = [sweep.rows[0]; EIGHT];
    let mut starts = [rows[0].as_ptr(); EIGHT];
    for r in 0..EIGHT {
        rows[r] = &sweep.rows[r][..rows[0].len()];
        starts[r] = rows[r].as_ptr();
    }
    let ahead = ahead_of_eight(isa);
    let mut total = [isa.g_zero(); T];
    for b in 0..rows[0].len() / F::BYTES {
        let at = b * F::BYTES;
        let mut block = rows;
        for r in 0..EIGHT {
            block[r] = &rows[r][at..][..F::BYTES];
        }
        let words = &tokens.words[b * tokens.block..][..T * const { eights_words::<F>() }];
        let groups = F::eight_groups(isa, eights, block);
        let (mins, d, dmin) = (groups.mins, groups.d, groups.dmin);
        let block = Block::<F, I, T> {
            isa,
            eights,
            rows: block,
            groups,
            words,
            ahead: Ahead { rows: &starts, at: sweep.place(at + ahead) },
            _format: PhantomData,
        };
        let (first, last) = (block.span::<0>(), block.span::<1>());
        let d = isa.g_mul(d, isa.g_splat(F::FACTOR));
        for t in 0..T {
            let sum = eights.spans([first[t], last[t]]);
            let mut value = isa.g_mul(d, isa.g_from_n(sum));
            if F::MINS {
                let min = eights.offsets(mins, [block.words(t, FIRST_SUM), block.words(t, FIRST_SUM + 2)]);
                value = isa.g_fnma(dmin, isa.g_from_n(min), value);
            }
            total[t] = isa.g_fma(eights.of_spans(block.words(t, SCALE_WORDS.start)), value, total[t]);
        }
    }
    for t in 0..T {
        let mut lanes = [0.0; 8 * MAX_ROWS];
        isa.g_store(total[t], &mut lanes);
        for r in 0..EIGHT {
            out[t][r] = lanes[2 * r] + lanes[2 * r + 1];
        }
    }
}
