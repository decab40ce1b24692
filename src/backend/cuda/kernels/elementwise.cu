// Norms, activations as int8, operations that take every element by itself, and the largest element.

#include "common.cuh"
#include "gates.cuh"

// See `Norm` in launch.rs.
struct Norm {
    // [rows][columns]
    const float* x;
    const float* weight;
    // Null for RMSNorm.
    const float* bias;
    float* out;
    // As `Quantize` has them, or null.
    u8* q;
    float2* scales;
    u32 columns;
    float eps;
};

struct Quantize {
    const float* x;
    // Int8, and for 16 elements the scale (of 32) and the sum of what they stand for.
    u8* q;
    float2* scales;
    // A multiple of 32.
    u32 elements;
};

struct Elements {
    const float* source;
    // Row numbers; for scatter_add, weights (as bits) after them.
    const u32* rows;
    float* to;
    // Elements to go through.
    u32 items;
    // Of a row of the target, and of the source.
    u32 columns;
    u32 source_columns;
    // Where in a row of the target the source begins; or the gate's kind.
    u32 offset;
    float factor;
};

struct Largest {
    const float* x;
    u32* out;
    u32 columns;
};

// Element i, one a lane of a whole warp.
DEVICE void quantize_lane(float x, u64 i, u8* q, float2* scales) {
    float largest = warp_max(fabsf(x));
    float scale = largest / 127.0f;
    float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int value = (int)rintf(x * inverse);
    q[i] = (u8)value;
    int sum = value;
    for (u32 s = 8; s > 0; s /= 2) {
        sum += __shfl_xor_sync(ALL, sum, s);
    }
    if (i % 16 == 0) {
        scales[i / 16] = make_float2(scale, scale * (float)sum);
    }
}

KERNEL(quantize, Quantize, 256, 1) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    // Whole warps go or stay.
    if (i < p.elements) {
        quantize_lane(p.x[i], i, p.q, p.scales);
    }
}

// out = x / rms(x) * weight, or (x − mean) / √(var + eps) * weight + bias: a block a row.
KERNEL(norm_rows, Norm, 256, 1) {
    __shared__ float shared[8];
    u64 start = (u64)blockIdx.x * p.columns;
    const float* x = p.x + start;
    float mean = 0.0f;
    if (p.bias != nullptr) {
        for (u32 i = threadIdx.x; i < p.columns; i += 256) {
            mean += x[i];
        }
        mean = block_sum(mean, shared, 8) / (float)p.columns;
    }
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < p.columns; i += 256) {
        float d = x[i] - mean;
        square += d * d;
    }
    float scale = 1.0f / sqrtf(block_sum(square, shared, 8) / (float)p.columns + p.eps);
    for (u32 i = threadIdx.x; i < p.columns; i += 256) {
        float y = (x[i] - mean) * scale * p.weight[i];
        if (p.bias != nullptr) {
            y += p.bias[i];
        }
        p.out[start + i] = y;
        if (p.q != nullptr) {
            quantize_lane(y, start + i, p.q, p.scales);
        }
    }
}

#define EACH                                                                                                           \
    u32 i = blockIdx.x * 256 + threadIdx.x;                                                                            \
    if (i >= p.items) {                                                                                                \
        return;                                                                                                        \
    }

KERNEL(add, Elements, 256, 1) {
    EACH
    p.to[i] += p.source[i];
}

KERNEL(add_bias, Elements, 256, 1) {
    EACH
    p.to[i] += p.source[i % p.columns];
}

KERNEL(scale, Elements, 256, 1) {
    EACH
    p.to[i] *= p.factor;
}

KERNEL(gelu, Elements, 256, 1) {
    EACH
    float x = p.to[i];
    p.to[i] = x / (1.0f + expf(-1.595769f * x * (1.0f + 0.044715f * x * x)));
}

// Rows of the source are twice as wide: gate, then up.
KERNEL(gate, Elements, 256, 1) {
    EACH
    u32 at = i / p.columns * p.source_columns + i % p.columns;
    p.to[i] = gated(p.offset, p.source[at], p.source[at + p.columns], p.factor);
}

// Copies rows into columns of wider rows.
KERNEL(concat, Elements, 256, 1) {
    EACH
    p.to[i / p.source_columns * p.columns + p.offset + i % p.source_columns] = p.source[i];
}

KERNEL(gather, Elements, 256, 1) {
    EACH
    p.to[i] = p.source[p.rows[i / p.columns] * p.columns + i % p.columns];
}

KERNEL(scatter_add, Elements, 256, 1) {
    EACH
    u32 row = i / p.columns;
    float weight = bits_to_float(p.rows[p.items / p.columns + row]);
    p.to[p.rows[row] * p.columns + i % p.columns] += weight * p.source[i];
}

// The number of each row's largest element, the first of several: a block a row.
KERNEL(largest, Largest, 256, 1) {
    __shared__ float best[256];
    __shared__ u32 at[256];
    const float* x = p.x + (u64)blockIdx.x * p.columns;
    float value = -3.4e38f;
    u32 number = 0;
    for (u32 i = threadIdx.x; i < p.columns; i += 256) {
        if (x[i] > value) {
            value = x[i];
            number = i;
        }
    }
    best[threadIdx.x] = value;
    at[threadIdx.x] = number;
    __syncthreads();
    for (u32 s = 128; s > 0; s /= 2) {
        if (threadIdx.x < s) {
            float other = best[threadIdx.x + s];
            u32 other_at = at[threadIdx.x + s];
            if (other > best[threadIdx.x] || (other == best[threadIdx.x] && other_at < at[threadIdx.x])) {
                best[threadIdx.x] = other;
                at[threadIdx.x] = other_at;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        p.out[blockIdx.x] = at[0];
    }
}
