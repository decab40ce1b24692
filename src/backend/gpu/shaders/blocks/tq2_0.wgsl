// TQ2_0: d (q − 1). 64 bytes: byte 32 k + l has the pairs of elements 128 k + l, + 32, + 64, + 96; d f16.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 66u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let q = pairs(bytes16_at(block + 16u * slice), 2u * k);
    return Lanes16(bytes_minus(q, 1u), f16_at(block + 64u), 0.0);
}
