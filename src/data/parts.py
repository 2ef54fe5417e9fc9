"""Build a corpus by several processes, on one machine or on many that share the cache.

The files of the sources are divided into units. Each process reads units (text, scan, sketches)
until all are read; one plans the split over all of them and trains the tokenizer; each tokenizes
units; each copies tokens into shards; one completes the corpus. Its files are the same, byte for
byte, as if one process had built it, whatever the number of processes, and however often one was
interrupted: see `SharedTasks`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..console import recorded_log
from ..errors import AGI2Error
from ..tokenizer import FILE_NAME as TOKENIZER
from ..tokenizer import Tokenizer
from ..utils import log, plural, read_json_object, sha256_of, sync_file, sync_folder, write_text
from .build import CORPUS, SPLITS, Corpus, CorpusBuilder, corpus_content
from .corpus import check_rereadable
from .corpus_options import CorpusOptions, TokenizerSource, key_of
from .corpus_plan import plan_groups
from .remote import RemoteFile
from .scan import Scan, join_scans
from .shards import ShardWriter, SplitFigures, index_path, shard_path
from .shared_tasks import FinishedElsewhereError, Part, SharedTasks
from .sketches import open_sketches
from .sources import Source, SourceFile, file_size, find_sources
from .split_plan import Span, SplitPlan
from .text_store import TextStore
from .token_cache import (
    FILE_HASHES,
    FileHashes,
    convert_cache_errors,
    delete_files,
    exclusive,
    find_cache,
    identity_of,
    stamp_of,
)
from .token_stream import FIGURES, TokenStream
from .tokens import encode_batches, write_batch
from .units import (
    SKETCHES,
    TEXT,
    divide,
    identities,
    load_unit,
    load_unit_scan,
    log_reading,
    read_unit,
)

_CORPUS, _PLAN = "corpus", "plan"
_KEY, _ARRAYS, _HASH = "key.json", "plan.npz", "hash.json"
_MAX_JSON = 2**32


def prepare_part(
    options: CorpusOptions, tokenizer: TokenizerSource, cache: str | None, part: Part
) -> Corpus:
    """Build a corpus together with other processes; return it when it is complete.

    Args:
        options: what to read, and how to split it.
        tokenizer: the tokenizer.
        cache: see `token_cache.find_cache`; all processes must have the same folder.
        part: which of the processes this is. It decides what this one begins with, and no more: any
            process can do all of the work.

    Raises:
        AGI2Error: if a source cannot be read, or the tokens cannot be written.
    """
    for group in options.groups:
        if group:
            check_rereadable(group, "several processes read it", options.reading)
    root = find_cache(cache)
    if root is None or tokenizer.identity is None:
        raise AGI2Error("the parts of a corpus need a folder that all share: set token_cache")
    with convert_cache_errors(root):
        return _PartialBuild(options, tokenizer, root, part).run()


class _PartialBuild:
    """The tasks of one process.

    Args:
        options: what to read, and how to split it.
        tokenizer: the tokenizer.
        root: the cache.
        part: which of the processes this is.
    """

    def __init__(
        self, options: CorpusOptions, tokenizer: TokenizerSource, root: Path, part: Part
    ) -> None:
        self._options, self._source, self._root = options, tokenizer, root
        self._hashes = FileHashes(root / FILE_HASHES)
        self._groups: list[list[Source]] = [
            find_sources(group, options=options.reading) if group else []
            for group in options.groups
        ]
        self._units = divide(self._groups)
        files = identity_of(self._groups, _describe, options.reading, {})
        if files is None:
            raise AGI2Error("the parts of a corpus need sources whose changes can be noticed")
        folder = root / f"parts-{key_of(files, options, tokenizer)}"
        self._tasks = SharedTasks(folder, part, _CORPUS)
        self._reading = [f"text-{index:05d}" for index in range(len(self._units))]
        self._encoding = [f"tokens-{index:05d}" for index in range(len(self._units))]

    def run(self) -> Corpus:
        """Do tasks until the corpus is complete; return it."""
        tasks = self._tasks
        while True:
            if tasks.is_done(_CORPUS) and (corpus := self._builder.open()):
                return corpus
            if tasks.is_done(_CORPUS):
                tasks.restart()
            try:
                self._run_all()
            except FinishedElsewhereError:
                continue
            except (OSError, AGI2Error):
                if tasks.is_done(_CORPUS):  # another process has, and has deleted what was read
                    continue
                raise
            tasks.delete_results()
            log.info("this process did %s", plural(tasks.done_here, "task"))
            corpus = self._builder.load()
            corpus.is_new = tasks.done_here > 0
            return corpus

    def _run_all(self) -> None:
        tasks = self._tasks
        tasks.run("reading the text", self._reading, self._read)
        tasks.run("planning the split", [_PLAN], self._make_plan)
        tasks.run("tokenizing the text", self._encoding, self._encode)
        tasks.run("writing the shards", self._shards, self._write_shard)
        tasks.run("completing the corpus", [_CORPUS], self._complete)

    @property
    def _builder(self) -> CorpusBuilder:
        key = read_json_object(self._tasks.folder / _CORPUS / _KEY)["key"]
        return CorpusBuilder(self._root / key, self._options, self._source, self._hashes)

    # Reading

    def _read(self, index: int, folder: Path) -> None:
        unit, options = self._units[index], self._options
        read_unit(
            unit,
            self._groups[unit.group],
            options.reading_of(unit.group),
            self._hashes,
            folder,
            options.hashes_plain,
        )

    # Planning

    def _make_plan(self, _index: int, folder: Path) -> None:
        read = [load_unit(self._tasks.folder / name) for name in self._reading]
        known = identities(self._units, read)
        reading = self._options.reading
        files = identity_of(self._groups, lambda file: known[str(file)], reading, {})
        with recorded_log() as lines:
            documents = log_reading(self._groups, self._units, read, self._options)
            scan = join_scans(self._scans)
            plan = self._plan_split(scan, documents, folder)
            sizes = scan.totals
            del scan  # a tokenizer needs the memory
            tokenizer = self._source.make(() if self._source.is_fitted else self._texts(plan))
        tokenizer.save(folder)
        save_plan(plan, folder / _ARRAYS)
        sync_file(folder / TOKENIZER)
        content = corpus_content([SplitFigures(), SplitFigures()], sizes, lines)
        content["source_documents"] = plan.count_training_documents(documents[0])
        content["parts"] = plan.count_parts()
        content["key"] = key_of(files, self._options, self._source)
        write_text(folder / CORPUS, json.dumps(content))
        for each in read:
            for path, stamp, is_certain in each["stamps"]:
                if is_certain and (identity := known.get(path)):
                    self._hashes.remember(Path(path), stamp, identity[-1])
        self._hashes.save()

    @property
    def _scans(self) -> list[Scan]:
        return [load_unit_scan(self._tasks.folder / name) for name in self._reading]

    def _plan_split(self, scan: Scan, documents: list[list[int]], folder: Path) -> SplitPlan:
        with open(folder / SKETCHES, "wb") as joined:
            for name in self._reading:
                with open(self._tasks.folder / name / SKETCHES, "rb") as own:
                    shutil.copyfileobj(own, joined)
        sketches = open_sketches(folder / SKETCHES)
        stores = list(map(self._store, range(len(self._units))))
        texts = chain.from_iterable(store.conversations() for store in stores)

        def read(chosen: np.ndarray) -> list[str | None]:
            parts = np.split(chosen, np.searchsorted(chosen, self._firsts[1:-1]))
            return [
                text
                for store, own, first in zip(stores, parts, self._firsts, strict=False)
                for text in (store.read(own - first) if len(own) else ())
            ]

        plan = plan_groups(scan, self._options, documents, sketches, texts, read)
        del sketches  # Windows cannot delete a file that is mapped
        (folder / SKETCHES).unlink()
        return plan

    @cached_property
    def _firsts(self) -> list[int]:
        """Index of the first document of each unit, and the number of documents."""
        return [0, *np.cumsum([len(scan) for scan in self._scans]).tolist()]

    def _store(self, index: int) -> TextStore:
        folder = self._tasks.folder / self._reading[index]
        first_conversation = 0 if self._units[index].group >= 2 else None
        return TextStore(folder / TEXT, load_unit_scan(folder), first_conversation)

    def _texts(self, plan: SplitPlan) -> Iterator[str]:
        for index in range(len(self._units)):
            part = plan.part(self._firsts[index], self._firsts[index + 1])
            yield from self._store(index).training_texts(part, lambda done: None)

    # Tokenizing

    @cached_property
    def _planned(self) -> tuple[dict[str, Any], SplitPlan, Tokenizer]:
        folder = self._tasks.folder / _PLAN
        content = read_json_object(folder / CORPUS, _MAX_JSON)
        characters = np.concatenate([scan.characters for scan in self._scans])
        return content, load_plan(folder / _ARRAYS, characters), self._source.load(folder)

    def _encode(self, index: int, folder: Path) -> None:
        plan, tokenizer = self._planned[1:]
        part = plan.part(self._firsts[index], self._firsts[index + 1])
        writers = [ShardWriter(folder, name, tokenizer, shard_tokens=2**62) for name in SPLITS]
        try:
            for batch, *encoded in encode_batches(self._store(index).batches(part), tokenizer):
                write_batch(writers, batch, *encoded)
            figures = [writer.finish() for writer in writers]
        finally:
            for writer in writers:
                writer.close()
        write_text(folder / FIGURES, json.dumps([asdict(each) for each in figures]))

    # Shards

    @cached_property
    def _streams(self) -> list[TokenStream]:
        return [
            TokenStream(
                [self._tasks.folder / name for name in self._encoding], split, self._planned[2]
            )
            for split in range(len(SPLITS))
        ]

    @property
    def _shards(self) -> list[str]:
        return [name for stream in self._streams for name in stream.shards]

    def _write_shard(self, index: int, folder: Path) -> None:
        train, val = self._streams
        path, is_val = folder / "tokens.bin", index >= len(train.shards)
        stream = val if is_val else train
        stream.write_shard(index - len(train.shards) if is_val else index, path)
        write_text(folder / _HASH, json.dumps({"sha256": sha256_of(path)}))

    # Completing

    def _complete(self, _index: int, folder: Path) -> None:
        content = self._planned[0]
        corpus = self._root / content.pop("key")
        write_text(folder / _KEY, json.dumps({"key": corpus.name}))
        with exclusive(corpus):
            builder = CorpusBuilder(corpus, self._options, self._source, self._hashes)
            if builder.open() is not None:
                return
            delete_files(corpus)
            for stream, name in zip(self._streams, SPLITS, strict=True):
                content[name] = self._place(stream, corpus)
            content["train"].source_documents = content.pop("source_documents")
            content["train"].parts, content["val"].parts = content.pop("parts")
            content |= {name: asdict(content[name]) for name in SPLITS}
            shutil.copyfile(self._tasks.folder / _PLAN / TOKENIZER, corpus / TOKENIZER)
            sync_file(corpus / TOKENIZER)
            sync_folder(corpus)
            write_text(corpus / CORPUS, json.dumps(content))

    def _place(self, stream: TokenStream, corpus: Path) -> SplitFigures:
        """Put the shards and the offsets of the documents into the corpus' folder."""
        figures = stream.figures
        figures.hashes = []
        for index, name in enumerate(stream.shards):
            result = self._tasks.folder / name
            _link(result / "tokens.bin", shard_path(corpus, stream.name, index))
            figures.hashes.append(read_json_object(result / _HASH)["sha256"])
        path = index_path(corpus, stream.name)
        with open(path, "wb") as file:
            for starts in stream.document_starts():
                file.write(starts.astype("<i8").tobytes())
        sync_file(path)
        figures.index_hash = sha256_of(path)
        return figures


