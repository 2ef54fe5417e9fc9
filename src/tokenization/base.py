"""What all tokenizers share: special tokens, arrays of ids, files, types that people pass."""

from __future__ import annotations

import hashlib
import operator
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..arguments import convert
from ..console import busy, visible
from ..errors import AGI2Error
from ..utils import log, write_text, writing
from .tokenizer_json import MAX_NAME

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
FILE_NAME = "tokenizer.json"


class Tokenizer(ABC):
    """What every tokenizer does. Text never turns into a special token unless asked to."""

    _read: ClassVar[Callable[[str | Path], Tokenizer]]
    """`load_tokenizer`, which knows every kind, and so stands above this class."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""

    @property
    @abstractmethod
    def end_of_text(self) -> int:
        """The id of the token between documents."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end a text which is generated, `end_of_text` first."""
        return (self.end_of_text,)

    @property
    def start_of_text(self) -> int:
        """The id that an empty prompt starts from."""
        return self.end_of_text

    @property
    def unknown(self) -> int | None:
        """The id that stands for what is not in the vocabulary, if there is one."""
        return None

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens by their names."""

    @abstractmethod
    def add_special_tokens(self, *names: str) -> None:
        """Add special tokens, with the next ids. `fit` and the file keep them.

        Raises:
            AGI2Error: where a name is no text, or is a token already.
        """

    def fit(self, texts: str | Path | Iterable[str | Path], *, verbose: bool = True) -> None:
        """Build the vocabulary from a corpus, in place of the one there was.

        Args:
            texts: a text (`str`), a UTF-8 file (`Path`), or several of either.
            verbose: whether to show that it takes its time (see `console.visible`).

        Raises:
            AGI2Error: where it is anything else, or a file cannot be read.
        """
        with visible(verbose), busy("making the tokenizer"):
            self._fit(read_texts(texts))

    @abstractmethod
    def _fit(self, texts: Iterator[str]) -> None:
        """Build the vocabulary from texts."""

    @abstractmethod
    def _encode_parts(self, text: str) -> Iterator[list[int]]:
        """The ids of one part of a text after the other, none of which is long."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for: part of a character, or nothing, perhaps.

        Raises:
            AGI2Error: where there is no such token.
        """

    @abstractmethod
    def to_json(self) -> str:
        """The whole tokenizer as JSON text."""

    @abstractmethod
    def preprocess(self, text: str) -> str:
        """The text that is really encoded."""

    def encode(self, text: str, allowed_special: str | Collection[str] = ()) -> list[int]:
        """Text to token ids.

        Args:
            text: any string.
            allowed_special: names of special tokens that become such where they occur in the text;
                `"all"` for every one. By default they are encoded as text.

        Raises:
            AGI2Error: where there is no vocabulary yet, the text is no `str`, or a name is unknown.
        """
        return [id for part in self._parts(text, allowed_special) for id in part]

    def encode_array(self, text: str, allowed_special: str | Collection[str] = ()) -> np.ndarray:
        """As `encode`, in the smallest unsigned type: no list holds all of a long text."""
        parts = [np.array(part, self.dtype) for part in self._parts(text, allowed_special)]
        return np.concatenate(parts) if parts else np.array([], self.dtype)

    def _parts(self, text: str, allowed_special: str | Collection[str]) -> Iterator[list[int]]:
        if not isinstance(text, str):
            raise AGI2Error(f"text must be a str, not {_shown(text)}")
        if not self.vocab_size:
            raise AGI2Error("this tokenizer has no vocabulary yet: call fit(texts) first")
        ids = self._allowed(allowed_special)
        if not ids:
            yield from self._encode_parts(text)
            return
        for index, part in enumerate(any_of(ids).split(text)):
            if index % 2:
                yield [ids[part]]
            elif part:
                yield from self._encode_parts(part)

    def _allowed(self, names: str | Collection[str]) -> dict[str, int]:
        known = self.special_tokens
        if isinstance(names, str) and names == "all":
            return known
        for name in (names := listed(names, "allowed_special")):
            if name not in known:
                raise AGI2Error(
                    f"allowed_special: {name!r} is no special token: there are {', '.join(known)}"
                )
        return {name: known[name] for name in names}

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of the text that each id (V,) stands for; none for an unknown one."""
        lengths = np.array([len(self.token_bytes(token)) for token in range(self.vocab_size)])
        if self.unknown is not None:
            lengths[self.unknown] = 0
        return lengths

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Token ids to text; broken UTF-8 gives U+FFFD.

        Args:
            tokens: a list, tuple, range, NumPy array or tensor of ids.
            skip_special_tokens: whether special tokens give nothing, or their names.

        Raises:
            AGI2Error: where that is no sequence of integers, or an id is not in the vocabulary.
        """
        ids = as_ids(tokens)
        skip_special_tokens = convert(bool, "skip_special_tokens", skip_special_tokens)
        names = (
            {}
            if skip_special_tokens
            else {id: name.encode() for name, id in self.special_tokens.items()}
        )
        found = (names.get(id) or self.token_bytes(id) for id in ids)
        return b"".join(found).decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write the tokenizer, whole or not at all.

        Args:
            path: a file whose name ends in `.json`, or a folder, which gets a `tokenizer.json`.
                Folders that are missing are made.

        Raises:
            AGI2Error: where it cannot be written, or there is no vocabulary yet.
        """
        path = Path(convert(Path, "path", path))
        if not self.vocab_size:
            raise AGI2Error(f"{path}: nothing to save, as there is no vocabulary: call fit(texts)")
        file = path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer as `load_tokenizer` does; from a subclass, one of that class.

        Raises:
            AGI2Error: where there is none, it cannot be read, or it is of another class.
        """
        found = cls._read(path)
        if not isinstance(found, cls):
            raise AGI2Error(f"{path} holds a {type(found).__name__}, not a {cls.__name__}")
        return found

    @property
    def fingerprint(self) -> str:
        """A hash that two tokenizers share when they are the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __len__(self) -> int:
        return self.vocab_size

    def __bool__(self) -> bool:
        return True  # one without a vocabulary, too, is a tokenizer

    def __repr__(self) -> str:
        if not self.vocab_size:
            return f"{type(self).__name__}(no vocabulary yet)"
        special = len(self.special_tokens)
        return f"{type(self).__name__}({self.vocab_size:,} tokens, {special:,} of them special)"


