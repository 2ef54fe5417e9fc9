"""Inspect a corpus: sizes, tokens, languages, copies, odd characters, and what is skipped.

The documents are read once, as a stream: memory grows with their number, by some 100 bytes each.
"""

from __future__ import annotations

import heapq
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..console import Advance, show_progress
from ..errors import AGI2Error
from ..tokenizer import BPETokenizer, Tokenizer
from .characters import CharacterCounts, OddCharacters
from .chat_template import Message
from .conversation_figures import ConversationCounter, ConversationFigures
from .conversations import conversations_in
from .copies import copies_of_kept, find_copies
from .documents import Document, ReadOptions, ReadReport
from .languages import LanguageSampler
from .preprocess import complete_documents
from .readers import iterate_documents
from .scan import Scan, Scanner
from .sketches import SKETCH
from .sources import file_size, find_sources
from .text import pieces

LISTED = 5
"""Longest and shortest documents that are named."""
# Documents whose names are kept, to name copies.
_MAX_NAMES = 2**16
# Characters that a vocabulary is trained on.
_MAX_TRAINING_CHARACTERS = 2**23


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens of a corpus."""

    tokens: int
    vocabulary: int
    """Number of tokens in the vocabulary."""
    trained_on: int | None
    """Bytes of the corpus that the vocabulary was trained on; `None` if it was given."""


@dataclass(frozen=True)
class Copies:
    """Documents that are copies of documents before them."""

    documents: int
    characters: int
    examples: list[tuple[str, str]]
    """Names of some copies and, of exact ones, of the documents that they are copies of."""


@dataclass(frozen=True)
class LengthBin:
    """Documents of similar length."""

    first: int
    """Minimum number of characters."""
    last: int
    documents: int
    characters: int
    """Number of characters of all of them."""


@dataclass(frozen=True)
class Inspection:
    """What is known of a corpus."""

    report: ReadReport
    documents: int
    bytes: int
    characters: int
    tokens: TokenCount
    scripts: Counter[str]
    """Number of letters of each script."""
    languages: Counter[str]
    """Estimated number of characters of each language."""
    samples: int
    """Number of samples from which `languages` is estimated."""
    exact_copies: Copies
    near_copies: Copies
    odd: dict[str, OddCharacters]
    longest: list[tuple[int, str]]
    """Numbers of characters and names."""
    shortest: list[tuple[int, str]]
    median: int
    bins: list[LengthBin]
    conversations: ConversationFigures | None = None


def inspect_corpus(
    sources: list[str],
    options: ReadOptions,
    tokenizer: Tokenizer | None = None,
    conversations: Sequence[str] = (),
    preferences: Sequence[str] = (),
    seq_len: int = 1024,
) -> Inspection:
    """Read a corpus once and describe it.

    Args:
        sources: files, folders, glob patterns, URLs, pipes.
        options: how to read them.
        tokenizer: counts the tokens; by default, one that is trained on the beginning of the text.
        conversations: sources of conversations, of which the text is what is said.
        preferences: sources of pairs, of which the text is what is said in both conversations.
        seq_len: the context that conversations are compared with.

    Raises:
        AGI2Error: if a source is missing or cannot be read.
    """
    # What is skipped counts as read, too.
    groups = [each for each in (sources, list(conversations), list(preferences)) if each]
    found = (each for group in groups for each in find_sources(group, fetch=False, options=options))
    total = sum(each.skipped.bytes + sum(map(file_size, each.files)) for each in found)
    report = ReadReport()
    with show_progress("reading the text", is_determinate=total > 0) as advance:
        inspector = _Inspector(tokenizer)
        if sources:
            read = iterate_documents(sources, options, report, is_logged=False)
            for document in _advancing(read, report, total, advance):
                inspector.add(document)
        for group, are_pairs in ((conversations, False), (preferences, True)):
            if group:
                spoken = replace(options, are_conversations=True, are_pairs=are_pairs)
                read = iterate_documents(list(group), spoken, report, is_logged=False)
                for document in complete_documents(_advancing(read, report, total, advance)):
                    inspector.add_conversation(document)
    return inspector.finish(report, seq_len)


def _advancing(
    documents: Iterator[Document], report: ReadReport, total: int, advance: Advance
) -> Iterator[Document]:
    """Yield the documents; report the progress, as far as the files have been read."""
    for document in documents:
        yield document
        if total:
            read = sum(each.bytes_read + each.bytes_skipped for each in report.sources)
            advance(min(1.0, read / total))


class _Inspector:
    """Collects what is known of a stream of documents."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._sketches = tempfile.TemporaryFile()  # noqa: SIM115 (deleted with this object)
        self._scanner = Scanner(None, self._sketches.write)
        self._characters = CharacterCounts()
        self._languages = LanguageSampler()
        self._tokens = _TokenCounter(tokenizer)
        self._names: list[str] = []
        self._lengths = _Lengths()
        self._index = -1
        self._spoken, self._spoken_bytes = array("q"), 0
        """Number of characters that are said in each conversation, and of all UTF-8 bytes."""

    def add(self, document: Document) -> None:
        """Add a document, or the next piece of it."""
        self._scanner.add(document.text, document.continues)
        self._tokens.add(document.text)
        self._add(document)

    def add_conversation(self, document: Document) -> None:
        """Add a complete conversation or pair, of which the text is what is said."""
        conversations = conversations_in(document.text)
        said = "\n\n".join(each.content for messages in conversations for each in messages)
        self._scanner.add(document.text, is_conversation=True)
        for messages in conversations:
            self._tokens.add_conversation(document.source, messages)
        self._spoken.append(len(said))
        self._spoken_bytes += len(said.encode("utf-8", "replace"))
        for piece in pieces(replace(document, text=said)):
            self._add(piece)

    def _add(self, document: Document) -> None:
        text, name = document.text, document.source
        if not document.continues:
            self._index += 1
            if len(self._names) < _MAX_NAMES:
                self._names.append(name)
        self._characters.add(text, self._index, name)
        self._languages.add(text)
        self._lengths.add(len(text), name, document.continues)

    def _as_said(self, scan: Scan) -> Scan:
        """Return the scan with the lengths of what is said in conversations, not of their JSON."""
        characters = scan.characters.copy()
        characters[len(scan) - len(self._spoken) :] = self._spoken
        return replace(scan, characters=characters)

    def finish(self, report: ReadReport, seq_len: int) -> Inspection:
        """Return what is known after the last document."""
        if self._index < 0:
            raise AGI2Error("the sources contain no document")
        scan = self._as_said(self._scanner.finish())
        texts = len(scan) - len(self._spoken)
        self._characters.finish()
        longest, shortest = self._lengths.finish()
        self._sketches.flush()
        sketches = np.memmap(self._sketches, SKETCH, "r")
        is_first, pairs = find_copies(scan, np.ones(len(scan), bool), sketches)
        near = copies_of_kept(*pairs, len(scan))
        return Inspection(
            report=report,
            documents=len(scan),
            bytes=int(scan.sizes[:texts].sum()) + self._spoken_bytes,
            characters=int(scan.characters.sum()),
            tokens=self._tokens.finish(),
            scripts=self._characters.scripts,
            languages=self._languages.characters,
            samples=self._languages.samples,
            exact_copies=self._copies(scan, ~is_first),
            near_copies=self._copies(scan, near),
            odd={kind: odd for kind, odd in self._characters.odd.items() if odd.count},
            longest=longest,
            shortest=shortest,
            median=int(np.median(scan.characters)),
            bins=_length_bins(scan.characters),
            conversations=self._tokens.conversations.finish(seq_len),
        )

    def _copies(self, scan: Scan, mask: np.ndarray) -> Copies:
        examples = []
        for index in np.flatnonzero(mask)[:LISTED].tolist():
            original = int(scan.originals[index])
            known = self._name(original) if original != index else ""
            examples.append((self._name(index), known))
        return Copies(int(mask.sum()), int(scan.characters[mask].sum()), examples)

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"document {index + 1:,}"


