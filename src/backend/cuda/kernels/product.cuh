// What products are given, and how they end.

#include "rounding.cuh"

// See `Product` in launch.rs.
struct Product {
    // [rows][row_bytes], as repacking.rs leaves them.
    const u8* weights;
    const u32* codebook;
    // [tokens][columns]
    const float* x;
    // The same for products with quantized weights.
    Rounded rounded;
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
    // A power of two that brings the weights into the range of halves, and its inverse.
    float factor;
    float unscale;
    // Where gates go rounded, too: as int8, or nowhere.
    Rounded to;
    // Where blocks leave sums of parts of tiles, and how many blocks there are.
    float* left;
    u32 blocks;
};

DEVICE void put(const Product& p, u32 token, u32 row, float sum) {
    if (p.bias != nullptr) {
        sum += p.bias[row];
    }
    float* to = p.out + (u64)token * p.out_stride + row;
    *to = p.ending == 1 ? *to + sum : sum;
}
