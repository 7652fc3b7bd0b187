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

// One KV head of one record as the attention reads it.
struct HeadView {
    int groups;  // groups of 16 tokens, the last of each run padded
    float key_scale[kMaxTokens], key_zero[kMaxTokens], value_scale[kMaxTokens];
    float value_middle[kMaxTokens];               // what the middle of the range of codes stands for
    float bias[kMaxTokens];                       // 0 for a token, -inf for padding
    alignas(64) uint8_t keys[kMaxGroups * kPanel * kMaxDim];  // a panel per group, a step per 4 channels
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
        return blocks + int64_t(words[shape.list_word + (offset >> shape.block_shift)]) * shape.block_bytes +
               (offset & (shape.block_bytes - 1));
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

// Where the key planes of a run lie: one or two planes over all its tokens, or a second one in parts, over the first
// `split` tokens and over the rest; a null part reads as zero.
struct KeySource {
    const uint8_t *top, *second, *first_part, *rest;
    int tokens, split;
};

// Codes of keys in units of the high tier: 4-bit ones as they are, 8-bit ones with the top plane in the upper nibble.
template <int PLANES>
LEANKV_INLINE void decode_keys(const KeySource& s, int head_dim, uint8_t* out) {
    const int words = head_dim / 8;
    const vi low = splati(0x0f0f0f0f), high = splati(int32_t(0xf0f0f0f0));
    for (int t = 0; t < s.tokens; t += kPanel, out += size_t(kPanel) * head_dim) {
        const int m = clamp(s.tokens - t, 0, kPanel), in_first = clamp(s.split - t, 0, m), in_rest = m - in_first;
        const size_t group = size_t(t) * head_dim / 2;
        const uint8_t* top = s.top + group;
        const uint8_t* second = s.second ? s.second + group : nullptr;
        const uint8_t* first_part = s.first_part ? s.first_part + group : nullptr;
        const uint8_t* rest =
            s.rest ? s.rest + size_t(t < s.split ? 0 : t - s.split) * head_dim / 2 - 4 * in_first : nullptr;
        for (int j = 0; j < words; j++) {
            for (int sub = 0; sub < kPanelVectors; sub++) {
                const vi w = load_lanes(top + j * 4 * m, sub, 0, m);
                vi even, odd;
                if (PLANES == 1) {
                    even = w & low, odd = shift_right(w, 4) & low;
                } else {
                    vi r{};
                    if (second) r = load_lanes(second + j * 4 * m, sub, 0, m);
                    if (first_part && in_first) r |= load_lanes(first_part + j * 4 * in_first, sub, 0, in_first);
                    if (rest && in_rest) r |= load_lanes(rest + j * 4 * in_rest, sub, in_first, in_rest);
                    even = ((w << 4) & high) | (r & low), odd = (w & high) | (shift_right(r, 4) & low);
                }
                storei(out + 2 * j * kStepBytes + sub * 4 * W, even);
                storei(out + (2 * j + 1) * kStepBytes + sub * 4 * W, odd);
            }
        }
    }
}

// Four rows of 4 W channels to four vectors of words, the byte of row k in byte k.
LEANKV_INLINE void interleave(const uint8_t* const rows[4], int offset, vi out[4]) {
#if defined(__AVX512VNNI__)
    __m512i r[4];
    for (int k = 0; k < 4; k++) r[k] = (__m512i)loadi(rows[k] + offset);
    const __m512i t0 = _mm512_unpacklo_epi8(r[0], r[1]), t1 = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i t2 = _mm512_unpacklo_epi8(r[2], r[3]), t3 = _mm512_unpackhi_epi8(r[2], r[3]);
    out[0] = (vi)_mm512_unpacklo_epi16(t0, t2), out[1] = (vi)_mm512_unpackhi_epi16(t0, t2);
    out[2] = (vi)_mm512_unpacklo_epi16(t1, t3), out[3] = (vi)_mm512_unpackhi_epi16(t1, t3);
#elif defined(__AVX2__)
    __m256i r[4];
    for (int k = 0; k < 4; k++) r[k] = (__m256i)loadi(rows[k] + offset);
    const __m256i t0 = _mm256_unpacklo_epi8(r[0], r[1]), t1 = _mm256_unpackhi_epi8(r[0], r[1]);
    const __m256i t2 = _mm256_unpacklo_epi8(r[2], r[3]), t3 = _mm256_unpackhi_epi8(r[2], r[3]);
    out[0] = (vi)_mm256_unpacklo_epi16(t0, t2), out[1] = (vi)_mm256_unpackhi_epi16(t0, t2);
    out[2] = (vi)_mm256_unpacklo_epi16(t1, t3), out[3] = (vi)_mm256_unpackhi_epi16(t1, t3);
#else
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < W; i++) {
            const int c = offset + channel_of(v, i);
            out[v][i] = int32_t(
                uint32_t(rows[0][c]) | uint32_t(rows[1][c]) << 8 | uint32_t(rows[2][c]) << 16 |
                uint32_t(rows[3][c]) << 24);
        }
#endif
}

