
const SLICE_PARTS: u32 = 1u;

fn part_of(slice: u32, k: u32) -> u32 {
    return 0u;
}

fn decode(block: u32, slice: u32, k: u32) -> mat4x4<f32> {
    return decode16(block, 0u);
}

fn part16(block: u32, slice: u32, k: u32) -> Part16 {
    return Part16(decode16(block, 0u), 1.0, 0.0);
}
