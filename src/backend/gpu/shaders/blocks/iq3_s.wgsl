
// IQ3_S: d (1 + 2 scale) · ±magnitude. d f16; 64 lower bytes of indices; 64 ninth bits; 32 bytes of signs; 8 nibbles of
// scales.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 110u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let ninths = vec4<u32>(nibble_at(block + 66u + 2u * slice, k)) << vec4<u32>(8u, 7u, 6u, 5u);
    let index = bytes_of(u32_at(block + 2u + 16u * slice + 4u * k)) | (ninths & vec4<u32>(256u));
    let q = signed_bytes(points4(index), u16_at(block + 74u + 8u * slice + 2u * k));
    return Lanes16(q, f16_at(block) * f32(1u + 2u * nibble_at(block + 106u + slice, k >> 1u)), 0.0);
}
