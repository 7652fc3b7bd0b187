// Reads one KV head of one record: codes into panels, scales into plain floats. With commit.inl the only C++ that knows
// the layout (kernels/layout.py).

namespace leankv::LEANKV_NS {
namespace {

constexpr int kMaxGroups = 18;  // a page of 256 in two runs
constexpr int kMaxTokens = kMaxGroups * kPanel;
constexpr int kMaxDim = 256;
constexpr int kLevelFar = 2, kLevelNear = 3;
constexpr int32_t kMagic = 0x564B4C31;

LEANKV_INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
LEANKV_INLINE int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Vectors that hold the channels of a head, and what channel a lane of them holds: decoding values leaves channels in
// the order that interleaving bytes gives, and only the final output is put straight.
LEANKV_INLINE int channel_vectors(int head_dim) { return 4 * ((head_dim + 4 * W - 1) / (4 * W)); }
LEANKV_INLINE int channel_of(int vector, int lane) {
    return 4 * W * (vector / 4) + 16 * (lane / 4) + 4 * (vector % 4) + lane % 4;
}

// Where the key planes of a run lie: one or two planes over all its tokens, or a second one in parts, over the first
// `split` tokens and over the rest; a null part reads as zero.
struct KeySource {
    const uint8_t *top, *second, *first_part, *rest;
    int tokens, split;
};

// Where the value planes of a run lie: all planes of the base over all its quads, and the refinement in parts as for
// keys, quads `split` on in the second.
struct ValueSource {
    const uint8_t *base, *first_part, *rest;
    int quads, split;
    size_t base_stride, first_stride, rest_stride;
    int refined;  // quads that have refinement
};

// Tokens of one record and KV head that are stored alike.
struct Run {
    KeySource key;
    ValueSource value;
    int value_base;  // planes that every quad has
    int first_group;
};

// One KV head of one record as the attention reads it.
struct HeadView {
    int groups;  // groups of 16 tokens, the last of each run padded
    int runs;
    Run run[2];
    float key_scale[kMaxTokens], key_zero[kMaxTokens], value_scale[kMaxTokens];
    float value_middle[kMaxTokens];                             // what the middle of the range of codes stands for
    float bias[kMaxTokens];                                     // 0 for a token, -inf for padding
    alignas(64) uint8_t keys[kMaxGroups * kPanel * kMaxDim];    // a panel per group, a step per 4 channels
    alignas(64) uint8_t values[kMaxGroups * kPanel * kMaxDim];  // a panel per 16 channels, a step per 4 tokens
    alignas(64) uint8_t staged[kMaxTokens * (2 * kMaxDim + 8) + 4096];
};

struct Record {
    const RecordShape& shape;
    const uint8_t* blocks;
    const int32_t* words;  // the first block

    Record(const RecordShape& shape, const uint8_t* blocks, int32_t first)
        : shape(shape), blocks(blocks), words(reinterpret_cast<const int32_t*>(blocks + first * shape.block_bytes)) {}

