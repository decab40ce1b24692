
// The bytes of a word, as int8. What a byte adds to the mantissa of 2^23 or 2^15 is itself: a mask instead of a
// conversion, which devices have few units for.
fn floats(word: u32) -> vec4<f32> {
    let low = word ^ 0x80808080u;
    let high = low >> 16u;
    let bits = vec4<u32>(0x4b000000u, 0x47000000u, 0x4b000000u, 0x47000000u)
        | vec4<u32>(low & 0xffu, low & 0xff00u, high & 0xffu, high & 0xff00u);
    return bitcast<vec4<f32>>(bits) - vec4<f32>(8388736.0, 32896.0, 8388736.0, 32896.0);
}

fn floats16(l: Lanes16) -> Part16 {
    return Part16(mat4x4<f32>(floats(l.q.x), floats(l.q.y), floats(l.q.z), floats(l.q.w)), l.scale, l.min);
}

fn part16(block: u32, slice: u32, k: u32) -> Part16 {
    return floats16(lanes(block, slice, k));
}

// The elements of `p`.
fn values(p: Part16) -> mat4x4<f32> {
    return mat4x4<f32>(
        p.q[0] * p.scale - p.min,
        p.q[1] * p.scale - p.min,
        p.q[2] * p.scale - p.min,
        p.q[3] * p.scale - p.min,
    );
}

fn decode(block: u32, slice: u32, k: u32) -> mat4x4<f32> {
    return values(part16(block, slice, k));
}

fn decode16(block: u32, part: u32) -> mat4x4<f32> {
    return values(floats16(lanes16(block, part)));
}
