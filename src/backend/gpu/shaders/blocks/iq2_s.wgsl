
// IQ2_S: d (scale + ½) / 4 · ±magnitude. d f16; 32 lower bytes of indices; 32 bytes of signs; 32 upper pairs of bits of
// indices; 16 nibbles of scales.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 82u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let low = u16_at(block + 2u + 8u * slice + 2u * k);
    let high = nibble_at(block + 66u + 2u * slice, k);
    let magnitudes = points8((low & 255u) | ((high & 3u) << 8u), (low >> 8u) | ((high >> 2u) << 8u));
    let q = signed_bytes(magnitudes, u16_at(block + 34u + 8u * slice + 2u * k));
    return Lanes16(q, f16_at(block) * (0.5 + f32(nibble_at(block + 74u + 2u * slice, k))) * 0.25, 0.0);
}
