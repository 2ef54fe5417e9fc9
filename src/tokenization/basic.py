"""Character-level tokenizer, and word-level tokenizer with a given vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..arguments import checked
from ..errors import AGI2Error
from ..utils import log
from .arguments import as_id, check_new_names, to_list
from .base import END_OF_TEXT, UNKNOWN, Tokenizer
from .tokenizer_json import MAX_TOKENS

# Characters encoded at a time.
_CHUNK_CHARACTERS = 1 << 16
_WORDS = re.compile(r"\w+|\W")
# Maximum matches of `_WORDS` in a token: bounds the longest-match search at each word.
_MAX_WORDS = 16


class BasicTokenizer(Tokenizer):
    """Character-level tokenizer, or word-level tokenizer with a given vocabulary.

    It is word-level if a token has more than one character. Text is then split into words (runs of
    letters, digits and `_`) and single other characters, white space included, and encoded by
    greedy longest match, so that a token may be several words (`new york`). An out-of-vocabulary
    word is encoded by character if all its characters are tokens, else as one `<unk>`. With byte
    fallback there is no `<unk>`: unknown characters are encoded as their UTF-8 bytes.

    Args:
        vocabulary: characters or words, in the order of their ids, after `<unk>` and the
            end-of-text token. If `None`, `fit` collects the characters of a corpus. A space is
            added to words, if missing, since text has one between them.
        lowercase: whether to lower-case text.
        fold_whitespace: whether to replace each run of white space by one space.
        byte_fallback: whether to add a token for each byte, after the vocabulary.
        special_tokens: names of special tokens, which get the last ids.

    Raises:
        AGI2Error: if the vocabulary is not of distinct strings, or contains a special token.
    """

    @checked
    def __init__(
        self,
        vocabulary: Iterable[str] | None = None,
        *,
        lowercase: bool = True,
        fold_whitespace: bool = True,
        byte_fallback: bool = False,
        special_tokens: Iterable[str] = (),
    ) -> None:
        self.lowercase = lowercase
        self.fold_whitespace = fold_whitespace
        self.byte_fallback = byte_fallback
        self._bytes = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
        self._special: list[str] = []
        self._set_vocabulary([] if vocabulary is None else vocabulary)
        self.add_special_tokens(*to_list(special_tokens, "special_tokens"))

    def _set_vocabulary(self, tokens: Iterable[str]) -> None:
        tokens = list(to_list(tokens, "vocabulary"))
        for token in tokens:
            if not isinstance(token, str) or not token:
                raise AGI2Error(f"vocabulary: {token!r} is neither a character nor a word")
        self._has_words = any(len(token) > 1 for token in tokens)
        if self._has_words and " " not in tokens:
            tokens.append(" ")
        if len(set(tokens)) != len(tokens):
            raise AGI2Error("vocabulary: a character or word occurs twice")
        for name in (UNKNOWN, END_OF_TEXT, *self._bytes, *self._special):
            if name in tokens:
                raise AGI2Error(f"vocabulary: {name} is a special token already")
        self._max_words = max((len(_WORDS.findall(token)) for token in tokens), default=1)
        if self._max_words > _MAX_WORDS:
            raise AGI2Error(f"vocabulary: a token has more than {_MAX_WORDS} words and characters")
        self._tokens = tokens
        self._assign_ids()
        changed = [token for token in tokens if self.preprocess(token) != token]
        if changed:
            log.warning(
                "vocabulary: %d tokens such as %r never occur, as text is lower-cased or its white "
                "space folded",
                len(changed),
                changed[0],
            )

    def _assign_ids(self) -> None:
        self.vocabulary = [UNKNOWN, END_OF_TEXT, *self._tokens, *self._bytes, *self._special]
        self._ids = {token: id for id, token in enumerate(self._tokens, 2)}

    @property
    def vocab_size(self) -> int:
        """Vocabulary size, special tokens included; 0 if there is no vocabulary yet."""
        return len(self.vocabulary) if self._tokens else 0

    @property
    def end_of_text(self) -> int:
        """Id of the end-of-text token, which separates documents."""
        return 1

    @property
    def unknown(self) -> int:
        """Id of `<unk>`."""
        return 0

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens, `<unk>` and the end-of-text token included: name to id."""
        first = 2 + len(self._tokens) + len(self._bytes)
        own = {name: id for id, name in enumerate(self._special, first)}
        return {UNKNOWN: 0, END_OF_TEXT: 1, **own}

    def add_special_tokens(self, *names: str) -> None:
        """Add special tokens with the next free ids; `fit` and `save` keep them."""
        self._special += check_new_names(names, self.vocabulary)
        self._assign_ids()

    def preprocess(self, text: str) -> str:
        """Normalize a text as `encode` does: lower-case it and fold white space, if enabled."""
        if self.lowercase:
            text = text.lower()
        return re.sub(r"\s+", " ", text) if self.fold_whitespace else text

    def _fit(self, texts: Iterator[str]) -> None:
        """Build the vocabulary of all characters of the texts."""
        self._set_vocabulary(sorted(set().union(*map(self.preprocess, texts))))
        if not self._tokens:
            log.warning("the tokenizer has no vocabulary: there is no text")

    def _encode_parts(self, text: str) -> Iterator[np.ndarray]:
        text = self.preprocess(text)
        if self._has_words:
            yield np.array(self._encode_words(_WORDS.findall(text)), self.dtype)
            return
        for start in range(0, len(text), _CHUNK_CHARACTERS):
            yield np.array(self._spell(text[start : start + _CHUNK_CHARACTERS]), self.dtype)

    def _spell(self, text: str) -> list[int]:
        """Return the ids of the characters of a text, 0 for `<unk>`."""
        ids = [self._ids.get(character, 0) for character in text]
        if not self.byte_fallback or 0 not in ids:
            return ids
        first = 2 + len(self._tokens)
        return [
            id
            for known, character in zip(ids, text, strict=True)
            for id in (
                [known] if known else [first + b for b in character.encode("utf-8", "replace")]
            )
        ]

    def _encode_words(self, words: list[str]) -> list[int]:
        ids: list[int] = []
        position = 0
        while position < len(words):
            for count in range(min(self._max_words, len(words) - position), 0, -1):
                id = self._ids.get("".join(words[position : position + count]))
                if id is not None:
                    ids.append(id)
                    break
            else:
                spelled = self._spell(words[position])
                ids += spelled if 0 not in spelled else [0]
            position += count
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token; U+FFFD for `<unk>`, empty for other special tokens."""
        token = as_id(token)
        place = token - 2
        if 0 <= place < len(self._tokens):
            return self._tokens[place].encode("utf-8", "replace")
        if not 0 <= token < len(self.vocabulary):
            raise AGI2Error(f"token {token} is not in a vocabulary of {len(self.vocabulary)}")
        if token < 2:
            return b"" if token == self.end_of_text else "\ufffd".encode()
        byte = place - len(self._tokens)
        return bytes([byte]) if byte < len(self._bytes) else b""

    def to_json(self) -> str:
        """Serialize the vocabulary and the normalization flags to JSON."""
        content: dict[str, Any] = {
            "type": "basic",
            "lowercase": self.lowercase,
            "fold_whitespace": self.fold_whitespace,
            "vocabulary": self._tokens,
        }
        if self.byte_fallback:
            content["byte_fallback"] = True
        if self._special:
            content["special_tokens"] = self._special
        return json.dumps(content, ensure_ascii=True, indent=0)

    @classmethod
    def from_content(cls, content: Mapping[str, Any], name: str) -> BasicTokenizer:
        """Create a tokenizer from the parsed output of `to_json`; `name` is for messages.

        Raises:
            AGI2Error: if the content is malformed.
        """
        broken = f"{name} is not a tokenizer"
        lowercase, fold = content.get("lowercase"), content.get("fold_whitespace")
        if not (isinstance(lowercase, bool) and isinstance(fold, bool)):
            raise AGI2Error(f"{broken}: lowercase and fold_whitespace are not true or false")
        if not isinstance(fallback := content.get("byte_fallback", False), bool):
            raise AGI2Error(f"{broken}: byte_fallback is not true or false")
        tokens, special = content.get("vocabulary"), content.get("special_tokens", [])
        for key, value in (("vocabulary", tokens), ("special_tokens", special)):
            if not isinstance(value, list) or len(value) > MAX_TOKENS:
                raise AGI2Error(f"{broken}: {key} is not a list of at most {MAX_TOKENS:,} tokens")
        try:
            return cls(
                tokens,
                lowercase=lowercase,
                fold_whitespace=fold,
                byte_fallback=fallback,
                special_tokens=special,
            )
        except AGI2Error as error:
            raise AGI2Error(f"{broken}: {error}") from error
