"""Read files that a test writes."""

from __future__ import annotations

from pathlib import Path

from src.data.documents import Document, ReadOptions, ReadReport, SourceReport
from src.data.readers import iterate_documents


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def documents(path: Path, content: bytes | str | None = None, **options) -> list[Document]:
    """Return the documents of a file, after writing its content if it is given."""
    if content is not None:
        write(path, content)
    return list(iterate_documents(str(path), ReadOptions(**options)))


def texts(path: Path, content: bytes | str | None = None, **options) -> list[str]:
    """Return the texts of a file's documents, after writing its content if it is given."""
    return [document.text for document in documents(path, content, **options)]


def read_with_report(path: Path, **options) -> tuple[list[str], SourceReport]:
    """Return the texts of a source and the report on it."""
    report = ReadReport()
    found = [each.text for each in iterate_documents(str(path), ReadOptions(**options), report)]
    return found, report.sources[0]


def lines_of(tally) -> str:
    """Return all lines of a counter of skipped items."""
    return "\n".join(tally.lines())
