"""Which format a file has, by the suffix of its name or by its first bytes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..utils import open_file
from .charsets import (
    UTF8,
    encoding_of_mark,
    has_few_nuls,
    has_many_controls,
    is_valid,
)
from .documents import ReadOptions
from .recognition import is_table, json_kind
from .text_files import Unreadable, unreadable
from .wide_charsets import unmarked_wide

HEAD = 8192
"""Bytes at the beginning of a file by which its format is checked."""


class Format(NamedTuple):
    """A file format."""

    name: str
    """Name for messages, with its article."""
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...] = ()
    """Beginnings, one of which every file of the format has."""
    package: str = ""
    """Package of the extra `documents` that reads it."""


_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # the second: without members
_CODE = (
    ".py .pyi .pyx .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .m .mm .java .kt .kts .scala .groovy .js"
    " .mjs .cjs .jsx .ts .tsx .vue .svelte .go .rs .rb .php .pl .pm .r .jl .lua .swift .dart .cs"
    " .fs .fsx .vb .hs .lhs .ml .mli .clj .cljs .ex .exs .erl .hrl .el .lisp .scm .rkt .sh .bash"
    " .zsh .fish .ps1 .bat .sql .f .f90 .f95 .for .pas .asm .s .v .sv .vhd .vhdl .zig .nim .d .tcl"
    " .cmake .gradle .proto .graphql .css .scss .less .tf"
)
_PROSE = ".txt .text .md .markdown .rst .adoc .asciidoc .org .tex .textile .wiki .log .typ"

TEXT = Format("a text file", tuple(f"{_PROSE} {_CODE}".split()))
HTML = Format("a web page", (".html", ".htm", ".xhtml"), package="selectolax")
XML = Format("XML", (".xml",))
JSON = Format("JSON", (".json",))
JSON_LINES = Format("JSON lines", (".jsonl", ".ndjson"))
TABLE = Format("a table", (".csv", ".tsv"))
PARQUET = Format("Parquet", (".parquet",), (b"PAR1",), "pyarrow")
# An Arrow stream has no magic number.
ARROW = Format("Arrow", (".arrow", ".feather"), package="pyarrow")
EPUB = Format("an EPUB", (".epub",), _ZIP_MAGIC, "selectolax")
PDF = Format("a PDF", (".pdf",), (b"%PDF-",), "pypdfium2")
DOCX = Format("a Word document (docx)", (".docx",), _ZIP_MAGIC)
ODT = Format("an OpenDocument text (odt)", (".odt",), _ZIP_MAGIC)
RTF = Format("a Rich Text document (RTF)", (".rtf",), (b"{\\rtf",))
SUBTITLES = Format("subtitles", (".srt", ".vtt"))
MAIL = Format("e-mail", (".mbox", ".eml"))
NOTEBOOK = Format("a Jupyter notebook", (".ipynb",))
ZIP = Format("a zip archive", (".zip",), _ZIP_MAGIC)
TAR = Format("a tar archive", (".tar",))

_FORMATS = (
    TEXT, HTML, XML, JSON, JSON_LINES, TABLE, PARQUET, ARROW, EPUB, PDF, DOCX, ODT, RTF, SUBTITLES,
    MAIL, NOTEBOOK, ZIP, TAR,
)  # fmt: skip
_BY_SUFFIX = {suffix: format_ for format_ in _FORMATS for suffix in format_.suffixes}

GZIP = Format("gzip data", (".gz",), (b"\x1f\x8b",))
BZIP2 = Format("bzip2 data", (".bz2",), (b"BZh",))
XZ = Format("xz data", (".xz",), (b"\xfd7zXZ\0",))
# A frame, or one that is skipped: with sizes, as of `pzstd`.
_FRAMES = (b"\x28\xb5\x2f\xfd", *(bytes([each]) + b"\x2a\x4d\x18" for each in range(0x50, 0x60)))
ZSTANDARD = Format("Zstandard data", (".zst",), _FRAMES, "zstandard")
_COMPRESSIONS = {each.suffixes[0]: each for each in (GZIP, BZIP2, XZ, ZSTANDARD)}
_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".tbz": ".tar.bz2", ".txz": ".tar.xz"}
_SHORT |= {".tzst": ".tar.zst", ".tar.bz": ".tar.bz2"}

# Mail programs name their mbox files without a suffix: the line of the envelope, and a header.
_MBOX = re.compile(rb"From [^\n]*[0-9:+-]\r?\n[A-Za-z-]+: ")

# A web page: its first element, after a mark, an XML declaration and comments. Without going back
# (the groups are atomic), which would take exponential time.
_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)*+(?>\s+|<\?xml[^>]{0,200}>|<!--.*?-->)*+"
    rb"<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)

# How the members begin of documents that are zip archives, after the first header.
_ZIP_HEADER = 30
_FIRST_MEMBERS = (
    (EPUB, re.compile(rb"mimetypeapplication/epub\+zip")),
    (ODT, re.compile(rb"mimetypeapplication/vnd\.oasis\.opendocument\.text")),
    (DOCX, re.compile(rb"\[Content_Types\]\.xml.*?PK\x03\x04.{26}word/", re.DOTALL)),
)

# The number of a version, a part, a day or a section: `app.log.1`, `moby.2024-05-01`, `ls.1`.
_NUMBER = re.compile(r"(?<=.)\.[0-9][0-9._-]*$")

NOT_READ = "in no format that is read"
"""Why a file that is found in a folder or an archive is skipped."""
CACHE_FOLDERS = {"node_modules", "__pycache__", "site-packages", "__MACOSX"}
"""Folders of other programs, in which no text of the user is."""
# Files without a suffix that are text.
_TEXT_NAMES = {"readme", "license", "licence", "copying", "changes", "changelog", "news", "authors"}
_TEXT_NAMES |= {"makefile", "dockerfile", "contributing", "todo"}
# Formats that are not read, with what to do.
_ADVICE = {
    ".doc": "save it as .docx",
    ".pages": "export it as .docx",
    ".xls": "save each sheet as .csv",
    ".xlsx": "save each sheet as .csv",
    ".ods": "save each sheet as .csv",
    ".ppt": "export it as a PDF",
    ".pptx": "export it as a PDF",
    ".mobi": "convert it to .epub",
    ".azw3": "convert it to .epub",
    ".djvu": "convert it to a PDF",
    ".7z": "unpack it",
    ".rar": "unpack it",
    ".z": "unpack it",
    ".lz4": "unpack it",
    ".msg": "save it as .eml",
    ".ps": "convert it to a PDF",
}


def readable_suffixes() -> str:
    """Return the suffixes of all formats but source code, for messages."""
    prose = (".txt", ".md", ".rst")
    rest = [suffix for format_ in _FORMATS[1:] for suffix in format_.suffixes]
    return ", ".join([*prose, *rest])


def split_compression(filename: str) -> tuple[str, Format | None]:
    """Split a file name into that of the decompressed file, and the compression, if any."""
    for short, suffixes in _SHORT.items():
        if filename.lower().endswith(short):
            filename = filename[: -len(short)] + suffixes
    path = PurePosixPath(filename)
    compression = _COMPRESSIONS.get(path.suffix.lower())
    return (filename, None) if compression is None else (path.stem, compression)


def is_known(filename: str) -> bool:
    """Return whether a file that is found in a folder has a format that is read, by its name."""
    # `README.Debian` and `changelog.old` are text as `README` and `changelog` are.
    stem = PurePosixPath(filename).name.lower().split(".")[0]
    return stem in _TEXT_NAMES or suffix_of(filename) in _BY_SUFFIX


def is_unnamed(filename: str) -> bool:
    """Return whether the name of a file says nothing of its format: it has no suffix."""
    return not suffix_of(filename).strip(".") and not is_known(filename)


def suffix_of(filename: str) -> str:
    """Return the suffix of a file's name in lower case, that of the decompressed file.

    A number is no suffix.
    """
    name = ""
    while name != filename:
        name, filename = filename, _NUMBER.sub("", split_compression(filename)[0])
    return PurePosixPath(name).suffix.lower()


def known_suffix(filename: str) -> str:
    """Return the suffix of a name in lower case if it is that of a format, with a compression's."""
    inner, compression = split_compression(filename)
    suffix = suffix_of(inner) if suffix_of(inner) in _BY_SUFFIX else ""
    return suffix + (compression.suffixes[0] if compression else "")


