"""Read the documents of one input: a file, or a member of an archive, in its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .archives import members
from .columnar import read_arrow, read_parquet
from .compression import decompress
from .conversation_readers import read_conversations
from .documents import MAX_CHARACTERS, Document, SourceReport
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
    is_page,
    is_text,
    is_unnamed,
    split_compression,
    suffix_of,
)
from .html import read_html
from .inputs import Input
from .json_records import read_json, read_json_lines
from .mail import read_mail
from .notebooks import read_notebook
from .office import read_docx, read_epub, read_odt
from .pdf import read_pdf
from .preference_readers import read_pairs
from .recognition import columns_of
from .rtf import read_rtf
from .subtitles import read_subtitles
from .tables import read_table
from .text import join_pieces, normalize, pieces, read_text
from .text_files import KINDS, STDIN, Unreadable
from .xml import read_xml

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
_MEMBERS = "members of archives "
DAMAGED_MEMBERS = _MEMBERS + "damaged"
"""The reason by which members that are damaged are counted as skipped."""
_NO_DOCUMENT = "no document in this archive"
# Suffixes of texts that have no markup; in others, such as source code, it is the text.
_PLAIN = (".txt", ".text")
# Formats that are parsed block by block.
_IN_SMALL_PIECES = (XML, DOCX, ODT, EPUB)


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
    _note_guess(source, format_, head)
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
    source.finish()


def _note_guess(source: Input, format_: Format, head: bytes) -> None:
    """Note which format a file is in by its first bytes alone, or seems to be in."""
    suffix = suffix_of(source.filename)
    if format_ in (JSON, JSON_LINES, TABLE) and suffix not in format_.suffixes:
        source.note(f"read as {KINDS}, by the first bytes", format_.name)
    if format_ is TEXT and suffix in _PLAIN and is_page(head):
        source.note("with the markup of a web page, read as text (rename it to .html)")
    if format_ is TEXT and is_unnamed(source.filename) and columns_of(head):
        source.note("with the lines of a table, read as text (name it .csv or .tsv)")


def note_part(report: SourceReport, name: str, characters_before: int) -> None:
    """Note how much text of a file that cannot be read to its end is kept, if any is.

    Args:
        report: the report.
        name: the file, or the member of an archive.
        characters_before: `report.characters` before it was read.
    """
    if kept := report.characters - characters_before:
        report.notes.add("read in part", name, size=kept, unit="characters")


def _read_archive(source: Input, format_: Format) -> Iterator[Document]:
    """Yield the documents of all members; those that cannot be read are counted as skipped."""
    is_empty, first_problem = True, "it has no member in a format that is read"
    for member in members(source, format_):
        characters_before = source.report.characters
        try:
            for document in read_input(member):
                is_empty = False
                yield document
        except Unreadable as problem:
            if problem.depth is not None and problem.depth <= source.depth:
                raise  # the archive itself is damaged, or a file that it is in
            source.report.skipped.add(_MEMBERS + problem.reason, str(problem))
            note_part(source.report, member.name, characters_before)
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
