/* SHA-256 (FIPS 180-4) of data that comes in parts: by the instructions of the processor for it, if
   it has them (x86), at several times the speed. */

#ifndef AGI2_SHA256_H
#define AGI2_SHA256_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define HAS_SHA_INSTRUCTIONS
#endif

/* Begins as all zeros; `size` is the number of bytes so far. */
typedef struct {
    uint64_t size;
    uint32_t state[8];
    uint8_t block[64];
} Sha256;

static const uint32_t sha256_constants[64] = {
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

static inline uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static inline void sha256_block(uint32_t *state, const uint8_t *block)
{
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
    h += (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + (g ^ (e & (f ^ g))) +               \
         sha256_constants[i] + words[i];                                                           \
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

#ifdef HAS_SHA_INSTRUCTIONS

static inline int sha256_finds_instructions(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_SSE4_1 &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_SHA;
}

/* They keep the state as two registers: a, b, e, f and c, d, g, h, from the highest to the lowest.
   Four rounds need four words of the message; those of 16 rounds later are computed from them. */
__attribute__((target("sha,sse4.1"))) static inline void
sha256_block_by_instructions(uint32_t *state, const uint8_t *block)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state + 1), 0x1B);
    __m128i first_abef = _mm_alignr_epi8(badc, efgh, 8), abef = first_abef;
    __m128i first_cdgh = _mm_blend_epi16(efgh, badc, 0xF0), cdgh = first_cdgh;
    __m128i words[4];
    for (int i = 0; i < 4; i++)
        words[i] =
            _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)block + i), big_endian);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m128i *now = words + i % 4, one = words[(i + 1) % 4], two = words[(i + 2) % 4];
        __m128i three = words[(i + 3) % 4];
        __m128i sum =
            _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)sha256_constants + i));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
        if (i < 12) {
            *now = _mm_add_epi32(_mm_sha256msg1_epu32(*now, one), _mm_alignr_epi8(three, two, 4));
            *now = _mm_sha256msg2_epu32(*now, three);
        }
    }
    badc = _mm_shuffle_epi32(_mm_add_epi32(abef, first_abef), 0x1B); /* f, e, b, a */
    efgh = _mm_shuffle_epi32(_mm_add_epi32(cdgh, first_cdgh), 0xB1); /* d, c, h, g */
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(badc, efgh, 0xF0));
    _mm_storeu_si128((__m128i *)state + 1, _mm_alignr_epi8(efgh, badc, 8));
}

#else

static inline int sha256_finds_instructions(void) { return 0; }

#define sha256_block_by_instructions sha256_block

#endif

static int sha256_uses_instructions = 0;

static inline void sha256_blocks(uint32_t *state, const uint8_t *data, uint64_t n)
{
    for (; n; n--, data += 64)
        if (sha256_uses_instructions)
            sha256_block_by_instructions(state, data);
        else
            sha256_block(state, data);
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
        sha256_blocks(hash->state, hash->block, 1);
        data += 64 - used;
        size -= 64 - used;
        used = 0;
    }
    if (!used) {
        sha256_blocks(hash->state, data, size / 64);
        data += size - size % 64;
        size %= 64;
    }
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
