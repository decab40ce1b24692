
// IQ4_NL: d value(q). d f16; 16 bytes of nibbles, elements l low and l + 16 high.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 18u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    return Lanes16(iq4_values(nibbles(bytes16_at(block + 2u), k)), f16_at(block), 0.0);
}
