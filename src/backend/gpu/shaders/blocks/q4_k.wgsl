
// Q4_K: d scale q − dmin min. The head; 128 bytes of nibbles: byte 32 k + l has elements 64 k + l and 64 k + 32 + l.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 144u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let head = scale_and_min(block, slice >> 1u, k);
    let bytes = words4_at(block + 16u + 64u * (slice >> 1u) + 32u * (k >> 1u) + 16u * (slice & 1u));
    return Lanes16(nibbles(bytes, k & 1u), head.x, head.y);
}
