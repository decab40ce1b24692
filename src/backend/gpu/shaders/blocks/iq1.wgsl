// What the IQ1 types share: 8 times (level ± ⅛), levels −1, 0, 1 from a codebook of 16 bits a point.

@group(0) @binding(1) var<storage, read> codebook: array<u32>;

fn point(index: u32) -> u32 {
    return (codebook[index >> 1u] >> (16u * (index & 1u))) & 0xffffu;
}

// The elements of points `first` and `second`, each 1 below 8 times its levels where `down` is 1, else 1 above.
fn shifted_levels(first: u32, second: u32, down: vec2<u32>) -> vec4<u32> {
    let raised = spread_pairs(point(first) | (point(second) << 16u)) << vec4<u32>(3u);
    // Stored levels are one more than meant; see bytes_minus.
    let offset = (vec2<u32>(121u) - 2u * down) * 0x01010101u;
    return (raised + offset.xxyy) ^ vec4<u32>(0x80808080u);
}