// Where the value planes of a run lie: all planes of the base over all its quads, and the refinement in parts as for
// keys, quads `split` on in the second.
struct ValueSource {
    const uint8_t *base, *first_part, *rest;
    int quads, split;
    size_t base_stride, first_stride, rest_stride;
    int refined;  // quads that have refinement
};

alignas(64) constexpr uint8_t kZeros[2 * kMaxDim] = {};

// Codes of values in units of the high tier, which has PLANES planes, of which BASE are in the base.
template <int PLANES, int BASE>
LEANKV_INLINE void decode_values(const ValueSource& s, int head_dim, int steps, int first_group, uint8_t* out) {
    const int vectors = channel_vectors(head_dim);
    const vi three = splati(0x03030303);
    for (int g = 0; 4 * g < s.quads; g++) {
        const bool fine = PLANES > BASE && 4 * g < s.refined;
        const uint8_t* rows[PLANES][4];
        for (int k = 0; k < 4; k++) {
            const int quad = 4 * g + k;
            for (int p = 0; p < BASE; p++) rows[p][k] = s.base + p * s.base_stride + size_t(quad) * head_dim;
            for (int p = BASE; p < PLANES; p++)
                rows[p][k] = quad >= s.refined ? kZeros
                             : quad < s.split  ? s.first_part + (p - BASE) * s.first_stride + size_t(quad) * head_dim
                                              : s.rest + (p - BASE) * s.rest_stride + size_t(quad - s.split) * head_dim;
        }
        const int planes = fine ? PLANES : BASE;
        for (int v = 0; v < vectors; v += 4) {
            vi word[PLANES][4];
            for (int p = 0; p < PLANES; p++)
                if (p < planes) interleave(rows[p], v * W, word[p]);
            for (int r = 0; r < 4; r++) {
                uint8_t* to = out + size_t((v + r) / kPanelVectors) * steps * kStepBytes +
                              size_t(4 * (first_group + g)) * kStepBytes + (v + r) % kPanelVectors * 4 * W;
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    vi code{};
#pragma GCC unroll 4
                    for (int p = 0; p < PLANES; p++) {
                        const int shift = 2 * i - 2 * (PLANES - 1 - p);
                        const vi moved = shift >= 0 ? shift_right(word[p][r], shift) : word[p][r] << -shift;
                        if (p < planes) code |= moved & (three << (2 * (PLANES - 1 - p)));
                    }
                    storei(to + i * kStepBytes, code);
                }
            }
        }
    }
}

// The middle of the range of value codes, in units of the high tier.
LEANKV_INLINE double value_middle(const RecordShape& shape) {
    return ((1 << (2 * (shape.value_base + shape.value_refine))) - 1) * 0.5;
}

