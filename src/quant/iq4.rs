//! IQ4_NL and IQ4_XS: 16 unevenly spaced values, denser around zero.
//!
//! IQ4_NL, 32 elements in 18 bytes; the low nibble of byte `j` is element `j`, the high one element `j` + 16.
//! Element = d × [`VALUES`]:
//!
//! ```text
//! 0   2              18
//! | d | qs            |
//! ```
//!
//! IQ4_XS, 256 elements in 136 bytes: eight sub-blocks of 32 with `qs` as above and a scale of 6 bits, 4 of them
//! in `scales_l` (low nibble first), 2 in the 16-bit word `scales_h`. Element = d × (scale - 32) × [`VALUES`]:
//!
//! ```text
//! 0   2          4          8                136
//! | d | scales_h | scales_l | qs: 8 × 16      |
//! ```

use super::batch::{BATCH, Batches, square_sums};
use super::float::{read_half, write_half};
use super::{Block, Rows};
use crate::gguf::TensorType;
use crate::simd::lanes::{Lanes, MAX_WIDTH, nearest};

/// What the 16 codes stand for.
const VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// From where on a value is nearer to code `i` than to the one before: the midpoint, which itself belongs to `i`.
///
/// The reference compares two differences of floats instead; those around a midpoint are exact, so it agrees.
const BOUNDS: [f32; 16] = {
    let mut bounds = [f32::NEG_INFINITY; 16];
    let mut i = 1;
    while i < 16 {
        bounds[i] = (VALUES[i - 1] + VALUES[i]) / 2.0;
        i += 1;
    }
    bounds
};

const SUB: usize = 32;
const SUPER: usize = 256;
const NL_BYTES: usize = 18;
const XS_BYTES: usize = 136;
/// Candidate scales put -127 ± this at the value of greatest magnitude.
const REACH: i32 = 7;

/// Sub-blocks, one a lane.
struct Slab<L: Lanes> {
    x: [L::F; SUB],
    importance: Option<[L::F; SUB]>,
}

impl<L: Lanes> Slab<L> {
    /// The sub-blocks that start `values`, the first of which is element number `first` of the rows.
    #[inline(always)]
    fn load(lanes: L, rows: &Rows<'_>, values: &[f32], first: usize) -> Self {
        let mut x = [lanes.splat(0.0); SUB];
        lanes.columns(values, SUB, &mut x);
        let importance = rows.weights.map(|weights| {
            let mut own = [0.0; MAX_WIDTH * SUB];
            for (lane, own) in own.chunks_exact_mut(SUB).enumerate().take(L::WIDTH) {
                let column = (first + lane * SUB) % rows.columns;
                own.copy_from_slice(&weights[column..column + SUB]);
            }
            let mut importance = [lanes.splat(0.0); SUB];
            lanes.columns(&own, SUB, &mut importance);
            importance
        });
        Self { x, importance }
    }

    /// The best scale of each sub-block; 0 for one of (almost) zeros. `mean` goes into the weights.
    #[inline(always)]
    fn fit(&self, lanes: L, mean: L::F) -> L::F {
        let zero = lanes.splat(0.0);
        let mut weight = self.x;
        for (i, weight) in weight.iter_mut().enumerate() {
            let square = lanes.mul(*weight, *weight);
            *weight = match &self.importance {
                Some(importance) => lanes.mul(importance[i], lanes.sqrt(lanes.add(mean, square))),
                None => square,
            };
        }
        let (mut most, mut peak) = (zero, zero);
        for &x in &self.x {
            let larger = lanes.lt(most, lanes.abs(x));
            most = lanes.select(larger, lanes.abs(x), most);
            peak = lanes.select(larger, x, peak);
        }
        let empty = lanes.lt(most, lanes.splat(1e-15));

        let first = lanes.div(lanes.sub(lanes.splat(-0.0), peak), lanes.splat(VALUES[0]));
        let (xq, qq) = self.correlate(lanes, &weight, lanes.div(lanes.splat(1.0), first));
        let mut scale = lanes.select(lanes.gt(qq, zero), lanes.div(xq, qq), zero);
        let mut best = lanes.mul(scale, xq);
        for step in -REACH..=REACH {
            let inverse = lanes.div(lanes.splat(step as f32 + VALUES[0]), peak);
            let (xq, qq) = self.correlate(lanes, &weight, inverse);
            let better = lanes.and(lanes.gt(qq, zero), lanes.gt(lanes.mul(xq, xq), lanes.mul(best, qq)));
            scale = lanes.select(better, lanes.div(xq, qq), scale);
            best = lanes.select(better, lanes.mul(scale, xq), best);
        }
        lanes.select(empty, zero, scale)
    }

