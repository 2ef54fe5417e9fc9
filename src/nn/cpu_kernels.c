/* CPU kernels: decode steps and prefill, and parts of a training step.

   A decode step reads every weight once and does little with each: it is bound by memory bandwidth,
   which these kernels are to saturate. One parallel region spans the forward pass; each thread
   reads complete rows or panels of a matrix in memory order; float32 weights are packed into 28 bits
   without loss, or quantized to int8 or int4. */

#include "kernel_vectors.h"
#include "kernel_matrix.h"
#include "kernel_float32.h"
#include "kernel_quantized.h"
#include "kernel_attention.h"
#include "kernel_training.h"

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

/* Scratch that each thread needs for a product, in floats: the block that it unpacks. Not on the stack,
   as it grows with the matrix. Rounded up to cache lines. */
static int64_t scratch_size(const Matrix *m, int64_t tokens) {
    const int64_t count = unpacks_blocks(m, tokens) ? checked_multiply(block_rows(m->inputs), m->inputs) : 0;
    return count < 0 ? -1 : checked_add(count, CACHE_LINE_FLOATS - count % CACHE_LINE_FLOATS);
}

/* out (N, O) = activation(inputs (N, I) times the transposed matrix, + bias); `add` accumulates
   into out. Called by all threads of a parallel region, each with its own `scratch`; ends with a
   barrier. */
static void matmul(const Matrix *m, const Inputs *in, int64_t tokens, float *scratch, float *out, int activation,
                   int add) {
    const int64_t O = m->outputs;
    /* Long sequential reads, yet several chunks for each thread, for load balancing. */
    const int64_t chunk = (O / (4 * omp_get_num_threads()) / CACHE_LINE_FLOATS + 1) * CACHE_LINE_FLOATS;
#pragma omp for schedule(dynamic)
    for (int64_t begin = 0; begin < O; begin += chunk) {
        const int64_t end = MIN(begin + chunk, O);
        if (m->bits > 8) multiply_float32(m, in, tokens, begin, end, add, scratch, out);
        else multiply_panels(m, in, tokens, begin, end, add, out);
        if (activation != NONE)
            for (int64_t t = 0; t < tokens; t++) activate(activation, out + t * O + begin, end - begin);
    }
}

/* Layer norm of x (C,) to out (C,), which may alias x. */
static void layer_norm(const float *const norm[2], float epsilon, const float *x, float *out, int64_t C) {
    const float mean = sum_of_powers(x, C, 0, 1) / C;
    const float scale = 1 / sqrtf(sum_of_powers(x, C, mean, 2) / C + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < C; i++)
        out[i] = fma_1((x[i] - mean) * scale, norm[0] ? norm[0][i] : 1, norm[1] ? norm[1][i] : 0);
}


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
    int64_t scratch = checked_multiply(QUERIES, capacity); /* of each thread: attention scores, or a product's */
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
                   heads.x + text * tokens * C + head * D, C, D, starts[text], lengths[text], tokens, thread_scratch,
                   capacity);
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
