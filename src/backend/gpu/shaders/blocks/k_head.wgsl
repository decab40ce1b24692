// The 16 bytes that Q4_K and Q5_K blocks begin with: d, dmin f16; then 6 bits each of 8 scales and 8 mins: those of 0 ..
// 4 in a byte each; 4 bits of those of 4 .. 8 in a byte together (scale low), the other two atop the first bytes.

// d scale and dmin min of sub-block 4 half + k.
fn scale_and_min(block: u32, half: u32, k: u32) -> vec2<f32> {
    let head = words4_at(block);
    let first = head.yz & vec2<u32>(0x3f3f3f3fu);
    let low = vec2<u32>(head.w, head.w >> 4u) & vec2<u32>(0x0f0f0f0fu);
    let later = low | ((head.yz >> vec2<u32>(2u)) & vec2<u32>(0x30303030u));
    let four = select(first, later, half != 0u);
    return unpack2x16float(head.x) * vec2<f32>((four >> vec2<u32>(8u * k)) & vec2<u32>(0xffu));
}
