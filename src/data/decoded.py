"""The text of tokens on disk, decoded when it is asked for."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

from ..tokenizer import Tokenizer
from .shards import ShardedTokens


class DecodedDocuments(Sequence[str]):
    """The text of the documents in shards, decoded when it is asked for.

    Args:
        tokens: the shards.
        tokenizer: their tokenizer.
    """

    def __init__(self, tokens: ShardedTokens, tokenizer: Tokenizer) -> None:
        self._tokens, self._tokenizer = tokens, tokenizer

    def __len__(self) -> int:
        return self._tokens.figures.documents

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        return "".join(self.parts(index))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def parts(self, index: int) -> Iterator[str]:
        """Yield the text of a document in parts of bounded size."""
        starts = self._tokens.document_starts
        start = int(starts[index])
        # The next document follows an end-of-text token.
        end = int(starts[index + 1]) - 1 if index + 1 < len(self) else len(self._tokens)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for at in range(start, end, _DECODED_TOKENS):
            ids = self._tokens[at : min(at + _DECODED_TOKENS, end)].tolist()
            yield decode(b"".join(map(self._bytes.__getitem__, ids)))
        yield decode(b"", True)

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each token: special tokens have none."""
        return list(map(self._tokenizer.token_bytes, range(self._tokenizer.vocab_size)))


_DECODED_TOKENS = 2**16  # tokens decoded at a time


def first_characters(documents: Sequence[str], limit: int) -> list[str]:
    """Return the first documents, of `limit` characters in total; the last one may be cut."""
    kept: list[str] = []
    for index in range(len(documents)):
        if limit <= 0:
            break
        if isinstance(documents, DecodedDocuments):
            parts = documents.parts(index)
        else:
            parts = iter([documents[index]])
        document = ""
        while len(document) < limit and (part := next(parts, None)) is not None:
            document += part
        kept.append(document[:limit])
        limit -= len(kept[-1])
    return kept
