"""Read JSON Lines and JSON files, record by record."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..errors import AGI2Error
from ..utils import MAX_DEPTH, is_nested_deeper, json_problem, parse_json
from .documents import Document
from .fields import DEFAULT_FIELD, are_texts, choose_field
from .inputs import Input
from .json_shapes import items_in, kind_of, records_in, texts_in
from .text import MAX_LINE, MAX_WHOLE_TEXT, text_blocks, text_lines
from .text_files import Unreadable

# Characters of the beginning by whose records the field of the text is found.
_HEAD = 2**20
# Share of the lines that may be broken, if more than one is.
_BROKEN_SHARE = 0.1
_TOO_MANY = "with too many broken lines"

_SPACE = re.compile(r"[ \t\n\r]+")

Record = tuple[str, Any, int]
"""Where a record is, such as `:12`, its value, and its size in characters."""


class BrokenLines:
    """Counter of broken lines, or records, which are skipped up to a limit."""

    def __init__(self, source: Input) -> None:
        self.total = 0
        """Number of all lines so far."""
        self._source = source
        self._count = 0
        self._first: Unreadable | None = None

    def add(self, problem: Unreadable, size: int) -> None:
        """Count a broken line of `size` characters.

        Raises:
            Unreadable: if there are more than `max_broken_lines`: the problem of the first.
        """
        self._count += 1
        self._first = self._first or problem
        limit = self._source.options.max_broken_lines
        if self._count > limit:
            if limit == 0:
                raise problem
            raise Unreadable(
                _TOO_MANY,
                f"{self._first}; it is the first of {limit + 1:,} broken lines, and "
                f"max_broken_lines is {limit:,}: what follows is not read",
            )
        self._source.report.skipped.add(problem.reason, str(problem), size=size, unit="characters")

    def finish(self) -> None:
        """Check the number of broken lines against that of all lines.

        Raises:
            Unreadable: if all lines are broken, or more than one and a tenth of them.
        """
        total = self.total
        if self._first is not None and (
            self._count == total or (self._count > 1 and self._count > _BROKEN_SHARE * total)
        ):
            if total == 1:
                raise self._first
            raise Unreadable(
                _TOO_MANY,
                f"{self._first}; {self._count:,} of {total:,} lines are broken, more than a tenth",
            )


def read_json_lines(source: Input) -> Iterator[Document]:
    """Yield the text of each line: of a field of an object, or a string.

    The objects in a list on a line are records, too. Broken lines are counted and skipped, up to
    `max_broken_lines` and a tenth of the lines.
    """
    broken = BrokenLines(source)
    yield from _texts(source, json_line_records(source, broken), broken)
    broken.finish()


def json_line_records(
    source: Input, broken: BrokenLines, lines: Iterable[str] | None = None
) -> Iterator[Record]:
    """Yield the records of each line that is JSON; count them, and the lines that are not.

    Args:
        source: the file.
        broken: the counter.
        lines: the lines, if they have been opened already.

    Raises:
        Unreadable: if it is one value over several lines.
    """
    for number, line in enumerate(text_lines(source) if lines is None else lines, 1):
        if not line or line.isspace():
            continue
        broken.total += 1
        try:
            items = items_in(_parse(source, line, number))
        except AGI2Error as error:
            if broken.total == 1 and line.strip() in ("[", "{"):
                raise source.error(
                    "broken JSON", "not JSON lines, but JSON over several: name it .json", ":1"
                ) from error
            broken.add(Unreadable("broken JSON", str(error)), len(line))
            continue
        broken.total += len(items) - 1
        for item_number, item in enumerate(items, 1):
            at = f":{number}" + f" record {item_number}" * (len(items) > 1)
            yield at, item, len(line) // len(items)


_decode = json.JSONDecoder().raw_decode


def _parse(source: Input, line: str, number: int) -> Any:
    """Parse a line; as `parse_json` does, which takes twice as long for a short line."""
    if line.count("{") + line.count("[") <= MAX_DEPTH:
        try:
            value, end = _decode(line)
        except ValueError:  # it is raised again below, with a message
            end = -1
        if end == len(line):
            return value
    return parse_json(line, f"{source.name}:{number}")


def read_json(source: Input) -> Iterator[Document]:
    """Yield the text of each record of a JSON file.

    The records are the items of a list, or of the only list of objects in an object, if that is
    where its text is; the rows of a table of pandas; several values one after the other, as in JSON
    Lines; or one value.
    """
    broken = BrokenLines(source)
    field = source.options.text_field or DEFAULT_FIELD
    yield from _texts(source, json_records(source, broken, (field,)), broken)
    broken.finish()


def json_records(source: Input, broken: BrokenLines, fields: Collection[str]) -> Iterator[Record]:
    """Yield the records of a JSON file, and count them.

    Args:
        source: the file.
        broken: the counter.
        fields: an object with one of these fields is a record itself.
    """
    for value, size in _values(source, fields):
        broken.total += 1
        yield f" record {broken.total}", value, size


def _texts(source: Input, records: Iterator[Record], broken: BrokenLines) -> Iterator[Document]:
    """Yield the texts of records, after choosing the field by the first of them."""
    head: list[Record] = []
    size = 0
    for record in records:
        head.append(record)
        size += record[2]
        if size > _HEAD:
            break
    field = _field(source, head)
    for part in (head, records):
        for at, value, characters in part:
            try:
                yield source.document(_text(source, value, field, at), at)
            except Unreadable as problem:
                broken.add(problem, characters)


def _field(source: Input, head: Iterable[Record]) -> str:
    """Choose the field by the records at the beginning; any name if none of them is an object."""
    objects = [(at, value) for at, value, _ in head if isinstance(value, dict)]
    if not objects:
        return ""
    texts: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for _, value in objects:
        for name, each in value.items():
            texts.setdefault(name, []).extend([each] if isinstance(each, str) else [])
            if each is not None:
                kinds.setdefault(name, kind_of(each))
    candidates = [name for name, values in texts.items() if are_texts(values)]
    advice = "set text_field"
    if not any(texts.values()):
        example = next((f" ({name} is {kind})" for name, kind in kinds.items()), "")
        advice = f"none of them is text{example}: {_ONE_RECORD}"
    elif len(candidates) == 1:
        nested = _longer_texts(candidates[0], [value for _, value in objects])
        if nested is not None:
            advice = f"longer texts are in {nested!r}, {kinds[nested]}: {_ONE_RECORD}, or {advice}"
            candidates = []
    return choose_field(source, list(texts), candidates, objects[0][0], advice)


def _longer_texts(field: str, objects: list[dict[str, Any]]) -> str | None:
    """Return the field of lists or objects with twice as much text as a field, in longer texts."""
    texts = [value[field] for value in objects if isinstance(value.get(field), str)]
    total = sum(map(len, texts))
    inside: dict[str, int] = {}
    for value in objects:
        for name, each in value.items():
            if isinstance(each, dict | list):
                sizes = (len(text) for text in texts_in(each) if len(text) * len(texts) > total)
                inside[name] = inside.get(name, 0) + sum(sizes)
    most = max(inside, key=inside.__getitem__, default=None)
    return most if most is not None and inside[most] > 2 * total else None


_ONE_RECORD = "save each document as an object with its text in a field"


def _text(source: Input, value: Any, field: str, at: str) -> str:
    """Return the text of a record; empty if its field is null.

    Raises:
        Unreadable: if the record has no text.
    """
    text = value.get(field, 0) if isinstance(value, dict) else value
    if isinstance(value, dict):
        if text is None:
            return ""
        text = _join_parts(text) if isinstance(text, list) else text
    if not isinstance(text, str):
        raise source.error("without the field", _shape_problem(value, field), at)
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:  # JSON escapes can encode lone surrogates
        return text.encode("utf-8", "replace").decode()
    return text


def _shape_problem(record: Any, field: str) -> str:
    """Return why a record has no text, and what to do."""
    if not isinstance(record, dict):
        return f"{kind_of(record)}, not an object or a text: {_ONE_RECORD}"
    problem = f"no text in the field {field!r}"
    if field not in record:
        return f"{problem}; set text_field"
    kind = kind_of(record[field])
    advice = "join them to one text" if kind.startswith("a list") else "make it a text"
    others = any(isinstance(each, str) for each in record.values())
    return f"{problem}, which is {kind}: {advice}" + ", or set text_field" * others


def _join_parts(parts: list[Any]) -> Any:
    """Join the parts of a text with links or formats: texts, and objects with a field `text`.

    A list of nothing but texts may be anything, such as words or lines: it is returned.
    """
    found = [part.get(DEFAULT_FIELD) if isinstance(part, dict) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    is_rich = any(isinstance(part, dict) for part in parts)
    return "".join(texts) if is_rich and len(texts) == len(parts) else parts


def _values(source: Input, fields: Collection[str]) -> Iterator[tuple[Any, int]]:
    """Yield the records of a JSON file, and their sizes; items of a list are parsed one by one."""
    parser, is_alone = _Parser(source), True
    while not parser.is_at_end():
        if parser.skip("["):
            is_alone = False
            for value, size in _items(parser):
                records = items_in(value)
                for record in records:
                    yield record, size // len(records)
        else:
            value, size = parser.value(MAX_WHOLE_TEXT)
            is_alone = is_alone and parser.is_at_end()
            records = records_in(source, value, fields, is_alone=is_alone)
            for record in records:
                yield record, size // len(records)


def _items(parser: _Parser) -> Iterator[tuple[Any, int]]:
    """Yield the items of the list that has begun, and their sizes."""
    while not parser.skip("]"):
        yield parser.value(MAX_LINE)
        if not parser.skip(",") and not parser.starts_with("]"):
            raise parser.problem("',' or ']' is missing")


class _Parser:
    """Incremental JSON parser: holds only the block that is parsed."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._blocks = text_blocks(source)
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._line = 1

    def skip(self, character: str) -> bool:
        """Skip white space, then the character if it is next; return whether it was."""
        is_next = self.starts_with(character)
        self._at += is_next
        return is_next

    def starts_with(self, character: str) -> bool:
        """Skip white space, and return whether a character is next."""
        return not self.is_at_end() and self._buffer[self._at] == character

    def is_at_end(self) -> bool:
        """Skip white space, and return whether that was all."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return False
            if not self._extend():
                return True

    def value(self, limit: int) -> tuple[Any, int]:
        """Parse the next value, and return it with its size in characters.

        Raises:
            Unreadable: if it is not JSON, or has more than `limit` characters.
        """
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._is_complete(error) or not self._extend():
                    raise self.problem(json_problem(error), error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.problem("nested too deeply, or a number has too many digits") from error
            else:
                # A number at the end of the buffer may go on.
                if end < len(self._buffer) or not self._extend():
                    break
            if len(self._buffer) - self._at > limit:
                raise self.problem(f"a value has more than {limit:,} characters")
        if isinstance(value, dict | list) and is_nested_deeper(value):
            raise self.problem(f"nested more than {MAX_DEPTH} levels deep")
        size, self._at = end - self._at, end
        return value, size

    def _is_complete(self, error: json.JSONDecodeError) -> bool:
        """Return whether more text would not make the value valid."""
        return error.pos < len(self._buffer) - 16 and not error.msg.startswith("Unterminated")

    def _extend(self) -> bool:
        """Read at least as much as there is, so that parsing again takes linear time in total."""
        self._line += self._buffer.count("\n", 0, self._at)
        parts = [self._buffer[self._at :]]
        size, self._at = len(parts[0]), 0
        wanted = 2 * size + 1
        for block in self._blocks:
            parts.append(block)
            size += len(block)
            if size >= wanted:
                break
        self._buffer = "".join(parts)
        return len(parts) > 1

    def problem(self, what: str, at: int | None = None) -> Unreadable:
        """Return the error for what is wrong at a position, by default the current one."""
        line = self._line + self._buffer.count("\n", 0, self._at if at is None else at)
        return self._source.error("broken JSON", f"not JSON: {what}", f":{line}")
