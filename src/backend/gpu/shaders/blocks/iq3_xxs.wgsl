
// IQ3_XXS: d (scale + ½) / 2 · ±magnitude. d f16; 64 indices of 8 bits; for 32 elements four times 7 signs and a 4-bit
// scale.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 98u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let index = bytes_of(u32_at(block + 2u + 16u * slice + 4u * k));
    let word = u32_at(block + 66u + 8u * slice + 4u * (k >> 1u));
    let stored = word >> (14u * (k & 1u));
    let q = signed_bytes(points4(index), even_signs(stored, stored >> 7u));
    return Lanes16(q, f16_at(block) * (0.5 + f32(word >> 28u)) * 0.5, 0.0);
}
