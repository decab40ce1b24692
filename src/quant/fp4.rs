//! MXFP4 and NVFP4: 4-bit floats (E2M1) with a shared power-of-two or 8-bit-float scale.
//!
//! MXFP4, 32 elements in 17 bytes (the OCP Microscaling format):
//!
//! ```text
//! 0      1                         17
//! | e    | qs: element j low nibble, element j + 16 high nibble
//! ```
//!
//! `e` is an exponent: the scale is 2^(e - 127); element = scale × E2M1.
//!
//! NVFP4, 64 elements in 36 bytes: four groups of 16 elements, each with a scale of its own:
//!
//! ```text
//! 0      4          12         20         28         36
//! | d[4] | qs of group 0 .. 3: element j low nibble, element j + 8 high nibble
//! ```
//!
//! `d` is an unsigned float with 4 exponent bits (bias 7) and 3 mantissa bits.

use super::{Block, Rows};
use crate::gguf::TensorType;
use crate::simd::lanes::Lanes;

/// E2M1 with a power-of-two scale.
pub struct MXFP4;

impl Block for MXFP4 {
    const KIND: TensorType = TensorType::MXFP4;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode_mxfp4(lanes, rows.values, dst);
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        decode_mxfp4(src, dst);
    }
}

/// E2M1 with 8-bit float scales.
pub struct NVFP4;

impl Block for NVFP4 {
    const KIND: TensorType = TensorType::NVFP4;

    #[inline(always)]
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]) {
        encode_nvfp4(lanes, rows.values, dst);
    }

    #[inline(always)]
    fn decode<L: Lanes>(_: L, src: &[u8], dst: &mut [f32]) {
        decode_nvfp4(src, dst);
    }
}

/// Twice the values of E2M1, so that all are whole; the scales below are halved to match.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

const MX_ELEMENTS: usize = 32;
const MX_BYTES: usize = 17;
const NV_ELEMENTS: usize = 64;
const NV_BYTES: usize = 36;
const NV_GROUP: usize = 16;

/// Half of 2^(e - 127), subnormal where it must be.
fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// The floor of glibc's `log2f` for a positive finite `v`, on every platform.
///
/// `log2f` rounds to nearest, so for `v` just below a power of two it may return that whole power; from which
/// `v` on depends on the magnitude of the result alone.
fn floor_log2(v: f32) -> i32 {
    let bits = v.to_bits();
    let (exponent, significand) = if bits >= 0x0080_0000 {
        ((bits >> 23) as i32 - 127, (bits & 0x007f_ffff) | 0x0080_0000)
    } else {
        let top = 31 - bits.max(1).leading_zeros();
        (top as i32 - 149, bits << (23 - top))
    };
    let magnitude = if exponent >= 0 { exponent } else { -exponent - 1 };
    let reach = match magnitude {
        0 => 0,
        m => (std::f64::consts::LN_2 * f64::from(1u32 << m.ilog2())) as u32,
    };
    exponent + i32::from(0x0100_0000 - significand <= reach)
}

/// The nearest E2M1 code of every element; the lower code where two are equally near.
#[inline(always)]
fn nearest_codes<L: Lanes, const N: usize>(lanes: L, x: &[f32; N], half_scale: f32) -> [u8; N] {
    let mut codes = [0; N];
    for (x, codes) in x.chunks_exact(L::WIDTH).zip(codes.chunks_exact_mut(L::WIDTH)) {
        let x = lanes.load(x);
        let mut least = lanes.abs(lanes.sub(lanes.splat(E2M1_DOUBLED[0] * half_scale), x));
        let mut nearest = lanes.splat_i(0);
        for (code, value) in (0..).zip(E2M1_DOUBLED).skip(1) {
            let error = lanes.abs(lanes.sub(lanes.splat(value * half_scale), x));
            let closer = lanes.lt(error, least);
            least = lanes.select(closer, error, least);
            nearest = lanes.select_i(closer, lanes.splat_i(code), nearest);
        }
        lanes.store_bytes(nearest, codes);
    }
    codes
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most, v| if most < v.abs() { v.abs() } else { most })
}

