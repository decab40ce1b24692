
// NVFP4: scale E2M1(q). Four scales, unsigned floats of 4 bits of exponent (bias 7) and 3 of mantissa; for each group of 16
// elements 8 bytes of nibbles, elements l low and l + 8 high.

const BLOCK_ELEMENTS: u32 = 64u;
const BLOCK_BYTES: u32 = 36u;

// Half of what the byte stands for; 0 for 0x7f, its NaN.
fn half_e4m3(byte: u32) -> f32 {
    let exponent = (byte >> 3u) & 15u;
    let mantissa = byte & 7u;
    let normal = bitcast<f32>(((exponent + 119u) << 23u) | (mantissa << 20u));
    let value = select(normal, f32(mantissa) * 0.0009765625, exponent == 0u);
    return select(value, 0.0, byte == 0x7fu);
}

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let first = block + 4u + 8u * k;
    let bytes = vec2<u32>(word_at(first), word_at(first + 4u));
    let codes = vec4<u32>(bytes, bytes >> vec2<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    return Lanes16(e2m1_doubled(codes), half_e4m3(u8_at(block + k)), 0.0);
}
