// Tiles of products of many tokens, multiplied as halves by the tensor cores, and what is left of them where several blocks share
// one.

const u32 TILE_ROWS = 128, TILE_THREADS = 256;
// Columns that a step takes: 8 chunks of 8 halves, 16 bytes each.
const u32 STEP = 64, CHUNKS = STEP / 8;

// Where chunk `chunk` of row `row` of a tile is, in chunks: 8 rows' chunks of one number lie in different banks.
DEVICE u32 chunk_at(u32 row, u32 chunk) {
    return row * CHUNKS + (chunk ^ (row % 8));
}

// Which steps of which tiles a block takes: as many whole tiles as all blocks can, and then an even share of the steps of those that
// are left. Tiles follow each other by tokens, then by rows; steps are numbered through all of them.
struct Share {
    // Of a tile.
    u32 steps;
    // Tiles that are whole, and those that are left, of all blocks.
    u32 whole, rest;
    u32 blocks;

    DEVICE_METHOD Share(const Product& p, u32 tokens, u32 count) {
        steps = (p.columns + STEP - 1) / STEP;
        u32 tiles = (p.tokens + tokens - 1) / tokens * ((p.rows + TILE_ROWS - 1) / TILE_ROWS);
        blocks = count;
        whole = tiles / blocks * blocks;
        rest = tiles - whole;
    }

    // Where block `block` begins in what is left.
    DEVICE_METHOD u32 start(u32 block) const {
        return (u32)((u64)rest * steps * block / blocks);
    }

    // How many steps block `block` takes of whole tiles.
    DEVICE_METHOD u32 own() const {
        return whole / blocks * steps;
    }

    // How many in all.
    DEVICE_METHOD u32 count(u32 block) const {
        return own() + start(block + 1) - start(block);
    }

    // The number of step `i` of block `block`.
    DEVICE_METHOD u32 step(u32 block, u32 i) const {
        return i < own() ? block * own() + i : whole * steps + start(block) + i - own();
    }
};

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
