// Queries as the products of codes take them.

namespace leankv::LEANKV_NS {
namespace {

// Rotates one query, and writes it as 16-bit integers: their products with key codes times `scale` are scores in powers
// of two. `sum` is that of the integers in units of a step of the codes.
static inline void prepare_query(const AttendCommittedArgs& a, int64_t token, int query_head, Quad* quads, float& scale,
                                 float& sum) {
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
    scale = peak > 0.0f ? peak * (1.0f / kOne) * float(a.shape.key_step) : 1.0f;
    const float inverse = peak > 0.0f ? float(kOne) / peak : 0.0f;
    int32_t whole[kMaxDim];
    int32_t total = 0;
    for (int c = 0; c < dim; c += W) storei(whole + c, round_to_int(load(x + c) * inverse));
    for (int c = 0; c < dim; c++) total += whole[c];
    sum = float(total) / float(a.shape.key_step);
    for (int s = 0; s < dim / 4; s++) {
        const int32_t* w = whole + 8 * (s / 2) + s % 2;
        quads[s] = pack_quad(w[0], w[2], w[4], w[6]);
    }
}

}  // namespace
}  // namespace leankv::LEANKV_NS
