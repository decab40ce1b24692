// The IQ types: points of codebooks, and a table of 16 values.

// What the IQ1 types share: 8 times (level ± ⅛), levels −1, 0, 1 from a codebook of 16 bits a point.
DEVICE u32 point(const u32* codebook, u32 index) {
    return (codebook[index >> 1] >> (16 * (index & 1))) & 0xffff;
}

// The elements of points `first` and `second`, each 1 below 8 times its levels where its `down` is 1, else 1 above.
DEVICE uint4 shifted_levels(const u32* codebook, u32 first, u32 second, u32 down_first, u32 down_second) {
    uint4 raised = spread_pairs(point(codebook, first) | (point(codebook, second) << 16)) << 3;
    // Stored levels are one more than meant; see bytes_minus.
    u32 a = (121 - 2 * down_first) * 0x01010101u, b = (121 - 2 * down_second) * 0x01010101u;
    return (raised + make_uint4(a, a, b, b)) ^ 0x80808080u;
}

// Magnitudes (none is 0) with the signs of the lower 16 bits of `signs`, 1 for minus, as int8.
DEVICE uint4 signed_bytes(uint4 magnitudes, u32 signs) {
    uint4 one = spread_ones(signs);
    return (magnitudes ^ (one * 255)) + one;
}

// Two times 8 signs from two times 7: the eighth makes the number of minuses even.
DEVICE u32 even_signs(u32 first, u32 second) {
    u32 seven = (first & 127) | ((second & 127) << 8);
    u32 four = seven ^ (seven >> 4);
    u32 two = four ^ (four >> 2);
    u32 parity = (two ^ (two >> 1)) & 0x0101;
    return seven | (parity << 7);
}

// Points `first` and `second` of a codebook of eight bytes a point.
DEVICE uint4 points8(const u32* codebook, u32 first, u32 second) {
    return make_uint4(
        codebook[2 * first], codebook[2 * first + 1], codebook[2 * second], codebook[2 * second + 1]
    );
}

// Four points of a codebook of four bytes a point.
DEVICE uint4 points4(const u32* codebook, uint4 index) {
    return make_uint4(codebook[index.x], codebook[index.y], codebook[index.z], codebook[index.w]);
}

// The bytes of a word.
DEVICE uint4 bytes_of(u32 word) {
    return make_uint4(word & 255, (word >> 8) & 255, (word >> 16) & 255, word >> 24);
}

struct IQ1_S {
    // d (1 + 2 scale) (level ± ⅛). d f16; 32 lower bytes of indices; for 32 elements four times 3 upper bits of indices, a 3-bit
    // scale and the shift.
    static const u32 ELEMENTS = 256, BYTES = 48, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32* codebook) {
        u32 low = u16_at(block + 2 * part);
        u32 word = u16_at(block + 32 + 2 * (part >> 1));
        u32 high = word >> (6 * (part & 1));
        u32 first = (low & 255) | ((high & 7) << 8);
        u32 second = (low >> 8) | ((high & 56) << 5);
        float scale = half_to_float(d) * (float)(1 + 2 * ((word >> 12) & 7));
        return lanes(shifted_levels(codebook, first, second, word >> 15, word >> 15), scale * 0.125f, 0.0f);
    }
};

struct IQ1_M {
    // d (1 + 2 scale) (level ± ⅛). 32 lower bytes of indices; for 8 elements a nibble of 3 upper bits of the index and the
    // shift; four words of four scales of 3 bits and a quarter of d.
    static const u32 ELEMENTS = 256, BYTES = 56, APART = 0, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32* codebook) {
        u32 low = u16_at(block + 2 * part);
        u32 high = u8_at(block + 32 + part);
        u32 first = (low & 255) | ((high & 7) << 8);
        u32 second = (low >> 8) | ((high & 112) << 4);
        u32 a = word_at(block + 48), b = word_at(block + 52);
        u32 quarters = ((a >> 12) & 15) | ((a >> 24) & 0xf0) | (((b >> 12) & 15) << 8) | (((b >> 24) & 0xf0) << 8);
        float d = half_to_float(quarters);
        u32 word = (part >= 8 ? b : a) >> (16 * ((part >> 2) & 1));
        float scale = d * (float)(1 + 2 * ((word >> (3 * (part & 3))) & 7));
        return lanes(
            shifted_levels(codebook, first, second, (high >> 3) & 1, (high >> 7) & 1), scale * 0.125f, 0.0f
        );
    }
};

struct IQ2_XXS {
    // d (scale + ½) / 4 · ±magnitude. d f16; for 32 elements four indices of 8 bits, then four times 7 signs and a 4-bit scale.
    static const u32 ELEMENTS = 256, BYTES = 64, APART = 2, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32* codebook) {
        u32 side = part & 1;
        const u8* pair = block + 8 * (part >> 1);
        u32 index = u16_at(pair + 2 * side);
        u32 word = word_at(pair + 4);
        u32 stored = word >> (14 * side);
        uint4 q = signed_bytes(points8(codebook, index & 255, index >> 8), even_signs(stored, stored >> 7));
        return lanes(q, half_to_float(d) * (0.5f + (float)(word >> 28)) * 0.25f, 0.0f);
    }
};

