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

static int count_word(Trainer *trainer, const uint8_t *string, uint32_t size)
{
    if (needs_room(&trainer->word_table, trainer->n_words) &&
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
    int is_full = is_above(trainer, trainer->max_words, trainer->max_bytes);
    return is_full ? forget_rare(trainer) : 0;
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