def as_id(token: Any) -> int:
    """Check that a token is an integer, of Python, NumPy or PyTorch.

    Raises:
        AGI2Error: where it is not.
    """
    if type(token) is int:
        return token
    try:
        if isinstance(token, bool | np.bool_) or "bool" in str(getattr(token, "dtype", "")):
            raise TypeError
        return operator.index(token)
    except TypeError as error:
        raise AGI2Error(f"a token must be an integer, not {_shown(token)}") from error


def as_ids(tokens: Any) -> list[int]:
    """Check that tokens are integers, in one dimension.

    Raises:
        AGI2Error: where they are not.
    """
    if hasattr(tokens, "tolist"):  # an array or a tensor
        tokens = tokens.tolist()
    if isinstance(tokens, str | bytes | Mapping) or not isinstance(tokens, Iterable):
        raise AGI2Error(f"tokens must be a list of integers, not {_shown(tokens)}")
    return [as_id(token) for token in tokens]


def listed(values: Any, name: str) -> list[Any]:
    """Check that an argument has several values; a `str` is its characters for a vocabulary alone.

    Raises:
        AGI2Error: where it has not.
    """
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise AGI2Error(f"{name} must be a list of strings, not {_shown(values)}")
    if isinstance(values, str) and name != "vocabulary":
        return [values]
    return list(values)


def new_names(names: Iterable[Any], taken: Collection[str]) -> list[str]:
    """Check the names of special tokens that are to be added.

    Raises:
        AGI2Error: where one is no text of up to 200 characters, or taken.
    """
    found: list[str] = []
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise AGI2Error(
                f"special_tokens: {_shown(name)} is no text of 1 to {MAX_NAME} characters"
            )
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise AGI2Error(f"special_tokens: {name!r} has half a character")
        if name in taken or name in found:
            raise AGI2Error(f"special_tokens: {name!r} is a token already")
        found.append(name)
    return found


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds names in a text, at each place the longest, as its only group."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def read_texts(texts: str | Path | Iterable[str | Path]) -> Iterator[str]:
    """Yield texts: each `str` is one, each `Path` is a UTF-8 file that holds one.

    Raises:
        AGI2Error: where there is anything else, or a file cannot be read.
    """
    if isinstance(texts, str | Path):
        yield _read_text(texts, "texts")
        return
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise AGI2Error(
            "texts must be a str (a text), a Path (a file) or a list of them, not " + _shown(texts)
        )
    for index, text in enumerate(texts):
        yield _read_text(text, f"texts[{index}]")


def _read_text(text: Any, name: str) -> str:
    if isinstance(text, str):
        if _is_file(text):
            log.warning("%s: %r is taken for a text: for the file, pass a Path", name, text)
        return text
    if not isinstance(text, Path):
        raise AGI2Error(f"{name} must be a str (a text) or a Path (a file), not {_shown(text)}")
    try:
        return text.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AGI2Error(f"{text} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AGI2Error(
            f"{text} is not UTF-8 text: read it with src.data.corpus.read_documents, and pass "
            "what it gives"
        ) from error


# No path is longer.
_LONGEST_PATH = 4096


def _is_file(text: str) -> bool:
    return len(text) <= _LONGEST_PATH and os.path.isfile(text)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
