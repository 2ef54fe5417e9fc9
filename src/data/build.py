"""Build a tokenized corpus: sources -> text on disk -> split -> tokenizer -> shards.

Each step leaves a file, and after an interruption the next process continues behind the last one:
`text.bin` and `scan.npz` (the text), `tokenizer.json`, the shards with `progress.json`. The last
file is `corpus.json`; with it the corpus is complete, and the text is deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..console import recorded_log, show_progress
from ..errors import AGI2Error, one_line
from ..nn.heap import return_freed_memory
from ..tokenizer import FILE_NAME as TOKENIZER
from ..tokenizer import Tokenizer
from ..utils import log, read_json_object, sync_file, write_text
from .corpus_options import CorpusOptions, TokenizerSource, key_of
from .corpus_plan import plan_groups
from .documents import ReadReport
from .readers import iterate_documents
from .scan import Scan, Scanner, load_scan, save_scan
from .shards import ShardedTokens, ShardWriter, SplitFigures
from .sketches import SKETCH, open_sketches
from .splits import SplitPlan
from .text_store import Cursor, TextStore
from .token_cache import (
    FILE_HASHES,
    FileHashes,
    Files,
    convert_cache_errors,
    delete_files,
    delete_unused,
    exclusive,
    find_cache,
    identify,
)
from .tokens import encode_batches, write_batch

CORPUS = "corpus.json"
PROGRESS = "progress.json"
_TEXT, _SCAN, _SKETCHES = "text.bin", "scan.npz", "sketches.bin"
SPLITS = ("train", "val")
_SIZES = ("documents", "characters", "bytes")
# Tokens after which the progress is saved.
_PROGRESS_TOKENS = 2**24
# Characters after which it is shown.
_REPORTED_CHARACTERS = 2**20
# Share of the time of training a tokenizer that is spent on counting words.
_COUNTED_SHARE = 0.9


@dataclass
class Corpus:
    """A tokenized corpus on disk."""

    folder: Path
    tokenizer: Tokenizer
    train: ShardedTokens
    val: ShardedTokens
    documents: int
    """Number of documents that were read."""
    characters: int
    size: int
    """Number of their UTF-8 bytes."""
    lines: list[str] = field(default_factory=list)
    """What was logged when they were read: what was read, and what was skipped and why."""
    is_new: bool = False
    """Whether this process has built it, or helped to."""


def prepare_corpus(
    options: CorpusOptions,
    tokenizer: TokenizerSource,
    cache: str | None = None,
    writer: type[ShardWriter] = ShardWriter,
) -> Corpus:
    """Return the tokenized corpus of a configuration, from the cache if it is there.

    Args:
        options: what to read, and how to split it.
        tokenizer: the tokenizer.
        cache: see `token_cache.find_cache`.
        writer: the class that writes the shards.

    Raises:
        AGI2Error: if a source cannot be read, or the tokens cannot be written.
    """
    root, temporary = find_cache(cache if tokenizer.identity is not None else "off"), None
    if root is None:
        temporary = tempfile.TemporaryDirectory(prefix="agi2-", ignore_cleanup_errors=True)
        root = Path(temporary.name)
    hashes = FileHashes(root / FILE_HASHES)
    with convert_cache_errors(root):
        with show_progress("reading the text"):
            files = identify(options.groups, hashes, options.reading)
        text = None if files is not None else _read_once(root, options)
    identity = files.identity if files is not None else text.identity if text else None
    key = key_of(identity, options, tokenizer)
    builder = CorpusBuilder(root / key, options, tokenizer, hashes, writer)
    try:
        with convert_cache_errors(root):
            corpus = builder.open()
            if corpus is None:
                if cache is None:  # not in a folder of the user's choice
                    delete_unused(root)
                corpus = builder.build(files, text)
    finally:
        if text is not None:
            shutil.rmtree(text.folder, ignore_errors=True)
    hashes.save()
    corpus.train.temporary = corpus.val.temporary = temporary
    return corpus


@dataclass(frozen=True)
class _Text:
    """The text of a corpus in a folder."""

    folder: Path
    scan: Scan
    documents: list[list[int]]
    """Number of documents of each source, by groups (see `CorpusOptions.groups`)."""
    lines: list[tuple[int, str]]
    """What was logged when it was read: levels and messages."""

    @property
    def identity(self) -> list[Any]:
        """What the text is."""
        return [self.scan.identity, self.documents]

    @property
    def first_conversation(self) -> int:
        """Index of the first document that is a conversation."""
        return sum(map(sum, self.documents[:2]))


def _read_once(root: Path, options: CorpusOptions) -> _Text:
    """Read sources that may be pipes into a new folder."""
    folder = root / f"reading-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        with show_progress("reading the text"):
            return _read(folder, options, lambda _: None)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _read(folder: Path, options: CorpusOptions, on_read: Callable[[int], None]) -> _Text:
    """Read all sources; now and then call `on_read` with the bytes of files read so far."""
    reports = [ReadReport() for _ in options.groups]

    def scan(group: int) -> None:
        unreported, sources = 0, options.groups[group]
        reading = options.reading_of(group)
        for document in iterate_documents(sources, reading, reports[group]):
            scanner.add(document.text, document.continues, reading.are_conversations)
            unreported += len(document.text)
            if unreported >= _REPORTED_CHARACTERS:
                on_read(sum(each.bytes_read for each in reports))
                unreported = 0

    with (
        recorded_log() as lines,
        open(folder / _TEXT, "wb") as file,
        open(folder / _SKETCHES, "wb") as sketches,
    ):
        scanner = Scanner(file.write, sketches.write, options.hashes_plain)
        for group, sources in enumerate(options.groups):
            if sources:
                scan(group)
        documents = [[source.documents for source in each.sources] for each in reports]
        result = scanner.finish()
    return _Text(folder, result, documents, lines)


def corpus_content(
    figures: Sequence[SplitFigures], sizes: Sequence[int], lines: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """Return the content of `corpus.json`.

    Args:
        figures: those of the training and of the validation shards.
        sizes: numbers of documents, characters and bytes.
        lines: what was logged.
    """
    return {
        **{name: asdict(each) for name, each in zip(SPLITS, figures, strict=True)},
        **dict(zip(_SIZES, sizes, strict=True)),
        "log": list(lines),
    }


class CorpusBuilder:
    """Builds a corpus in a folder, or opens it if it is complete.

    Args:
        folder: the folder of the corpus; its name is the key.
        options: what to read, and how to split it.
        tokenizer: the tokenizer.
        hashes: hashes of files.
        writer: the class that writes the shards.
    """

    def __init__(
        self,
        folder: Path,
        options: CorpusOptions,
        tokenizer: TokenizerSource,
        hashes: FileHashes,
        writer: type[ShardWriter] = ShardWriter,
    ) -> None:
        self._folder, self._options, self._source = folder, options, tokenizer
        self._hashes, self._writer = hashes, writer

    def open(self) -> Corpus | None:
        """Return the corpus if it is complete; `None` if it has to be built."""
        path = self._folder / CORPUS
        if not path.exists():
            return None
        try:
            content = read_json_object(path)
            corpus = self._load(content, self._source.load(self._folder))
            self._check(corpus)
        except (AGI2Error, OSError, KeyError, TypeError, ValueError) as error:
            reason = one_line(str(error) or type(error).__name__)
            log.warning("%s: damaged (%s): the text is tokenized again", self._folder, reason)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # a cache that others have made, to be read only
            os.utime(self._folder)  # see `delete_unused`
        log.info("the text is unchanged: its tokens are in %s", self._folder)
        for level, line in content["log"]:
            log.log(level, "%s", line)
        return corpus

    def load(self) -> Corpus:
        """Return the corpus, which is complete.

        Raises:
            AGI2Error: if a file is missing.
        """
        content = read_json_object(self._folder / CORPUS)
        return self._load(content, self._source.load(self._folder))

    def _load(self, content: dict[str, Any], tokenizer: Tokenizer) -> Corpus:
        dtype = np.dtype(tokenizer.dtype).name
        train, val = (
            ShardedTokens(self._folder, name, dtype, SplitFigures(**content[name]))
            for name in SPLITS
        )
        documents, characters, size = (content[name] for name in _SIZES)
        lines = [line for _, line in content["log"]]
        return Corpus(self._folder, tokenizer, train, val, documents, characters, size, lines)

    def _check(self, corpus: Corpus) -> None:
        """Check the sizes of all files, and the hashes of those that may have changed."""
        for tokens in (corpus.train, corpus.val):
            tokens.check()
            hashes = [*tokens.figures.hashes, tokens.figures.index_hash]
            for path, digest in zip(tokens.files, hashes, strict=True):
                if self._hashes.get(path)[0] != digest:
                    raise AGI2Error(f"{path} has changed")

    def build(self, files: Files | None, text: _Text | None) -> Corpus:
        """Build the corpus, unless another process just did.

        Args:
            files: the files of the sources, to be read.
            text: the text, if it was read already.
        """
        with exclusive(self._folder):
            return self.open() or self._build(files, text)

    def _build(self, files: Files | None, text: _Text | None) -> Corpus:
        read, options = self._text(files, text), self._options
        return_freed_memory()
        with recorded_log() as more:
            sketches = open_sketches(self._folder / _SKETCHES)
            store = TextStore(self._folder / _TEXT, read.scan, read.first_conversation)
            texts = store.conversations()
            plan = plan_groups(read.scan, options, read.documents, sketches, texts, store.read)
            sizes = read.scan.totals
            documents, lines = plan.count_training_documents(read.documents[0]), read.lines
            parts = plan.count_parts()
            del read, text  # frees most of the scan: a tokenizer needs the memory
            return_freed_memory()
            tokenizer = self._tokenizer(store, plan)
        return_freed_memory()
        figures = self._tokenize(store, plan, tokenizer, sizes[2])
        figures[0].source_documents = documents
        figures[0].parts, figures[1].parts = parts
        content = corpus_content(figures, sizes, [*lines, *more])
        write_text(self._folder / CORPUS, json.dumps(content))
        for name in (_TEXT, _SCAN, _SKETCHES, PROGRESS):
            (self._folder / name).unlink(missing_ok=True)
        corpus = self._load(content, tokenizer)
        corpus.is_new = True
        return corpus

    def _text(self, files: Files | None, text: _Text | None) -> _Text:
        """Return the text in the folder; read it if it is not there."""
        path = self._folder / _SCAN
        with contextlib.suppress(OSError, KeyError, ValueError, AGI2Error):
            scan, progress = load_scan(path), self._progress()
            sizes = {_TEXT: scan.sizes.sum(), _SKETCHES: len(scan) * SKETCH.itemsize}
            if all((self._folder / name).stat().st_size == sizes[name] for name in sizes):
                return _Text(self._folder, scan, progress["documents"], progress["log"])
        delete_files(self._folder)
        if files is not None:
            with show_progress("reading the text", is_determinate=files.size > 0) as advance:
                size = max(1, files.size)
                text = _read(self._folder, self._options, lambda n: advance(min(1, n / size)))
            files.check_unchanged()
        else:
            assert text is not None
            for name in (_TEXT, _SKETCHES):
                (text.folder / name).replace(self._folder / name)
        for name in (_TEXT, _SKETCHES):
            sync_file(self._folder / name)
        self._save_progress({"log": text.lines, "documents": text.documents})
        save_scan(text.scan, path)
        return text

    def _progress(self) -> dict[str, Any]:
        return read_json_object(self._folder / PROGRESS)

    def _save_progress(self, progress: dict[str, Any]) -> None:
        write_text(self._folder / PROGRESS, json.dumps(progress))

    def _tokenizer(self, store: TextStore, plan: SplitPlan) -> Tokenizer:
        if (self._folder / TOKENIZER).exists():
            return self._source.load(self._folder)
        if self._source.is_fitted:
            tokenizer = self._source.make(())
        else:
            with show_progress("training the tokenizer", is_determinate=True) as advance:
                tokenizer = self._source.make(
                    store.training_texts(plan, lambda done: advance(_COUNTED_SHARE * done))
                )
        tokenizer.save(self._folder)
        return tokenizer

    def _tokenize(
        self, store: TextStore, plan: SplitPlan, tokenizer: Tokenizer, size: int
    ) -> list[SplitFigures]:
        """Write the shards, from where an interrupted process has stopped."""
        begin, writers = self._open_writers(tokenizer)
        saved = sum(writer.figures.tokens for writer in writers)
        done = 0
        try:
            with show_progress("tokenizing the text", is_determinate=True) as advance:
                for batch, *encoded in encode_batches(store.batches(plan, begin), tokenizer):
                    write_batch(writers, batch, *encoded)
                    done += len(batch.data)
                    advance(min(1.0, done / max(1, size)))
                    tokens = sum(each.figures.tokens for each in writers)
                    if tokens >= saved + _PROGRESS_TOKENS:
                        self._save_position(batch.end, writers)
                        saved = tokens
            return [writer.finish() for writer in writers]
        finally:
            for writer in writers:
                writer.close()

    def _open_writers(self, tokenizer: Tokenizer) -> tuple[Cursor, list[ShardWriter]]:
        """Return where to continue, and writers that do."""
        progress = self._progress()
        with contextlib.suppress(KeyError, TypeError, AGI2Error):
            figures = [SplitFigures(**progress[name]) for name in SPLITS]
            begin = Cursor(**progress["position"])
            writers = [
                self._writer(self._folder, name, tokenizer, each)
                for name, each in zip(SPLITS, figures, strict=True)
            ]
            log.info("tokenizing continues at document %s", f"{begin.document + 1:,}")
            return begin, writers
        return Cursor(), [self._writer(self._folder, name, tokenizer) for name in SPLITS]

    def _save_position(self, position: Cursor, writers: list[ShardWriter]) -> None:
        for writer in writers:
            writer.sync()
        progress = {name: asdict(each.figures) for name, each in zip(SPLITS, writers, strict=True)}
        self._save_progress({**self._progress(), "position": asdict(position), **progress})
