/* Causal attention over the KV cache. */

enum {
    /* Queries that read a key or a value together, and keys, or vectors of a value, at a time: as many sums. */
#ifdef HAS_VNNI
    QUERIES = 4,
#else
    QUERIES = 2,
#endif
    SUMS = 4,
};

/* Dot products of `queries` queries, at a distance of C, and SUMS keys (D each), in the first `whole` of D, a
   multiple of 8. */
INLINE void dot_lanes(const float *q, int64_t C, int queries, const float *keys, int64_t D, int64_t whole,
                      floats sums[QUERIES][8]) {
    for (int t = 0; t < queries; t++)
        for (int j = 0; j < SUMS; j++) sums[t][j] = (floats){0};
    for (int64_t d = 0; d < whole; d += 8)
#pragma GCC unroll 4
        for (int j = 0; j < SUMS; j++) {
            const floats key = *(const floats *)(keys + j * D + d);
#pragma GCC unroll 4
            for (int t = 0; t < queries; t++)
                sums[t][j] = fma_8(*(const floats *)(q + t * C + d), key, sums[t][j]);
        }
}

/* scores[s] = q . keys[s] for s from `start` to `end`, for each of the queries; `row` floats between their scores. */
INLINE void attention_scores(const float *q, int64_t C, int queries, const float *keys, int64_t D, int64_t start,
                             int64_t end, float *scores, int64_t row) {
    const int64_t whole = D - D % 8;
    floats sums[QUERIES][8];
    int64_t s = start;
    for (; s + 8 <= end; s += 8) {
        dot_lanes(q, C, queries, keys + s * D, D, whole, sums);
        floats rest[QUERIES][8];
        dot_lanes(q, C, queries, keys + (s + SUMS) * D, D, whole, rest);
        for (int t = 0; t < queries; t++) {
            for (int j = 0; j < SUMS; j++) sums[t][SUMS + j] = rest[t][j];
            *(floats *)(scores + t * row + s) = reduce_8(sums[t]);
        }
    }
    for (; s < end; s++)
        for (int t = 0; t < queries; t++) {
            floats sum = {0};
            for (int64_t d = 0; d < whole; d += 8)
                sum = fma_8(*(const floats *)(q + t * C + d), *(const floats *)(keys + s * D + d), sum);
            scores[t * row + s] = reduce(sum);
        }
    if (whole < D)
        for (int t = 0; t < queries; t++)
            for (s = start; s < end; s++)
                for (int64_t d = whole; d < D; d++)
                    scores[t * row + s] = fma_1(q[t * C + d], keys[s * D + d], scores[t * row + s]);
}

/* Scale the scores from `start` to `end` and replace them by their softmax. */
static void softmax(float *scores, int64_t start, int64_t end, float scale) {
    float maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
    for (int64_t s = start; s < end; s++) {
        scores[s] *= scale;
        maximum = scores[s] > maximum ? scores[s] : maximum;
    }
#pragma omp simd
    for (int64_t s = start; s < end; s++) scores[s] = exponential(scores[s] - maximum);
    const float sum = sum_of_powers(scores + start, MAX(end - start, 0), 0, 1);
#pragma omp simd
    for (int64_t s = start; s < end; s++) scores[s] /= sum;
}

/* Add shares[s] * values[s], for s from `start` to `end`, to `vectors` vectors of the output of each query. */
INLINE void add_values(const float *shares, int64_t row, int queries, const float *values, int64_t D, int64_t start,
                       int64_t end, int vectors, float *out, int64_t C) {
    floats sums[QUERIES][SUMS];
    for (int t = 0; t < queries; t++)
        for (int v = 0; v < vectors; v++) sums[t][v] = *(const floats *)(out + t * C + 8 * v);
    for (int64_t s = start; s < end; s++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const floats value = *(const floats *)(values + s * D + 8 * v);
#pragma GCC unroll 4
            for (int t = 0; t < queries; t++) sums[t][v] = fma_8(broadcast(shares[t * row + s]), value, sums[t][v]);
        }
    for (int t = 0; t < queries; t++)
        for (int v = 0; v < vectors; v++) *(floats *)(out + t * C + 8 * v) = sums[t][v];
}

INLINE void attention_values(const float *shares, int64_t row, int queries, const float *values, int64_t D,
                             int64_t start, int64_t end, float *out, int64_t C) {
    int64_t d = 0;
    for (; d + 8 * SUMS <= D; d += 8 * SUMS)
        add_values(shares, row, queries, values + d, D, start, end, SUMS, out + d, C);
    for (; d + 8 <= D; d += 8) add_values(shares, row, queries, values + d, D, start, end, 1, out + d, C);
    for (; d < D; d++)
        for (int t = 0; t < queries; t++)
            for (int64_t s = start; s < end; s++)
                out[t * C + d] = fma_1(shares[t * row + s], values[s * D + d], out[t * C + d]);
}

/* Causal attention of one head of one sequence: append the new keys and values to the cache, then
   attend from each new token to those from `start` up to itself. q has `stride` floats per token, k
   and v follow it at C and 2 C; out has C floats per token. Queries read what all of them attend to together;
   each sum is in the order of the tokens, with whichever query. scores: scratch (QUERIES, capacity). */
static void attend(const float *q, int64_t stride, float *keys, float *values, float *out, int64_t C, int64_t D,
                   int64_t start, int64_t held, int64_t tokens, float *scores, int64_t capacity) {
    const float scale = 1 / sqrtf((float)D);
    for (int64_t t = 0; t < tokens; t++) {
        memcpy(keys + (held + t) * D, q + t * stride + C, D * sizeof *q);
        memcpy(values + (held + t) * D, q + t * stride + 2 * C, D * sizeof *q);
        memset(out + t * C, 0, D * sizeof *out);
    }
    for (int64_t t = 0, queries; t < tokens; t += queries) {
        queries = t + QUERIES <= tokens ? QUERIES : 1;
        const int64_t length = held + t + 1, shared = MAX(start, length); /* `start` is later in padding */
        const float *of = q + t * stride;
        if (queries == 1) attention_scores(of, stride, 1, keys, D, start, length, scores, capacity);
        else attention_scores(of, stride, QUERIES, keys, D, start, length, scores, capacity);
        for (int64_t i = 0; i < queries; i++) {
            float *own = scores + i * capacity;
            attention_scores(of + i * stride, stride, 1, keys, D, shared, length + i, own, capacity);
            softmax(own, start, length + i, scale);
        }
        if (queries == 1) attention_values(scores, capacity, 1, values, D, start, length, out + t * C, C);
        else attention_values(scores, capacity, QUERIES, values, D, start, length, out + t * C, C);
        for (int64_t i = 1; i < queries; i++)
            attention_values(scores + i * capacity, capacity, 1, values, D, shared, length + i, out + (t + i) * C, C);
    }
}
