// Q2_K: d scale q − dmin min. 16 bytes: a sub-block's scale low, min high; 64 bytes: byte 32 k + l has the pairs of elements
// 128 k + l, + 32, + 64, + 96; d, dmin f16.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 84u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let bytes = words4_at(block + 16u + 16u * slice);
    let scales = word_at(block + 8u * (slice >> 1u) + 4u * (k >> 1u)) >> (16u * (k & 1u) + 8u * (slice & 1u));
    let unit = unpack2x16float(word_at(block + 80u));
    let head = unit * vec2<f32>(vec2<u32>(scales & 15u, (scales >> 4u) & 15u));
    return Lanes16(pairs(bytes, 2u * k), head.x, head.y);
}