def _describe(path: SourceFile) -> list[str]:
    """Return what all processes see of a file without reading it; nothing if that is too little."""
    if isinstance(path, RemoteFile):
        return [str(path), str(path.size), path.version] if path.version else []
    modified = stamp_of(path)[1] if path.is_file() else 0
    return [path.name, str(file_size(path)), str(modified)]


def _link(path: Path, other: Path) -> None:
    """Give a file a second name; copy it where the file system cannot."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
        sync_file(other)


def save_plan(plan: SplitPlan, path: Path) -> None:
    """Save a plan to a file."""
    spans = [(document, *span) for document, each in plan.exceptions.items() for span in each]
    removed = np.zeros(0, bool) if plan.removed is None else plan.removed
    with open(path, "wb") as file:
        np.savez(
            file, cuts=plan.cuts, spans=np.array(spans, np.int64).reshape(-1, 4), removed=removed
        )
    sync_file(path)


def load_plan(path: Path, characters: np.ndarray) -> SplitPlan:
    """Load a plan that `save_plan` saved, of documents of so many characters, (D,)."""
    with np.load(path, allow_pickle=False) as file:
        cuts, spans, removed = file["cuts"], file["spans"], file["removed"]
    exceptions: dict[int, list[Span]] = {}
    for document, start, end, is_held_out in spans.tolist():
        exceptions.setdefault(document, []).append((start, end, bool(is_held_out)))
    return SplitPlan(characters, cuts, exceptions, removed if len(removed) else None)
