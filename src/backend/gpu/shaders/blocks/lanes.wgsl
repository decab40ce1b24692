
// The elements of `l`.
fn values(l: Lanes16) -> mat4x4<f32> {
    return mat4x4<f32>(
        vec4<f32>(unpack4xI8(l.q.x)) * l.scale - l.min,
        vec4<f32>(unpack4xI8(l.q.y)) * l.scale - l.min,
        vec4<f32>(unpack4xI8(l.q.z)) * l.scale - l.min,
        vec4<f32>(unpack4xI8(l.q.w)) * l.scale - l.min,
    );
}

fn decode(block: u32, slice: u32, k: u32) -> mat4x4<f32> {
    return values(lanes(block, slice, k));
}

fn decode16(block: u32, part: u32) -> mat4x4<f32> {
    return values(lanes16(block, part));
}
