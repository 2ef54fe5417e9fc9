/* Writes what the CPU kernels compute from pseudo-random numbers, to compare processors: see
   `test_other_processors.py`. */

#include <stdio.h>

#include "cpu_kernels.c"

static uint32_t state = 1;

static uint32_t draw(void) { return state = state * 1664525u + 1013904223u, state >> 8; }

static float number(void) { return (float)(int32_t)(draw() & 0xffff) / 32768.0f - 1; }

static float *numbers(int64_t count) {
    float *out = malloc(count * sizeof *out);
    for (int64_t i = 0; i < count; i++) out[i] = number();
    return out;
}

/* A random matrix: float32, packed, or levels and scales in panels. */
static Matrix matrix(int64_t I, int64_t O, int bits) {
    const int64_t panels = (O + PANEL - 1) / PANEL, groups = groups_of(I);
    Matrix m = {.bias = numbers(O), .inputs = I, .outputs = O, .bits = bits};
    if (bits >= 28) {
        float *weight = numbers(O * I);
        m.weight = weight;
        if (bits == 28) {
            Row *rows = malloc(O * sizeof *rows);
            const int64_t vectors = agi2_pack_rows((const uint32_t *)weight, I, O, rows, 1);
            m.scale = rows, m.weight = malloc(vectors * 32);
            agi2_pack(weight, &m, 1);
        }
        return m;
    }
    const int64_t count = panels * PANEL * groups * GROUP / (bits == 4 ? 2 : 1);
    uint8_t *levels = malloc(count);
    for (int64_t i = 0; i < count; i++) levels[i] = (uint8_t)(bits == 4 ? draw() : 1 + draw() % 255);
    const int64_t scales = panels * PANEL * (bits == 4 ? groups : 1);
    float *scale = numbers(scales);
    for (int64_t i = 0; bits == 4 && i < scales; i++) {
        const uint32_t both = (as_bits(scale[i]) & 0xffff0000u) | as_bits(number()) >> 16;
        memcpy(scale + i, &both, sizeof both);
    }
    m.weight = levels, m.scale = scale;
    return m;
}

static void write_out(const float *x, int64_t count) { fwrite(x, sizeof *x, count, stdout); }

static void products(int bits) {
    static const int64_t inputs[] = {64, 192, 832}, odd[] = {1, 33, 250};
    for (int set = 0; set < (bits < 28 ? 2 : 1); set++)
        for (int i = 0; i < 3; i++) {
            const int64_t I = (set ? odd : inputs)[i], O = 37, N = 19;
            const Matrix m = matrix(I, O, bits);
            float *x = numbers(N * I), *out = malloc(N * O * sizeof *out);
            for (int64_t tokens = 1; tokens <= N; tokens += 3) {
                agi2_linear(&m, tokens, x, out, 1);
                write_out(out, tokens * O);
            }
        }
}

static void layers(int bits, int activation, int64_t D) {
    const int64_t H = 4, C = H * D, F = 3 * C, texts = 2, capacity = 60, n_layers = 2;
    Layer all[2];
    float *keys[2], *values[2];
    for (int64_t l = 0; l < n_layers; l++) {
        all[l] = (Layer){matrix(C, 3 * C, bits), matrix(C, C, bits), matrix(C, F, bits), matrix(F, C, bits),
                         {numbers(C), numbers(C)}, {numbers(C), NULL}};
        keys[l] = numbers(texts * C * capacity), values[l] = numbers(texts * C * capacity);
    }
    const Model model = {all, n_layers, C, H, activation, 1, 1e-5f};
    int64_t starts[] = {3, 0}, lengths[] = {0, 0};
    for (int64_t tokens = 1; tokens < 20; tokens += 5) {
        float *x = numbers(texts * tokens * C);
        agi2_layers(&model, x, keys, values, starts, lengths, texts, tokens, capacity, 1);
        write_out(x, texts * tokens * C);
        for (int64_t text = 0; text < texts; text++) lengths[text] += tokens;
    }
}

int main(void) {
    for (int i = 0; i < 4; i++) {
        const int bits = (int[]){32, 28, 8, 4}[i];
        products(bits);
        layers(bits, GELU_TANH, 16);
        if (bits != 28) layers(bits, SILU, bits < 28 ? 10 : 24);
    }
    float *x = numbers(999), *grad = numbers(999), out[999];
    agi2_gelu(999, x, out, 0, 1), write_out(out, 999);
    agi2_gelu_backward(999, x, grad, out, 0, 1), write_out(out, 999);
    return 0;
}
