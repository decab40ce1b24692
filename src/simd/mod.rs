//! ISA tokens and the operations they offer; imports nothing.
//!
//! CPU support is a value: a token such as [`Avx512`] can only be had from its `new()`, which asks the
//! machine, so a function that takes one may use its instructions. An algorithm is written once as a
//! [`Kernel`], generic over [`Isa`], and [`dispatch`] runs it with the best token there is. Everything
//! a kernel calls must be `#[inline(always)]`: only then does the body end up inside the one function
//! that is compiled for the token's features.
//!
//! Two kinds of vectors appear. A *narrow* vector holds 32 bytes of each of [`Isa::ROWS`] rows side by side: quantized
//! blocks are unpacked in it and the rows' dot products run along columns in it. A *wide* vector has
//! [`WideFloats::LANES`] 32-bit lanes: matmul tiles, attention and the element-wise work use it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod codebook;
mod eights;
mod finished;
mod floats;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod scalar;
mod span;
mod sums;
mod tiles;

#[cfg(target_arch = "x86_64")]
pub use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
pub use avx512::{Avx512, Avx512Plain};
pub use bf16::{DotBf16, NoDotBf16};
pub use codebook::Codebook;
pub use eights::{EIGHT, Eights, NoEights, SIXTEEN, SixteenRows};
pub use finished::{Finished, Partials, sum_of_partials, sum_of_vectors};
pub use floats::{ROUNDER, WideFloats};
#[cfg(target_arch = "aarch64")]
pub use neon::{Neon, NeonDot, NeonI8mm};
pub use scalar::Scalar;
pub use span::{Scales, SpanFloats, SpanTile, SpansTile, add_span, fits};
pub use sums::{low_halves, lowered, raised, reach};
pub use tiles::{
    CHUNK_WORDS, NARROW_SPAN, NoTiles, PANEL, PART, PROBED, PROBED_OF_SUM, PlaneSums, Planes, SPAN, Sixteens,
    TakeSums, TileOperands, TilePanel, Tiles, chunk_columns, place_of_chunk, place_of_columns, place_of_quad,
    place_of_row, plane_bytes, turn_of,
};

use std::sync::OnceLock;

use self::span::{add_span_of_pairs, group_of_words, span_of_words};
use self::sums::add_span_of_sums;

/// The most lanes a wide vector has on any ISA; sizes buffers that are shared by all of them.
pub const MAX_LANES: usize = 16;

/// The most rows a narrow vector has on any ISA.
pub const MAX_ROWS: usize = 2;

/// Something of each row of a narrow vector; only the first [`Isa::ROWS`] count.
pub type OfRows<T> = [T; MAX_ROWS];

/// An algorithm written once, run with whichever ISA the machine has.
pub trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, as must everything it calls.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// A [`Kernel`] that works in register tiles of `R` wide row vectors by `T` tokens.
pub trait TileKernel {
    /// Must be `#[inline(always)]`, as must everything it calls.
    fn run<I: Isa, const R: usize, const T: usize>(self, isa: I);
}

/// The operations an instruction set offers. Integer arithmetic wraps; float arithmetic is IEEE
/// single precision, `fma` fused on every ISA, so results do not depend on the ISA.
pub trait Isa: WideFloats {
    const NAME: &'static str;
    /// Rows of a narrow vector: 1 or 2.
    const ROWS: usize;
    /// Row vectors and tokens of a matmul tile that the registers hold.
    const TILE: (usize, usize);
    /// Tokens of [`Isa::small_tile`].
    const SMALL: usize = Self::TILE.1;
    /// Up to so many tokens, panels are unpacked and multiplied block by block, if the format allows it.
    const BLOCKWISE: usize = 0;
    /// Whether lanes are made as they are multiplied then.
    const STAYS_PACKED: bool = false;
    /// Tokens that share a sweep over rows in narrow vectors: 2 or 4.
    const SWEPT: usize = 2;
    /// Whether [`Isa::eights`] gives something.
    const EIGHTS: bool = false;
    /// Whether [`Isa::multiplies_sums`] may be true, and a pair of i16 is multiplied and added at once.
    const SUMS: bool = false;
    /// Whether [`Isa::f_span_tile`] wants the scales as floats where these are exact.
    const FLOAT_SCALES: bool = false;
    /// Whether it rather wants them in pairs where groups' sums are likely to fit 16 bits.
    const PAIRED_SCALES: bool = false;
    /// The largest byte of `rows` up to which a matmul tile's dot products over a whole span cost no more than those over groups of
    /// columns with small bytes; 0 where products are not added up in 32 bits at once.
    const LARGEST_FOLDED: u8 = 0;
    /// Words (of four columns each) of a row or token that lie side by side in a matmul tile's operands: 1 or 2.
    const WORDS: usize = 1;

