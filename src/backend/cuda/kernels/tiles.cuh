// Products of many tokens with quantized weights, by the tensor cores: a tile's weights are decoded to halves once for all of its
// tokens. Weights and activations come with powers of two that bring them into the range of halves.

const u32 TILE_ROWS = 128, TILE_THREADS = 256;
// Columns that a step takes: 8 chunks of 8 halves, 16 bytes each.
const u32 STEP = 64, CHUNKS = STEP / 8;

// Where chunk `chunk` of row `row` of a tile is, in chunks: 8 rows' chunks of one number lie in different banks.
DEVICE u32 chunk_at(u32 row, u32 chunk) {
    return row * CHUNKS + (chunk ^ (row % 8));
}

// Four int8 as halves, scale · (x − center) + shift; both are given twice.
DEVICE uint2 scaled_halves(u32 word, u32 center, u32 scale, u32 shift) {
    // A byte below 0x64 in a half is 1024 plus the byte. −1152 takes that off, and the 128 that flipping the top bit added; the
    // steps there are 1, for `center`.
    const u32 ABOVE = 0x64646464u;
    u32 bias = 0xe480e480u + center * 0x00010001u, bytes = word ^ 0x80808080u;
    u32 low = add_halves(__byte_perm(bytes, ABOVE, 0x4140), bias);
    u32 high = add_halves(__byte_perm(bytes, ABOVE, 0x4342), bias);
    return make_uint2(fma_halves(low, scale, shift), fma_halves(high, scale, shift));
}

// 16 weights times `factor` as two chunks. Numbers that are never negative are taken about their center, so that less is lost
// where mins are halves.
template <typename T>
DEVICE void store_weights(uint4* tile, u32 row, u32 part, Lanes16 w, float factor) {
    const u32 CENTER = T::CENTER;
    float shift = ((float)CENTER * w.scale - w.min) * factor;
    u32 scale = halves(w.scale * factor, w.scale * factor), shifts = halves(shift, shift);
    uint2 a = scaled_halves(w.q.x, CENTER, scale, shifts), b = scaled_halves(w.q.y, CENTER, scale, shifts);
    uint2 c = scaled_halves(w.q.z, CENTER, scale, shifts), d = scaled_halves(w.q.w, CENTER, scale, shifts);
    tile[chunk_at(row, 2 * part)] = make_uint4(a.x, a.y, b.x, b.y);
    tile[chunk_at(row, 2 * part + 1)] = make_uint4(c.x, c.y, d.x, d.y);
}

// One of the two parts of a step that a thread decodes: those that share words, where there are such.
template <typename T>
DEVICE u32 own_part(u32 j) {
    return T::DISTANCE == 1 ? threadIdx.x % 2 * 2 + j : threadIdx.x % 2 + 2 * j;
}

// Shares of all tiles' steps, as even as can be: share `number` of `count` begins there.
DEVICE u32 share_start(u32 steps, u32 number, u32 count) {
    return (u32)((u64)steps * number / count);
}

// What a thread of a block has of a tile of 128 rows by TOKENS tokens: a warp takes 32 rows by half of the tokens.
template <u32 TOKENS>
struct Tile {
    static const u32 HALF = TOKENS / 2;
    u32 first_row, first_token;
    float sums[2][HALF / 8][4];

    DEVICE_METHOD void clear(u32 row, u32 token) {
        first_row = row;
        first_token = token;
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            sums[i / (HALF / 2)][i / 4 % (HALF / 8)][i % 4] = 0.0f;
        }
    }

    // Adds the product of a step.
    DEVICE_METHOD void multiply(const uint4* weights, const uint4* inputs) {
        u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        u32 row = warp % 4 * 32 + lane % 16, token = warp / 4 * HALF + lane / 16 * 8 + lane % 8;
#pragma unroll
        for (u32 k = 0; k < STEP / 16; k++) {
            u32 a[2][4];
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
                load_matrices(a[m], weights + chunk_at(row + 16 * m, 2 * k + lane / 16));
            }
#pragma unroll
            for (u32 n = 0; n < HALF / 16; n++) {
                u32 b[4];
                load_matrices(b, inputs + chunk_at(token + 16 * n, 2 * k + lane / 8 % 2));
#pragma unroll
                for (u32 m = 0; m < 2; m++) {
                    mma_halves(sums[m][2 * n], a[m], b);
                    mma_halves(sums[m][2 * n + 1], a[m], b + 2);
                }
            }
        }
    }

    // Calls f(row, token, sum) for what is within the product.
    template <typename F>
    DEVICE_METHOD void each(const Product& p, F f) const {
        u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
        for (u32 n = 0; n < HALF / 8; n++) {
#pragma unroll
            for (u32 c = 0; c < 2; c++) {
                u32 token = first_token + warp / 4 * HALF + 8 * n + lane % 4 * 2 + c;
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 row = first_row + warp % 4 * 32 + 8 * i + lane / 4;
                    if (token < p.tokens && row < p.rows) {
                        f(row, token, sums[i / 2][n][i % 2 * 2 + c]);
                    }
                }
            }
        }
    }

    // The sums as they are, where a block that has a part of a tile leaves them.
    DEVICE_METHOD void save(float* to) const {
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            to[i * TILE_THREADS + threadIdx.x] = sums[i / (HALF / 2)][i / 4 % (HALF / 8)][i % 4];
        }
    }

    DEVICE_METHOD void add(const float* from) {
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            sums[i / (HALF / 2)][i / 4 % (HALF / 8)][i % 4] += from[i * TILE_THREADS + threadIdx.x];
        }
    }

    DEVICE_METHOD void finish(const Product& p) const {
        each(p, [&](u32 row, u32 token, float sum) { put(p, token, row, p.rounded.factors[token] * p.unscale * sum); });
    }
};

