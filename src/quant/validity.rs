//! Which stored bytes are no numbers: NaN or infinite elements and block scales.
//!
//! The rule is that of `ggml_validate_row_data`, which llama.cpp applies to what it reads and writes.

use crate::gguf::TensorType;

/// Where a type keeps its floating-point numbers.
enum Layout {
    /// Nothing that could be wrong.
    Any,
    /// Elements of this many bytes whose exponent is under the mask.
    F16,
    BF16,
    F32,
    F64,
    /// Half-precision scales at these offsets of each block, in bytes.
    Scales(&'static [usize]),
    /// The half-precision scale of IQ1_M, spread over the top four bits of four words.
    Spread(usize),
    /// A scale that is only an exponent, at this offset of each block.
    Exponent(usize),
}

fn layout(kind: TensorType) -> Layout {
    use TensorType as T;
    match kind {
        T::F16 => Layout::F16,
        T::BF16 => Layout::BF16,
        T::F32 => Layout::F32,
        T::F64 => Layout::F64,
        T::Q4_1 | T::Q5_1 | T::Q4_K | T::Q5_K => Layout::Scales(&[0, 2]),
        T::Q2_K => Layout::Scales(&[80, 82]),
        T::Q3_K => Layout::Scales(&[108]),
        T::Q6_K => Layout::Scales(&[208]),
        T::TQ1_0 => Layout::Scales(&[52]),
        T::TQ2_0 => Layout::Scales(&[64]),
        T::Q4_0 | T::Q5_0 | T::Q8_0 | T::Q1_0 | T::Q2_0 => Layout::Scales(&[0]),
        T::IQ1_S | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S => Layout::Scales(&[0]),
        T::IQ3_XXS | T::IQ3_S | T::IQ4_NL | T::IQ4_XS => Layout::Scales(&[0]),
        T::IQ1_M => Layout::Spread(48),
        T::MXFP4 => Layout::Exponent(0),
        T::NVFP4 | T::I8 | T::I16 | T::I32 | T::I64 => Layout::Any,
    }
}

/// The first block (or element, in types without blocks) of `bytes` that holds a NaN or an infinity.
/// A last incomplete block is not looked at.
pub fn first_invalid(kind: TensorType, bytes: &[u8]) -> Option<usize> {
    let size = kind.block_bytes();
    match layout(kind) {
        Layout::Any => None,
        Layout::F16 => first_element(bytes, |b: [u8; 2]| !finite_f16(u16::from_le_bytes(b))),
        Layout::BF16 => first_element(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Layout::F32 => first_element(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Layout::F64 => first_element(bytes, |b: [u8; 8]| !f64::from_le_bytes(b).is_finite()),
        Layout::Scales(offsets) => first_block(bytes, size, |block| {
            offsets.iter().any(|&at| word(block, at).is_none_or(|scale| !finite_f16(scale)))
        }),
        Layout::Spread(at) => first_block(bytes, size, |block| {
            let nibble = |n: usize| word(block, at + 2 * n).map_or(0xf, |word| word >> 12) << (4 * n);
            !finite_f16(nibble(0) | nibble(1) | nibble(2) | nibble(3))
        }),
        Layout::Exponent(at) => first_block(bytes, size, |block| block.get(at) == Some(&0xff)),
    }
}

fn first_element<const N: usize>(bytes: &[u8], is_invalid: impl Fn([u8; N]) -> bool) -> Option<usize> {
    // Whole groups first: without an early exit inside, the compiler makes vector code of it.
    const GROUP: usize = 512;
    let (elements, _) = bytes.as_chunks::<N>();
    let hit = elements
        .chunks(GROUP)
        .position(|group| group.iter().fold(false, |found, element| found | is_invalid(*element)))?;
    let group = elements.get(hit * GROUP..)?;
    group.iter().position(|element| is_invalid(*element)).map(|at| hit * GROUP + at)
}

fn first_block(bytes: &[u8], size: usize, is_invalid: impl Fn(&[u8]) -> bool) -> Option<usize> {
    bytes.chunks_exact(size).position(is_invalid)
}

fn word(block: &[u8], at: usize) -> Option<u16> {
    let bytes = block.get(at..at + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn finite_f16(bits: u16) -> bool {
    bits & 0x7c00 != 0x7c00
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_are_no_numbers_are_found() {
        let mut values = vec![1.5_f32; 2000];
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(first_invalid(TensorType::F32, &bytes(&values)), None);
        values[1234] = f32::NEG_INFINITY;
        values[1900] = f32::NAN;
        assert_eq!(first_invalid(TensorType::F32, &bytes(&values)), Some(1234));
        assert_eq!(first_invalid(TensorType::F16, &[0xff, 0x7b, 0x00, 0xfc]), Some(1));
        assert_eq!(first_invalid(TensorType::BF16, &[0x00, 0x7c, 0x80, 0x7f]), Some(1));
    }

    #[test]
    fn scales_that_are_no_numbers_are_found_in_every_block_type() {
        for kind in TensorType::all() {
            let size = kind.block_bytes();
            let sound = vec![0; size * 3];
            assert_eq!(first_invalid(kind, &sound), None, "{kind}");
            let mut broken = sound;
            match layout(kind) {
                Layout::Scales(offsets) => broken[2 * size + offsets[offsets.len() - 1] + 1] = 0x7c,
                Layout::Spread(at) => {
                    (broken[2 * size + at + 5], broken[2 * size + at + 7]) = (0xc0, 0x70);
                }
                Layout::Exponent(at) => broken[2 * size + at] = 0xff,
                _ => continue,
            }
            assert_eq!(first_invalid(kind, &broken), Some(2), "{kind}");
        }
    }
}
