//! Products of sixteen rows side by side: for so many tokens that arithmetic takes longer than reading.
//!
//! A block's lanes are made once for all tokens, and tokens are multiplied in sets of as many as there are registers for.

use std::marker::PhantomData;

use super::eights::{Ahead, MAX_CHUNKS, Tokens, Turned, eights_that_fit, layout};
use super::{AHEAD, Sweep};
use crate::kernel::activations::{
    Activations, FIRST_SUM, SCALE_WORDS, eights_words, first_start, has_eights,
};
use crate::quant::unpack::{Chunks, Unpack, bytes_of_eight};
use crate::simd::{Eights, Isa, SIXTEEN, SixteenRows};

/// Tokens of a set, at most.
const SET: usize = 8;

/// With fewer tokens, reading takes as long as eight rows at a time.
const LEAST_TOKENS: usize = 7;

/// Tokens that share a sweep, at most; with more, whole panels are no slower.
pub(in crate::kernel) const MOST_TOKENS: usize = 40;

/// The same where there is a matrix unit.
const MOST_BESIDE_TILES: usize = 16;

/// Words of a vector.
const WORDS: usize = 16;

/// Steps of a block, at most: each has a factor for every row.
const MAX_STEPS: usize = 16;

/// Whether sixteen rows of `F` can be multiplied side by side.
pub(super) const fn has_sixteens<F: Unpack, I: Isa>() -> bool {
    has_eights::<F, I>() && F::BYTEWISE.is_some() && I::LANES == WORDS
}

/// Up to so many tokens that is the fastest way, from [`LEAST_TOKENS`] on. Not measured where other pipes add than multiply.
#[inline(always)]
pub(in crate::kernel) fn most_tokens<F: Unpack, I: Isa>(isa: I) -> usize {
    if !const { has_sixteens::<F, I>() } || isa.multiplies_sums() {
        0
    } else if isa.tiles().is_some() {
        MOST_BESIDE_TILES
    } else {
        MOST_TOKENS
    }
}

/// Whether that is the fastest way for so many `tokens`.
#[inline(always)]
pub(super) fn takes_sixteen<F: Unpack, I: Isa>(isa: I, tokens: usize) -> bool {
    (LEAST_TOKENS..=most_tokens::<F, I>(isa)).contains(&tokens)
}

/// What a block of sixteen rows becomes, and what tokens' products add up to.
#[repr(C, align(64))]
pub(super) struct Room {
    /// See [`SixteenRows`]: those of both spans.
    lanes: [i32; 256 / 4 * SIXTEEN],
    factors: [i32; MAX_STEPS * WORDS],
    /// The last bytes of the rows' blocks but the floats, or the first ones, as columns.
    heads: [i32; 4 * WORDS],
    /// Of each token those of both spans.
    pub totals: [[[f32; SIXTEEN]; 2]; MOST_TOKENS],
}

impl Default for Room {
    fn default() -> Self {
        Self {
            lanes: [0; 256 / 4 * SIXTEEN],
            factors: [0; MAX_STEPS * WORDS],
            heads: [0; 4 * WORDS],
            totals: [[[0.0; SIXTEEN]; 2]; MOST_TOKENS],
        }
    }
}

/// Some words of sixteen blocks: bytes `first ..` of each.
#[derive(Clone, Copy)]
struct Heads<'a> {
    words: &'a [i32; 4 * WORDS],
    first: usize,
}

impl<I: Isa> Chunks<I> for Heads<'_> {
    #[inline(always)]
    fn chunk(self, isa: I, at: usize) -> I::B {
        isa.b_from_w(isa.w_load(&self.words[(at - self.first) / 4 * WORDS..]))
    }
    #[inline(always)]
    fn nibbles(self, _isa: I, _at: usize) -> I::B {
        unreachable!("scales are asked for")
    }
}

/// What the sums of a block become floats with: vectors of sixteen rows.
struct Floats<I: Isa> {
    d: I::F,
    dmin: I::F,
    /// Of groups 0 and 1, 2 and 3, 4 and 5, 6 and 7: two i16 a word.
    mins: [I::W; 4],
}

/// A block of each of sixteen rows.
struct Block<'a, F, I: Isa> {
    isa: I,
    eights: I::Eights,
    rows: [&'a [u8]; SIXTEEN],
    ahead: Ahead<'a, SIXTEEN>,
    _format: PhantomData<F>,
}

