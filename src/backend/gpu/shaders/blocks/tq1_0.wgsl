// TQ1_0: d (digit − 1). Base-3 digits as fixed-point fractions: 32 bytes of five (elements m + 32 n), 16 of five (160 + m
// + 16 n), 4 of four (240 + m + 4 n); d f16.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 54u;

// 3^n, n below 4.
fn power_of_3(n: u32) -> u32 {
    return (0x1b090301u >> (8u * n)) & 0xffu;
}

// The digits that `powers` of 3, each below 256, push to the top of the bytes.
fn digits(bytes: vec4<u32>, powers: vec4<u32>) -> vec4<u32> {
    let every_other = vec4<u32>(0x00ff00ffu);
    let even = ((((bytes & every_other) * powers) & every_other) * 3u) >> vec4<u32>(8u);
    let odd = ((((bytes >> vec4<u32>(8u)) & every_other) * powers) & every_other) * 3u;
    return (even & vec4<u32>(0x00030003u)) | (odd & vec4<u32>(0x03000300u));
}

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let part = 4u * slice + k;
    // Parts 0 .. 10 lie in the first run, 10 .. 15 in the second; part 15 is all of the third.
    let n = select(part >> 1u, part - 10u, part >= 10u);
    let start = select(16u * (part & 1u), 32u, part >= 10u);
    let power = select(power_of_3(n), 81u, n == 4u);
    let last = part == 15u;
    let bytes = select(bytes16_at(block + start), vec4<u32>(u32_at(block + 48u)), last);
    let powers = select(vec4<u32>(power), vec4<u32>(1u, 3u, 9u, 27u), last);
    return Lanes16(bytes_minus(digits(bytes, powers), 1u), f16_at(block + 52u), 0.0);
}
