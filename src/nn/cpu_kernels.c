/* CPU kernels: forward passes over a few tokens (decode steps, prefill with quantized weights), and
   parts of a training step.

   A decode step reads every weight once and does little with each: it is bound by memory bandwidth,
   which these kernels are to saturate. One parallel region spans the forward pass; each thread
   reads complete rows of a matrix in memory order; float32 weights are packed into 28 bits without
   loss, or quantized to int8 or int4. Larger batches of float32 weights are left to PyTorch.

   N new tokens of all sequences, C channels, H heads, D head size, S tokens attended to, I input
   and O output features of a matrix. All arrays are row-major. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define HAS_VNNI
#endif

enum {
/* Register tile: accumulators, and operands, in the 16 vector registers of AVX2 or the 32 of AVX-512. */
#ifdef HAS_VNNI
    TILE_ROWS = 4,
#else
    TILE_ROWS = 2,
#endif
    TILE_TOKENS = 6,
    /* Tile of a single row, as packed weights use: 8 accumulators, and registers to unpack in. */
    MAX_TILE_TOKENS = 8,
    /* Threads share out the outputs in multiples of it: two that write to one cache line would take
       it from each other (false sharing). */
    CACHE_LINE_FLOATS = 16,
    /* Prefetch distance: far enough to hide the latency of memory, within a page of 4 KiB, at whose
       end hardware prefetchers stop. */
    PREFETCH_BYTES = 3072,
    /* int4 weights that share a scale and a minimum. */
    GROUP = 32,
    /* Tokens up to which a product waits for memory: rows are then read one after the other, as one
       stream, which prefetchers follow best. */
    FEW_TOKENS = 4,
    /* Weights that stay in a core's L2 cache for all tiles of tokens: 128 KiB of float32. */
    BLOCK_WEIGHTS = 32768,
};

/* Packed float32: the sign, the mantissa and the low four bits of the exponent (less the minimum of
   the row) stay in place; the four bits between are free for a part of another number. */
static const uint32_t SIGN_BIT = 1u << 31, SPARE_BITS = 15u << 27, EXPONENT_BITS = 255u << 23;
static const uint32_t KEPT_BITS = (1u << 27) - 1;

/* GCC vector types, in as many registers as the target needs for 32 bytes. */
typedef float floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t uints __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(32), aligned(1), may_alias));

/* A matrix (O, I) and the bias of its layer.

   32 bits: float32. 28 bits: packed rows (see `unpack_vector`), or float32 (FLOAT32_ROW) if the exponents of a
   row differ too much, and a `Row` for each (O,). 8 bits: int8, and a scale for each row (O,). 4
   bits: 64 consecutive weights in 32 bytes, the first 32 in the low nibbles, the others in the high
   ones; and for each group of 32 a scale and a minimum, bfloat16, as the high and low half of a
   uint32 (O, I / 32). */
typedef struct {
    const void *weight;
    const void *scale;
    const float *bias; /* (O,) or NULL */
    int64_t inputs, outputs;
    int32_t bits;
} Matrix;

/* The offset of a row, in vectors of 8, and its minimum exponent, added to all; or FLOAT32_ROW. */
typedef struct {
    uint32_t start, lowest;
} Row;

enum { FLOAT32_ROW = 1 };

typedef struct {
    Matrix qkv, proj, expand, contract;
    const float *attention_norm[2], *ffn_norm[2]; /* weight (C,) or NULL, and bias (C,) or NULL */
} Layer;

enum { NONE, GELU_TANH, GELU, RELU, SILU };

typedef struct {
    const Layer *layers;
    int64_t n_layers, channels, heads;
    int32_t activation, pre_norm;
    float epsilon; /* of the layer norms */
} Model;

/* The activations of a matmul, (N, I). With int8 weights they are quantized to int16, with a scale
   for each row; with int4 weights to int8, with a scale for each group. */
typedef struct {
    float *x;
    void *levels; /* (N, I), int16 or int8 */
    float *scale; /* (N, 1 or I / 32) */
    float *sums;  /* (N, I / 32), the dequantized sum of each group, for the minimum of the weights' group */
} Inputs;

