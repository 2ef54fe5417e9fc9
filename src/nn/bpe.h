/* Words of the pre-tokenizers of GPT-2 and GPT-4: what their regular expressions match, without
   backtracking. Shared by encoding (`bpe_encode.c`) and training (`bpe_count.c`).

   Texts are UTF-8. `kinds` has an entry for each code point, filled by the caller: which characters
   are letters depends on the version of Unicode, and must be as in the library that is replaced. */

#ifndef AGI2_BPE_H
#define AGI2_BPE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CODE_POINTS = 0x110000 };
enum { UNKNOWN_KIND, LETTER, NUMBER, WHITE, OTHER };
enum { OUT_OF_MEMORY = -1, UNKNOWN_CHARACTER = -2 };

/* A pre-tokenizer: `max_digits` is the most digits of a word, 0 for no limit. GPT-2's with a limit
   isolates each digit before the regular expression splits what is between. */
typedef struct {
    const uint8_t *kinds;
    int32_t is_gpt4;
    int32_t max_digits;
} Splitter;

/* Return the kind of the character at p < end, and the number of its bytes, at most end - p. */
static inline int kind_at(const uint8_t *kinds, const uint8_t *p, const uint8_t *end, int *size)
{
    uint32_t code = *p;
    *size = 1;
    if (code < 0x80)
        return kinds[code];
    int n = code < 0xE0 ? 2 : code < 0xF0 ? 3 : 4;
    if (end - p < n) { /* not UTF-8 */
        *size = (int)(end - p);
        return OTHER;
    }
    code &= 0xFFu >> (n + 1);
    for (int i = 1; i < n; i++)
        code = code << 6 | (p[i] & 0x3F);
    *size = n;
    return code < CODE_POINTS ? kinds[code] : OTHER;
}

/* Return the end of the run of at most `most` characters of a kind, < 0 for no limit. */
static inline const uint8_t *run_end(const uint8_t *kinds, const uint8_t *p, const uint8_t *end,
                                     int kind, int most)
{
    int size;
    for (; p < end && most-- && kind_at(kinds, p, end, &size) == kind; p += size) {
    }
    return p;
}

/* Return the number of bytes of the contraction at an apostrophe (as in don't), or 0. */
static inline int contraction(const uint8_t *p, const uint8_t *end, int any_case)
{
    int fold = any_case ? 0x20 : 0;
    if (end - p < 2)
        return 0;
    int a = p[1] | fold, b = end - p > 2 ? p[2] | fold : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l'))
        return 3;
    /* U+017F, the long s, is the same letter as s in another case. */
    return any_case && end - p > 2 && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

/* Return the end of the word of white space at p: all of a run but its last character, which
   belongs to what follows; for GPT-4 up to the last line end, if there is one. */
static inline const uint8_t *white_end(const Splitter *by, const uint8_t *p, const uint8_t *end)
{
    const uint8_t *q = p, *last = p, *line = NULL;
    int size, kind = WHITE;
    for (; q < end && (kind = kind_at(by->kinds, q, end, &size)) == WHITE; q += size) {
        last = q;
        if (*q == '\n' || *q == '\r')
            line = q + 1;
    }
    if (by->is_gpt4 && line)
        return line;
    int is_isolated = !by->is_gpt4 && by->max_digits && kind == NUMBER;
    return q == end || last == p || is_isolated ? q : last;
}

static inline const uint8_t *gpt2_word_end(const Splitter *by, const uint8_t *p, const uint8_t *end)
{
    int size, kind = kind_at(by->kinds, p, end, &size);
    if (*p == '\'' && (size = contraction(p, end, 0)))
        return p + size;
    if (*p == ' ' && p + 1 < end) {
        int next = kind_at(by->kinds, p + 1, end, &size);
        if (next != WHITE && !(next == NUMBER && by->max_digits))
            p++, kind = next;
    }
    if (kind == WHITE)
        return white_end(by, p, end);
    int most = kind == NUMBER && by->max_digits ? by->max_digits : -1;
    return run_end(by->kinds, p, end, kind, most);
}

static inline const uint8_t *gpt4_word_end(const Splitter *by, const uint8_t *p, const uint8_t *end)
{
    int size, kind = kind_at(by->kinds, p, end, &size), after = UNKNOWN_KIND, unused;
    const uint8_t *next = p + size;
    if (*p == '\'' && (size = contraction(p, end, 1)))
        return p + size;
    if (kind == LETTER)
        return run_end(by->kinds, p, end, LETTER, -1);
    if (kind == NUMBER)
        return run_end(by->kinds, p, end, NUMBER, by->max_digits ? by->max_digits : -1);
    if (next < end)
        after = kind_at(by->kinds, next, end, &unused);
    if (after == LETTER && *p != '\n' && *p != '\r')
        return run_end(by->kinds, next, end, LETTER, -1);
    if (kind == WHITE && !(*p == ' ' && after == OTHER))
        return white_end(by, p, end);
    p = run_end(by->kinds, kind == WHITE ? next : p, end, OTHER, -1);
    while (p < end && (*p == '\n' || *p == '\r'))
        p++;
    return p;
}

/* Return the end of the word that begins at p < end, always after p. */
static inline const uint8_t *word_end(const Splitter *by, const uint8_t *p, const uint8_t *end)
{
    return by->is_gpt4 ? gpt4_word_end(by, p, end) : gpt2_word_end(by, p, end);
}

static inline uint64_t mix(uint64_t x)
{
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

static inline uint64_t hash_bytes(const uint8_t *p, size_t n)
{
    uint64_t part, hash = mix(n);
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&part, p, 8);
        hash = mix(hash ^ part);
    }
    part = 0;
    memcpy(&part, p, n);
    return mix(hash ^ part);
}

#endif
