//! Blocks of many rows turned into columns while they are packed: half the work, or less, of unpacking each row and turning what
//! comes out, and scales and mins of all rows are then had at once.

use super::{Lanes, Product, halves, store_scales};
use crate::kernel::prefetch_ahead;
use crate::quant::unpack::{Chunks, Unpack};
use crate::simd::{Isa, MAX_LANES};

/// The most words that a block's quants and groups take.
const MOST_WORDS: usize = 52;

/// Room for the words of a block of `LANES` rows: `[words, LANES]`, still packed.
#[repr(C, align(64))]
pub(super) struct Turned(pub [i32; MOST_WORDS * MAX_LANES]);

impl Default for Turned {
    fn default() -> Self {
        Self([0; MOST_WORDS * MAX_LANES])
    }
}

/// Whether panels of `F` are unpacked this way for `I`.
pub(super) const fn is_turned<F: Unpack, I: Isa>() -> bool {
    F::BYTEWISE.is_some() && F::BLOCK == 256 && I::WORDS == 1
}

/// Words of a turned block: `[block_words / LANES, LANES]`.
pub(super) const fn block_words<F: Unpack, I: Isa>() -> usize {
    match F::BYTEWISE {
        Some(bytes) => bytes / 4 * I::LANES,
        None => 0,
    }
}

/// Four bytes of each 32 of a block, of all rows.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    /// A turned block.
    pub words: &'a [i32],
    /// Which four: 0 to 7.
    pub part: usize,
}

impl<I: Isa> Chunks<I> for Columns<'_> {
    #[inline(always)]
    fn chunk(self, isa: I, at: usize) -> I::B {
        isa.b_from_w(isa.w_load(&self.words[(at / 4 + self.part) * I::LANES..]))
    }
    #[inline(always)]
    fn nibbles(self, isa: I, at: usize) -> I::B {
        let packed = isa.b_from_w(isa.w_load(&self.words[(at / 4 + self.part % 4) * I::LANES..]));
        if self.part < 4 { isa.b_and(packed, isa.b_splat(15)) } else { isa.b_shr::<4>(packed) }
    }
}

/// Asks for the block two after number `block` of `rows`.
#[inline(always)]
pub(super) fn prefetch<F: Unpack, I: Isa>(isa: I, rows: &[&[u8]; MAX_LANES], block: usize) {
    let at = block * F::BYTES;
    for r in 0..I::LANES {
        prefetch_ahead(isa, &rows[r][at..at + F::BYTES], 2 * F::BYTES);
    }
}

/// Turns block number `block` of `rows` into `words`, and these into block `to` of the panel, whose row `first` is the first of them; all of it but
/// the lanes where these stay packed.
#[inline(always)]
pub(super) fn unpack<F: Unpack, I: Isa, P: Product>(
    isa: I,
    rows: &[&[u8]; MAX_LANES],
    words: &mut [i32],
    block: usize,
    to: usize,
    first: usize,
    panel: &mut Lanes,
) {
    turn::<F, I>(isa, rows, block, words);
    let mut sums = [isa.w_splat(0); 8];
    if !P::PACKED {
        sums = lanes::<F, I, P>(isa, words, to, first, panel);
    }
    groups::<F, I, P>(isa, words, to, first, panel);
    if P::RAISED {
        correct(isa, &sums, to, first, panel);
    }
    let [d, dmin] = F::wide_floats(isa, rows, block * F::BYTES, words);
    let at = to * I::LANES * I::TILE.0 + first;
    isa.f_store(d, &mut panel.d[at..]);
    if F::MINS {
        isa.f_store(dmin, &mut panel.dmin[at..]);
    }
}

/// Turns block number `block` of `rows` into `words`.
#[inline(always)]
fn turn<F: Unpack, I: Isa>(isa: I, rows: &[&[u8]; MAX_LANES], block: usize, words: &mut [i32]) {
    let (bytes, at, each) = (block_words::<F, I>() / I::LANES * 4, block * F::BYTES, 4 * I::LANES);
    let mut byte = 0;
    while byte < bytes {
        // The last part may overlap the one before, so that no row is read beyond its block.
        if bytes - byte <= 16 {
            let from = bytes - 16;
            isa.w_transpose_four(rows, at + from, &mut words[from / 4 * I::LANES..], I::LANES);
            break;
        }
        let from = byte.min(bytes - each);
        isa.w_transpose_rows(rows, at + from, &mut words[from / 4 * I::LANES..], I::LANES);
        byte += each;
    }
}

