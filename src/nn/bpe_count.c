/* Byte-level BPE: count the distinct words of a text, in bounded memory. */

#include "bpe_trainer.h"

/* Insert words of distinct strings into a new table. */
static int fill_table(Table *table, const Word *words, int64_t n)
{
    if (renew(table, n))
        return OUT_OF_MEMORY;
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = words[i].hash & table->mask;
        while (table->slots[at])
            at = (at + 1) & table->mask;
        table->slots[at] = (uint32_t)i + 1;
    }
    return 0;
}

/* Make a trainer that keeps at most `max_words` distinct words and `max_bytes` of them; NULL if
   there is no memory. */
Trainer *agi2_bpe_trainer(const uint8_t *kinds, int32_t is_gpt4, int32_t max_digits,
                          int64_t max_words, int64_t max_bytes)
{
    Trainer *trainer = calloc(1, sizeof *trainer);
    if (trainer) {
        trainer->splitter = (Splitter){kinds, is_gpt4, max_digits};
        trainer->max_words = max_words;
        trainer->max_bytes = max_bytes;
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

static inline int is_above(const Trainer *trainer, int64_t max_words, int64_t max_bytes)
{
    return trainer->n_words > max_words || trainer->n_bytes > max_bytes;
}

/* Forget words that occur less often than a minimum, which rises until half of the memory is free. */
static int forget_rare(Trainer *trainer)
{
    while (is_above(trainer, trainer->max_words / 2, trainer->max_bytes / 2)) {
        int64_t kept = 0, end = 0, least = INT64_MAX;
        for (int64_t i = 0; i < trainer->n_words; i++)
            least = trainer->words[i].count < least ? trainer->words[i].count : least;
        trainer->min_count = least > trainer->min_count ? least : trainer->min_count + 1;
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

static int add_word(Trainer *trainer, const uint8_t *string, uint32_t size, int64_t count)
{
    if (needs_room(&trainer->word_table, trainer->n_words) &&
        fill_table(&trainer->word_table, trainer->words, trainer->n_words))
        return OUT_OF_MEMORY;
    uint64_t hash = hash_bytes(string, size);
    uint32_t *slot = find_string(&trainer->word_table, trainer->words, trainer->bytes, string, size,
                                 (uint32_t)hash);
    if (*slot) {
        trainer->words[*slot - 1].count += count;
        return 0;
    }
    int64_t n = trainer->n_words, at = trainer->n_bytes;
    if (grow(&trainer->words, &trainer->words_capacity, n + 1, sizeof(Word)) ||
        grow(&trainer->bytes, &trainer->bytes_capacity, at + size, 1))
        return OUT_OF_MEMORY;
    memcpy(trainer->bytes + at, string, size);
    trainer->words[n] = (Word){(uint64_t)at, count, size, (uint32_t)hash};
    trainer->n_bytes += size;
    *slot = (uint32_t)++trainer->n_words;
    int is_full = is_above(trainer, trainer->max_words, trainer->max_bytes);
    return is_full ? forget_rare(trainer) : 0;
}

/* Enter a word that was counted lately into the table. */
static int add_recent(Trainer *trainer, const Recent *recent)
{
    uint8_t bytes[sizeof recent->parts];
    memcpy(bytes, recent->parts, sizeof bytes);
    return recent->size ? add_word(trainer, bytes, recent->size, recent->count) : 0;
}

/* Count a word, in a cache that most words of a text are in; `last` is the end of the text. */
static int count_word(Trainer *trainer, const uint8_t *string, uint32_t size, const uint8_t *last)
{
    enum { BYTES = sizeof trainer->recent[0].parts };
    static const uint64_t ones[6] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};
    uint64_t parts[3] = {0}, masks[3];
    if (size > BYTES)
        return add_word(trainer, string, size, 1);
    if (last - string >= BYTES) {
        memcpy(parts, string, BYTES);
        memcpy(masks, (const uint8_t *)ones + BYTES - size, BYTES);
        for (int i = 0; i < 3; i++)
            parts[i] &= masks[i];
    } else
        memcpy(parts, string, size);
    uint64_t hash = mix(parts[0] ^ mix(parts[1] ^ parts[2] << 1 ^ size));
    Recent *entry = &trainer->recent[hash >> 9 & ((1 << RECENT_BITS) - 1)];
    if (entry->parts[0] == parts[0] && entry->parts[1] == parts[1] &&
        entry->parts[2] == parts[2] && entry->size == size && entry->count < UINT32_MAX) {
        entry->count++;
        return 0;
    }
    if (add_recent(trainer, entry))
        return OUT_OF_MEMORY;
    memcpy(entry->parts, parts, sizeof parts);
    entry->size = size;
    entry->count = 1;
    return 0;
}

/* Count the words of pieces of text, each as `weight` ones: `ends` (n,) has the end of each. Returns
   0 or OUT_OF_MEMORY. */
int64_t agi2_bpe_count(Trainer *trainer, const uint8_t *text, const int64_t *ends, int64_t n,
                       int64_t weight)
{
    const uint8_t *p = text, *last = n ? text + ends[n - 1] : text;
    for (int64_t i = 0; i < n; i++)
        for (const uint8_t *end = text + ends[i], *next; p < end; p = next) {
            next = word_end(&trainer->splitter, p, end);
            uint32_t size = (uint32_t)(next - p);
            if (weight > 1 ? add_word(trainer, p, size, weight)
                           : count_word(trainer, p, size, last))
                return OUT_OF_MEMORY;
        }
    return 0;
}

/* End the count, and no longer limit the words: for a text of limited size. Returns up to which
   count words have been forgotten, or OUT_OF_MEMORY. */
int64_t agi2_bpe_end_count(Trainer *trainer)
{
    for (int64_t i = 0; i < 1 << RECENT_BITS; i++)
        if (add_recent(trainer, &trainer->recent[i]))
            return OUT_OF_MEMORY;
    memset(trainer->recent, 0, sizeof trainer->recent);
    trainer->max_words = trainer->max_bytes = INT64_MAX;
    return trainer->min_count;
}