INLINE float as_float(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE uint32_t as_bits(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

/* a * b + c with one rounding where the processor can, and never left to the compiler's choice: GCC
   fuses some instances of a kernel and not others, and a row's sum would depend on the rows beside
   it. Compile with -ffp-contract=off. */
INLINE float fma_1(float a, float b, float c) {
#ifdef __FMA__
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE floats fma_8(floats a, floats b, floats c) {
#ifdef __FMA__
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE floats broadcast(float x) {
    return (floats){x, x, x, x, x, x, x, x};
}

INLINE float reduce(floats x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

/* e^x with a relative error of 2e-7: 2^n e^r with |r| <= ln 2 / 2, and e^r from its Taylor series.
   x is clamped to [-87, 40]: neither e^x nor a quotient by it is subnormal, which would be slow. */
INLINE float exponential(float x) {
    x = x < -87 ? -87 : x > 40 ? 40 : x;
    const float biased = fma_1(x, 1.44269504f, 12582912.0f); /* adding 1.5 * 2^23 rounds to an integer */
    const float n = biased - 12582912.0f;
    const float r = fma_1(n, 2.12194440e-4f, fma_1(n, -0.693359375f, x));
    const float terms[] = {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
    float series = 1 / 720.0f;
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) series = fma_1(r, series, terms[i]);
    /* n is in the low bits of `biased`; converting a NaN to an integer would be undefined. */
    return series * as_float((as_bits(biased) - as_bits(12582912.0f) + 127) << 23);
}

/* Sums of products of int8 weights and int16 inputs, in the lanes of a vector register: lane j of 8
   has products 2 j and 2 j + 1 of each 16 (`fold_pairs`). Integers: exact in any order. */
#ifdef HAS_VNNI
typedef int32_t pair_sums __attribute__((vector_size(64)));
enum { PAIRS_STEP = 32 };

INLINE pair_sums add_pairs(pair_sums sums, const int8_t *w, const int16_t *x) {
    const __m512i weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
    return (pair_sums)_mm512_dpwssd_epi32((__m512i)sums, weights, _mm512_loadu_si512(x));
}

INLINE pair_sums add_pairs_16(pair_sums sums, const int8_t *w, const int16_t *x) {
    const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    const __m256i inputs = _mm256_loadu_si256((const __m256i *)x);
    return (pair_sums)_mm512_dpwssd_epi32((__m512i)sums, _mm512_zextsi256_si512(weights),
                                          _mm512_zextsi256_si512(inputs));
}

INLINE ints fold_pairs(pair_sums sums) {
    return (ints)_mm512_castsi512_si256((__m512i)sums) + (ints)_mm512_extracti64x4_epi64((__m512i)sums, 1);
}
#else
typedef ints pair_sums;
enum { PAIRS_STEP = 16 };

INLINE pair_sums add_pairs_16(pair_sums sums, const int8_t *w, const int16_t *x) {
#ifdef __AVX2__
    /* Not `__builtin_convertvector`, which GCC 12 turns into six instructions. */
    const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    return sums + (ints)_mm256_madd_epi16(weights, _mm256_loadu_si256((const __m256i *)x));
#else
    for (int i = 0; i < 8; i++) sums[i] += w[2 * i] * x[2 * i] + w[2 * i + 1] * x[2 * i + 1];
    return sums;
#endif
}

INLINE pair_sums add_pairs(pair_sums sums, const int8_t *w, const int16_t *x) {
    return add_pairs_16(sums, w, x);
}

INLINE ints fold_pairs(pair_sums sums) {
    return sums;
}
#endif

/* Multiply int8 and add adjacent fours: 32 to 8 int32. a is from 0 to 15, so that the int16 sums of
   two products cannot saturate. */
INLINE ints multiply_fours(bytes a, bytes b) {
#if defined(HAS_VNNI)
    return (ints)_mm256_dpbusd_epi32(_mm256_setzero_si256(), (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    return (ints)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)a, (__m256i)b), _mm256_set1_epi16(1));
#else
    ints sums = {0};
    for (int i = 0; i < 32; i++) sums[i / 4] += a[i] * b[i];
    return sums;
#endif
}

/* Unpack vector k of 8, which are stored in 7: 64 consecutive weights of a row. The spare bits of
   the 7 hold the last vector, four bits each. */
INLINE floats unpack_vector(const uint32_t *words, int k, uints lowest, uints *last) {
    if (k == 7) return (floats)(((*last << 1 & SIGN_BIT) | (*last >> 3 & KEPT_BITS)) + lowest);
    uints word = *(const uints *)(words + 8 * k);
    *last = *last >> 4 | (word & SPARE_BITS);
    return (floats)((word & ~SPARE_BITS) + lowest);
}

static void pack(const float *row, int64_t I, uint32_t lowest, uint32_t *words) {
    for (const float *end = row + I; row < end; row += 64, words += 56) {
        uints last = *(const uints *)(row + 56) - lowest;
        last = (last & SIGN_BIT) >> 4 | (last & KEPT_BITS);
        for (int k = 0; k < 7; k++)
            *(uints *)(words + 8 * k) = (*(const uints *)(row + 8 * k) - lowest) | (last >> 4 * k & 15) << 27;
    }
}

static void unpack(const Matrix *m, int64_t row, float *out) {
    const Row of = ((const Row *)m->scale)[row];
    const uint32_t *words = (const uint32_t *)m->weight + 8 * (int64_t)of.start;
    if (of.lowest == FLOAT32_ROW) {
        memcpy(out, words, m->inputs * sizeof *out);
        return;
    }
    for (const float *end = out + m->inputs; out < end; out += 64, words += 56) {
        uints last = {0};
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            if (k < 7) __builtin_prefetch((const char *)(words + 8 * k) + PREFETCH_BYTES);
            *(floats *)(out + 8 * k) = unpack_vector(words, k, (uints){0} + of.lowest, &last);
        }
    }
}

/* Matmul micro-kernels: `rows` rows of a matrix from `row` by `tokens` rows of inputs from `first`,
   to out (rows, tokens). Both counts are compile-time constants: all accumulators are registers. */

INLINE void multiply_32(const float *w, int64_t I, const Inputs *in, int64_t first, int tokens, int rows, int ahead,
                        float *out) {
    const float *x = in->x + first * I;
    floats sums[TILE_ROWS][MAX_TILE_TOKENS] = {0};
    for (int64_t i = 0; i < I; i += 8)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            if (ahead) __builtin_prefetch((const char *)(w + r * I + i) + PREFETCH_BYTES);
            floats weights = *(const floats *)(w + r * I + i);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                const floats inputs = *(const floats *)(x + t * I + i);
                sums[r][t] = fma_8(weights, inputs, sums[r][t]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) out[r * tokens + t] = reduce(sums[r][t]);
}

/* One row, accumulated in the order of `multiply_32`: the sums are bitwise equal. */
INLINE void multiply_28(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t row, float *out) {
    const int64_t I = m->inputs;
    const Row of = ((const Row *)m->scale)[row];
    const uint32_t *words = (const uint32_t *)m->weight + 8 * (int64_t)of.start;
    const float *x = in->x + first * I;
    if (of.lowest == FLOAT32_ROW) {
        multiply_32((const float *)words, I, in, first, tokens, 1, 1, out);
        return;
    }
    floats sums[MAX_TILE_TOKENS] = {0};
    for (int64_t i = 0; i < I; i += 64, words += 56) {
        uints last = {0};
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            if (k < 7) __builtin_prefetch((const char *)(words + 8 * k) + PREFETCH_BYTES);
            floats weights = unpack_vector(words, k, (uints){0} + of.lowest, &last);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                const floats inputs = *(const floats *)(x + t * I + i + 8 * k);
                sums[t] = fma_8(weights, inputs, sums[t]);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) out[t] = reduce(sums[t]);
}

INLINE void multiply_8(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t row, int rows,
                       float *out) {
    const int64_t I = m->inputs;
    const int8_t *w = (const int8_t *)m->weight + row * I;
    const int16_t *x = (const int16_t *)in->levels + first * I;
    const float *scale = (const float *)m->scale + row;
    pair_sums sums[TILE_ROWS][TILE_TOKENS] = {0};
    int64_t i = 0;
    for (; i + PAIRS_STEP <= I; i += PAIRS_STEP)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(w + r * I + i + PREFETCH_BYTES);
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) sums[r][t] = add_pairs(sums[r][t], w + r * I + i, x + t * I + i);
        }
    if (i < I)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) sums[r][t] = add_pairs_16(sums[r][t], w + r * I + i, x + t * I + i);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) {
            const floats lanes = __builtin_convertvector(fold_pairs(sums[r][t]), floats);
            out[r * tokens + t] = reduce(lanes) * scale[r] * in->scale[first + t];
        }
}

