/* Kernels of a training step, each one pass over memory where PyTorch takes several: GELU and its
   gradient, dropout, and the gradient of the cross-entropy. Elements are float32 or bfloat16, and
   are computed in float32. */

enum { ELEMENTS_PER_PART = 4096 }; /* whole cache lines; small enough to share among threads */

INLINE float load_element(const void *x, int64_t i, int is_bfloat16) {
    return is_bfloat16 ? as_float((uint32_t)((const uint16_t *)x)[i] << 16) : ((const float *)x)[i];
}

/* Rounds to nearest, ties to even; NaN remains NaN. */
INLINE void store_element(void *out, int64_t i, int is_bfloat16, float x) {
    const uint32_t bits = as_bits(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    if (is_bfloat16) ((uint16_t *)out)[i] = x != x ? 0x7fc0 : rounded;
    else ((float *)out)[i] = x;
}

INLINE void gelu(int64_t first, int64_t last, const void *x, void *out, int is_bfloat16) {
#pragma omp simd
    for (int64_t i = first; i < last; i++) {
        const float input = load_element(x, i, is_bfloat16);
        store_element(out, i, is_bfloat16, input * gelu_ratio(input));
    }
}

INLINE void gelu_backward(int64_t first, int64_t last, const void *x, const void *grad, void *out, int is_bfloat16) {
#pragma omp simd
    for (int64_t i = first; i < last; i++) {
        const float input = load_element(x, i, is_bfloat16), share = gelu_ratio(input);
        const float slope = 1.59576912f * fma_1(0.134145f * input, input, 1);
        const float factor = fma_1(input * (1 - share), slope, 1);
        store_element(out, i, is_bfloat16, load_element(grad, i, is_bfloat16) * share * factor);
    }
}

INLINE void dropout(int64_t first, int64_t last, const void *x, const int16_t *numbers, int lowest, float scale,
                    void *out, int is_bfloat16) {
#pragma omp simd
    for (int64_t i = first; i < last; i++)
        store_element(out, i, is_bfloat16, load_element(x, i, is_bfloat16) * (numbers[i] >= lowest ? scale : 0));
}

/* Run a kernel on parts of the elements in parallel, compiled for either type. */
#define FOR_PARTS(kernel, ...)                                                                  \
    _Pragma("omp parallel for num_threads(threads)")                                            \
    for (int64_t first = 0; first < count; first += ELEMENTS_PER_PART) {                        \
        const int64_t last = MIN(count, first + ELEMENTS_PER_PART);                             \
        if (is_bfloat16) kernel(first, last, __VA_ARGS__, 1);                                   \
        else kernel(first, last, __VA_ARGS__, 0);                                               \
    }

/* GELU with the tanh approximation. */
void agi2_gelu(int64_t count, const void *x, void *out, int is_bfloat16, int threads) {
    FOR_PARTS(gelu, x, out)
}

/* The gradient of GELU's input, from that of its output. */
void agi2_gelu_backward(int64_t count, const void *x, const void *grad, void *out, int is_bfloat16, int threads) {
    FOR_PARTS(gelu_backward, x, grad, out)
}

/* Scale the elements whose random number is at least `lowest`; the others times 0. */
void agi2_dropout(int64_t count, const void *x, const int16_t *numbers, int lowest, float scale, void *out,
                  int is_bfloat16, int threads) {
    FOR_PARTS(dropout, x, numbers, lowest, scale, out)
}

/* Replace the bfloat16 logits of a row (V,) by the gradient of its loss, softmax - one-hot; return
   the loss. A negative target is ignored: the loss is 0. */
static float softmax_gradient(uint16_t *logits, int64_t V, int64_t target) {
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < V; i++) highest = MAX(highest, load_element(logits, i, 1));
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < V; i++) sum += exponential(load_element(logits, i, 1) - highest);
    const float log_sum = logf(sum); /* `highest` is subtracted apart, which is exact near it */
    const float chosen = target < 0 ? 0 : load_element(logits, target, 1) - highest - log_sum;
#pragma omp simd
    for (int64_t i = 0; i < V; i++)
        store_element(logits, i, 1, exponential(load_element(logits, i, 1) - highest - log_sum));
    /* In float32: the difference of a probability close to 1 and 1 would be lost. */
    if (target >= 0) store_element(logits, target, 1, expm1f(chosen));
    return -chosen;
}

/* `softmax_gradient` of rows (N, V) with targets (N,) below V; their losses (N,). */
void agi2_softmax_gradient(int64_t rows, int64_t V, const int64_t *targets, uint16_t *logits, float *losses,
                           int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) losses[row] = softmax_gradient(logits + row * V, V, targets[row]);
}
