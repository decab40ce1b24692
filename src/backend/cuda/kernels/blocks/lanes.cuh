// Weights at any byte, and blocks as int8 lanes: what the types' files are made of.
//
// A type is a struct with
//   ELEMENTS           of a block
//   BYTES, APART       of a block, but for its scale, and of that: where a row has scales of one or two bytes at blocks' ends,
//                      they come after all of its blocks, so that those can be read in words of 4 or 16 bytes (repacking.rs)
//   GROUP, DISTANCE    parts (of 16 elements) that share the words their bits are in: GROUP of them, DISTANCE apart. One thread
//                      takes them together, so that a compiler loads those words once.
//   MINS               whether there are mins
//   CENTER             about what number they lie, if none is negative; else 0
//   lanes16(block, d, part, codebook)    elements 16 part .. 16 part + 15 of a block, whose scale apart has the bits d
// or, for floats, decode16(block, out), with parts of blocks of 16. No load goes beyond the word that the last byte asked for
// is in.

// 16 weights: element i is scale · (byte i as int8) − min; four bytes a word, the first in the lowest bits.
struct Lanes16 {
    uint4 q;
    float scale;
    float min;
};

// The word at a multiple of 4.
DEVICE u32 word_at(const u8* at) {
    return *(const u32*)at;
}

// Four words from a multiple of 4 on.
DEVICE uint4 words4_at(const u8* at) {
    const u32* words = (const u32*)at;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Four words from a multiple of 16 on.
DEVICE uint4 quad_at(const u8* at) {
    return *(const uint4*)at;
}

// Four words from a multiple of 8 on.
DEVICE uint4 pairs_at(const u8* at) {
    const uint2* two = (const uint2*)at;
    uint2 low = two[0], high = two[1];
    return make_uint4(low.x, low.y, high.x, high.y);
}

// 16 bits at a multiple of 2.
DEVICE u32 u16_at(const u8* at) {
    return *(const u16*)at;
}

DEVICE u32 u8_at(const u8* at) {
    return *at;
}

DEVICE int i8_at(const u8* at) {
    return (int)(signed char)*at;
}

// The two halves of a word.
DEVICE float2 halves(u32 word) {
    return make_float2(half_to_float(word & 0xffff), half_to_float(word >> 16));
}

// Nibble `number` of the bytes from `at` on, lowest first.
DEVICE u32 nibble_at(const u8* at, u32 number) {
    return (u8_at(at + (number >> 1)) >> (4 * (number & 1))) & 15;
}

// The low nibbles of bytes (`high` 0) or the high ones (1).
DEVICE uint4 nibbles(uint4 bytes, u32 high) {
    return (bytes >> (4 * high)) & 0x0f0f0f0fu;
}

// Bits `at` and `at` + 1 of each byte.
DEVICE uint4 pairs(uint4 bytes, u32 at) {
    return (bytes >> at) & 0x03030303u;
}

// Bit `at` of each byte.
DEVICE uint4 ones(uint4 bytes, u32 at) {
    return (bytes >> at) & 0x01010101u;
}

// The lower 16 bits of `bits` as 16 bytes.
DEVICE uint4 spread_ones(u32 bits) {
    uint4 four = make_uint4(bits & 15, (bits >> 4) & 15, (bits >> 8) & 15, (bits >> 12) & 15);
    // Bit i moves by 7 i.
    return (four * 0x00204081u) & 0x01010101u;
}

// The 16 pairs of bits of `bits` as 16 bytes.
DEVICE uint4 spread_pairs(u32 bits) {
    uint4 four = make_uint4(bits & 255, (bits >> 8) & 255, (bits >> 16) & 255, bits >> 24);
    uint4 two = (four | (four << 12)) & 0x000f000fu;
    return (two | (two << 6)) & 0x03030303u;
}

// Unsigned bytes minus `n`, as int8; a byte is at most 127 + n, n at most 128.
DEVICE uint4 bytes_minus(uint4 bytes, u32 n) {
    // Adding 128 − n carries into no other byte, and flipping the top bit takes 128 off.
    return (bytes + (128 - n) * 0x01010101u) ^ 0x80808080u;
}

DEVICE Lanes16 lanes(uint4 q, float scale, float min) {
    Lanes16 l;
    l.q = q;
    l.scale = scale;
    l.min = min;
    return l;
}
