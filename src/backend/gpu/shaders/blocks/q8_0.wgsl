// Q8_0: d q. d f16; 32 × i8.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 34u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    return Lanes16(bytes16_at(block + 2u + 16u * k), f16_at(block), 0.0);
}
