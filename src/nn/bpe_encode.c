/* Byte-level BPE: encode texts to token ids.

   A word's bytes are merged in the order of the ranks. Words repeat: those that were encoded lately
   are in a cache, which belongs to one thread at a time. */

#include "bpe.h"

enum {
    NO_RANK = 0xFFFFFFFF,
    /* Words up to here are merged by scanning for the lowest rank, longer ones with a heap. */
    SHORT_WORD = 128,
    CACHE_BITS = 15,
    CACHED_BYTES = 22,
    CACHED_IDS = 10,
    JOIN_BITS = 20,
};

/* An entry of the hash table of merges. The key is a pair of token ids, left << 32 | right. */
typedef struct {
    uint64_t pair;
    uint32_t rank, id;
} Merge;

typedef struct {
    uint32_t byte_ids[256];
    Splitter splitter;
    uint8_t joins[1 << (JOIN_BITS - 3)]; /* a bit for each hash of what `join_at` returns */
    uint64_t mask;
    Merge merges[];
} Encoder;

/* The ends of a token: up to two bytes each. n is 1 if it has one byte, 0 if it is not known. */
typedef struct {
    uint8_t n, first[2], last[2];
} Ends;

/* An encoded word, in one cache line. An empty entry has no bytes. */
typedef struct {
    uint8_t size, count, bytes[CACHED_BYTES];
    uint32_t ids[CACHED_IDS];
} Cached;

static const uint64_t NO_PAIR = UINT64_MAX;

static inline uint64_t pair_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

/* Return the entry of a pair, or the empty one where it would be. */
static inline const Merge *find(const Encoder *encoder, uint32_t left, uint32_t right)
{
    uint64_t pair = pair_of(left, right), at = mix(pair) & encoder->mask;
    while (encoder->merges[at].pair != pair && encoder->merges[at].pair != NO_PAIR)
        at = (at + 1) & encoder->mask;
    return &encoder->merges[at];
}

/* Return the bytes around a place between two characters: `a` and `b` to the left, `c` and `d` to
   the right. Those that are of other characters, or not known, are 0. */
static inline uint32_t join_at(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    return (b < 0x80 ? 0 : a << 24) | b << 16 | c << 8 | (c < 0x80 ? 0 : d);
}

static inline uint32_t join_bit(uint32_t join) { return join * 0x9E3779B1u >> (32 - JOIN_BITS); }

static inline int has_join(const Encoder *encoder, uint32_t join)
{
    uint32_t bit = join_bit(join);
    return encoder->joins[bit >> 3] >> (bit & 7) & 1;
}

static inline int is_inside(uint8_t byte) { return (byte & 0xC0) == 0x80; } /* a character */

/* Enter the places where merges join tokens. Of merges in the order of training one pass over them
   knows the ends of all tokens; if three do not, every place counts as one. */
static void enter_joins(Encoder *encoder, const uint32_t *merges, int64_t n, Ends *ends)
{
    int64_t unknown = n;
    for (int i = 0; i < 256; i++)
        ends[encoder->byte_ids[i]] = (Ends){1, {(uint8_t)i}, {0, (uint8_t)i}};
    for (int pass = 0; pass < 3 && unknown; pass++) {
        unknown = 0;
        for (const uint32_t *each = merges; each < merges + 4 * n; each += 4) {
            Ends left = ends[each[0]], right = ends[each[1]];
            if (!left.n || !right.n) {
                unknown++;
                continue;
            }
            Ends joined = {2, {left.first[0], left.first[1]}, {right.last[0], right.last[1]}};
            if (left.n == 1)
                joined.first[1] = right.first[0];
            if (right.n == 1)
                joined.last[0] = left.last[1];
            ends[each[2]] = joined;
            if (is_inside(right.first[0]))
                continue;
            uint32_t bit = join_bit(join_at(left.n == 1 ? 0 : left.last[0], left.last[1],
                                            right.first[0], right.n == 1 ? 0 : right.first[1]));
            encoder->joins[bit >> 3] |= (uint8_t)(1 << (bit & 7));
        }
    }
    if (unknown)
        memset(encoder->joins, 0xFF, sizeof encoder->joins);
}

/* Make an encoder. `merges` (n, 4) has a left, a right and a new token id and the rank; the pairs
   are distinct. Return NULL if there is no memory. */
