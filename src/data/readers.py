"""Read the documents of sources: of each file, in its format, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from ..errors import AGI2Error, one_line
from ..utils import log
from .archives import members
from .builtin import BUILTIN, BUILTINS, CONVERSATIONS, HELD_OUT_CONVERSATIONS, python_docs
from .builtin_conversations import conversations, held_out_conversations
from .columnar import read_arrow, read_parquet
from .compression import decompress
from .conversation_readers import read_conversations
from .conversations import to_text
from .documents import MAX_CHARACTERS, Document, ReadOptions, ReadReport, SourceReport
from .downloads import is_url
from .formats import (
    ARROW,
    DOCX,
    EPUB,
    HEAD,
    HTML,
    JSON,
    JSON_LINES,
    MAIL,
    NOTEBOOK,
    ODT,
    PARQUET,
    PDF,
    RTF,
    SUBTITLES,
    TABLE,
    TAR,
    TEXT,
    XML,
    ZIP,
    Format,
    check_format,
    compression_of,
    format_of,
    is_text,
    is_unnamed,
    split_compression,
)
from .html import read_html
from .inputs import Input, open_input
from .json_records import read_json, read_json_lines
from .mail import read_mail
from .notebooks import read_notebook
from .office import read_docx, read_epub, read_odt
from .pdf import read_pdf
from .preference_readers import read_pairs
from .preprocess import (
    check_any_left,
    load_preprocessor,
    preprocess,
    preprocess_conversations,
)
from .rtf import read_rtf
from .sources import Source, SourceFile, Sources, file_size, find_sources
from .subtitles import read_subtitles
from .tables import read_table
from .text import join_pieces, normalize, pieces, read_text
from .text_files import STDIN, Unreadable
from .xml import read_xml

# Up to this many sources are logged one line each; with more, only skipped files are logged.
_SOURCES_LOGGED = 8

_READERS: dict[Format, Callable[[Input], Iterator[Document]]] = {
    TEXT: read_text,
    HTML: read_html,
    XML: read_xml,
    JSON: read_json,
    JSON_LINES: read_json_lines,
    TABLE: read_table,
    PARQUET: read_parquet,
    ARROW: read_arrow,
    EPUB: read_epub,
    PDF: read_pdf,
    DOCX: read_docx,
    ODT: read_odt,
    RTF: read_rtf,
    SUBTITLES: read_subtitles,
    MAIL: read_mail,
    NOTEBOOK: read_notebook,
}
# What may be wrong with a downloaded file that will not be once it is downloaded again.
_OF_DOWNLOADS = ("damaged", "not text", "without text")
_NO_DOCUMENT = "no document in this archive"
# Formats that are parsed block by block.
_IN_SMALL_PIECES = (XML, DOCX, ODT, EPUB)


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
                if is_url(source.name) and problem.reason in _OF_DOWNLOADS:
                    raise AGI2Error(
                        f"{source.name}: {problem}; to download it again, delete that file"
                    ) from problem
                raise
            counts.first_problem = counts.first_problem or str(problem)


def _builtin_texts(name: str, options: ReadOptions) -> Iterator[str]:
    """Return the documents of a built-in source; conversations as their canonical text."""
    if options.are_pairs or options.are_conversations == (name == BUILTIN):
        key = "sources" if name == BUILTIN else "conversations"
        raise AGI2Error(f"{name} is for the key {key}")
    if name == BUILTIN:
        return python_docs()
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
    bytes_before, is_begun = counts.bytes_read, False
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
        raise
    counts.files += 1
    if opened.file is not None:  # some readers stop before the end, or seek
        counts.bytes_read = bytes_before + file_size(path)


def read_input(source: Input) -> Iterator[Document]:
    """Yield the documents of an input: decompressed, of all members of archives, in its format.

    Raises:
        Unreadable: if it is damaged or has no text; documents before the damage were yielded.
    """
    head = source.stream.peek(HEAD)[:HEAD]
    while (compression := compression_of(source.filename, head)) is not None:
        check_format(compression, source.filename, source.name, head)
        source = decompress(source, compression, split_compression(source.filename)[0])
        head = source.stream.peek(HEAD)[:HEAD]
    format_ = format_of(source.filename, head)
    if not head:
        is_stdin = source.name == str(STDIN)
        what = "standard input is empty, or was read before: name it once" if is_stdin else ""
        raise source.error("empty", what or "the file is empty")
    check_format(format_, source.filename, source.name, head, source.options)
    is_found = source.depth > 0 and is_unnamed(source.filename)
    if format_ is TEXT and is_found and not is_text(head, source.options):
        raise source.error("not text", "not a text file")
    if format_ in (ZIP, TAR):
        yield from _read_archive(source, format_)
    elif source.options.are_pairs:
        yield from _finished(source, read_pairs(source, format_))
    elif source.options.are_conversations:
        yield from _finished(source, read_conversations(source, format_))
    else:
        documents = _READERS[format_](source)
        if format_ in _IN_SMALL_PIECES:
            documents = join_pieces(documents)
        yield from _finished(source, documents)


def _read_archive(source: Input, format_: Format) -> Iterator[Document]:
    """Yield the documents of all members; those that cannot be read are counted as skipped."""
    is_empty, first_problem = True, "it has no member in a format that is read"
    for member in members(source, format_):
        try:
            for document in read_input(member):
                is_empty = False
                yield document
        except Unreadable as problem:
            if problem.depth is not None and problem.depth <= source.depth:
                raise  # the archive itself is damaged, or a file that it is in
            source.report.skipped.add(f"members of archives {problem.reason}", str(problem))
            # Of an archive in this one, what is wrong in it.
            problem_inside = str(problem).rpartition(f"{_NO_DOCUMENT}; ")[2]
            first_problem = problem_inside if is_empty else first_problem
    if is_empty:
        raise source.error("without text", f"{_NO_DOCUMENT}; {first_problem}")


def _finished(source: Input, documents: Iterator[Document]) -> Iterator[Document]:
    """Normalize documents, split large ones into pieces, and count and drop those without text."""
    how = "none" if source.options.are_conversations else source.options.normalize
    found = empty = 0
    is_dropped = False  # whether the previous piece of a document was, as it has no text
    for document in documents:
        text = normalize(document.text, how)
        is_start = not document.continues or is_dropped
        is_dropped = is_start and (not text or text.isspace())
        if is_dropped:
            empty += not document.continues
            continue
        empty -= is_start and document.continues
        found += is_start
        source.report.documents += is_start
        source.report.characters += len(text)
        if text is not document.text or document.continues == is_start:
            document = Document(text, document.source, not is_start)
        if len(text) <= MAX_CHARACTERS:
            yield document
        else:
            yield from pieces(document)
    if empty and found:
        source.report.skipped.add("documents without text", source.name, count=empty)
    if not found:
        what = source.options.kind if source.options.are_conversations else "text"
        raise source.error(f"without {what}", f"contains no {what}")


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
