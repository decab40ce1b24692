// The GPU that tests compile the kernels for: the CPU. A thread of a block is a fiber; barriers and shuffles switch between
// them. Blocks run one after the other, so that what is shared by a block is static.

#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <string>

#define DEVICE static inline
#define DEVICE_METHOD inline
#define __shared__ static
#define __grid_constant__
#define CHECKED(what)                                                                                                  \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    uint32_t x, y, z;
};

static inline uint2 make_uint2(uint32_t x, uint32_t y) {
    return {x, y};
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y) {
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

namespace emulation {

const uint32_t MOST_THREADS = 1024;

// Where the threads of a warp or of a block wait for each other.
struct Barrier {
    uint32_t members, arrived, round;
};

struct Fiber {
    jmp_buf place;
    void* stack;
    dim3 thread;
    bool done;
};

struct Machine {
    Fiber fibers[MOST_THREADS];
    jmp_buf home;
    uint32_t threads, current;
    Barrier block;
    Barrier warps[MOST_THREADS / 32];
    // What lanes hand to each other.
    uint64_t slots[MOST_THREADS];
    uint32_t fragments[MOST_THREADS][8];
    dim3 block_number, blocks;
    void (*run)(const void*);
    const void* parameters;
};

extern Machine machine;
// Lets another thread go on.
void yield();
void wait(Barrier& barrier);

inline Barrier& warp() {
    return machine.warps[machine.current / 32];
}

struct Kernel {
    void (*run)(const void*);
    size_t parameter_bytes;
    uint32_t threads;
};

std::map<std::string, Kernel>& kernels();

template <typename P>
struct Register {
    Register(const char* module, const char* name, void (*run)(const void*), uint32_t threads) {
        kernels()[std::string(module) + "/" + name] = {run, sizeof(P), threads};
    }
};

template <typename T>
T shuffle(T x, uint32_t from) {
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    uint32_t me = machine.current;
    machine.slots[me] = bits;
    wait(warp());
    bits = machine.slots[me / 32 * 32 + from];
    // Nobody writes again before all have read.
    wait(warp());
    memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace emulation

#define threadIdx (emulation::machine.fibers[emulation::machine.current].thread)
#define blockIdx (emulation::machine.block_number)
#define gridDim (emulation::machine.blocks)

#define KERNEL(name, Params, threads, blocks)                                                                          \
    static void name(const Params& p);                                                                                 \
    static emulation::Register<Params> register_##name(                                                                \
        MODULE, #name, [](const void* p) { name(*(const Params*)p); }, threads                                         \
    );                                                                                                                 \
    static void name(const Params& p)

static inline void __syncthreads() {
    emulation::wait(emulation::machine.block);
}

template <typename T>
static inline T __shfl_xor_sync(uint32_t, T x, uint32_t mask) {
    return emulation::shuffle(x, (emulation::machine.current % 32) ^ mask);
}

template <typename T>
static inline T __shfl_sync(uint32_t, T x, uint32_t lane) {
    return emulation::shuffle(x, lane);
}

static inline uint32_t __ballot_sync(uint32_t, bool vote) {
    uint32_t me = emulation::machine.current;
    emulation::machine.slots[me] = vote;
    emulation::wait(emulation::warp());
    uint32_t votes = 0;
    for (uint32_t i = 0; i < 32; i++) {
        votes |= (uint32_t)emulation::machine.slots[me / 32 * 32 + i] << i;
    }
    emulation::wait(emulation::warp());
    return votes;
}

static inline uint32_t atomicMax(uint32_t* to, uint32_t x) {
    uint32_t old = *to;
    *to = x > old ? x : old;
    return old;
}

static inline int __ffs(uint32_t x) {
    return __builtin_ffs((int)x);
}

static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}

static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) {
        sum += (int)(int8_t)(a >> (8 * i)) * (int)(int8_t)(b >> (8 * i));
    }
    return sum;
}

static inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}

static inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (uint32_t)(bytes >> (8 * ((selector >> (4 * i)) & 7)) & 255) << (8 * i);
    }
    return out;
}

static inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float half_to_float(uint32_t bits) {
    uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x = exponent == 0    ? ldexpf((float)mantissa, -24)
              : exponent == 31 ? (mantissa ? NAN : INFINITY)
                               : ldexpf((float)(mantissa + 1024), (int)exponent - 25);
    return bits & 0x8000 ? -x : x;
}

