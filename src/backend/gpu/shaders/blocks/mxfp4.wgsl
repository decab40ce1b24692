
// MXFP4: 2^(e − 127) E2M1(q). e; 16 bytes of nibbles, elements l low and l + 16 high.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 17u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let e = u8_at(block);
    // Half of the power, subnormal where it must be.
    let half_power = select((e - 1u) << 23u, 0x00200000u << (e & 1u), e < 2u);
    return Lanes16(e2m1_doubled(nibbles(bytes16_at(block + 1u), k)), bitcast<f32>(half_power), 0.0);
}
