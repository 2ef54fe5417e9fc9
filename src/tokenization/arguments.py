"""Checks of the arguments of tokenizers: ids, names and texts."""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import is_several
from ..errors import AGI2Error, safe_repr
from ..utils import log
from .tokenizer_json import MAX_NAME


def as_id(token: Any) -> int:
    """Convert a Python, NumPy or PyTorch integer to an `int`.

    Raises:
        AGI2Error: if it is not an integer.
    """
    if type(token) is int:
        return token
    try:
        if isinstance(token, bool | np.bool_) or "bool" in str(getattr(token, "dtype", "")):
            raise TypeError
        return operator.index(token)
    except TypeError as error:
        raise AGI2Error(f"a token must be an integer, not {describe_value(token)}") from error


def as_ids(tokens: Any) -> list[int]:
    """Convert a sequence of token ids, (N,), to a list.

    Raises:
        AGI2Error: if it is not a 1-D sequence of integers.
    """
    if hasattr(tokens, "tolist"):  # an array or a tensor
        with contextlib.suppress(RuntimeError):  # a tensor that is sparse or has no values
            tokens = tokens.tolist()
    if isinstance(tokens, str) or hasattr(tokens, "tolist") or not is_several(tokens):
        raise AGI2Error(f"tokens must be a list of integers, not {describe_value(tokens)}")
    return [as_id(token) for token in tokens]


def to_list(values: Any, name: str) -> list[Any]:
    """Convert an iterable argument to a list; a `str` is one item, except for `vocabulary`.

    Raises:
        AGI2Error: if it is not iterable, or is `bytes` or a mapping.
    """
    if not is_several(values):
        raise AGI2Error(f"{name} must be a list of strings, not {describe_value(values)}")
    if isinstance(values, str) and name != "vocabulary":
        return [values]
    return list(values)


def check_new_names(names: Iterable[Any], reserved: Collection[str]) -> list[str]:
    """Check the names of special tokens to add.

    Raises:
        AGI2Error: if a name is not a string of 1 to 200 characters, or is already taken.
    """
    checked_names: list[str] = []
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise AGI2Error(
                f"special_tokens: {describe_value(name)} is not a string of 1 to {MAX_NAME} "
                "characters"
            )
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise AGI2Error(f"special_tokens: {name!r} has half a character")
        if name in reserved or name in checked_names:
            raise AGI2Error(f"special_tokens: {name!r} is a token already")
        checked_names.append(name)
    return checked_names


def compile_alternatives(names: Iterable[str]) -> re.Pattern[str]:
    """Compile a regex with one group that matches any of the names, the longest first."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def read_texts(texts: str | Path | Iterable[str | Path]) -> Iterator[str]:
    """Yield texts: each `str` itself, and the contents of each `Path`, a UTF-8 file.

    Raises:
        AGI2Error: if there is anything else, or a file cannot be read.
    """
    if isinstance(texts, str | Path):
        yield _read_text(texts, "texts")
        return
    if not is_several(texts):
        raise AGI2Error(
            "texts must be a str (a text), a Path (a file) or a list of them, not "
            + describe_value(texts)
        )
    texts = iter(texts)
    for index, text in enumerate(islice(texts, _CHECKED_TEXTS)):
        yield _read_text(text, f"texts[{index}]")
    for index, text in enumerate(texts, _CHECKED_TEXTS):
        yield text if isinstance(text, str) else _read_text(text, f"texts[{index}]")


def _read_text(text: Any, name: str) -> str:
    if isinstance(text, str):
        if _is_file(text):
            log.warning("%s: %r is taken for a text: for the file, pass a Path", name, text)
        return text
    if not isinstance(text, Path):
        raise AGI2Error(
            f"{name} must be a str (a text) or a Path (a file), not {describe_value(text)}"
        )
    try:
        return text.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AGI2Error(f"{text} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AGI2Error(
            f"{text} is not UTF-8 text: read it with src.data.corpus.read_documents, and pass "
            "what it gives"
        ) from error


# PATH_MAX of Linux: a longer text is not a path.
_MAX_PATH = 4096
# If texts are paths, so are the first ones; a look at the disk for each of millions takes long.
_CHECKED_TEXTS = 100


def _is_file(text: str) -> bool:
    return len(text) <= _MAX_PATH and os.path.isfile(text)


def check_text(text: str) -> str:
    """Raise if a text is not a `str`; return it."""
    if not isinstance(text, str):
        raise AGI2Error(f"text must be a str, not {describe_value(text)}")
    return text


def describe_value(value: object) -> str:
    """Return type and value, for messages."""
    return f"{type(value).__name__} {safe_repr(value)}"
