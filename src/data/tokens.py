"""Documents to token ids, and back to a number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..tokenization.threads import map_in_order
from ..tokenizer import Tokenizer
from ..utils import usable_cores
from .chat_template import ChatTemplate
from .conversation_tokens import encode_conversations
from .shards import ShardedTokens, ShardWriter
from .text_store import Batch


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


def encode_batches(
    batches: Iterable[Batch], tokenizer: Tokenizer
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """Encode the batches of a corpus on all cores.

    Yields:
        In order, each batch, the ids of its texts, (N,), and offsets, (texts + 1,), as
        `Tokenizer.encode_utf8` gives them.
    """

    template = ChatTemplate.find(tokenizer)

    def encode(batch: Batch) -> tuple[Batch, np.ndarray, np.ndarray]:
        if batch.are_conversations:
            assert template is not None
            return batch, *encode_conversations(batch.texts, template)
        return batch, *tokenizer.encode_utf8(batch.data, batch.ends)

    return map_in_order(encode, batches, usable_cores())


def write_batch(
    writers: list[ShardWriter], batch: Batch, ids: np.ndarray, offsets: np.ndarray
) -> None:
    """Write an encoded batch to the shards: the first writer's are the training text.

    An end-of-text token separates documents. The first training document follows one, too: an
    empty prompt starts with it.
    """
    counts, is_held_out = np.diff(offsets), np.array(batch.is_held_out, bool)
    begins = np.ones(len(counts), bool)
    begins[:1] = not batch.continues
    for writer, is_own in zip(writers, (~is_held_out, is_held_out), strict=True):
        if not is_own.any():
            continue
        own = ids if is_own.all() else ids[np.repeat(is_own, counts)]
        starts = (np.cumsum(counts[is_own]) - counts[is_own])[begins[is_own]]
        is_first = writer is writers[1] and not writer.figures.documents
        end_of_text = writer.tokenizer.end_of_text
        tokens = np.insert(own, starts[1:] if is_first else starts, end_of_text)
        writer.write(tokens, starts + np.arange(len(starts)) + (not is_first))
        writer.figures.conversations += len(starts) if batch.are_conversations else 0


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