Encoder *agi2_bpe_encoder(const uint32_t *byte_ids, const uint32_t *merges, int64_t n,
                          const uint8_t *kinds, int32_t is_gpt4, int32_t max_digits)
{
    uint64_t slots = 4, tokens = 0;
    while (slots < 2 * (uint64_t)n + 2)
        slots *= 2;
    for (int i = 0; i < 256; i++)
        tokens = byte_ids[i] >= tokens ? (uint64_t)byte_ids[i] + 1 : tokens;
    for (int64_t i = 0; i < 4 * n; i += i % 4 == 2 ? 2 : 1)
        tokens = merges[i] >= tokens ? (uint64_t)merges[i] + 1 : tokens;
    Encoder *encoder = malloc(sizeof(Encoder) + slots * sizeof(Merge));
    Ends *ends = calloc(tokens, sizeof(Ends));
    if (!encoder || !ends) {
        free(encoder);
        free(ends);
        return NULL;
    }
    memcpy(encoder->byte_ids, byte_ids, sizeof encoder->byte_ids);
    encoder->splitter = (Splitter){kinds, is_gpt4, max_digits};
    encoder->mask = slots - 1;
    memset(encoder->joins, 0, sizeof encoder->joins);
    enter_joins(encoder, merges, n, ends);
    free(ends);
    for (uint64_t i = 0; i < slots; i++)
        encoder->merges[i] = (Merge){NO_PAIR, NO_RANK, 0};
    for (const uint32_t *each = merges; n--; each += 4) {
        Merge *slot = (Merge *)find(encoder, each[0], each[1]);
        *slot = (Merge){pair_of(each[0], each[1]), each[3], each[2]};
    }
    return encoder;
}

/* Free what this library has allocated as one block. */
void agi2_bpe_free(void *block) { free(block); }

/* Encode a word of 1 to SHORT_WORD bytes; return the number of ids.

   `keys` has, for each pair of adjacent ids, rank and position: the least one is merged next. The
   id on the right of a merged pair stays in its place, unused; the scan is short and has no
   branches, so that a compiler can vectorize it. */
static int encode_short(const Encoder *encoder, const uint8_t *word, int n, uint32_t *ids)
{
    enum { POSITION_BITS = 7, NO_KEY = INT32_MAX };
    int32_t keys[SHORT_WORD];
    uint32_t merged[SHORT_WORD];
    uint8_t before[SHORT_WORD], after[SHORT_WORD];
    for (int i = 0; i < n; i++) {
        ids[i] = encoder->byte_ids[word[i]];
        before[i] = (uint8_t)(i - 1);
        after[i] = (uint8_t)(i + 1);
    }
#define SET_PAIR(left, right)                                                                      \
    const Merge *merge = find(encoder, ids[left], ids[right]);                                     \
    merged[left] = merge->id;                                                                      \
    keys[left] = merge->rank == NO_RANK ? NO_KEY                                                   \
                                        : (int32_t)(merge->rank << POSITION_BITS | (uint32_t)left);
    for (int i = 0; i < n - 1; i++) {
        SET_PAIR(i, i + 1)
    }
    keys[n - 1] = NO_KEY;
    for (;;) {
        int32_t least = NO_KEY;
        for (int i = 0; i < n - 1; i++)
            least = keys[i] < least ? keys[i] : least;
        if (least == NO_KEY)
            break;
        int left = least & ((1 << POSITION_BITS) - 1), right = after[left], next = after[right];
        ids[left] = merged[left];
        after[left] = (uint8_t)next;
        keys[left] = keys[right] = NO_KEY;
        if (next < n) {
            before[next] = (uint8_t)left;
            SET_PAIR(left, next)
        }
        if (left) {
            SET_PAIR(before[left], left)
        }
    }
#undef SET_PAIR
    int count = 0;
    for (int i = 0; i < n; i = after[i])
        ids[count++] = ids[i]; /* count <= i */
    return count;
}

/* Buffers for a long word, and a min-heap of rank << 32 | position. */
typedef struct {
    uint32_t *ids;
    int32_t *before, *after;
    uint64_t *heap;
    int64_t heap_size, capacity;
} Scratch;

