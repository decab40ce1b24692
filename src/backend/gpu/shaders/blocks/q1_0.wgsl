// Q1_0: d where the element's bit is set, else −d. d f16; 128 bits.

const BLOCK_ELEMENTS: u32 = 128u;
const BLOCK_BYTES: u32 = 18u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let bits = spread_ones(u16_at(block + 2u + 8u * slice + 2u * k));
    return Lanes16(bytes_minus(bits << vec4<u32>(1u), 1u), f16_at(block), 0.0);
}
