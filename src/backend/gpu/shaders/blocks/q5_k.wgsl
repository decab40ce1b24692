
// Q5_K: d scale q − dmin min. The head; 32 bytes: bit k of byte l is the fifth bit of element 32 k + l; 128 bytes of
// nibbles: byte 32 k + l has elements 64 k + l and 64 k + 32 + l.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 176u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let half = slice >> 1u;
    let side = 16u * (slice & 1u);
    let head = scale_and_min(block, half, k);
    let fifths = words4_at(block + 16u + side) >> vec4<u32>(4u * half);
    let low = nibbles(words4_at(block + 48u + 64u * half + 32u * (k >> 1u) + side), k & 1u);
    return Lanes16(low | ((fifths << vec4<u32>(4u - k)) & vec4<u32>(0x10101010u)), head.x, head.y);
}
