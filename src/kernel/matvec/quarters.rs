//! Products of rows that are unpacked one by one, the groups of a block side by side.

use super::{AHEAD, MAX_GROUP_ROWS, Sweep, Token, prefetch_bytes};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, Quarters};

/// Rows whose blocks' beginnings share a vector.
const ROWS: usize = 4;

/// What [`ROWS`] rows add to a block's sums.
struct Half<I: Isa, const T: usize> {
    /// [`Quarters::rows`] of what the blocks begin with.
    heads: I::B,
    mins: I::B,
    /// Sums of quarters, for each token.
    sums: [I::N; T],
}

/// Block `b` of rows `ROWS * half ..`, with each token's [`Token::quarters`].
#[inline(always)]
fn four_rows<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    quarters: I::Quarters,
    (sweep, rows): (&Sweep, &[&[u8]; MAX_GROUP_ROWS]),
    half: usize,
    b: usize,
    quants: &[&[i32]; T],
) -> Half<I, T> {
    let mut block = [&[][..]; ROWS];
    let mut head = [&[0; 16]; ROWS];
    for r in 0..ROWS {
        block[r] = &rows[ROWS * half + r][b * F::BYTES..][..F::BYTES];
        head[r] = block[r].first_chunk().expect("a block is longer");
    }
    let heads = quarters.rows(head);
    let [scales, mins] = quarters.six_bits(heads);
    let (at, mut ahead) = (b * F::BYTES + AHEAD, [std::ptr::null(); ROWS]);
    for r in 0..ROWS {
        ahead[r] = sweep.bases(at)[ROWS * half + r].wrapping_add(at);
    }
    let rows = Rows { isa, quarters, scales, quants };
    let [r0, r1] = rows.two::<F>([block[0], block[1]], 0, [ahead[0], ahead[1]]);
    let [r2, r3] = rows.two::<F>([block[2], block[3]], 2, [ahead[2], ahead[3]]);
    let mut sums = [isa.n_zero(); T];
    for t in 0..T {
        sums[t] = isa.n_half_sums4([r0[t], r1[t], r2[t], r3[t]]);
    }
    Half { heads, mins, sums }
}

/// What the products of [`ROWS`] rows need.
struct Rows<'a, I: Isa, const T: usize> {
    isa: I,
    quarters: I::Quarters,
    /// As [`Quarters::six_bits`] gives them.
    scales: I::B,
    quants: &'a [&'a [i32]; T],
}

impl<I: Isa, const T: usize> Rows<'_, I, T> {
    /// The scaled products of the blocks of rows `r` and `r + 1`, for each token; asks for what lies at `ahead` of each.
    #[inline(always)]
    fn two<F: Unpack>(&self, blocks: [&[u8]; 2], r: usize, ahead: [*const u8; 2]) -> [[I::N; T]; 2] {
        let (isa, quarters) = (self.isa, self.quarters);
        prefetch_bytes(isa, ahead[0], F::BYTES);
        let first = F::quarters(isa, quarters, blocks[0]);
        let first_factors = quarters.spread(self.scales, r);
        let last = F::quarters(isa, quarters, blocks[1]);
        let last_factors = quarters.spread(self.scales, r + 1);
        prefetch_bytes(isa, ahead[1], F::BYTES);
        let mut scaled = [[isa.n_zero(); T]; 2];
        for t in 0..T {
            // Loaded once for both rows.
            let quants = quarters.load(self.quants[t]);
            let (x, y) = (self.dots(first, quants), self.dots(last, quants));
            scaled[0][t] = quarters.in_order(quarters.scaled(x, first_factors));
            scaled[1][t] = quarters.in_order(quarters.scaled(y, last_factors));
        }
        scaled
    }

    /// The dot products of even groups, and of odd ones.
    #[inline(always)]
    fn dots(&self, lanes: [I::B; 4], quants: [I::B; 4]) -> [I::N; 2] {
        let mut dots = [self.isa.n_zero(); 2];
        for i in 0..4 {
            dots[i / 2] = self.isa.n_dot4::<false>(dots[i / 2], lanes[i], quants[i]);
        }
        dots
    }
}

/// Eight rows of a format with [`Unpack::QUARTERS`], to the same bits as [`super::super_block_rows`].
#[inline(always)]
pub(super) fn eight_rows<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    quarters: I::Quarters,
    sweep: &Sweep,
    tokens: &[Token; T],
    out: &mut [[f32; MAX_GROUP_ROWS]; T],
) {
    const { assert!(!F::QUARTERS || (F::SPAN == 128 && F::GROUP == 32 && F::OFFSET == 0 && F::MINS)) };
    // Sums of eight products fit i16.
    const { assert!(!F::QUARTERS || 8 * 127 * (F::LARGEST as i32) <= i16::MAX as i32) };
    // All of one length, so that a block has to be looked for once.
    let mut rows = sweep.rows;
    for r in 0..MAX_GROUP_ROWS {
        rows[r] = &rows[r][..rows[0].len()];
    }
    let mut total = [isa.g_zero(); T];
    for b in 0..rows[0].len() / F::BYTES {
        let mut quants = [&[][..]; T];
        for t in 0..T {
            quants[t] = tokens[t].quarters::<I>(b);
        }
        let first = four_rows::<F, I, T>(isa, quarters, (sweep, &rows), 0, b, &quants);
        let last = four_rows::<F, I, T>(isa, quarters, (sweep, &rows), 1, b, &quants);
        let [d, dmin] = quarters.floats([first.heads, last.heads]);
        let d = isa.g_mul(d, isa.g_splat(F::FACTOR));
        for t in 0..T {
            let min = quarters.offsets([first.mins, last.mins], &tokens[t].sums[b]);
            let sum = quarters.spans([first.sums[t], last.sums[t]]);
            let value = isa.g_mul(d, isa.g_from_n(sum));
            let value = isa.g_fnma(dmin, isa.g_from_n(min), value);
            let scales = isa.g_pair([tokens[t].scales[2 * b], tokens[t].scales[2 * b + 1]]);
            total[t] = isa.g_fma(scales, value, total[t]);
        }
    }
    for t in 0..T {
        super::store_spans(isa, total[t], &mut out[t]);
    }
}