/// Columns of a step.
const fn step_columns<F: Unpack>() -> usize {
    8 * match eights_that_fit::<F>() {
        0 => 1,
        fit => fit,
    }
}

impl<F: Unpack, I: Isa> Block<'_, F, I> {
    /// Asks for part number `part` of 10 of what comes later. (A constant, once it is compiled: otherwise this takes longer than the lanes.)
    #[inline(always)]
    fn ask(&self, part: usize) {
        self.ahead.ask::<F, I>(self.isa, part, 10);
    }

    /// Makes lanes, factors and floats.
    #[inline(always)]
    fn unpack(&self, room: &mut Room) -> Floats<I> {
        self.lanes::<0>(room);
        self.lanes::<1>(room);
        self.floats(room)
    }

    /// Chunk `c` of vector `V` of rows, if there are so many.
    #[inline(always)]
    fn chunk<const V: usize>(&self, c: usize) -> [I::B; 4] {
        if c >= const { layout::<F>().chunks } {
            return [self.isa.b_splat(0); 4];
        }
        let r = &self.rows[2 * V..];
        let rows = [r[0], r[1], r[4], r[5], r[8], r[9], r[12], r[13]];
        self.eights.turn(bytes_of_eight(rows, const { layout::<F>().first } + 32 * c))
    }

    /// The lanes of vector `V` of rows.
    #[inline(always)]
    fn lanes<const V: usize>(&self, room: &mut Room) {
        let chunks = &[
            self.chunk::<V>(0),
            self.chunk::<V>(1),
            self.chunk::<V>(2),
            self.chunk::<V>(3),
            self.chunk::<V>(4),
            self.chunk::<V>(5),
        ];
        self.ask(4 * V);
        self.eight::<V, 0>(chunks, room);
        self.ask(4 * V + 1);
        self.eight::<V, 1>(chunks, room);
        self.ask(4 * V + 2);
        self.eight::<V, 2>(chunks, room);
        self.ask(4 * V + 3);
        self.eight::<V, 3>(chunks, room);
    }

    /// Those of the `N`th eight of each 32 columns.
    #[inline(always)]
    fn eight<const V: usize, const N: usize>(&self, chunks: &[[I::B; 4]; MAX_CHUNKS], room: &mut Room) {
        let turned = Turned::<F, I::B> { chunks, eight: N, _format: PhantomData };
        let lanes = F::lanes_of(self.isa, turned);
        let lanes = lanes.as_ref();
        for lane in 0..8 {
            let to = &mut room.lanes[((4 * lane + N) * 2 + V) * WORDS..];
            self.isa.w_store(self.isa.w_from_b(lanes[lane]), to);
        }
    }

    /// The factors, and floats and mins.
    #[inline(always)]
    fn floats(&self, room: &mut Room) -> Floats<I> {
        let (isa, eights) = (self.isa, self.eights);
        let first = if F::FLOATS_FIRST { 0 } else { F::BYTEWISE.unwrap_or(16) - 16 };
        isa.w_transpose_four(&self.rows, first, &mut room.heads, WORDS);
        let groups = F::groups_of(isa, Heads { words: &room.heads, first });
        for step in 0..256 / const { step_columns::<F>() } {
            let group = step * const { step_columns::<F>() } / F::GROUP;
            let scales = groups.scales[group / 4];
            let factor = if const { layout::<F>().signed } {
                eights.factor::<true>(scales, group % 4)
            } else {
                eights.factor::<false>(scales, group % 4)
            };
            isa.w_store(factor, &mut room.factors[step * WORDS..]);
        }
        let [d, dmin] = F::wide_floats(isa, &self.rows, 0, &room.heads);
        let mut mins = [isa.w_splat(0); 4];
        if F::MINS {
            for pair in 0..4 {
                mins[pair] = eights.two(groups.mins[pair / 2], pair % 2);
            }
        }
        Floats { d, dmin, mins }
    }

    /// Adds the products of span number `span` with `T` tokens, whose `words` follow each other, to their `totals`.
    #[inline(always)]
    fn add<const T: usize>(
        &self,
        span: usize,
        words: &[i32],
        floats: &Floats<I>,
        (lanes, factors): (&[i32], &[i32]),
        totals: &mut [[[f32; SIXTEEN]; 2]],
    ) {
        let (isa, stride) = (self.isa, const { eights_words::<F>() });
        let steps = 128 / const { step_columns::<F>() };
        let of = SixteenRows {
            lanes: &lanes[span * 128 / 4 * SIXTEEN..],
            factors: &factors[span * steps * WORDS..],
            steps,
            tokens: &words[span * 128 / 4..],
            stride,
            starts: if F::OFFSET == 0 { &[] } else { &words[first_start::<F>() + 2 * span * steps..] },
        };
        let sums = match const { (eights_that_fit::<F>(), F::OFFSET) } {
            (4, _) => self.eights.sixteen::<T, 4, false>(&of),
            (_, 0) => self.eights.sixteen::<T, 2, false>(&of),
            _ => self.eights.sixteen::<T, 2, true>(&of),
        };
        for t in 0..T {
            let words = &words[t * stride..][..stride];
            let mut value = isa.f_mul(floats.d, isa.f_from_w(sums[t]));
            if F::MINS {
                // Pairs of groups as they lie in a token's words: 0, 2, 1, 3.
                let low = isa.w_splat(words[FIRST_SUM + span]);
                let high = isa.w_splat(words[FIRST_SUM + 2 + span]);
                let min = isa.w_dot2_i16(isa.w_splat(0), floats.mins[2 * span], low);
                let min = isa.w_dot2_i16(min, floats.mins[2 * span + 1], high);
                value = isa.f_fnma(floats.dmin, isa.f_from_w(min), value);
            }
            let scale = isa.f_splat(f32::from_bits(words[SCALE_WORDS.start + span].cast_unsigned()));
            let total = &mut totals[t][span];
            isa.f_store(isa.f_fma(scale, value, isa.f_load(total)), total);
        }
    }
}

