// Everything that reads weights, for one type: TYPE is its name, LANES 1 where it has int8 lanes and 0 where it is a float type.

#include "common.cuh"
#include "blocks/lanes.cuh"
#include "blocks/legacy.cuh"
#include "blocks/k.cuh"
#include "blocks/iq.cuh"
#include "blocks/ternary_fp4.cuh"
#include "gates.cuh"

// See `Product` in launch.rs.
struct Product {
    // [rows][row_bytes]
    const u8* weights;
    const u32* codebook;
    // [tokens][columns]
    const float* x;
    // The same in int8, and for 16 elements the scale and the sum of what they stand for.
    const u8* q;
    const float2* scales;
    // [rows], or null.
    const float* bias;
    // [tokens][out_stride]
    float* out;
    u32 columns;
    u32 rows;
    u32 row_bytes;
    u32 tokens;
    u32 out_stride;
    // 0 stores, 1 adds, 2 and 3 are gates: SwiGLU and GEGELU.
    u32 ending;
    float limit;
};

// See `Picked` in launch.rs: products with matrices of the experts that rows go through.
struct Picked {
    // Its weights are to be chosen; a row of out is for one expert, two are for a token.
    Product product;
    // [experts]: where their matrices are.
    const u8* const* table;
    // See `Route` in elementwise.cu.
    const u32* routes;
    // Experts that take each row of x: 2 or 1.
    u32 picks;
};

struct Embed {
    const u8* weights;
    const u32* codebook;
    const u32* ids;
    float* out;
    u32 columns;
    u32 row_bytes;
};

const u32 WARPS = 4;

DEVICE void put(const Product& p, u32 token, u32 row, float sum) {
    if (p.bias != nullptr) {
        sum += p.bias[row];
    }
    float* to = p.out + (u64)token * p.out_stride + row;
    *to = p.ending == 1 ? *to + sum : sum;
}

// Leaves a warp's sums of N tokens from `first` on; with two halves, gate and up of one token.
template <u32 N, u32 HALVES>
DEVICE void finish(const Product& p, u32 first, u32 row, u32 count, float sums[N * HALVES]) {
    float mine = 0.0f;
#pragma unroll
    for (u32 n = 0; n < N * HALVES; n++) {
        sums[n] = warp_sum(sums[n]);
        if (threadIdx.x % WARP == n) {
            mine = sums[n];
        }
    }
    if (row >= count) {
        return;
    }
    if constexpr (HALVES == 2) {
        if (threadIdx.x % WARP == 0) {
            float gate = sums[0], up = sums[1];
            if (p.bias != nullptr) {
                gate += p.bias[row];
                up += p.bias[row + count];
            }
            p.out[(u64)first * p.out_stride + row] = gated(p.ending, gate, up, p.limit);
        }
    } else if (threadIdx.x % WARP < N && first + threadIdx.x % WARP < p.tokens) {
        put(p, first + threadIdx.x % WARP, row, mine);
    }
}

#if LANES

// The number of the first part of group `g`.
template <typename T>
DEVICE u32 first_part(u32 g) {
    return T::DISTANCE == 1 ? g * T::GROUP : g / 2 * (2 * T::GROUP) + g % 2;
}

template <typename T>
DEVICE Lanes16 lanes_at(const u8* row, u32 part, const u32* codebook) {
    const u32 PARTS = T::ELEMENTS / 16;
    return T::lanes16(row + (u64)(part / PARTS) * T::BYTES, part % PARTS, codebook);
}

DEVICE int dot16(uint4 a, uint4 b) {
    int sum = __dp4a((int)a.x, (int)b.x, 0);
    sum = __dp4a((int)a.y, (int)b.y, sum);
    sum = __dp4a((int)a.z, (int)b.z, sum);
    return __dp4a((int)a.w, (int)b.w, sum);
}

