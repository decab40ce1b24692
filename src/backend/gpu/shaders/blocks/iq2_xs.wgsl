
// IQ2_XS: d (scale + ½) / 4 · ±magnitude. d f16; for 8 elements 9 bits of index and 7 signs; 16 nibbles of scales.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 74u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let word = u32_at(block + 2u + 16u * slice + 4u * k);
    let signs = even_signs(word >> 9u, word >> 25u);
    let q = signed_bytes(points8(word & 511u, (word >> 16u) & 511u), signs);
    return Lanes16(q, f16_at(block) * (0.5 + f32(nibble_at(block + 66u + 2u * slice, k))) * 0.25, 0.0);
}
