// Attention over a cache of one element type: KIND is its number in kv.cuh; KV_ANY takes keys and values of any two.

#include "common.cuh"
#include "kv.cuh"
#include "rounding.cuh"

// What the rows of a batch are, before their positions are in them.
struct Rows {
    // A row is all queries, then all keys, then all values.
    const float* qkv;
    // [rows][pairs]
    const float* cosines;
    const float* sines;
    u32 heads;
    u32 kv_heads;
    // Elements of a head, and with its padding.
    u32 size;
    u32 padded;
    u32 pairs;
    // For queries.
    float scale;
};

// See `Append` in launch.rs.
struct Append {
    Rows from;
    // [rows][heads][padded]: rotated and scaled.
    float* queries;
    // [positions][kv_heads][padded / 32] groups.
    u32* keys;
    u32* values;
    // Rows from first_row on are appended, the first one as position number `at`.
    u32 first_row;
    u32 at;
    int key_kind;
    int value_kind;
};

// A sequence of which a batch has one row. Layers of its cache follow each other: keys, then values.
struct Member {
    u64 memory;
    u64 layer_bytes;
    u64 key_bytes;
    u32 row;
    u32 position;
};

// See `Attend` in launch.rs.
struct Attend {
    // What is not appended yet, for attend_row of one row; else its qkv is null, and the queries are here, rotated.
    Rows from;
    const float* queries;
    u32* keys;
    u32* values;
    // The result if there is one split, [rows][heads][size]; else [rows][heads][splits][padded + 4]: the unscaled sum, the
    // largest score and the sum of exponentials.
    float* out;
    // Rows from first_row on; the first of them is at position `position`.
    u32 first_row;
    u32 rows;
    u32 position;
    u32 heads;
    u32 kv_heads;
    u32 size;
    u32 window;
    // Positions in the cache, and the first one that any row sees, a multiple of 128.
    u32 length;
    u32 start;
    // How many shares of 128 positions each row's work is cut into; 1 for a tile's.
    u32 splits;
    // Block-sparse attention: positions of a block (0: none), blocks back, every how many-th, step from head to head.
    u32 block;
    u32 local;
    u32 stride;
    u32 head_step;
    int key_kind;
    int value_kind;
    // Where results go rounded, too: as int8, or nowhere. For a few rows of heads of whole groups of 32.
    Rounded to;
    // Not null for rows of as many sequences, which are appended: then keys, values, position, length and start are theirs.
    const Member* members;
    u32 layer;
};

DEVICE float rotated(const Rows& p, const float* head, u32 row, u32 e, bool rotate) {
    if (e >= p.size) {
        return 0.0f;
    }
    float x = head[e];
    if (!rotate || e >= 2 * p.pairs) {
        return x;
    }
    u64 angle = (u64)row * p.pairs + e % p.pairs;
    if (e < p.pairs) {
        return x * p.cosines[angle] - head[e + p.pairs] * p.sines[angle];
    }
    return x * p.cosines[angle] + head[e - p.pairs] * p.sines[angle];
}

// Element `lane` of group `group` of head `head` of a row, the keys' heads after the queries', the values' last: rotated, if it is not
// a value's, and scaled, if it is a query's.
DEVICE float element(const Rows& p, u32 row, u32 head, u32 group, u32 lane) {
    const float* from = p.qkv + ((u64)row * (p.heads + 2 * p.kv_heads) + head) * p.size;
    float x = rotated(p, from, row, group * 32 + lane, head < p.heads + p.kv_heads);
    return head < p.heads ? p.scale * x : x;
}

// Puts a lane's element of a key, or of a value, into the cache.
DEVICE void store(u32* array, int kind, u64 position, const Rows& p, u32 kv_head, u32 group, u32 lane, float x) {
    u64 at = (position * p.kv_heads + kv_head) * (p.padded / 32) + group;
    store_lane<KIND>(array + at * group_words(kind), lane, x, kind);
}

