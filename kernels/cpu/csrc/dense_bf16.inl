// The two products of dense.inl with the CPU's own for bf16, where it has them: half the instructions. Weights have
// been rounded to bf16 before.

namespace leankv::LEANKV_NS::dense {
namespace {

#if defined(__AVX512VNNI__)
static_assert(kBlock == W);
#define LEANKV_BF16 __attribute__((target("avx512bf16")))

template <int G, bool Half>
LEANKV_BF16 LEANKV_INLINE void product_bf16(const uint16_t (*query)[kDenseDim], const uint16_t* key, int j,
                                            __m512 (&sums)[G]) {
    const __m512bh words = (__m512bh)row_words<Half>(key, j);
    for (int g = 0; g < G; g++)
        sums[g] = _mm512_dpbf16_ps(sums[g], words, (__m512bh)_mm512_load_si512(query[g] + 2 * W * j));
}

template <int G, int Dim>
LEANKV_BF16 static void products_bf16(const Split& u, const uint16_t* keys, int first, int last,
                                      Lanes* __restrict lanes) {
    const int full = Dim ? Dim / (2 * W) : u.full, dim = Dim ? Dim : u.dim;
    for (int t = first; t < last; t++) {
        const uint16_t* key = keys + t * dim;
        prefetch(key, dim, dim);
        __m512 sums[G] = {};
        for (int j = 0; j < full; j++) product_bf16<G, false>(u.query, key, j, sums);
        if (!Dim && u.half) product_bf16<G, true>(u.query, key, full, sums);
        for (int g = 0; g < G; g++) store(lanes[g][t], (vf)sums[g]);
    }
}

// Two tokens at a time: their values of a channel side by side, as the product wants them.
template <int G, int C, bool Half>
LEANKV_BF16 LEANKV_INLINE void add_values_bf16(Split& u, const uint16_t* values, int dim, int first, int last, int j) {
    __m512 acc[C][2][G];
    for (int c = 0; c < C; c++)
        for (int half = 0; half < 2; half++)
            for (int g = 0; g < G; g++) acc[c][half][g] = (__m512)sums_so_far(u, g, 2 * (j + c) + half, first);
    for (int t = first; t < last; t += 2) {
        // Past the last one the weight is zero, and the row this one again.
        const uint16_t* value = values + t * dim;
        const uint16_t* other = value + (t + 1 < last ? dim : 0);
        if (j == 0) {
            prefetch(value, dim, C * 2 * W);
            prefetch(other, dim, C * 2 * W);
        }
        __m512bh p[G];
        for (int g = 0; g < G; g++) p[g] = (__m512bh)_mm512_set1_epi32(int(u.pairs[g][t / 2]));
        for (int c = 0; c < C; c++) {
            const __m512i a = (__m512i)row_words<Half>(value, j + c), b = (__m512i)row_words<Half>(other, j + c);
            const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(a, b), high = (__m512bh)_mm512_unpackhi_epi16(a, b);
            for (int g = 0; g < G; g++) acc[c][0][g] = _mm512_dpbf16_ps(acc[c][0][g], low, p[g]);
            for (int g = 0; g < G; g++) acc[c][1][g] = _mm512_dpbf16_ps(acc[c][1][g], high, p[g]);
        }
    }
    for (int c = 0; c < C; c++)
        for (int half = 0; half < 2; half++)
            for (int g = 0; g < G; g++) store(u.sums[g] + (2 * (j + c) + half) * W, (vf)acc[c][half][g]);
}

template <int G, int C>
LEANKV_BF16 LEANKV_INLINE void add_strips_bf16(Split& u, const uint16_t* values, int dim, int first, int last, int j,
                                               int full) {
    for (; j + C <= full; j += C) add_values_bf16<G, C, false>(u, values, dim, first, last, j);
    if constexpr (C > 1) add_strips_bf16<G, C / 2>(u, values, dim, first, last, j, full);
}

template <int G, int Dim>
LEANKV_BF16 static void values_bf16(Split& u, const uint16_t* values, int first, int last) {
    constexpr int C = power_of_two_within(kRegisters * 3 / 4 / (2 * G), 4);
    const int full = Dim ? Dim / (2 * W) : u.full, dim = Dim ? Dim : u.dim;
    if (first == 0)
        for (int g = 0; g < G; g++)
            _mm256_store_si256(reinterpret_cast<__m256i*>(u.pairs[g]),
                               (__m256i)_mm512_cvtneps_pbh((__m512)load(u.weights[g])));
    add_strips_bf16<G, C>(u, values, dim, first, last, 0, full);
    if (!Dim && u.half) add_values_bf16<G, 1, true>(u, values, dim, first, last, full);
}

static bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }
#else
template <int G, int Dim>
static void products_bf16(const Split&, const uint16_t*, int, int, Lanes*) {}
template <int G, int Dim>
static void values_bf16(Split&, const uint16_t*, int, int) {}
static bool has_bf16() { return false; }
#endif

}  // namespace
}  // namespace leankv::LEANKV_NS::dense