class _Lengths:
    """Keeps the names of the longest and the shortest documents."""

    def __init__(self) -> None:
        self._longest: list[tuple[int, int, str]] = []
        self._shortest: list[tuple[int, int, str]] = []
        self._length, self._name, self._count = 0, "", 0

    def add(self, length: int, name: str, continues: bool) -> None:
        """Add the length of a document, or of the next piece of it."""
        if not continues:
            self._end_document()
            self._length, self._name = 0, name
            self._count += 1
        self._length += length

    def _end_document(self) -> None:
        if not self._count:
            return
        for heap, length in ((self._longest, self._length), (self._shortest, -self._length)):
            heapq.heappush(heap, (length, -self._count, self._name))
            if len(heap) > LISTED:
                heapq.heappop(heap)

    def finish(self) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        """Return the longest documents, longest first, and the shortest, shortest first."""
        self._end_document()
        longest, shortest = (sorted(heap, reverse=True) for heap in (self._longest, self._shortest))
        return (
            [(length, name) for length, _, name in longest],
            [(-length, name) for length, _, name in shortest],
        )


class _TokenCounter:
    """Counts tokens; without a tokenizer, with one that is trained on the first documents."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[str] = []
        self._size = self._tokens = 0
        self._trained_on: int | None = None
        self._chats: list[tuple[int, str, list[Message]]] = []
        """Of each waiting conversation: the index of its first text, its name, its messages."""
        self.conversations = ConversationCounter()

    def add_conversation(self, name: str, messages: list[Message]) -> None:
        """Count the tokens of a conversation, of each message by itself."""
        self._chats.append((len(self._waiting), name, messages))
        self._waiting += (message.content for message in messages)
        self._size += sum(len(message.content) for message in messages)
        self._count_if_many()

    def add(self, text: str) -> None:
        """Count the tokens of a document, or of the next piece of it."""
        self._waiting.append(text)
        self._size += len(text)
        self._count_if_many()

    def _count_if_many(self) -> None:
        limit = _BATCH_CHARACTERS if self._tokenizer is not None else _MAX_TRAINING_CHARACTERS
        if self._size >= limit:
            self._count()

    def _count(self) -> None:
        if self._tokenizer is None:
            # As a run with vocab_size = "auto" would train it on this much text.
            self._tokenizer = BPETokenizer("auto")
            self._tokenizer.fit(self._waiting)
            self._trained_on = sum(len(text.encode("utf-8", "replace")) for text in self._waiting)
        ids, offsets = self._tokenizer.encode_batch(self._waiting)
        self._tokens += len(ids)
        sizes = np.diff(offsets).tolist()
        for first, name, messages in self._chats:
            own = sizes[first : first + len(messages)]
            self.conversations.add(name, messages, own, self._tokenizer)
        self._waiting, self._chats, self._size = [], [], 0

    def finish(self) -> TokenCount:
        """Return the count after the last document."""
        self._count()
        assert self._tokenizer is not None
        return TokenCount(self._tokens, self._tokenizer.vocab_size, self._trained_on)


_BATCH_CHARACTERS = 2**20


def _length_bins(lengths: np.ndarray) -> list[LengthBin]:
    """Return the documents by their numbers of characters, (D,), in bins that grow with these."""
    largest = int(lengths.max())
    edges = _edges(largest, (1, 2, 5))
    if _span(lengths, edges) > _MAX_BINS:
        edges = _edges(largest, (1,))
    numbers = np.searchsorted(edges, lengths, "right") - 1
    documents = np.bincount(numbers, minlength=len(edges))
    characters = np.bincount(numbers, lengths, len(edges)).astype(np.int64)
    first, last = int(numbers.min()), int(numbers.max())
    return [
        LengthBin(
            int(edges[bin_]), int(edges[bin_ + 1]) - 1, int(documents[bin_]), int(characters[bin_])
        )
        for bin_ in range(first, last + 1)
    ]


_MAX_BINS = 14


def _edges(largest: int, steps: tuple[int, ...]) -> np.ndarray:
    """Return bin edges 1, 2, 5, 10, ... (for steps 1, 2, 5) to above the largest length."""
    decades = range(len(str(largest)) + 1)
    return np.array([step * 10**decade for decade in decades for step in steps])


def _span(lengths: np.ndarray, edges: np.ndarray) -> int:
    first, last = np.searchsorted(edges, [lengths.min(), lengths.max()], "right")
    return int(last - first) + 1
