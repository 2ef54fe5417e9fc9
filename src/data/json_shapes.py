"""Find the records in values of JSON, and describe values that are none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .conversations import is_message


def records_in(value: Any, fields: Collection[str]) -> list[Any]:
    """Return the records in a value of a JSON file, or the value by itself.

    They are the objects of a list, the rows of a table in one of the layouts of pandas, or the only
    list of objects in an object without the fields. Messages are no records: an object with a list
    of them is a conversation.
    """
    if not isinstance(value, dict):
        return items_in(value)
    rows = _rows(value)
    if rows is None and value.keys().isdisjoint(fields):
        lists = [each for each in value.values() if _are_objects(each)]
        rows = lists[0] if len(lists) == 1 else None
    return [value] if rows is None or all(map(is_message, rows)) else rows


def items_in(value: Any) -> list[Any]:
    """Return the items of a list of objects that are not messages, or the value by itself."""
    return value if _are_objects(value) and not any(map(is_message, value)) else [value]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _are_all(value, dict)


def _are_all(values: list[Any], kind: type) -> bool:
    return all(isinstance(each, kind) for each in values)


def _rows(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows of a table as pandas saves it with `orient` columns, index or split."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list):
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