// Rotates queries and keys; queries go, scaled and padded, where attention reads them; keys and values into the cache. A warp
// takes groups of 32 elements of a row, a lane each.
KERNEL(append, Append, 128, 1) {
    u32 groups = p.from.padded / 32, heads = p.from.heads, kv_heads = p.from.kv_heads;
    u32 row = p.first_row + blockIdx.y, lane = threadIdx.x % WARP;
    u64 position = p.at + blockIdx.y;
#pragma unroll 4
    for (u32 item = blockIdx.x * 4 + threadIdx.x / WARP; item < (heads + 2 * kv_heads) * groups; item += gridDim.x * 4) {
        u32 head = item / groups, group = item % groups;
        float x = element(p.from, row, head, group, lane);
        if (head < heads) {
            p.queries[((u64)row * heads + head) * p.from.padded + group * 32 + lane] = x;
        } else if (head < heads + kv_heads) {
            store(p.keys, p.key_kind, position, p.from, head - heads, group, lane, x);
        } else {
            store(p.values, p.value_kind, position, p.from, head - heads - kv_heads, group, lane, x);
        }
    }
}

DEVICE bool sees(const Attend& p, u32 head, u32 query, u32 key) {
    if (key > query || key + p.window <= query) {
        return false;
    }
    if (p.block == 0) {
        return true;
    }
    u32 past = key / p.block;
    return query / p.block - past < p.local || (past + head * p.head_step + 1) % p.stride == 0;
}

// Vector number `four` of a key, or value, at a position.
template <u32 PADDED>
DEVICE float4 vector_at(const Attend& p, const u32* array, int kind, u32 position, u32 kv_head, u32 four) {
    u64 group = ((u64)position * p.kv_heads + kv_head) * (PADDED / 32) + four / 8;
    u32 words = KIND == KV_ANY ? group_words(kind) : group_words(KIND);
    return load4<KIND>(array + group * words, four % 8, kind);
}

