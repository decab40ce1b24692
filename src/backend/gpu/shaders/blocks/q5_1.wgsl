// Q5_1: d q + m. d, m f16; a fifth bit for each element; 16 bytes of nibbles, elements l low and l + 16 high.

const BLOCK_ELEMENTS: u32 = 32u;
const BLOCK_BYTES: u32 = 24u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let head = unpack2x16float(word_at(block));
    let fifths = spread_ones(word_at(block + 4u) >> (16u * k));
    let q = nibbles(words4_at(block + 8u), k) | (fifths << vec4<u32>(4u));
    return Lanes16(q, head.x, -head.y);
}
