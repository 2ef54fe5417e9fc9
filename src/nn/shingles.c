/* Hashes of all runs of 24 letters and digits of a text, of which those up to a threshold are kept.
   `data/dedup.py` defines them, and computes the same in NumPy. */

#include <stdint.h>

enum { SHINGLE = 24, RING = 32 };

/* What the next text needs of the one before: its last code points and their offsets. */
typedef struct {
    int64_t size, offsets[SHINGLE - 1];
    uint32_t codes[SHINGLE - 1];
} Carried;

/* The last code points, their offsets, and the hashes of 1, 2, 4 and 8 that begin there. */
typedef struct {
    uint32_t codes[RING];
    int64_t offsets[RING];
    uint64_t ones[RING], twos[RING], fours[RING], eights[RING];
    int64_t n, last_break;
} Ring;

/* Add a code point; return 1 and the hash of the shingle that it ends, if there is one. */
static inline int add(Ring *ring, uint32_t code, int64_t offset, uint64_t *hash)
{
    int64_t at = ring->n++;
#define HASH(of, back) ring->of[(at - (back)) & (RING - 1)]
    HASH(codes, 0) = code;
    HASH(offsets, 0) = offset;
    uint64_t one = code * UINT64_C(0x9E3779B97F4A7C15);
    HASH(ones, 0) = one ^ one >> 29;
    HASH(twos, 1) = HASH(ones, 1) * UINT64_C(0xBF58476D1CE4E5B9) + HASH(ones, 0);
    HASH(fours, 3) = HASH(twos, 3) * UINT64_C(0x94D049BB133111EB) + HASH(twos, 1);
    HASH(eights, 7) = HASH(fours, 7) * UINT64_C(0xD6E8FEB86659FD93) + HASH(fours, 3);
    if (!code)
        ring->last_break = at;
    if (at - ring->last_break < SHINGLE)
        return 0;
    const uint64_t factor = UINT64_C(0xFF51AFD7ED558CCD);
    uint64_t h = (HASH(eights, 23) * factor + HASH(eights, 15)) * factor + HASH(eights, 7);
    h = (h ^ h >> 32) * UINT64_C(0xC4CEB9FE1A85EC53);
    *hash = h ^ h >> 29;
    return 1;
#undef HASH
}

/* Hash the shingles of a text.

   text: (n,), code points; `position` is the offset of the first one.
   kept: (table_size + 1,), whether a code point counts; the last is for all beyond.
   carried: of the text before; replaced.
   hashes, starts, ends: (n,), of the shingles whose hash is at most `threshold`.
   Returns their number. */
int64_t agi2_shingles(const uint32_t *text, int64_t n, int64_t position, const uint8_t *kept,
                      uint32_t table_size, uint64_t threshold, Carried *carried, uint64_t *hashes,
                      int64_t *starts, int64_t *ends)
{
    Ring ring = {.last_break = -1};
    uint64_t hash;
    int64_t found = 0;
    for (int64_t i = 0; i < carried->size; i++)
        add(&ring, carried->codes[i], carried->offsets[i], &hash);
    for (int64_t i = 0; i < n; i++) {
        uint32_t code = text[i];
        if (!kept[code < table_size ? code : table_size])
            continue;
        code += code - 'A' < 26 ? 32 : 0;
        if (!add(&ring, code, position + i, &hash) || hash > threshold)
            continue;
        hashes[found] = hash;
        starts[found] = ring.offsets[(ring.n - SHINGLE) & (RING - 1)];
        ends[found++] = position + i + 1;
    }
    carried->size = ring.n < SHINGLE - 1 ? ring.n : SHINGLE - 1;
    for (int64_t i = 0; i < carried->size; i++) {
        int64_t at = (ring.n - carried->size + i) & (RING - 1);
        carried->codes[i] = ring.codes[at];
        carried->offsets[i] = ring.offsets[at];
    }
    return found;
}

int64_t agi2_carried_bytes(void) { return sizeof(Carried); }