    bool held() const { return words[5] == kMagic; }
    int level() const { return words[4]; }
    const int32_t* head(int h) const { return words + shape.head_word + 4 * h; }
    const uint8_t* at(int offset) const {
        return blocks + (int64_t(words[shape.list_word + (offset >> shape.block_shift)]) << shape.block_shift) +
               (offset & (shape.block_bytes - 1));
    }
    // Whether the blocks of a stretch lie one behind the other in the pool, as they do until it is fragmented.
    bool in_one_piece(int offset, int bytes) const {
        const int32_t* list = words + shape.list_word;
        const int first = offset >> shape.block_shift, last = (offset + bytes - 1) >> shape.block_shift;
        int apart = 0;
        for (int i = first; i < last; i++) apart |= list[i + 1] - list[i] - 1;
        return apart == 0;
    }
};

LEANKV_INLINE void copy64(uint8_t* to, const uint8_t* from) {
    for (int i = 0; i < 64; i += 4 * W) storei(to + i, loadi(from + i));
}

// Copies a stretch of a record out of its blocks; writes up to 63 bytes more than asked.
LEANKV_INLINE void stage(const Record& record, int offset, int bytes, uint8_t* to) {
    const int block = int(record.shape.block_bytes);
    while (bytes > 0) {
        const int here = block - (offset & (block - 1));
        const int n = bytes < here ? bytes : here;
        const uint8_t* from = record.at(offset);
        for (int i = 0; i < n; i += 64) copy64(to + i, from + i);
        to += n, offset += n, bytes -= n;
    }
}

// Lanes first .. first + count - 1 of a panel's 16, from words of which lane 0 would be at p; the others are zero.
LEANKV_INLINE vi load_lanes(const uint8_t* p, [[maybe_unused]] int sub, int first, int count) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_maskz_loadu_epi32(__mmask16(((1u << count) - 1) << first), p);
#elif defined(__AVX2__)
    const vi lane = lane_ids() + sub * W;
    const vi mask = (lane >= first) & (lane < first + count);
    return (vi)_mm256_maskload_epi32(reinterpret_cast<const int*>(p) + sub * W, (__m256i)mask);
#else
    vi out{};
    for (int i = 0; i < W; i++)
        if (const int lane = sub * W + i; lane >= first && lane < first + count) {
            int32_t word;
            std::memcpy(&word, p + 4 * lane, 4);
            out[i] = word;
        }
    return out;
#endif
}

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
        const size_t group = size_t(t) * head_dim / 2;
        top = s.top + group;
        second = s.second ? s.second + group : nullptr;
        first_part = s.first_part && in_first ? s.first_part + group : nullptr;
        const size_t rest_group = size_t(t < s.split ? 0 : t - s.split) * head_dim / 2;
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

// From four rows of 4 W channels to half of four vectors of words, the byte of row k in byte k of a word.
LEANKV_INLINE void interleave(const uint8_t* const rows[4], int offset, int half, vi out[2]) {
#if defined(__AVX512VNNI__)
    __m512i r[4];
    for (int k = 0; k < 4; k++) r[k] = (__m512i)loadi(rows[k] + offset);
    const __m512i a = half ? _mm512_unpackhi_epi8(r[0], r[1]) : _mm512_unpacklo_epi8(r[0], r[1]);
    const __m512i b = half ? _mm512_unpackhi_epi8(r[2], r[3]) : _mm512_unpacklo_epi8(r[2], r[3]);
    out[0] = (vi)_mm512_unpacklo_epi16(a, b), out[1] = (vi)_mm512_unpackhi_epi16(a, b);
#elif defined(__AVX2__)
    __m256i r[4];
    for (int k = 0; k < 4; k++) r[k] = (__m256i)loadi(rows[k] + offset);
    const __m256i a = half ? _mm256_unpackhi_epi8(r[0], r[1]) : _mm256_unpacklo_epi8(r[0], r[1]);
    const __m256i b = half ? _mm256_unpackhi_epi8(r[2], r[3]) : _mm256_unpacklo_epi8(r[2], r[3]);
    out[0] = (vi)_mm256_unpacklo_epi16(a, b), out[1] = (vi)_mm256_unpackhi_epi16(a, b);
#else
    for (int v = 0; v < 2; v++)
        for (int i = 0; i < W; i++) {
            const int c = offset + channel_of(2 * half + v, i);
            out[v][i] = int32_t(uint32_t(rows[0][c]) | uint32_t(rows[1][c]) << 8 | uint32_t(rows[2][c]) << 16 |
                                uint32_t(rows[3][c]) << 24);
        }
#endif
}

alignas(64) constexpr uint8_t kZeros[2 * kMaxDim] = {};

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

// The middle of the range of value codes, in units of the high tier.
LEANKV_INLINE double value_middle(const RecordShape& shape) {
    return ((1 << (2 * (shape.value_base + shape.value_refine))) - 1) * 0.5;
}

// Scales of a run's tokens, of which the first `refined` are read at the high tier's bin centres.
LEANKV_INLINE void decode_scales(const uint8_t* staged, int tokens, int refined, const RecordShape& shape,
                                 HeadView& view, int first) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(staged);
    const float key_step = float(shape.key_step), value_step = float(shape.value_step);
    const double middle = shape.value_step * value_middle(shape);
    for (int t = 0; t < round_up(tokens, kPanel); t += W) {
        const vi lane = lane_ids() + t;
        const vi valid = lane < tokens, high = lane < refined;
        auto array = [&](int which) { return as_float(as_int(half_to_float(halves + which * tokens + t)) & valid); };
        auto centre = [&](double fine, double coarse) { return high ? splat(float(fine)) : splat(float(coarse)); };
        const vf ks = array(0), kz = array(1), vs = array(2), vz = array(3);
        const int at = first + t;
        store(view.key_scale + at, ks * key_step);
        store(view.key_zero + at, fma(ks, centre(shape.key_centre_high, shape.key_centre_low), kz));
        store(view.value_scale + at, vs * value_step);
        const vf offset = centre(shape.value_centre_high + middle, shape.value_centre_low + middle);
        store(view.value_middle + at, fma(vs, offset, vz));
        store(view.bias + at, valid ? vf{} : splat(-__builtin_inff()));
    }
}

