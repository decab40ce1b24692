// Norms, activations as int8, operations that take every element by itself, and the largest elements.

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

// See `Route` in launch.rs.
struct Route {
    // [rows][experts]
    const float* scores;
    // [rows][4]: the experts in ascending order, and what each counts, as bits.
    u32* routes;
    u32 rows;
    u32 experts;
    // How far from the best, relative to the larger, a score is close.
    float closeness;
};

// See `Put` in launch.rs.
struct Put {
    u32* to;
    u32 count;
    u32 words[240];
};

struct Largest {
    // Floats as bits in a first pass, then what the pass before left.
    const u32* x;
    uint2* out;
    // Entries of a row, and how many of them a chunk leaves.
    u32 columns;
    u32 count;
    u32 is_first;
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

// The results of a row's two experts come one after the other; `rows` is what `route` leaves.
KERNEL(mix, Elements, 256, 1) {
    EACH
    u32 row = i / p.columns;
    u64 first = (u64)2 * row * p.columns + i % p.columns;
    float one = bits_to_float(p.rows[4 * row + 2]) * p.source[first];
    p.to[i] = one + bits_to_float(p.rows[4 * row + 3]) * p.source[first + p.columns];
}

// Writes words that come with the launch.
KERNEL(put, Put, 256, 1) {
    if (threadIdx.x < p.count) {
        p.to[threadIdx.x] = p.words[threadIdx.x];
    }
}

// The best expert but `taken`; `weight` is its share in the softmax over those that are close to it.
DEVICE u32 best_expert(const Route& p, const float* scores, u32 taken, float* weight) {
    u32 expert = 0;
    float largest = -3.4028234e38f;
    for (u32 i = 0; i < p.experts; i++) {
        if (i != taken && scores[i] > largest) {
            expert = i;
            largest = scores[i];
        }
    }
    float sum = 0.0f;
    for (u32 i = 0; i < p.experts; i++) {
        float size = fmaxf(fabsf(scores[i]), largest);
        // 0 / 0 counts as close.
        bool is_close = size == 0.0f || (largest - scores[i]) / size <= p.closeness;
        if (i != taken && is_close) {
            sum += expf(scores[i] - largest);
        }
    }
    *weight = 1.0f / sum;
    return expert;
}

// Which two experts each row goes through, and what they count: SparseMixer, as model/experts.rs has it. A thread takes a row.
KERNEL(route, Route, 32, 1) {
    u32 row = threadIdx.x;
    if (row >= p.rows) {
        return;
    }
    float weights[2];
    u32 first = best_expert(p, p.scores + row * p.experts, 0xffffffff, &weights[0]);
    u32 second = best_expert(p, p.scores + row * p.experts, first, &weights[1]);
    bool in_order = first < second;
    u32* routes = p.routes + 4 * row;
    routes[0] = min_u(first, second);
    routes[1] = max_u(first, second);
    routes[2] = float_to_bits(in_order ? weights[0] : weights[1]);
    routes[3] = float_to_bits(in_order ? weights[1] : weights[0]);
}

// NaN is above everything, -0 is 0; nothing has a key of 0.
DEVICE u32 key_of(u32 bits) {
    u32 size = bits & 0x7fffffff;
    if (size > 0x7f800000) {
        return 0xffffffff;
    }
    return size == 0 ? 0x80000000 : bits >> 31 ? ~bits : bits | 0x80000000;
}

// Entries are pairs of a key and a number.
DEVICE bool is_better(uint2 a, uint2 b) {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

// Puts runs of `size` in order that rise or fall in both halves, runs of even number with the better first; there are 2 `pairs`
// entries.
DEVICE void merge(uint2* entries, u32 size, u32 pairs) {
    for (u32 s = size / 2; s > 0; s /= 2) {
        if (threadIdx.x < pairs) {
            u32 at = 2 * s * (threadIdx.x / s) + threadIdx.x % s;
            uint2 a = entries[at], b = entries[at + s];
            if (is_better(b, a) == ((at & size) == 0)) {
                entries[at] = b;
                entries[at + s] = a;
            }
        }
        __syncthreads();
    }
}

// The best entries of each chunk of a row, best first: a block a chunk.
KERNEL(largest, Largest, 256, 1) {
    const u32 CHUNK = 512;
    __shared__ uint2 entries[CHUNK];
    for (u32 i = threadIdx.x; i < CHUNK; i += 256) {
        u32 number = blockIdx.x * CHUNK + i;
        u64 at = (u64)blockIdx.y * p.columns + number;
        uint2 entry = make_uint2(0, 0xffffffff);
        if (number < p.columns) {
            entry = p.is_first ? make_uint2(key_of(p.x[at]), number) : ((const uint2*)p.x)[at];
        }
        entries[i] = entry;
    }
    __syncthreads();
    // Runs as long as what is to be left: sorted, then the better half of two runs as often as there are two.
    u32 run = 1;
    while (run < p.count) {
        run *= 2;
        merge(entries, run, CHUNK / 2);
    }
    for (u32 left = CHUNK / 2; left >= run; left /= 2) {
        uint2 best = entries[0];
        if (threadIdx.x < left) {
            u32 at = 2 * run * (threadIdx.x / run) + threadIdx.x % run;
            best = is_better(entries[at], entries[at + run]) ? entries[at] : entries[at + run];
        }
        __syncthreads();
        if (threadIdx.x < left) {
            entries[threadIdx.x] = best;
        }
        __syncthreads();
        merge(entries, run, left / 2);
    }
    if (threadIdx.x < p.count) {
        p.out[((u64)blockIdx.y * gridDim.x + blockIdx.x) * p.count + threadIdx.x] = entries[threadIdx.x];
    }
}