static int reserve(Scratch *scratch, int64_t n)
{
    if (n <= scratch->capacity)
        return 0;
    free(scratch->heap);
    scratch->capacity = 0;
    /* Each merge removes a symbol and adds at most two pairs. */
    scratch->heap = malloc((size_t)n * (3 * sizeof(uint64_t) + 3 * sizeof(uint32_t)));
    if (!scratch->heap)
        return OUT_OF_MEMORY;
    scratch->ids = (uint32_t *)(scratch->heap + 3 * n);
    scratch->before = (int32_t *)(scratch->ids + n);
    scratch->after = scratch->before + n;
    scratch->capacity = n;
    return 0;
}

static void push(Scratch *scratch, uint64_t value)
{
    uint64_t *heap = scratch->heap;
    int64_t at = scratch->heap_size++;
    for (; at && heap[(at - 1) / 2] > value; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = value;
}

static uint64_t pop(Scratch *scratch)
{
    uint64_t *heap = scratch->heap, top = heap[0], value = heap[--scratch->heap_size];
    int64_t n = scratch->heap_size, at = 0, child;
    while ((child = 2 * at + 1) < n) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
    return top;
}

static void push_pair(const Encoder *encoder, Scratch *scratch, int32_t left)
{
    int32_t right = left < 0 ? -1 : scratch->after[left];
    if (right < 0)
        return;
    uint32_t rank = find(encoder, scratch->ids[left], scratch->ids[right])->rank;
    if (rank != NO_RANK)
        push(scratch, (uint64_t)rank << 32 | (uint32_t)left);
}

/* Encode a word of any length in O(n log n); return the number of ids, which `scratch->ids` has. */
static int64_t encode_long(const Encoder *encoder, const uint8_t *word, int64_t n, Scratch *scratch)
{
    if (reserve(scratch, n))
        return OUT_OF_MEMORY;
    uint32_t *ids = scratch->ids;
    int32_t *before = scratch->before, *after = scratch->after;
    scratch->heap_size = 0;
    for (int32_t i = 0; i < n; i++) {
        ids[i] = encoder->byte_ids[word[i]];
        before[i] = i - 1;
        after[i] = i + 1 < n ? i + 1 : -1;
    }
    for (int32_t i = 0; i < n - 1; i++)
        push_pair(encoder, scratch, i);
    while (scratch->heap_size) {
        uint64_t top = pop(scratch);
        int32_t left = (int32_t)(uint32_t)top, right = after[left];
        if (before[left] == left || right < 0)
            continue; /* merged into the symbol on its left, or the last */
        const Merge *merge = find(encoder, ids[left], ids[right]);
        if (merge->rank != top >> 32)
            continue; /* one of the two has been merged since */
        ids[left] = merge->id;
        before[right] = right;
        after[left] = after[right];
        if (after[right] >= 0)
            before[after[right]] = left;
        push_pair(encoder, scratch, before[left]);
        push_pair(encoder, scratch, left);
    }
    int64_t count = 0;
    for (int32_t i = 0; i >= 0; i = after[i])
        ids[count++] = ids[i]; /* count <= i */
    return count;
}

/* Return the end of the part of a word at p < end that can be encoded by itself: no merge joins it
   to what follows. So a text without spaces is encoded in parts, most of which repeat. */
static inline const uint8_t *part_end(const Encoder *encoder, const uint8_t *p, const uint8_t *end)
{
    for (const uint8_t *q = p + 1; q < end; q++) {
        if (is_inside(*q))
            continue;
        uint32_t a = q - p > 1 ? q[-2] : 0, d = end - q > 1 ? q[1] : 0;
        if (!(has_join(encoder, join_at(a, q[-1], *q, d)) |
              has_join(encoder, join_at(a, q[-1], *q, 0)) |
              has_join(encoder, join_at(0, q[-1], *q, d)) |
              has_join(encoder, join_at(0, q[-1], *q, 0))))
            return q;
    }
    return end;
}

static inline const Cached *encode_cached(const Encoder *encoder, Cached *cache,
                                          const uint8_t *word, int n)
{
    Cached *entry = &cache[hash_bytes(word, (size_t)n) & ((1 << CACHE_BITS) - 1)];
    if (entry->size == n && !memcmp(entry->bytes, word, (size_t)n))
        return entry;
    uint32_t ids[SHORT_WORD];
    int count = encode_short(encoder, word, n, ids);
    if (count > CACHED_IDS)
        return NULL;
    memcpy(entry->bytes, word, (size_t)n);
    memcpy(entry->ids, ids, (size_t)count * sizeof *ids);
    entry->size = (uint8_t)n;
    entry->count = (uint8_t)count;
    return entry;
}

/* Append ids to an array of uint32 or uint16. */
static inline void append(void *out, int64_t at, const uint32_t *ids, int64_t n, int is_wide)
{
    if (is_wide)
        memcpy((uint32_t *)out + at, ids, (size_t)n * sizeof *ids);
    else
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)out)[at + i] = (uint16_t)ids[i];
}

