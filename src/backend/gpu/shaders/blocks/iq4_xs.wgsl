
// IQ4_XS: d (scale − 32) value(q). d f16; the upper pairs of 8 scales; their 8 nibbles; 128 bytes of nibbles: byte 16 k +
// l has elements 32 k + l and 32 k + 16 + l.

const BLOCK_ELEMENTS: u32 = 256u;
const BLOCK_BYTES: u32 = 136u;

fn lanes(block: u32, slice: u32, k: u32) -> Lanes16 {
    let sub = 2u * slice + (k >> 1u);
    let head = word_at(block);
    let low = (word_at(block + 4u) >> (4u * sub)) & 15u;
    let high = (head >> (16u + 2u * sub)) & 3u;
    let scale = unpack2x16float(head).x * f32(i32(low | (high << 4u)) - 32);
    return Lanes16(iq4_values(nibbles(words4_at(block + 8u + 16u * sub), k & 1u)), scale, 0.0);
}
