/* Byte-level BPE: merge pairs of adjacent tokens in the words that `bpe_count.c` has counted.

   The most frequent pair is merged again and again (of several, that of the lowest ids). A heap has
   the pairs with the words where each occurs, so that a merge costs time in proportion to its own
   words. */

#include "bpe_trainer.h"

enum { SMALLEST_BLOCK = 6 }; /* words of the smallest block that malloc has */

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
    if (renew(table, trainer->n_pairs))
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
    if (needs_room(table, trainer->n_pairs) && refill_pairs(trainer))
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

/* Append a word to those of a pair. */
static int append_word(Pair *pair, uint32_t word)
{
    if (pair->size == pair->capacity) {
        uint32_t capacity = pair->capacity ? 2 * pair->capacity : SMALLEST_BLOCK;
        uint32_t *moved = realloc(pair->words, capacity * sizeof word);
        if (!moved)
            return OUT_OF_MEMORY;
        pair->words = moved;
        pair->capacity = capacity;
    }
    pair->words[pair->size++] = word;
    return 0;
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
    if (!pair->size) {
        if (grow(&trainer->touched, &trainer->touched_capacity, trainer->n_touched + 1,
                 sizeof *trainer->touched))
            return OUT_OF_MEMORY;
        trainer->touched[trainer->n_touched++] = (uint32_t)index;
    }
    return append_word(pair, word);
}

/* Move the pairs that have grown into the heap, with their words. Those that occur too rarely are
   left out: there are many, and they are hardly ever merged. */
static int push_touched(Trainer *trainer)
{
    for (int64_t i = 0; i < trainer->n_touched; i++) {
        uint32_t index = trainer->touched[i];
        Pair *pair = &trainer->pairs[index];
        if (pair->count < trainer->least_count)
            free(pair->words);
        else {
            uint32_t *shrunk = realloc(pair->words, pair->size * sizeof *shrunk);
            pair->words = shrunk ? shrunk : pair->words;
            Candidate candidate = {pair->count, pair->pair, pair->words, pair->size, index};
            if (push(trainer, candidate))
                return OUT_OF_MEMORY;
        }
        pair->words = NULL;
        pair->size = pair->capacity = 0;
    }
    trainer->n_touched = 0;
    return 0;
}

/* Count the pairs of all words, and fill the heap with those that occur so often. */
static int index_pairs(Trainer *trainer, int64_t least_count)
{
    while (trainer->heap_size)
        free(trainer->heap[--trainer->heap_size].words);
    for (int64_t i = 0; i < trainer->n_pairs; i++)
        trainer->pairs[i].count = 0;
    trainer->least_count = least_count;
    for (int64_t i = 0; i < trainer->n_words; i++) {
        const Word *word = &trainer->words[i];
        const uint32_t *tokens = trainer->tokens + word->offset;
        for (uint32_t j = 1; j < word->size; j++)
            if (change_pair(trainer, tokens[j - 1], tokens[j], word->count, (uint32_t)i))
                return OUT_OF_MEMORY;
    }
    return push_touched(trainer);
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
    if (agi2_bpe_end_count(trainer) < 0 ||
        renew(&trainer->vocabulary_table, vocab_size) ||
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
    free(trainer->bytes);
    free(trainer->word_table.slots);
    trainer->bytes = NULL;
    trainer->word_table.slots = NULL;
    return index_pairs(trainer, 2);
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

/* Merge a pair in the words of a candidate. */
static int merge_pair(Trainer *trainer, const Candidate *top)
{
    uint32_t left = (uint32_t)(top->pair >> 32), right = (uint32_t)top->pair;
    int64_t id = add_token(trainer, left, right, 0);
    NewMerge merge = {left, right, (uint32_t)id};
    if (id < 0 ||
        grow(&trainer->merges, &trainer->merges_capacity, trainer->n_merges + 1, sizeof merge))
        return OUT_OF_MEMORY;
    trainer->merges[trainer->n_merges++] = merge;
    for (uint32_t i = 0; i < top->size; i++)
        if (merge_in_word(trainer, top->words[i], merge))
            return OUT_OF_MEMORY;
    return push_touched(trainer);
}

/* Make up to `most` merges. Returns their number, less than `most` at the end, or OUT_OF_MEMORY. */
int64_t agi2_bpe_merge(Trainer *trainer, int64_t vocab_size, int64_t most)
{
    int64_t made = 0;
    while (made < most && trainer->n_tokens < vocab_size) {
        if (!trainer->heap_size) {
            if (trainer->least_count == 1)
                break;
            if (index_pairs(trainer, 1))
                return OUT_OF_MEMORY;
            continue;
        }
        Candidate top = pop(trainer);
        int64_t count = trainer->pairs[top.index].count;
        if (top.count != count && count >= trainer->least_count) {
            top.count = count;
            push(trainer, top); /* has the capacity */
            continue;
        }
        int status = 0;
        if (top.count == count) {
            status = merge_pair(trainer, &top);
            made++;
        }
        free(top.words);
        if (status)
            return OUT_OF_MEMORY;
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