/* Whether the inputs of int4 weights are stored in fours of groups: the first and the third, whose
   weights are in the low nibbles of 64 bytes, before the second and the fourth. */
#ifdef HAS_VNNI
enum { IN_FOURS = 1 };

INLINE __m512i halves(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
}

INLINE __m512 add_two_groups(__m512 sums, __m512i weights, const int8_t *x, __m512 steps) {
    const __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, _mm512_loadu_si512(x));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), steps, sums);
}
#else
enum { IN_FOURS = 0 };
#endif

/* The place of a group among the quantized inputs. */
INLINE int64_t place_of(int64_t group, int64_t groups) {
    static const int64_t order[4] = {0, 2, 1, 3};
    return IN_FOURS && (group & ~3) + 4 <= groups ? (group & ~3) + order[group & 3] : group;
}

/* steps: scratch (rows, tokens, I / 32), the scale of a group's products: that of its weights times
   that of its inputs. */
INLINE void multiply_4(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t row, int rows,
                       float *steps, float *out) {
    const int64_t I = m->inputs, groups = I / GROUP;
    const int8_t *w = (const int8_t *)m->weight + row * (I / 2), *x = (const int8_t *)in->levels + first * I;
    const uint32_t *scale = (const uint32_t *)m->scale + row * groups;
    floats sums[TILE_ROWS][TILE_TOKENS] = {0};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        int64_t group = 0;
        for (; group + 8 <= groups; group += 8) {
            ints both = *(const ints *)(scale + r * groups + group);
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) {
                const int64_t of = (first + t) * groups + group;
                *(floats *)(steps + (r * tokens + t) * groups + group) =
                    (floats)(both & (int32_t)0xffff0000) * *(const floats *)(in->scale + of);
                sums[r][t] = fma_8((floats)(both << 16), *(const floats *)(in->sums + of), sums[r][t]);
            }
        }
        for (; group < groups; group++) {
            const uint32_t both = scale[r * groups + group];
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) {
                const int64_t of = (first + t) * groups + group;
                steps[(r * tokens + t) * groups + group] = as_float(both & 0xffff0000u) * in->scale[of];
                sums[r][t][0] = fma_1(as_float(both << 16), in->sums[of], sums[r][t][0]);
            }
        }
    }
    int64_t i = 0;
