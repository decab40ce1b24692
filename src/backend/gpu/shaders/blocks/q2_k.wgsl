// Q2_K: d scale q − dmin min. 16 bytes: a sub-block's scale low, min high; 64 bytes: byte 32 k + l has the pairs of elements
// 128 k + l, + 32, + 64, + 96; d, dmin f16.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 84u;

fn lanes16(block: u32, part: u32) -> Lanes16 {
    let bytes = words4_at(block + 16u + 32u * (part >> 3u) + 16u * (part & 1u));
    let scales = u8_at(block + part);
    let head = unpack2x16float(word_at(block + 80u)) * vec2<f32>(vec2<u32>(scales & 15u, scales >> 4u));
    return Lanes16(pairs(bytes, part & 6u), head.x, head.y);
}