    /// Narrow: 32 bytes a row, also seen as 16 i16.
    type B: Copy;
    /// Narrow: 8 i32 a row.
    type N: Copy;
    /// Narrow: 8 f32 a row.
    type G: Copy;
    /// Wide: `LANES` i32, also seen as `4 * LANES` bytes.
    type W: Copy;
    /// What [`Isa::dot_bf16`] may give.
    type DotBf16: DotBf16<Self>;
    /// What [`Isa::eights`] may give.
    type Eights: Eights<Self>;
    /// What [`Isa::tiles`] may give.
    type Tiles: Tiles<Self>;

    /// Eight rows side by side, where vectors have room for them.
    #[inline(always)]
    fn eights(self) -> Option<Self::Eights> {
        None
    }

    /// A unit that multiplies matrices of bytes, if there is one that is to be used.
    #[inline(always)]
    fn tiles(self) -> Option<Self::Tiles> {
        None
    }

    /// Whether [`Isa::f_sums_tile`] is faster here than [`Isa::f_span_tile`]: additions take other pipes than multiplications. Where they do not,
    /// [`SpansTile::apart`] is.
    #[inline(always)]
    fn multiplies_sums(self) -> bool {
        false
    }

    /// Runs `kernel` inside a function compiled for this ISA.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Runs `kernel` with the tile [`Isa::TILE`], from inside a function compiled for this ISA.
    fn tile<K: TileKernel>(self, kernel: K);

    /// As [`Isa::tile`], with fewer tokens ([`Isa::SMALL`]), for batches that would leave much of a tile empty.
    #[inline(always)]
    fn small_tile<K: TileKernel>(self, kernel: K) {
        self.tile(kernel);
    }

    /// As [`Isa::tile`], for what needs no registers but for sums and operands: many vectors, so that few loads go with each product.
    #[inline(always)]
    fn wide_tile<K: TileKernel>(self, kernel: K) {
        self.tile(kernel);
    }

    /// As [`Isa::wide_tile`], with more tokens and fewer vectors.
    #[inline(always)]
    fn tall_tile<K: TileKernel>(self, kernel: K) {
        self.tile(kernel);
    }

    /// Asks for the cache line at `at` to be fetched; any address will do.
    fn prefetch(self, at: *const u8);

