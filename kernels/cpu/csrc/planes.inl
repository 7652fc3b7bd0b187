// Planes of codes, written, and read into vectors that dot products take. All that depends on how wide a plane is, 4
// bits for keys and 2 for values, is here and, for the groups that need no care, in products.inl.
#pragma once

#include "gemm.inl"
#include "kernels.h"
#include "lanes.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr int kMaxGroups = 18;  // a page of 256 in two runs
constexpr int kMaxTokens = kMaxGroups * kPanel;

// Bytes of `bits` bits of the keys of so many tokens, and of the values of tokens `first` to `stop`; one plane's are
// those of its own bits.
LEANKV_INLINE int key_bytes(int bits, int tokens, int dim) { return bits * tokens * dim / 8; }
LEANKV_INLINE int value_bytes(int bits, int first, int stop, int dim) {
    const int quads = (stop + kValueQuad - 1) / kValueQuad - first / kValueQuad;
    return stop > first ? bits / kValuePlaneBits * quads * dim : 0;
}
// Bytes of a key plane of so many tokens, which are also those from its start to a group's.
LEANKV_INLINE size_t key_plane(int tokens, int dim) { return size_t(key_bytes(kKeyPlaneBits, tokens, dim)); }

// Where the key planes of a run lie: one or two planes over all its tokens, or a second one in parts, over the first
// `split` tokens and over the rest; a null part reads as zero.
struct KeySource {
    const uint8_t *top, *second, *first_part, *rest;
    int tokens, split;

    // Of a run of tokens whose codes have their top `bits` in it, and behind those `more`; the first `refined` of them
    // are those of the high tier.
    LEANKV_MEMBER static KeySource of(const uint8_t* run, int bits, int more, int tokens, int refined, int dim) {
        return {run,    bits + more > kKeyPlaneBits ? run + key_plane(tokens, dim) : nullptr, nullptr, nullptr, tokens,
                refined};
    }
    // Refinement of the first tokens, and of the others.
    LEANKV_MEMBER void refine_first(const uint8_t* run) { first_part = run; }
    LEANKV_MEMBER void refine_rest(const uint8_t* run) { rest = run; }
};

// Where the value planes of a run lie: all planes of the base over all its quads, and the refinement in parts as for
// keys, quads `split` on in the second.
struct ValueSource {
    const uint8_t *base, *first_part, *rest;
    int bits;  // in the planes that all its quads have
    int quads, split;
    size_t base_stride, first_stride, rest_stride;
    int refined;  // quads that have refinement

    // Of a run of tokens whose codes have their top `bits` in it, and behind those `more`.
    LEANKV_MEMBER static ValueSource of(const uint8_t* run, int bits, int more, int tokens, int dim) {
        const int quads = (tokens + kValueQuad - 1) / kValueQuad;
        return {run, nullptr, nullptr, bits + more, quads, 0, size_t(quads) * dim, 0, 0, 0};
    }
    // Refinement of the first `fine` tokens.
    LEANKV_MEMBER void refine_first(const uint8_t* run, int fine, int dim) {
        split = refined = (fine + kValueQuad - 1) / kValueQuad;
        first_part = run, first_stride = size_t(split) * dim;
    }
    // And of the others, `more` bits of it. The quad that both parts share is put together in the first, which has to
    // be the caller's to change.
    LEANKV_MEMBER void refine_rest(const uint8_t* run, int more, int fine, int tokens, int dim) {
        rest = run, rest_stride = size_t(quads - fine / kValueQuad) * dim;
        refined = quads;
        if (fine % kValueQuad == 0 || fine >= tokens) return;
        uint8_t* shared = const_cast<uint8_t*>(first_part) + size_t(split - 1) * dim;
        for (int p = 0; p < more / kValuePlaneBits; p++)
            for (int c = 0; c < dim; c++) shared[p * first_stride + c] |= rest[p * rest_stride + c];
        rest += dim;
    }
};

// Reads the key words of one group, 16 tokens of a run, and gives codes in units of the high tier: 4-bit ones as they
// are, 8-bit ones with the top plane in the upper nibble. Word j holds channels 8 j to 8 j + 7, the even ones of them
// in one vector of codes, the odd ones in the other.
template <int PLANES>
struct KeyGroup {
    const uint8_t *top, *second, *first_part, *rest;
    int tokens, in_first, in_rest;

