// Shared memory, seen byte by byte: races, copies that land when they are waited for, wavefronts.
#pragma once

#include <cstring>

#include "fibers.h"

namespace leankv::cuda::emulator {

// Who touched each byte of shared memory last: an access must be ordered behind another thread's by a syncwarp, between
// warps by a syncthreads, unless both read. Shuffles and products order nothing.
struct Seen {
    int16_t writer = -1, reader = -1;
    unsigned wrote = 0, wrote_block = 0, read = 0, read_block = 0;
};
inline std::vector<Seen> seen;
inline void touch(const char* p, int size, bool write) {
    long at = p - shared_base;
    if (at < 0 || at + size > (long)shared_size || at % size) fail("bad shared address");
    int me = self->tid;
    unsigned epoch = self->warp->epoch, block = block_wide.epoch;
    auto races = [&](int other, unsigned e, unsigned b) {
        return other != -1 && other != me && b == block && (other < 0 || other / 32 != me / 32 || e == epoch);
    };
    for (Seen* s = &seen[at]; s < &seen[at] + size; s++) {
        if (races(s->writer, s->wrote, s->wrote_block))
            fail("race: thread " + std::to_string(me) + (write ? " writes" : " reads") + " what thread " +
                 std::to_string(s->writer) + " wrote, unsynchronized");
        if (write) {
            bool shared = s->reader == -2 && s->read == epoch && s->read_block == block;
            if (shared || (s->reader >= 0 && races(s->reader, s->read, s->read_block)))
                fail("race: thread " + std::to_string(me) + " writes what others read, unsynchronized");
            *s = {(int16_t)me, -1, epoch, block, 0, 0};
        } else {
            bool also = s->reader != -1 && s->reader != me && s->read == epoch && s->read_block == block;
            s->reader = also ? -2 : me;
            s->read = epoch;
            s->read_block = block;
        }
    }
}

inline void make(std::vector<Copy>& group) {
    for (Copy& c : group) {
        touch(c.to, c.size, true);
        memcpy(c.to, c.from, c.size);
    }
    group.clear();
}
// Wavefronts that shared memory needs for 32 accesses of `size` bytes, in phases of 128 bytes.
inline int wavefronts(const uint32_t* at, int size) {
    int per_phase = size >= 16 ? 8 : size == 8 ? 16 : 32, total = 0;
    for (int p = 0; p < 32; p += per_phase) {
        std::map<int, std::map<uint32_t, bool>> words;
        for (int l = p; l < p + per_phase; l++)
            for (uint32_t b = at[l] & ~3u; b < at[l] + size; b += 4) words[b / 4 % 32][b / 4] = true;
        size_t most = 0;
        for (auto& [bank, set] : words) most = std::max(most, set.size());
        total += (int)most;
    }
    return total;
}

}  // namespace leankv::cuda::emulator
