// Magnitudes from a codebook under signs.

@group(0) @binding(1) var<storage, read> codebook: array<u32>;

// Magnitudes (none is 0) with the signs of the lower 16 bits of `signs`, 1 for minus, as int8.
fn signed_bytes(magnitudes: vec4<u32>, signs: u32) -> vec4<u32> {
    let one = spread_ones(signs);
    return (magnitudes ^ filled(one)) + one;
}

// Two times 8 signs from two times 7: the eighth makes the number of minuses even.
fn even_signs(first: u32, second: u32) -> u32 {
    let seven = (first & 127u) | ((second & 127u) << 8u);
    let four = seven ^ (seven >> 4u);
    let two = four ^ (four >> 2u);
    let parity = (two ^ (two >> 1u)) & 0x0101u;
    return seven | (parity << 7u);
}

// Points `first` and `second` of a codebook of eight bytes a point.
fn points8(first: u32, second: u32) -> vec4<u32> {
    return vec4<u32>(
        codebook[2u * first],
        codebook[2u * first + 1u],
        codebook[2u * second],
        codebook[2u * second + 1u],
    );
}

// Four points of a codebook of four bytes a point.
fn points4(index: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(codebook[index.x], codebook[index.y], codebook[index.z], codebook[index.w]);
}

// The bytes of a word.
fn bytes_of(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
}
