"""Recognize JSON, JSON lines and tables by their first bytes, if the suffix is not known."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

from .conversations import CONVERSATION_FIELDS, PREFERENCE_FIELDS

_KNOWN_COLUMNS = {"text", *CONVERSATION_FIELDS, *PREFERENCE_FIELDS}
# What begins an object, or a list of objects, that is not complete.
_JSON = re.compile(r"\s*(?:\[\s*)?\{\s*\"(?:[^\"\\\n]|\\.){0,200}\"\s*:")
_COLUMN = re.compile(r"[^\W\d]\w{0,60}")
_SEPARATORS = (",", "\t", ";", "|")


def json_kind(head: bytes) -> str:
    """Return whether a text begins as `json` or as JSON `lines`; otherwise an empty string."""
    text = _text(head)
    if not text.lstrip().startswith(("{", "[")):
        return ""
    value = _parsed(text)
    if isinstance(value, dict) or (isinstance(value, list) and _are_records(value)):
        return "json"
    *lines, _ = (line for line in text.split("\n") if not line.isspace())
    if lines and isinstance(_parsed(lines[0]), dict):
        objects = sum(isinstance(_parsed(line), dict) for line in lines)
        return "lines" if 2 * objects > len(lines) else ""
    return "json" if _JSON.match(text) else ""


def columns_of(head: bytes) -> list[str]:
    """Return the names of the columns if a text begins as a table, whose rows are as long."""
    text = _text(head)
    header = text.partition("\n")[0].rstrip("\r")
    for separator in _SEPARATORS:
        names = [name.strip('"') for name in header.split(separator)]
        if len(set(names)) == len(names) > 1 and all(map(_COLUMN.fullmatch, names)):
            try:
                *rows, _ = csv.reader(text.split("\n"), delimiter=separator)
            except csv.Error:
                return []
            lengths = {len(row) for row in rows if row}
            return names if len(rows) > 1 and lengths == {len(names)} else []
    return []


def is_table(head: bytes) -> bool:
    """Return whether a text begins as a table with a column that is read by its name."""
    return not _KNOWN_COLUMNS.isdisjoint(columns_of(head))


def _text(head: bytes) -> str:
    """Return the text of first bytes, whose last characters may be missing."""
    return head.replace(b"\0", b"").decode("utf-8", "ignore").removeprefix("\ufeff")


def _are_records(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(each, dict | str) for each in values)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
