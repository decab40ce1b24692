// Twice the values of 4-bit floats (E2M1), as int8: 0 1 2 3 4 6 8 12 and their negatives.
fn e2m1_doubled(codes: vec4<u32>) -> vec4<u32> {
    let magnitude = codes & vec4<u32>(0x07070707u);
    let high = ones(codes, 2u);
    // From 4 on there come 1, 2, 5 on top of 5, 6, 7.
    let low = magnitude & (high * 3u);
    let both = low & (low >> vec4<u32>(1u)) & high;
    let doubled = magnitude + low + 2u * both;
    let negative = filled(ones(codes, 3u));
    return (vec4<u32>(0x80808080u) + doubled - 2u * (doubled & negative)) ^ vec4<u32>(0x80808080u);
}