// Calls f<PLANES>() or f<PLANES, BASE>() for the planes of a layout.
template <class F>
LEANKV_INLINE void with_key_planes(const RecordShape& shape, F f) {
    if (shape.key_base + shape.key_refine == 1)
        f.template operator()<1>();
    else
        f.template operator()<2>();
}

template <class F>
LEANKV_INLINE void with_value_planes(const RecordShape& shape, int base, F f) {
    switch (10 * int(shape.value_base + shape.value_refine) + base) {
        case 11:
            return f.template operator()<1, 1>();
        case 21:
            return f.template operator()<2, 1>();
        case 22:
            return f.template operator()<2, 2>();
        case 42:
            return f.template operator()<4, 2>();
        case 44:
            return f.template operator()<4, 4>();
    }
}

// Decodes a whole view to panels, for more rows than are worth decoding for on the fly.
static void decode_panels(HeadView& view, const RecordShape& shape) {
    const int dim = int(shape.head_dim);
    for (int i = 0; i < view.runs; i++) {
        const Run& run = view.run[i];
        with_key_planes(shape, [&]<int PLANES>() {
            decode_keys<PLANES>(run.key, dim, view.keys + size_t(run.first_group) * kPanel * dim);
        });
        with_value_planes(shape, run.value_base, [&]<int PLANES, int BASE>() {
            decode_values<PLANES, BASE>(run.value, dim, 4 * view.groups, run.first_group, view.values);
        });
    }
}

// Finds a head of a record at its near view (every token high) or its far view (tiers as committed).
static inline void read_head(const Record& record, int h, bool near, HeadView& view) {
    const RecordShape& shape = record.shape;
    const int32_t* head = record.head(h);
    const int n_high = head[0] & 0xffff, n_low = uint32_t(head[0]) >> 16, far = n_high + n_low;
    const int pruned = near ? int(shape.page_size) - far : 0, level = record.level();
    const int refined = near ? far : level >= kLevelFar ? n_high : 0;
    const int dim = int(shape.head_dim), key_base = int(shape.key_base), value_base = int(shape.value_base);
    const int key_refine = int(shape.key_refine), value_refine = int(shape.value_refine);
    const int far_groups = (far + kPanel - 1) / kPanel, quads = (far + 3) / 4;
    view.groups = far_groups + (pruned + kPanel - 1) / kPanel;
    view.runs = 0;

    uint8_t* staged = view.staged;
    auto fetch = [&](int offset, int bytes, bool copy) {
        if (!copy && record.in_one_piece(offset, bytes)) return record.at(offset);
        uint8_t* to = staged;
        stage(record, offset, bytes, to);
        staged += round_up(bytes, 64) + 64;
        return static_cast<const uint8_t*>(to);
    };
    if (far) {
        const int scales = round_up(8 * far, 16), keys = round_up(key_base * far * dim / 2, 16);
        const uint8_t* base = fetch(head[1], scales + keys + value_base * quads * dim, false);
        KeySource key{base + scales, nullptr, nullptr, nullptr, far, n_high};
        if (key_base == 2) key.second = key.top + size_t(far) * dim / 2;
        ValueSource value{base + scales + keys, nullptr, nullptr, quads, 0, size_t(quads) * dim, 0, 0, 0};
        if (refined && n_high && key_refine + value_refine) {
            const int high_keys = round_up(key_refine * n_high * dim / 2, 16), high_quads = (n_high + 3) / 4;
            const uint8_t* refine = fetch(head[2], high_keys + value_refine * high_quads * dim, near);
            if (key_refine) key.first_part = refine;
            value.first_part = refine + high_keys;
            value.first_stride = size_t(high_quads) * dim;
            value.split = value.refined = high_quads;
        }
        if (near && n_low && key_refine + value_refine) {
            const int low_keys = round_up(key_refine * n_low * dim / 2, 16), low_quads = quads - n_high / 4;
            const uint8_t* low = fetch(head[3], low_keys + value_refine * low_quads * dim, true);
            if (key_refine) key.rest = low;
            value.rest = low + low_keys;
            value.rest_stride = size_t(low_quads) * dim;
            value.refined = quads;
            if (n_high % 4) {  // the quad that both parts share; what is staged is ours to change
                uint8_t* shared = const_cast<uint8_t*>(value.first_part) + size_t(value.split - 1) * dim;
                for (int p = 0; p < value_refine; p++)
                    for (int c = 0; c < dim; c++)
                        shared[p * value.first_stride + c] |= value.rest[p * value.rest_stride + c];
                value.rest += dim;
            }
        }
        decode_scales(base, far, refined, shape, view, 0);
        view.run[view.runs++] = {key, value, value_base, 0};
    }
    if (pruned) {
        const int key_planes = key_base + key_refine, value_planes = value_base + value_refine;
        const int pruned_quads = (pruned + 3) / 4, scales = round_up(8 * pruned, 16);
        const int keys = round_up(key_planes * pruned * dim / 2, 16);
        const int low_bytes =
            round_up(key_refine * n_low * dim / 2, 16) + (n_low ? value_refine * (quads - n_high / 4) * dim : 0);
        const uint8_t* all = fetch(head[3] + low_bytes, scales + keys + value_planes * pruned_quads * dim, true);
        decode_scales(all, pruned, pruned, shape, view, far_groups * kPanel);
        KeySource key{all + scales, nullptr, nullptr, nullptr, pruned, pruned};
        if (key_planes == 2) key.second = key.top + size_t(pruned) * dim / 2;
        const size_t stride = size_t(pruned_quads) * dim;
        const ValueSource value{all + scales + keys, nullptr, nullptr, pruned_quads, 0, stride, 0, 0, 0};
        view.run[view.runs++] = {key, value, value_planes, far_groups};
    }
}