// A warp takes a row, or with two halves a row of each, for N tokens. Sums are made in one order whatever N is.
template <typename T, u32 N, u32 HALVES>
DEVICE void matvec(const Product& p) {
    u32 row = blockIdx.x * WARPS + threadIdx.x / WARP;
    u32 first = blockIdx.y * N;
    u32 count = p.rows / HALVES;
    const u8* start = p.weights + (u64)min_u(row, count - 1) * p.row_bytes;
    const u8* other = start + (u64)count * p.row_bytes;
    float sums[N * HALVES];
#pragma unroll
    for (u32 n = 0; n < N * HALVES; n++) {
        sums[n] = 0.0f;
    }
    u32 parts = p.columns / 16;
#pragma unroll 1
    for (u32 g = threadIdx.x % WARP; g < parts / T::GROUP; g += WARP) {
#pragma unroll
        for (u32 j = 0; j < T::GROUP; j++) {
            u32 part = first_part<T>(g) + j * T::DISTANCE;
            Lanes16 w = lanes_at<T>(start, part, p.codebook);
            Lanes16 v = w;
            if constexpr (HALVES == 2) {
                v = lanes_at<T>(other, part, p.codebook);
            }
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                u64 at = (u64)min_u(first + n, p.tokens - 1) * parts + part;
                uint4 x = ((const uint4*)p.q)[at];
                float2 scale = p.scales[at];
                sums[n] = __fmaf_rn(w.scale * scale.x, (float)dot16(w.q, x), sums[n]);
                if constexpr (T::MINS) {
                    sums[n] = __fmaf_rn(-w.min, scale.y, sums[n]);
                }
                if constexpr (HALVES == 2) {
                    sums[1] = __fmaf_rn(v.scale * scale.x, (float)dot16(v.q, x), sums[1]);
                    if constexpr (T::MINS) {
                        sums[1] = __fmaf_rn(-v.min, scale.y, sums[1]);
                    }
                }
            }
        }
    }
    finish<N, HALVES>(p, first, row, count, sums);
}

const u32 TILE_ROWS = 128, TILE_TOKENS = 64, TILE_THREADS = 256;
// Parts of 16 columns that a step takes.
const u32 STEP = 8;
// Words of a row in shared memory: a step's, and 4 more, so that 8 rows lie in different banks.
const u32 STRIDE = STEP * 4 + 4;

// A tile of 128 rows by 64 tokens: weights are decoded to int8 once for all its tokens, and multiplied by the tensor cores; a
// warp takes 32 rows by 32 tokens. Scales are applied for every 32 columns, or 16 where two parts have scales of their own.
template <typename T>
DEVICE void matmul(const Product& p) {
    __shared__ uint4 w_words[TILE_ROWS * STRIDE / 4];
    __shared__ uint4 x_words[TILE_TOKENS * STRIDE / 4];
    __shared__ float2 w_scales[STEP][TILE_ROWS];
    __shared__ float2 x_scales[STEP][TILE_TOKENS];
    u32 thread = threadIdx.x, lane = thread % WARP;
    u32 warp_row = thread / WARP % 4 * 32, warp_token = thread / WARP / 4 * 32;
    u32 first_token = blockIdx.x * TILE_TOKENS, first_row = blockIdx.y * TILE_ROWS;
    u32 parts = p.columns / 16;
    float sums[2][4][4];
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        sums[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }
    for (u32 begin = 0; begin < parts; begin += STEP) {
        const u32 GROUPS = STEP / T::GROUP;
        for (u32 i = thread; i < TILE_ROWS * GROUPS; i += TILE_THREADS) {
            u32 row = i / GROUPS;
            const u8* start = p.weights + (u64)min_u(first_row + row, p.rows - 1) * p.row_bytes;
#pragma unroll
            for (u32 j = 0; j < T::GROUP; j++) {
                u32 part = first_part<T>(i % GROUPS) + j * T::DISTANCE;
                Lanes16 w = lanes(four(0), 0.0f, 0.0f);
                if (begin + part < parts) {
                    w = lanes_at<T>(start, begin + part, p.codebook);
                }
                w_words[row * (STRIDE / 4) + part] = w.q;
                w_scales[part][row] = make_float2(w.scale, w.min);
            }
        }
        for (u32 i = thread; i < TILE_TOKENS * STEP; i += TILE_THREADS) {
            u32 token = i / STEP, part = i % STEP;
            u64 at = (u64)min_u(first_token + token, p.tokens - 1) * parts + begin + part;
            bool there = begin + part < parts;
            x_words[token * (STRIDE / 4) + part] = there ? ((const uint4*)p.q)[at] : four(0);
            x_scales[part][token] = there ? p.scales[at] : make_float2(0.0f, 0.0f);
        }
        __syncthreads();
        const u32* ws = (const u32*)w_words;
        const u32* xs = (const u32*)x_words;
        const u32 WIDTH = T::WIDE ? 2 : 1;
#pragma unroll
        for (u32 part = 0; part < STEP; part += WIDTH) {
            u32 b[4][2];
            float2 x_scale[4][2];
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                u32 at = (warp_token + 8 * n + lane / 4) * STRIDE + part * 4 + lane % 4;
                b[n][0] = xs[at];
                b[n][1] = xs[at + 4 * (WIDTH - 1)];
#pragma unroll
                for (u32 c = 0; c < 2; c++) {
                    u32 token = warp_token + 8 * n + lane % 4 * 2 + c;
                    x_scale[n][c] = x_scales[part][token];
                    if constexpr (T::WIDE && T::MINS) {
                        x_scale[n][c].y += x_scales[part + 1][token].y;
                    }
                }
            }
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
                u32 row = warp_row + 16 * m + lane / 4;
                u32 at = row * STRIDE + part * 4 + lane % 4;
                u32 a[4] = {ws[at], ws[at + 8 * STRIDE], 0, 0};
                if constexpr (T::WIDE) {
                    a[2] = ws[at + 4];
                    a[3] = ws[at + 8 * STRIDE + 4];
                }
                float2 w_scale[2] = {w_scales[part][row], w_scales[part][row + 8]};
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    int c[4] = {0, 0, 0, 0};
                    if constexpr (T::WIDE) {
                        mma32(c, a, b[n]);
                    } else {
                        mma16(c, a, b[n][0]);
                    }
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        float2 w = w_scale[i / 2], x = x_scale[n][i % 2];
                        sums[m][n][i] = __fmaf_rn(w.x * x.x, (float)c[i], sums[m][n][i]);
                        if constexpr (T::MINS) {
                            sums[m][n][i] = __fmaf_rn(-w.y, x.y, sums[m][n][i]);
                        }
                    }
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        u32 row = first_row + warp_row + 16 * (i / 16) + 8 * (i / 2 % 2) + lane / 4;
        u32 token = first_token + warp_token + 8 * (i / 4 % 4) + lane % 4 * 2 + i % 2;
        if (row < p.rows && token < p.tokens) {
            put(p, token, row, sums[i / 16][i / 4 % 4][i % 4]);
        }
    }
}

