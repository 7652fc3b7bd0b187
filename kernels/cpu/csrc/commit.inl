// Full pages to records: rotate, quantize and pack in float64, byte for byte as the reference does
// (reference/codec.py, reference/record.py). With record.inl the only C++ that knows the layout.

namespace leankv::LEANKV_NS {
namespace {

constexpr double kHalfMax = 65504.0;

// The largest half that is at most x, as bits; |x| <= 65504.
LEANKV_INLINE uint16_t half_floor(double x) {
    if (x == 0.0) return __builtin_signbit(x) ? 0x8000 : 0;
    const bool negative = x < 0.0;
    const double magnitude = negative ? -x : x;
    uint16_t bits;
    bool exact;
    if (magnitude < 0x1p-14) {
        const double steps = magnitude * 0x1p24;
        const int whole = int(steps);
        bits = uint16_t(whole), exact = double(whole) == steps;
    } else {
        uint64_t u;
        std::memcpy(&u, &magnitude, 8);
        bits = uint16_t((((u >> 52) - 1008) << 10) | ((u >> 42) & 0x3ff));
        exact = (u & ((uint64_t(1) << 42) - 1)) == 0;
    }
    if (negative) bits = uint16_t((bits + (exact ? 0 : 1)) | 0x8000);
    return bits;
}

LEANKV_INLINE double half_value(uint16_t h) {
    const int exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    const double magnitude = exponent ? __builtin_ldexp(1024 + mantissa, exponent - 25) : mantissa * 0x1p-24;
    return h & 0x8000 ? -magnitude : magnitude;
}

struct CommitScratch {
    alignas(64) double x[kMaxDim][kPanel];
    alignas(64) uint8_t key[kMaxDim][kPanel], value[kMaxDim][kPanel];
    uint16_t scales[4][kPanel];
    int order[kMaxPage];
    alignas(64) uint8_t section[3][kMaxPage * (2 * kMaxDim + 8) + 8192];
};

// Quantizes the rows of up to 16 tokens to 8-bit codes, channel by channel; codes of absent tokens are zero.
static void quantize(const CommitArgs& a, const void* raw, const size_t* rows, int tokens, double (*x)[kPanel],
                     uint8_t (*codes)[kPanel], uint16_t* scales, uint16_t* zeros) {
    const int dim = int(a.shape.head_dim), block = a.rotated ? dim & -dim : 0;
    for (int i = 0; i < kPanel; i++) {
        alignas(64) float row[kMaxDim];
        if (i < tokens)
            for (int c = 0; c < dim; c += W) store(row + c, load_as_float(raw, rows[i] + c, a.dtype));
        else
            std::memset(row, 0, sizeof(row));
        for (int c = 0; c < dim; c++) x[c][i] = row[c];
    }
    if (block) {
        const double norm = 1.0 / __builtin_sqrt(double(block));
        for (int s = 1; s < block; s *= 2)
            for (int c = 0; c < dim; c++)
                if (!(c & s))
                    for (int i = 0; i < kPanel; i++) {
                        const double low = x[c][i], high = x[c + s][i];
                        x[c][i] = low + high, x[c + s][i] = low - high;
                    }
        for (int c = 0; c < dim; c++)
            for (int i = 0; i < kPanel; i++) x[c][i] *= norm;
    }
    double least[kPanel], most[kPanel], zero[kPanel], step[kPanel];
    for (int c = 0; c < dim; c++)
        for (int i = 0; i < kPanel; i++) {
            double v = x[c][i];
            v = v > kHalfMax ? kHalfMax : v < -kHalfMax ? -kHalfMax : v;
            v += 0.0;  // no negative zeros: one value, one code
            x[c][i] = v;
            least[i] = c && least[i] < v ? least[i] : v;
            most[i] = c && most[i] > v ? most[i] : v;
        }
    for (int i = 0; i < kPanel; i++) {
        zeros[i] = half_floor(least[i]);
        zero[i] = half_value(zeros[i]);
        const double wanted = (most[i] - zero[i]) / 255.0;
        scales[i] = wanted == 0.0 ? 0 : half_floor(-wanted) ^ 0x8000;
        const double scale = half_value(scales[i]);
        step[i] = scale > 0.0 ? scale : 1.0;
    }
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: rounds to the nearest integer, ties to even
    for (int c = 0; c < dim; c++)
        for (int i = 0; i < kPanel; i++) {
            const double rounded = ((x[c][i] - zero[i]) / step[i] + magic) - magic;
            codes[c][i] = i < tokens ? uint8_t(int32_t(rounded)) : 0;
        }
}

// Words of `count` tokens from lane `first` on, of one key plane, at the start of their group.
LEANKV_INLINE void put_keys(const uint8_t (*codes)[kPanel], int dim, int shift, int first, int count, uint8_t* to) {
    for (int j = 0; j < dim / 8; j++) {
        uint32_t words[kPanel] = {};
        for (int n = 0; n < 8; n++)
            for (int i = 0; i < kPanel; i++) words[i] |= uint32_t((codes[8 * j + n][i] >> shift) & 15) << (4 * n);
        std::memcpy(to + j * 4 * count, words + first, 4 * size_t(count));
    }
}

// Adds `count` tokens from lane `first` on to the quads of one value plane; quad 0 of the group lies at `to`.
LEANKV_INLINE void put_values(const uint8_t (*codes)[kPanel], int dim, int shift, int first, int count, uint8_t* to) {
    for (int i = first; i < first + count; i++) {
        uint8_t* quad = to + (i / 4) * dim;
        for (int c = 0; c < dim; c++) quad[c] |= uint8_t(((codes[c][i] >> shift) & 3) << (2 * (i % 4)));
    }
}

struct HeadPlan {
    int high, low, base, refine, near, end;
};

// A record being written, through its blocks.
struct Writer {
    const RecordShape& shape;
    uint8_t* blocks;
    const int32_t* list;

