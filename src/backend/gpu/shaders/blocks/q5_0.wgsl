// Q5_0: d (q − 16). d f16; a fifth bit for each element; 16 bytes of nibbles, elements l low and l + 16 high.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 22u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let fifths = spread_ones(u16_at(block + 2u + 2u * k));
    let q = nibbles(bytes16_at(block + 6u), k) | (fifths << vec4<u32>(4u));
    return Lanes16(bytes_minus(q, 16u), f16_at(block), 0.0);
}
