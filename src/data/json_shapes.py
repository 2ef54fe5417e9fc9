"""Find the records in values of JSON, and describe values that are none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .conversations import is_message
from .inputs import Input

# Characters from which a text next to a list is no version, name or address of the list.
_LONG = 200


def records_in(
    source: Input, value: Any, fields: Collection[str], *, is_alone: bool = True
) -> list[Any]:
    """Return the records in a value of a JSON file, or the value by itself.

    They are the objects of a list, the rows of a table of pandas, or the only list of objects in an
    object without the fields. Messages are no records: an object with a list of them is a
    conversation. The texts next to the only list are counted as skipped; if they are more than
    those in it, as of a document with tags, the object is the record.

    Args:
        source: the file.
        value: the value.
        fields: an object with one of these fields is a record itself.
        is_alone: whether the file has no other value. If it has, as in JSON Lines, the only list is
            taken only from an object without texts of its own.

    Raises:
        Unreadable: if it is unclear which the records are.
    """
    if not isinstance(value, dict):
        return items_in(value)
    rows = _rows(value)
    if rows is not None:
        return [value] if all(map(is_message, rows)) else rows
    lists = [name for name, each in value.items() if _are_objects(each)]
    if len(lists) != 1 or not value.keys().isdisjoint(fields):
        return [value]
    (name,) = lists
    rows, others = value[name], {key: each for key, each in value.items() if key != name}
    texts = {key: found for key, each in others.items() if (found := texts_in(each))}
    if all(map(is_message, rows)) or (texts and not is_alone):
        return [value]
    if texts and not _is_list_meant(source, rows, texts, fields, name):
        return [value]
    _count_beside(source, name, texts)
    return rows


def _is_list_meant(
    source: Input,
    rows: list[Any],
    texts: dict[str, list[str]],
    fields: Collection[str],
    name: str,
) -> bool:
    """Return whether the rows of a list are the records, rather than the object that it is in.

    Raises:
        Unreadable: if both have long texts.
    """
    has_field = any(not row.keys().isdisjoint(fields) for row in rows)
    options = source.options
    if options.are_conversations or options.are_pairs or (has_field and options.text_field):
        return True
    inside, beside = texts_in(rows), [text for found in texts.values() for text in found]
    has_long = any(len(text) > _LONG for text in beside)
    if has_long and (has_field or any(len(text) > _LONG for text in inside)):
        longest = max(texts, key=lambda key: max(map(len, texts[key])))
        raise source.error(
            "with texts in two places",
            f"there are texts in {longest!r} and in the objects of the list {name!r}: set "
            "text_field to the field that is meant",
        )
    return has_field or (not has_long and sum(map(len, beside)) <= sum(map(len, inside)))


def _count_beside(source: Input, name: str, texts: dict[str, list[str]]) -> None:
    for key, found in texts.items():
        source.report.skipped.add(
            "texts next to the only list of objects",
            f"{source.name}: {key!r}, beside {name!r}",
            count=len(found),
            size=sum(map(len, found)),
            unit="characters",
        )


def texts_in(value: Any) -> list[str]:
    """Return all texts in a value, at any depth."""
    texts, values = [], [value]
    while values:
        each = values.pop()
        if isinstance(each, str):
            texts.append(each)
        elif isinstance(each, dict | list):
            values.extend(each.values() if isinstance(each, dict) else each)
    return texts


def items_in(value: Any) -> list[Any]:
    """Return the items of a list of objects that are not messages, or the value by itself."""
    return value if _are_objects(value) and not any(map(is_message, value)) else [value]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _are_all(value, dict)


def _are_all(values: list[Any], kind: type) -> bool:
    return all(isinstance(each, kind) for each in values)


def _rows(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows of a table that pandas saved, in whichever layout."""
    names, data = value.get("columns"), value.get("data")
    schema = value.get("schema")
    if value.keys() == {"schema", "data"} and isinstance(schema, dict) and _are_objects(data):
        rows = value["data"] if "fields" in schema else []
        return rows or None
    if value.keys() <= _SPLIT and isinstance(names, list) and isinstance(data, list):
        is_table = all(isinstance(row, list) and len(row) == len(names) for row in data)
        are_names = all(isinstance(name, str) for name in names)
        rows = [dict(zip(names, row, strict=True)) for row in data if is_table and are_names]
        return rows or None
    parts = list(value.values())
    if not parts or not all(isinstance(part, dict) and part for part in parts):
        return None
    if _are_numbers(value):
        return parts
    if not _are_numbers(parts[0]) or any(part.keys() != parts[0].keys() for part in parts):
        return None
    return [{name: column[row] for name, column in value.items()} for row in parts[0]]


# The keys of a table that pandas saved with `orient="split"`.
_SPLIT = {"columns", "index", "data"}


def _are_numbers(names: Collection[str]) -> bool:
    """Return whether names are the numbers of rows."""
    return all(name.isascii() and name.isdigit() for name in names)


def kind_of(value: Any) -> str:
    """Return what a value is, with its article, for messages."""
    if isinstance(value, list):
        lists = (f"a list{of}" for kind, of in _LISTS.items() if value and _are_all(value, kind))
        return next(lists, "a list")
    return _KINDS.get(type(value), "a number")


_KINDS: dict[type, str] = {
    dict: "an object",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}
_LISTS: dict[type, str] = {dict: " of objects", str: " of texts", list: " of lists"}