    void put(int offset, const uint8_t* from, int bytes) const {
        const int block = int(shape.block_bytes);
        while (bytes > 0) {
            const int here = block - (offset & (block - 1)), n = bytes < here ? bytes : here;
            uint8_t* to = blocks + int64_t(list[offset >> shape.block_shift]) * block + (offset & (block - 1));
            std::memcpy(to, from, size_t(n));
            from += n, offset += n, bytes -= n;
        }
    }
};

// Takes the blocks of one page and writes its header; returns where its heads' sections go.
static void open_record(const CommitArgs& a, int64_t n, int32_t* list, HeadPlan* plans) {
    const RecordShape& shape = a.shape;
    const int heads = int(shape.heads), page = int(shape.page_size), words = int(shape.header_bytes / 4);
    const uint8_t* tiers = a.tiers + n * heads * page;
    int all_high = 0, all_low = 0;
    for (int h = 0; h < heads; h++) {
        plans[h].high = plans[h].low = 0;
        for (int t = 0; t < page; t++) {
            plans[h].high += tiers[h * page + t] == 2;
            plans[h].low += tiers[h * page + t] == 1;
        }
        all_high += plans[h].high, all_low += plans[h].low;
    }
    int end = int(shape.header_bytes);
    for (int h = 0; h < heads; h++) plans[h].base = end, end += sizes_of(shape, plans[h].high, plans[h].low).base;
    for (int h = 0; h < heads; h++) plans[h].refine = end, end += sizes_of(shape, plans[h].high, plans[h].low).refine;
    for (int h = 0; h < heads; h++) plans[h].near = end, end += sizes_of(shape, plans[h].high, plans[h].low).near;
    const int count = int((end + shape.block_bytes - 1) >> shape.block_shift);
    for (int i = 0; i < count; i++) list[i] = a.ring[(*a.ring_head + i) % a.num_blocks];
    *a.ring_head = (*a.ring_head + count) % a.num_blocks;
    *a.ring_free -= count;
    for (int i = count; i < int(shape.max_blocks); i++) list[i] = 0;
    plans[0].end = end;

    int32_t* header = static_cast<int32_t*>(calloc(size_t(words), 4));
    const int level = shape.near ? kLevelNear : kLevelFar;
    const int32_t fixed[6] = {int32_t(a.pages[n]), int32_t(a.layer), count, end, level, kMagic};
    std::memcpy(header, fixed, sizeof(fixed));
    std::memcpy(header + shape.list_word, list, 4 * size_t(shape.max_blocks));
    for (int h = 0; h < heads; h++) {
        const HeadPlan& p = plans[h];
        const int32_t head[4] = {int32_t(p.high | uint32_t(p.low) << 16), p.base, p.refine, p.near};
        std::memcpy(header + shape.head_word + 4 * h, head, sizeof(head));
    }
    uint8_t* maps = reinterpret_cast<uint8_t*>(header) + shape.tier_map_start;
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < page; t++)
            maps[h * page / 4 + t % (page / 4)] |= uint8_t((tiers[h * page + t] & 3) << (2 * (t / (page / 4))));
    const Writer writer{shape, a.blocks, list};
    writer.put(0, reinterpret_cast<const uint8_t*>(header), words * 4);
    free(header);
    // The last block is zero behind the record.
    const int behind = int(count * shape.block_bytes) - end;
    if (behind) {
        uint8_t* zeros = static_cast<uint8_t*>(calloc(size_t(behind), 1));
        writer.put(end, zeros, behind);
        free(zeros);
    }
    a.page_table[a.pages[n]] = list[0];

