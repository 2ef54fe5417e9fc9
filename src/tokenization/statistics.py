"""How a tokenizer encodes a text: compression, and which tokens occur."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .base import Tokenizer

# Characters that are encoded at a time.
_BATCH_CHARACTERS = 1 << 23


@dataclass(frozen=True)
class TextStatistics:
    """Sizes of a text, and how often each token occurs in it."""

    bytes: int
    """Bytes of UTF-8, before the tokenizer's preprocessing."""
    words: int
    """Words separated by white space."""
    counts: np.ndarray
    """Occurrences of each token, (V,)."""
    special: frozenset[int]
    """Ids of special tokens, which no text contains."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.counts.sum())

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes of text per token: the higher, the better the text is compressed."""
        return self.bytes / max(1, self.tokens)

    @property
    def tokens_per_word(self) -> float:
        """Mean tokens per word, also called fertility."""
        return self.tokens / max(1, self.words)

    @property
    def unused(self) -> list[int]:
        """Ids of tokens that do not occur in the text, special tokens excluded."""
        return [id for id in np.flatnonzero(self.counts == 0).tolist() if id not in self.special]


def measure(tokenizers: Sequence[Tokenizer], texts: Iterable[str]) -> list[TextStatistics]:
    """Encode texts with each tokenizer and count; the texts are read once, in batches.

    Raises:
        AGI2Error: if a tokenizer has no vocabulary.
    """
    counts = [np.zeros(tokenizer.vocab_size, np.int64) for tokenizer in tokenizers]
    size = words = 0
    for batch in _batches(texts):
        size += sum(len(text.encode("utf-8", "replace")) for text in batch)
        words += sum(len(text.split()) for text in batch)
        for tokenizer, total in zip(tokenizers, counts, strict=True):
            total += np.bincount(tokenizer.encode_batch(batch)[0], minlength=len(total))
    return [
        TextStatistics(size, words, total, frozenset(tokenizer.special_tokens.values()))
        for tokenizer, total in zip(tokenizers, counts, strict=True)
    ]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """Return the ids of the tokens with the most bytes, the longest first."""
    lengths = tokenizer.byte_lengths()
    return np.argsort(-lengths, kind="stable")[:count].tolist()
