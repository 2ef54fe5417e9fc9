"""How predictable a text is: the cross-entropy of a trigram model on held-out text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..console import silent
from ..data.splits import split_documents
from ..tokenizer import BPETokenizer

# As many tokens as a text of 300 kB can teach; with 4,096 the estimate is within 1% of this one.
_VOCABULARY = 2048
_HELD_OUT = 0.1


def text_entropy(documents: Sequence[str], seed: int) -> float:
    """Estimate the entropy of a text: bits per byte of a trigram model on a held-out tenth.

    The tenth is what a run holds out of this text, so that it is as unlike the rest as the
    validation text will be. Of a text of which nothing can be held out, the model is evaluated on
    what it is made of.

    Args:
        documents: the text, a sample of some MB.
        seed: of the run, which chooses the documents that are held out (see `split_documents`).
    """
    with silent():
        train, held_out = split_documents(documents, _HELD_OUT, seed)
        held_out = [text for text in held_out if text] or train
        tokenizer = BPETokenizer(_VOCABULARY)
        tokenizer.fit(train)
        known, rest = (tokenizer.encode_batch(texts)[0] for texts in (train, held_out))
    text_bytes = sum(len(text.encode("utf-8", "replace")) for text in held_out)
    return trigram_bits(known, rest, tokenizer.vocab_size) / max(text_bytes, 1)


def trigram_bits(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """Return the bits that a trigram model of tokens needs for others, which follow them.

    Interpolated Kneser-Ney smoothing (Kneser and Ney, 1995; Chen and Goodman, 1999): trigrams,
    bigrams and unigrams are combined, each with a discount of its own by their numbers of n-grams
    that occur once and twice. A bigram counts as often as there are tokens that it follows.

    Args:
        train: token ids, (N,).
        held_out: token ids, (M,).
        vocab_size: V; ids are below it.
    """
    count = len(held_out)
    if not count:
        return 0.0
    # Each token has two before it, as the text begins with two of another token.
    tokens = np.concatenate([[vocab_size] * 2, train, held_out]).astype(np.int64)
    # grams[n] numbers the n-grams by their ends, equal ones alike: grams[n][1:] are those at the
    # ends of grams[n + 1], and grams[n][:-1] the contexts of grams[n + 1].
    grams = [np.zeros(len(tokens) + 1, np.int64), tokens]
    for n in (2, 3):
        pairs = grams[n - 1][:-1] * (vocab_size + 1) + tokens[n - 1 :]
        grams.append(np.unique(pairs, return_inverse=True)[1])
    probability = np.full(count, 1 / vocab_size)
    for n in (1, 2, 3):
        ids, contexts = grams[n], grams[n - 1][:-1]
        if n == 3:
            counted = ids[:-count]
        else:
            distinct = np.unique(grams[n + 1][:-count], return_index=True)[1]
            counted = ids[1:][distinct]
        probability = _interpolate(probability, ids, contexts, counted)
    return float(-np.log2(probability).sum())


def _interpolate(
    lower: np.ndarray, ids: np.ndarray, contexts: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Return the probabilities, (M,), of the last M n-grams, given those of shorter ones.

    Args:
        lower: the probabilities of the shorter n-grams, (M,).
        ids: the numbers of all n-grams.
        contexts: those of their first n - 1 tokens.
        counted: the numbers of the n-grams to count.
    """
    counts = np.bincount(counted, minlength=ids.max() + 1)
    context_of = np.zeros(len(counts), np.int64)
    context_of[ids] = contexts
    totals, kinds = (np.bincount(context_of, weights=weights) for weights in (counts, counts > 0))
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    discount = (once + 1) / (once + 2 * twice + 2)  # 1 more than usual: neither 0 nor 1
    ids, contexts = ids[-len(lower) :], contexts[-len(lower) :]
    total = totals[contexts]
    share = np.maximum(counts[ids] - discount, 0) + discount * kinds[contexts] * lower
    return np.divide(share, total, out=lower.copy(), where=total > 0)
