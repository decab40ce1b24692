
// IQ2_XXS: d (scale + ½) / 4 · ±magnitude. d f16; for 32 elements four indices of 8 bits, then four times 7 signs and a
// 4-bit scale.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 66u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let side = k & 1u;
    let pair = block + 2u + 16u * slice + 8u * (k >> 1u);
    let index = u16_at(pair + 2u * side);
    let word = u32_at(pair + 4u);
    let stored = word >> (14u * side);
    let q = signed_bytes(points8(index & 255u, index >> 8u), even_signs(stored, stored >> 7u));
    return Lanes16(q, f16_at(block) * (0.5 + f32(word >> 28u)) * 0.25, 0.0);
}