    /// As [`Isa::prefetch`], but no closer than the second cache: for what is needed later.
    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        self.prefetch(at);
    }

    // Narrow bytes. Positions are those within a row, and every row is treated alike.
    fn b_load(self, from: OfRows<&[u8; 32]>) -> Self::B;
    /// The same bytes for every row.
    fn b_all_i8(self, from: &[i8; 32]) -> Self::B;
    /// The bytes of a wide vector, which are as many as those of a narrow one, and back.
    fn b_from_w(self, v: Self::W) -> Self::B;
    fn w_from_b(self, v: Self::B) -> Self::W;
    /// The same i16 for every row.
    fn b_all_i16(self, from: &[i16; 16]) -> Self::B;
    /// Row `r` goes to `to[r * stride..]`.
    fn b_store(self, v: Self::B, to: &mut [u8], stride: usize);
    /// The low halves of 16 bytes, then the high halves.
    fn b_nibbles(self, from: OfRows<&[u8; 16]>) -> Self::B;
    /// Four words, lowest byte first.
    fn b_words(self, from: OfRows<[u64; 4]>) -> Self::B;
    /// The words that [`Isa::b_words`] takes.
    fn b_to_words(self, v: Self::B) -> OfRows<[u64; 4]>;
    fn b_splat(self, x: u8) -> Self::B;
    fn b_and(self, a: Self::B, b: Self::B) -> Self::B;
    fn b_or(self, a: Self::B, b: Self::B) -> Self::B;
    fn b_xor(self, a: Self::B, b: Self::B) -> Self::B;
    fn b_add(self, a: Self::B, b: Self::B) -> Self::B;
    /// 0xff where a byte is at least `x`, which is not 0, else 0.
    fn b_at_least(self, v: Self::B, x: u8) -> Self::B;
    /// Every byte shifted right by `N` bits (0 to 7), zeros coming in.
    fn b_shr<const N: i32>(self, v: Self::B) -> Self::B;
    /// Every byte shifted left by `N` bits (0 to 7).
    fn b_shl<const N: i32>(self, v: Self::B) -> Self::B;
    /// `table[v & 15]` for every byte; bytes of `v` must be below 16.
    fn b_lookup(self, table: &[u8; 16], v: Self::B) -> Self::B;
    /// The low bytes of `quants[v]` times a scale plus `offset`, shifted right by `SHIFT` (0 or 1). The scale is i16 lane `2 * pair` of
    /// `scales` for bytes 0..16 of a row, lane `2 * pair + 1` for the others; bytes of `v` must be below 8, sums not negative.
    fn b_scaled<const SHIFT: i32>(
        self,
        quants: &[i16; 8],
        offset: i16,
        v: Self::B,
        scales: Self::B,
        pair: usize,
    ) -> Self::B;
    /// Byte `i` is 0xff where bit `i` of a row's `bits` is set, else 0.
    fn b_from_bits(self, bits: OfRows<u32>) -> Self::B;
    /// Points of a codebook, 32 a row in column order, whose numbers are the i16 of `numbers`; they are below `N`.
    #[inline(always)]
    fn b_points8<const N: usize>(self, book: &Codebook<u64, N>, numbers: [Self::B; 2]) -> [Self::B; 8] {
        codebook::points8(self, book, numbers)
    }
    /// As [`Isa::b_points8`], of four coordinates, 64 a row.
    #[inline(always)]
    fn b_points4<const N: usize>(self, book: &Codebook<u32, N>, numbers: [Self::B; 4]) -> [Self::B; 8] {
        codebook::points4(self, book, numbers)
    }
    /// Sixteen numbers of `N` bits (1 or 2) of each row, lowest first, times 256 as i16.
    #[inline(always)]
    fn b_bits_i16<const N: usize>(self, bits: OfRows<u32>) -> Self::B {
        codebook::bits_i16::<Self, N>(self, bits)
    }
    /// The bits of 16-bit word `i / 4` of a row from bit `N (i % 4)` on: the lowest eight of them are the high byte of i16 lane `i`,
    /// the low byte is 0.
    #[inline(always)]
    fn b_fields<const N: usize>(self, words: OfRows<u64>) -> Self::B {
        codebook::fields::<Self, N>(self, words)
    }
    /// Bytes negated where their bit of a row's `bits` is set.
    #[inline(always)]
    fn b_negate(self, v: Self::B, bits: OfRows<u32>) -> Self::B {
        // -x is the complement of x plus one.
        let negative = self.b_from_bits(bits);
        self.b_add(self.b_xor(v, negative), self.b_and(negative, self.b_splat(1)))
    }
    /// Vectors negated where bits are set: those of vector `s` are in bytes `4 s..` of a row of `signs`.
    #[inline(always)]
    fn b_negate_all(self, v: [Self::B; 8], signs: Self::B) -> [Self::B; 8] {
        codebook::negate_all(self, v, signs)
    }
    /// Four numbers of seven bits from the lower 28 of each 32, lowest first, as bytes.
    fn b_sevens(self, v: Self::B) -> Self::B;
    /// The upper four bits of each 32 as two i16.
    fn b_tops_twice(self, v: Self::B) -> Self::B;
    /// The high bytes of the i16 of `a`, then those of `b`.
    fn b_high_bytes(self, a: Self::B, b: Self::B) -> Self::B;
    /// Sixteen u8, widened to i16.
    fn b_widen_u8(self, from: OfRows<&[u8; 16]>) -> Self::B;
    /// Sixteen i8, widened to i16.
    fn b_widen_i8(self, from: OfRows<&[u8; 16]>) -> Self::B;
    /// The sixteen bytes of a row's two words, lowest first, widened to i16.
    fn b_widen_words(self, from: OfRows<[u64; 2]>) -> Self::B;
    /// Sums of i16 lanes.
    fn b_add_i16(self, a: Self::B, b: Self::B) -> Self::B;
    /// The eight bytes of a row's word, lowest first, each in two neighbouring i16.
    fn b_widen_twice(self, from: OfRows<u64>) -> Self::B;

    /// i32 lanes 0..4 all hold i16 lane `2 * pair` of `v`, lanes 4..8 lane `2 * pair + 1`.
    fn n_spread_i16(self, v: Self::B, pair: usize) -> Self::N;

    // Narrow dot products.
    fn n_zero(self) -> Self::N;
    fn n_add(self, a: Self::N, b: Self::N) -> Self::N;
    fn n_sub(self, a: Self::N, b: Self::N) -> Self::N;
    fn n_mul(self, a: Self::N, b: Self::N) -> Self::N;
    fn n_splat(self, x: i32) -> Self::N;
    /// `8 * ROWS` values.
    fn n_store(self, v: Self::N, to: &mut [i32]);
    /// `acc[i] += Σ_{j<4} u[4i+j] * a[4i+j]`; `u` unsigned, `a` signed but not -128. `WIDE`: bytes of `u` may exceed 127.
    fn n_dot4<const WIDE: bool>(self, acc: Self::N, u: Self::B, a: Self::B) -> Self::N;
    /// `acc[i] += s[i] * Σ_{j<4} u[4i+j] * a[4i+j]`; `u` at most 127, `a` signed but not -128, `s` what [`Isa::n_spread_i16`]
    /// makes of `scales` and `pair`.
    fn n_dot4_scaled(self, acc: Self::N, u: Self::B, a: Self::B, scales: Self::B, pair: usize) -> Self::N;
    /// Adds the [`Isa::n_dot4_scaled`] of two vectors, those of `pair` `2 * two` and `2 * two + 1`, though not lane by lane: the sum of a
    /// row's lanes is theirs. `u` at most 64.
    #[inline(always)]
    fn n_two_dots_scaled(
        self,
        acc: Self::N,
        u: [Self::B; 2],
        a: [Self::B; 2],
        scales: Self::B,
        two: usize,
    ) -> Self::N {
        one_by_one_scaled(self, acc, u, a, scales, two)
    }
    /// `acc[i] += a[2i] * b[2i] + a[2i+1] * b[2i+1]` over i16 lanes.
    fn n_dot2_i16(self, acc: Self::N, a: Self::B, b: Self::B) -> Self::N;
    /// In every row, lane `i` of the result is the sum of the lanes of `v[i]`.
    fn n_sums8(self, v: [Self::N; 8]) -> Self::N;
    /// In every row, lane `i` is the sum of lanes 0..4 of `v[i]` for i < 4, of lanes 4..8 of `v[i - 4]` beyond.
    fn n_half_sums4(self, v: [Self::N; 4]) -> Self::N;

    // Narrow floats.
    fn g_zero(self) -> Self::G;
    /// `8 * ROWS` values.
    fn g_load(self, from: &[f32]) -> Self::G;
    /// The same eight values for every row.
    fn g_all(self, from: &[f32; 8]) -> Self::G;
    /// `8 * ROWS` values.
    fn g_store(self, v: Self::G, to: &mut [f32]);
    /// `8 * ROWS` half-precision numbers, from their bits.
    fn g_from_halves(self, bits: &[u16; 8 * MAX_ROWS]) -> Self::G;
    /// The four half-precision numbers of a row's word in lanes 0..4, and again in lanes 4..8.
    fn g_from_halves_twice(self, bits: OfRows<u64>) -> Self::G;
    fn g_splat(self, x: f32) -> Self::G;
    /// In every row, lanes 0..4 hold the first, lanes 4..8 the second.
    fn g_pair(self, pair: [f32; 2]) -> Self::G;
    fn g_from_n(self, v: Self::N) -> Self::G;
    fn g_mul(self, a: Self::G, b: Self::G) -> Self::G;
    /// `a * b + c`, rounded once.
    fn g_fma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G;
    /// `c - a * b`, rounded once.
    fn g_fnma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G;

    // Wide integers.
    fn w_splat(self, x: i32) -> Self::W;
    /// The first `LANES` values of `from`.
    fn w_load(self, from: &[i32]) -> Self::W;
    /// The first `LANES` values of `from`, widened.
    fn w_load_i8(self, from: &[i8]) -> Self::W;
    fn w_store(self, v: Self::W, to: &mut [i32]);
    /// The low bytes.
    fn w_store_i8(self, v: Self::W, to: &mut [i8]);
    fn w_add(self, a: Self::W, b: Self::W) -> Self::W;
    fn w_mul(self, a: Self::W, b: Self::W) -> Self::W;
    /// The low halves as high ones, above zeros.
    #[inline(always)]
    fn w_raised(self, v: Self::W) -> Self::W {
        self.w_mul(v, self.w_splat(1 << 16))
    }
    /// As [`Isa::n_dot4`], `u` and `a` seen as bytes.
    fn w_dot4<const WIDE: bool>(self, acc: Self::W, u: Self::W, a: Self::W) -> Self::W;
    /// Adds a group of columns to a register tile: `sum[t][r] += scales[r] · (starts[t] + Σ_q w_dot4(rows[q][r], tokens[q][t]))`
    /// with `rows` `[quads / WORDS, R, LANES, WORDS]`, `tokens` `[quads / WORDS, T, WORDS]`, `scales` `[R, LANES]` (1 if there
    /// are none) and `starts` `[T]` (0 if there are none). No byte of `rows` exceeds `largest`; scales fit i16.
    #[inline(always)]
    fn w_group_tile<const R: usize, const T: usize>(
        self,
        sum: &mut [[Self::W; R]; T],
        rows: &[i32],
        tokens: &[i32],
        starts: Option<&[i32]>,
        scales: Option<&[i32]>,
        largest: u8,
    ) {
        group_of_words(self, sum, rows, tokens, starts, scales, largest);
    }

    /// Adds the dot products of [`Isa::w_group_tile`] to `dot`.
    #[inline(always)]
    fn w_dots<const R: usize, const T: usize>(
        self,
        dot: &mut [[Self::W; R]; T],
        rows: &[i32],
        tokens: &[i32],
        largest: u8,
    ) {
        const { assert!(Self::WORDS == 1) };
        for q in 0..tokens.len() / T {
            for r in 0..R {
                let row = self.w_load(&rows[(q * R + r) * Self::LANES..]);
                for t in 0..T {
                    let token = self.w_splat(tokens[q * T + t]);
                    dot[t][r] = if largest > 127 {
                        self.w_dot4::<true>(dot[t][r], row, token)
                    } else {
                        self.w_dot4::<false>(dot[t][r], row, token)
                    };
                }
            }
        }
    }

    /// The sums of a span for a register tile, as floats that are rounded once: `sum[t][r]` is what [`Isa::w_group_tile`] adds up
    /// over the span's groups, which lie one after the other in each operand.
    #[inline(always)]
    fn f_span_tile<const R: usize, const T: usize>(self, sum: &mut [[Self::F; R]; T], span: &SpanTile) {
        span_of_words(self, sum, span);
    }

    /// The products of a tile as `totals`, to which the spans go in turns, with scales in pairs; of a format with `MINS` or without. There
    /// is at least one block.
    #[inline(always)]
    fn f_pairs_tile<const R: usize, const T: usize, const MINS: bool>(
        self,
        totals: &mut [Partials<R, T>; 2],
        tile: &SpansTile,
        mut before: Finished<R, T>,
    ) {
        assert!(!tile.raised, "raised tokens are for AVX-512 alone");
        for s in 0..tile.spans {
            add_span_of_pairs::<Self, R, T, MINS>(self, totals, tile, s);
        }
        before.store_rest(self);
    }

    /// As [`Isa::f_pairs_tile`], by products of sums.
    #[inline(always)]
    fn f_sums_tile<const R: usize, const T: usize, const MINS: bool>(
        self,
        totals: &mut [Partials<R, T>; 2],
        tile: &SpansTile,
        mut before: Finished<R, T>,
    ) {
        for s in 0..tile.spans {
            add_span_of_sums::<Self, R, T, MINS>(self, totals, tile, s);
        }
        before.store_rest(self);
    }

    /// As [`Isa::n_dot2_i16`].
    fn w_dot2_i16(self, acc: Self::W, a: Self::W, b: Self::W) -> Self::W;
    /// [`Isa::w_dot2_i16`] of several vectors with the same `pair` in all lanes.
    #[inline(always)]
    fn w_dot2_pair<const V: usize>(self, sum: &mut [Self::W; V], lanes: &[Self::W; V], pair: &i32) {
        let pair = self.w_splat(*pair);
        for v in 0..V {
            sum[v] = self.w_dot2_i16(sum[v], lanes[v], pair);
        }
    }
    /// The words of two vectors, which fit 16 bits, in half as many.
    fn w_store_i16(self, v: [Self::W; 2], to: &mut [i32]);
    /// Row `r`, word `c` goes to row `c`, word `r`, for `LANES` × `LANES` words: row `r` is the (little-endian) bytes
    /// from `from[4 * r * from_stride]` on and the result's row `c` starts at `to[c * to_stride]`.
    fn w_transpose(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize);
    /// As [`Isa::w_transpose`], row `r` being the bytes from `from[r][at]` on.
    #[inline(always)]
    fn w_transpose_rows(self, from: &[&[u8]; MAX_LANES], at: usize, to: &mut [i32], to_stride: usize) {
        let mut square = [0; 4 * MAX_LANES * MAX_LANES];
        for r in 0..Self::LANES {
            square[4 * r * Self::LANES..][..4 * Self::LANES]
                .copy_from_slice(&from[r][at..at + 4 * Self::LANES]);
        }
        self.w_transpose(&square, Self::LANES, to, to_stride);
    }
    /// `dot[r] += rows[r] · token`, of the four bytes of every word with the token's.
    #[inline(always)]
    fn w_dot_token<const R: usize>(self, dot: &mut [Self::W; R], rows: [Self::W; R], token: &i32) {
        for r in 0..R {
            dot[r] = self.w_dot4::<true>(dot[r], rows[r], self.w_splat(*token));
        }
    }
    /// As [`Isa::w_transpose_rows`], of the first four words of each row only.
    #[inline(always)]
    fn w_transpose_four(self, from: &[&[u8]; MAX_LANES], at: usize, to: &mut [i32], to_stride: usize) {
        for r in 0..Self::LANES {
            let words = from[r][at..at + 16].as_chunks::<4>().0;
            for c in 0..4 {
                to[c * to_stride + r] = i32::from_le_bytes(words[c]);
            }
        }
    }
    /// As [`Isa::w_transpose`] but of units of `WORDS` words, of which there are `LANES / WORDS` in a row: unit `c` of row `r`
    /// goes to row `c`, unit `r`.
    #[inline(always)]
    fn w_transpose_units(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize) {
        const { assert!(Self::WORDS == 1) };
        self.w_transpose(from, from_stride, to, to_stride);
    }

    // Wide floats of words, and words of them.
    /// The bfloat16 values in the low halves.
    fn f_low_bf16(self, v: Self::W) -> Self::F;
    /// The bfloat16 values in the high halves.
    fn f_high_bf16(self, v: Self::W) -> Self::F;
    /// Rounded to what bfloat16 has, ties to even.
    fn f_round_bf16(self, v: Self::F) -> Self::F;
    /// The high halves of `LANES` floats in half as many words, which is all there is to them after [`Isa::f_round_bf16`].
    fn f_store_bf16(self, v: Self::F, to: &mut [i32]);
    /// Dot products of pairs of bfloat16, if the machine has an instruction.
    #[inline(always)]
    fn dot_bf16(self) -> Option<Self::DotBf16> {
        None
    }
    fn f_from_w(self, v: Self::W) -> Self::F;
    /// The half-precision numbers in the low halves of words, and those in the high halves.
    #[inline(always)]
    fn f_from_half_pairs(self, v: Self::W) -> [Self::F; 2] {
        let (mut words, mut low, mut high) = ([0; MAX_LANES], [0; MAX_LANES], [0; MAX_LANES]);
        self.w_store(v, &mut words);
        for i in 0..Self::LANES {
            (low[i], high[i]) = (words[i] as u16, (words[i] >> 16) as u16);
        }
        [self.f_load_f16(&low), self.f_load_f16(&high)]
    }
    /// To the nearest i32, ties to even; the value must fit.
    fn f_to_w(self, a: Self::F) -> Self::W;
}

