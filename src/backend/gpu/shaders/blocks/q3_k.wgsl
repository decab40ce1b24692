// Q3_K: d (scale − 32) (q − 4). 32 bytes: bit k of byte l is the third bit of element 32 k + l; 64 bytes: byte 32 k + l
// has the pairs of elements 128 k + l, + 32, + 64, + 96; 12 bytes of scales; d f16; 2 bytes that the file has not.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 112u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let half = slice >> 1u;
    let side = slice & 1u;
    let low = pairs(words4_at(block + 32u + 16u * slice), 2u * k);
    let bits = words4_at(block + 16u * side) >> vec4<u32>(4u * half);
    let high = select(bits >> vec4<u32>(1u), bits << vec4<u32>(2u - min(k, 2u)), k < 3u) & vec4<u32>(0x04040404u);
    // Four bits of scales 0 .. 8 and 8 .. 16 in the nibbles of eight bytes; two more of i, 4 + i, 8 + i, 12 + i in byte 8 + i.
    let byte = 16u * (k & 1u) + 8u * side;
    let scale_low = word_at(block + 96u + 4u * (k >> 1u)) >> (byte + 4u * half);
    let scale_high = word_at(block + 104u) >> (byte + 4u * half + 2u * (k >> 1u));
    let scale = f32(i32((scale_low & 15u) | ((scale_high & 3u) << 4u)) - 32);
    return Lanes16(bytes_minus(low | high, 4u), f16_at(block + 108u) * scale, 0.0);
}
