"""Read conversations: JSON in the known formats, tables, Parquet, and plain text with speakers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from ..errors import AGI2Error
from .chat_template import Message
from .columnar import Rows, arrow_batches, numbered_rows, parquet_batches, text_columns
from .conversations import (
    CONVERSATION_FIELDS,
    MESSAGE_FIELDS,
    PAIRS,
    PREFERENCE_FIELDS,
    PREFERENCES_HINT,
    Pair,
    complete,
    has_pair,
    is_message,
    messages_of,
    to_text,
)
from .documents import Document
from .fields import listed
from .formats import ARROW, JSON, JSON_LINES, PARQUET, TABLE, TEXT, Format
from .inputs import Input
from .json_records import BrokenLines, Record, json_line_records, json_records
from .speakers import Spoken, speaker_pattern, split_conversations
from .tables import open_table
from .text import normalize, text_lines
from .text_files import Unreadable

Parse = Callable[[Any], list[Message]]
"""Returns the messages of the value of a record."""


def read_conversations(source: Input, format_: Format) -> Iterator[Document]:
    """Yield the conversations of an input, each as its canonical text.

    Broken conversations are counted and skipped, up to `max_broken_lines` and a tenth of them.

    Raises:
        Unreadable: if there are more, or conversations are not read from this format.
    """
    read = _READERS.get(format_)
    if read is None:
        raise source.error(
            "in no format of conversations",
            f"conversations are not read from {format_.name}: save them as JSON lines, CSV, "
            "Parquet, or plain text with speakers",
        )
    broken = BrokenLines(source)
    records, parse = read(source, broken)
    for at, value, size in records:
        try:
            messages, is_dropped = complete(normalized(source, parse(value)))
        except AGI2Error as error:
            problem = f"{source.name}{at}: {error}"
            broken.add(Unreadable("broken conversations", problem), size)
            continue
        if is_dropped:
            source.report.skipped.add("last messages without an answer", source.name + at)
        yield source.document(to_text(messages), at)
    broken.finish()


def normalized(source: Input, messages: list[Message]) -> list[Message]:
    """Return messages whose texts are normalized as the key `normalize` says."""
    how = source.options.normalize
    return [Message(role, normalize(content, how)) for role, content in messages]


def _read_json_lines(source: Input, broken: BrokenLines) -> tuple[Iterator[Record], Parse]:
    return json_line_records(source, broken), messages_of


def _read_json(source: Input, broken: BrokenLines) -> tuple[Iterator[Record], Parse]:
    return _joined_messages(json_records(source, broken, CONVERSATION_FIELDS), broken), messages_of


def _joined_messages(records: Iterator[Record], broken: BrokenLines) -> Iterator[Record]:
    """Yield the records; those that are messages, as in the file of a chat, as one conversation."""
    messages: list[Any] = []
    size = 0
    for record in records:
        if is_message(record[1]):
            messages.append(record[1])
            size += record[2]
        else:
            yield record
    if messages:
        broken.total -= len(messages) - 1
        yield "", messages, size


def _read_table(source: Input, broken: BrokenLines) -> tuple[Iterator[Record], Parse]:
    layout, rows = open_table(source)
    pair = _pair(source, layout.columns, layout.candidates)
    for name in pair:
        layout.column(source, name)  # raises if there are several

    def records() -> Iterator[Record]:
        for line, row in rows:
            broken.total += 1
            yield f":{line}", dict(zip(layout.columns, row, strict=True)), sum(map(len, row))

    return records(), lambda value: messages_of(value, pair)


def _pair(source: Input, names: Sequence[str], candidates: Sequence[str]) -> Pair:
    """Return the columns of what the user and the assistant say; those that are taken are noted.

    Raises:
        Unreadable: if that is not clear.
    """
    known = next((pair for pair in PAIRS if has_pair(names, pair)), None)
    if known is not None:
        return known
    if has_pair(names, PREFERENCE_FIELDS):
        raise source.error("of preferences", f"the columns {PREFERENCES_HINT}", ":1")
    if is_message(dict.fromkeys(names)):
        raise source.error(
            "of single messages",
            "a row is one message, of which none says where a conversation begins: save each "
            "conversation as a line of JSON with messages",
            ":1",
        )
    if len(candidates) != 2:
        raise source.error(
            "without the columns",
            f"no columns prompt and completion among {listed(names)}: name them so",
            ":1",
        )
    user, assistant = candidates
    source.note(f"read in the columns {user!r} (the user's) and {assistant!r} (the assistant's)")
    return user, assistant


def _read_parquet(source: Input, broken: BrokenLines) -> tuple[Iterator[Record], Parse]:
    return _read_columns(source, broken, parquet_batches)


def _read_arrow(source: Input, broken: BrokenLines) -> tuple[Iterator[Record], Parse]:
    return _read_columns(source, broken, arrow_batches)


def _read_columns(
    source: Input, broken: BrokenLines, batches: Callable[..., Iterator[Any]]
) -> tuple[Iterator[Record], Parse]:
    pair: Pair | None = None

    def choose(source: Input, schema: Any, _: Rows) -> list[str]:
        nonlocal pair
        more = [name for name in ("system", "system_prompt") if name in schema.names]
        found = next((name for name in MESSAGE_FIELDS if name in schema.names), None)
        if found is not None:
            return [found, *more]
        pair = _pair(source, schema.names, text_columns(schema))
        if pair == ("instruction", "output") and "input" in schema.names:
            more.append("input")
        return [*pair, *more]

    def records() -> Iterator[Record]:
        for at, value in numbered_rows(source, batches(source, choose)):
            broken.total += 1
            yield at, value, 0

    return records(), lambda value: messages_of(value, pair)


def _read_text(source: Input, broken: BrokenLines) -> tuple[Iterator[Record], Parse]:
    """Read text with speakers; or JSON lines whose suffix is that of a text."""
    are_json, lines = open_lines(source)
    if are_json:
        return json_line_records(source, broken, lines), messages_of
    pattern = speaker_pattern(source.options.speakers)

    def records() -> Iterator[Record]:
        for spoken in split_conversations(lines, pattern):
            broken.total += 1
            yield f":{spoken.line}", spoken, sum(len(each.content) for each in spoken.messages)

    return records(), _messages_of_spoken


def open_lines(source: Input) -> tuple[bool, Iterator[str]]:
    """Return the lines of a text, and whether they seem to be JSON lines."""
    lines, read = text_lines(source), list[str]()
    for line in lines:
        read.append(line)
        if line.strip():
            break
    return bool(read) and read[-1].lstrip().startswith("{"), chain(read, lines)


def _messages_of_spoken(spoken: Spoken) -> list[Message]:
    if spoken.problem:
        raise AGI2Error(spoken.problem)
    return spoken.messages


_READERS: dict[Format, Callable[[Input, BrokenLines], tuple[Iterator[Record], Parse]]] = {
    JSON_LINES: _read_json_lines,
    JSON: _read_json,
    TABLE: _read_table,
    PARQUET: _read_parquet,
    ARROW: _read_arrow,
    TEXT: _read_text,
}
