"""Read pairs of preferences: JSON lines, JSON, tables and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..errors import AGI2Error
from .columnar import Rows, arrow_batches, numbered_rows, parquet_batches
from .conversation_readers import normalized, open_lines
from .conversations import PREFERENCE_FIELDS, has_pair, to_text
from .documents import Document
from .fields import listed
from .formats import ARROW, JSON, JSON_LINES, PARQUET, TABLE, TEXT, Format
from .inputs import Input
from .json_records import BrokenLines, Record, json_line_records, json_records
from .preferences import complete_pair, pair_of
from .tables import open_table
from .text_files import Unreadable

_COLUMNS = ("system", "system_prompt", "prompt", *PREFERENCE_FIELDS)


def read_pairs(source: Input, format_: Format) -> Iterator[Document]:
    """Yield the pairs of an input, each as its canonical text.

    Broken pairs are counted and skipped, up to `max_broken_lines` and a tenth of them.

    Raises:
        Unreadable: if there are more, or pairs are not read from this format.
    """
    broken = BrokenLines(source)
    for at, value, size in _records(source, format_, broken):
        try:
            chosen, rejected = complete_pair(*(normalized(source, one) for one in pair_of(value)))
        except AGI2Error as error:
            broken.add(Unreadable("broken pairs", f"{source.name}{at}: {error}"), size)
            continue
        yield source.document(to_text(chosen, rejected), at)
    broken.finish()


def _records(source: Input, format_: Format, broken: BrokenLines) -> Iterator[Record]:
    read = _READERS.get(format_)
    if format_ == TEXT:  # JSON lines whose suffix is that of a text
        are_json, lines = open_lines(source)
        if are_json:
            return json_line_records(source, broken, lines)
    if read is None:
        raise source.error(
            "in no format of pairs",
            f"pairs are not read from {format_.name}: save them as JSON lines, with chosen and "
            "rejected",
        )
    return read(source, broken)


def _read_json(source: Input, broken: BrokenLines) -> Iterator[Record]:
    return json_records(source, broken, PREFERENCE_FIELDS)


def _read_table(source: Input, broken: BrokenLines) -> Iterator[Record]:
    layout, rows = open_table(source)
    _check_columns(source, layout.columns)
    for line, row in rows:
        broken.total += 1
        yield f":{line}", dict(zip(layout.columns, row, strict=True)), sum(map(len, row))


def _read_parquet(source: Input, broken: BrokenLines) -> Iterator[Record]:
    return _read_columns(source, broken, parquet_batches)


def _read_arrow(source: Input, broken: BrokenLines) -> Iterator[Record]:
    return _read_columns(source, broken, arrow_batches)


def _read_columns(
    source: Input, broken: BrokenLines, batches: Callable[..., Iterator[Any]]
) -> Iterator[Record]:
    def choose(source: Input, schema: Any, _: Rows) -> list[str]:
        _check_columns(source, schema.names)
        return [name for name in _COLUMNS if name in schema.names]

    for at, value in numbered_rows(source, batches(source, choose)):
        broken.total += 1
        yield at, value, 0


def _check_columns(source: Input, names: list[str]) -> None:
    """Raise if the columns of a table lack those of a pair, or have one of them twice."""
    if not has_pair(names, PREFERENCE_FIELDS):
        raise source.error(
            "without the columns",
            f"no columns chosen and rejected among {listed(names)}: name them so",
        )
    for name in _COLUMNS:
        if names.count(name) > 1:
            raise source.error("broken tables", f"the column {name!r} occurs more than once")


_READERS: dict[Format, Callable[[Input, BrokenLines], Iterator[Record]]] = {
    JSON_LINES: json_line_records,
    JSON: _read_json,
    TABLE: _read_table,
    PARQUET: _read_parquet,
    ARROW: _read_arrow,
}
