/* SHA-256 (FIPS 180-4) of data that comes in parts. */

#ifndef AGI2_SHA256_H
#define AGI2_SHA256_H

#include <stdint.h>
#include <string.h>

/* Begins as all zeros; `size` is the number of bytes so far. */
typedef struct {
    uint64_t size;
    uint32_t state[8];
    uint8_t block[64];
} Sha256;

static inline uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static inline void sha256_block(uint32_t *state, const uint8_t *block)
{
    static const uint32_t constants[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t words[64];
    for (int i = 0; i < 16; i++)
        words[i] = big_endian(block + 4 * i);
    for (int i = 16; i < 64; i++) {
        uint32_t x = words[i - 15], y = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) +
                   (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
/* A round leaves its results in d and h, which are e and a of the next one. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                           \
    h += (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + (g ^ (e & (f ^ g))) + constants[i] +  \
         words[i];                                                                                 \
    d += h;                                                                                        \
    h += (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) | (c & (a | b)));
    for (int i = 0; i < 64; i += 8) {
        ROUND(a, b, c, d, e, f, g, h, i)
        ROUND(h, a, b, c, d, e, f, g, i + 1)
        ROUND(g, h, a, b, c, d, e, f, i + 2)
        ROUND(f, g, h, a, b, c, d, e, i + 3)
        ROUND(e, f, g, h, a, b, c, d, i + 4)
        ROUND(d, e, f, g, h, a, b, c, i + 5)
        ROUND(c, d, e, f, g, h, a, b, i + 6)
        ROUND(b, c, d, e, f, g, h, a, i + 7)
    }
#undef ROUND
    uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++)
        state[i] += sums[i];
}

static inline void sha256_add(Sha256 *hash, const uint8_t *data, uint64_t size)
{
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    if (!hash->size)
        memcpy(hash->state, first, sizeof first);
    uint64_t used = hash->size % 64;
    hash->size += size;
    if (used && used + size >= 64) {
        memcpy(hash->block + used, data, 64 - used);
        sha256_block(hash->state, hash->block);
        data += 64 - used;
        size -= 64 - used;
        used = 0;
    }
    for (; used + size >= 64; data += 64, size -= 64)
        sha256_block(hash->state, data);
    if (size)
        memcpy(hash->block + used, data, size);
}

/* Write the first 16 bytes of the hash of the data so far, which may go on. */
static inline void sha256_begin_of(const Sha256 *hash, uint8_t *out)
{
    static const uint8_t end[64] = {0x80};
    Sha256 copy = *hash;
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)(8 * hash->size >> (56 - 8 * i));
    sha256_add(&copy, end, 1 + (119 - hash->size % 64) % 64);
    sha256_add(&copy, length, sizeof length);
    for (int i = 0; i < 16; i++)
        out[i] = (uint8_t)(copy.state[i / 4] >> (24 - 8 * (i % 4)));
}

#endif
