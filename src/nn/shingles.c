/* What a pass over a text computes of its documents, which come in pieces of UTF-8: SHA-256 hashes,
   and the hashes of all runs of 24 letters and digits, of which those up to a threshold are kept.
   `data/dedup.py` and `data/sketches.py` define the latter, and compute the same in NumPy. */

#include "sha256.h"

enum { SHINGLE = 24, BLOCK = 1024 };
enum { BINS = 128, BIN_SHIFT = 57, BANDS = 16, ROWS = 5, CODES = 15 };
enum { SKETCH_BYTES = 4 * BANDS + BINS / 2 };

/* What the next piece of a document needs of those before; all zeros at first. */
typedef struct {
    int64_t document, characters;
    Sha256 hash;
    /* Of up to BLOCK + SHINGLE letters and digits: the last ones of which shingles were hashed, and
       new ones. */
    int64_t n, offsets[BLOCK + SHINGLE];
    uint32_t codes[BLOCK + SHINGLE];
} Scan;

/* Where to put shingles; see agi2_scan. */
typedef struct {
    uint64_t threshold, *minima, *hashes;
    int64_t n, *documents, *starts, *ends;
} Found;

/* Hash the shingles of a block, and keep its last code points. Hashes of 2, 4 and 8 code points are
   combined by doubling, then three of 8. */
static void end_block(Scan *scan, Found *found)
{
    uint64_t h[BLOCK + SHINGLE];
    int64_t n = scan->n, shingles = n - SHINGLE + 1;
    if (shingles <= 0)
        return;
    for (int64_t i = 0; i < n; i++) {
        h[i] = scan->codes[i] * UINT64_C(0x9E3779B97F4A7C15);
        h[i] ^= h[i] >> 29;
    }
    for (int64_t i = 0; i < n - 1; i++)
        h[i] = h[i] * UINT64_C(0xBF58476D1CE4E5B9) + h[i + 1];
    for (int64_t i = 0; i < n - 3; i++)
        h[i] = h[i] * UINT64_C(0x94D049BB133111EB) + h[i + 2];
    for (int64_t i = 0; i < n - 7; i++)
        h[i] = h[i] * UINT64_C(0xD6E8FEB86659FD93) + h[i + 4];
    uint64_t *minima = found->minima ? found->minima + BINS * scan->document : NULL;
    for (int64_t i = 0; i < shingles; i++) {
        const uint64_t factor = UINT64_C(0xFF51AFD7ED558CCD);
        uint64_t hash = (h[i] * factor + h[i + 8]) * factor + h[i + 16];
        hash = (hash ^ hash >> 32) * UINT64_C(0xC4CEB9FE1A85EC53);
        hash ^= hash >> 29;
        if (minima && hash < minima[hash >> BIN_SHIFT])
            minima[hash >> BIN_SHIFT] = hash;
        if (hash > found->threshold)
            continue;
        found->hashes[found->n] = hash;
        found->documents[found->n] = scan->document;
        found->starts[found->n] = scan->offsets[i];
        found->ends[found->n++] = scan->offsets[i + SHINGLE - 1] + 1;
    }
    scan->n = SHINGLE - 1;
    memmove(scan->codes, scan->codes + shingles, (SHINGLE - 1) * sizeof *scan->codes);
    memmove(scan->offsets, scan->offsets + shingles, (SHINGLE - 1) * sizeof *scan->offsets);
}

/* Return the code point at p < end, and move p behind it, at most to the end. */
static inline uint32_t next_code(const uint8_t **p, const uint8_t *end)
{
    uint32_t code = *(*p)++;
    if (code < 0x80)
        return code;
    int more = code < 0xE0 ? 1 : code < 0xF0 ? 2 : 3;
    code &= 0x3Fu >> more;
    for (; more && *p < end; more--)
        code = code << 6 | (*(*p)++ & 0x3F);
    return code;
}

