// The types with one scale a block, and floats.

struct Q4_0 {
    // d (q − 8). d f16; 16 bytes of nibbles, elements l low and l + 16 high.
    static const u32 ELEMENTS = 32, BYTES = 16, APART = 2, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        return lanes(bytes_minus(nibbles(quad_at(block), part), 8), half_to_float(d), 0.0f);
    }
};

struct Q4_1 {
    // d q + m. d, m f16; 16 bytes of nibbles, elements l low and l + 16 high.
    static const u32 ELEMENTS = 32, BYTES = 20, APART = 0, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 8;
    static const bool MINS = true;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        float2 head = halves(word_at(block));
        return lanes(nibbles(words4_at(block + 4), part), head.x, -head.y);
    }
};

struct Q5_0 {
    // d (q − 16). d f16; a fifth bit for each element; 16 bytes of nibbles, elements l low and l + 16 high.
    static const u32 ELEMENTS = 32, BYTES = 20, APART = 2, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        uint4 fifths = spread_ones(u16_at(block + 2 * part));
        uint4 q = nibbles(words4_at(block + 4), part) | (fifths << 4);
        return lanes(bytes_minus(q, 16), half_to_float(d), 0.0f);
    }
};

struct Q5_1 {
    // d q + m. d, m f16; a fifth bit for each element; 16 bytes of nibbles, elements l low and l + 16 high.
    static const u32 ELEMENTS = 32, BYTES = 24, APART = 0, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 16;
    static const bool MINS = true;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        float2 head = halves(word_at(block));
        uint4 fifths = spread_ones(word_at(block + 4) >> (16 * part));
        return lanes(nibbles(words4_at(block + 8), part) | (fifths << 4), head.x, -head.y);
    }
};

struct Q8_0 {
    // d q. d f16; 32 × i8.
    static const u32 ELEMENTS = 32, BYTES = 32, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        return lanes(quad_at(block + 16 * part), half_to_float(d), 0.0f);
    }
};

struct Q1_0 {
    // d where the element's bit is set, else −d. d f16; 128 bits.
    static const u32 ELEMENTS = 128, BYTES = 16, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        uint4 bits = spread_ones(u16_at(block + 2 * part));
        return lanes(bytes_minus(bits << 1, 1), half_to_float(d), 0.0f);
    }
};

struct Q2_0 {
    // d (q − 1). d f16; 64 pairs of bits.
    static const u32 ELEMENTS = 64, BYTES = 16, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        return lanes(bytes_minus(spread_pairs(word_at(block + 4 * part)), 1), half_to_float(d), 0.0f);
    }
};

struct F32 {
    static const u32 BYTES = 64, DISTANCE = 1;

    DEVICE void decode16(const u8* block, float out[16]) {
        const float4* from = (const float4*)block;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float4 x = from[i];
            out[4 * i] = x.x;
            out[4 * i + 1] = x.y;
            out[4 * i + 2] = x.z;
            out[4 * i + 3] = x.w;
        }
    }
};

struct F16 {
    static const u32 BYTES = 32, DISTANCE = 1;

    DEVICE void decode16(const u8* block, float out[16]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            uint4 words = quad_at(block + 16 * i);
            float2 a = halves(words.x), b = halves(words.y), c = halves(words.z), d = halves(words.w);
            out[8 * i] = a.x;
            out[8 * i + 1] = a.y;
            out[8 * i + 2] = b.x;
            out[8 * i + 3] = b.y;
            out[8 * i + 4] = c.x;
            out[8 * i + 5] = c.y;
            out[8 * i + 6] = d.x;
            out[8 * i + 7] = d.y;
        }
    }
};

struct BF16 {
    // The upper halves of F32.
    static const u32 BYTES = 32, DISTANCE = 1;

    DEVICE void decode16(const u8* block, float out[16]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            uint4 low = quad_at(block + 16 * i) << 16;
            uint4 high = quad_at(block + 16 * i) & 0xffff0000u;
            out[8 * i] = bits_to_float(low.x);
            out[8 * i + 1] = bits_to_float(high.x);
            out[8 * i + 2] = bits_to_float(low.y);
            out[8 * i + 3] = bits_to_float(high.y);
            out[8 * i + 4] = bits_to_float(low.z);
            out[8 * i + 5] = bits_to_float(high.z);
            out[8 * i + 6] = bits_to_float(low.w);
            out[8 * i + 7] = bits_to_float(high.w);
        }
    }
};
