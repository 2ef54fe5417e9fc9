/* Products with weights of 8 or 4 bits, and inputs of 8.

   The weights are stored in panels of 16 outputs by groups of 32 inputs, in the order in which they are
   read: adjacent are four inputs of one output, then the 16 outputs, then the fours of the group. So a vector has
   four weights of each of its outputs, is multiplied with four inputs that are broadcast, and
   no sum is across a vector. Outputs and inputs are padded with zeros to whole panels and groups.

   8 bits: (O / 16, G, 8, 16, 4), the level of a weight plus 128, and a scale for each output.
   4 bits: (O / 16, G, 4, 16, 4), two weights in a byte: four k of the group in the low nibble, four
   4 + k in the high one; and for each output and group a scale and a minimum, bfloat16, as the high and
   low half of a uint32 (O / 16, G, 16).

   The products of a group are int32 and exact; the groups are added in float32, in their order. So
   the results are the same for every tile, and on every processor with fused multiply-add. */

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define HAS_DOTPROD
#endif

/* A vector register: outputs that a micro-kernel computes side by side. */
#ifdef HAS_VNNI
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float lane_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t lane_ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t lane_bytes __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

enum {
/* Register tile: for each of its vectors of outputs and each token a sum of the group and one of all groups. */
#ifdef HAS_VNNI
    TILE_TOKENS = 6,
#else
    TILE_TOKENS = 2,
#endif
    TILE_VECTORS = 2,
    FOURS = GROUP / 4,
    LINE = 4 * PANEL, /* bytes between fours */
};

INLINE lane_floats lane_broadcast(float x) {
    return x - (lane_floats){0};
}

INLINE lane_floats lane_fma(lane_floats a, lane_floats b, lane_floats c) {
#ifdef HAS_VNNI
    return (lane_floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return fma_8(a, b, c);
#endif
}

INLINE int32_t four_of(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return four;
}

/* VNNI multiplies unsigned with signed numbers: the levels of 8 bits stay 128 more, and the sum of a group
   begins with -128 times its inputs (`totals`). Others multiply signed levels. */
INLINE lane_bytes levels_of(lane_bytes w) {
#ifndef HAS_VNNI
    w ^= (int8_t)-128;
#endif
    return w;
}

INLINE lane_ints first_sum(const int32_t *total) {
#ifdef HAS_VNNI
    return *total - (lane_ints){0};
#else
    (void)total;
    return (lane_ints){0};
#endif
}

/* Add the products of four weights of each output and four inputs. */
INLINE lane_ints add_products(lane_ints sums, lane_bytes w, const int8_t *x) {
#if defined(HAS_VNNI)
    return (lane_ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)w, _mm512_set1_epi32(four_of(x)));
#elif defined(__AVX2__)
    /* |x| times w with x's sign: both at most 127, so that the int16 sum of two does not saturate. */
    const __m256i four = _mm256_set1_epi32(four_of(x));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(four), _mm256_sign_epi8((__m256i)w, four));
    return sums + (lane_ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(HAS_DOTPROD)
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(four_of(x)));
    int32x4_t halves[2];
    int8x16_t weights[2];
    memcpy(halves, &sums, sizeof sums), memcpy(weights, &w, sizeof w);
    for (int i = 0; i < 2; i++) halves[i] = vdotq_s32(halves[i], weights[i], four);
    memcpy(&sums, halves, sizeof sums);
    return sums;
#else
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) sums[lane] += w[4 * lane + i] * x[i];
    return sums;
#endif
}

/* The same with weights of 4 bits, which AVX2 may add as int16 within a group: 8 * 2 * 15 * 127 < 2^15. */
#if defined(__AVX2__) && !defined(HAS_VNNI)
typedef int16_t nibble_sums __attribute__((vector_size(32), may_alias));

INLINE nibble_sums add_nibbles(nibble_sums sums, lane_bytes w, const int8_t *x) {
    return sums + (nibble_sums)_mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(four_of(x)));
}

INLINE lane_ints whole_sums(nibble_sums sums) {
    return (lane_ints)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
}
#else
typedef lane_ints nibble_sums;

INLINE nibble_sums add_nibbles(nibble_sums sums, lane_bytes w, const int8_t *x) {
    return add_products(sums, w, x);
}

INLINE lane_ints whole_sums(nibble_sums sums) {
    return sums;
}
#endif

/* Where vector `vector` of the outputs begins in panels of so many lines, with 4 bytes for each output. */
INLINE const char *vector_start(const void *panels, int64_t vector, int64_t lines) {
    const int64_t output = vector * LANES;
    return (const char *)panels + output / PANEL * lines * LINE + output % PANEL * 4;
}

/* Micro-kernels: `vectors` vectors of outputs from `vector` by `tokens` rows of inputs from `first`, to
   out (vectors, tokens). Both counts are compile-time constants: all sums are registers. */

