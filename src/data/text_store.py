"""`TextStore`: the text of a corpus in one file, which is read in batches."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from ..tokenization.pieces import split_stream
from .conversations import said_in, turns_of
from .resemblance import MAX_COMPARED
from .scan import Scan
from .splits import Span, SplitPlan

BATCH_BYTES = 2**20
"""UTF-8 bytes of the documents of a batch, approximately; longer documents are read in pieces."""
_CHUNK_BYTES = 2**18
_LISTED = 2**14  # documents whose figures are Python objects at a time


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the text of a corpus."""

    document: int = 0
    character: int = 0
    """Offset in the document, in characters."""
    byte: int = 0
    """The same in UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts one after the other: training or held-out text of documents, or a piece of one."""

    data: bytes
    """The UTF-8 of all texts."""
    ends: list[int]
    """The end of each in `data`."""
    is_held_out: list[bool]
    """Whether each is."""
    continues: bool
    """Whether the first text continues the last one of the batch before."""
    end: Cursor
    """The position after them, from where the text can be read again."""
    are_conversations: bool = False
    """Whether the texts are conversations, which are not split; if not, none of them is one."""

    @property
    def texts(self) -> list[str]:
        """The texts."""
        return [self.data[start:stop].decode() for start, stop in pairwise([0, *self.ends])]


class TextStore:
    """The UTF-8 text of a corpus' documents, one after the other, in a file.

    Args:
        path: the file.
        scan: the scan of these documents.
        first_conversation: index of the first document that is a conversation, as are all after
            it; by default none is.
    """

    def __init__(self, path: Path, scan: Scan, first_conversation: int | None = None) -> None:
        self._path, self._sizes = path, scan.sizes
        self._first_conversation = len(scan) if first_conversation is None else first_conversation

    def batches(self, plan: SplitPlan, begin: Cursor | None = None) -> Iterator[Batch]:
        """Yield the text in batches, in order.

        A long document is cut where its tokens are those of the uncut document.

        Args:
            plan: which text is held out; text that is on neither side is left out.
            begin: the position to start at: the end of a batch.
        """
        at = begin or Cursor()
        with open(self._path, "rb") as file:
            file.seek(int(self._sizes[: at.document].sum()) + at.byte)
            while at.document < len(self._sizes):
                are_conversations = at.document >= self._first_conversation
                last = at.document + _LISTED
                if not are_conversations:
                    last = min(last, self._first_conversation)
                ends = np.cumsum(self._sizes[at.document : last])
                count = int(np.searchsorted(ends, BATCH_BYTES, "right"))
                count = max(count, int(are_conversations))
                following = Cursor(at.document + max(1, count))
                if count and not at.byte:
                    batch = _short_documents(file, ends[:count].tolist(), plan, at, following)
                    yield replace(batch, are_conversations=are_conversations)
                else:
                    (spans_of_one,) = plan.spans_of(at.document, following.document)
                    size = int(ends[0]) - at.byte
                    yield from _long_document(_Characters(file, size), spans_of_one, at)
                at = following

    def read(self, documents: np.ndarray) -> list[str | None]:
        """Return the texts of documents as `resemblance.ReadTexts` does."""
        ends = np.cumsum(self._sizes, dtype=np.int64)[documents].tolist()
        sizes = self._sizes[documents].tolist()
        texts: list[str | None] = []
        with open(self._path, "rb") as file:
            for document, end, size in zip(documents.tolist(), ends, sizes, strict=True):
                text = None
                if size <= MAX_COMPARED:
                    file.seek(end - size)
                    text = file.read(size).decode()
                    text = turns_of(text) if document >= self._first_conversation else text
                texts.append(text)
        return texts

    def conversations(self) -> Iterator[str]:
        """Yield the texts of all documents, which are conversations or pairs."""
        for batch in self.batches(SplitPlan(self._sizes, self._sizes)):
            yield from batch.texts

    def training_texts(self, plan: SplitPlan, advance: Callable[[float], None]) -> Iterator[str]:
        """Yield the training texts; call `advance` with the fraction of all text that was read."""
        done, total = 0, max(1, int(self._sizes.sum()))
        for batch in self.batches(plan):
            for text, is_held_out in zip(batch.texts, batch.is_held_out, strict=True):
                if not is_held_out:
                    yield from said_in(text) if batch.are_conversations else [text]
            done += len(batch.data)
            advance(done / total)


def _short_documents(
    file: BufferedReader, ends: list[int], plan: SplitPlan, begin: Cursor, end: Cursor
) -> Batch:
    data = file.read(ends[-1])
    sides = _sides_of_complete(plan, begin.document, end.document)
    if sides is not None:
        return Batch(data, ends, sides, False, end)
    texts, is_held_out, start = [], [], 0
    for stop, spans in zip(ends, plan.spans_of(begin.document, end.document), strict=True):
        text, start = data[start:stop], stop
        if len(spans) == 1 and spans[0][1] - spans[0][0] == len(text):  # all of it, in ASCII
            texts.append(text)
        elif spans:
            decoded = text.decode()
            texts += [decoded[first:last].encode() for first, last, _ in spans]
        is_held_out += [is_held for *_, is_held in spans]
    return Batch(b"".join(texts), list(accumulate(map(len, texts))), is_held_out, False, end)


def _sides_of_complete(plan: SplitPlan, first: int, last: int) -> list[bool] | None:
    """Return whether each of the documents from `first` to before `last` is held out.

    Returns:
        A list; `None` if one of them is empty, removed or split.
    """
    cuts, ends = plan.cuts[first:last], plan.characters[first:last]
    if not ends.all() or ((cuts > 0) & (cuts < ends)).any():
        return None
    if plan.removed is not None and plan.removed[first:last].any():
        return None
    if plan.exceptions and not plan.exceptions.keys().isdisjoint(range(first, last)):
        return None
    return (cuts <= 0).tolist()


class _Characters:
    """Reads a number of bytes of a file as characters.

    Args:
        file: the file.
        size: the number of bytes; all of them are read in the end.
    """

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file, self._size, self._text = file, size, ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def read(self, count: int) -> Iterator[str]:
        """Yield the next `count` characters in chunks."""
        while count:
            if not self._text:
                data = self._file.read(min(self._size, _CHUNK_BYTES))
                self._size -= len(data)
                self._text = self._decode(data)
            chunk, self._text = self._text[:count], self._text[count:]
            count -= len(chunk)
            yield chunk

    def skip(self) -> None:
        """Skip what is left."""
        self._file.seek(self._size, 1)


def _long_document(characters: _Characters, spans: list[Span], at: Cursor) -> Iterator[Batch]:
    position, byte = at.character, at.byte
    for start, end, is_held_out in spans:
        if end <= position:
            continue
        continues = position > start
        for text in split_stream(characters.read(end - position), BATCH_BYTES):
            position += len(text)
            data = text.encode()
            byte += len(data)
            reached = Cursor(at.document, position, byte)
            yield Batch(data, [len(data)], [is_held_out], continues, reached)
            continues = True
    characters.skip()
