// Ternary types and 4-bit floats.

struct TQ1_0 {
    // d (digit − 1). Base-3 digits as fixed-point fractions: 32 bytes of five (elements m + 32 n), 16 of five (160 + m + 16 n),
    // 4 of four (240 + m + 4 n); d f16.
    static const u32 ELEMENTS = 256, BYTES = 52, APART = 2, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    // 3^n, n below 5.
    DEVICE u32 power_of_3(u32 n) {
        return n == 4 ? 81 : (0x1b090301u >> (8 * n)) & 255;
    }

    // The digits that a power of 3 pushes to the top of the bytes.
    DEVICE u32 digits(u32 bytes, u32 power) {
        u32 even = ((((bytes & 0x00ff00ffu) * power) & 0x00ff00ffu) * 3) >> 8;
        u32 odd = ((((bytes >> 8) & 0x00ff00ffu) * power) & 0x00ff00ffu) * 3;
        return (even & 0x00030003u) | (odd & 0x03000300u);
    }

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        uint4 q;
        if (part == 15) {
            u32 bytes = word_at(block + 48);
            q = make_uint4(digits(bytes, 1), digits(bytes, 3), digits(bytes, 9), digits(bytes, 27));
        } else {
            // Parts 0 .. 10 lie in the first run, 10 .. 15 in the second.
            u32 power = power_of_3(part >= 10 ? part - 10 : part >> 1);
            uint4 bytes = words4_at(block + (part >= 10 ? 32 : 16 * (part & 1)));
            q = make_uint4(
                digits(bytes.x, power), digits(bytes.y, power), digits(bytes.z, power), digits(bytes.w, power)
            );
        }
        return lanes(bytes_minus(q, 1), half_to_float(d), 0.0f);
    }
};

struct TQ2_0 {
    // d (q − 1). 64 bytes: byte 32 k + l has the pairs of elements 128 k + l, + 32, + 64, + 96; d f16.
    static const u32 ELEMENTS = 256, BYTES = 64, APART = 2, GROUP = 4, DISTANCE = 2;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 d, u32 part, const u32*) {
        uint4 q = pairs(quad_at(block + 32 * (part >> 3) + 16 * (part & 1)), part & 6);
        return lanes(bytes_minus(q, 1), half_to_float(d), 0.0f);
    }
};

// Twice the values of 4-bit floats (E2M1), as int8: 0 1 2 3 4 6 8 12 and their negatives.
DEVICE uint4 e2m1_doubled(uint4 codes) {
    uint4 magnitude = codes & 0x07070707u;
    uint4 high = ones(codes, 2);
    // From 4 on there come 1, 2, 5 on top of 5, 6, 7.
    uint4 low = magnitude & (high * 3);
    uint4 both = low & (low >> 1) & high;
    uint4 doubled = magnitude + low + both * 2;
    uint4 negative = ones(codes, 3) * 255;
    return (four(0x80808080u) + doubled - (doubled & negative) * 2) ^ 0x80808080u;
}

struct MXFP4 {
    // 2^(e − 127) E2M1(q). e; 16 bytes of nibbles, elements l low and l + 16 high.
    static const u32 ELEMENTS = 32, BYTES = 16, APART = 1, GROUP = 2, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    DEVICE Lanes16 lanes16(const u8* block, u32 e, u32 part, const u32*) {
        // Half of the power, subnormal where it must be.
        u32 half_power = e < 2 ? 0x00200000u << e : (e - 1) << 23;
        return lanes(e2m1_doubled(nibbles(quad_at(block), part)), bits_to_float(half_power), 0.0f);
    }
};

struct NVFP4 {
    // scale E2M1(q). Four scales, unsigned floats of 4 bits of exponent (bias 7) and 3 of mantissa; for each group of 16
    // elements 8 bytes of nibbles, elements l low and l + 8 high.
    static const u32 ELEMENTS = 64, BYTES = 36, APART = 0, GROUP = 1, DISTANCE = 1;
    static const u32 CENTER = 0;
    static const bool MINS = false;

    // Half of what the byte stands for; 0 for 0x7f, its NaN.
    DEVICE float half_e4m3(u32 byte) {
        u32 exponent = (byte >> 3) & 15;
        u32 mantissa = byte & 7;
        float normal = bits_to_float(((exponent + 119) << 23) | (mantissa << 20));
        float value = exponent == 0 ? (float)mantissa * 0.0009765625f : normal;
        return byte == 0x7f ? 0.0f : value;
    }

    DEVICE Lanes16 lanes16(const u8* block, u32, u32 part, const u32*) {
        const u8* first = block + 4 + 8 * part;
        u32 a = word_at(first), b = word_at(first + 4);
        uint4 codes = make_uint4(a, b, a >> 4, b >> 4) & 0x0f0f0f0fu;
        return lanes(e2m1_doubled(codes), half_e4m3(u8_at(block + part)), 0.0f);
    }
};
