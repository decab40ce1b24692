// Everything that reads weights, for one type: TYPE is its name, LANES 1 where it has int8 lanes and 0 where it is a float type, TILES 1
// where many tokens are multiplied as halves.

#include "common.cuh"
#include "blocks/lanes.cuh"
#include "blocks/legacy.cuh"
#include "blocks/k.cuh"
#include "blocks/iq.cuh"
#include "blocks/ternary_fp4.cuh"
#include "gates.cuh"
#include "product.cuh"

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

// See `Bound` in launch.rs.
struct Bound {
    const u8* weights;
    const u32* codebook;
    // Bits of a float.
    u32* out;
    u32 columns;
    u32 row_bytes;
};

const u32 WARPS = 4;
// Rows that a warp takes, of gates pairs of rows; and how many groups of these are on their way at a time.
const u32 MATVEC_ROWS = 2, GATE_ROWS = 1, GATE_AHEAD = 3;

// Leaves a warp's sums of N tokens from `first` on and ROWS rows from `row` on.
template <u32 N, u32 ROWS>
DEVICE void finish(const Product& p, u32 first, u32 row, const float sums[N][ROWS]) {
    u32 lane = threadIdx.x % WARP;
    float mine = 0.0f;
#pragma unroll
    for (u32 i = 0; i < N * ROWS; i++) {
        float sum = warp_sum(sums[i / ROWS][i % ROWS]);
        mine = lane == i ? sum : mine;
    }
    if (lane < N * ROWS && row + lane % ROWS < p.rows && first + lane / ROWS < p.tokens) {
        put(p, first + lane / ROWS, row + lane % ROWS, mine);
    }
}

// Where the rows of a warp begin; of two halves, a row of each after the other. Beyond the last row, it is that again.
template <u32 ROWS, u32 HALVES>
DEVICE void find_rows(const Product& p, u32 row, u32 count, const u8* starts[ROWS * HALVES]) {
#pragma unroll
    for (u32 s = 0; s < ROWS * HALVES; s++) {
        u32 number = min_u(row + s / HALVES, count - 1) + s % HALVES * count;
        starts[s] = p.weights + (u64)number * p.row_bytes;
    }
}

#if LANES

// The number of the first part of group `g`.
template <typename T>
DEVICE u32 first_part(u32 g) {
    return T::DISTANCE == 1 ? g * T::GROUP : g / 2 * (2 * T::GROUP) + g % 2;
}

// Part number `part` of a row of `parts`.
template <typename T>
DEVICE Lanes16 lanes_at(const u8* row, u32 parts, u32 part, const u32* codebook) {
    const u32 PARTS = T::ELEMENTS / 16;
    u32 block = part / PARTS, d = 0;
    if constexpr (T::APART > 0) {
        const u8* at = row + parts / PARTS * T::BYTES + block * T::APART;
        d = T::APART == 2 ? u16_at(at) : u8_at(at);
    }
    return T::lanes16(row + block * T::BYTES, d, part % PARTS, codebook);
}

DEVICE int dot16(uint4 a, uint4 b) {
    int sum = __dp4a((int)a.x, (int)b.x, 0);
    sum = __dp4a((int)a.y, (int)b.y, sum);
    sum = __dp4a((int)a.z, (int)b.z, sum);
    return __dp4a((int)a.w, (int)b.w, sum);
}

// A lane's share of the sums of ROWS rows from `row` on, or with two halves of as many of each, and N tokens from `first` on. With
// several rows, what they are multiplied by is read once for all, and more of them is on its way at a time. Sums are made in
// one order whatever N and ROWS are.
template <typename T, u32 N, u32 ROWS, u32 HALVES, u32 AHEAD>
DEVICE void lane_sums(const Product& p, u32 row, u32 first, float sums[N][ROWS * HALVES]) {
    const u8* starts[ROWS * HALVES];
    find_rows<ROWS, HALVES>(p, row, p.rows / HALVES, starts);
#pragma unroll
    for (u32 i = 0; i < N * ROWS * HALVES; i++) {
        sums[i / (ROWS * HALVES)][i % (ROWS * HALVES)] = 0.0f;
    }
    u32 parts = p.columns / 16;
#pragma unroll AHEAD
    for (u32 g = threadIdx.x % WARP; g < parts / T::GROUP; g += WARP) {
#pragma unroll
        for (u32 j = 0; j < T::GROUP; j++) {
            u32 part = first_part<T>(g) + j * T::DISTANCE;
            Lanes16 w[ROWS * HALVES];
#pragma unroll
            for (u32 s = 0; s < ROWS * HALVES; s++) {
                w[s] = lanes_at<T>(starts[s], parts, part, p.codebook);
            }
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                u64 at = (u64)min_u(first + n, p.tokens - 1) * parts + part;
                uint4 x = ((const uint4*)p.rounded.q)[at];
                float2 scale = p.rounded.scales[at];
#pragma unroll
                for (u32 s = 0; s < ROWS * HALVES; s++) {
                    sums[n][s] = __fmaf_rn(w[s].scale * scale.x, (float)dot16(w[s].q, x), sums[n][s]);
                    if constexpr (T::MINS) {
                        sums[n][s] = __fmaf_rn(-w[s].min, scale.y, sums[n][s]);
                    }
                }
            }
        }
    }
}