static inline uint32_t float_to_half(float x) {
    uint32_t sign = float_to_bits(x) >> 16 & 0x8000;
    float size = fabsf(x);
    if (size != size) {
        return 0x7fff;
    }
    if (size >= 65520.0f) {
        return sign | 0x7c00;
    }
    if (size == 0.0f) {
        return sign;
    }
    int exponent;
    frexpf(size, &exponent);
    exponent = exponent < -13 ? -13 : exponent;
    // A multiple of the step there is at this size, rounded to even.
    uint32_t steps = (uint32_t)rintf(ldexpf(size, 11 - exponent));
    return sign | (((uint32_t)(exponent + 13) << 10) + steps);
}

namespace emulation {

// The words that lane `lane` of this warp has laid out, after a wait.
inline const uint32_t* fragment(uint32_t lane) {
    return machine.fragments[machine.current / 32 * 32 + lane];
}

}  // namespace emulation

static inline uint32_t halves(float low, float high) {
    return float_to_half(low) | float_to_half(high) << 16;
}

// `f` of the lower and of the upper halves.
template <typename F>
static inline uint32_t each_half(F f) {
    return float_to_half(f(0)) | float_to_half(f(16)) << 16;
}

static inline uint32_t add_halves(uint32_t a, uint32_t b) {
    return each_half([=](int at) { return half_to_float(a >> at & 0xffff) + half_to_float(b >> at & 0xffff); });
}

static inline uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
    return each_half([=](int at) {
        return half_to_float(a >> at & 0xffff) * half_to_float(b >> at & 0xffff) + half_to_float(c >> at & 0xffff);
    });
}

static inline void copy_async(void* to, const void* from, bool is_there) {
    CHECKED((uintptr_t)to % 16 == 0 && (uintptr_t)from % 16 == 0);
    if (is_there) {
        memcpy(to, from, 16);
    } else {
        memset(to, 0, 16);
    }
}

static inline void wait_for_copies() {}

static inline void mma_halves(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    uint32_t lane = emulation::machine.current % 32;
    uint32_t* mine = emulation::machine.fragments[emulation::machine.current];
    memcpy(mine, a, 16);
    memcpy(mine + 4, b, 8);
    emulation::wait(emulation::warp());
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        for (uint32_t k = 0; k < 16; k++) {
            uint32_t x = emulation::fragment(row % 8 * 4 + k % 8 / 2)[row / 8 + 2 * (k / 8)];
            uint32_t y = emulation::fragment(column * 4 + k % 8 / 2)[4 + k / 8];
            c[i] += half_to_float(x >> 16 * (k % 2) & 0xffff) * half_to_float(y >> 16 * (k % 2) & 0xffff);
        }
    }
    emulation::wait(emulation::warp());
}

// See common.cuh. Row `row` and column `column` of matrix number `matrix` is where the lane of the row says.
static inline uint32_t matrix_half(uint32_t matrix, uint32_t row, uint32_t column) {
    uint32_t first = emulation::machine.current / 32 * 32;
    return ((const uint16_t*)emulation::machine.slots[first + 8 * matrix + row])[column];
}

static inline void load_matrices(uint32_t to[4], const void* row) {
    uint32_t me = emulation::machine.current, g = me % 32 / 4, t = me % 4;
    CHECKED((uintptr_t)row % 16 == 0);
    emulation::machine.slots[me] = (uint64_t)row;
    emulation::wait(emulation::warp());
    for (uint32_t m = 0; m < 4; m++) {
        to[m] = matrix_half(m, g, 2 * t) | matrix_half(m, g, 2 * t + 1) << 16;
    }
    emulation::wait(emulation::warp());
}

static inline void load_transposed(uint32_t to[4], const void* row) {
    uint32_t me = emulation::machine.current, g = me % 32 / 4, t = me % 4;
    CHECKED((uintptr_t)row % 16 == 0);
    emulation::machine.slots[me] = (uint64_t)row;
    emulation::wait(emulation::warp());
    for (uint32_t m = 0; m < 4; m++) {
        to[m] = matrix_half(m, 2 * t, g) | matrix_half(m, 2 * t + 1, g) << 16;
    }
    emulation::wait(emulation::warp());
}
