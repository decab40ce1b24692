// BF16, as blocks of 16: the upper halves of F32.

const BLOCK_ELEMENTS: u32 = 16u;
const BLOCK_BYTES: u32 = 32u;

fn halves(low: u32, high: u32) -> vec4<f32> {
    let upper = 0xffff0000u;
    return bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & upper, high << 16u, high & upper));
}

fn decode16(block: u32, part: u32) -> mat4x4<f32> {
    let a = words4_at(block);
    let b = words4_at(block + 16u);
    return mat4x4<f32>(halves(a.x, a.y), halves(a.z, a.w), halves(b.x, b.y), halves(b.z, b.w));
}
