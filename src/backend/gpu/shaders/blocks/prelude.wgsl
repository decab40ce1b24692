// What every kernel that reads weights begins with: weights at any byte, and blocks as int8 lanes.
//
// A kernel's source is this, then the weight type's source, then the kernel. Offsets are in bytes and count from the binding's
// start, which is a block's start; no load goes beyond the word that the last byte asked for is in. A type's source has
//
//   BLOCK_ELEMENTS, BLOCK_BYTES                            a block is BLOCK_ELEMENTS / 16 parts of 16 elements
//   fn decode16(block: u32, part: u32) -> mat4x4<f32>      the elements of a part of the block at byte `block`, column by column
//   fn lanes16(block: u32, part: u32) -> Lanes16           the same as int8; all types but F32, F16 and BF16
//
// and for whoever decodes more than one part of a block
//
//   SLICE_PARTS                                            a slice is so many parts that have words or scales in common
//   fn part_of(slice: u32, k: u32) -> u32                  which part is number k of a slice
//   fn decode(block: u32, slice: u32, k: u32) -> mat4x4<f32>
//   fn lanes(block: u32, slice: u32, k: u32) -> Lanes16
//   fn part16(block: u32, slice: u32, k: u32) -> Part16    the same as decode, before scale and min
//
// Where k is a constant, what the parts of a slice have in common is the same expression in each call, so that compilers load
// and compute it once. Calls are best written out: Mesa unrolls no loop over more than the simplest types.

// 16 weights: element i is scale · q[i / 4][i % 4] − min.
struct Part16 {
    q: mat4x4<f32>,
    scale: f32,
    min: f32,
}

// The same as int8: element i is scale · (byte i as int8) − min; four bytes a word, the first in the lowest bits.
struct Lanes16 {
    q: vec4<u32>,
    scale: f32,
    min: f32,
}

// The word at a multiple of 4.
fn word_at(byte: u32) -> u32 {
    return word(byte >> 2u);
}

fn u32_at(byte: u32) -> u32 {
    let shift = 8u * (byte & 3u);
    let low = word(byte >> 2u);
    // The same word where `byte` is a multiple of 4: the parts below are then equal.
    let high = word((byte + 3u) >> 2u);
    return (low >> shift) | (high << ((32u - shift) & 31u));
}

// `words` from bit `shift` on (a multiple of 8 below 32), filled up from `next`, the words after each.
fn funnel(words: vec4<u32>, next: vec4<u32>, shift: u32) -> vec4<u32> {
    // Two steps, as one by 32 is none.
    return (words >> vec4<u32>(shift)) | ((next << vec4<u32>(1u)) << vec4<u32>(31u - shift));
}

// 16 bytes from any byte on.
fn bytes16_at(byte: u32) -> vec4<u32> {
    let first = byte >> 2u;
    let words = vec4<u32>(word(first), word(first + 1u), word(first + 2u), word(first + 3u));
    let last = word((byte + 15u) >> 2u);
    return funnel(words, vec4<u32>(words.yzw, last), 8u * (byte & 3u));
}

// 16 bits at a multiple of 2.
fn u16_at(byte: u32) -> u32 {
    return (word(byte >> 2u) >> (8u * (byte & 2u))) & 0xffffu;
}

fn u8_at(byte: u32) -> u32 {
    return (word(byte >> 2u) >> (8u * (byte & 3u))) & 0xffu;
}

fn i8_at(byte: u32) -> i32 {
    return extractBits(bitcast<i32>(word(byte >> 2u)), 8u * (byte & 3u), 8u);
}

// Half precision at a multiple of 2.
fn f16_at(byte: u32) -> f32 {
    return unpack2x16float(word(byte >> 2u) >> (8u * (byte & 2u))).x;
}

// Nibble `at` of the bytes from byte `byte` on, lowest first.
fn nibble_at(byte: u32, at: u32) -> u32 {
    return (u8_at(byte + (at >> 1u)) >> (4u * (at & 1u))) & 15u;
}

// The low nibbles of bytes (`high` 0) or the high ones (1).
fn nibbles(bytes: vec4<u32>, high: u32) -> vec4<u32> {
    return (bytes >> vec4<u32>(4u * high)) & vec4<u32>(0x0f0f0f0fu);
}

// Bits `at` and `at` + 1 of each byte.
fn pairs(bytes: vec4<u32>, at: u32) -> vec4<u32> {
    return (bytes >> vec4<u32>(at)) & vec4<u32>(0x03030303u);
}

// Bit `at` of each byte.
fn ones(bytes: vec4<u32>, at: u32) -> vec4<u32> {
    return (bytes >> vec4<u32>(at)) & vec4<u32>(0x01010101u);
}

// 255 for each byte that is 1, 0 for each that is 0.
fn filled(ones: vec4<u32>) -> vec4<u32> {
    return (ones << vec4<u32>(8u)) - ones;
}

// The lower 16 bits of `bits` as 16 bytes.
fn spread_ones(bits: u32) -> vec4<u32> {
    let four = (vec4<u32>(bits) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    // Bit i moves by 7 i.
    return (four * 0x00204081u) & vec4<u32>(0x01010101u);
}

// The 16 pairs of bits of `bits` as 16 bytes.
fn spread_pairs(bits: u32) -> vec4<u32> {
    let four = (vec4<u32>(bits) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    let two = (four | (four << vec4<u32>(12u))) & vec4<u32>(0x000f000fu);
    return (two | (two << vec4<u32>(6u))) & vec4<u32>(0x03030303u);
}

// Unsigned bytes minus `n`, as int8; a byte is at most 127 + n, n at most 128.
fn bytes_minus(bytes: vec4<u32>, n: u32) -> vec4<u32> {
    // Adding 128 − n carries into no other byte, and flipping the top bit takes 128 off.
    return (bytes + vec4<u32>((128u - n) * 0x01010101u)) ^ vec4<u32>(0x80808080u);
}
