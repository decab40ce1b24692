// Q3_K: d (scale − 32) (q − 4). 32 bytes: bit k of byte l is the third bit of element 32 k + l; 64 bytes: byte 32 k + l has the
// pairs of elements 128 k + l, + 32, + 64, + 96; 12 bytes of scales; d f16.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 110u;

fn lanes16(block: u32, part: u32) -> Lanes16 {
    let side = 16u * (part & 1u);
    let low = pairs(bytes16_at(block + 32u + 32u * (part >> 3u) + side), part & 6u);
    let high = ones(bytes16_at(block + side), part >> 1u);
    // Four bits of scales 0 .. 8 and 8 .. 16 in the nibbles of eight bytes; two more of k, 4 + k, 8 + k, 12 + k in byte 8 + k.
    let scale_low = (u8_at(block + 96u + (part & 7u)) >> (4u * (part >> 3u))) & 15u;
    let scale_high = (u8_at(block + 104u + (part & 3u)) >> (2u * (part >> 2u))) & 3u;
    let scale = f32(i32(scale_low | (scale_high << 4u)) - 32);
    return Lanes16(bytes_minus(low | (high << vec4<u32>(2u)), 4u), f16_at(block + 108u) * scale, 0.0);
}