    LEANKV_MEMBER void find(const KeySource& s, int t, int head_dim) {
        tokens = clamp(s.tokens - t, 0, kPanel);
        in_first = clamp(s.split - t, 0, tokens);
        in_rest = tokens - in_first;
        const size_t group = key_plane(t, head_dim);
        top = s.top + group;
        second = s.second ? s.second + group : nullptr;
        first_part = s.first_part && in_first ? s.first_part + group : nullptr;
        const size_t rest_group = key_plane(t < s.split ? 0 : t - s.split, head_dim);
        rest = s.rest && in_rest ? s.rest + rest_group - 4 * in_first : nullptr;
    }

    LEANKV_MEMBER void read(int j, int sub, vi& even, vi& odd) const {
        const vi low = splati(0x0f0f0f0f), high = splati(int32_t(0xf0f0f0f0));
        const vi w = load_lanes(top + j * 4 * tokens, sub, 0, tokens);
        if (PLANES == 1) {
            even = w & low, odd = shift_right(w, 4) & low;
            return;
        }
        vi r{};
        if (second) r = load_lanes(second + j * 4 * tokens, sub, 0, tokens);
        if (first_part) r |= load_lanes(first_part + j * 4 * in_first, sub, 0, in_first);
        if (rest) r |= load_lanes(rest + j * 4 * in_rest, sub, in_first, in_rest);
        even = ((w << 4) & high) | (r & low), odd = (w & high) | (shift_right(r, 4) & low);
    }
};

// The rows of bytes of one group of quads, and the codes in them in units of the high tier, which has PLANES planes.
template <int PLANES, int BASE>
struct ValueGroup {
    const uint8_t* rows[PLANES][4];
    bool fine;

    LEANKV_MEMBER void find(const ValueSource& s, int g, int head_dim) {
        fine = PLANES > BASE && 4 * g < s.refined;
        for (int k = 0; k < 4; k++) {
            const int quad = 4 * g + k;
            for (int p = 0; p < BASE; p++)
                rows[p][k] = quad < s.quads ? s.base + p * s.base_stride + size_t(quad) * head_dim : kZeros;
            if (!fine) continue;
            for (int p = BASE; p < PLANES; p++)
                rows[p][k] = quad >= s.refined ? kZeros
                             : quad < s.split ? s.first_part + (p - BASE) * s.first_stride + size_t(quad) * head_dim
                                              : s.rest + (p - BASE) * s.rest_stride + size_t(quad - s.split) * head_dim;
        }
    }

    // Words of vector 4 c + 2 half and of the one behind it, by plane.
    LEANKV_MEMBER void read(int c, int half, vi (*words)[2]) const {
        for (int p = 0; p < PLANES; p++)
            if (p < BASE || fine) interleave(rows[p], 4 * W * c, half, words[p]);
    }

    // Codes of tokens I, 4 + I, 8 + I, 12 + I.
    template <int I>
    LEANKV_MEMBER vi codes(const vi (*words)[2], int r) const {
        vi code{};
#pragma GCC unroll 4
        for (int p = 0; p < PLANES; p++) {
            const int shift = 2 * I - 2 * (PLANES - 1 - p);
            const vi moved = shift >= 0 ? shift_right(words[p][r], shift) : words[p][r] << -shift;
            if (p < BASE || fine) code |= moved & splati(0x03030303 << (2 * (PLANES - 1 - p)));
        }
        return code;
    }
};

// Writes the words of `count` tokens from `first` on, of the key plane below the top `skip` bits, to the start of their
// group.
LEANKV_INLINE void put_key_plane(const uint8_t (*codes)[kMaxDim], int dim, int skip, int first, int count,
                                 uint8_t* to) {
    const int shift = kMasterBits - kKeyPlaneBits - skip;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < dim / 8; j++) {
            uint64_t x;
            std::memcpy(&x, codes[first + i] + 8 * j, 8);
            x = (x >> shift) & 0x0f0f0f0f0f0f0f0f;
            x = (x | x >> 4) & 0x00ff00ff00ff00ff;
            x = (x | x >> 8) & 0x0000ffff0000ffff;
            const uint32_t word = uint32_t(x | x >> 16);
            std::memcpy(to + 4 * (j * count + i), &word, 4);
        }
}

// The same for `bits` bits below those, into the planes of a run of so many tokens, in which the group begins with
// token `at`.
LEANKV_INLINE void put_keys(const uint8_t (*codes)[kMaxDim], int dim, int skip, int bits, int first, int count,
                            uint8_t* run, int tokens, int at) {
    for (int done = 0; done < bits; done += kKeyPlaneBits, run += key_plane(tokens, dim))
        put_key_plane(codes, dim, skip + done, first, count, run + key_plane(at, dim));
}

