
// IQ1_M: d (1 + 2 scale) (level ± ⅛). 32 lower bytes of indices; for 8 elements a nibble of 3 upper bits of the index and
// the shift; four words of four scales of 3 bits and a quarter of d.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 56u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let low = u16_at(block + 8u * slice + 2u * k);
    let high = u8_at(block + 32u + 4u * slice + k);
    let first = (low & 255u) | ((high & 7u) << 8u);
    let second = (low >> 8u) | ((high & 112u) << 4u);
    let words = vec2<u32>(word_at(block + 48u), word_at(block + 52u));
    let quarters = ((words >> vec2<u32>(12u)) & vec2<u32>(15u)) | ((words >> vec2<u32>(24u)) & vec2<u32>(0xf0u));
    let d = unpack2x16float(quarters.x | (quarters.y << 8u)).x;
    let word = select(words.x, words.y, slice >= 2u) >> (16u * (slice & 1u));
    let scale = d * f32(1u + 2u * ((word >> (3u * k)) & 7u));
    let down = vec2<u32>(high >> 3u, high >> 7u) & vec2<u32>(1u);
    return Lanes16(shifted_levels(first, second, down), scale * 0.125, 0.0);
}
