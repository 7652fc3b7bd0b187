// Queries as the products of codes take them.

namespace leankv::LEANKV_NS {
namespace {

// A row of the tensor of units, see plan.py.
struct Unit {
    int64_t first_query, offset, queries, pages, first_page;
};

LEANKV_INLINE Unit unit_at(const int64_t* units, int64_t u) {
    const int64_t* row = units + 5 * u;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// A row of the tensor of groups, see cascade.py.
struct Group {
    int64_t first_member, members, begin, end, level;
};

LEANKV_INLINE Group group_at(const int64_t* groups, int64_t g) {
    const int64_t* row = groups + 5 * g;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// One query row: a quad for the even and one for the odd channels of each word of key codes, and, where all codes have
// four bits, the third factor of nibble_pair.
struct Query {
    Quad quads[kMaxDim / 4];
    int32_t odd[kMaxDim / 8];
};

constexpr size_t kQueryStride = sizeof(Query) / sizeof(Quad);

// Rotates one query, and writes it as 16-bit integers: their products with key codes times `scale` are scores in powers
// of two. `sum` is that of the integers in units of a step of the codes.
static inline void prepare_query(const AttendCommittedArgs& a, int64_t token, int query_head, Query& query,
                                 float& scale, float& sum) {
    const int dim = int(a.shape.head_dim);
    alignas(64) float x[kMaxDim];
    const size_t row = (size_t(token) * a.query_heads + query_head) * dim;
    for (int c = 0; c < dim; c += W) store(x + c, load_as_float(a.q, row + c, a.dtype));
    float factor = a.scale * kLog2E;
    if (a.rotated) factor *= rotate(x, dim);
    vf largest{};
    for (int c = 0; c < dim; c += W) {
        const vf v = load(x + c) * factor;
        store(x + c, v);
        largest = max(largest, max(v, -v));
    }
    const float peak = max_lanes(largest);
    // Far finer than four-bit codes can tell.
    const bool nibbles = kBytes && a.shape.key_base + a.shape.key_refine == 1;
    const float one = float(nibbles ? kNibbleOne : kOne);
    scale = peak > 0.0f ? peak / one * float(a.shape.key_step) : 1.0f;
    const float inverse = peak > 0.0f ? one / peak : 0.0f;
    int32_t whole[kMaxDim];
    int32_t total = 0;
    for (int c = 0; c < dim; c += W) storei(whole + c, round_to_int(load(x + c) * inverse));
    for (int j = 0; j < dim / 8; j++) {
        int32_t *w = whole + 8 * j, odd[4] = {};
        for (int i = 0; nibbles && i < 4; i++) nibble_pair(w[2 * i], w[2 * i + 1], odd[i]);
        for (int i = 0; i < 8; i++) total += w[i];
        query.quads[2 * j] = pack_quad(w[0], w[2], w[4], w[6]);
        query.quads[2 * j + 1] = pack_quad(w[1], w[3], w[5], w[7]);
        query.odd[j] = join_bytes(odd[0], odd[1], odd[2], odd[3]);
    }
    sum = float(total) / float(a.shape.key_step);
}

}  // namespace
}  // namespace leankv::LEANKV_NS
