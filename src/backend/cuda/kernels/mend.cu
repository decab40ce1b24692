// Puts together what blocks leave of tiles that they have parts of.

#include "common.cuh"
#include "product.cuh"
#include "tile.cuh"

// Puts the parts of a tile together, in order: a block for each of those that no block had whole.
template <u32 TOKENS>
DEVICE void mend(const Product& p) {
    u32 across = (p.tokens + TOKENS - 1) / TOKENS;
    Share share(p, TOKENS, p.blocks);
    u32 tile = share.whole + blockIdx.x, start = blockIdx.x * share.steps, end = start + share.steps;
    // The block that has the first step.
    u32 block = (u32)((u64)start * share.blocks / (share.rest * share.steps));
    while (share.start(block + 1) <= start) {
        block++;
    }
    if (share.start(block + 1) - max_u(share.start(block), start) >= share.steps) {
        return;
    }
    Tile<TOKENS> mine;
    mine.clear(tile / across * TILE_ROWS, tile % across * TOKENS);
    for (; block < share.blocks && share.start(block) < end; block++) {
        if (share.start(block) < share.start(block + 1)) {
            mine.add(left_at<TOKENS>(p, block, share.start(block) <= start ? 1 : 0));
        }
    }
    mine.finish(p);
}

KERNEL(mend_32, Product, TILE_THREADS, 2) {
    mend<32>(p);
}

KERNEL(mend_128, Product, TILE_THREADS, 2) {
    mend<128>(p);
}