struct IQ2_XS {
    // d (scale + ½) / 4 · ±magnitude. d f16; for 8 elements 9 bits of index and 7 signs; 16 nibbles of scales.
    static const u32 ELEMENTS = 256, BYTES = 72, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32* codebook) {
        u32 word = word_at(block + 4 * part);
        u32 signs = even_signs(word >> 9, word >> 25);
        uint4 q = signed_bytes(points8(codebook, word & 511, (word >> 16) & 511), signs);
        return lanes(q, half_to_float(d) * (0.5f + (float)nibble_at(block + 64, part)) * 0.25f, 0.0f);
    }
};

struct IQ2_S {
    // d (scale + ½) / 4 · ±magnitude. d f16; 32 lower bytes of indices; 32 bytes of signs; 32 upper pairs of bits of indices;
    // 16 nibbles of scales.
    static const u32 ELEMENTS = 256, BYTES = 80, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32* codebook) {
        u32 low = u16_at(block + 2 * part);
        u32 high = nibble_at(block + 64, part);
        uint4 magnitudes = points8(codebook, (low & 255) | ((high & 3) << 8), (low >> 8) | ((high >> 2) << 8));
        uint4 q = signed_bytes(magnitudes, u16_at(block + 32 + 2 * part));
        return lanes(q, half_to_float(d) * (0.5f + (float)nibble_at(block + 72, part)) * 0.25f, 0.0f);
    }
};

struct IQ3_XXS {
    // d (scale + ½) / 2 · ±magnitude. d f16; 64 indices of 8 bits; for 32 elements four times 7 signs and a 4-bit scale.
    static const u32 ELEMENTS = 256, BYTES = 96, APART = 2, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32* codebook) {
        uint4 index = bytes_of(word_at(block + 4 * part));
        u32 word = word_at(block + 64 + 4 * (part >> 1));
        u32 stored = word >> (14 * (part & 1));
        uint4 q = signed_bytes(points4(codebook, index), even_signs(stored, stored >> 7));
        return lanes(q, half_to_float(d) * (0.5f + (float)(word >> 28)) * 0.5f, 0.0f);
    }
};

struct IQ3_S {
    // d (1 + 2 scale) · ±magnitude. d f16; 64 lower bytes of indices; 64 ninth bits; 32 bytes of signs; 8 nibbles of scales.
    static const u32 ELEMENTS = 256, BYTES = 108, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32* codebook) {
        u32 ninth = nibble_at(block + 64, part);
        uint4 ninths = make_uint4(ninth << 8, ninth << 7, ninth << 6, ninth << 5) & 256;
        uint4 index = bytes_of(word_at(block + 4 * part)) | ninths;
        uint4 q = signed_bytes(points4(codebook, index), u16_at(block + 72 + 2 * part));
        return lanes(q, half_to_float(d) * (float)(1 + 2 * nibble_at(block + 104, part >> 1)), 0.0f);
    }
};

// The values of four codes of 4 bits, a byte each: −127 −104 −83 −65 −49 −35 −22 −10 1 13 25 38 53 69 89 113.
DEVICE u32 iq4_values(u32 codes) {
    u32 packed = (codes | (codes >> 4)) & 0x00ff00ffu;
    u32 selector = (packed | (packed >> 8)) & 0xffff;
    u32 low = __byte_perm(0xbfad9881u, 0xf6eaddcfu, selector & 0x7777);
    u32 high = __byte_perm(0x26190d01u, 0x71594535u, selector & 0x7777);
    u32 upper = ((codes >> 3) & 0x01010101u) * 255;
    return (low & ~upper) | (high & upper);
}

DEVICE uint4 iq4_values(uint4 codes) {
    return make_uint4(iq4_values(codes.x), iq4_values(codes.y), iq4_values(codes.z), iq4_values(codes.w));
}

struct IQ4_NL {
    // d value(q). d f16; 16 bytes of nibbles, elements l low and l + 16 high.
    static const u32 ELEMENTS = 32, BYTES = 16, APART = 2, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        return lanes(iq4_values(nibbles(quad_at(block), part)), half_to_float(d), 0.0f);
    }
};

struct IQ4_XS {
    // d (scale − 32) value(q). d f16; the upper pairs of 8 scales; their 8 nibbles; 128 bytes of nibbles: byte 16 k + l has
    // elements 32 k + l and 32 k + 16 + l.
    static const u32 ELEMENTS = 256, BYTES = 136, APART = 0, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        u32 sub = part >> 1;
        u32 head = word_at(block);
        u32 low = (word_at(block + 4) >> (4 * sub)) & 15;
        u32 high = (head >> (16 + 2 * sub)) & 3;
        float scale = half_to_float(head & 0xffff) * (float)((int)(low | (high << 4)) - 32);
        return lanes(iq4_values(nibbles(pairs_at(block + 8 + 16 * sub), part & 1)), scale, 0.0f);
    }
};
