"""Read Parquet and Arrow files with pyarrow, a batch of rows at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import IO, Any

from .documents import Document
from .fields import are_texts, choose_field, listed
from .formats import NOT_READ
from .inputs import BLOCK, Input
from .text_files import Unreadable

Rows = Callable[[list[str]], Any]
"""Returns the first batch of some columns; None if there is none."""
Choose = Callable[[Input, Any, Rows], list[str]]
"""Returns the names of the columns to read, by a schema and the first rows."""

# Rows that are in memory at a time.
_ROWS = 256
# The end of a file and the beginning of the next, where several were joined into one; before them
# is the length of the metadata.
_PARQUET_JOINT, _ARROW_JOINT = b"PAR1PAR1", b"ARROW1ARROW1\0\0"
_LENGTH = 4
# How each message of an Arrow stream begins.
_MESSAGE = b"\xff\xff\xff\xff"


def read_parquet(source: Input) -> Iterator[Document]:
    """Yield the text column of each row of a Parquet file."""
    yield from _texts(source, parquet_batches(source, _column))


def read_arrow(source: Input) -> Iterator[Document]:
    """Yield the text column of each row of an Arrow file or stream, or a Feather file."""
    yield from _texts(source, arrow_batches(source, _column))


def parquet_batches(source: Input, choose: Choose) -> Iterator[Any]:
    """Yield the batches of a Parquet file, with the columns that `choose` returns."""
    import pyarrow.parquet

    stream = source.seekable()
    _check_single(source, stream, _PARQUET_JOINT)
    with pyarrow.parquet.ParquetFile(stream, pre_buffer=False) as file:

        def batches(columns: list[str]) -> Iterator[Any]:
            return file.iter_batches(_ROWS, columns=columns, use_threads=False)

        columns = choose(source, file.schema_arrow, lambda each: next(batches(each), None))
        yield from batches(columns)


def arrow_batches(source: Input, choose: Choose) -> Iterator[Any]:
    """Yield the batches of an Arrow file or stream, with the columns that `choose` returns.

    Several streams, one after the other, are read as one.
    """
    import pyarrow

    head = source.stream.peek(6)
    if head.startswith(b"FEA1"):
        what = "a Feather file of version 1: save it again, as version 2"
        raise source.error(NOT_READ, what)
    if head.startswith(b"ARROW1"):
        stream = source.seekable()
        _check_single(source, stream, _ARROW_JOINT)
        with pyarrow.ipc.open_file(stream) as file:
            numbers = range(file.num_record_batches)
            yield from _chosen(source, file.schema, map(file.get_batch, numbers), choose)
        return
    with pyarrow.ipc.open_stream(source.stream) as reader:
        batches = chain(reader, _more_batches(source, reader.schema))
        yield from _chosen(source, reader.schema, batches, choose)


def _more_batches(source: Input, schema: Any) -> Iterator[Any]:
    """Yield the batches of the Arrow streams that follow one with a schema.

    Raises:
        Unreadable: if one has another schema.
    """
    import pyarrow

    while source.stream.peek(len(_MESSAGE)).startswith(_MESSAGE):
        with pyarrow.ipc.open_stream(source.stream) as reader:
            if not reader.schema.equals(schema):
                what = "streams of different columns joined into one: save each as its own"
                raise source.error("damaged", what)
            yield from reader


def _chosen(source: Input, schema: Any, batches: Iterable[Any], choose: Choose) -> Iterator[Any]:
    """Yield batches with the columns that `choose` returns."""
    rest = iter(batches)
    first = list(islice(rest, 1))
    columns = choose(source, schema, lambda each: first[0].select(each) if first else None)
    yield from (batch.select(columns) for batch in chain(first, rest))


def _check_single(source: Input, file: IO[bytes], joint: bytes) -> None:
    """Check that a file is not several, of which the places of the last one are wrong.

    Args:
        source: the input.
        file: its bytes; afterwards, at their beginning.
        joint: the end of one and the beginning of the next.

    Raises:
        Unreadable: if it is.
    """
    tail = b""
    pattern = re.compile(re.escape(joint))
    while block := file.read(BLOCK):
        data = tail + block
        # Before it is the length of metadata, which a text is not.
        starts = [found.start() for found in pattern.finditer(data)]
        lengths = [int.from_bytes(data[max(0, at - _LENGTH) : at], "little") for at in starts]
        if lengths and min(lengths) < file.tell():
            raise source.error("damaged", "several files joined into one: save each as its own")
        tail = data[1 - len(joint) - _LENGTH :]
    file.seek(0)


def _column(source: Input, schema: Any, rows: Rows) -> list[str]:
    names, texts = list(schema.names), text_columns(schema)
    if len(texts) > 1:
        texts = _without_categories(texts, rows) or texts
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


def _without_categories(texts: list[str], rows: Rows) -> list[str]:
    """Return those of the columns whose first rows are texts, rather than categories."""
    names = [name for name in texts if texts.count(name) == 1]
    first = rows(names)
    if first is None:
        return texts
    columns = zip(names, first.slice(0, _ROWS).columns, strict=True)
    first.validate(full=True)
    return [name for name, column in columns if are_texts(column.drop_null().to_pylist())]


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
        batch.validate(full=True)  # else damaged offsets are read as they are: a crash
        for start in range(0, len(batch), _ROWS):
            yield from batch.slice(start, _ROWS).to_pylist()