template <typename T>
DEVICE void decode(const u8* row, u32 parts, u32 part, const u32* codebook, float out[16]) {
    Lanes16 w = lanes_at<T>(row, parts, part, codebook);
    u32 words[4] = {w.q.x, w.q.y, w.q.z, w.q.w};
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        out[i] = w.scale * (float)(signed char)(words[i / 4] >> (8 * (i % 4))) - w.min;
    }
}

// What a thread has of a part on its way to a tile.
typedef Lanes16 Part;

template <typename T>
DEVICE Part part_at(const u8* row, u32 parts, u32 part, const u32* codebook) {
    return part < parts ? lanes_at<T>(row, parts, part, codebook) : lanes(four(0), 0.0f, 0.0f);
}

template <typename T>
DEVICE float part_bound(const u8* row, u32 parts, u32 part, const u32* codebook) {
    Lanes16 w = lanes_at<T>(row, parts, part, codebook);
    u32 words[4] = {w.q.x, w.q.y, w.q.z, w.q.w};
    int largest = 1;
    for (u32 i = 0; i < 16; i++) {
        int q = (int)(signed char)(words[i / 4] >> (8 * (i % 4)));
        largest = q > largest ? q : -q > largest ? -q : largest;
    }
    return fabsf(w.scale) * (float)largest + fabsf(w.min);
}

#else

// See above.
struct Part {
    uint4 words[4];
};

template <typename T>
DEVICE Part part_at(const u8* row, u32 parts, u32 part, const u32*) {
    Part w;
#pragma unroll
    for (u32 i = 0; i < T::BYTES / 16; i++) {
        w.words[i] = part < parts ? ((const uint4*)(row + (u64)part * T::BYTES))[i] : four(0);
    }
    return w;
}

template <typename T>
DEVICE float part_bound(const u8* row, u32, u32 part, const u32*) {
    float w[16], largest = 0.0f;
    T::decode16(row + (u64)part * T::BYTES, w);
    for (u32 i = 0; i < 16; i++) {
        largest = fmaxf(largest, fabsf(w[i]));
    }
    return largest;
}

template <typename T>
DEVICE void decode(const u8* row, u32, u32 part, const u32*, float out[16]) {
    T::decode16(row + (u64)part * T::BYTES, out);
}

template <typename T, u32 N, u32 ROWS, u32 HALVES, u32 AHEAD>
DEVICE void lane_sums(const Product& p, u32 row, u32 first, float sums[N][ROWS * HALVES]) {
    const u8* starts[ROWS * HALVES];
    find_rows<ROWS, HALVES>(p, row, p.rows / HALVES, starts);
#pragma unroll
    for (u32 i = 0; i < N * ROWS * HALVES; i++) {
        sums[i / (ROWS * HALVES)][i % (ROWS * HALVES)] = 0.0f;
    }
#pragma unroll AHEAD
    for (u32 part = threadIdx.x % WARP; part < p.columns / 16; part += WARP) {
        float w[ROWS * HALVES][16];
#pragma unroll
        for (u32 s = 0; s < ROWS * HALVES; s++) {
            T::decode16(starts[s] + (u64)part * T::BYTES, w[s]);
        }
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            const float4* x = (const float4*)(p.x + (u64)min_u(first + n, p.tokens - 1) * p.columns) + 4 * part;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float4 four = x[i];
                float xs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (u32 s = 0; s < ROWS * HALVES; s++) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        sums[n][s] = __fmaf_rn(w[s][4 * i + j], xs[j], sums[n][s]);
                    }
                }
            }
        }
    }
}

const u32 FLOAT_ROWS = 64, FLOAT_TOKENS = 64, FLOAT_THREADS = 128;
// Columns that a step takes, and their distance in shared memory.
const u32 FLOAT_STEP = 32, STRIDE = 36;

