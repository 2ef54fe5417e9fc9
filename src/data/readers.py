"""Read the documents of sources: of each file, in its format, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from ..errors import AGI2Error, one_line
from ..utils import log
from .builtin import (
    BUILTINS,
    CONVERSATIONS,
    HELD_OUT,
    HELD_OUT_CONVERSATIONS,
    TEXTS,
    held_out_python_docs,
    python_docs,
)
from .builtin_conversations import conversations, held_out_conversations
from .conversations import to_text
from .documents import Document, ReadOptions, ReadReport, SourceReport
from .downloads import OF_DOWNLOADS, is_url
from .format_readers import note_part, read_input
from .formats import is_unnamed
from .inputs import open_input
from .preprocess import (
    check_any_left,
    load_preprocessor,
    preprocess,
    preprocess_conversations,
)
from .sources import Source, SourceFile, Sources, file_size, find_sources
from .text_files import KINDS, Unreadable

# Up to this many sources are logged one line each; with more, only skipped files are logged.
_SOURCES_LOGGED = 8


def iterate_documents(
    sources: Sources,
    options: ReadOptions | None = None,
    report: ReadReport | None = None,
    *,
    is_logged: bool = True,
) -> Iterator[Document]:
    """Yield every document of every source, lazily, in a deterministic order.

    All sources are resolved, and the first bytes of their files checked, before the first document
    is yielded. An unreadable file is an error if it was named, and skipped if it was found in a
    folder or by a pattern. A file with several names is read once. A pipe (`-` is standard input)
    can be read only once.

    Args:
        sources: paths, glob patterns, `http(s)://` URLs or `builtin:python-docs`.
        options: how to read them.
        report: filled while documents are yielded: a `SourceReport` for each source, in order. The
            log has the same lines at the end of each source.
        is_logged: whether to log these lines.

    Yields:
        Documents; one with more than `MAX_CHARACTERS` characters in pieces.

    Raises:
        AGI2Error: if a source is missing, has no text, or is malformed.
    """
    options = options or ReadOptions()
    report = report if report is not None else ReadReport()
    # All sources are checked before any is read, so that a bad last one fails at once.
    resolved = find_sources(sources, options=options)
    for source in resolved:
        counts = SourceReport(source.name, skipped=source.skipped, kind=options.kind)
        report.sources.append(counts)
        yield from read_files(source, options, counts)
        end_source(source, counts, len(resolved), is_logged)
    if options.preprocess is not None:
        check_any_left(options.preprocess, report)


def read_files(source: Source, options: ReadOptions, counts: SourceReport) -> Iterator[Document]:
    """Yield the documents of a source's files.

    Raises:
        AGI2Error: if a file that was named cannot be read.
    """
    if source.charset and not options.encoding:
        options = replace(options, encoding=source.charset)
        counts.notes.add(
            f"read as {KINDS}, as its server says (set encoding to change it)",
            source.name,
            kind=source.charset,
        )
    documents = _read_files(source, options, counts)
    if options.preprocess is not None:
        function = load_preprocessor(options.preprocess)
        apply = preprocess_conversations if options.are_conversations else preprocess
        documents = apply(documents, function, counts)
    yield from documents


def _read_files(source: Source, options: ReadOptions, counts: SourceReport) -> Iterator[Document]:
    if source.name in BUILTINS and source.files:
        for text in _builtin_texts(source.name, options):
            counts.documents += 1
            counts.characters += len(text)
            yield Document(text, source.name)
        return
    for path in source.files:
        try:
            yield from _read_file(path, options, counts)
            if not source.is_named and is_unnamed(path.name):
                counts.notes.add("without a suffix read, by the first bytes", str(path))
        except Unreadable as problem:
            if source.is_named:
                if is_url(source.name) and problem.reason in OF_DOWNLOADS:
                    raise AGI2Error(
                        f"{source.name}: {problem}; to download it again, delete that file"
                    ) from problem
                raise
            counts.first_problem = counts.first_problem or str(problem)


def _builtin_texts(name: str, options: ReadOptions) -> Iterator[str]:
    """Return the documents of a built-in source; conversations as their canonical text."""
    if options.are_pairs or options.are_conversations == (name in TEXTS):
        key = "sources" if name in TEXTS else "conversations"
        raise AGI2Error(f"{name} is for the key {key}")
    if name in TEXTS:
        return held_out_python_docs() if name == HELD_OUT else python_docs()
    made = {CONVERSATIONS: conversations, HELD_OUT_CONVERSATIONS: held_out_conversations}
    return map(to_text, made[name]())


def end_source(source: Source, counts: SourceReport, sources: int, is_logged: bool = True) -> None:
    """Check what was read of a source, of so many, and log it if `is_logged`.

    Raises:
        AGI2Error: if no file of it can be read.
    """
    if source.name not in BUILTINS and source.files and not counts.files:
        raise AGI2Error(f"{source.name}: no file of it can be read; {counts.first_problem}")
    if is_logged:
        log_counts(counts, sources <= _SOURCES_LOGGED)


def _read_file(path: SourceFile, options: ReadOptions, counts: SourceReport) -> Iterator[Document]:
    """Yield the documents of a file; count its bytes as read, or those not read as skipped."""
    bytes_before, characters_before, is_begun = counts.bytes_read, counts.characters, False
    try:
        with open_input(path, options, counts) as opened:
            for document in read_input(opened):
                is_begun = True
                yield document
    except Unreadable as problem:
        size = file_size(path)
        read = min(counts.bytes_read - bytes_before, size) if is_begun else 0
        counts.files += is_begun
        counts.bytes_read = bytes_before + read
        counts.skipped.add(problem.reason, str(problem), size=size - read)
        note_part(counts, str(path), characters_before)
        raise
    counts.files += 1
    if opened.is_sought:  # what its stream has read is the beginning
        counts.bytes_read = bytes_before + file_size(path)
    counts.bytes_read -= opened.bytes_left


def log_counts(counts: SourceReport, are_amounts_logged: bool) -> None:
    """Log how much was read of a source, and in any case what was removed and skipped."""
    if are_amounts_logged:
        log.info("%s", one_line(f"read {counts.name}: {counts.amounts()}"))
    for level, what, tally in (
        (logging.INFO, "removed from", counts.removed),
        (logging.INFO, "in", counts.preprocessed),
        (logging.WARNING, "in", counts.notes),
        (logging.WARNING, "skipped in", counts.skipped),
    ):
        for line in tally.lines():
            log.log(level, "%s", one_line(f"{what} {counts.name}: {line}"))