#ifdef HAS_VNNI
    const __m512i first_and_third = halves(0, 2), second_and_fourth = halves(1, 3);
    __m512 wide[TILE_ROWS][TILE_TOKENS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) wide[r][t] = _mm512_zextps256_ps512((__m256)sums[r][t]);
    for (; i + 4 * GROUP <= I; i += 4 * GROUP)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(w + (r * I + i) / 2 + PREFETCH_BYTES);
            const __m512i all = _mm512_loadu_si512(w + (r * I + i) / 2), mask = _mm512_set1_epi8(15);
            const __m512i low = _mm512_and_si512(all, mask), high = _mm512_and_si512(_mm512_srli_epi16(all, 4), mask);
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) {
                const int8_t *of = x + t * I + i;
                const __m512 step = _mm512_broadcast_f32x4(_mm_loadu_ps(steps + (r * tokens + t) * groups + i / GROUP));
                wide[r][t] = add_two_groups(wide[r][t], low, of, _mm512_permutexvar_ps(first_and_third, step));
                wide[r][t] = add_two_groups(wide[r][t], high, of + 2 * GROUP, _mm512_permutexvar_ps(second_and_fourth, step));
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++)
            sums[r][t] = (floats)_mm512_castps512_ps256(wide[r][t]) + (floats)_mm512_extractf32x8_ps(wide[r][t], 1);
#endif
    for (; i < I; i += 2 * GROUP)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(w + (r * I + i) / 2 + PREFETCH_BYTES);
            bytes all = *(const bytes *)(w + (r * I + i) / 2);
            bytes low = all & 15, high = (bytes)((shorts)all >> 4) & 15;
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) {
                const int8_t *of = x + t * I + i;
                const float *step = steps + (r * tokens + t) * groups + i / GROUP;
                const floats lows = __builtin_convertvector(multiply_fours(low, *(const bytes *)of), floats);
                const ints products = multiply_fours(high, *(const bytes *)(of + GROUP));
                const floats highs = __builtin_convertvector(products, floats);
                sums[r][t] = fma_8(lows, broadcast(step[0]), sums[r][t]);
                sums[r][t] = fma_8(highs, broadcast(step[1]), sums[r][t]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) out[r * tokens + t] = reduce(sums[r][t]);
}

/* Dispatch to a micro-kernel. unpacked: the rows of a packed matrix, if `unpacks_blocks`; otherwise
   NULL. scratch: see `scratch_size`. */
static void multiply(const Matrix *m, const float *unpacked, const Inputs *in, int64_t first, int tokens, int64_t row,
                     int rows, float *scratch, float *out) {
    const int64_t I = m->inputs;
    const float *w = (const float *)m->weight + row * I;
#define CASE_28(T)                                  \
    case T:                                     \
        multiply_28(m, in, first, T, row, out); \
        break;
#define CASE(T, R)                                                          \
    case 10 * T + R:                                                        \
        if (unpacked) multiply_32(unpacked, I, in, first, T, R, 0, out);    \
        else if (m->bits == 32) multiply_32(w, I, in, first, T, R, 1, out); \
        else if (m->bits == 8) multiply_8(m, in, first, T, row, R, out);    \
        else multiply_4(m, in, first, T, row, R, scratch, out);                \
        break;
    if (m->bits == 28 && !unpacked)
        switch (tokens) { CASE_28(1) CASE_28(2) CASE_28(3) CASE_28(4) CASE_28(5) CASE_28(6) CASE_28(7) CASE_28(8) }
    else
        switch (10 * tokens + rows) {
            CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1)
            CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2)
