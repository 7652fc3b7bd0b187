// The device's own words: what the kernels ask of a GPU beyond C++, and what emulator/device.h does on a host instead.
#pragma once

#ifdef LEANKV_EMULATED
#include "emulator/device.h"
#else

#include <cstdint>

// Nothing of CUDA's headers, so that NVRTC needs none; it has no math.h either.
#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
#endif

namespace leankv::cuda {

extern __shared__ __align__(1024) char shared_bytes_of_block[];

__device__ __forceinline__ char* shared_memory() { return shared_bytes_of_block; }

__device__ __forceinline__ uint32_t shared_address(const char* p) { return (uint32_t)__cvta_generic_to_shared(p); }

template <class T>
__device__ __forceinline__ T shfl(T v, int from) {
    return __shfl_sync(~0u, v, from);
}

template <class T>
__device__ __forceinline__ T shfl_xor(T v, int mask) {
    return __shfl_xor_sync(~0u, v, mask);
}

// Loads from shared memory; `lds_all` is one that all lanes make together, so that the emulator may count wavefronts.
template <class T>
__device__ __forceinline__ T lds_all(const char* p) {
    return *(const T*)p;
}

template <class T>
__device__ __forceinline__ T lds(const char* p) {
    return *(const T*)p;
}

template <class T>
__device__ __forceinline__ void sts(char* p, T v) {
    *(T*)p = v;
}

__device__ __forceinline__ void cp_async16(char* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// c += A B: A 16 x 32 unsigned bytes by rows, B 32 x 8 bytes by columns, signed or not.
template <bool SIGNED>
__device__ __forceinline__ void mma(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
    if (SIGNED)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 halfwords, transposed; `row` is the row that this lane names.
__device__ __forceinline__ void ldmatrix4_trans(uint32_t (&r)[4], const char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float lg2(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Keeps an address in registers, where the compiler would rather put it together anew.
__device__ __forceinline__ const char* in_register(const char* p) {
    asm("mov.b64 %0, %0;" : "+l"(p));
    return p;
}

// What was read from memory is read again behind here.
__device__ __forceinline__ void forget_memory() { asm volatile("" ::: "memory"); }

// Makes what is worked out from a number be worked out anew behind here.
__device__ __forceinline__ int in_register(int n) {
    asm volatile("" : "+r"(n));
    return n;
}
__device__ __forceinline__ const int* in_register(const int* p) {
    asm volatile("" : "+l"(p));
    return p;
}

__device__ __forceinline__ float half_float(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ uint32_t float_bits(float f) { return __float_as_uint(f); }

__device__ __forceinline__ float bits_float(uint32_t u) { return __uint_as_float(u); }

__device__ __forceinline__ float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }

__device__ __forceinline__ int round_int(float x) { return __float2int_rn(x); }

// Steps in float64 that no compiler may join, so that a record has the reference's bytes.
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double less(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double over(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ long long rounded(double x) { return __double2ll_rn(x); }

__device__ __forceinline__ double natural_log(double x) { return log(x); }
__device__ __forceinline__ double natural_exp(double x) { return exp(x); }

__device__ __forceinline__ uint64_t double_bits(double x) { return (uint64_t)__double_as_longlong(x); }

__device__ __forceinline__ double bits_double(uint64_t u) { return __longlong_as_double((long long)u); }

__device__ __forceinline__ uint16_t nearest_half(float x) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

// Of a launch that may begin before the one before it has ended: waits for that, and lets the next one begin, whose
// blocks then take up room as ours leave it.
__device__ __forceinline__ void take_turn() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
}

// Between blocks of a launch: an addition that returns what was there, a fence between what a thread writes before and
// after, and a load of what another block wrote.
__device__ __forceinline__ int atomic_add(int* p, int n) { return atomicAdd(p, n); }
__device__ __forceinline__ void atomic_add(long long* p, long long n) {
    atomicAdd((unsigned long long*)p, (unsigned long long)n);
}

__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

template <class T>
__device__ __forceinline__ T load_shared_by_blocks(const T* p) {
    return __ldcg(p);
}

// Of data that nothing writes during the launch.
template <class T>
__device__ __forceinline__ T ldg(const T* p) {
    return __ldg(p);
}

}  // namespace leankv::cuda

#endif