template <typename T>
DEVICE void decode(const u8* row, u32 part, const u32* codebook, float out[16]) {
    Lanes16 w = lanes_at<T>(row, part, codebook);
    u32 words[4] = {w.q.x, w.q.y, w.q.z, w.q.w};
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        out[i] = w.scale * (float)(signed char)(words[i / 4] >> (8 * (i % 4))) - w.min;
    }
}

#else

template <typename T>
DEVICE void decode(const u8* row, u32 part, const u32*, float out[16]) {
    T::decode16(row + (u64)part * T::BYTES, out);
}

template <typename T, u32 N, u32 HALVES>
DEVICE void matvec(const Product& p) {
    u32 row = blockIdx.x * WARPS + threadIdx.x / WARP;
    u32 first = blockIdx.y * N;
    u32 count = p.rows / HALVES;
    const u8* start = p.weights + (u64)min_u(row, count - 1) * p.row_bytes;
    const u8* other = start + (u64)count * p.row_bytes;
    float sums[N * HALVES];
#pragma unroll
    for (u32 n = 0; n < N * HALVES; n++) {
        sums[n] = 0.0f;
    }
#pragma unroll 1
    for (u32 part = threadIdx.x % WARP; part < p.columns / 16; part += WARP) {
        float w[16], v[16];
        T::decode16(start + (u64)part * T::BYTES, w);
        if constexpr (HALVES == 2) {
            T::decode16(other + (u64)part * T::BYTES, v);
        }
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            const float4* x = (const float4*)(p.x + (u64)min_u(first + n, p.tokens - 1) * p.columns) + 4 * part;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float4 four = x[i];
                float xs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    sums[n] = __fmaf_rn(w[4 * i + j], xs[j], sums[n]);
                    if constexpr (HALVES == 2) {
                        sums[1] = __fmaf_rn(v[4 * i + j], xs[j], sums[1]);
                    }
                }
            }
        }
    }
    finish<N, HALVES>(p, first, row, count, sums);
}

const u32 TILE_ROWS = 64, TILE_TOKENS = 64, TILE_THREADS = 128;
// Columns that a step takes, and their distance in shared memory.
const u32 STEP = 32, STRIDE = 36;