#ifdef HAS_VNNI
            CASE(1, 3) CASE(2, 3) CASE(3, 3) CASE(4, 3) CASE(5, 3) CASE(6, 3)
            CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) CASE(5, 4) CASE(6, 4)
#endif
        }
}

/* GELU(x) / x, tanh approximation: 1 / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE float gelu_ratio(float x) {
    return 1 / (1 + exponential(-1.59576912f * fma_1(0.044715f * x * x, x, x)));
}

static void activate(int activation, float *x, int64_t count) {
    if (activation == GELU_TANH) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) x[i] *= gelu_ratio(x[i]);
    } else if (activation == GELU) {
        for (int64_t i = 0; i < count; i++) x[i] *= 0.5f * (1 + erff(x[i] * 0.70710678f));
    } else if (activation == RELU) {
        for (int64_t i = 0; i < count; i++) x[i] = x[i] < 0 ? 0 : x[i];
    } else if (activation == SILU) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) x[i] /= 1 + exponential(-x[i]);
    }
}

/* Sizes come from files and are not trusted: the checked sum and product, -1 on overflow. */
static int64_t checked_add(int64_t a, int64_t b) {
    int64_t out;
    return a < 0 || b < 0 || __builtin_add_overflow(a, b, &out) ? -1 : out;
}

static int64_t checked_multiply(int64_t a, int64_t b) {
    int64_t out;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &out) ? -1 : out;
}

static void *checked_malloc(int64_t bytes) {
    return bytes < 0 || (uint64_t)bytes > SIZE_MAX ? NULL : malloc((size_t)bytes);
}

/* Whether to unpack a packed matrix block by block: every tile of tokens would unpack it again. */
static int unpacks_blocks(const Matrix *m, int64_t tokens) {
    return m->bits == 28 && tokens > 2 * MAX_TILE_TOKENS;
}

/* Rows of a block. */
static int64_t block_rows(int64_t I) {
    return MAX(BLOCK_WEIGHTS / I / TILE_ROWS, 1) * TILE_ROWS;
}

/* Scratch that each thread needs for a product, in floats. Not on the stack: it grows with the
   matrix. Rounded up to cache lines. */
static int64_t scratch_size(const Matrix *m, int64_t tokens) {
    const int64_t I = m->inputs, steps = m->bits == 4 ? checked_multiply(TILE_ROWS * TILE_TOKENS, I / GROUP) : 0;
    const int64_t count = unpacks_blocks(m, tokens) ? checked_multiply(block_rows(I), I) : steps;
    return count < 0 ? -1 : checked_add(count, CACHE_LINE_FLOATS - count % CACHE_LINE_FLOATS);
}

/* out (N, O) = activation(inputs (N, I) times the transposed matrix, + bias); `add` accumulates
   into out. Called by all threads of a parallel region, each with its own `scratch`; ends with a
   barrier. */
static void matmul(const Matrix *m, const Inputs *in, int64_t tokens, float *scratch, float *out, int activation,
                   int add) {
    const int64_t I = m->inputs, O = m->outputs;
    const int unpacking = unpacks_blocks(m, tokens), unpacks_rows = m->bits == 28 && !unpacking;
    /* int4 weights are half the bytes for as many operations: their products do not wait. */
    const int single_rows = unpacks_rows || (m->bits != 4 && tokens <= FEW_TOKENS);
    const int64_t max_tokens = unpacks_rows ? MAX_TILE_TOKENS : TILE_TOKENS;
    const int64_t parts = (tokens + max_tokens - 1) / max_tokens;
    const int64_t block = block_rows(I);
    /* Long sequential reads, yet several chunks for each thread, for load balancing. */
    const int64_t chunk = (O / (4 * omp_get_num_threads()) / CACHE_LINE_FLOATS + 1) * CACHE_LINE_FLOATS;
#pragma omp for schedule(dynamic)
    for (int64_t begin = 0; begin < O; begin += chunk) {
        const int64_t end = MIN(begin + chunk, O);
        for (int64_t from = begin, to; from < end; from = to) {
            to = MIN(from + block, end);
            for (int64_t row = from; unpacking && row < to; row++) unpack(m, row, scratch + (row - from) * I);
            for (int64_t part = 0; part < parts; part++) {
                const int64_t first = part * tokens / parts, count = (part + 1) * tokens / parts - first;
                for (int64_t row = from, rows; row < to; row += rows) {
                    rows = single_rows ? 1 : MIN(TILE_ROWS, to - row);
                    float sums[TILE_ROWS * MAX_TILE_TOKENS];
                    const float *unpacked = unpacking ? scratch + (row - from) * I : NULL;
                    multiply(m, unpacked, in, first, (int)count, row, (int)rows, scratch, sums);
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t t = 0; t < count; t++) {
                            float *of = out + (first + t) * O + row + r;
                            *of = (add ? *of : 0) + sums[r * count + t] + (m->bias ? m->bias[row + r] : 0);
                        }
                }
            }
        }
        if (activation != NONE)
            for (int64_t t = 0; t < tokens; t++) activate(activation, out + t * O + begin, end - begin);
    }
}

