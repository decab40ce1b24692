// F16, as blocks of 16.

const BLOCK_ELEMENTS: u32 = 16u;
const BLOCK_BYTES: u32 = 32u;

fn halves(low: u32, high: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(low), unpack2x16float(high));
}

fn decode16(block: u32, part: u32) -> mat4x4<f32> {
    let a = words4_at(block);
    let b = words4_at(block + 16u);
    return mat4x4<f32>(halves(a.x, a.y), halves(a.z, a.w), halves(b.x, b.y), halves(b.z, b.w));
}
