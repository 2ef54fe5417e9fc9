"""Read Jupyter notebooks: the text and the code of their cells, without output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import AGI2Error
from ..utils import parse_json
from .documents import Document
from .inputs import Input
from .text import read_whole_text


def read_notebook(source: Input) -> Iterator[Document]:
    """Yield the cells of a notebook as one document.

    Raises:
        Unreadable: if it is not a notebook.
    """
    try:
        notebook = parse_json(read_whole_text(source), source.name)
    except AGI2Error as error:
        if hasattr(error, "reason"):
            raise
        raise source.error("broken JSON", str(error).removeprefix(source.name).strip()) from error
    texts = [_text(cell) for cell in _cells(notebook)]
    if not texts:
        raise source.error("broken notebooks", "not a Jupyter notebook: it has no cells")
    text = "\n\n".join(text.strip("\n") for text in texts if text.strip())
    # JSON escapes can encode lone surrogates.
    yield source.document(text.encode("utf-8", "replace").decode() + "\n")


def _cells(notebook: Any) -> list[Any]:
    """Return the cells of a notebook; before version 4, they are in worksheets."""
    if not isinstance(notebook, dict):
        return []
    parts = [notebook]
    if isinstance(notebook.get("worksheets"), list):
        parts += [each for each in notebook["worksheets"] if isinstance(each, dict)]
    cells = (part.get("cells") for part in parts)
    return [cell for each in cells if isinstance(each, list) for cell in each]


def _text(cell: Any) -> str:
    """Return the source of a cell: a text or a list of texts."""
    source = cell.get("source", cell.get("input", "")) if isinstance(cell, dict) else ""
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    return source if isinstance(source, str) else ""