/// Sixteen rows with the first `count` tokens, to the same bits as [`super::super_block_rows`]: each row's totals of both spans.
#[inline(always)]
pub(super) fn sixteen_rows<F: Unpack, I: Isa>(
    isa: I,
    eights: I::Eights,
    sweep: &Sweep<SIXTEEN>,
    tokens: &Activations,
    count: usize,
    room: &mut Room,
) {
    const { assert!(F::EIGHTS.is_none() || F::SPAN == 128 && 256 / step_columns::<F>() <= MAX_STEPS) };
    const { assert!(F::EIGHTS.is_none() || !F::MINS || F::GROUP == 32) };
    let mut rows = [sweep.rows[0]; SIXTEEN];
    let mut starts = [rows[0].as_ptr(); SIXTEEN];
    for r in 0..SIXTEEN {
        rows[r] = &sweep.rows[r][..rows[0].len()];
        starts[r] = rows[r].as_ptr();
    }
    let tokens = Tokens::of::<F>(tokens, 0);
    let sets = count.div_ceil(SET);
    let (least, more) = (count / sets, count % sets);
    for b in 0..rows[0].len() / F::BYTES {
        let at = b * F::BYTES;
        let mut block = rows;
        for r in 0..SIXTEEN {
            block[r] = &rows[r][at..][..F::BYTES];
        }
        let block = Block::<F, I> {
            isa,
            eights,
            rows: block,
            ahead: Ahead { rows: &starts, at: sweep.place(at + AHEAD) },
            _format: PhantomData,
        };
        let floats = block.unpack(room);
        block.ask(8);
        block.ask(9);
        let words = &tokens.words[b * tokens.block..][..count * const { eights_words::<F>() }];
        let Room { lanes, factors, totals, .. } = &mut *room;
        let rows = (&lanes[..], &factors[..]);
        if b == 0 {
            totals[..count].fill([[0.0; SIXTEEN]; 2]);
        }
        for span in 0..2 {
            for set in 0..sets {
                // As many tokens in each set, or one more in the first ones.
                let first = set * least + set.min(more);
                let (words, totals) = (&words[first * const { eights_words::<F>() }..], &mut totals[first..]);
                match least + usize::from(set < more) {
                    4 => block.add::<4>(span, words, &floats, rows, totals),
                    5 => block.add::<5>(span, words, &floats, rows, totals),
                    6 => block.add::<6>(span, words, &floats, rows, totals),
                    7 => block.add::<7>(span, words, &floats, rows, totals),
                    _ => block.add::<8>(span, words, &floats, rows, totals),
                }
            }
        }
    }
}
