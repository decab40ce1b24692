// Q4_0: d (q − 8). d f16; 16 bytes of nibbles, elements l low and l + 16 high.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 18u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let q = nibbles(bytes16_at(block + 2u), k);
    return Lanes16(bytes_minus(q, 8u), f16_at(block), 0.0);
}