// Asks for what a head's far view will read, a little at a time: a burst of requests would stall what is computed.
struct Prefetch {
    static constexpr int kPieces = 32;
    const uint8_t* from[kPieces];
    int lines[kPieces];
    int pieces, piece;
    int share;  // lines per call that spread all over `calls` calls

    LEANKV_MEMBER Prefetch(const Record* next, int h, int calls) : pieces(0), piece(0), share(0) {
        if (!next || !next->held()) return;
        const RecordShape& shape = next->shape;
        const int32_t* head = next->head(h);
        const int n_high = head[0] & 0xffff, far = n_high + int(uint32_t(head[0]) >> 16), dim = int(shape.head_dim);
        const int base = 8 * far + int(shape.key_base) * far * dim / 2 + int(shape.value_base) * (far + 3) / 4 * dim;
        const int refine = int(shape.key_refine) * n_high * dim / 2 + int(shape.value_refine) * (n_high + 3) / 4 * dim;
        add(*next, head[1], base);
        if (next->level() >= kLevelFar) add(*next, head[2], refine);
        share = (base + refine) / 64 / calls + 1;
    }

    // The stretch of a record in pieces that lie together in the pool.
    LEANKV_MEMBER void add(const Record& record, int offset, int bytes) {
        const int block = int(record.shape.block_bytes), end = offset + bytes;
        for (offset &= ~63; offset < end && pieces < kPieces;) {
            const int here = block - (offset & (block - 1)), n = end - offset < here ? end - offset : here;
            const uint8_t* at = record.at(offset);
            if (pieces && at == from[pieces - 1] + 64 * lines[pieces - 1])
                lines[pieces - 1] += (n + 63) / 64;
            else
                from[pieces] = at, lines[pieces++] = (n + 63) / 64;
            offset += n;
        }
    }

    LEANKV_MEMBER void issue(int count) {
        while (count > 0 && piece < pieces) {
            const int n = count < lines[piece] ? count : lines[piece];
            for (int i = 0; i < n; i++) __builtin_prefetch(from[piece] + 64 * i, 0, 3);
            from[piece] += 64 * n;
            lines[piece] -= n;
            count -= n;
            if (!lines[piece]) piece++;
        }
    }
};

}  // namespace
}  // namespace leankv::LEANKV_NS
