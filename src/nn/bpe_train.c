/* Byte-level BPE: train merges.

   Counts the words of a text, then merges the most frequent pair of adjacent tokens again and again
   (of several, that of the lowest ids). A heap has the pairs with the words where each occurs, so
   that a merge costs time in proportion to its own words. */

#include "bpe.h"

typedef struct {
    uint64_t offset; /* of its bytes, and later of its tokens */
    int64_t count;
    uint32_t size, hash;
} Word;

/* A pair of adjacent tokens, and the words where the current merge has made it. */
typedef struct {
    uint64_t pair; /* left << 32 | right */
    int64_t count;
    uint32_t *words;
    int64_t size, capacity;
} Pair;

/* An entry of the heap: a pair, its count when it was pushed, and words that contain it. */
typedef struct {
    int64_t count;
    uint64_t pair;
    uint32_t *words;
    int64_t size;
    uint32_t index;
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
    int64_t max_words, min_count;
    Word *words;
    uint8_t *bytes;
    int64_t n_words, words_capacity, n_bytes, bytes_capacity;
    Table word_table;
    /* Of the merges. */
    uint32_t *tokens, n_tokens;
    Pair *pairs;
    int64_t n_pairs, pairs_capacity;
    Table pair_table;
    Candidate *heap;
    int64_t heap_size, heap_capacity;
    uint32_t *touched;
    int64_t n_touched, touched_capacity;
    Word *vocabulary; /* tokens by id: their bytes */
    int64_t vocabulary_capacity, known_bytes, known_capacity;
    uint8_t *known;
    Table vocabulary_table;
    NewMerge *merges;
    int64_t n_merges, merges_capacity;
} Trainer;

/* Make room for `needed` elements of an array; return OUT_OF_MEMORY if there is none. */
static int grow(void *array, int64_t *capacity, int64_t needed, size_t element)
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
static int renew(Table *table, int64_t n)
{
    uint64_t slots = 1024;
    while (slots < 2 * (uint64_t)n)
        slots *= 2;
    free(table->slots);
    table->slots = calloc(slots, sizeof *table->slots);
    table->mask = slots - 1;
    return table->slots ? 0 : OUT_OF_MEMORY;
}

static inline int is_full(const Table *table, int64_t n)
{
    return !table->slots || 3 * (uint64_t)n > 2 * table->mask;
}

/* Return the slot of a string: its index + 1, or 0 where it would be. */
static uint32_t *find_string(const Table *table, const Word *words, const uint8_t *bytes,
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

/* Insert words of distinct strings into a new table. */
static int fill_table(Table *table, const Word *words, int64_t n)
{
    if (renew(table, 2 * n))
        return OUT_OF_MEMORY;
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = words[i].hash & table->mask;
        while (table->slots[at])
            at = (at + 1) & table->mask;
        table->slots[at] = (uint32_t)i + 1;
    }
    return 0;
}

/* Make a trainer that keeps about `max_words` distinct words; NULL if there is no memory. */
Trainer *agi2_bpe_trainer(const uint8_t *kinds, int32_t is_gpt4, int32_t max_digits,
                          int64_t max_words)
{
    Trainer *trainer = calloc(1, sizeof *trainer);
    if (trainer) {
        trainer->splitter = (Splitter){kinds, is_gpt4, max_digits};
        trainer->max_words = max_words;
    }
    return trainer;
}

void agi2_bpe_free_trainer(Trainer *trainer)
{
    for (int64_t i = 0; i < trainer->n_pairs; i++)
        free(trainer->pairs[i].words);
    for (int64_t i = 0; i < trainer->heap_size; i++)
        free(trainer->heap[i].words);
    void *blocks[] = {trainer->words,      trainer->bytes,   trainer->word_table.slots,
                      trainer->tokens,     trainer->pairs,   trainer->pair_table.slots,
                      trainer->heap,       trainer->touched, trainer->vocabulary,
                      trainer->known,      trainer->merges,  trainer->vocabulary_table.slots,
                      trainer};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        free(blocks[i]);
}

