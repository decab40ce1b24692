// The K types: super-blocks of 256.

struct Q2_K {
    // d scale q − dmin min. 16 bytes: a sub-block's scale low, min high; 64 bytes: byte 32 k + l has the pairs of elements
    // 128 k + l, + 32, + 64, + 96; d, dmin f16.
    static const u32 ELEMENTS = 256, BYTES = 84, APART = 0, GROUP = 4, DISTANCE = 2;
    static const u32 CENTER = 2;
    static const bool MINS = true;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        uint4 bytes = words4_at(block + 16 + 32 * (part >> 3) + 16 * (part & 1));
        u32 scales = u8_at(block + part);
        float2 head = halves(word_at(block + 80));
        return lanes(pairs(bytes, part & 6), head.x * (float)(scales & 15), head.y * (float)(scales >> 4));
    }
};

struct Q3_K {
    // d (scale − 32) (q − 4). 32 bytes: bit k of byte l is the third bit of element 32 k + l; 64 bytes: byte 32 k + l has the
    // pairs of elements 128 k + l, + 32, + 64, + 96; 12 bytes of scales; d f16.
    static const u32 ELEMENTS = 256, BYTES = 108, APART = 2, GROUP = 4, DISTANCE = 2;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        u32 side = 16 * (part & 1);
        uint4 low = pairs(words4_at(block + 32 + 32 * (part >> 3) + side), part & 6);
        uint4 high = ones(words4_at(block + side), part >> 1);
        // Four bits of scales 0 .. 8 and 8 .. 16 in the nibbles of eight bytes; two more of k, 4 + k, 8 + k, 12 + k in byte 8 + k.
        u32 scale_low = (u8_at(block + 96 + (part & 7)) >> (4 * (part >> 3))) & 15;
        u32 scale_high = (u8_at(block + 104 + (part & 3)) >> (2 * (part >> 2))) & 3;
        float scale = (float)((int)(scale_low | (scale_high << 4)) - 32);
        return lanes(bytes_minus(low | (high << 2), 4), half_to_float(d) * scale, 0.0f);
    }
};

// The 16 bytes that Q4_K and Q5_K blocks begin with: d, dmin f16; then 6 bits each of 8 scales and 8 mins: those of 0 .. 4 in a
// byte each; 4 bits of those of 4 .. 8 in a byte together (scale low), the other two atop the first bytes.
//
// d scale and dmin min of sub-block `sub`.
DEVICE float2 scale_and_min(uint4 head, u32 sub) {
    u32 shift = 8 * (sub & 3);
    u32 scale = head.y >> shift, min = head.z >> shift;
    if (sub < 4) {
        scale &= 63;
        min &= 63;
    } else {
        scale = ((head.w >> shift) & 15) | ((scale >> 2) & 48);
        min = ((head.w >> (shift + 4)) & 15) | ((min >> 2) & 48);
    }
    float2 d = halves(head.x);
    return make_float2(d.x * (float)scale, d.y * (float)min);
}

struct Q4_K {
    // d scale q − dmin min. The head; 128 bytes of nibbles: byte 32 k + l has elements 64 k + l and 64 k + 32 + l.
    static const u32 ELEMENTS = 256, BYTES = 144, APART = 0, GROUP = 2, DISTANCE = 2;
    static const u32 CENTER = 8;
    static const bool MINS = true;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        float2 head = scale_and_min(quad_at(block), part >> 1);
        uint4 bytes = quad_at(block + 16 + 32 * (part >> 2) + 16 * (part & 1));
        return lanes(nibbles(bytes, (part >> 1) & 1), head.x, head.y);
    }
};

struct Q5_K {
    // d scale q − dmin min. The head; 32 bytes: bit k of byte l is the fifth bit of element 32 k + l; 128 bytes of nibbles:
    // byte 32 k + l has elements 64 k + l and 64 k + 32 + l.
    static const u32 ELEMENTS = 256, BYTES = 176, APART = 0, GROUP = 2, DISTANCE = 2;
    static const u32 CENTER = 16;
    static const bool MINS = true;

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        float2 head = scale_and_min(quad_at(block), part >> 1);
        u32 side = 16 * (part & 1);
        uint4 fifths = ones(quad_at(block + 16 + side), part >> 1);
        uint4 low = nibbles(quad_at(block + 48 + 32 * (part >> 2) + side), (part >> 1) & 1);
        return lanes(low | (fifths << 4), head.x, head.y);
    }
};

struct Q6_K {
    // d scale (q − 32). 128 bytes of nibbles: byte 64 k + l has elements 128 k + l and 128 k + 64 + l; 64 bytes: byte 32 k + l
    // has the upper pairs of elements 128 k + l, + 32, + 64, + 96; 16 scales i8; d f16.
    static const u32 ELEMENTS = 256, BYTES = 208, APART = 2, GROUP = 4, DISTANCE = 2;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        u32 half = part >> 3;
        uint4 low = nibbles(quad_at(block + 64 * half + 16 * (part & 3)), (part >> 2) & 1);
        uint4 high = pairs(quad_at(block + 128 + 32 * half + 16 * (part & 1)), part & 6);
        float scale = half_to_float(d) * (float)i8_at(block + 192 + part);
        return lanes(bytes_minus(low | (high << 4), 32), scale, 0.0f);
    }
};
