"""Name a downloaded file by its URL, and by the format and the encoding that the server names."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from email.message import Message
from pathlib import Path, PurePosixPath

from ..config_checks import is_encoding
from ..errors import AGI2Error
from .charsets import declared_name
from .formats import known_suffix

# Media types of the formats that are read; text/plain, and others, say no more than the content.
_SUFFIXES = {
    "text/html": ".html",
    "application/xhtml+xml": ".xhtml",
    "application/xml": ".xml",
    "text/xml": ".xml",
    "application/json": ".json",
    "text/json": ".json",
    "application/jsonl": ".jsonl",
    "application/jsonlines": ".jsonl",
    "application/x-jsonlines": ".jsonl",
    "application/ndjson": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "text/csv": ".csv",
    "application/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.apache.arrow.file": ".arrow",
    "application/vnd.apache.arrow.stream": ".arrow",
    "application/epub+zip": ".epub",
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/rtf": ".rtf",
    "text/rtf": ".rtf",
    "application/x-subrip": ".srt",
    "text/vtt": ".vtt",
    "application/mbox": ".mbox",
    "message/rfc822": ".eml",
    "application/x-ipynb+json": ".ipynb",
    "application/zip": ".zip",
    "application/x-zip-compressed": ".zip",
    "application/x-tar": ".tar",
}
COMPRESSIONS = {
    "gzip": ".gz",
    "x-gzip": ".gz",
    "bzip2": ".bz2",
    "x-bzip2": ".bz2",
    "xz": ".xz",
    "x-xz": ".xz",
    "zstd": ".zst",
}
"""Suffixes of the compressions of HTTP answers that are read."""
_FAMILIES = {"+xml": ".xml", "+json": ".json"}
# Of programs on servers, whose output is what they say rather than this.
_PROGRAMS = (".php", ".pl")
_PAGES = (".html", ".htm", ".xhtml")


def cache_folder() -> Path:
    """Return the download cache folder: `$AGI2_CACHE`, or the platform's default.

    Raises:
        AGI2Error: if there is no home folder.
    """
    if chosen := os.environ.get("AGI2_CACHE"):
        return Path(chosen)
    platform_default = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    if base := os.environ.get(platform_default):
        return Path(base) / "agi2"
    try:
        return Path.home() / ".cache" / "agi2"
    except RuntimeError as error:  # neither HOME nor an entry for the user
        raise AGI2Error(
            "there is no home folder to keep a cache in: set AGI2_CACHE to a folder"
        ) from error


def cached_path(url: str, suffix: str = "", charset: str = "") -> Path:
    """Return the cache path of a URL, whether or not it exists.

    Args:
        url: the URL, whose last part is kept, since its suffix selects the reader.
        suffix: the suffix that selects it instead.
        charset: the encoding of the text.

    Raises:
        AGI2Error: as in `cache_folder`.
    """
    name = re.sub(r"[^\w.-]", "_", _last_part(url), flags=re.ASCII)[-80:] or "text"
    if charset:  # no name has an @ otherwise
        suffix = f"@{charset}{suffix or known_suffix(name)}"
    return cache_folder() / f"{_prefix(url)}{name}{suffix}"


def find_cached(url: str) -> Path | None:
    """Return the path of the file of a URL in the cache, with whatever suffix, if there is one."""
    exact = cached_path(url)
    if exact.exists():
        return exact
    return next(iter(sorted(cache_folder().glob(_prefix(url) + "*"))), None)


def charset_of(path: Path) -> str | None:
    """Return the encoding in the name of a downloaded file, which the server named."""
    found = re.search(r"@([\w-]+)(\.|$)", path.name)
    return found[1] if found else None


def expects_page(url: str) -> bool:
    """Return whether a web page may be what a URL names: it ends in no suffix of another format."""
    name = _last_part(url)
    return not known_suffix(name) or name.lower().endswith((*_PAGES, *_PROGRAMS))


def response_suffix(url: str, final_url: str, headers: Message) -> str:
    """Return the suffix of the format of a response, or none if the URL or nothing names it.

    Args:
        url: the URL.
        final_url: the URL to which it was redirected.
        headers: the headers of the response.
    """
    name, kind = _last_part(url), headers.get_content_type()
    suffix = _SUFFIXES.get(kind, "") or _FAMILIES.get(kind[kind.rfind("+") :], "")
    named = known_suffix(PurePosixPath(headers.get_filename("")).name)
    is_output = bool(named or suffix) and name.lower().endswith(_PROGRAMS)
    if known_suffix(name) and not is_output:
        return ""
    return named or suffix or known_suffix(_last_part(final_url))


def content_encoding(headers: Message) -> str:
    """Return the compression of a response; empty for none."""
    encoding: str = headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def compressed_suffix(url: str, headers: Message) -> str:
    """Return the suffix of the compression of a response, or none if the URL ends in it.

    Servers say of a file that is compressed that its content is.
    """
    suffix = COMPRESSIONS.get(content_encoding(headers), "")
    return "" if known_suffix(_last_part(url)).endswith(suffix) else suffix


def response_charset(headers: Message) -> str:
    """Return the encoding that a response names, if it is one; empty for UTF-8, the default."""
    name = headers.get_content_charset("")
    if not name or not is_encoding(name):
        return ""
    found = codecs.lookup(declared_name(name)).name
    return "" if found in ("utf-8", "ascii") else found


def without_login(url: str) -> tuple[str, str]:
    """Split a URL into the URL without its user information, and that user information."""
    scheme, rest = url.split("://", 1)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    login, _, host = authority.rpartition("@")
    return f"{scheme}://{host}{rest[len(authority):]}", login


def _last_part(url: str) -> str:
    """Return the last part of the path of a URL."""
    path = re.split("[?#]", without_login(url)[0].split("://", 1)[1], maxsplit=1)[0]
    return path.rsplit("/", 1)[1] if "/" in path else ""


def _prefix(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:12] + "-"
