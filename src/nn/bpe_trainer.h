/* What counting words (`bpe_count.c`) and merging pairs (`bpe_merge.c`) share: the trainer. */

#ifndef AGI2_BPE_TRAINER_H
#define AGI2_BPE_TRAINER_H

#include "bpe.h"

typedef struct {
    uint64_t offset; /* of its bytes, and later of its tokens */
    int64_t count;
    uint32_t size, hash;
} Word;

/* A word that was counted lately, and how often since it was entered: its bytes, the rest zero. An
   empty entry has the size 0. */
typedef struct {
    uint64_t parts[3];
    uint32_t size, count;
} Recent;

enum { RECENT_BITS = 13 };

/* A pair of adjacent tokens, and the words where the current merge has made it. */
typedef struct {
    uint64_t pair; /* left << 32 | right */
    int64_t count;
    uint32_t *words;
    uint32_t size, capacity;
} Pair;

/* An entry of the heap: a pair, its count when it was pushed, and words that contain it. */
typedef struct {
    int64_t count;
    uint64_t pair;
    uint32_t *words;
    uint32_t size, index;
} Candidate;

/* A hash table of indices into another array; 0 is empty, else the index + 1. */
typedef struct {
    uint32_t *slots;
    uint64_t mask;
} Table;

typedef struct {
    uint32_t left, right, id;
} NewMerge;

typedef struct {
    Splitter splitter;
    int64_t max_words, max_bytes, min_count;
    Word *words;
    uint8_t *bytes;
    int64_t n_words, words_capacity, n_bytes, bytes_capacity;
    Table word_table;
    Recent recent[1 << RECENT_BITS];
    /* Of the merges. */
    uint32_t *tokens, n_tokens;
    Pair *pairs;
    int64_t n_pairs, pairs_capacity;
    Table pair_table;
    Candidate *heap;
    int64_t heap_size, heap_capacity;
    int64_t least_count; /* of the pairs in the heap */
    uint32_t *touched;
    int64_t n_touched, touched_capacity;
    Word *vocabulary; /* tokens by id: their bytes */
    int64_t vocabulary_capacity, known_bytes, known_capacity;
    uint8_t *known;
    Table vocabulary_table;
    NewMerge *merges;
    int64_t n_merges, merges_capacity;
} Trainer;

/* Allocate space for `needed` elements of an array; return OUT_OF_MEMORY if there is none. */
static inline int grow(void *array, int64_t *capacity, int64_t needed, size_t element)
{
    if (needed <= *capacity)
        return 0;
    int64_t larger = needed > 2 * *capacity ? needed + 16 : 2 * *capacity;
    void *old, *moved;
    memcpy(&old, array, sizeof old);
    if (!(moved = realloc(old, (size_t)larger * element)))
        return OUT_OF_MEMORY;
    memcpy(array, &moved, sizeof moved);
    *capacity = larger;
    return 0;
}

/* Make a table of at least twice as many slots as `n`; the caller fills it. */
static inline int renew(Table *table, int64_t n)
{
    uint64_t slots = 1024;
    while (slots < 2 * (uint64_t)n)
        slots *= 2;
    free(table->slots);
    table->slots = calloc(slots, sizeof *table->slots);
    table->mask = slots - 1;
    return table->slots ? 0 : OUT_OF_MEMORY;
}

static inline int needs_room(const Table *table, int64_t n)
{
    return !table->slots || 3 * (uint64_t)n > 2 * table->mask;
}

/* Return the slot of a string: its index + 1, or 0 where it would be. */
static inline uint32_t *find_string(const Table *table, const Word *words, const uint8_t *bytes,
                             const uint8_t *string, uint32_t size, uint64_t hash)
{
    for (uint64_t at = hash & table->mask;; at = (at + 1) & table->mask) {
        uint32_t *slot = &table->slots[at];
        if (!*slot)
            return slot;
        const Word *word = &words[*slot - 1];
        if (word->hash == (uint32_t)hash && word->size == size &&
            !memcmp(bytes + word->offset, string, size))
            return slot;
    }
}

int64_t agi2_bpe_end_count(Trainer *trainer);

#endif