// Adds `count` tokens from `first` on to the quads of the value plane below the top `skip` bits; quad 0 of the group
// lies at `to`.
LEANKV_INLINE void put_value_plane(const uint8_t (*codes)[kMaxDim], int dim, int skip, int first, int count,
                                   uint8_t* to) {
    const int shift = kMasterBits - kValuePlaneBits - skip;
    for (int i = first; i < first + count; i++) {
        uint8_t* quad = to + (i / 4) * dim;
        for (int c = 0; c < dim; c++) quad[c] |= uint8_t(((codes[i][c] >> shift) & 3) << (2 * (i % 4)));
    }
}

// The same for `bits` bits below those, into the planes of a run of tokens `begin` to `stop` of their order, of which
// the group begins with token `at`.
LEANKV_INLINE void put_values(const uint8_t (*codes)[kMaxDim], int dim, int skip, int bits, int first, int count,
                              uint8_t* run, int begin, int stop, int at) {
    const ptrdiff_t group = ptrdiff_t(at / kValueQuad - begin / kValueQuad) * dim;
    for (int done = 0; done < bits; done += kValuePlaneBits, run += value_bytes(kValuePlaneBits, begin, stop, dim))
        put_value_plane(codes, dim, skip + done, first, count, run + group);
}

template <int PLANES>
LEANKV_INLINE void decode_keys(const KeySource& s, int head_dim, uint8_t* out) {
    for (int t = 0; t < s.tokens; t += kPanel, out += size_t(kPanel) * head_dim) {
        KeyGroup<PLANES> group;
        group.find(s, t, head_dim);
        for (int j = 0; j < head_dim / 8; j++)
            for (int sub = 0; sub < kPanelVectors; sub++) {
                vi even, odd;
                group.read(j, sub, even, odd);
                storei(out + 2 * j * kStepBytes + sub * 4 * W, even);
                storei(out + (2 * j + 1) * kStepBytes + sub * 4 * W, odd);
            }
    }
}

template <int PLANES, int BASE>
LEANKV_INLINE void decode_values(const ValueSource& s, int head_dim, int steps, int first_group, uint8_t* out) {
    for (int g = 0; 4 * g < s.quads; g++) {
        ValueGroup<PLANES, BASE> group;
        group.find(s, g, head_dim);
        for (int v = 0; v < channel_vectors(head_dim); v += 2) {
            vi words[PLANES][2];
            group.read(v / 4, v / 2 % 2, words);
            for (int r = 0; r < 2; r++) {
                uint8_t* to = out + size_t((v + r) / kPanelVectors) * steps * kStepBytes +
                              size_t(4 * (first_group + g)) * kStepBytes + (v + r) % kPanelVectors * 4 * W;
                storei(to, group.template codes<0>(words, r));
                storei(to + kStepBytes, group.template codes<1>(words, r));
                storei(to + 2 * kStepBytes, group.template codes<2>(words, r));
                storei(to + 3 * kStepBytes, group.template codes<3>(words, r));
            }
        }
    }
}

// Calls f<PLANES>() for the planes of a layout's keys, or f<PLANES, BASE>() for those of its values where all quads of
// a run have `bits` bits; false for planes that nothing is written for.
template <class F>
LEANKV_INLINE bool with_key_planes(const RecordShape& shape, F f) {
    switch (shape.key_base_bits + shape.key_refine_bits) {
        case 4:
            return f.template operator()<1>(), true;
        case 8:
            return f.template operator()<2>(), true;
        default:
            return false;
    }
}

template <class F>
LEANKV_INLINE bool with_value_planes(const RecordShape& shape, int bits, F f) {
    switch (10 * int(shape.value_base_bits + shape.value_refine_bits) + bits) {
        case 22:
            return f.template operator()<1, 1>(), true;
        case 42:
            return f.template operator()<2, 1>(), true;
        case 44:
            return f.template operator()<2, 2>(), true;
        case 84:
            return f.template operator()<4, 2>(), true;
        case 88:
            return f.template operator()<4, 4>(), true;
        default:
            return false;
    }
}

}  // namespace

// Whether all planes of a layout are among those that are written and read here.
static bool has_planes(const RecordShape& shape) {
    auto yes = []<int... N>() {};
    const int base = int(shape.value_base_bits), all = base + int(shape.value_refine_bits);
    return shape.key_base_bits % kKeyPlaneBits == 0 && with_key_planes(shape, yes) &&
           with_value_planes(shape, base, yes) && with_value_planes(shape, all, yes);
}

}  // namespace leankv::LEANKV_NS
