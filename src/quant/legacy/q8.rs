//! Q8_0: 8.5 bits a weight.
//!
//! ```text
//! byte 0      2             34
//!      d f16  qs: 32 × i8
//! ```
//! x = d · q

use super::{BLOCKS, SIZE, inverse_or_zero};
use crate::gguf::TensorType;
use crate::quant::batch::Batches;
use crate::quant::float::{read_half, write_half};
use crate::quant::{Block, Rows};
use crate::simd::lanes::Lanes;

#[allow(non_camel_case_types)]
pub struct Q8_0;

const BYTES: usize = 34;

impl Block for Q8_0 {
    const KIND: TensorType = TensorType::Q8_0;

    /// An imatrix changes nothing here.
    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        let mut scale = [0.0; BLOCKS];
        let mut inverse = [0.0; BLOCKS];
        let mut batches = Batches::new(rows);
        while let Some(batch) = batches.next() {
            for b in (0..batch.count / SIZE).step_by(L::WIDTH) {
                let mut x = [lanes.splat(0.0); SIZE];
                lanes.columns(&batch.values[b * SIZE..], SIZE, &mut x);
                let mut largest = lanes.splat(0.0);
                for x in x {
                    largest = lanes.max(largest, lanes.abs(x));
                }
                let d = lanes.div(largest, lanes.splat(127.0));
                lanes.store(d, &mut scale[b..]);
                lanes.store(inverse_or_zero(lanes, d), &mut inverse[b..]);
            }
            let blocks = dst[batch.first / SIZE * BYTES..].chunks_exact_mut(BYTES);
            for (b, block) in blocks.take(batch.count / SIZE).enumerate() {
                write_half(block, 0, scale[b]);
                round_scaled(lanes, &batch.values[b * SIZE..][..SIZE], inverse[b], &mut block[2..]);
            }
        }
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        for (block, out) in src.chunks_exact(BYTES).zip(dst.chunks_exact_mut(SIZE)) {
            let d = read_half(block, 0);
            for (v, &q) in out.iter_mut().zip(&block[2..]) {
                *v = f32::from(q as i8) * d;
            }
        }
    }
}

/// x · inverse, rounded to the nearest integer, halves away from zero.
#[inline(always)]
fn round_scaled<L: Lanes>(lanes: L, x: &[f32], inverse: f32, out: &mut [u8]) {
    let inverse = lanes.splat(inverse);
    // The float below ½: adding ½ itself would round 0.49999997 up.
    let (up, down) = (lanes.splat(0.499_999_97), lanes.splat(-0.499_999_97));
    for (x, out) in x.chunks_exact(L::WIDTH).zip(out.chunks_exact_mut(L::WIDTH)) {
        let scaled = lanes.mul(lanes.load(x), inverse);
        let toward = lanes.select(lanes.lt(scaled, lanes.splat(0.0)), down, up);
        lanes.store_bytes(lanes.truncate(lanes.add(scaled, toward)), out);
    }
}