/* Encode pieces of text, separately.

   text: the pieces one after the other; `ends` (n,) has the end of each.
   cache: agi2_bpe_cache_bytes() zero bytes at first, for this encoder alone.
   out: space for as many ids as there are bytes, uint32 or uint16.
   counts: (n,), the number of ids of each piece.
   Returns the number of ids, or OUT_OF_MEMORY. */
int64_t agi2_bpe_encode(const Encoder *encoder, Cached *cache, const uint8_t *text,
                        const int64_t *ends, int64_t n, void *out, int32_t is_wide, int64_t *counts)
{
    Scratch scratch = {0};
    const uint8_t *p = text;
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t start = total;
        const uint8_t *end = text + ends[i], *next, *word = p;
        for (; p < end; p = next) {
            if (p == word)
                word = word_end(&encoder->splitter, p, end);
            next = word - p <= CACHED_BYTES ? word : part_end(encoder, p, word);
            int64_t size = next - p, count;
            const Cached *entry = NULL;
            uint32_t short_ids[SHORT_WORD], *ids = short_ids;
            if (size <= CACHED_BYTES && (entry = encode_cached(encoder, cache, p, (int)size))) {
                append(out, total, entry->ids, entry->count, is_wide);
                total += entry->count;
                continue;
            }
            if (size <= SHORT_WORD)
                count = encode_short(encoder, p, (int)size, ids);
            else if ((count = encode_long(encoder, p, size, &scratch)) < 0)
                return OUT_OF_MEMORY;
            else
                ids = scratch.ids;
            append(out, total, ids, count, is_wide);
            total += count;
        }
        counts[i] = total - start;
    }
    free(scratch.heap);
    return total;
}

int64_t agi2_bpe_cache_bytes(void) { return (int64_t)sizeof(Cached) << CACHE_BITS; }

/* Return the first code point of a text whose kind is not known, or -1. The kinds of all of ASCII
   are known if that of NUL is. */
int64_t agi2_bpe_unknown_kind(const uint8_t *kinds, const uint8_t *text, int64_t size)
{
    const uint8_t *p = text, *end = text + size;
    uint64_t eight;
    int knows_ascii = kinds[0] != UNKNOWN_KIND;
    for (int bytes; p < end; p += bytes) {
        for (; knows_ascii && end - p >= 8 && (memcpy(&eight, p, 8), !(eight & 0x8080808080808080u)); p += 8) {
        }
        if (p == end)
            break;
        if (kind_at(kinds, p, end, &bytes) == UNKNOWN_KIND) {
            uint32_t code = *p & (bytes == 1 ? 0x7Fu : 0xFFu >> (bytes + 1));
            for (int i = 1; i < bytes; i++)
                code = code << 6 | (p[i] & 0x3F);
            return code;
        }
    }
    return -1;
}

/* What encoding one short piece needs, besides the piece: a call with few arguments is faster. */
typedef struct {
    const Encoder *encoder;
    Cached *cache;
    uint32_t *ids; /* space for as many as there are bytes */
} Workspace;

/* Encode one piece of text, as agi2_bpe_encode does. Return UNKNOWN_CHARACTER if the kind of one of
   its characters is not known. */
int64_t agi2_bpe_encode_piece(const Workspace *workspace, const uint8_t *text, int64_t size)
{
    int64_t count;
    if (agi2_bpe_unknown_kind(workspace->encoder->splitter.kinds, text, size) >= 0)
        return UNKNOWN_CHARACTER;
    return agi2_bpe_encode(workspace->encoder, workspace->cache, text, &size, 1, workspace->ids, 1,
                           &count);
}
