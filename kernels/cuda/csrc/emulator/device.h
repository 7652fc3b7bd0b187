// The words of ../device.cuh on a CPU. Beyond results it is checked that all 32 lanes meet in the same operation, that
// data of cp.async are not used before a wait (their place is poisoned until then), that every access of shared memory
// is ordered behind another thread's, and that no product leaves 32 bits. Operations, bytes and wavefronts are counted.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "shared.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
    uint32_t x, y, z, w;
};
struct uint2 {
    uint32_t x, y;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

#define threadIdx (dim3{(unsigned)leankv::cuda::emulator::self->tid, 0, 0})
#define blockIdx (leankv::cuda::emulator::block_idx)
#define gridDim (leankv::cuda::emulator::grid_dim)
#define blockDim (leankv::cuda::emulator::block_dim)

namespace leankv::cuda {

inline char* shared_memory() { return emulator::shared_base; }
inline void __syncwarp() {
    emulator::meet_warp("syncwarp", nullptr, [](void**) { emulator::self->warp->epoch++; });
}
inline void __syncthreads() {
    emulator::meet(emulator::block_wide, 32, "syncthreads", nullptr, [](void**) {
        emulator::block_wide.epoch++;
        for (auto& w : emulator::warps) w.epoch++;
    });
}

template <class T>
T shfl(T v, int from) {
    struct A {
        T v, out;
        int from;
    } a{v, v, from};
    emulator::meet_warp("shfl", &a, [](void** x) {
        for (int l = 0; l < 32; l++) ((A*)x[l])->out = ((A*)x[((A*)x[l])->from & 31])->v;
    });
    return a.out;
}
template <class T>
T shfl_xor(T v, int mask) {
    return shfl(v, (emulator::self->tid & 31) ^ mask);
}

// A load that all lanes make together: shared memory's wavefronts are counted.
template <class T>
T lds_all(const char* p) {
    uint32_t at = (uint32_t)(p - emulator::shared_base);
    emulator::touch(p, sizeof(T), false);
    emulator::meet_warp("lds", &at, [](void** x) {
        uint32_t a[32];
        for (int l = 0; l < 32; l++) a[l] = *(uint32_t*)x[l];
        emulator::counts["wavefronts lds" + std::to_string(8 * sizeof(T))] += emulator::wavefronts(a, sizeof(T));
        emulator::counts["lds" + std::to_string(8 * sizeof(T))]++;
    });
    return *(const T*)p;
}
template <class T>
T lds(const char* p) {
    emulator::touch(p, sizeof(T), false);
    return *(const T*)p;
}
template <class T>
void sts(char* p, T v) {
    emulator::touch(p, sizeof(T), true);
    *(T*)p = v;
}
inline void cp_async16(char* to, const void* from) {
    if ((uintptr_t)from % 16 || (to - emulator::shared_base) % 16 || to < emulator::shared_base ||
        to + 16 > emulator::shared_base + emulator::shared_size)
        emulator::fail("bad cp.async address");
    emulator::touch(to, 16, true);
    memset(to, 0xEE, 16);
    emulator::self->groups.back().push_back({to, (const char*)from, 16});
    emulator::counts["cp.async bytes"] += 16;
}
inline void cp_commit() { emulator::self->groups.emplace_back(); }
template <int N>
void cp_wait() {
    auto& g = emulator::self->groups;  // the last one is open and not waited for
    while ((int)g.size() - 1 > N) {
        emulator::make(g.front());
        g.erase(g.begin());
    }
}
// m16n8k32, A row major unsigned bytes, B column major bytes, as PTX lays fragments out.
template <bool SIGNED>
void mma(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    struct A {
        uint32_t a[4], b[2];
        int* c;
    } s{{a0, a1, a2, a3}, {b0, b1}, c};
    emulator::meet_warp("mma", &s, [](void** x) {
        static int A_[16][32], B_[32][8];
        for (int l = 0; l < 32; l++) {
            const A& v = *(A*)x[l];
            int g = l >> 2, t = l & 3;
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) A_[g + 8 * (i & 1)][4 * t + 16 * (i >> 1) + j] = v.a[i] >> 8 * j & 255;
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) {
                    int byte = v.b[i] >> 8 * j & 255;
                    B_[4 * t + 16 * i + j][g] = SIGNED ? (int8_t)byte : byte;
                }
        }
        for (int l = 0; l < 32; l++) {
            const A& v = *(A*)x[l];
            int g = l >> 2, t = l & 3;
            for (int i = 0; i < 4; i++) {
                long sum = v.c[i];
                for (int k = 0; k < 32; k++) sum += A_[g + 8 * (i >> 1)][k] * B_[k][2 * t + (i & 1)];
                if (sum != (int)sum) emulator::fail("a product leaves 32 bits");
                v.c[i] = (int)sum;
            }
        }
    });
}
inline void ldmatrix4_trans(uint32_t (&r)[4], const char* row) {
    struct A {
        uint32_t* r;
        const char* row;
    } s{r, row};
    emulator::touch(row, 16, false);  // its own row; the others' are read on its behalf
    emulator::meet_warp("ldmatrix", &s, [](void** x) {
        uint32_t a[32];
        for (int l = 0; l < 32; l++) a[l] = (uint32_t)(((A*)x[l])->row - emulator::shared_base);
        emulator::counts["wavefronts ldmatrix"] += emulator::wavefronts(a, 16);
        for (int l = 0; l < 32; l++)
            for (int m = 0; m < 4; m++) {
                int g = l >> 2, t = l & 3;
                uint16_t lo, hi;
                memcpy(&lo, ((A*)x[8 * m + 2 * t])->row + 2 * g, 2);
                memcpy(&hi, ((A*)x[8 * m + 2 * t + 1])->row + 2 * g, 2);
                ((A*)x[l])->r[m] = lo | (uint32_t)hi << 16;
            }
    });
}
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) {
    uint64_t v = a | (uint64_t)b << 32;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= (uint32_t)(v >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
    return out;
}
inline const char* in_register(const char* p) { return p; }
inline int in_register(int n) { return n; }
inline const int* in_register(const int* p) { return p; }
inline void forget_memory() {}
inline float rcp(float x) { return 1.0f / x; }
inline float ex2(float x) { return exp2f(x); }
inline float lg2(float x) { return log2f(x); }
inline float half_float(uint16_t h) { return (float)std::bit_cast<_Float16>(h); }
inline uint32_t float_bits(float f) { return std::bit_cast<uint32_t>(f); }
inline float bits_float(uint32_t u) { return std::bit_cast<float>(u); }
inline float fma_(float a, float b, float c) { return fmaf(a, b, c); }
inline int round_int(float x) { return (int)lrintf(x); }
// Blocks run one after another.
inline int atomic_add(int* p, int n) {
    const int was = *p;
    *p += n;
    return was;
}
inline void atomic_add(long long* p, long long n) { *p += n; }
inline void fence() {}
inline double add(double a, double b) { return a + b; }
inline double less(double a, double b) { return a - b; }
inline double times(double a, double b) { return a * b; }
inline double over(double a, double b) { return a / b; }
inline long long rounded(double x) { return llrint(x); }
inline double natural_log(double x) { return log(x); }
inline double natural_exp(double x) { return exp(x); }
inline uint64_t double_bits(double x) { return std::bit_cast<uint64_t>(x); }
inline double bits_double(uint64_t u) { return std::bit_cast<double>(u); }
inline uint16_t nearest_half(float x) { return std::bit_cast<uint16_t>((_Float16)x); }
template <class T>
T load_shared_by_blocks(const T* p) {
    return *p;
}
template <class T>
T ldg(const T* p) {
    return *p;
}

}  // namespace leankv::cuda
