/* The matrices of the CPU kernels and the inputs of a product.

   N new tokens of all sequences, C channels, H heads, D head size, S tokens attended to, I input
   and O output features of a matrix. All arrays are row-major. */

enum {
    /* Weights of one output, or inputs, that share a scale. */
    GROUP = 32,
    /* Outputs of a panel: those of a vector of AVX-512. */
    PANEL = 16,
    /* Tokens up to which a product waits for memory: weights are then read as one stream, which
       prefetchers follow best. */
    FEW_TOKENS = 4,
    /* Weights that stay in a core's L2 cache for all tiles of tokens. */
    BLOCK_BYTES = 128 * 1024,
};

/* A matrix (O, I) and the bias of its layer.

   32 bits: float32. 28 bits: packed rows (see `kernel_float32.h`), or float32 (FLOAT32_ROW) if the
   exponents of a row differ too much, and a `Row` for each (O,). 8 and 4 bits: panels of 16 outputs
   (see `kernel_quantized.h`). */
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

/* The activations of a product, (N, I). With quantized weights they are quantized to int8, with a
   scale for each group of 32; the last group is filled up with zeros. G groups of a row. */
typedef struct {
    float *x;
    int8_t *levels;  /* (N, 32 G) */
    float *scale;    /* (N, G) */
    float *sums;     /* (N, G), the dequantized sum of each group */
    int32_t *totals; /* (N, G), -128 times the sum of a group's levels */
} Inputs;

INLINE int64_t groups_of(int64_t I) {
    return (I + GROUP - 1) / GROUP;
}

/* Quantize `count` values of a group to `levels`, the largest absolute value to 127. Returns the
   scale: NaN if any value is not finite, as 0 * x is NaN then. 1e-30 keeps the scale of zeros above 0. */
INLINE float quantize_group(const float *x, int64_t count, int8_t *levels, int32_t *total) {
    float maximum = 1e-30f, nan_if_not_finite = 0;
    int32_t sum = 0;
#pragma omp simd reduction(max : maximum) reduction(+ : nan_if_not_finite)
    for (int64_t i = 0; i < count; i++) {
        maximum = fabsf(x[i]) > maximum ? fabsf(x[i]) : maximum;
        nan_if_not_finite += 0 * x[i];
    }
    const float level = maximum / 127 + nan_if_not_finite, scale = 1 / level;
    if (isnan(level)) {
        memset(levels, 0, count);
    } else {
        int32_t wide[GROUP];
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; i++) {
            wide[i] = (int32_t)(x[i] * scale + copysignf(0.5f, x[i]));
            sum += wide[i];
        }
#pragma omp simd
        for (int64_t i = 0; i < count; i++) levels[i] = (int8_t)wide[i];
    }
    *total = sum;
    return level;
}

/* Quantize row `token` of the inputs of a matrix, if its weights are quantized. */
static void quantize_inputs(const Matrix *m, const Inputs *in, int64_t token) {
    if (m->bits > 8) return;
    const int64_t I = m->inputs, groups = groups_of(I);
    for (int64_t group = 0; group < groups; group++) {
        const float *x = in->x + token * I + group * GROUP;
        const int64_t count = MIN(GROUP, I - group * GROUP), at = token * groups + group;
        int8_t *levels = in->levels + at * GROUP;
        int32_t total;
        memset(levels + count, 0, GROUP - count);
        const float level = count == GROUP ? quantize_group(x, GROUP, levels, &total)
                                           : quantize_group(x, count, levels, &total);
        in->scale[at] = level; /* propagates a NaN */
        in->sums[at] = level * (float)total;
        in->totals[at] = -128 * total;
    }
}

/* Allocate the inputs of a product at `*cursor`, which is advanced by `inputs_bytes`. */
static Inputs allocate_inputs(char **cursor, int64_t tokens, int64_t count) {
    const int64_t groups = tokens * groups_of(count);
    Inputs in;
    in.x = (float *)*cursor, *cursor += tokens * count * sizeof *in.x;
    in.scale = (float *)*cursor, *cursor += groups * sizeof *in.scale;
    in.sums = (float *)*cursor, *cursor += groups * sizeof *in.sums;
    in.totals = (int32_t *)*cursor, *cursor += groups * sizeof *in.totals;
    in.levels = (int8_t *)*cursor, *cursor += groups * GROUP;
    return in;
}

static int64_t inputs_bytes(int64_t tokens, int64_t count) {
    const int64_t of_groups = checked_multiply(groups_of(count), GROUP + 3 * sizeof(float));
    return checked_multiply(tokens, checked_add(checked_multiply(count, sizeof(float)), of_groups));
}
