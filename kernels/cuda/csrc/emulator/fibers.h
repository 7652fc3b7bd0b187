// Threads of a CUDA block as fibers of one CPU thread: each warp- or block-wide operation is a point where fibers meet,
// and the last to arrive does the work for all.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace leankv::cuda::emulator {

struct Copy {
    char* to;
    const char* from;
    int size;
};
struct Warp {
    int count = 0, width = 32;
    unsigned gen = 0, epoch = 0;  // epoch: how often its threads were synchronized
    std::string what;
    void* arg[32] = {};
};
struct Fiber {
    void* sp = nullptr;
    std::vector<char> stack;
    bool done = false;
    int tid = 0;
    Warp* warp = nullptr;
    std::vector<std::vector<Copy>> groups;  // cp.async groups not yet waited for; the last one is open
#if !defined(__x86_64__)
    ucontext_t ctx;
#endif
};
inline Fiber* self;
inline Fiber home;
inline std::function<void()> body;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Warp block_wide;
inline dim3 block_idx, grid_dim, block_dim;
inline std::vector<char> shared_raw;
inline char* shared_base;
inline size_t shared_size;
inline unsigned long progress;
inline std::map<std::string, long> counts;

[[noreturn]] inline void fail(const std::string& why) {
    fprintf(stderr, "emulator: block (%u,%u,%u): %s\n", block_idx.x, block_idx.y, block_idx.z, why.c_str());
    abort();
}
#if defined(__x86_64__)
extern "C" void leankv_switch(void** save, void* to);
asm(".text\n.globl leankv_switch\n.type leankv_switch,@function\nleankv_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
inline void go(Fiber& from, Fiber& to) { leankv_switch(&from.sp, to.sp); }
#else
inline void go(Fiber& from, Fiber& to) { swapcontext(&from.ctx, &to.ctx); }
#endif
inline void yield() {
    Fiber* me = self;
    go(*me, home);
    self = me;
}
inline void entry() {
    body();
    self->done = true;
    progress++;
    yield();
    fail("a finished thread was resumed");
}
inline void prepare(Fiber& f) {
    f.stack.resize(1 << 16);
    char* top = (char*)((uintptr_t)(f.stack.data() + f.stack.size()) & ~(uintptr_t)63);
#if defined(__x86_64__)
    void** sp = (void**)top;
    *--sp = nullptr;  // keeps the stack aligned as after a call
    *--sp = (void*)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f.sp = sp;
#else
    getcontext(&f.ctx);
    f.ctx.uc_stack.ss_sp = f.stack.data();
    f.ctx.uc_stack.ss_size = f.stack.size();
    makecontext(&f.ctx, entry, 0);
#endif
}
// All threads of a warp (or block) meet; the last one runs `work(args)`.
template <class F>
void meet(Warp& w, int place, const char* what, void* arg, F work) {
    if (w.count == 0)
        w.what = what;
    else if (w.what != what)
        fail("threads meet in " + w.what + " and in " + what);
    if (place < 32) w.arg[place] = arg;
    unsigned gen = w.gen;
    progress++;
    if (++w.count == w.width) {
        work(w.arg);
        counts[what]++;
        w.count = 0;
        w.gen++;
    } else
        while (w.gen == gen) yield();
}
template <class F>
void meet_warp(const char* what, void* arg, F work) {
    meet(*self->warp, self->tid % 32, what, arg, work);
}

}  // namespace leankv::cuda::emulator
