// Norms, activations as int8, operations that take every element by itself, and the largest elements.

#include "common.cuh"
#include "gates.cuh"
#include "rounding.cuh"

// See `Norm` in launch.rs.
struct Norm {
    // [rows][columns]
    const float* x;
    const float* weight;
    // Null for RMSNorm.
    const float* bias;
    float* out;
    Rounded to;
    u32 columns;
    float eps;
};

// See `Round` in launch.rs.
struct Round {
    // [rows][columns]
    const float* x;
    Rounded to;
    // A multiple of 32; of 16 for halves.
    u32 columns;
    u32 elements;
};

// See `GateRows` in launch.rs.
struct GateRows {
    // [rows][2 columns]: gates, then what they are for.
    const float* x;
    // [rows][columns]
    float* out;
    Rounded to;
    u32 columns;
    // See gates.cuh.
    u32 kind;
    float limit;
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

DEVICE float4 four_at(const float* x, u64 i) {
    return ((const float4*)x)[i];
}

KERNEL(quantize, Round, 256, 1) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    bool there = i < p.elements / 4;
    quantize_four(there ? four_at(p.x, i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f), i, p.to, there);
}

// Halves of a row of a block of `threads`, whose largest size is `largest`. Each thread reads its own elements, so that it may have just
// written them.
DEVICE void halve_row(const float* x, float largest, u32 columns, const Rounded& to, u32 threads) {
    float inverse;
    float factor = halving(largest, &inverse);
    u64 start = (u64)blockIdx.x * (columns / 4);
    for (u32 i = threadIdx.x; i < columns / 4; i += threads) {
        halve_four(four_at(x, start + i), factor, start + i, to);
    }
    if (threadIdx.x == 0) {
        to.factors[blockIdx.x] = inverse;
    }
}

KERNEL(halve_rows, Round, 256, 1) {
    __shared__ float shared[8];
    u64 start = (u64)blockIdx.x * (p.columns / 4);
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < p.columns / 4; i += 256) {
        largest = fmaxf(largest, largest_of(four_at(p.x, start + i)));
    }
    halve_row(p.x, block_max(largest, shared, 8), p.columns, p.to, 256);
}

DEVICE float4 gated_four(u32 kind, float4 gate, float4 up, float limit) {
    return make_float4(
        gated(kind, gate.x, up.x, limit), gated(kind, gate.y, up.y, limit), gated(kind, gate.z, up.z, limit),
        gated(kind, gate.w, up.w, limit)
    );
}

// A block a row, whose halves are left too.
KERNEL(gate_rows, GateRows, 256, 1) {
    __shared__ float shared[8];
    u64 start = (u64)blockIdx.x * (p.columns / 4);
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < p.columns / 4; i += 256) {
        float4 y = gated_four(p.kind, four_at(p.x, 2 * start + i), four_at(p.x, 2 * start + p.columns / 4 + i), p.limit);
        ((float4*)p.out)[start + i] = y;
        largest = fmaxf(largest, largest_of(y));
    }
    halve_row(p.out, block_max(largest, shared, 8), p.columns, p.to, 256);
}

const u32 NORM_THREADS = 1024;

// The norm of a row by a block, in vectors of four, and what products take of it. There are as many threads as make a row one go.
DEVICE void norm_fours(const Norm& p, float* shared) {
    u32 fours = p.columns / 4;
    u64 start = (u64)blockIdx.x * fours;
    float mean = 0.0f;
    if (p.bias != nullptr) {
        for (u32 i = threadIdx.x; i < fours; i += NORM_THREADS) {
            float4 x = four_at(p.x, start + i);
            mean += (x.x + x.y) + (x.z + x.w);
        }
        mean = block_sum(mean, shared, NORM_THREADS / WARP) / (float)p.columns;
    }
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < fours; i += NORM_THREADS) {
        float4 x = four_at(p.x, start + i);
        float a = x.x - mean, b = x.y - mean, c = x.z - mean, d = x.w - mean;
        square += (a * a + b * b) + (c * c + d * d);
    }
    float scale = 1.0f / sqrtf(block_sum(square, shared, NORM_THREADS / WARP) / (float)p.columns + p.eps);
    float largest = 0.0f;
    // Whole warps go on, as their lanes meet.
    for (u32 i = threadIdx.x; i < (fours + WARP - 1) / WARP * WARP; i += NORM_THREADS) {
        bool there = i < fours;
        float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (there) {
            float4 x = four_at(p.x, start + i), w = four_at(p.weight, i);
            y = make_float4(
                (x.x - mean) * scale * w.x, (x.y - mean) * scale * w.y, (x.z - mean) * scale * w.z,
                (x.w - mean) * scale * w.w
            );
            if (p.bias != nullptr) {
                float4 bias = four_at(p.bias, i);
                y = make_float4(y.x + bias.x, y.y + bias.y, y.z + bias.z, y.w + bias.w);
            }
            ((float4*)p.out)[start + i] = y;
        }
        if (p.to.q != nullptr) {
            quantize_four(y, start + i, p.to, there);
        }
        largest = fmaxf(largest, largest_of(y));
    }
    if (p.to.halves != nullptr) {
        halve_row(p.out, block_max(largest, shared, NORM_THREADS / WARP), p.columns, p.to, NORM_THREADS);
    }
}

// out = x / rms(x) * weight, or (x − mean) / √(var + eps) * weight + bias: a block a row.
KERNEL(norm_rows, Norm, NORM_THREADS, 1) {
    __shared__ float shared[NORM_THREADS / WARP];
    if (p.columns % 4 == 0) {
        norm_fours(p, shared);
        return;
    }
    u64 start = (u64)blockIdx.x * p.columns;
    const float* x = p.x + start;
    float mean = 0.0f;
    if (p.bias != nullptr) {
        for (u32 i = threadIdx.x; i < p.columns; i += NORM_THREADS) {
            mean += x[i];
        }
        mean = block_sum(mean, shared, NORM_THREADS / WARP) / (float)p.columns;
    }
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < p.columns; i += NORM_THREADS) {
        float d = x[i] - mean;
        square += d * d;
    }
    float scale = 1.0f / sqrtf(block_sum(square, shared, NORM_THREADS / WARP) / (float)p.columns + p.eps);
    for (u32 i = threadIdx.x; i < p.columns; i += NORM_THREADS) {
        p.out[start + i] = (x[i] - mean) * scale * p.weight[i] + (p.bias != nullptr ? p.bias[i] : 0.0f);
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
