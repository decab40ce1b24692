//! How devices find the largest elements of rows, whichever way they are reached: workgroups sort a chunk of a row each
//! and leave its best entries, pass after pass, until a row has one chunk.
//!
//! An entry is a key, by which larger elements come first, and the element's number.

use super::Largest;

/// Entries of a chunk; twice the threads of a workgroup.
const CHUNK: usize = 512;

/// Entries that a chunk may leave: half of it, so that every pass makes rows shorter.
const MOST: usize = CHUNK / 2;

/// Whether `count` of `columns` are few enough.
pub(super) fn takes(columns: usize, count: usize) -> bool {
    (1..=MOST).contains(&count) && count < columns
}

/// The passes over rows of `columns`: entries of a row before each, and its chunks.
pub(super) fn passes(columns: usize, count: usize) -> Vec<(usize, usize)> {
    let mut passes = Vec::new();
    let mut left = columns;
    loop {
        let chunks = left.div_ceil(CHUNK);
        passes.push((left, chunks));
        if chunks == 1 {
            return passes;
        }
        left = chunks * count;
    }
}

/// The rows, from what the last pass leaves: `[rows, count]` entries of two words.
pub(super) fn decode(bytes: &[u8], count: usize) -> Vec<Largest> {
    let entries = bytes.as_chunks::<8>().0;
    let entry = |bytes: &[u8; 8]| {
        let bits = u64::from_le_bytes(*bytes);
        ((bits >> 32) as u32, element(bits as u32))
    };
    entries.chunks_exact(count).map(|row| row.iter().map(entry).collect()).collect()
}

/// The element that `key` stands for: with the upper bit the positive ones, without it the negative ones upside down.
fn element(key: u32) -> f32 {
    match key {
        u32::MAX => f32::NAN,
        _ if key >> 31 == 1 => f32::from_bits(key & 0x7fff_ffff),
        _ => f32::from_bits(!key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_end_with_one_chunk() {
        assert_eq!(passes(100, 1), [(100, 1)]);
        assert_eq!(passes(32_064, 1), [(32_064, 63), (63, 1)]);
        assert_eq!(passes(200_064, 40), [(200_064, 391), (15_640, 31), (1_240, 3), (120, 1)]);
        assert_eq!(passes(1_025, MOST), [(1_025, 3), (768, 2), (512, 1)]);
        assert!(!takes(10, 0) && !takes(10, 10) && takes(10, 9) && !takes(100_000, MOST + 1));
    }

    #[test]
    fn keys_stand_for_elements() {
        let bits = |key: u32| element(key).to_bits();
        assert_eq!(bits(0x8000_0000 | 1.5f32.to_bits()), 1.5f32.to_bits());
        assert_eq!(bits(!(-2.0f32).to_bits()), (-2.0f32).to_bits());
        assert!(element(u32::MAX).is_nan());
    }
}
