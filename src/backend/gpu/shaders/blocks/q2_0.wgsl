// Q2_0: d (q − 1). d f16; 64 pairs of bits.

const BLOCK_ELEMENTS: u32 = 64u;
const BLOCK_BYTES: u32 = 18u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let q = spread_pairs(u32_at(block + 2u + 4u * k));
    return Lanes16(bytes_minus(q, 1u), f16_at(block), 0.0);
}
