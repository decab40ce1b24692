// What every kernel begins with: types, halves, sums over a warp, tensor-core products. kernels.cuh has the parameters.
//
// The same sources are compiled for a GPU (by NVRTC, without any header of CUDA) and, for tests, for the CPU: then
// PHI_EMULATED is defined and emulation.h stands for the GPU.

#ifdef PHI_EMULATED
#include "emulation.h"
#else
#define DEVICE static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
// A kernel of `threads` threads a block, of which `blocks` should fit a multiprocessor.
#define KERNEL(name, Params, threads, blocks)                                                                          \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

const u32 WARP = 32;
const u32 ALL = 0xffffffffu;
const float LOWEST = -3.0e38f;

DEVICE u32 min_u(u32 a, u32 b) {
    return a < b ? a : b;
}

DEVICE u32 max_u(u32 a, u32 b) {
    return a > b ? a : b;
}

#ifndef PHI_EMULATED
DEVICE float half_to_float(u32 bits) {
    float x;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "r"(bits));
    return x;
}

// Rounded to nearest even.
DEVICE u32 float_to_half(float x) {
    u32 bits;
    asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; cvt.u32.u16 %0, h; }" : "=r"(bits) : "f"(x));
    return bits;
}

DEVICE float bits_to_float(u32 bits) {
    return __uint_as_float(bits);
}

DEVICE u32 float_to_bits(float x) {
    return __float_as_uint(x);
}

// c += a · b over 16 columns of halves, as mma.m16n8k16, two a word: with lane = 4 g + t, `a` has rows g, g + 8 at columns 2 t, and
// the same rows at 8 + 2 t, `b` column g at rows 2 t and 8 + 2 t, `c` rows g, g + 8 at columns 2 t, 2 t + 1.
DEVICE void mma_halves(float c[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 by 8 halves from shared memory: lane 8 m + r says where row r of matrix m is. Each lane gets, of each
// matrix, columns 2 t, 2 t + 1 of row g.
DEVICE void load_matrices(u32 to[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same of the transposed matrices: rows 2 t, 2 t + 1 of column g.
DEVICE void load_transposed(u32 to[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// Pairs of halves, added.
DEVICE u32 add_halves(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

// a · b + c of pairs of halves, rounded once.
DEVICE u32 fma_halves(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// Begins to copy 16 bytes to shared memory, or writes zeros there.
DEVICE void copy_async(void* to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

// Waits for this thread's copies.
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_all;" : : : "memory");
}

// Two halves, the first in the lower bits.
DEVICE u32 halves(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#endif

// The sum over the warp's lanes, in all of them.
DEVICE float warp_sum(float x) {
    for (u32 s = WARP / 2; s > 0; s /= 2) {
        x += __shfl_xor_sync(ALL, x, s);
    }
    return x;
}

DEVICE float warp_max(float x) {
    for (u32 s = WARP / 2; s > 0; s /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL, x, s));
    }
    return x;
}

// The sum over a block's threads, in all of them; `shared` has a place for each warp.
DEVICE float block_sum(float x, float* shared, u32 warps) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        shared[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    if (warps > 8) {
        return warp_sum(threadIdx.x % WARP < warps ? shared[threadIdx.x % WARP] : 0.0f);
    }
    float all = 0.0f;
    for (u32 i = 0; i < warps; i++) {
        all += shared[i];
    }
    return all;
}

DEVICE float block_max(float x, float* shared, u32 warps) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        shared[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    if (warps > 8) {
        return warp_max(shared[min_u(threadIdx.x % WARP, warps - 1)]);
    }
    float all = shared[0];
    for (u32 i = 1; i < warps; i++) {
        all = fmaxf(all, shared[i]);
    }
    return all;
}

// Four words, element by element.
DEVICE uint4 operator&(uint4 a, u32 b) {
    return make_uint4(a.x & b, a.y & b, a.z & b, a.w & b);
}

DEVICE uint4 operator|(uint4 a, uint4 b) {
    return make_uint4(a.x | b.x, a.y | b.y, a.z | b.z, a.w | b.w);
}

DEVICE uint4 operator&(uint4 a, uint4 b) {
    return make_uint4(a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w);
}

DEVICE uint4 operator^(uint4 a, uint4 b) {
    return make_uint4(a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w);
}

DEVICE uint4 operator^(uint4 a, u32 b) {
    return make_uint4(a.x ^ b, a.y ^ b, a.z ^ b, a.w ^ b);
}

DEVICE uint4 operator+(uint4 a, uint4 b) {
    return make_uint4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

DEVICE uint4 operator+(uint4 a, u32 b) {
    return make_uint4(a.x + b, a.y + b, a.z + b, a.w + b);
}

DEVICE uint4 operator-(uint4 a, uint4 b) {
    return make_uint4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}

DEVICE uint4 operator*(uint4 a, u32 b) {
    return make_uint4(a.x * b, a.y * b, a.z * b, a.w * b);
}

DEVICE uint4 operator>>(uint4 a, u32 b) {
    return make_uint4(a.x >> b, a.y >> b, a.z >> b, a.w >> b);
}

DEVICE uint4 operator<<(uint4 a, u32 b) {
    return make_uint4(a.x << b, a.y << b, a.z << b, a.w << b);
}

DEVICE uint4 four(u32 a) {
    return make_uint4(a, a, a, a);
}
