
// Q4_K: d scale q − dmin min. The head; 128 bytes of nibbles: byte 32 k + l has elements 64 k + l and 64 k + 32 + l.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 144u;

fn lanes16(block: u32, part: u32) -> Lanes16 {
    let head = scale_and_min(block, part >> 1u);
    let bytes = words4_at(block + 16u + 32u * (part >> 2u) + 16u * (part & 1u));
    return Lanes16(nibbles(bytes, (part >> 1u) & 1u), head.x, head.y);
}
