"""Read Parquet and Arrow files with pyarrow, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .documents import Document
from .fields import choose_field
from .inputs import Input
from .text_files import Unreadable

# Rows that are in memory at a time.
_ROWS = 256


def read_parquet(source: Input) -> Iterator[Document]:
    """Yield the text column of each row of a Parquet file."""
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(source.seekable(), pre_buffer=False) as file:
            column = _column(source, file.schema_arrow)
            for batch in file.iter_batches(_ROWS, columns=[column], use_threads=False):
                yield batch.column(0)

    yield from _rows(source, batches())


def read_arrow(source: Input) -> Iterator[Document]:
    """Yield the text column of each row of an Arrow file or stream, or a Feather file."""
    import pyarrow

    def batches() -> Iterator[Any]:
        if source.stream.peek(6)[:6] == b"ARROW1":
            with pyarrow.ipc.open_file(source.seekable()) as file:
                column = _column(source, file.schema)
                for number in range(file.num_record_batches):
                    yield file.get_batch(number).column(column)
        else:
            with pyarrow.ipc.open_stream(source.stream) as stream:
                column = _column(source, stream.schema)
                for batch in stream:
                    yield batch.column(column)

    yield from _rows(source, batches())


def _column(source: Input, schema: Any) -> str:
    names = list(schema.names)
    column = choose_field(source, names, [field.name for field in schema if _is_text(field.type)])
    if names.count(column) > 1:
        raise source.error("broken tables", f"the column {column!r} occurs more than once")
    if not _is_text(schema.field(column).type):
        raise source.error(
            "without the field",
            f"the column {column!r} of {', '.join(names)} is not text; set text_field",
        )
    return column


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(types, "is_string_view", lambda _: False)(kind)
    return types.is_string(kind) or types.is_large_string(kind) or is_view


def _rows(source: Input, batches: Iterator[Any]) -> Iterator[Document]:
    """Yield the rows of the batches; null is an empty text."""
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
        yield source.document(value or "", f" row {row}")


_END: Any = object()


def _values(batches: Iterator[Any]) -> Iterator[str | None]:
    for batch in batches:
        for start in range(0, len(batch), _ROWS):
            yield from batch.slice(start, _ROWS).to_pylist()