/* The scale with which the largest absolute value quantizes to `top`; NaN if any value is not
   finite, as 0 * x is NaN then. 1e-30 keeps the scale of zeros above 0. */
INLINE float scale_for(const float *x, int64_t count, float top) {
    float maximum = 1e-30f, nan_if_not_finite = 0;
#pragma omp simd reduction(max : maximum) reduction(+ : nan_if_not_finite)
    for (int64_t i = 0; i < count; i++) {
        maximum = fabsf(x[i]) > maximum ? fabsf(x[i]) : maximum;
        nan_if_not_finite += 0 * x[i];
    }
    return maximum / top + nan_if_not_finite;
}

INLINE int32_t nearest(float x) {
    return (int32_t)(x + (x < 0 ? -0.5f : 0.5f));
}

/* Quantize row `token` of the inputs of a matrix, if its weights are quantized. */
static void quantize_inputs(const Matrix *m, const Inputs *in, int64_t token) {
    const int64_t I = m->inputs, groups = I / GROUP;
    const float *x = in->x + token * I;
    if (m->bits == 8) {
        /* No int32 overflow: each of 8 lanes adds I / 8 products, 1.35e8 / 8 * 127 < 2^31. */
        const float level = scale_for(x, I, fminf(32767, 1.35e8f / (float)I)), scale = 1 / level;
        int16_t *levels = (int16_t *)in->levels + token * I;
        in->scale[token] = level;
        if (isnan(level)) memset(levels, 0, I * sizeof *levels); /* the scale propagates the NaN */
        else {
#pragma omp simd
            for (int64_t i = 0; i < I; i++) levels[i] = (int16_t)nearest(x[i] * scale);
        }
    } else if (m->bits == 4)
        for (int64_t group = 0; group < groups; group++, x += GROUP) {
            const float level = scale_for(x, GROUP, 127), scale = 1 / level;
            int8_t *levels = (int8_t *)in->levels + token * I + place_of(group, groups) * GROUP;
            int32_t total = 0;
            if (isnan(level)) memset(levels, 0, GROUP);
            else {
#pragma omp simd reduction(+ : total)
                for (int i = 0; i < GROUP; i++) {
                    levels[i] = (int8_t)nearest(x[i] * scale);
                    total += levels[i];
                }
            }
            in->scale[token * groups + group] = level;
            in->sums[token * groups + group] = level * (float)total;
        }
}

/* Layer norm of x (C,) to out (C,), which may alias x. */
static void layer_norm(const float *const norm[2], float epsilon, const float *x, float *out, int64_t C) {
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < C; i++) mean += x[i];
    mean /= C;
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < C; i++) variance = fma_1(x[i] - mean, x[i] - mean, variance);
    const float scale = 1 / sqrtf(variance / C + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < C; i++)
        out[i] = fma_1((x[i] - mean) * scale, norm[0] ? norm[0][i] : 1, norm[1] ? norm[1][i] : 0);
}

/* Causal attention of one head of one sequence: append the new keys and values to the cache, then
   attend from each new token to those from `start` up to itself. q has `stride` floats per token, k
   and v follow it at C and 2 C; out has C floats per token. */