    const int dim = int(shape.head_dim);
    const int64_t base = 8 + (4 * shape.key_base + 2 * shape.value_base) * dim / 8;
    const int64_t refine = (4 * shape.key_refine + 2 * shape.value_refine) * dim / 8;
    const int64_t pruned = int64_t(heads) * page - all_high - all_low;
    const int64_t high_bytes = all_high * (base + refine), low_bytes = all_low * base;
    const int64_t near_bytes = shape.near ? all_low * refine + pruned * (base + refine) : 0;
    const int64_t total = int64_t(count) * shape.block_bytes;
    const int64_t padding = total - shape.header_bytes - high_bytes - low_bytes - near_bytes;
    const int64_t usage[10] = {shape.header_bytes, high_bytes, low_bytes, near_bytes, padding, 1, count,
                               all_high,           all_low,    pruned};
    for (int i = 0; i < 10; i++) a.usage[i] += usage[i];
}

static void pack_head(const CommitArgs& a, int64_t n, int h, const int32_t* list, const HeadPlan& plan) {
    CommitScratch& s = *thread_scratch<CommitScratch>();
    const RecordShape& shape = a.shape;
    const int heads = int(shape.heads), page = int(shape.page_size), dim = int(shape.head_dim);
    const int key_base = int(shape.key_base), value_base = int(shape.value_base);
    const int key_planes = key_base + int(shape.key_refine), value_planes = value_base + int(shape.value_refine);
    const int high = plan.high, low = plan.low, far = high + low, pruned = page - far;
    const Sizes sizes = sizes_of(shape, high, low);
    const uint8_t* tiers = a.tiers + (n * heads + h) * page;
    int at[3] = {far, high, 0};  // pruned, low, high
    for (int t = 0; t < page; t++) s.order[at[tiers[t]]++] = t;
    uint8_t *base = s.section[0], *refine = s.section[1], *near = s.section[2];
    std::memset(base, 0, size_t(sizes.base));
    std::memset(refine, 0, size_t(sizes.refine));
    std::memset(near, 0, size_t(sizes.near));

    auto read = [&](int first, int tokens) {
        size_t rows[kPanel];
        for (int i = 0; i < tokens; i++) rows[i] = ((size_t(n) * page + s.order[first + i]) * heads + h) * dim;
        quantize(a, a.key, rows, tokens, s.x, s.key, s.scales[0], s.scales[1]);
        quantize(a, a.value, rows, tokens, s.x, s.value, s.scales[2], s.scales[3]);
    };
    auto put_scales = [&](uint8_t* run, int count, int first, int tokens) {
        for (int k = 0; k < 4; k++) std::memcpy(run + 2 * (k * count + first), s.scales[k], 2 * size_t(tokens));
    };
    auto shift_of = [](int bits, int plane) { return 8 - bits * (plane + 1); };

    const int quads = (far + 3) / 4, high_quads = (high + 3) / 4, low_quads = quads - high / 4;
    for (int t = 0; t < far; t += kPanel) {
        const int m = far - t < kPanel ? far - t : kPanel, in_high = clamp(high - t, 0, m), in_low = m - in_high;
        const size_t group = size_t(t) * dim / 2, low_group = size_t(t < high ? 0 : t - high) * dim / 2;
        read(t, m);
        put_scales(base, far, t, m);
        for (int p = 0; p < key_planes; p++) {
            const int shift = shift_of(4, p), fine = p - key_base;
            if (fine < 0) {
                put_keys(s.key, dim, shift, 0, m, base + sizes.base_scales + size_t(p) * far * dim / 2 + group);
                continue;
            }
            if (in_high) put_keys(s.key, dim, shift, 0, in_high, refine + size_t(fine) * high * dim / 2 + group);
            if (in_low && shape.near)
                put_keys(s.key, dim, shift, in_high, in_low, near + size_t(fine) * low * dim / 2 + low_group);
        }
        for (int p = 0; p < value_planes; p++) {
            const int shift = shift_of(2, p), fine = p - value_base;
            if (fine < 0) {
                uint8_t* to = base + sizes.base_scales + sizes.base_keys + (size_t(p) * quads + t / 4) * dim;
                put_values(s.value, dim, shift, 0, m, to);
                continue;
            }
            if (in_high) {
                uint8_t* to = refine + sizes.refine_keys + (size_t(fine) * high_quads + t / 4) * dim;
                put_values(s.value, dim, shift, 0, in_high, to);
            }
            if (in_low && shape.near) {
                uint8_t* to = near + sizes.low_keys + (ptrdiff_t(fine) * low_quads + t / 4 - high / 4) * dim;
                put_values(s.value, dim, shift, in_high, in_low, to);
            }
        }
    }
    uint8_t* run = near + sizes.low;
    for (int t = 0; shape.near && t < pruned; t += kPanel) {
        const int m = pruned - t < kPanel ? pruned - t : kPanel;
        read(far + t, m);
        put_scales(run, pruned, t, m);
        for (int p = 0; p < key_planes; p++)
            put_keys(s.key, dim, shift_of(4, p), 0, m, run + sizes.pruned_scales + (size_t(p) * pruned + t) * dim / 2);
        for (int p = 0; p < value_planes; p++)
            put_values(s.value, dim, shift_of(2, p), 0, m,
                       run + sizes.pruned_scales + sizes.pruned_keys + (size_t(p) * ((pruned + 3) / 4) + t / 4) * dim);
    }
    const Writer writer{shape, a.blocks, list};
    writer.put(plan.base, base, sizes.base);
    writer.put(plan.refine, refine, sizes.refine);
    writer.put(plan.near, near, sizes.near);
}

}  // namespace

static void commit_pages(const CommitArgs& a) {
    const int64_t heads = a.shape.heads, width = a.shape.max_blocks;
    int32_t* lists = static_cast<int32_t*>(malloc(sizeof(int32_t) * size_t(a.n * width)));
    HeadPlan* plans = static_cast<HeadPlan*>(malloc(sizeof(HeadPlan) * size_t(a.n * heads)));
    for (int64_t n = 0; n < a.n; n++) open_record(a, n, lists + n * width, plans + n * heads);
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < a.n * heads; i++)
        pack_head(a, i / heads, int(i % heads), lists + i / heads * width, plans[i]);
    free(plans);
    free(lists);
}

}  // namespace leankv::LEANKV_NS