DEVICE float dot4(float4 a, float4 b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// Leaves vector number `four` of a row's and head's sum.
template <u32 PADDED>
DEVICE void leave(const Attend& p, u32 row, u32 head, u32 split, u32 four, float4 sum, float largest, float total) {
    float elements[4] = {sum.x, sum.y, sum.z, sum.w};
    if (p.splits == 1) {
        float* to = p.out + ((u64)row * p.heads + head) * p.size;
        for (u32 i = 0; i < 4; i++) {
            if (four * 4 + i < p.size) {
                to[four * 4 + i] = elements[i] / fmaxf(total, 1.0e-37f);
            }
        }
        return;
    }
    float* to = p.out + (((u64)(row - p.first_row) * p.heads + head) * p.splits + split) * (PADDED + 4);
    *(float4*)(to + four * 4) = sum;
    if (four == 0) {
        to[PADDED] = largest;
        to[PADDED + 1] = total;
    }
}

// Positions that a block of attend_row takes.
const u32 SPLIT = 128;

// What a block of attend_row is to do: its row, and the first and the number of its positions.
struct Work {
    u32* keys;
    u32* values;
    u32 row, position, start, count;

    DEVICE_METHOD Work(const Attend& p) {
        u32 number = blockIdx.z, length = p.length;
        keys = p.keys;
        values = p.values;
        row = p.first_row + number;
        position = p.position + number;
        start = p.start;
        if (p.members != nullptr) {
            Member member = p.members[number];
            keys = (u32*)(member.memory + p.layer * member.layer_bytes);
            values = (u32*)((u64)keys + member.key_bytes);
            row = member.row;
            position = member.position;
            length = position + 1;
            start = length > p.window ? (length - p.window) / SPLIT * SPLIT : 0;
        }
        start += blockIdx.x * SPLIT;
        // Other sequences of the batch may be longer.
        count = start < length ? min_u(SPLIT, length - start) : 0;
    }
};

// Rotates and appends what attend_row needs of its row: its query, and its key and value where they are among its positions. All
// heads that share those append the same.
template <u32 PADDED>
DEVICE void append_own(const Attend& p, const Work& work, u32 head, u32 kv_head, float* query) {
    const u32 GROUPS = PADDED / 32;
    u32 lane = threadIdx.x % WARP;
    bool is_last = work.start + work.count == work.position + 1 && work.count > 0;
    for (u32 item = threadIdx.x / WARP; item < (is_last ? 3 * GROUPS : GROUPS); item += 4) {
        u32 which = item / GROUPS, group = item % GROUPS;
        u32 from = which == 0 ? head : p.heads + (which - 1) * p.kv_heads + kv_head;
        float x = element(p.from, work.row, from, group, lane);
        if (which == 0) {
            query[group * 32 + lane] = x;
        } else if (which == 1) {
            store(work.keys, p.key_kind, work.position, p.from, kv_head, group, lane, x);
        } else {
            store(work.values, p.value_kind, work.position, p.from, kv_head, group, lane, x);
        }
    }
}

// One query of one head over 128 positions: for a few rows, where reading the cache is all the work.
template <u32 PADDED>
DEVICE void attend_row(const Attend& p) {
    const u32 THREADS = 128, FOURS = PADDED / 4;
    // Threads that share a position's score; threads that share a vector of the result.
    const u32 LANES_ = 4, SHARE = THREADS / FOURS;
    __shared__ float4 query[FOURS];
    __shared__ float weights[SPLIT];
    __shared__ float reduced[4];
    __shared__ float4 sums[THREADS];
    u32 thread = threadIdx.x, head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
    Work work(p);
    u32 row = work.row, start = work.start, count = work.count;
    if (p.from.qkv != nullptr) {
        append_own<PADDED>(p, work, head, kv_head, (float*)query);
    } else if (thread < FOURS) {
        query[thread] = ((const float4*)p.queries)[((u64)row * p.heads + head) * FOURS + thread];
    }
    __syncthreads();
    u32 lane = thread % LANES_;
    for (u32 i = thread / LANES_; i < SPLIT; i += THREADS / LANES_) {
        float score = 0.0f;
        if (i < count) {
            for (u32 four = lane; four < FOURS; four += LANES_) {
                score += dot4(query[four], vector_at<PADDED>(p, work.keys, p.key_kind, start + i, kv_head, four));
            }
        }
        score += __shfl_xor_sync(ALL, score, 1);
        score += __shfl_xor_sync(ALL, score, 2);
        if (lane == 0) {
            weights[i] = score;
        }
    }
    __syncthreads();
    float score = LOWEST;
    if (thread < count && sees(p, head, work.position, start + thread)) {
        score = weights[thread];
    }
    float largest = block_max(score, reduced, 4);
    float weight = score > LOWEST ? expf(score - largest) : 0.0f;
    weights[thread] = weight;
    float total = block_sum(weight, reduced, 4);
    u32 four = thread % FOURS, share = thread / FOURS;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (share < SHARE) {
        for (u32 i = share; i < count; i += SHARE) {
            float4 value = vector_at<PADDED>(p, work.values, p.value_kind, start + i, kv_head, four);
            sum.x += weights[i] * value.x;
            sum.y += weights[i] * value.y;
            sum.z += weights[i] * value.z;
            sum.w += weights[i] * value.w;
        }
    }
    sums[thread] = sum;
    __syncthreads();
    if (share == 0) {
        for (u32 i = 1; i < SHARE; i++) {
            float4 other = sums[thread + i * FOURS];
            sum.x += other.x;
            sum.y += other.y;
            sum.z += other.z;
            sum.w += other.w;
        }
        leave<PADDED>(p, row, head, blockIdx.x, four, sum, largest, total);
    }
    if (p.splits == 1 && p.to.q != nullptr && thread / WARP <= (FOURS - 1) / WARP) {
        float inverse = 1.0f / fmaxf(total, 1.0e-37f);
        bool there = thread * 4 < p.size;
        sum = make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
        quantize_four(there ? sum : make_float4(0, 0, 0, 0), ((u64)row * p.heads + head) * p.size / 4 + thread, p.to, there);
    }
}

// The first position that any query from number `first` of the batch on sees, at a multiple of `block`.
DEVICE u32 first_seen(const Attend& p, u32 first, u32 block) {
    u32 oldest = p.position + first;
    return oldest + 1 > p.window ? (oldest + 1 - p.window) / block * block : 0;
}

// A tile of 64 queries of one head over the cache, 32 positions at a time, with the online softmax of FlashAttention (Dao et
// al. 2022): for prompts, where the products are the work. A warp takes 16 queries. Products are of halves, sums
// are floats. With lane = 4 g + t, a thread has queries g and g + 8 of its warp's.
template <u32 PADDED>
DEVICE void attend_halves(const Attend& p) {
    const u32 TILE = 64, BLOCK = 32, THREADS = 128, EIGHTS = PADDED / 8;
    // Pairs of halves of a row in shared memory: 16 bytes more, so that 8 rows lie in different banks.
    const u32 ROW = PADDED / 2 + 4;
    __shared__ uint4 key_words[2][BLOCK * ROW / 4];
    __shared__ uint4 value_words[2][BLOCK * ROW / 4];
    u32 head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
    u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    u32 first = blockIdx.x * TILE, mine = first + threadIdx.x / WARP * 16;
    u32 last = min_u(first + TILE, p.rows) - 1;
    u32 row[2] = {mine + g, mine + g + 8};
    u32 query[PADDED / 16][4];
#pragma unroll
    for (u32 c = 0; c < PADDED / 16; c++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u64 from = (u64)(p.first_row + min_u(row[i % 2], last)) * p.heads + head;
            float2 pair = *(const float2*)(p.queries + from * PADDED + 16 * c + 8 * (i / 2) + 2 * t);
            query[c][i] = halves(pair.x, pair.y);
        }
    }
    float sum[PADDED / 8][4];
#pragma unroll
    for (u32 i = 0; i < PADDED / 2; i++) {
        sum[i / 4][i % 4] = 0.0f;
    }
    float largest[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
    u32 end = min_u(p.position + last + 1, p.length);
    auto fetch = [&](u32 start, u32 side) {
#pragma unroll
        for (u32 i = threadIdx.x; i < BLOCK * EIGHTS; i += THREADS) {
            u32 eight = i % EIGHTS, at = i / EIGHTS * ROW + 4 * eight;
            u64 group = ((u64)min_u(start + i / EIGHTS, p.length - 1) * p.kv_heads + kv_head) * (PADDED / 32) + eight / 4;
            fetch_halves<KIND>((u32*)key_words[side] + at, p.keys + group * group_words(KIND), eight % 4);
            fetch_halves<KIND>((u32*)value_words[side] + at, p.values + group * group_words(KIND), eight % 4);
        }
    };
    u32 side = 0, begin = first_seen(p, first, BLOCK);
    fetch(begin, side);
    for (u32 start = begin; start < end; start += BLOCK, side = 1 - side) {
        wait_for_copies();
        __syncthreads();
        // While this block is attended, the next one is on its way.
        if (start + BLOCK < end) {
            fetch(start + BLOCK, 1 - side);
        }
        const u32* keys = (const u32*)key_words[side];
        const u32* values = (const u32*)value_words[side];
        float scores[BLOCK / 8][4];
#pragma unroll
        for (u32 n = 0; n < BLOCK / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                scores[n][i] = 0.0f;
            }
#pragma unroll
            for (u32 c = 0; c < PADDED / 32; c++) {
                u32 b[4];
                load_matrices(b, keys + (8 * n + lane % 8) * ROW + 16 * c + lane / 8 * 4);
                mma_halves(scores[n], query[2 * c], b);
                mma_halves(scores[n], query[2 * c + 1], b + 2);
            }
        }
        // Whether all of the warp's queries see all of the block.
        bool all = p.block == 0 && start + BLOCK <= p.position + mine + 1 && start + p.window > p.position + mine + 15;
        float next[2] = {largest[0], largest[1]};
#pragma unroll
        for (u32 i = 0; i < BLOCK / 2; i++) {
            float* score = &scores[i / 4][i % 4];
            if (!all && !sees(p, head, p.position + row[i / 2 % 2], start + i / 4 * 8 + 2 * t + i % 2)) {
                *score = LOWEST;
            }
            next[i / 2 % 2] = fmaxf(next[i / 2 % 2], *score);
        }
        float shrink[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            next[r] = fmaxf(next[r], __shfl_xor_sync(ALL, next[r], 1));
            next[r] = fmaxf(next[r], __shfl_xor_sync(ALL, next[r], 2));
            shrink[r] = expf(largest[r] - next[r]);
            largest[r] = next[r];
            total[r] *= shrink[r];
        }
#pragma unroll
        for (u32 i = 0; i < PADDED / 2; i++) {
            sum[i / 4][i % 4] *= shrink[i / 2 % 2];
        }
#pragma unroll
        for (u32 i = 0; i < BLOCK / 2; i++) {
            float score = scores[i / 4][i % 4];
            float weight = score > LOWEST ? expf(score - largest[i / 2 % 2]) : 0.0f;
            total[i / 2 % 2] += weight;
            scores[i / 4][i % 4] = weight;
        }
#pragma unroll
        for (u32 c = 0; c < BLOCK / 16; c++) {
            float* low = scores[2 * c];
            float* high = scores[2 * c + 1];
            u32 a[4] = {halves(low[0], low[1]), halves(low[2], low[3]), halves(high[0], high[1]), halves(high[2], high[3])};
#pragma unroll
            for (u32 n = 0; n < PADDED / 16; n++) {
                u32 b[4];
                load_transposed(b, values + (16 * c + lane % 16) * ROW + 8 * n + lane / 16 * 4);
                mma_halves(sum[2 * n], a, b);
                mma_halves(sum[2 * n + 1], a, b + 2);
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(ALL, total[r], 1);
        total[r] += __shfl_xor_sync(ALL, total[r], 2);
        if (row[r] <= last) {
            float* to = p.out + ((u64)(p.first_row + row[r]) * p.heads + head) * p.size;
#pragma unroll
            for (u32 i = 0; i < PADDED / 4; i++) {
                u32 e = i / 2 * 8 + 2 * t + i % 2;
                if (e < p.size) {
                    to[e] = sum[i / 2][2 * r + i % 2] / fmaxf(total[r], 1.0e-37f);
                }
            }
        }
    }
}

// The same in floats, for types of cache that are more exact than halves, or have their range: 32 queries, 16 positions at a time, four threads a query.
template <u32 PADDED>
DEVICE void attend_tile(const Attend& p) {
    const u32 TILE = 32, BLOCK = 16, THREADS = 128, LANES_ = 4, FOURS = PADDED / 4, OWN = FOURS / LANES_;
    // A row of shared memory is a vector longer, so that rows lie in different banks.
    const u32 ROW = FOURS + 1;
    __shared__ float4 query[TILE * ROW];
    // A block's keys, then its values.
    __shared__ float4 block[BLOCK * ROW];
    __shared__ float scores[TILE * (BLOCK + 1)];
    u32 thread = threadIdx.x, head = blockIdx.y;
    u32 kv_head = head / (p.heads / p.kv_heads);
    u32 first = blockIdx.x * TILE;
    u32 last = min_u(first + TILE, p.rows) - 1;
    for (u32 i = thread; i < TILE * FOURS; i += THREADS) {
        u64 row = p.first_row + min_u(first + i / FOURS, last);
        query[i / FOURS * ROW + i % FOURS] = ((const float4*)p.queries)[(row * p.heads + head) * FOURS + i % FOURS];
    }
    u32 own = thread / LANES_, lane = thread % LANES_;
    u32 row = first + own;
    u32 position = p.position + row;
    u32 end = min_u(p.position + last + 1, p.length);
    float largest = LOWEST, total = 0.0f;
    float4 sum[OWN];
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        sum[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    for (u32 start = first_seen(p, first, BLOCK); start < end; start += BLOCK) {
        __syncthreads();
        for (u32 i = thread; i < BLOCK * FOURS; i += THREADS) {
            u32 at = min_u(start + i / FOURS, p.length - 1);
            block[i / FOURS * ROW + i % FOURS] = vector_at<PADDED>(p, p.keys, p.key_kind, at, kv_head, i % FOURS);
        }
        __syncthreads();
        float found[BLOCK / LANES_];
#pragma unroll
        for (u32 j = 0; j < BLOCK / LANES_; j++) {
            found[j] = 0.0f;
        }
        for (u32 four = 0; four < FOURS; four++) {
            float4 mine = query[own * ROW + four];
#pragma unroll
            for (u32 j = 0; j < BLOCK / LANES_; j++) {
                found[j] += dot4(mine, block[(j * LANES_ + lane) * ROW + four]);
            }
        }
#pragma unroll
        for (u32 j = 0; j < BLOCK / LANES_; j++) {
            u32 key = j * LANES_ + lane;
            bool seen = start + key < p.length && sees(p, head, position, start + key);
            scores[own * (BLOCK + 1) + key] = seen ? found[j] : LOWEST;
        }
        __syncthreads();
        for (u32 i = thread; i < BLOCK * FOURS; i += THREADS) {
            u32 at = min_u(start + i / FOURS, p.length - 1);
            block[i / FOURS * ROW + i % FOURS] = vector_at<PADDED>(p, p.values, p.value_kind, at, kv_head, i % FOURS);
        }
        float next = largest;
        for (u32 j = 0; j < BLOCK; j++) {
            next = fmaxf(next, scores[own * (BLOCK + 1) + j]);
        }
        float shrink = expf(largest - next);
        largest = next;
        total *= shrink;
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            sum[i].x *= shrink;
            sum[i].y *= shrink;
            sum[i].z *= shrink;
            sum[i].w *= shrink;
        }
        __syncthreads();
        for (u32 j = 0; j < BLOCK; j++) {
            float score = scores[own * (BLOCK + 1) + j];
            float weight = score > LOWEST ? expf(score - largest) : 0.0f;
            total += weight;
#pragma unroll
            for (u32 i = 0; i < OWN; i++) {
                float4 value = block[j * ROW + i * LANES_ + lane];
                sum[i].x += weight * value.x;
                sum[i].y += weight * value.y;
                sum[i].z += weight * value.z;
                sum[i].w += weight * value.w;
            }
        }
    }
    if (row <= last) {
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            leave<PADDED>(p, p.first_row + row, head, 0, i * LANES_ + lane, sum[i], largest, total);
        }
    }
}

KERNEL(attend_row_32, Attend, 128, 4) {
    attend_row<32>(p);
}

KERNEL(attend_row_64, Attend, 128, 4) {
    attend_row<64>(p);
}

KERNEL(attend_row_96, Attend, 128, 4) {
    attend_row<96>(p);
}

KERNEL(attend_row_128, Attend, 128, 4) {
    attend_row<128>(p);
}

// Whether halves are as exact as the cache; attention.rs knows it, too.
const bool HALVES = KIND == KV_F16 || KIND == KV_Q8_0 || KIND == KV_Q4_0;

template <u32 PADDED>
DEVICE void attend_many(const Attend& p) {
    if constexpr (HALVES) {
        attend_halves<PADDED>(p);
    } else {
        attend_tile<PADDED>(p);
    }
}

KERNEL(attend_tile_32, Attend, 128, 4) {
    attend_many<32>(p);
}

KERNEL(attend_tile_64, Attend, 128, 4) {
    attend_many<64>(p);
}

KERNEL(attend_tile_96, Attend, 128, HALVES ? 3 : 4) {
    attend_many<96>(p);
}

KERNEL(attend_tile_128, Attend, 128, HALVES ? 2 : 4) {
    attend_many<128>(p);
}

// See `Combine` in launch.rs.
struct Combine {
    const float* splits;
    float* out;
    u32 first_row;
    u32 heads;
    u32 size;
    u32 padded;
    u32 count;
    // As `Attend` has it.
    Rounded to;
};

// Puts splits together: a block a row and head, a thread an element.
KERNEL(combine, Combine, 128, 1) {
    u32 e = threadIdx.x;
    if (e >= p.size) {
        return;
    }
    u32 width = p.padded + 4;
    const float* first = p.splits + ((u64)blockIdx.y * p.heads + blockIdx.x) * p.count * width;
    float largest = first[p.padded];
    for (u32 i = 1; i < p.count; i++) {
        largest = fmaxf(largest, first[(u64)i * width + p.padded]);
    }
    float total = 0.0f, sum = 0.0f;
    for (u32 i = 0; i < p.count; i++) {
        const float* split = first + (u64)i * width;
        float weight = expf(split[p.padded] - largest);
        total += weight * split[p.padded + 1];
        sum += weight * split[e];
    }
    u64 at = ((u64)(p.first_row + blockIdx.y) * p.heads + blockIdx.x) * p.size + e;
    float x = sum / fmaxf(total, 1.0e-37f);
    p.out[at] = x;
    if (p.to.q != nullptr) {
        quantize_lane(x, at, p.to);
    }
}
