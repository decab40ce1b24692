
// Q5_K: d scale q − dmin min. The head; 32 bytes: bit k of byte l is the fifth bit of element 32 k + l; 128 bytes of nibbles:
// byte 32 k + l has elements 64 k + l and 64 k + 32 + l.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 176u;

fn lanes16(block: u32, part: u32) -> Lanes16 {
    let head = scale_and_min(block, part >> 1u);
    let side = 16u * (part & 1u);
    let fifths = ones(words4_at(block + 16u + side), part >> 1u);
    let low = nibbles(words4_at(block + 48u + 32u * (part >> 2u) + side), (part >> 1u) & 1u);
    return Lanes16(low | (fifths << vec4<u32>(4u)), head.x, head.y);
}
