// Q4_1: d q + m. d, m f16; 16 bytes of nibbles, elements l low and l + 16 high.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 20u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let head = unpack2x16float(word_at(block));
    return Lanes16(nibbles(words4_at(block + 4u), k), head.x, -head.y);
}
