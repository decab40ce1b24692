// Products of many tokens by the tensor cores: a tile's weights are decoded to halves once for all of its
// tokens. Weights and activations come with powers of two that bring them into the range of halves.

#include "tile.cuh"

#if LANES

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

#else

template <typename T>
DEVICE void store_weights(uint4* tile, u32 row, u32 part, const Part& w, float factor) {
    float x[16];
    T::decode16((const u8*)w.words, x);
    u32 words[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        words[i] = halves(x[2 * i] * factor, x[2 * i + 1] * factor);
    }
    tile[chunk_at(row, 2 * part)] = make_uint4(words[0], words[1], words[2], words[3]);
    tile[chunk_at(row, 2 * part + 1)] = make_uint4(words[4], words[5], words[6], words[7]);
}

#endif

// One of the two parts of a step that a thread decodes: those that share words, where there are such.
template <typename T>
DEVICE u32 own_part(u32 j) {
    return T::DISTANCE == 1 ? threadIdx.x % 2 * 2 + j : threadIdx.x % 2 + 2 * j;
}

// A block multiplies its share of the tiles. While a step is multiplied, the next one's weights are on their way to registers, and its
// activations to the other half of their memory. Sums of tiles that it has only a part of are left for `mend`.
template <typename T, u32 TOKENS>
DEVICE void matmul(const Product& p) {
    __shared__ uint4 weights[TILE_ROWS * CHUNKS];
    __shared__ uint4 inputs[2][TOKENS * CHUNKS];
    u32 own_row = threadIdx.x / 2, parts = p.columns / 16, across = (p.tokens + TOKENS - 1) / TOKENS;
    Share share(p, TOKENS, gridDim.x);
    Part next[2];
    auto fetch = [&](u32 number, uint4* to) {
        u32 tile = number / share.steps, begin = number % share.steps * (STEP / 16);
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
            next[j] = part_at<T>(start, parts, begin + own_part<T>(j), p.codebook);
        }
    };
    u32 count = share.count(blockIdx.x), at = 0, side = 0;
    if (count > 0) {
        fetch(share.step(blockIdx.x, 0), inputs[0]);
    }
    while (at < count) {
        u32 number = share.step(blockIdx.x, at), tile = number / share.steps, first = number % share.steps;
        u32 last = min_u(share.steps - first, count - at) + at;
        bool is_whole = last - at == share.steps;
        Tile<TOKENS> mine;
        mine.clear(tile / across * TILE_ROWS, tile % across * TOKENS);
        for (; at < last; at++) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                store_weights<T>(weights, own_row, own_part<T>(j), next[j], p.factor);
            }
            wait_for_copies();
            __syncthreads();
            if (at + 1 < count) {
                fetch(share.step(blockIdx.x, at + 1), inputs[1 - side]);
            }
            mine.multiply(weights, inputs[side]);
            side = 1 - side;
            __syncthreads();
        }
        if (is_whole) {
            mine.finish(p);
        } else {
            mine.save(left_at<TOKENS>(p, blockIdx.x, first == 0 ? 1 : 0));
        }
    }
}
