
fn decode16(block: u32, part: u32) -> mat4x4<f32> {
    let l = lanes16(block, part);
    return mat4x4<f32>(
        vec4<f32>(unpack4xI8(l.q.x)) * l.scale - l.min,
        vec4<f32>(unpack4xI8(l.q.y)) * l.scale - l.min,
        vec4<f32>(unpack4xI8(l.q.z)) * l.scale - l.min,
        vec4<f32>(unpack4xI8(l.q.w)) * l.scale - l.min,
    );
}
