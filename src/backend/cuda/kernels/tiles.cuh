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

// A tile of 128 rows by TOKENS tokens: a warp takes 32 rows by half of the tokens. While a step is multiplied, the next one's
// weights are on their way to registers, and its activations to the other half of their memory.
template <typename T, u32 TOKENS>
DEVICE void matmul(const Product& p) {
    const u32 HALF = TOKENS / 2;
    __shared__ uint4 weights[TILE_ROWS * CHUNKS];
    __shared__ uint4 inputs[2][TOKENS * CHUNKS];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 warp_row = warp % 4 * 32, warp_token = warp / 4 * HALF;
    u32 first_token = blockIdx.x * TOKENS, first_row = blockIdx.y * TILE_ROWS;
    u32 own_row = threadIdx.x / 2, parts = p.columns / 16;
    const u8* start = p.weights + (u64)min_u(first_row + own_row, p.rows - 1) * p.row_bytes;
    float sums[2][HALF / 8][4];
#pragma unroll
    for (u32 i = 0; i < HALF; i++) {
        sums[i / (HALF / 2)][i / 4 % (HALF / 8)][i % 4] = 0.0f;
    }
    auto fetch_inputs = [&](u32 begin, uint4* to) {
#pragma unroll
        for (u32 i = threadIdx.x; i < TOKENS * CHUNKS; i += TILE_THREADS) {
            u32 token = i / CHUNKS, chunk = i % CHUNKS;
            const uint4* row = (const uint4*)p.rounded.halves + (u64)min_u(first_token + token, p.tokens - 1) * (2 * parts);
            bool there = begin + chunk / 2 < parts;
            copy_async(to + chunk_at(token, chunk), row + (there ? 2 * begin + chunk : 0), there);
        }
    };
    auto fetch_weights = [&](u32 begin, Lanes16 to[2]) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 part = begin + own_part<T>(j);
            to[j] = part < parts ? lanes_at<T>(start, parts, part, p.codebook) : lanes(four(0), 0.0f, 0.0f);
        }
    };
    Lanes16 next[2];
    fetch_inputs(0, inputs[0]);
    fetch_weights(0, next);
    u32 side = 0;
    for (u32 begin = 0; begin < parts; begin += STEP / 16) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            store_weights<T>(weights, own_row, own_part<T>(j), next[j], p.factor);
        }
        wait_for_copies();
        __syncthreads();
        if (begin + STEP / 16 < parts) {
            fetch_inputs(begin + STEP / 16, inputs[1 - side]);
            fetch_weights(begin + STEP / 16, next);
        }
        const uint4* x = inputs[side];
#pragma unroll
        for (u32 k = 0; k < STEP / 16; k++) {
            u32 a[2][4];
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
                load_matrices(a[m], weights + chunk_at(warp_row + 16 * m + lane % 16, 2 * k + lane / 16));
            }
#pragma unroll
            for (u32 n = 0; n < HALF / 16; n++) {
                u32 b[4];
                load_matrices(b, x + chunk_at(warp_token + 16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
                for (u32 m = 0; m < 2; m++) {
                    mma_halves(sums[m][2 * n], a[m], b);
                    mma_halves(sums[m][2 * n + 1], a[m], b + 2);
                }
            }
        }
        side = 1 - side;
        __syncthreads();
    }
#pragma unroll
    for (u32 n = 0; n < HALF / 8; n++) {
#pragma unroll
        for (u32 c = 0; c < 2; c++) {
            u32 token = first_token + warp_token + 8 * n + lane % 4 * 2 + c;
            if (token >= p.tokens) {
                continue;
            }
            float factor = p.rounded.factors[token] * p.unscale;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 row = first_row + warp_row + 8 * i + lane / 4;
                if (row < p.rows) {
                    put(p, token, row, factor * sums[i / 2][n][i % 2 * 2 + c]);
                }
            }
        }
    }
}
