
// IQ1_S: d (1 + 2 scale) (level ± ⅛). d f16; 32 lower bytes of indices; for 32 elements four times 3 upper bits of
// indices, a 3-bit scale and the shift.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 50u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let low = u16_at(block + 2u + 8u * slice + 2u * k);
    let word = u16_at(block + 34u + 4u * slice + 2u * (k >> 1u));
    let high = word >> (6u * (k & 1u));
    let first = (low & 255u) | ((high & 7u) << 8u);
    let second = (low >> 8u) | ((high & 56u) << 5u);
    let scale = f16_at(block) * f32(1u + 2u * ((word >> 12u) & 7u));
    return Lanes16(shifted_levels(first, second, vec2<u32>(word >> 15u)), scale * 0.125, 0.0);
}
