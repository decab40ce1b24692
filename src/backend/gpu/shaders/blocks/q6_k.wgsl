// Q6_K: d scale (q − 32). 128 bytes of nibbles: byte 64 k + l has elements 128 k + l and 128 k + 64 + l; 64 bytes: byte 32 k + l
// has the upper pairs of elements 128 k + l, + 32, + 64, + 96; 16 scales i8; d f16.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 210u;

fn lanes16(block: u32, part: u32) -> Lanes16 {
    let half = part >> 3u;
    let low = nibbles(bytes16_at(block + 64u * half + 16u * (part & 3u)), (part >> 2u) & 1u);
    let high = pairs(bytes16_at(block + 128u + 32u * half + 16u * (part & 1u)), part & 6u);
    let scale = f16_at(block + 208u) * f32(i8_at(block + 192u + part));
    return Lanes16(bytes_minus(low | (high << vec4<u32>(4u)), 32u), scale, 0.0);
}
