// The 16 bytes that Q4_K and Q5_K blocks begin with: d, dmin f16; then 6 bits each of 8 scales and 8 mins: those of 0 .. 4 in a
// byte each; 4 bits of those of 4 .. 8 in a byte together (scale low), the other two atop the first bytes.

// d scale and dmin min of sub-block `sub`.
fn scale_and_min(block: u32, sub: u32) -> vec2<f32> {
    let shift = 8u * (sub & 3u);
    let head = words4_at(block);
    let bytes = head.yz >> vec2<u32>(shift);
    let low = vec2<u32>(head.w >> shift, head.w >> (shift + 4u)) & vec2<u32>(15u);
    let later = low | ((bytes >> vec2<u32>(2u)) & vec2<u32>(48u));
    return unpack2x16float(head.x) * vec2<f32>(select(later, bytes & vec2<u32>(63u), sub < 4u));
}