def without_suffix(filename: str) -> str:
    """Return the name of a file without the suffix of its format, and of its compression.

    Another suffix, such as that of `moby.1`, is part of the name.
    """
    name = split_compression(filename)[0]
    path = PurePosixPath(name)
    is_format = path.suffix.lower() in _BY_SUFFIX or path.suffix.lower() in _ADVICE
    return path.stem if is_format else name


def kind_of_skipped(filename: str, reason: str) -> str:
    """Return what a file that is skipped counts as: its suffix, if that is why."""
    return (suffix_of(filename) or "no suffix") if reason == NOT_READ else ""


def is_unnamed_text(path: Path, options: ReadOptions) -> bool:
    """Return whether a file that has no suffix may be text, by its first bytes.

    If it is compressed, `is_text` is to be asked for those of the decompressed file.
    """
    if not is_unnamed(path.name) or not path.is_file():  # a pipe would block
        return False
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except OSError:
        return False
    compression = split_compression(path.name)[1]
    if compression is not None:
        return head.startswith(compression.magic)
    return is_text(head, options)


def is_text(head: bytes, options: ReadOptions) -> bool:
    """Return whether the first bytes of a file are text, by their control characters."""
    if b"\0" in head:
        return _is_wide(head, options)
    # In some encodings the bytes of letters are control characters in others.
    encoding = UTF8 if is_valid(head, UTF8) else "ascii"
    return bool(head.strip()) and not has_many_controls(head.decode(encoding, "ignore"))


