//! Stored numbers to the types that a conversion writes: F32, F16, BF16 and Q8_0.
//!
//! Bit for bit what numpy and the gguf package for Python do: round to nearest even, F16 overflow to infinity.

use crate::checkpoint::DataType;
use crate::gguf::TensorType;

/// Elements converted at once: both intermediate buffers stay in the L1 cache. A multiple of every block size used.
const STEP: usize = 2048;

/// Converts `source`, elements of type `from`, to `kind`; a whole number of blocks.
///
/// Returns `false`, with `target` undefined, if the sizes do not match or `kind` is none of the four types.
pub(super) fn convert(from: DataType, source: &[u8], kind: TensorType, target: &mut [u8]) -> bool {
    let elements = source.len() / from.bytes();
    if elements * from.bytes() != source.len() || kind.row_bytes(elements as u64) != Some(target.len() as u64)
    {
        return false;
    }
    match (from, kind) {
        (DataType::F32, TensorType::F32) | (DataType::F16, TensorType::F16) => target.copy_from_slice(source),
        (DataType::Bf16, TensorType::BF16) => bf16_to_bf16(source, target),
        (_, TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0) => {
            let target_step = STEP / kind.block_elements() * kind.block_bytes();
            let mut numbers = [0.0_f32; STEP];
            for (source, target) in source.chunks(STEP * from.bytes()).zip(target.chunks_mut(target_step)) {
                let numbers = &mut numbers[..source.len() / from.bytes()];
                decode(from, source, numbers);
                encode(kind, numbers, target);
            }
        }
        _ => return false,
    }
    true
}

fn decode(from: DataType, source: &[u8], numbers: &mut [f32]) {
    match from {
        DataType::F32 => {
            for (number, bytes) in numbers.iter_mut().zip(source.as_chunks().0) {
                *number = f32::from_le_bytes(*bytes);
            }
        }
        DataType::F16 => {
            for (number, bytes) in numbers.iter_mut().zip(source.as_chunks().0) {
                *number = half::f16::from_le_bytes(*bytes).to_f32();
            }
        }
        DataType::Bf16 => {
            for (number, bytes) in numbers.iter_mut().zip(source.as_chunks().0) {
                *number = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
    }
}

fn encode(kind: TensorType, numbers: &[f32], target: &mut [u8]) {
    match kind {
        TensorType::F32 => {
            for (bytes, number) in target.as_chunks_mut().0.iter_mut().zip(numbers) {
                *bytes = number.to_le_bytes();
            }
        }
        TensorType::F16 => to_f16(numbers, target),
        TensorType::BF16 => {
            for (bytes, number) in target.as_chunks_mut().0.iter_mut().zip(numbers) {
                *bytes = bf16(number.to_bits()).to_le_bytes();
            }
        }
        _ => {
            for (block, numbers) in target.as_chunks_mut().0.iter_mut().zip(numbers.as_chunks().0) {
                q8_0(numbers, block);
            }
        }
    }
}

/// The bits of a f32 as BF16; a NaN becomes a quiet one.
fn bf16(bits: u32) -> u16 {
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    let quiet = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }
}

/// Copies; the only numbers that change are NaNs, which become quiet ones.
fn bf16_to_bf16(source: &[u8], target: &mut [u8]) {
    for (out, bytes) in target.as_chunks_mut::<2>().0.iter_mut().zip(source.as_chunks::<2>().0) {
        let bits = u16::from_le_bytes(*bytes);
        *out = (bits | u16::from(bits & 0x7fff > 0x7f80) << 6).to_le_bytes();
    }
}

fn to_f16(numbers: &[f32], target: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") && std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the features that the function needs were just detected.
        return unsafe { to_f16_f16c(numbers, target) };
    }
    to_f16_plain(numbers, target);
}

fn to_f16_plain(numbers: &[f32], target: &mut [u8]) {
    for (bytes, number) in target.as_chunks_mut().0.iter_mut().zip(numbers) {
        *bytes = half::f16::from_f32(*number).to_le_bytes();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn to_f16_f16c(numbers: &[f32], target: &mut [u8]) {
    use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps};
    let (blocks, rest) = numbers.as_chunks::<8>();
    let (out, out_rest) = target.split_at_mut(blocks.len() * 16);
    for (bytes, block) in out.as_chunks_mut::<16>().0.iter_mut().zip(blocks) {
        // SAFETY: `block` is 8 floats, all of which are read; `bytes` is 16 bytes, all of which are written; neither
        // instruction asks for alignment.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(block.as_ptr()));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), halves);
        }
    }
    to_f16_plain(rest, out_rest);
}

