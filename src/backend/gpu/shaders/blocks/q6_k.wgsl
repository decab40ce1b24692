// Q6_K: d scale (q − 32). 128 bytes of nibbles: byte 64 k + l has elements 128 k + l and 128 k + 64 + l; 64 bytes: byte
// 32 k + l has the upper pairs of elements 128 k + l, + 32, + 64, + 96; 16 scales i8; d f16; 14 bytes that the file has not.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 224u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let half = slice >> 1u;
    let side = slice & 1u;
    let low = nibbles(words4_at(block + 64u * half + 32u * (k & 1u) + 16u * side), k >> 1u);
    let bytes = words4_at(block + 128u + 16u * slice);
    let high = select(bytes >> vec4<u32>(2u), bytes << vec4<u32>(4u - 2u * min(k, 2u)), k < 3u) & vec4<u32>(0x30303030u);
    let scales = bitcast<vec4<i32>>(words4_at(block + 192u));
    let two = select(scales.xy, scales.zw, half != 0u);
    let one = select(two.x, two.y, k > 1u);
    let scale = f16_at(block + 208u) * f32(extractBits(one, 16u * (k & 1u) + 8u * side, 8u));
    return Lanes16(bytes_minus(low | high, 32u), scale, 0.0);
}
