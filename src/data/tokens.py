"""Documents to token ids, and back to a number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..tokenizer import Tokenizer
from .shards import ShardedTokens
from .text_store import Piece


def tokenize(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Encode documents into one token array, separated by the end-of-text token.

    Args:
        documents: the texts, encoded one at a time.
        tokenizer: a fitted tokenizer.

    Returns:
        Token ids, (N,), of the tokenizer's `dtype` (uint16 or uint32).
    """
    separator = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    parts: list[np.ndarray] = []
    for document in documents:
        parts += [tokenizer.encode_array(document), separator]
    return np.concatenate(parts[:-1]) if parts else np.array([], dtype=tokenizer.dtype)


def encode_pieces(
    pieces: Iterable[Piece], tokenizer: Tokenizer
) -> Iterator[list[tuple[Piece, np.ndarray]]]:
    """Encode the pieces of a corpus in batches.

    Yields:
        Pieces with their token ids; a batch ends where the text can be read from later.
    """
    batch: list[tuple[Piece, np.ndarray]] = []
    size = 0
    for piece in pieces:
        batch.append((piece, tokenizer.encode_array(piece.text)))
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS and piece.end is not None:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_BATCH_CHARACTERS = 2**20


def count_bytes(tokens: np.ndarray | ShardedTokens, tokenizer: Tokenizer) -> int | None:
    """Count the UTF-8 bytes of the text that tokens decode to, as for bits per byte.

    Args:
        tokens: token ids, (N,); of shards, the figures that were written with them are used.
        tokenizer: the tokenizer of these ids.

    Returns:
        The number of bytes, or `None` if a token is `<unk>`, whose text is not known.
    """
    if isinstance(tokens, ShardedTokens):
        return None if tokens.figures.unknown else tokens.figures.text_bytes
    unknown = tokenizer.unknown
    if unknown is not None and (tokens == unknown).any():
        return None
    return int(tokenizer.byte_lengths()[tokens].sum())