/// A Q8_0 block: scale d as F16, then 32 numbers as int8 multiples of d (ties away from zero).
fn q8_0(numbers: &[f32; 32], block: &mut [u8; 34]) {
    // numpy's max gives NaN if any number is NaN; comparing the bits of the absolute values orders NaNs highest.
    let largest = numbers.iter().fold(0, |largest, number| largest.max(number.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (head, quants) = block.split_at_mut(2);
    head.copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    if !inverse.is_finite() || !f32::from_bits(largest).is_finite() {
        return q8_0_degenerate(numbers, inverse, quants);
    }
    for (quant, number) in quants.iter_mut().zip(numbers) {
        let scaled = number * inverse;
        let size = scaled.abs();
        // `size` is at most 127 and a bit here, so both conversions are exact.
        let whole = size as i32;
        let rounded = whole + (2.0 * (size - whole as f32)) as i32;
        *quant = (if scaled < 0.0 { -rounded } else { rounded }) as u8;
    }
}

/// A block with infinities, NaNs or only numbers so small that the inverse scale overflows: what has no place in
/// int8 becomes 0, as the conversion instruction that numpy uses makes it.
fn q8_0_degenerate(numbers: &[f32; 32], inverse: f32, quants: &mut [u8]) {
    for (quant, number) in quants.iter_mut().zip(numbers) {
        let scaled = (number * inverse).round();
        *quant = if scaled.is_finite() { scaled as i32 as u8 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// F32 bit patterns of all sizes; the generator of scripts/cast_vectors.py.
    fn wild() -> Vec<u32> {
        let mut x = 1_u64;
        let numbers = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 32) as u32
        });
        numbers.filter(|bits| bits >> 23 & 0xff != 0xff).take(1 << 14).collect()
    }

    fn scaled() -> Vec<f32> {
        wild().iter().map(|bits| ((bits % 2001) as f32 - 1000.0) / 64.0).collect()
    }

    fn digest(from: DataType, source: &[u8], kind: TensorType) -> String {
        let bytes = kind.row_bytes((source.len() / from.bytes()) as u64).unwrap();
        let mut target = vec![0xa5; bytes as usize];
        assert!(convert(from, source, kind, &mut target));
        Sha256::digest(&target)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Expected figures: scripts/cast_vectors.py with gguf 0.19 and numpy 2.
    #[test]
    fn conversions_are_those_of_the_python_package() {
        let kinds = [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0];
        let wild: Vec<u8> = wild().iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let f32s: Vec<u8> = scaled().iter().flat_map(|number| number.to_le_bytes()).collect();
        let f16s: Vec<u8> = scaled().iter().flat_map(|n| half::f16::from_f32(*n).to_le_bytes()).collect();
        let bf16s: Vec<u8> = f32s.chunks(4).flat_map(|bytes| [bytes[2], bytes[3]]).collect();
        let cases = [
            (
                DataType::F32,
                &wild,
                ["46ce6a97270caa4e", "751f4bc6e3da9af2", "698bc3c990edb975", "b7b7a79d98f73b82"],
            ),
            (
                DataType::F32,
                &f32s,
                ["411f8987945f75d4", "a8817b9f24f7aa07", "503683ddd8db2dd3", "c0c868058b801433"],
            ),
            (
                DataType::F16,
                &f16s,
                ["411f8987945f75d4", "a8817b9f24f7aa07", "503683ddd8db2dd3", "c0c868058b801433"],
            ),
            (
                DataType::Bf16,
                &bf16s,
                ["033d525e4a7643bd", "5ee20061ad008227", "2a68896c8b6c9b22", "63ff412a4e27d9e8"],
            ),
        ];
        for (from, source, expected) in cases {
            for (kind, expected) in kinds.into_iter().zip(expected) {
                assert_eq!(digest(from, source, kind), expected, "{from:?} to {kind}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_f16_becomes_infinite() {
        let numbers = [1e5_f32, -7e4, 65519.9, 65520.0, 1e-8, -0.0, f32::INFINITY, f32::NAN];
        let expected = [0x7c00_u16, 0xfc00, 0x7bff, 0x7c00, 0, 0x8000, 0x7c00, 0x7e00];
        let mut plain = [0; 16];
        to_f16_plain(&numbers, &mut plain);
        let mut detected = [0; 16];
        to_f16(&numbers, &mut detected);
        assert_eq!(plain, detected);
        assert_eq!(plain.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_not_a_number_stays_one_in_every_type() {
        let signalling = 0x7f81_u16.to_le_bytes();
        let mut quiet = [0; 2];
        assert!(convert(DataType::Bf16, &signalling, TensorType::BF16, &mut quiet));
        assert_eq!(u16::from_le_bytes(quiet), 0x7fc1);
        let mut block = [0; 34];
        let mut numbers = [1.0_f32; 32];
        numbers[3] = f32::NAN;
        q8_0(&numbers, &mut block);
        assert!(half::f16::from_le_bytes([block[0], block[1]]).is_nan());
    }

    #[test]
    fn sizes_that_do_not_match_are_refused() {
        let mut target = [0; 34];
        assert!(convert(DataType::F32, &[0; 128], TensorType::Q8_0, &mut target));
        assert!(!convert(DataType::F32, &[0; 124], TensorType::Q8_0, &mut target));
        assert!(!convert(DataType::F16, &[0; 3], TensorType::F16, &mut target[..2]));
        assert!(!convert(DataType::F16, &[0; 4], TensorType::F16, &mut target[..2]));
        assert!(!convert(DataType::F32, &[0; 128], TensorType::Q4_0, &mut target[..18]));
    }
}