/// [`Isa::n_two_dots_scaled`] by [`Isa::n_dot4_scaled`].
#[inline(always)]
fn one_by_one_scaled<I: Isa>(
    isa: I,
    acc: I::N,
    u: [I::B; 2],
    a: [I::B; 2],
    scales: I::B,
    two: usize,
) -> I::N {
    let acc = isa.n_dot4_scaled(acc, u[0], a[0], scales, 2 * two);
    isa.n_dot4_scaled(acc, u[1], a[1], scales, 2 * two + 1)
}

/// A pointer to `N` values of `from`, checked to be there.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn checked<const N: usize, T>(from: &[T]) -> *const T {
    from[..N].as_ptr()
}

/// As [`checked`], to write to.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn checked_mut<const N: usize, T>(to: &mut [T]) -> *mut T {
    to[..N].as_mut_ptr()
}

/// An ISA level: the names that `PHI_ISA` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Scalar,
    Avx2,
    /// AVX2 with the dot products of AVX-VNNI.
    AvxVnni,
    /// AVX-512 without VNNI.
    Avx512Plain,
    Avx512,
    /// AVX-512 with VNNI, and AMX for many tokens.
    Amx,
    Neon,
    NeonDot,
    NeonI8mm,
}

impl Level {
    /// The name, as in `PHI_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512Plain => "avx512-plain",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
            Level::Neon => "neon",
            Level::NeonDot => "neon-dot",
            Level::NeonI8mm => "neon-i8mm",
        }
    }

    /// The levels this machine has, best first.
    pub fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx512::with_amx().map(|_| Level::Amx));
            levels.extend(Avx512::new().map(|_| Level::Avx512));
            levels.extend(Avx512Plain::new().map(|_| Level::Avx512Plain));
            levels.extend(AvxVnni::new().map(|_| Level::AvxVnni));
            levels.extend(Avx2::new().map(|_| Level::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            levels.extend(NeonI8mm::new().map(|_| Level::NeonI8mm));
            levels.extend(NeonDot::new().map(|_| Level::NeonDot));
            levels.extend(Neon::new().map(|_| Level::Neon));
        }
        levels.push(Level::Scalar);
        levels
    }

    /// The level in use: the best there is, or what the environment variable `PHI_ISA` asks for if the
    /// machine has it.
    pub fn current() -> Level {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let available = Level::available();
            let wanted = std::env::var("PHI_ISA").unwrap_or_default().to_ascii_lowercase();
            available.iter().copied().find(|level| level.name() == wanted).unwrap_or(available[0])
        })
    }
}

/// Runs `kernel` at [`Level::current`].
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    dispatch_at(Level::current(), kernel)
}

/// Runs `kernel` at `level`, or on the scalar path where the machine lacks it.
pub fn dispatch_at<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Amx => {
            if let Some(isa) = Avx512::with_amx() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            if let Some(isa) = Avx512::new() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Plain => {
            if let Some(isa) = Avx512Plain::new() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => {
            if let Some(isa) = AvxVnni::new() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            if let Some(isa) = Avx2::new() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Level::NeonI8mm => {
            if let Some(isa) = NeonI8mm::new() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Level::NeonDot => {
            if let Some(isa) = NeonDot::new() {
                return isa.vectorize(kernel);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon => {
            if let Some(isa) = Neon::new() {
                return isa.vectorize(kernel);
            }
        }
        _ => {}
    }
    Scalar.vectorize(kernel)
}

pub mod lanes;

#[cfg(test)]
mod tests;