fn pack_halves(codes: &[u8], qs: &mut [u8]) {
    let (low, high) = codes.split_at(qs.len());
    for ((byte, low), high) in qs.iter_mut().zip(low).zip(high) {
        *byte = low | (high << 4);
    }
}

fn unpack_halves(qs: &[u8], half_scale: f32, out: &mut [f32]) {
    let (low, high) = out.split_at_mut(qs.len());
    for ((byte, low), high) in qs.iter().zip(low).zip(high) {
        *low = E2M1_DOUBLED[usize::from(byte & 15)] * half_scale;
        *high = E2M1_DOUBLED[usize::from(byte >> 4)] * half_scale;
    }
}

#[inline(always)]
fn encode_mxfp4<L: Lanes>(lanes: L, src: &[f32], dst: &mut [u8]) {
    for (x, block) in src.as_chunks::<MX_ELEMENTS>().0.iter().zip(dst.chunks_exact_mut(MX_BYTES)) {
        let most = largest(x);
        // 2 is the largest exponent of E2M1.
        let exponent = match most {
            m if m == 0.0 || m.is_infinite() => 0,
            m => (floor_log2(m) - 2 + 127) as u8,
        };
        block[0] = exponent;
        pack_halves(&nearest_codes(lanes, x, half_power(exponent)), &mut block[1..]);
    }
}

#[inline(always)]
fn decode_mxfp4(src: &[u8], dst: &mut [f32]) {
    for (block, out) in src.chunks_exact(MX_BYTES).zip(dst.chunks_exact_mut(MX_ELEMENTS)) {
        unpack_halves(&block[1..], half_power(block[0]), out);
    }
}

/// Half of what an unsigned E4M3 byte stands for; 0 for the byte 0x7f, its NaN.
fn half_e4m3(byte: u8) -> f32 {
    if byte == 0 || byte == 0x7f {
        return 0.0;
    }
    let exponent = (byte >> 3) & 15;
    let mantissa = f32::from(byte & 7);
    let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let value = match exponent {
        0 => mantissa * power(-9),
        e => (1.0 + mantissa / 8.0) * power(i32::from(e) - 7),
    };
    value * 0.5
}

/// The unsigned E4M3 byte for a scale: ties away from zero, saturating at 448, 0 for what is not positive.
fn to_e4m3(v: f32) -> u8 {
    if v.is_nan() || v <= 0.0 {
        return 0;
    }
    let v = v.min(448.0);
    let bits = v.to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return (v * 512.0 + 0.5).min(7.0) as u8;
    }
    let rounded = ((bits >> 20) & 7) + ((bits >> 19) & 1);
    // A mantissa of 8 carries into the exponent by itself; the topmost exponent is given one mantissa only.
    let byte = ((exponent as u32) << 3) + rounded;
    if byte < 0x78 { byte as u8 } else { 0x7e }
}

#[inline(always)]
fn encode_nvfp4<L: Lanes>(lanes: L, src: &[f32], dst: &mut [u8]) {
    for (x, block) in src.chunks_exact(NV_ELEMENTS).zip(dst.chunks_exact_mut(NV_BYTES)) {
        let (scales, qs) = block.split_at_mut(NV_ELEMENTS / NV_GROUP);
        let groups = x.as_chunks::<NV_GROUP>().0.iter();
        for ((x, scale), qs) in groups.zip(scales).zip(qs.chunks_exact_mut(NV_GROUP / 2)) {
            // 6 is the largest E2M1 value.
            *scale = to_e4m3(largest(x) / 6.0);
            pack_halves(&nearest_codes(lanes, x, half_e4m3(*scale)), qs);
        }
    }
}

#[inline(always)]
fn decode_nvfp4(src: &[u8], dst: &mut [f32]) {
    for (block, out) in src.chunks_exact(NV_BYTES).zip(dst.chunks_exact_mut(NV_ELEMENTS)) {
        let (scales, qs) = block.split_at(NV_ELEMENTS / NV_GROUP);
        let groups = out.chunks_exact_mut(NV_GROUP);
        for ((scale, qs), out) in scales.iter().zip(qs.chunks_exact(NV_GROUP / 2)).zip(groups) {
            unpack_halves(qs, half_e4m3(*scale), out);
        }
    }
}