static void attend(const float *q, int64_t stride, float *keys, float *values, float *out, int64_t C, int64_t D,
                   int64_t start, int64_t held, int64_t tokens, float *scores) {
    const float scale = 1 / sqrtf((float)D);
    for (int64_t t = 0; t < tokens; t++, q += stride, out += C) {
        const int64_t length = held + t + 1;
        memcpy(keys + (held + t) * D, q + C, D * sizeof *q);
        memcpy(values + (held + t) * D, q + 2 * C, D * sizeof *q);
        float maximum = -INFINITY, sum = 0;
        for (int64_t s = start; s < length; s++) {
            float score = 0;
#pragma omp simd reduction(+ : score)
            for (int64_t d = 0; d < D; d++) score = fma_1(q[d], keys[s * D + d], score);
            scores[s] = score * scale;
            maximum = scores[s] > maximum ? scores[s] : maximum;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t s = start; s < length; s++) sum += scores[s] = exponential(scores[s] - maximum);
        memset(out, 0, D * sizeof *out);
        for (int64_t s = start; s < length; s++) {
            const float share = scores[s] / sum;
#pragma omp simd
            for (int64_t d = 0; d < D; d++) out[d] = fma_1(share, values[s * D + d], out[d]);
        }
    }
}

/* Allocate the inputs of a product at `*place`, which is advanced by `inputs_bytes`. */
static Inputs allocate_inputs(char **cursor, int64_t tokens, int64_t count) {
    Inputs in;
    in.x = (float *)*cursor, *cursor += tokens * count * sizeof(float);
    in.levels = *cursor, *cursor += tokens * count * sizeof(int16_t);
    in.scale = (float *)*cursor, *cursor += tokens * (count / GROUP + 1) * sizeof(float);
    in.sums = (float *)*cursor, *cursor += tokens * (count / GROUP + 1) * sizeof(float);
    return in;
}

static int64_t inputs_bytes(int64_t tokens, int64_t count) {
    return checked_multiply(tokens, checked_add(checked_multiply(count, 6), (count / GROUP + 1) * 8));
}

#include "kernel_training.h"

/* Plan the packing of a finite matrix (O, I) into 28 bits: fill `rows`. Returns the number of
   vectors of the packed matrix, or -1 if it exceeds the 32-bit offsets. */
int64_t agi2_pack_rows(const uint32_t *weight, int64_t I, int64_t O, Row *rows, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < O; r++) {
        uint32_t minimum = EXPONENT_BITS, maximum = 0;
#pragma omp simd reduction(min : minimum) reduction(max : maximum)
        for (int64_t i = 0; i < I; i++) {
            uint32_t exponent = weight[r * I + i] & EXPONENT_BITS;
            minimum = MIN(minimum, exponent);
            maximum = MAX(maximum, exponent);
        }
        rows[r].lowest = maximum - minimum <= KEPT_BITS ? minimum : FLOAT32_ROW;
    }
    int64_t vectors = 0;
    for (int64_t r = 0; r < O; r++) {
        rows[r].start = (uint32_t)vectors;
        vectors += rows[r].lowest == FLOAT32_ROW ? I / 8 : I / 64 * 7;
    }
    return vectors > UINT32_MAX ? -1 : vectors;
}

/* Pack a matrix (O, I) into m->weight, with the rows that `agi2_pack_rows` has filled. */
void agi2_pack(const float *weight, const Matrix *m, int threads) {
    const Row *rows = m->scale;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < m->outputs; r++) {
        const float *row = weight + r * m->inputs;
        uint32_t *words = (uint32_t *)m->weight + 8 * (int64_t)rows[r].start;
        if (rows[r].lowest == FLOAT32_ROW) memcpy(words, row, m->inputs * sizeof *row);
        else pack(row, m->inputs, rows[r].lowest, words);
    }
}

/* Unpack the rows `which` of a packed matrix, or the first `count` if NULL, to out (count, I). */
void agi2_unpack(const Matrix *m, const int64_t *which, int64_t count, float *out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < count; n++) unpack(m, which ? which[n] : n, out + n * m->inputs);
}

/* A linear layer, x (N, I) to out (N, O). Returns 0, or 1 if the allocation fails. */
int agi2_linear(const Matrix *m, int64_t tokens, const float *x, float *out, int threads) {
    const int64_t scratch = scratch_size(m, tokens);
    const int64_t all_scratch = checked_multiply(threads, checked_multiply(scratch, sizeof(float)));
    char *memory = checked_malloc(checked_add(inputs_bytes(tokens, m->inputs), all_scratch)), *cursor = memory;
    if (!memory) return 1;
    Inputs in = allocate_inputs(&cursor, tokens, m->inputs);
    float *thread_scratch = (float *)cursor;
    in.x = (float *)x; /* only read */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t token = 0; token < tokens; token++) quantize_inputs(m, &in, token);
        matmul(m, &in, tokens, thread_scratch + omp_get_thread_num() * scratch, out, NONE, 0);
    }
    free(memory);
    return 0;
}