    /// Σ weight · q · x and Σ weight · q² for the values q nearest to `x` × `inverse`.
    #[inline(always)]
    fn correlate(&self, lanes: L, weight: &[L::F; SUB], inverse: L::F) -> (L::F, L::F) {
        let (mut xq, mut qq) = (lanes.splat(0.0), lanes.splat(0.0));
        for (&x, &w) in self.x.iter().zip(weight) {
            let q = lanes.lookup16(&VALUES, code(lanes, lanes.mul(inverse, x)));
            let wq = lanes.mul(w, q);
            xq = lanes.add(xq, lanes.mul(wq, x));
            qq = lanes.add(qq, lanes.mul(wq, q));
        }
        (xq, qq)
    }

    /// Packed codes of `x` × `inverse`: 16 bytes of each lane.
    #[inline(always)]
    fn pack(&self, lanes: L, inverse: L::F) -> [[u8; SUB / 2]; MAX_WIDTH] {
        let mut turned = [[0; MAX_WIDTH]; SUB / 2];
        let (low, high) = self.x.split_at(SUB / 2);
        for ((&low, &high), bytes) in low.iter().zip(high).zip(&mut turned) {
            let low = code(lanes, lanes.mul(inverse, low));
            let high = code(lanes, lanes.mul(inverse, high));
            lanes.store_bytes(lanes.xor_i(low, lanes.shl(high, 4)), bytes);
        }
        std::array::from_fn(|lane| std::array::from_fn(|j| turned[j][lane]))
    }
}

/// The code whose value is nearest to `v`; the higher one of two equally near, and for NaN the last.
#[inline(always)]
fn code<L: Lanes>(lanes: L, v: L::F) -> L::I {
    let mut code = lanes.splat_i(0);
    for bit in [8, 4, 2, 1] {
        let upper = lanes.xor_i(code, lanes.splat_i(bit));
        let below = lanes.lt(v, lanes.lookup16(&BOUNDS, upper));
        code = lanes.select_i(below, code, upper);
    }
    code
}

/// 1 / `v`, or 0 for 0.
#[inline(always)]
fn inverse_or_zero(v: f32) -> f32 {
    if v != 0.0 { 1.0 / v } else { 0.0 }
}

/// 4.5 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ4_NL;

