// Blocks one after another, in one CPU thread; blocks, and warps of a block, in an order drawn from a seed.
#pragma once

#include <algorithm>
#include <random>

#include "shared.h"

namespace leankv::cuda::emulator {

inline void run_block(int threads, size_t shared, std::mt19937& rng) {
    memset(shared_base, 0xEE, shared);
    seen.assign(shared, {});
    warps.assign((threads + 31) / 32, {});
    block_wide = {};
    block_wide.width = threads;
    for (int i = 0; i < threads; i++) {
        fibers[i].done = false;
        fibers[i].tid = i;
        fibers[i].warp = &warps[i / 32];
        fibers[i].groups.assign(1, {});
        prepare(fibers[i]);
    }
    std::vector<int> order(warps.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    for (int left = threads; left;) {
        unsigned long before = progress;
        std::shuffle(order.begin(), order.end(), rng);
        // One warp may run far ahead of the others.
        for (int w : order)
            for (int turns = 1 + (int)(rng() % 64); turns--;)
                for (int l = 0; l < 32; l++) {
                    Fiber& f = fibers[32 * w + l];
                    if (f.done) continue;
                    self = &f;
                    go(home, f);
                    if (f.done) left--;
                }
        if (left && progress == before)
            fail("no thread can go on: some wait in " + warps[0].what + " or " + block_wide.what);
    }
}

inline void launch(dim3 grid, int threads, size_t shared, unsigned seed, std::function<void()> kernel) {
    std::mt19937 rng(seed);
    grid_dim = grid;
    block_dim = {(unsigned)threads, 1, 1};
    body = kernel;
    shared_size = shared;
    shared_raw.assign(shared + 2048, (char)0xEE);
    shared_base = (char*)(((uintptr_t)shared_raw.data() + 1023) & ~(uintptr_t)1023);
    fibers.resize(threads);
    std::vector<dim3> order;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) order.push_back({x, y, z});
    std::shuffle(order.begin(), order.end(), rng);
    for (const dim3& block : order) {
        block_idx = block;
        run_block(threads, shared, rng);
    }
}

}  // namespace leankv::cuda::emulator
