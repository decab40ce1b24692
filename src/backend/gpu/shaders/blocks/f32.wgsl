// F32, as blocks of 16.

const BLOCK_ELEMENTS: u32 = 16u;
const BLOCK_BYTES: u32 = 64u;

fn decode16(block: u32, part: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
        bitcast<vec4<f32>>(words4_at(block)),
        bitcast<vec4<f32>>(words4_at(block + 16u)),
        bitcast<vec4<f32>>(words4_at(block + 32u)),
        bitcast<vec4<f32>>(words4_at(block + 48u)),
    );
}