INLINE void multiply_8(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t vector, int vectors,
                       lane_floats *out) {
    const int64_t groups = groups_of(m->inputs);
    const char *w[TILE_VECTORS];
    for (int v = 0; v < vectors; v++) w[v] = vector_start(m->weight, vector + v, groups * FOURS);
    const int8_t *x = in->levels + first * groups * GROUP;
    lane_floats sums[TILE_VECTORS][TILE_TOKENS] = {0};
    for (int64_t group = 0; group < groups; group++) {
        lane_ints products[TILE_VECTORS][TILE_TOKENS];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) products[v][t] = first_sum(in->totals + (first + t) * groups + group);
#pragma GCC unroll 8
        for (int four = 0; four < FOURS; four++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                const char *line = w[v] + (group * FOURS + four) * LINE;
                prefetch(line);
                const lane_bytes weights = levels_of(*(const lane_bytes *)line);
#pragma GCC unroll 6
                for (int t = 0; t < tokens; t++)
                    products[v][t] = add_products(products[v][t], weights, x + (t * groups + group) * GROUP + 4 * four);
            }
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) {
            const lane_floats scale = lane_broadcast(in->scale[(first + t) * groups + group]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[v][t] = lane_fma(__builtin_convertvector(products[v][t], lane_floats), scale, sums[v][t]);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        const lane_floats scale = *(const lane_floats *)((const float *)m->scale + (vector + v) * LANES);
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) out[v * tokens + t] = sums[v][t] * scale;
    }
}

INLINE void multiply_4(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t vector, int vectors,
                       lane_floats *out) {
    const int64_t groups = groups_of(m->inputs);
    const char *w[TILE_VECTORS], *steps[TILE_VECTORS];
    for (int v = 0; v < vectors; v++) {
        w[v] = vector_start(m->weight, vector + v, groups * FOURS / 2);
        steps[v] = vector_start(m->scale, vector + v, groups);
    }
    const int8_t *x = in->levels + first * groups * GROUP;
    lane_floats sums[TILE_VECTORS][TILE_TOKENS] = {0};
    for (int64_t group = 0; group < groups; group++) {
        nibble_sums products[TILE_VECTORS][TILE_TOKENS] = {0};
#pragma GCC unroll 4
        for (int four = 0; four < FOURS / 2; four++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                const char *line = w[v] + (group * FOURS / 2 + four) * LINE;
                prefetch(line);
                const lane_bytes all = *(const lane_bytes *)line;
                const lane_bytes low = all & 15, high = (lane_bytes)((lane_ints)all >> 4) & 15;
#pragma GCC unroll 6
                for (int t = 0; t < tokens; t++) {
                    const int8_t *of = x + (t * groups + group) * GROUP + 4 * four;
                    products[v][t] = add_nibbles(add_nibbles(products[v][t], low, of), high, of + GROUP / 2);
                }
            }
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            const lane_ints both = *(const lane_ints *)(steps[v] + group * LINE);
            const lane_floats step = (lane_floats)(both & (int32_t)0xffff0000), lowest = (lane_floats)(both << 16);
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) {
                const int64_t at = (first + t) * groups + group;
                const lane_floats product = __builtin_convertvector(whole_sums(products[v][t]), lane_floats) * step;
                sums[v][t] = lane_fma(product, lane_broadcast(in->scale[at]), sums[v][t]);
                sums[v][t] = lane_fma(lowest, lane_broadcast(in->sums[at]), sums[v][t]);
            }
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) out[v * tokens + t] = sums[v][t];
}

static void multiply_tile(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t vector, int vectors,
                          lane_floats *out) {
#define TILE(T, V)                                                            \
    case 10 * T + V:                                                          \
        if (m->bits == 8) multiply_8(m, in, first, T, vector, V, out);        \
        else multiply_4(m, in, first, T, vector, V, out);                     \
        break;
    switch (10 * tokens + vectors) {
        TILE(1, 1) TILE(2, 1) TILE(1, 2) TILE(2, 2)
#ifdef HAS_VNNI
        TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
        TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
#endif
    }
}

/* Store a vector of outputs of one token, of which the last ones may be padding. */
INLINE void store_lanes(const Matrix *m, lane_floats sums, int64_t output, int add, float *out) {
    const float *bias = m->bias ? m->bias + output : NULL;
    out += output;
    if (output + LANES <= m->outputs) {
        if (add) sums = *(const lane_floats *)out + sums;
        if (bias) sums = sums + *(const lane_floats *)bias;
        *(lane_floats *)out = sums;
    } else
        for (int64_t lane = 0; lane < m->outputs - output; lane++)
            out[lane] = (add ? out[lane] : 0) + sums[lane] + (bias ? bias[lane] : 0);
}

/* Outputs from `begin`, a multiple of 16, to `end`, of `tokens` rows of inputs, to out (N, O). */
static void multiply_panels(const Matrix *m, const Inputs *in, int64_t tokens, int64_t begin, int64_t end, int add,
                            float *out) {
    const int64_t O = m->outputs, parts = (tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    /* Outputs whose weights stay in a core's L2 cache for all tiles of tokens. A product of few tokens
       waits for memory: its panels are read one after the other, as one stream. */
    const int64_t block = MAX(BLOCK_BYTES / m->inputs / PANEL, 2) * PANEL;
    const int64_t most = tokens <= FEW_TOKENS ? PANEL / LANES : TILE_VECTORS;
    for (int64_t from = begin, to; from < end; from = to) {
        to = MIN(from + block, end);
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = part * tokens / parts, count = (part + 1) * tokens / parts - first;
            const int64_t stop = (to + LANES - 1) / LANES;
            for (int64_t vector = from / LANES, vectors; vector < stop; vector += vectors) {
                vectors = MIN(most, stop - vector);
                lane_floats sums[TILE_VECTORS * TILE_TOKENS];
                multiply_tile(m, in, first, (int)count, vector, (int)vectors, sums);
                for (int64_t v = 0; v < vectors; v++)
                    for (int64_t t = 0; t < count; t++)
                        store_lanes(m, sums[v * count + t], (vector + v) * LANES, add, out + (first + t) * O);
            }
        }
    }
}
