// Activations as products with quantized weights take them; see rounding.rs.

// Int8 for a few rows, with the scale (of 32) and the sum of what they stand for for every 16;
// halves for many rows, with the factor that a row's results are to be multiplied by.
struct Rounded {
    // Of one of the two, the pointers are null; of both, if neither is wanted.
    u8* q;
    float2* scales;
    u16* halves;
    float* factors;
};

DEVICE float largest_of(float4 x) {
    return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
}

// Elements 4 i .. 4 i + 3, by all lanes of a warp; those beyond the end take part with `there` false.
DEVICE void quantize_four(float4 x, u64 i, const Rounded& to, bool there) {
    float largest = largest_of(x);
    for (u32 s = 1; s < 8; s *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, s));
    }
    float scale = largest / 127.0f;
    float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int a = (int)rintf(x.x * inverse), b = (int)rintf(x.y * inverse);
    int c = (int)rintf(x.z * inverse), d = (int)rintf(x.w * inverse);
    int sum = a + b + c + d;
    sum += __shfl_xor_sync(ALL, sum, 1);
    sum += __shfl_xor_sync(ALL, sum, 2);
    if (!there) {
        return;
    }
    ((u32*)to.q)[i] = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (u32)d << 24;
    if (i % 4 == 0) {
        to.scales[i / 4] = make_float2(scale, scale * (float)sum);
    }
}

// The power of two that brings numbers up to `largest` into the range of halves; `inverse` is its inverse. The largest one
// then has an exponent of 13.
DEVICE float halving(float largest, float* inverse) {
    int exponent = (int)(float_to_bits(largest) >> 23);
    int shift = exponent == 255 || largest == 0.0f ? 0 : 13 + 127 - exponent;
    shift = shift > 126 ? 126 : shift;
    *inverse = bits_to_float((u32)(127 - shift) << 23);
    return bits_to_float((u32)(127 + shift) << 23);
}

// Elements 4 i .. 4 i + 3.
DEVICE void halve_four(float4 x, float factor, u64 i, const Rounded& to) {
    ((uint2*)to.halves)[i] = make_uint2(halves(x.x * factor, x.y * factor), halves(x.z * factor, x.w * factor));
}

// Element i as int8, one a lane of a whole warp.
DEVICE void quantize_lane(float x, u64 i, const Rounded& to) {
    float largest = warp_max(fabsf(x));
    float scale = largest / 127.0f;
    float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int value = (int)rintf(x * inverse);
    to.q[i] = (u8)value;
    int sum = value;
    for (u32 s = 8; s > 0; s /= 2) {
        sum += __shfl_xor_sync(ALL, sum, s);
    }
    if (i % 16 == 0) {
        to.scales[i / 16] = make_float2(scale, scale * (float)sum);
    }
}