// Tiles of 64 rows by 64 tokens in 32-bit floats; a thread takes rows row, row + 16 … and tokens token, token + 8 ….
template <typename T>
DEVICE void matmul_floats(const Product& p) {
    __shared__ float4 ws[FLOAT_ROWS * STRIDE / 4];
    __shared__ float4 xs[FLOAT_TOKENS * STRIDE / 4];
    u32 thread = threadIdx.x;
    u32 first_token = blockIdx.x * FLOAT_TOKENS, first_row = blockIdx.y * FLOAT_ROWS;
    u32 row = thread % 16, token = thread / 16;
    float sums[8][4];
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        sums[i / 4][i % 4] = 0.0f;
    }
    for (u32 begin = 0; begin < p.columns; begin += FLOAT_STEP) {
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
        for (u32 i = thread; i < FLOAT_TOKENS * FLOAT_STEP / 4; i += FLOAT_THREADS) {
            u32 from = min_u(first_token + i / (FLOAT_STEP / 4), p.tokens - 1);
            u32 column = min_u(begin + i % (FLOAT_STEP / 4) * 4, p.columns - 4);
            xs[i / (FLOAT_STEP / 4) * (STRIDE / 4) + i % (FLOAT_STEP / 4)] = *(const float4*)(p.x + (u64)from * p.columns + column);
        }
        __syncthreads();
        for (u32 i = 0; i < FLOAT_STEP / 4; i++) {
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

#include "tiles.cuh"

// A warp takes ROWS rows for N tokens.
template <u32 N, u32 ROWS>
DEVICE void matvec(const Product& p) {
    u32 row = (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS, first = blockIdx.y * N;
    float sums[N][ROWS];
    lane_sums<TYPE, N, ROWS, 1, 1>(p, row, first, sums);
    finish<N, ROWS>(p, first, row, sums);
}

KERNEL(matvec_1, Product, 128, 3) {
    matvec<1, MATVEC_ROWS>(p);
}

KERNEL(matvec_4, Product, 128, 2) {
    matvec<4, MATVEC_ROWS>(p);
}

KERNEL(matvec_8, Product, 128, 2) {
    matvec<8, MATVEC_ROWS>(p);
}

// A block takes 32 pairs of rows, of gates and of what they are for, so that the results can be rounded; a warp takes four.
KERNEL(matvec_gate, Product, 256, 2) {
    const u32 PAIRS = 4;
    __shared__ float results[8 * PAIRS];
    u32 count = p.rows / 2, token = blockIdx.y;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll 1
    for (u32 i = 0; i < PAIRS; i += GATE_ROWS) {
        u32 row = blockIdx.x * (8 * PAIRS) + warp * PAIRS + i;
        float sums[1][2 * GATE_ROWS];
        lane_sums<TYPE, 1, GATE_ROWS, 2, GATE_AHEAD>(p, row, token, sums);
#pragma unroll
        for (u32 r = 0; r < GATE_ROWS; r++) {
            float gate = warp_sum(sums[0][2 * r]), up = warp_sum(sums[0][2 * r + 1]);
            u32 at = min_u(row + r, count - 1);
            if (p.bias != nullptr) {
                gate += p.bias[at];
                up += p.bias[at + count];
            }
            if (lane == 0) {
                results[warp * PAIRS + i + r] = gated(p.ending, gate, up, p.limit);
            }
        }
    }
    __syncthreads();
    u32 row = blockIdx.x * (8 * PAIRS) + lane;
    if (warp == 0 && row < count) {
        u64 at = (u64)token * p.out_stride + row;
        p.out[at] = results[lane];
        // Then there are whole groups.
        if (p.to.q != nullptr) {
            quantize_lane(results[lane], at, p.to);
        }
    }
}

KERNEL(matvec_picked, Picked, 128, 3) {
    Product product = p.product;
    u32 pair = blockIdx.y;
    product.weights = p.table[p.routes[pair / 2 * 4 + pair % 2]];
    // So that the row of x is number `pair` of the product.
    s64 rows = (s64)(pair / p.picks) - (s64)pair;
    product.x += rows * p.product.columns;
    product.rounded.q += rows * p.product.columns;
    product.rounded.scales += rows * (p.product.columns / 16);
    matvec<1, MATVEC_ROWS>(product);
}

// The largest size that weights can have, before and after mins are taken off: a block a row.
KERNEL(bound, Bound, 128, 1) {
    float most = 0.0f;
    for (u32 part = threadIdx.x; part < p.columns / 16; part += 128) {
        float size = part_bound<TYPE>(p.weights + (u64)blockIdx.x * p.row_bytes, p.columns / 16, part, p.codebook);
        // Infinities and NaN are what they are.
        most = size <= 3.4e38f ? fmaxf(most, size) : most;
    }
    most = warp_max(most);
    if (threadIdx.x % WARP == 0) {
        atomicMax(p.out, float_to_bits(most));
    }
}

#if TILES
KERNEL(matmul_32, Product, TILE_THREADS, 2) {
    matmul<TYPE, 32>(p);
}

KERNEL(matmul_128, Product, TILE_THREADS, 2) {
    matmul<TYPE, 128>(p);
}

#else
// Of F32, halves would lose more than half.
KERNEL(matmul, Product, FLOAT_THREADS, 2) {
    matmul_floats<TYPE>(p);
}
#endif

// out[i] = table[ids[i]].
KERNEL(embed, Embed, 64, 1) {
    u32 part = blockIdx.x * 64 + threadIdx.x;
    if (part >= p.columns / 16) {
        return;
    }
    float out[16];
    decode<TYPE>(p.weights + (u64)p.ids[blockIdx.y] * p.row_bytes, p.columns / 16, part, p.codebook, out);
    float4* to = (float4*)(p.out + (u64)blockIdx.y * p.columns) + 4 * part;
    for (u32 i = 0; i < 4; i++) {
        to[i] = make_float4(out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]);
    }
}