/* All layers of the model, from embeddings to the last residual sum (without the final norm).

   x: (texts * tokens, C), in place. keys, values: the KV cache of each layer, (texts, H, capacity,
   D). lengths: (texts,), the tokens of each row of it; the new ones are appended. starts: (texts,),
   left padding of each sequence. Returns 0, or 1 if the allocation fails. */
int agi2_layers(const Model *model, float *x, float *const *keys, float *const *values, const int64_t *starts,
                const int64_t *lengths, int64_t texts, int64_t tokens, int64_t capacity, int threads) {
    const int64_t C = model->channels, H = model->heads, D = C / H, N = texts * tokens;
    const int64_t F = model->n_layers ? model->layers[0].expand.outputs : 0;
    int64_t scratch = capacity; /* of each thread: attention scores, or the scratch of a product */
    for (int64_t l = 0; l < model->n_layers; l++) {
        const Matrix *of[] = {&model->layers[l].qkv, &model->layers[l].proj, &model->layers[l].expand,
                              &model->layers[l].contract};
        for (int i = 0; i < 4; i++) {
            const int64_t needed = scratch_size(of[i], N);
            scratch = scratch < 0 || needed < 0 ? -1 : MAX(scratch, needed);
        }
    }
    const int64_t qkv_floats = checked_multiply(N, checked_multiply(3, C));
    const int64_t numbers = checked_add(qkv_floats, checked_multiply(threads, scratch));
    const int64_t inputs = checked_add(checked_multiply(2, inputs_bytes(N, C)), inputs_bytes(N, F));
    char *memory = checked_malloc(checked_add(inputs, checked_multiply(numbers, sizeof(float)))), *cursor = memory;
    if (!memory) return 1;
    const Inputs normed = allocate_inputs(&cursor, N, C), heads = allocate_inputs(&cursor, N, C);
    const Inputs hidden = allocate_inputs(&cursor, N, F);
    float *qkv = (float *)cursor, *all_scratch = qkv + 3 * N * C;
    /* Every thread runs this loop; `omp for` divides the work of a step and ends with a barrier. */
#pragma omp parallel num_threads(threads)
    for (int64_t l = 0; l < model->n_layers; l++) {
        float *thread_scratch = all_scratch + omp_get_thread_num() * scratch;
        const Layer *layer = model->layers + l;
#pragma omp for
        for (int64_t n = 0; n < N; n++) {
            if (model->pre_norm) layer_norm(layer->attention_norm, model->epsilon, x + n * C, normed.x + n * C, C);
            else memcpy(normed.x + n * C, x + n * C, C * sizeof *x);
            quantize_inputs(&layer->qkv, &normed, n);
        }
        matmul(&layer->qkv, &normed, N, thread_scratch, qkv, NONE, 0);
#pragma omp for
        for (int64_t task = 0; task < texts * H; task++) {
            const int64_t text = task / H, head = task % H, at = (text * H + head) * capacity * D;
            attend(qkv + text * tokens * 3 * C + head * D, 3 * C, keys[l] + at, values[l] + at,
                   heads.x + text * tokens * C + head * D, C, D, starts[text], lengths[text], tokens, thread_scratch);
        }
        if (layer->proj.bits < 28) {
#pragma omp for
            for (int64_t n = 0; n < N; n++) quantize_inputs(&layer->proj, &heads, n);
        }
        matmul(&layer->proj, &heads, N, thread_scratch, x, NONE, 1);
#pragma omp for
        for (int64_t n = 0; n < N; n++) {
            if (model->pre_norm) layer_norm(layer->ffn_norm, model->epsilon, x + n * C, normed.x + n * C, C);
            else {
                layer_norm(layer->attention_norm, model->epsilon, x + n * C, x + n * C, C);
                memcpy(normed.x + n * C, x + n * C, C * sizeof *x);
            }
            quantize_inputs(&layer->expand, &normed, n);
        }
        matmul(&layer->expand, &normed, N, thread_scratch, hidden.x, model->activation, 0);
        if (layer->contract.bits < 28) {
#pragma omp for
            for (int64_t n = 0; n < N; n++) quantize_inputs(&layer->contract, &hidden, n);
        }
        matmul(&layer->contract, &hidden, N, thread_scratch, x, NONE, 1);
        if (!model->pre_norm) {
#pragma omp for
            for (int64_t n = 0; n < N; n++) layer_norm(layer->ffn_norm, model->epsilon, x + n * C, x + n * C, C);
        }
    }
    free(memory);
    return 0;
}
