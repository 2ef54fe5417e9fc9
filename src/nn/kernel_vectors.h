/* Vectors of the CPU kernels: GCC's vector types, operations whose rounding does not depend on the
   compiler, and functions of single numbers. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define HAS_VNNI
#endif

enum {
    /* Threads share out the outputs in multiples of it: two that write to one cache line would take
       it from each other (false sharing). */
    CACHE_LINE_FLOATS = 16,
    /* Prefetch distance: far enough to hide the latency of memory while several tokens are computed. */
    PREFETCH_BYTES = 8192,
};

/* GCC vector types, in as many registers as the target needs for 32 bytes. */
typedef float floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t uints __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

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

/* Begin to read what is PREFETCH_BYTES ahead into the L2 cache: requests to L1, whose buffers are few, would hold up
   the loads of inputs. */
INLINE void prefetch(const void *from) {
    __builtin_prefetch((const char *)from + PREFETCH_BYTES, 0, 2);
}

/* a * b + c with one rounding where the processor can, and never left to the compiler's choice: GCC
   fuses some instances of a kernel and not others, and a row's sum would depend on the rows beside
   it. Compile with -ffp-contract=off. */
INLINE float fma_1(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE floats fma_8(floats a, floats b, floats c) {
#if defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    float32x4_t x[2], y[2], z[2];
    memcpy(x, &a, sizeof a), memcpy(y, &b, sizeof b), memcpy(z, &c, sizeof c);
    z[0] = vfmaq_f32(z[0], x[0], y[0]), z[1] = vfmaq_f32(z[1], x[1], y[1]);
    memcpy(&c, z, sizeof c);
    return c;
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

/* The sum of (x[i] - middle)^power, power 1 or 2, in the same order on every processor: not left to the compiler, whose
   vectors differ in width. */
INLINE float sum_of_powers(const float *x, int64_t count, float middle, int power) {
    floats sums = {0};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const floats away = *(const floats *)(x + i) - middle;
        if (power == 2) sums = fma_8(away, away, sums);
        else sums = sums + away;
    }
    float sum = reduce(sums);
    for (; i < count; i++) sum = power == 2 ? fma_1(x[i] - middle, x[i] - middle, sum) : sum + (x[i] - middle);
    return sum;
}

/* The sums of the even and the odd lanes of a and b, in the halves of 4 lanes. */
INLINE floats add_adjacent(floats a, floats b) {
    return SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

/* `reduce` of 8 vectors: lane j has that of x[j], in the same order of sums. */
INLINE floats reduce_8(const floats x[8]) {
    floats halves[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        halves[j] = SHUFFLE(x[j], x[j + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                    SHUFFLE(x[j], x[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    return add_adjacent(add_adjacent(halves[0], halves[1]), add_adjacent(halves[2], halves[3]));
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

/* GELU(x) / x, tanh approximation: 1 / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE float gelu_ratio(float x) {
    return 1 / (1 + exponential(-1.59576912f * fma_1(0.044715f * x * x, x, x)));
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