/* Forget words that occur less often than a minimum, which rises until half of them are left. */
static int forget_rare(Trainer *trainer)
{
    while (2 * trainer->n_words > trainer->max_words) {
        int64_t kept = 0, end = 0;
        trainer->min_count++;
        for (int64_t i = 0; i < trainer->n_words; i++) {
            Word word = trainer->words[i];
            if (word.count <= trainer->min_count)
                continue;
            memmove(trainer->bytes + end, trainer->bytes + word.offset, word.size);
            word.offset = (uint64_t)end;
            end += word.size;
            trainer->words[kept++] = word;
        }
        trainer->n_words = kept;
        trainer->n_bytes = end;
    }
    return fill_table(&trainer->word_table, trainer->words, trainer->n_words);
}

static int count_word(Trainer *trainer, const uint8_t *string, uint32_t size)
{
    if (is_full(&trainer->word_table, trainer->n_words) &&
        fill_table(&trainer->word_table, trainer->words, trainer->n_words))
        return OUT_OF_MEMORY;
    uint64_t hash = hash_bytes(string, size);
    uint32_t *slot = find_string(&trainer->word_table, trainer->words, trainer->bytes, string, size,
                                 (uint32_t)hash);
    if (*slot) {
        trainer->words[*slot - 1].count++;
        return 0;
    }
    int64_t n = trainer->n_words, at = trainer->n_bytes;
    if (grow(&trainer->words, &trainer->words_capacity, n + 1, sizeof(Word)) ||
        grow(&trainer->bytes, &trainer->bytes_capacity, at + size, 1))
        return OUT_OF_MEMORY;
    memcpy(trainer->bytes + at, string, size);
    trainer->words[n] = (Word){(uint64_t)at, 1, size, (uint32_t)hash};
    trainer->n_bytes += size;
    *slot = (uint32_t)++trainer->n_words;
    return trainer->n_words > trainer->max_words ? forget_rare(trainer) : 0;
}

/* Count the words of pieces of text: `ends` (n,) has the end of each. Returns up to which count
   words have been forgotten, or OUT_OF_MEMORY. */
int64_t agi2_bpe_count(Trainer *trainer, const uint8_t *text, const int64_t *ends, int64_t n)
{
    const uint8_t *p = text;
    for (int64_t i = 0; i < n; i++)
        for (const uint8_t *end = text + ends[i], *next; p < end; p = next) {
            next = word_end(&trainer->splitter, p, end);
            if (count_word(trainer, p, (uint32_t)(next - p)))
                return OUT_OF_MEMORY;
        }
    return trainer->min_count;
}

