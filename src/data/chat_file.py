"""Conversations in files, as lines of training data: `{"messages": [{"role": ..., ...}, ...]}`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import AGI2Error
from ..utils import (
    MAX_JSON_BYTES,
    WriteError,
    describe_path,
    human_bytes,
    parse_json,
    plural,
    read_bytes,
    write_text,
)
from .chat_template import Message, as_messages, check_order

LINES_SUFFIX = ".jsonl"


def save_conversation(messages: Sequence[Message], path: Path) -> None:
    """Save a conversation as a JSON object; append it as a line if the suffix is `.jsonl`.

    A new file can be read by its owner only. What is in the file stays as it is if an error occurs.

    Raises:
        AGI2Error: if the file cannot be written, or holds something else than conversations.
    """
    content = {"messages": [message._asdict() for message in messages]}
    line = json.dumps(content, ensure_ascii=False) + "\n"
    line = line.encode("utf-8", "replace").decode()  # half a surrogate pair is not UTF-8
    _check_place(path)
    with _clear_write_errors(path):
        if path.suffix.lower() == LINES_SUFFIX:
            _append(path, line.encode())
            return
        if os.path.exists(path):
            _check_is_ours(read_bytes(path, MAX_JSON_BYTES), path)
        write_text(path, line, private=True)


def _check_place(path: Path) -> None:
    """Check that a file can be at a path."""
    if "\0" in str(path):
        raise AGI2Error(f"cannot write {path}: the name has a NUL character")
    if not os.path.isdir(path.parent):
        raise AGI2Error(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise AGI2Error(f"cannot write {path}: it {describe_path(path)}; name a file")


@contextlib.contextmanager
def _clear_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WriteError) as error:
        cause = error.__cause__ if isinstance(error, WriteError) else error
        reason = getattr(cause, "strerror", None) or cause
        raise AGI2Error(f"cannot write {path}: {reason}; name another file") from error


def load_conversation(path: Path, number: int | None = None) -> list[Message]:
    """Load a conversation from a JSON object, or from a line of a file of JSON lines.

    Args:
        path: the file.
        number: number of the line among those that are not empty, from 1; by default the last.

    Raises:
        AGI2Error: if there is none, or its messages are invalid.
    """
    data = read_bytes(path, MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise AGI2Error(f"{path} is larger than {human_bytes(MAX_JSON_BYTES)}")
    name = str(path)
    if path.suffix.lower() == LINES_SUFFIX:
        lines = [(i, line) for i, line in enumerate(data.splitlines(), 1) if line.strip()]
        if number is not None and not 1 <= number <= len(lines):
            raise AGI2Error(f"{path} has {plural(len(lines), 'conversation')}: no number {number}")
        if not lines:
            raise AGI2Error(f"{path} has no conversation")
        at, data = lines[-1 if number is None else number - 1]
        name = f"{path}, line {at}"
    elif number not in (None, 1):
        raise AGI2Error(f"{path} has 1 conversation: no number {number}")
    try:
        messages = as_messages(_object_of(data, name)["messages"])
        check_order(messages)
    except AGI2Error as error:
        prefix = "" if str(error).startswith(name) else f"{name}: "
        raise AGI2Error(f"{prefix}{error}") from error
    return messages


def _object_of(data: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object that has messages."""
    parsed = parse_json(data, name)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("messages"), list):
        raise AGI2Error(f'{name} is no conversation: it has no list "messages"')
    return parsed


def _check_is_ours(data: bytes, path: Path) -> None:
    """Check that a file that would be replaced, or appended to, holds conversations."""
    try:
        _object_of(data, str(path))
    except AGI2Error as error:
        raise AGI2Error(f"{error}: name another file") from error


# No waiting for the reader of a pipe. Windows has no such flag, but one for bytes as they are.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT
_FLAGS |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _append(path: Path, line: bytes) -> None:
    """Append a line; remove what was written of it if the disk is full."""
    with open(os.open(path, _FLAGS, 0o600), "rb+", 0) as file:
        if size := os.fstat(file.fileno()).st_size:
            _check_is_ours(file.readline(MAX_JSON_BYTES), path)
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise
