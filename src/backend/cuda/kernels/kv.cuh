// How keys and values lie in the cache: 32 elements of a head are a group, of as many words as GROUP_WORDS says. Types have
// the numbers that kv_number in cache.rs gives them; ANY is a type that is known at run time only.

const int KV_F32 = 0, KV_F16 = 1, KV_BF16 = 2, KV_Q8_0 = 3, KV_Q4_0 = 4, KV_ANY = 5;

DEVICE u32 group_words(int kind) {
    return kind == KV_F32 ? 32 : kind == KV_Q8_0 ? 9 : kind == KV_Q4_0 ? 5 : 16;
}

// Elements 4 i .. 4 i + 3 of a group.
template <int KIND>
DEVICE float4 load4(const u32* group, u32 i, int kind) {
    if (KIND != KV_ANY) {
        kind = KIND;
    }
    if (kind == KV_F32) {
        return *(const float4*)(group + 4 * i);
    }
    if (kind == KV_F16) {
        uint2 words = *(const uint2*)(group + 2 * i);
        return make_float4(
            half_to_float(words.x & 0xffff), half_to_float(words.x >> 16), half_to_float(words.y & 0xffff),
            half_to_float(words.y >> 16)
        );
    }
    if (kind == KV_BF16) {
        uint2 words = *(const uint2*)(group + 2 * i);
        return make_float4(
            bits_to_float(words.x << 16), bits_to_float(words.x & 0xffff0000u), bits_to_float(words.y << 16),
            bits_to_float(words.y & 0xffff0000u)
        );
    }
    float scale = bits_to_float(group[0]);
    if (kind == KV_Q8_0) {
        u32 word = group[1 + i];
        return make_float4(
            scale * (float)(signed char)word, scale * (float)(signed char)(word >> 8),
            scale * (float)(signed char)(word >> 16), scale * (float)(signed char)(word >> 24)
        );
    }
    u32 nibbles = group[1 + i / 2] >> (16 * (i % 2));
    return make_float4(
        scale * ((float)(nibbles & 15) - 8.0f), scale * ((float)((nibbles >> 4) & 15) - 8.0f),
        scale * ((float)((nibbles >> 8) & 15) - 8.0f), scale * ((float)((nibbles >> 12) & 15) - 8.0f)
    );
}

// Brings elements 8 i .. 8 i + 7 of a group to shared memory as halves: as they are if the type is F16, else rounded. They are there
// after wait_for_copies.
template <int KIND>
DEVICE void fetch_halves(u32* to, const u32* group, u32 i) {
    if constexpr (KIND == KV_F16) {
        copy_async(to, group + 4 * i, true);
    } else {
        float4 a = load4<KIND>(group, 2 * i, KIND), b = load4<KIND>(group, 2 * i + 1, KIND);
        *(uint4*)to = make_uint4(halves(a.x, a.y), halves(a.z, a.w), halves(b.x, b.y), halves(b.z, b.w));
    }
}

// The upper half of a float, rounded to nearest even.
DEVICE u32 upper(float x) {
    u32 bits = float_to_bits(x);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Stores element `lane` of a group, one a lane of a whole warp.
template <int KIND>
DEVICE void store_lane(u32* group, u32 lane, float x, int kind) {
    if (KIND != KV_ANY) {
        kind = KIND;
    }
    if (kind == KV_F32) {
        group[lane] = float_to_bits(x);
    } else if (kind == KV_F16) {
        ((u16*)group)[lane] = (u16)float_to_half(x);
    } else if (kind == KV_BF16) {
        ((u16*)group)[lane] = (u16)upper(x);
    } else if (kind == KV_Q8_0) {
        float exact = warp_max(fabsf(x)) / 127.0f;
        float inverse = exact > 0.0f ? 1.0f / exact : 0.0f;
        ((u8*)(group + 1))[lane] = (u8)(int)rintf(x * inverse);
        if (lane == 0) {
            group[0] = float_to_bits(half_to_float(float_to_half(exact)));
        }
    } else {
        // The element of the largest size, the first of several, gets the code 0, the one that only negative numbers have.
        float largest = warp_max(fabsf(x));
        u32 first = __ffs(__ballot_sync(ALL, fabsf(x) == largest)) - 1;
        float exact = __shfl_sync(ALL, x, first) / -8.0f;
        float inverse = exact != 0.0f ? 1.0f / exact : 0.0f;
        u32 code = (u32)fminf(fmaxf(x * inverse + 8.5f, 0.0f), 15.0f);
        u32 next = __shfl_xor_sync(ALL, code, 1);
        if (lane % 2 == 0) {
            ((u8*)(group + 1))[lane / 2] = (u8)(code | (next << 4));
        }
        if (lane == 0) {
            group[0] = float_to_bits(half_to_float(float_to_half(exact)));
        }
    }
}