/* Scan pieces of documents.

   text: (size,), the pieces one after the other; `characters` (n,) has the number of those of each.
   documents: (n,), the document of each, in ascending order. The first one is 0, or 1 if it does
       not continue the last piece of the call before, whose document is 0 now.
   kept: (table_size + 1,), whether a code point counts; the last is for all beyond.
   sizes: (n,), the number of bytes of each piece.
   digests: (n, 16), the beginning of the hash of each document up to the end of each piece.
   minima: (documents, BINS), the smallest hash in each range of the shingles of each document, of
       which those of the pieces before are there; or NULL.
   hashes, of, starts, ends: as many as there are characters: of the shingles up to `threshold`,
       hash and document, and the offsets in it of their first and after their last character.
   Returns their number. */
int64_t agi2_scan(Scan *scan, const uint8_t *text, int64_t size, const int64_t *characters,
                  const int64_t *documents, int64_t n, const uint8_t *kept, uint32_t table_size,
                  uint64_t threshold, int64_t *sizes, uint8_t *digests, uint64_t *minima,
                  uint64_t *hashes, int64_t *of, int64_t *starts, int64_t *ends)
{
    const uint8_t *p = text, *end = text + size;
    Found found = {threshold, minima, hashes, 0, of, starts, ends};
    scan->document = 0;
    for (int64_t i = 0; i < n; i++) {
        if (documents[i] != scan->document) {
            scan->document = documents[i];
            scan->n = scan->characters = 0;
            scan->hash.size = 0;
        }
        const uint8_t *begin = p;
        for (int64_t left = characters[i]; left && p < end; left--) {
            uint32_t code = next_code(&p, end);
            scan->codes[scan->n] = code + (code - 'A' < 26 ? 32 : 0);
            scan->offsets[scan->n] = scan->characters++;
            scan->n += kept[code < table_size ? code : table_size] != 0;
            if (!code) { /* no shingle spans it */
                scan->n -= kept[0] != 0;
                end_block(scan, &found);
                scan->n = 0;
            } else if (scan->n == BLOCK + SHINGLE)
                end_block(scan, &found);
        }
        end_block(scan, &found);
        sizes[i] = p - begin;
        sha256_add(&scan->hash, begin, (uint64_t)sizes[i]);
        sha256_begin_of(&scan->hash, digests + 16 * i);
    }
    return found.n;
}

/* Hash by the instructions of the processor for SHA-256, or without them. Return whether they are
   used: not all processors have them. Not to be called during a scan. */
int32_t agi2_use_sha_instructions(int32_t is_wanted)
{
    sha256_uses_instructions = is_wanted && sha256_finds_instructions();
    return sha256_uses_instructions;
}

int64_t agi2_scan_bytes(void) { return sizeof(Scan); }

/* Return the code of the smallest hash in a range, in 4 bits. */
static inline uint8_t code_of(uint64_t minimum)
{
    return minimum == UINT64_MAX ? 0 : (uint8_t)(((minimum & 0xFFFF) * CODES >> 16) + 1);
}

/* Make the sketches, (n, SKETCH_BYTES), of documents from the smallest hashes of their shingles in
   each range, (n, BINS); UINT64_MAX if there are none. */
void agi2_sketches(const uint64_t *minima, int64_t n, uint8_t *sketches)
{
    for (; n--; minima += BINS, sketches += SKETCH_BYTES) {
        for (int band = 0; band < BANDS; band++) {
            uint64_t hash = 0, all = UINT64_MAX;
            for (int i = band * ROWS; i < (band + 1) * ROWS; i++) {
                all &= minima[i];
                hash = (hash ^ minima[i]) * UINT64_C(0xFF51AFD7ED558CCD);
                hash ^= hash >> 32;
            }
            uint32_t value = (uint32_t)(hash >> 32);
            value = all == UINT64_MAX ? 0 : value ? value : 1;
            for (int i = 0; i < 4; i++)
                sketches[4 * band + i] = (uint8_t)(value >> 8 * i);
        }
        for (int bin = 0; bin < BINS; bin += 2)
            sketches[4 * BANDS + bin / 2] =
                (uint8_t)(code_of(minima[bin]) << 4 | code_of(minima[bin + 1]));
    }
}
