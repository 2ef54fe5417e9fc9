"""Read Parquet and Arrow files with pyarrow, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .documents import Document
from .fields import choose_field, listed
from .inputs import Input
from .text_files import Unreadable

Choose = Callable[[Input, Any], list[str]]
"""Returns the names of the columns to read, of a schema."""

# Rows that are in memory at a time.
_ROWS = 256


def read_parquet(source: Input) -> Iterator[Document]:
    """Yield the text column of each row of a Parquet file."""
    yield from _texts(source, parquet_batches(source, _column))


def read_arrow(source: Input) -> Iterator[Document]:
    """Yield the text column of each row of an Arrow file or stream, or a Feather file."""
    yield from _texts(source, arrow_batches(source, _column))


def parquet_batches(source: Input, choose: Choose) -> Iterator[Any]:
    """Yield the batches of a Parquet file, with the columns that `choose` returns."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source.seekable(), pre_buffer=False) as file:
        columns = choose(source, file.schema_arrow)
        yield from file.iter_batches(_ROWS, columns=columns, use_threads=False)


def arrow_batches(source: Input, choose: Choose) -> Iterator[Any]:
    """Yield the batches of an Arrow file or stream, with the columns that `choose` returns."""
    import pyarrow

    if source.stream.peek(6)[:6] == b"ARROW1":
        with pyarrow.ipc.open_file(source.seekable()) as file:
            columns = choose(source, file.schema)
            for number in range(file.num_record_batches):
                yield file.get_batch(number).select(columns)
    else:
        with pyarrow.ipc.open_stream(source.stream) as stream:
            columns = choose(source, stream.schema)
            for batch in stream:
                yield batch.select(columns)


def _column(source: Input, schema: Any) -> list[str]:
    names, texts = list(schema.names), text_columns(schema)
    advice = "set text_field"
    if not texts and names:
        advice = f"none of them is text ({names[0]} is {schema.field(0).type}): {_JOIN}"
    column = choose_field(source, names, texts, advice=advice)
    if names.count(column) > 1:
        raise source.error("broken tables", f"the column {column!r} occurs more than once")
    if not _is_text(schema.field(column).type):
        advice = f"set text_field, such as to {texts[0]!r}" if texts else _JOIN
        raise source.error(
            "without the field",
            f"the column {column!r} of {listed(names)} is {schema.field(column).type}, not text: "
            f"{advice}",
        )
    return [column]


_JOIN = "save the text of each row in a column of strings"


def text_columns(schema: Any) -> list[str]:
    """Return the names of the columns that contain text."""
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(types, "is_string_view", lambda _: False)(kind)
    return types.is_string(kind) or types.is_large_string(kind) or is_view


def _texts(source: Input, batches: Iterator[Any]) -> Iterator[Document]:
    """Yield the rows of batches of one column; null is an empty text."""
    for at, value in numbered_rows(source, (batch.column(0) for batch in batches)):
        yield source.document(value or "", at)


def numbered_rows(source: Input, batches: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Yield where each row is, such as ` row 3`, and its value, a mapping if it has columns.

    Raises:
        Unreadable: if the file is damaged.
    """
    row = 0
    values = _values(batches)
    while True:
        try:
            value = next(values, _END)
        except Unreadable:
            raise
        except Exception as error:  # pyarrow raises many types for damaged files
            what = str(error).split("\n")[0] or type(error).__name__
            raise source.error(
                "damaged", f"damaged: {what}", f" row {row + 1}" if row else ""
            ) from error
        if value is _END:
            return
        row += 1
        yield f" row {row}", value


_END: Any = object()


def _values(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, len(batch), _ROWS):
            yield from batch.slice(start, _ROWS).to_pylist()
