"""The tokenizer base class: encode, decode, special tokens, saving, and argument checks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from ..arguments import PositiveInt, checked, convert, is_several
from ..console import show_progress, visible
from ..errors import AGI2Error, safe_repr
from ..utils import convert_write_errors, usable_cores, write_text
from .arguments import as_ids, check_text, compile_alternatives, describe_value, read_texts, to_list

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
ROLE_TOKENS = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
"""Special tokens before the messages of a conversation, by role; see `data.chat_template`."""
END_OF_TURN = "<|end|>"
"""Special token after each message."""
FILE_NAME = "tokenizer.json"


class Tokenizer(ABC):
    """Base class of all tokenizers. Text is never encoded as a special token unless allowed."""

    _load: ClassVar[Callable[[str | Path], Tokenizer]]
    """`load_tokenizer`, set by its module, since importing it here would be circular."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Vocabulary size, special tokens included."""

    @property
    @abstractmethod
    def end_of_text(self) -> int:
        """Id of the end-of-text token, which separates documents."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that stop generation, `end_of_text` first; with roles, the end of a turn, too."""
        ends = self.text_end_tokens
        end_of_turn = self.special_tokens[END_OF_TURN] if self.has_roles else ends[0]
        return ends if end_of_turn in ends else (*ends, end_of_turn)

    @property
    def text_end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text, `end_of_text` first."""
        return (self.end_of_text,)

    @property
    def has_roles(self) -> bool:
        """Whether the special tokens of a conversation are in the vocabulary."""
        return self.special_tokens.keys() >= {*ROLE_TOKENS.values(), END_OF_TURN}

    @property
    def start_of_text(self) -> int:
        """Id of the beginning-of-text (BOS) token, from which an empty prompt is generated."""
        return self.end_of_text

    @property
    def unknown(self) -> int | None:
        """Id of the token for out-of-vocabulary text, or `None` if there is none."""
        return None

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """Special tokens: name to id."""

    @abstractmethod
    def add_special_tokens(self, *names: str) -> None:
        """Add special tokens with the next free ids; `fit` and `save` keep them.

        Raises:
            AGI2Error: if a name is not a string, or is already a token.
        """

    def fit(self, texts: str | Path | Iterable[str | Path], *, verbose: bool = True) -> None:
        """Train the vocabulary on a corpus, replacing the previous one.

        Args:
            texts: a text (`str`), a UTF-8 file (`Path`), or an iterable of either.
            verbose: whether to show progress (see `console.visible`).

        Raises:
            AGI2Error: if `texts` is anything else, or a file cannot be read.
        """
        with visible(verbose), show_progress("training the tokenizer"):
            self._fit(read_texts(texts))

    @abstractmethod
    def _fit(self, texts: Iterator[str]) -> None:
        """Train the vocabulary on texts."""

    @abstractmethod
    def _encode_parts(self, text: str) -> Iterable[np.ndarray]:
        """Return the ids of a text in parts, arrays of `dtype`."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, which may be empty or end inside a character.

        Raises:
            AGI2Error: if the id is not in the vocabulary.
        """

    @abstractmethod
    def to_json(self) -> str:
        """Serialize the complete tokenizer to JSON."""

    @abstractmethod
    def preprocess(self, text: str) -> str:
        """Normalize a text as `encode` does."""

    def encode(self, text: str, allowed_special: str | Collection[str] = ()) -> list[int]:
        """Encode a text to token ids.

        Args:
            text: any string.
            allowed_special: names of special tokens that are encoded as such when they occur in the
                text, or `"all"`. By default they are encoded as text.

        Raises:
            AGI2Error: if there is no vocabulary yet, `text` is not a `str`, or a name is unknown.
        """
        return self.encode_array(text, allowed_special).tolist()

    def encode_array(self, text: str, allowed_special: str | Collection[str] = ()) -> np.ndarray:
        """Encode a text to an array (N,) of `dtype`, without a list of all ids of a long text."""
        check_text(text)
        self._require_vocabulary()
        ids = self._allowed(allowed_special)
        parts = list(self._split(text, ids) if ids else self._encode_parts(text))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.array([], self.dtype), *parts])

    @checked
    def encode_batch(
        self, texts: Iterable[str], *, threads: PositiveInt | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts, in several threads where the tokenizer can; no special token is allowed.

        Args:
            texts: any strings; a few MB of them, since all their ids are in memory.
            threads: number of threads, which does not affect the result; by default as many as
                there are cores.

        Returns:
            The ids of all texts, (N,) of `dtype`, and offsets, (texts + 1,) int64: the ids of text
            d are `ids[offsets[d] : offsets[d + 1]]`.

        Raises:
            AGI2Error: if there is no vocabulary yet, or a text is not a `str`.
        """
        if isinstance(texts, str) or not is_several(texts):
            raise AGI2Error(f"texts must be a list of strings, not {describe_value(texts)}")
        self._require_vocabulary()
        return self._encode_texts(map(check_text, texts), threads or usable_cores())

    def _encode_texts(self, texts: Iterable[str], threads: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.array([], self.dtype), *map(self.encode_array, texts)]
        return np.concatenate(parts), np.cumsum([len(part) for part in parts], dtype=np.int64)

    def encode_utf8(self, data: bytes, ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts as `encode_batch` does, in this thread: UTF-8, and the end of each in it."""
        texts = (data[start:end].decode() for start, end in pairwise([0, *ends]))
        return self._encode_texts(texts, 1)

    def _require_vocabulary(self) -> None:
        if not self.vocab_size:
            raise AGI2Error("this tokenizer has no vocabulary yet: call fit(texts) first")

    def _split(self, text: str, ids: dict[str, int]) -> Iterator[np.ndarray]:
        for index, part in enumerate(compile_alternatives(ids).split(text)):
            if index % 2:
                yield np.array([ids[part]], self.dtype)
            elif part:
                yield from self._encode_parts(part)

    def _allowed(self, names: str | Collection[str]) -> dict[str, int]:
        """Return the tokens that are found in a text before the rest is encoded: name to id."""
        if type(names) is tuple and not names:  # the default, which is to be fast
            return {}
        known = self.special_tokens
        if isinstance(names, str) and names == "all":
            return known
        for name in (names := to_list(names, "allowed_special")):
            if not isinstance(name, str) or name not in known:
                raise AGI2Error(
                    f"allowed_special: {safe_repr(name)} is not a special token; the special "
                    f"tokens are {', '.join(known)}"
                )
        return {name: known[name] for name in names}

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """Smallest unsigned NumPy type for all ids: uint16 or uint32."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def byte_lengths(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token, (V,); 0 for `<unk>`."""
        lengths = np.array([len(self.token_bytes(token)) for token in range(self.vocab_size)])
        if self.unknown is not None:
            lengths[self.unknown] = 0
        return lengths

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Decode token ids to text; invalid UTF-8 becomes U+FFFD.

        Args:
            tokens: a list, tuple, range, NumPy array or tensor of ids, (N,).
            skip_special_tokens: whether to drop special tokens instead of decoding their names.

        Raises:
            AGI2Error: if `tokens` is not a sequence of integers, or an id is not in the vocabulary.
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
        """Save the tokenizer atomically.

        Args:
            path: a file with the suffix `.json`, or a folder in which to save `tokenizer.json`.
                Missing folders are created.

        Raises:
            AGI2Error: if it cannot be written, or there is no vocabulary yet.
        """
        path = Path(convert(Path, "path", path))
        if not self.vocab_size:
            raise AGI2Error(f"{path}: nothing to save, as there is no vocabulary: call fit(texts)")
        file = path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME
        with convert_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a tokenizer of this class or a subclass; see `load_tokenizer`.

        Raises:
            AGI2Error: if there is none, it cannot be read, or it is of another class.
        """
        found = cls._load(path)
        if not isinstance(found, cls):
            raise AGI2Error(f"{path} holds a {type(found).__name__}, not a {cls.__name__}")
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 hash of the serialized tokenizer: equal for equal tokenizers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __len__(self) -> int:
        return self.vocab_size

    def __bool__(self) -> bool:
        return True  # otherwise `__len__` would make a tokenizer without a vocabulary false

    def __repr__(self) -> str:
        if not self.vocab_size:
            return f"{type(self).__name__}(no vocabulary yet)"
        special = len(self.special_tokens)
        return f"{type(self).__name__}({self.vocab_size:,} tokens, {special:,} of them special)"
