//! Products of rows that are unpacked one by one, the groups of a block side by side.

use super::{AHEAD, MAX_GROUP_ROWS, Sweep, Token, prefetch_bytes};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, MAX_ROWS, Quarters};

/// Rows of a sweep: as many as those whose blocks' beginnings share a vector. Memory delivers more to four streams than to eight.
pub(super) const ROWS: usize = 4;

/// A token's activations, of each 256 columns.
#[derive(Clone, Copy)]
struct Columns<'a> {
    /// Four vectors, four quants a word.
    quants: &'a [[i32; 64]],
    scales: &'a [[f32; 2]],
    sums: &'a [[i16; 16]],
}

/// What a block of each of [`ROWS`] rows adds.
struct Blocks<I: Isa, const T: usize> {
    /// [`Quarters::rows`] of what the blocks begin with.
    heads: I::B,
    mins: I::B,
    /// Sums of quarters, for each token.
    sums: [I::N; T],
}

/// Block `b` of each row.
#[inline(always)]
fn blocks<F: Unpack, I: Isa, const T: usize>(
    isa: I,
    quarters: I::Quarters,
    (sweep, rows): (&Sweep, &[&[u8]; ROWS]),
    b: usize,
    tokens: &[Columns; T],
) -> Blocks<I, T> {
    let mut block = [&[][..]; ROWS];
    let mut head = [&[0; 16]; ROWS];
    for r in 0..ROWS {
        block[r] = &rows[r][b * F::BYTES..][..F::BYTES];
        head[r] = block[r].first_chunk().expect("a block is longer");
    }
    let mut quants = [&[0; 64]; T];
    for t in 0..T {
        quants[t] = &tokens[t].quants[b];
    }
    let heads = quarters.rows(head);
    let [scales, mins] = quarters.six_bits(heads);
    let at = b * F::BYTES + AHEAD;
    let ahead = sweep.bases(at);
    let rows = Rows { isa, quarters, scales, quants };
    let [r0, r1] =
        rows.two::<F>([block[0], block[1]], 0, [ahead[0].wrapping_add(at), ahead[1].wrapping_add(at)]);
    let [r2, r3] =
        rows.two::<F>([block[2], block[3]], 2, [ahead[2].wrapping_add(at), ahead[3].wrapping_add(at)]);
    let mut sums = [isa.n_zero(); T];
    for t in 0..T {
        sums[t] = isa.n_half_sums4([r0[t], r1[t], r2[t], r3[t]]);
    }
    Blocks { heads, mins, sums }
}

/// What the products of [`ROWS`] rows need.
struct Rows<'a, I: Isa, const T: usize> {
    isa: I,
    quarters: I::Quarters,
    /// As [`Quarters::six_bits`] gives them.
    scales: I::B,
    quants: [&'a [i32; 64]; T],
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

/// Four rows of a format with [`Unpack::QUARTERS`], two blocks of each at a time, to the same bits as [`super::super_block_rows`].
#[inline(always)]
pub(super) fn four_rows<F: Unpack, I: Isa, const T: usize>(
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
    let mut rows = [sweep.rows[0]; ROWS];
    for r in 0..ROWS {
        rows[r] = &sweep.rows[r][..rows[0].len()];
    }
    let count = rows[0].len() / F::BYTES;
    let mut columns = [Columns { quants: &[], scales: &[], sums: &[] }; T];
    for t in 0..T {
        columns[t] = Columns {
            quants: &tokens[t].quants.as_chunks().0[..count],
            scales: &tokens[t].scales.as_chunks().0[..count],
            sums: &tokens[t].sums[..count],
        };
    }
    let mut total = [isa.g_zero(); T];
    for b in (0..count).step_by(2) {
        // The last block of an odd number is there twice, and counts once.
        let next = (b + 1).min(count - 1);
        let first = blocks::<F, I, T>(isa, quarters, (sweep, &rows), b, &columns);
        let last = blocks::<F, I, T>(isa, quarters, (sweep, &rows), next, &columns);
        let [d, dmin] = quarters.floats([first.heads, last.heads]);
        let d = isa.g_mul(d, isa.g_splat(F::FACTOR));
        for t in 0..T {
            let Columns { scales, sums, .. } = columns[t];
            let min = quarters.offsets([first.mins, last.mins], [&sums[b], &sums[next]]);
            let sum = quarters.spans([first.sums[t], last.sums[t]]);
            let value = isa.g_mul(d, isa.g_from_n(sum));
            let value = isa.g_fnma(dmin, isa.g_from_n(min), value);
            let scales = quarters.of_spans([scales[b], scales[next]]);
            total[t] = isa.g_fma(scales, value, total[t]);
            if next > b {
                total[t] = isa.g_fma(quarters.last(scales), quarters.last(value), total[t]);
            }
        }
    }
    for t in 0..T {
        let mut lanes = [0.0; 8 * MAX_ROWS];
        isa.g_store(total[t], &mut lanes);
        for r in 0..ROWS {
            out[t][r] = lanes[r] + lanes[ROWS + r];
        }
    }
}