/// Unpacks the turned `words` of block number `block` to the lanes of the panel, whose row `first` is the first of them. For raised tokens these become
/// bytes with signs, and their sums over each 32 columns are given.
#[inline(always)]
fn lanes<F: Unpack, I: Isa, P: Product>(
    isa: I,
    words: &[i32],
    block: usize,
    first: usize,
    panel: &mut Lanes,
) -> [I::W; 8] {
    let (wide, quads) = (I::LANES * I::TILE.0, block * F::BLOCK / 4);
    let to = &mut panel.lanes[quads * wide + first..(quads + 63) * wide + first + I::LANES];
    let (less, one) = (isa.b_splat((F::OFFSET as u8).wrapping_neg()), isa.w_splat(0x0101_0101));
    let mut sums = [isa.w_splat(0); 8];
    for part in 0..8 {
        let lanes = F::lanes_of(isa, Columns { words, part });
        let lanes = lanes.as_ref();
        for j in 0..8 {
            let mut lanes = isa.w_from_b(lanes[j]);
            if P::RAISED {
                lanes = isa.w_from_b(isa.b_add(isa.b_from_w(lanes), less));
                sums[j] = isa.w_dot4::<true>(sums[j], one, lanes);
            }
            isa.w_store(lanes, &mut to[(8 * j + part) * wide..]);
        }
    }
    sums
}

/// What scaled sums of block number `block` have too much because tokens are raised by 128, from the `sums` of each group's lanes.
#[inline(always)]
fn correct<I: Isa>(isa: I, sums: &[I::W; 8], block: usize, first: usize, panel: &mut Lanes) {
    let wide = I::LANES * I::TILE.0;
    for span in 0..2 {
        let mut all = isa.w_splat(0);
        for pair in 2 * span..2 * span + 2 {
            let scales = isa.w_load(&panel.scales[(4 * block + pair) * wide + first..]);
            all = isa.w_dot2_i16(all, scales, halves(isa, [sums[2 * pair], sums[2 * pair + 1]]));
        }
        let less = isa.w_mul(all, isa.w_splat(-128));
        isa.w_store(less, &mut panel.correction[(2 * block + span) * wide + first..]);
    }
}

/// Scales and mins of the rows.
#[inline(always)]
fn groups<F: Unpack, I: Isa, P: Product>(
    isa: I,
    words: &[i32],
    block: usize,
    first: usize,
    panel: &mut Lanes,
) {
    const { assert!(!is_turned::<F, I>() || !F::MINS || F::GROUP == 32) };
    let (wide, count) = (I::LANES * I::TILE.0, F::BLOCK / F::GROUP);
    let groups = F::groups_of(isa, Columns { words, part: 0 });
    let zero = isa.w_splat(0);
    for g in (0..count).step_by(2) {
        // A dot product with one byte set is the other operand's byte there.
        let (byte, next) = (isa.w_splat(1 << (8 * (g % 4))), isa.w_splat(1 << (8 * (g % 4 + 1))));
        if F::SCALED {
            let scales = isa.w_from_b(groups.scales[g / 4]);
            let both = [isa.w_dot4::<false>(zero, byte, scales), isa.w_dot4::<false>(zero, next, scales)];
            store_scales::<F, I, P>(isa, both, (block * count + g) / 2, first, panel);
        }
        if F::MINS {
            let mins = isa.w_from_b(groups.mins[g / 4]);
            let (even, odd) = (isa.w_dot4::<false>(zero, byte, mins), isa.w_dot4::<false>(zero, next, mins));
            isa.w_store(halves(isa, [even, odd]), &mut panel.mins[(block * count + g) / 2 * wide + first..]);
        }
    }
}