def compression_of(filename: str, head: bytes) -> Format | None:
    """Return the compression of a file, by its name or its first bytes."""
    compression = split_compression(filename)[1]
    if compression is None and format_of(filename, head) is TEXT:
        found = (each for each in _COMPRESSIONS.values() if head.startswith(each.magic))
        return next(found, None)
    return compression


def format_of(filename: str, head: bytes) -> Format:
    """Return the format of a file that is not compressed; text if its name does not say it.

    Only a few beginnings, which no text has, win over the suffix.
    """
    named = _BY_SUFFIX.get(suffix_of(filename))
    if named in (None, TEXT):
        for each in (PDF, RTF, PARQUET):
            if head.startswith(each.magic):
                return each
        if head.startswith(b"ARROW1"):
            return ARROW
        if (archive := _archive_of(head)) is not None:
            return archive
        if named is None and _MBOX.match(head):
            return MAIL
        if named is None and is_page(head):
            return HTML
        if named is None and (kind := json_kind(head)):
            return JSON if kind == "json" else JSON_LINES
        if named is None and is_table(head):
            return TABLE
    return named or TEXT


def _archive_of(head: bytes) -> Format | None:
    """Return the format of an archive, or of a document that is one, by its first bytes."""
    if head.startswith(ZIP.magic):
        found = (format_ for format_, mark in _FIRST_MEMBERS if mark.match(head, _ZIP_HEADER))
        return next(found, ZIP)
    is_tar = head[257:262] == b"ustar" and b"\0" in head[:257]
    return TAR if is_tar else None


def is_page(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a web page, in whatever encoding."""
    return bool(_PAGE.match(head.replace(b"\0", b"")))


def check_head(
    path: Path,
    name: str | None = None,
    options: ReadOptions | None = None,
    filename: str | None = None,
) -> None:
    """Check by its first bytes that a regular file can be read in its format.

    Args:
        path: the file.
        name: its name for messages, if that is not its path.
        filename: the name that selects its format, if that is not its path's.
        options: whose `encoding` allows a text to contain NUL bytes.

    Raises:
        Unreadable: if it is empty, damaged, in a format that is not read or that needs a package
            which is not installed, or cannot be opened.
    """
    name = name or str(path)
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unreadable(error, name) from error
    if len(head) < HEAD and not head.strip():
        what = "contains only white space" if head else "is empty"
        raise Unreadable("empty", f"{name}: the file {what}")
    filename = filename or path.name
    compression = compression_of(filename, head)
    check_format(compression or format_of(filename, head), filename, name, head, options)


def check_format(
    format_: Format, filename: str, name: str, head: bytes, options: ReadOptions | None = None
) -> None:
    """Check that the first bytes of a file fit its format, and that its package is installed.

    Raises:
        Unreadable: if not; as in `check_head`.
    """
    if format_ in (TEXT, ZIP):  # such as a workbook, which is a zip archive of XML
        suffix = PurePosixPath(filename).suffix.lower()
        if head.startswith(b"%!PS"):
            suffix = ".ps"
        if suffix in _ADVICE:
            raise Unreadable("not text", f"{name}: {suffix} is not read: {_ADVICE[suffix]}")
    if format_.magic and not head.startswith(format_.magic):
        raise Unreadable("damaged", f"{name}: damaged: it does not begin as {format_.name} does")
    if format_.package and importlib.util.find_spec(format_.package) is None:
        raise Unreadable(
            "that need the extra documents",
            f"{name}: {format_.name} needs {format_.package}, which is not installed: install it "
            f"with uv sync --extra documents or pip install {format_.package}",
        )
    if format_ in _TEXTUAL and b"\0" in head and not _is_wide(head, options):
        is_stray = format_ is not RTF and has_few_nuls(head) and is_valid(head, UTF8)
        if not is_stray:
            raise Unreadable("not text", f"{name}: {NUL_PROBLEM}")


def _is_wide(head: bytes, options: ReadOptions | None) -> bool:
    """Return whether the bytes of a text may be NUL in its encoding."""
    is_wide = encoding_of_mark(head) or unmarked_wide(head) or (options and options.encoding)
    return bool(is_wide)


NUL_PROBLEM = "not a text file (it contains NUL bytes); if it is UTF-16 or UTF-32, set encoding"
_TEXTUAL = (TEXT, HTML, XML, JSON, JSON_LINES, TABLE, RTF, SUBTITLES, NOTEBOOK)