/* Whether a is merged before b. */
static inline int is_before(const Candidate *a, const Candidate *b)
{
    return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static int push(Trainer *trainer, Candidate candidate)
{
    int64_t at = trainer->heap_size;
    if (grow(&trainer->heap, &trainer->heap_capacity, at + 1, sizeof candidate))
        return OUT_OF_MEMORY;
    Candidate *heap = trainer->heap;
    trainer->heap_size++;
    for (; at && is_before(&candidate, &heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = candidate;
    return 0;
}

static Candidate pop(Trainer *trainer)
{
    Candidate *heap = trainer->heap, top = heap[0], last = heap[--trainer->heap_size];
    int64_t n = trainer->heap_size, at = 0, child;
    while ((child = 2 * at + 1) < n) {
        child += child + 1 < n && is_before(&heap[child + 1], &heap[child]);
        if (!is_before(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static int refill_pairs(Trainer *trainer)
{
    Table *table = &trainer->pair_table;
    if (renew(table, 2 * trainer->n_pairs))
        return OUT_OF_MEMORY;
    for (int64_t i = 0; i < trainer->n_pairs; i++) {
        uint64_t at = mix(trainer->pairs[i].pair) & table->mask;
        while (table->slots[at])
            at = (at + 1) & table->mask;
        table->slots[at] = (uint32_t)i + 1;
    }
    return 0;
}

/* Return the index of a pair, which is added if it is new, or OUT_OF_MEMORY. */
static int64_t pair_index(Trainer *trainer, uint64_t pair)
{
    Table *table = &trainer->pair_table;
    if (is_full(table, trainer->n_pairs) && refill_pairs(trainer))
        return OUT_OF_MEMORY;
    uint64_t at = mix(pair) & table->mask;
    for (; table->slots[at]; at = (at + 1) & table->mask)
        if (trainer->pairs[table->slots[at] - 1].pair == pair)
            return table->slots[at] - 1;
    if (grow(&trainer->pairs, &trainer->pairs_capacity, trainer->n_pairs + 1, sizeof(Pair)))
        return OUT_OF_MEMORY;
    trainer->pairs[trainer->n_pairs] = (Pair){.pair = pair};
    table->slots[at] = (uint32_t)++trainer->n_pairs;
    return trainer->n_pairs - 1;
}

/* Change the count of a pair; if it grows, remember that this word contains the pair. */
static int change_pair(Trainer *trainer, uint32_t left, uint32_t right, int64_t change,
                       uint32_t word)
{
    int64_t index = pair_index(trainer, (uint64_t)left << 32 | right);
    if (index < 0)
        return OUT_OF_MEMORY;
    Pair *pair = &trainer->pairs[index];
    pair->count += change;
    if (change < 0 || (pair->size && pair->words[pair->size - 1] == word))
        return 0;
    if (grow(&pair->words, &pair->capacity, pair->size + 1, sizeof *pair->words))
        return OUT_OF_MEMORY;
    if (!pair->size) {
        if (grow(&trainer->touched, &trainer->touched_capacity, trainer->n_touched + 1,
                 sizeof *trainer->touched))
            return OUT_OF_MEMORY;
        trainer->touched[trainer->n_touched++] = (uint32_t)index;
    }
    pair->words[pair->size++] = word;
    return 0;
}

/* Move the pairs that have grown into the heap, with their words. */
static int push_touched(Trainer *trainer)
{
    for (int64_t i = 0; i < trainer->n_touched; i++) {
        uint32_t index = trainer->touched[i];
        Pair *pair = &trainer->pairs[index];
        Candidate candidate = {pair->count, pair->pair, pair->words, pair->size, index};
        if (pair->count <= 0) /* made, and merged at once */
            free(pair->words);
        else if (push(trainer, candidate))
            return OUT_OF_MEMORY;
        pair->words = NULL;
        pair->size = pair->capacity = 0;
    }
    trainer->n_touched = 0;
    return 0;
}

/* Add a token of two others, or of one byte if left < 0; return its id, or OUT_OF_MEMORY. */
static int64_t add_token(Trainer *trainer, int64_t left, int64_t right, uint8_t byte)
{
    Word parts[2] = {{.size = 1}, {.size = 0}};
    if (left >= 0)
        parts[0] = trainer->vocabulary[left], parts[1] = trainer->vocabulary[right];
    uint32_t size = parts[0].size + parts[1].size;
    int64_t at = trainer->known_bytes;
    if (grow(&trainer->known, &trainer->known_capacity, at + size, 1) ||
        grow(&trainer->vocabulary, &trainer->vocabulary_capacity, trainer->n_tokens + 1,
             sizeof(Word)))
        return OUT_OF_MEMORY;
    uint8_t *string = trainer->known + at;
    for (int i = 0; i < 2; i++)
        memcpy(string + i * parts[0].size, trainer->known + parts[i].offset, parts[i].size);
    if (left < 0)
        *string = byte;
    uint64_t hash = hash_bytes(string, size);
    uint32_t *slot = find_string(&trainer->vocabulary_table, trainer->vocabulary, trainer->known,
                                 string, size, hash);
    if (*slot) /* two pairs may make the same token */
        return *slot - 1;
    trainer->vocabulary[trainer->n_tokens] = (Word){(uint64_t)at, 0, size, (uint32_t)hash};
    trainer->known_bytes += size;
    *slot = ++trainer->n_tokens;
    return trainer->n_tokens - 1;
}

/* Begin the merges, of a vocabulary of at most `vocab_size` tokens. `bytes` (256,) has the byte of
   each of the tokens that follow the first `n_special`. Returns 0 or OUT_OF_MEMORY. */
int64_t agi2_bpe_begin(Trainer *trainer, const uint8_t *bytes, int64_t n_special,
                       int64_t vocab_size)
{
    uint32_t ids[256];
    if (renew(&trainer->vocabulary_table, vocab_size) ||
        grow(&trainer->vocabulary, &trainer->vocabulary_capacity, vocab_size, sizeof(Word)) ||
        grow(&trainer->known, &trainer->known_capacity, 256, 1) ||
        !(trainer->tokens = malloc((size_t)trainer->n_bytes * sizeof(uint32_t) + 1)))
        return OUT_OF_MEMORY;
    memset(trainer->vocabulary, 0, (size_t)n_special * sizeof(Word));
    trainer->n_tokens = (uint32_t)n_special;
    for (int i = 0; i < 256; i++)
        ids[bytes[i]] = (uint32_t)add_token(trainer, -1, -1, bytes[i]);
    for (int64_t i = 0; i < trainer->n_bytes; i++)
        trainer->tokens[i] = ids[trainer->bytes[i]];
    for (int64_t i = 0; i < trainer->n_words; i++) {
        const Word *word = &trainer->words[i];
        const uint32_t *tokens = trainer->tokens + word->offset;
        for (uint32_t j = 1; j < word->size; j++)
            if (change_pair(trainer, tokens[j - 1], tokens[j], word->count, (uint32_t)i))
                return OUT_OF_MEMORY;
    }
    return push_touched(trainer);
}

/* Merge a pair in a word, from left to right. */
static int merge_in_word(Trainer *trainer, uint32_t index, NewMerge by)
{
    Word *word = &trainer->words[index];
    uint32_t *tokens = trainer->tokens + word->offset, n = word->size, kept = 0;
    int64_t count = word->count;
    for (uint32_t i = 0; i < n; kept++) {
        if (tokens[i] != by.left || i + 1 == n || tokens[i + 1] != by.right) {
            tokens[kept] = tokens[i++];
            continue;
        }
        if (kept && (change_pair(trainer, tokens[kept - 1], by.left, -count, index) ||
                     change_pair(trainer, tokens[kept - 1], by.id, count, index)))
            return OUT_OF_MEMORY;
        i += 2;
        if (i < n && (change_pair(trainer, by.right, tokens[i], -count, index) ||
                      change_pair(trainer, by.id, tokens[i], count, index)))
            return OUT_OF_MEMORY;
        tokens[kept] = by.id;
    }
    word->size = kept;
    return 0;
}

/* Make up to `most` merges. Returns their number, less than `most` at the end, or OUT_OF_MEMORY. */
int64_t agi2_bpe_merge(Trainer *trainer, int64_t vocab_size, int64_t most)
{
    int64_t made = 0;
    while (made < most && trainer->n_tokens < vocab_size && trainer->heap_size) {
        Candidate top = pop(trainer);
        if (top.count != trainer->pairs[top.index].count) {
            top.count = trainer->pairs[top.index].count;
            push(trainer, top); /* has room */
            continue;
        }
        uint32_t left = (uint32_t)(top.pair >> 32), right = (uint32_t)top.pair;
        int64_t id = top.count > 0 ? add_token(trainer, left, right, 0) : OUT_OF_MEMORY;
        NewMerge merge = {left, right, (uint32_t)id};
        int status = id < 0 || grow(&trainer->merges, &trainer->merges_capacity,
                                    trainer->n_merges + 1, sizeof merge);
        if (!status)
            trainer->merges[trainer->n_merges++] = merge;
        for (int64_t i = 0; i < top.size && !status; i++)
            status = merge_in_word(trainer, top.words[i], merge);
        free(top.words);
        if (top.count < 1)
            break;
        if (status || push_touched(trainer))
            return OUT_OF_MEMORY;
        made++;
    }
    return made;
}

/* Copy the merges, left and right and new id each, to `out` (n, 3), if not NULL; return n. */
int64_t agi2_bpe_merges(const Trainer *trainer, uint32_t *out)
{
    if (out && trainer->n_merges)
        memcpy(out, trainer->merges, (size_t)trainer->n_merges * sizeof(NewMerge));
    return trainer->n_merges;
}