impl Block for IQ4_NL {
    const KIND: TensorType = TensorType::IQ4_NL;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let mut batches = Batches::new(rows);
        let mut blocks = dst.chunks_exact_mut(NL_BYTES);
        while let Some(batch) = batches.next() {
            for start in (0..batch.count).step_by(L::WIDTH * SUB) {
                let slab = Slab::load(lanes, &rows, &batch.values[start..], batch.first + start);
                let mut square_sum = lanes.splat(0.0);
                for &x in &slab.x {
                    square_sum = lanes.add(square_sum, lanes.mul(x, x));
                }
                let scale = slab.fit(lanes, lanes.mul(square_sum, lanes.splat(2.0 / SUB as f32)));
                let mut scales = [0.0; MAX_WIDTH];
                lanes.store(scale, &mut scales);
                let packed = slab.pack(lanes, lanes.load(&scales.map(inverse_or_zero)));
                for ((packed, scale), block) in packed[..L::WIDTH].iter().zip(scales).zip(&mut blocks) {
                    write_half(block, 0, scale);
                    block[2..].copy_from_slice(packed);
                }
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(NL_BYTES).zip(dst.chunks_exact_mut(SUB)) {
            unpack(&block[2..], read_half(block, 0), out);
        }
    }
}

#[inline(always)]
fn unpack(qs: &[u8], scale: f32, out: &mut [f32]) {
    let (low, high) = out.split_at_mut(SUB / 2);
    for ((byte, low), high) in qs.iter().zip(low).zip(high) {
        *low = scale * VALUES[usize::from(byte & 15)];
        *high = scale * VALUES[usize::from(byte >> 4)];
    }
}

/// 4.25 bits an element.
#[allow(non_camel_case_types)]
pub struct IQ4_XS;

impl Block for IQ4_XS {
    const KIND: TensorType = TensorType::IQ4_XS;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        // At least a super-block at a time: its codes depend on the scales of all its sub-blocks.
        let step = SUPER.max(L::WIDTH * SUB);
        let mut batches = Batches::new(rows);
        let mut blocks = dst.chunks_mut(XS_BYTES * step / SUPER);
        let mut sums = [0.0; BATCH / SUPER];
        while let Some(batch) = batches.next() {
            square_sums(lanes, batch.values, SUPER, &mut sums);
            for (start, blocks) in (0..batch.count).step_by(step).zip(&mut blocks) {
                let part = |s: usize| {
                    let at = start + s * SUB;
                    (at, Slab::load(lanes, &rows, &batch.values[at..], batch.first + at))
                };
                let mut scales = [0.0; MAX_WIDTH];
                for s in (0..step / SUB).step_by(L::WIDTH) {
                    let (at, slab) = part(s);
                    let mut means = [0.0; MAX_WIDTH];
                    for (lane, mean) in means[..L::WIDTH].iter_mut().enumerate() {
                        *mean = sums[(at + lane * SUB) / SUPER] * (2.0 / SUPER as f32);
                    }
                    lanes.store(slab.fit(lanes, lanes.load(&means)), &mut scales[s..]);
                }
                let mut inverses = [0.0; MAX_WIDTH];
                let parts = scales.chunks_exact(8).zip(inverses.chunks_exact_mut(8));
                for ((scales, inverses), block) in parts.zip(blocks.chunks_exact_mut(XS_BYTES)) {
                    write_scales(scales, inverses, block);
                }
                for s in (0..step / SUB).step_by(L::WIDTH) {
                    let packed = part(s).1.pack(lanes, lanes.load(&inverses[s..]));
                    for (s, packed) in (s..).zip(&packed[..L::WIDTH]) {
                        if let Some(block) = blocks.chunks_exact_mut(XS_BYTES).nth(s / 8) {
                            block[8 + s % 8 * 16..][..16].copy_from_slice(packed);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(XS_BYTES).zip(dst.chunks_exact_mut(SUPER)) {
            let d = read_half(block, 0);
            let high = u16::from_le_bytes([block[2], block[3]]);
            for (s, out) in out.chunks_exact_mut(SUB).enumerate() {
                let low = (block[4 + s / 2] >> (4 * (s % 2))) & 15;
                let scale = i32::from(low) | (i32::from((high >> (2 * s)) & 3) << 4);
                unpack(&block[8 + 16 * s..], d * (scale - 32) as f32, out);
            }
        }
    }
}

/// Writes all of a super-block but its codes; `inverses` is what elements are to be multiplied with for them.
#[inline(always)]
fn write_scales(scales: &[f32], inverses: &mut [f32], block: &mut [u8]) {
    let (mut most, mut peak) = (0.0, 0.0f32);
    for &scale in scales {
        if scale.abs() > most {
            (most, peak) = (scale.abs(), scale);
        }
    }
    let d = -peak / 32.0;
    let inverse = inverse_or_zero(d);
    write_half(block, 0, d);
    block[4..8].fill(0);
    let mut high = 0u16;
    for (s, (&scale, element_inverse)) in scales.iter().zip(inverses).enumerate() {
        let level = nearest(inverse * scale).clamp(-32, 31);
        *element_inverse = inverse_or_zero(d * level as f32);
        let bits = (level + 32) as u8;
        block[4 + s / 2] |= (bits & 15) << (4 * (s % 2));
        high |= u16::from(bits >> 4) << (2 * s);
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
}