// Tiles of 64 rows by 64 tokens in 32-bit floats; a thread takes rows row, row + 16 … and tokens token, token + 8 ….
template <typename T>
DEVICE void matmul(const Product& p) {
    __shared__ float4 ws[TILE_ROWS * STRIDE / 4];
    __shared__ float4 xs[TILE_TOKENS * STRIDE / 4];
    u32 thread = threadIdx.x;
    u32 first_token = blockIdx.x * TILE_TOKENS, first_row = blockIdx.y * TILE_ROWS;
    u32 row = thread % 16, token = thread / 16;
    float sums[8][4];
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        sums[i / 4][i % 4] = 0.0f;
    }
    for (u32 begin = 0; begin < p.columns; begin += STEP) {
        const u8* start = p.weights + (u64)min_u(first_row + thread / 2, p.rows - 1) * p.row_bytes;
        u32 part = begin / 16 + thread % 2;
        float w[16];
        bool there = part < p.columns / 16;
        T::decode16(start + (u64)(there ? part : 0) * T::BYTES, w);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            ws[thread / 2 * (STRIDE / 4) + thread % 2 * 4 + i] =
                there ? make_float4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]) : make_float4(0, 0, 0, 0);
        }
        for (u32 i = thread; i < TILE_TOKENS * STEP / 4; i += TILE_THREADS) {
            u32 from = min_u(first_token + i / (STEP / 4), p.tokens - 1);
            u32 column = min_u(begin + i % (STEP / 4) * 4, p.columns - 4);
            xs[i / (STEP / 4) * (STRIDE / 4) + i % (STEP / 4)] = *(const float4*)(p.x + (u64)from * p.columns + column);
        }
        __syncthreads();
        for (u32 i = 0; i < STEP / 4; i++) {
            float4 w4[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                w4[j] = ws[(row + 16 * j) * (STRIDE / 4) + i];
            }
#pragma unroll
            for (u32 t = 0; t < 8; t++) {
                float4 x = xs[(token + 8 * t) * (STRIDE / 4) + i];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    float sum = __fmaf_rn(x.x, w4[j].x, sums[t][j]);
                    sum = __fmaf_rn(x.y, w4[j].y, sum);
                    sum = __fmaf_rn(x.z, w4[j].z, sum);
                    sums[t][j] = __fmaf_rn(x.w, w4[j].w, sum);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        u32 to_row = first_row + row + 16 * (i % 4), to_token = first_token + token + 8 * (i / 4);
        if (to_row < p.rows && to_token < p.tokens) {
            put(p, to_token, to_row, sums[i / 4][i % 4]);
        }
    }
}

#endif

KERNEL(matvec_1, Product, 128, 5) {
    matvec<TYPE, 1, 1>(p);
}

KERNEL(matvec_4, Product, 128, 2) {
    matvec<TYPE, 4, 1>(p);
}

KERNEL(matvec_8, Product, 128, 2) {
    matvec<TYPE, 8, 1>(p);
}

KERNEL(matvec_gate, Product, 128, 4) {
    matvec<TYPE, 1, 2>(p);
}

KERNEL(matvec_picked, Picked, 128, 4) {
    Product product = p.product;
    u32 pair = blockIdx.y;
    product.weights = p.table[p.routes[pair / 2 * 4 + pair % 2]];
    // So that the row of x is number `pair` of the product.
    s64 rows = (s64)(pair / p.picks) - (s64)pair;
    product.x += rows * p.product.columns;
    product.q += rows * p.product.columns;
    product.scales += rows * (p.product.columns / 16);
    matvec<TYPE, 1, 1>(product);
}

KERNEL(matmul, Product, TILE_THREADS, 2) {
    matmul<TYPE>(p);
}

// out[i] = table[ids[i]].
KERNEL(embed, Embed, 64, 1) {
    u32 part = blockIdx.x * 64 + threadIdx.x;
    if (part >= p.columns / 16) {
        return;
    }
    float out[16];
    decode<TYPE>(p.weights + (u64)p.ids[blockIdx.y] * p.row_bytes, part, p.codebook, out);
    float4* to = (float4*)(p.out + (u64)blockIdx.y * p.columns) + 4 * part;
    for (u32 i = 0; i < 4; i++) {
        to[i] = make_float4(out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]);
    }
}
