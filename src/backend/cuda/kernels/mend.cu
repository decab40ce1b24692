// Puts together what blocks leave of tiles that they have parts of.

#include "common.cuh"
#include "product.cuh"
#include "tile.cuh"

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

KERNEL(mend_32, Product, TILE_THREADS, 2) {
    mend<32>(p);
}

KERNEL(mend_128, Product, TILE_THREADS, 2) {
    mend<128>(p);
}