// Scales of a run's tokens, of which the first `refined` are read at the high tier's bin centres.
LEANKV_INLINE void decode_scales(
    const uint8_t* staged, int tokens, int refined, const RecordShape& shape, HeadView& view, int first) {
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

LEANKV_INLINE void decode_key_run(const KeySource& s, const RecordShape& shape, uint8_t* out) {
    if (shape.key_base + shape.key_refine == 1) decode_keys<1>(s, int(shape.head_dim), out);
    else decode_keys<2>(s, int(shape.head_dim), out);
}

LEANKV_INLINE void decode_value_run(
    const ValueSource& s, int base, int planes, const RecordShape& shape, int steps, int group, uint8_t* out) {
    const int dim = int(shape.head_dim);
    switch (10 * planes + base) {
        case 11: return decode_values<1, 1>(s, dim, steps, group, out);
        case 21: return decode_values<2, 1>(s, dim, steps, group, out);
        case 22: return decode_values<2, 2>(s, dim, steps, group, out);
        case 42: return decode_values<4, 2>(s, dim, steps, group, out);
        case 44: return decode_values<4, 4>(s, dim, steps, group, out);
    }
}

// Reads a head of a record at its near view (every token high) or its far view (tiers as committed).
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
    const int steps = 4 * view.groups;

    uint8_t* staged = view.staged;
    const int scales = round_up(8 * far, 16), keys = round_up(key_base * far * dim / 2, 16);
    stage(record, head[1], scales + keys + value_base * quads * dim, staged);
    const uint8_t* base = staged;
    staged += round_up(scales + keys + value_base * quads * dim, 64) + 64;
    KeySource key{base + scales, nullptr, nullptr, nullptr, far, n_high};
    if (key_base == 2) key.second = key.top + size_t(far) * dim / 2;
    ValueSource value{base + scales + keys, nullptr, nullptr, quads, 0, size_t(quads) * dim, 0, 0, 0};
    if (refined && (key_refine || value_refine)) {
        const int high_keys = round_up(key_refine * n_high * dim / 2, 16), high_quads = (n_high + 3) / 4;
        stage(record, head[2], high_keys + value_refine * high_quads * dim, staged);
        if (key_refine) key.first_part = staged;
        uint8_t* high_values = staged + high_keys;
        value.first_part = high_values;
        value.first_stride = size_t(high_quads) * dim;
        value.split = value.refined = high_quads;
        staged += round_up(high_keys + value_refine * high_quads * dim, 64) + 64;
        if (near && n_low) {
            const int low_keys = round_up(key_refine * n_low * dim / 2, 16), low_quads = quads - n_high / 4;
            stage(record, head[3], low_keys + value_refine * low_quads * dim, staged);
            if (key_refine) key.rest = staged;
            value.rest = staged + low_keys;
            value.rest_stride = size_t(low_quads) * dim;
            value.refined = quads;
            if (n_high % 4) {  // the quad that both parts share
                for (int p = 0; p < value_refine; p++)
                    for (int c = 0; c < dim; c++)
                        high_values[p * value.first_stride + size_t(high_quads - 1) * dim + c] |=
                            value.rest[p * value.rest_stride + c];
                value.rest += dim;
            }
            staged += round_up(low_keys + value_refine * low_quads * dim, 64) + 64;
        }
    }
    decode_scales(base, far, refined, shape, view, 0);
    decode_key_run(key, shape, view.keys);
    decode_value_run(value, value_base, value_base + value_refine, shape, steps, 0, view.values);
    if (!pruned) return;

    const int key_planes = key_base + key_refine, value_planes = value_base + value_refine;
    const int pruned_quads = (pruned + 3) / 4, pruned_scales = round_up(8 * pruned, 16);
    const int pruned_keys = round_up(key_planes * pruned * dim / 2, 16);
    const int low_bytes =
        round_up(key_refine * n_low * dim / 2, 16) + (n_low ? value_refine * (quads - n_high / 4) * dim : 0);
    stage(record, head[3] + low_bytes, pruned_scales + pruned_keys + value_planes * pruned_quads * dim, staged);
    decode_scales(staged, pruned, pruned, shape, view, far_groups * kPanel);
    KeySource all_keys{staged + pruned_scales, nullptr, nullptr, nullptr, pruned, pruned};
    if (key_planes == 2) all_keys.second = all_keys.top + size_t(pruned) * dim / 2;
    decode_key_run(all_keys, shape, view.keys + size_t(far_groups) * kPanel * dim);
    const ValueSource all_values{
        staged + pruned_scales + pruned_keys, nullptr, nullptr, pruned_quads, 0, size_t(pruned_quads) * dim, 0, 0, 0};
    decode_value_run(all_values, value_planes, value_planes, shape, steps, far_groups, view.values);
}

// Asks for what a head's far view will read.
LEANKV_INLINE void prefetch_head(const Record& record, int h) {
    const RecordShape& shape = record.shape;
    const int32_t* head = record.head(h);
    const int n_high = head[0] & 0xffff, far = n_high + int(uint32_t(head[0]) >> 16), dim = int(shape.head_dim);
    const int base = 8 * far + int(shape.key_base) * far * dim / 2 + int(shape.value_base) * (far + 3) / 4 * dim;
    const int refine = int(shape.key_refine) * n_high * dim / 2 + int(shape.value_refine) * (n_high + 3) / 4 * dim;
    const int starts[2] = {head[1], head[2]}, sizes[2] = {base, record.level() >= kLevelFar ? refine : 0};
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < sizes[part]; i += 64) __builtin_prefetch(record.at(starts[part] + i), 0, 2);
}

}  // namespace
}  // namespace leankv::LEANKV_NS