// Where block `block` leaves its sums of a tile: of the one that it begins within (0), or that it ends within (1).
template <u32 TOKENS>
DEVICE float* left_at(const Product& p, u32 block, u32 side) {
    return p.left + (u64)(2 * block + side) * TILE_ROWS * TOKENS;
}

// Each block takes an even share of all tiles' steps, in order, tiles of the same rows together. While a step is multiplied, the
// next one's weights are on their way to registers, and its activations to the other half of their memory. Sums of tiles that a
// block has only a part of are left for `mend`.
template <typename T, u32 TOKENS>
DEVICE void matmul(const Product& p) {
    __shared__ uint4 weights[TILE_ROWS * CHUNKS];
    __shared__ uint4 inputs[2][TOKENS * CHUNKS];
    u32 own_row = threadIdx.x / 2, parts = p.columns / 16;
    u32 steps = (p.columns + STEP - 1) / STEP, across = (p.tokens + TOKENS - 1) / TOKENS;
    u32 all = steps * across * ((p.rows + TILE_ROWS - 1) / TILE_ROWS);
    u32 at = share_start(all, blockIdx.x, gridDim.x), end = share_start(all, blockIdx.x + 1, gridDim.x);
    Lanes16 next[2];
    auto fetch = [&](u32 number, uint4* to) {
        u32 tile = number / steps, begin = number % steps * (STEP / 16);
        u32 first_token = tile % across * TOKENS, row = tile / across * TILE_ROWS + own_row;
        const u8* start = p.weights + (u64)min_u(row, p.rows - 1) * p.row_bytes;
#pragma unroll
        for (u32 i = threadIdx.x; i < TOKENS * CHUNKS; i += TILE_THREADS) {
            u32 token = i / CHUNKS, chunk = i % CHUNKS;
            const uint4* from = (const uint4*)p.rounded.halves + (u64)min_u(first_token + token, p.tokens - 1) * (2 * parts);
            bool there = begin + chunk / 2 < parts;
            copy_async(to + chunk_at(token, chunk), from + (there ? 2 * begin + chunk : 0), there);
        }
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 part = begin + own_part<T>(j);
            next[j] = part < parts ? lanes_at<T>(start, parts, part, p.codebook) : lanes(four(0), 0.0f, 0.0f);
        }
    };
    if (at < end) {
        fetch(at, inputs[0]);
    }
    u32 side = 0;
    while (at < end) {
        u32 tile = at / steps, first = at, last = min_u((tile + 1) * steps, end);
        Tile<TOKENS> mine;
        mine.clear(tile / across * TILE_ROWS, tile % across * TOKENS);
        for (; at < last; at++) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                store_weights<T>(weights, own_row, own_part<T>(j), next[j], p.factor);
            }
            wait_for_copies();
            __syncthreads();
            if (at + 1 < end) {
                fetch(at + 1, inputs[1 - side]);
            }
            mine.multiply(weights, inputs[side]);
            side = 1 - side;
            __syncthreads();
        }
        if (last - first == steps) {
            mine.finish(p);
        } else {
            mine.save(left_at<TOKENS>(p, blockIdx.x, first % steps == 0 ? 1 : 0));
        }
    }
}

// Puts the parts of a tile together, in order: a block a tile. `p.blocks` blocks had them.
template <u32 TOKENS>
DEVICE void mend(const Product& p) {
    u32 steps = (p.columns + STEP - 1) / STEP, across = (p.tokens + TOKENS - 1) / TOKENS;
    u32 all = steps * gridDim.x, start = blockIdx.x * steps, end = start + steps;
    // The block that has the first step: the last one that begins there or before.
    u32 block = (u32)((u64)start * p.blocks / all);
    while (share_start(all, block + 1, p.blocks) <= start) {
        block++;
    }
    if (share_start(all, block + 1, p.blocks) >= end) {
        return;
    }
    Tile<TOKENS> mine;
    mine.clear(blockIdx.x / across * TILE_ROWS, blockIdx.x % across * TOKENS);
    for (; share_start(all, block, p.blocks) < end; block++) {
        bool begins = share_start(all, block, p.blocks) <= start;
        if (share_start(all, block, p.blocks) < share_start(all, block + 1, p.blocks)) {
            mine.add(left_at<TOKENS>(p, block, begins ? 1 : 0));
        }
    }
    mine.finish(p);
}
