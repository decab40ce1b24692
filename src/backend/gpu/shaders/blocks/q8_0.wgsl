// Q8_0: d q. d f16; 32 × i8.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 34u;

fn lanes16(block: u32, part: u32) -> Lanes16 {
    return Lanes16(bytes16_at(block + 2u + 16u * part), f16_at(block), 0.0);
}
