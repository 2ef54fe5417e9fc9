/* Products with float32 weights: as they are, or packed into 28 bits without loss.

   28 bits: the sign, the mantissa and the low four bits of the exponent (less the minimum of the row)
   stay in place; the four bits between are free for a part of another number. */

enum {
/* Register tile: accumulators, and operands, in the 16 vector registers of AVX2 or the 32 of AVX-512. */
#ifdef HAS_VNNI
    TILE_ROWS = 4,
#else
    TILE_ROWS = 2,
#endif
    TILE_ROW_TOKENS = 6,
    /* Tile of packed weights: 8 accumulators a row, and registers to unpack in. */
    MAX_TILE_TOKENS = 8,
#ifdef HAS_VNNI
    PACKED_ROWS = 2,
#else
    PACKED_ROWS = 1,
#endif
};

static const uint32_t SIGN_BIT = 1u << 31, SPARE_BITS = 15u << 27, EXPONENT_BITS = 255u << 23;
static const uint32_t KEPT_BITS = (1u << 27) - 1;

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
            if (k < 7) prefetch(words + 8 * k);
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
            if (ahead && tokens > 1) prefetch(w + r * I + i);
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

/* Accumulated in the order of `multiply_32`: the sums are bitwise equal. A single token computes so little that the
   processor's own prefetching is faster. */
INLINE void multiply_28(const Matrix *m, const Inputs *in, int64_t first, int tokens, int64_t row, int rows,
                        float *out) {
    const int64_t I = m->inputs;
    const float *x = in->x + first * I;
    const uint32_t *words[PACKED_ROWS];
    uints lowest[PACKED_ROWS], last[PACKED_ROWS];
    floats weights[PACKED_ROWS], sums[PACKED_ROWS][MAX_TILE_TOKENS] = {0};
    for (int r = 0; r < rows; r++) {
        const Row of = ((const Row *)m->scale)[row + r];
        words[r] = (const uint32_t *)m->weight + 8 * (int64_t)of.start;
        lowest[r] = (uints){0} + of.lowest;
    }
    for (int64_t i = 0; i < I; i += 64) {
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) last[r] = (uints){0};
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) {
                if (k < 7 && tokens > 1) prefetch(words[r] + 8 * k);
                weights[r] = unpack_vector(words[r], k, lowest[r], &last[r]);
            }
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                const floats inputs = *(const floats *)(x + t * I + i + 8 * k);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) sums[r][t] = fma_8(weights[r], inputs, sums[r][t]);
            }
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) words[r] += 56;
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) out[r * tokens + t] = reduce(sums[r][t]);
}

/* The number of rows of 28 bits from `row`, at most `most`; 1 if the first is float32. */
static int64_t packed_rows(const Matrix *m, int64_t row, int64_t most) {
    const Row *of = (const Row *)m->scale + row;
    int64_t rows = 0;
    while (rows < most && of[rows].lowest != FLOAT32_ROW) rows++;
    return MAX(rows, 1);
}

/* Dispatch to a micro-kernel. unpacked: the rows of a packed matrix, if `unpacks_blocks`; otherwise
   NULL. */
static void multiply_rows(const Matrix *m, const float *unpacked, const Inputs *in, int64_t first, int tokens,
                          int64_t row, int rows, float *out) {
    const int64_t I = m->inputs;
    const float *w = unpacked ? unpacked : (const float *)m->weight + row * I;
    const int ahead = !unpacked;
#define PACKED(T, R)                               \
    case 10 * T + R:                               \
        multiply_28(m, in, first, T, row, R, out); \
        break;
#define TILE(T, R)                                      \
    case 10 * T + R:                                    \
        multiply_32(w, I, in, first, T, R, ahead, out); \
        break;
    if (m->bits == 28 && !unpacked) {
        const Row of = ((const Row *)m->scale)[row];
        w = (const float *)m->weight + 8 * (int64_t)of.start;
        if (of.lowest != FLOAT32_ROW) {
            switch (10 * tokens + rows) {
                PACKED(1, 1) PACKED(2, 1) PACKED(3, 1) PACKED(4, 1) PACKED(5, 1) PACKED(6, 1) PACKED(7, 1) PACKED(8, 1)
#ifdef HAS_VNNI
                PACKED(2, 2) PACKED(3, 2) PACKED(4, 2) PACKED(5, 2) PACKED(6, 2) PACKED(7, 2) PACKED(8, 2)
#endif
            }
            return;
        }
    }
    switch (10 * tokens + rows) {
        TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1)
        TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
#ifdef HAS_VNNI
        TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3) TILE(5, 3) TILE(6, 3)
        TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
#endif
    }
#undef PACKED
#undef TILE
}

/* Whether to unpack a packed matrix block by block: every tile of tokens would unpack it again. */
static int unpacks_blocks(const Matrix *m, int64_t tokens) {
    return m->bits == 28 && tokens > 2 * MAX_TILE_TOKENS;
}

/* Rows of a block. */
static int64_t block_rows(int64_t I) {
    return MAX(BLOCK_BYTES / (int64_t)sizeof(float) / I / TILE_ROWS, 1) * TILE_ROWS;
}

/* Outputs from `begin` to `end` of `tokens` rows of inputs, to out (N, O). scratch: see `scratch_size`. */
static void multiply_float32(const Matrix *m, const Inputs *in, int64_t tokens, int64_t begin, int64_t end, int add,
                             float *scratch, float *out) {
    const int64_t I = m->inputs, O = m->outputs;
    const int unpacking = unpacks_blocks(m, tokens), unpacks_rows = m->bits == 28 && !unpacking;
    const int64_t most_rows = tokens <= (unpacks_rows ? 1 : FEW_TOKENS) ? 1 : unpacks_rows ? PACKED_ROWS : TILE_ROWS;
    const int64_t most = unpacks_rows ? MAX_TILE_TOKENS : TILE_ROW_TOKENS, parts = (tokens + most - 1) / most;
    for (int64_t from = begin, to; from < end; from = to) {
        to = MIN(from + block_rows(I), end);
        for (int64_t row = from; unpacking && row < to; row++) unpack(m, row, scratch + (row - from) * I);
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = part * tokens / parts, count = (part + 1) * tokens / parts - first;
            for (int64_t row = from, rows; row < to; row += rows) {
                rows = MIN(most_rows, to - row);
                if (unpacks_rows) rows = packed_rows(m, row, rows);
                float sums[TILE_ROWS * MAX_TILE_TOKENS];
                const float *unpacked = unpacking ? scratch + (row - from) * I : NULL;
                multiply_rows(m, unpacked, in, first, (int)count, row, (int)rows, sums);
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t t = 0; t < count; t++) {
                        float *of = out + (first + t) * O + row + r;
                        *of = (add ? *of : 0) + sums[r * count + t] + (m->bias ? m->bias[row + r] : 0);
                    }
            }
        }
    }
}
