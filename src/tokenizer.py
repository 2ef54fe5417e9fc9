"""Tokenizers: byte-level BPE (`BPETokenizer`), or by character or word (`BasicTokenizer`)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import models

from .arguments import checked
from .config_checks import LARGEST_AUTO_VOCABULARY, vocabulary_for
from .config_keys import PreTokenizer
from .errors import AGI2Error
from .tokenization.arguments import as_id, check_new_names, to_list
from .tokenization.base import END_OF_TEXT as END_OF_TEXT
from .tokenization.base import END_OF_TURN as END_OF_TURN
from .tokenization.base import FILE_NAME as FILE_NAME
from .tokenization.base import ROLE_TOKENS as ROLE_TOKENS
from .tokenization.base import UNKNOWN as UNKNOWN
from .tokenization.base import Tokenizer
from .tokenization.basic import BasicTokenizer
from .tokenization.bpe_engine import Engine, make_engine
from .tokenization.bpe_training import train
from .tokenization.byte_level import (
    BYTE_OF,
    byte_level,
    special_token,
    token_to_bytes,
)
from .tokenization.pieces import split_text, well_formed
from .tokenization.tokenizer_json import (
    MAX_TOKENS,
    check_byte_level,
    check_round_trip,
    load_library_tokenizer,
    read_bounded,
    read_tokenizer_file,
)
from .utils import log, usable_cores


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (BPE; Sennrich et al., 2016; Radford et al., 2019).

    Every string can be encoded, since every byte is a token. `tokenization.bpe_engine` encodes, on
    pieces of text made by `tokenization.pieces`; `tokenization.bpe_training` trains.

    Args:
        vocab_size: maximum vocabulary size; at least 257, for the 256 bytes and the end-of-text
            token, plus one for each special token; or `auto`: by the size of the text (see
            `config_checks.vocabulary_for`).
        special_tokens: names of special tokens, which get the last ids.
        pretokenizer: how `fit` splits text into words: `gpt2`, or `gpt4` (`cl100k_base`).
        split_digits: whether `fit` makes each digit a word of its own.

    Raises:
        AGI2Error: if `vocab_size` is out of range, or a name is not valid.
    """

    @checked
    def __init__(
        self,
        vocab_size: int | Literal["auto"] = 50000,
        *,
        special_tokens: Iterable[str] = (),
        pretokenizer: PreTokenizer = "gpt2",
        split_digits: bool = False,
    ) -> None:
        self._user_special = check_new_names(
            to_list(special_tokens, "special_tokens"), _RESERVED_NAMES
        )
        min_size = 257 + len(self._user_special)
        self._is_auto_sized = vocab_size == "auto"
        size = max(LARGEST_AUTO_VOCABULARY, min_size) if vocab_size == "auto" else vocab_size
        if not min_size <= size <= MAX_TOKENS:
            raise AGI2Error(
                f"vocab_size must be at least {min_size} for byte pairs"
                f"{' and the special tokens' * (min_size > 257)}, and at most {MAX_TOKENS:,}, not "
                f"{vocab_size}"
            )
        self.max_vocab_size = size
        self.pretokenizer: PreTokenizer = pretokenizer
        self.split_digits = split_digits
        self._set_tokenizer(byte_level(models.BPE()))

    def _set_tokenizer(self, tokenizer: tokenizers.Tokenizer) -> None:
        # Names of special tokens in a text are encoded as text, so that no input can inject one.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._engine: Engine | None = None  # made when it is needed
        # A file may enable truncation or padding.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._end_of_text = next(
            (id for id, t in added.items() if t.special and t.content in KNOWN_EOS_TOKENS), None
        )
        self._start, self._ends = _template_tokens(tokenizer)
        self._end_of_text = self._ends[0] if self._ends else self._end_of_text
        # Not the number of tokens: ids may have gaps.
        self._size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        # A cache, filled on demand by `token_bytes`: most of a large vocabulary is never decoded.
        self._bytes = {id: b"" if t.special else t.content.encode() for id, t in added.items()}
        self._special = {t.content: id for id, t in added.items() if t.special}
        # Added tokens that are not special: text is split at them first, so as not to cut them.
        self._added_text_tokens = {t.content: id for id, t in added.items() if not t.special}

    @classmethod
    @checked
    def from_gpt2_files(cls, vocab: str | Path, merges: str | Path) -> BPETokenizer:
        """Load a vocabulary in GPT-2's original format: `vocab.json` and `merges.txt`.

        Raises:
            AGI2Error: if a file is missing or malformed.
        """
        content = json.loads(byte_level(models.BPE()).to_str())
        try:
            content["model"]["vocab"] = read_tokenizer_file(Path(vocab))
            content["model"]["merges"] = _read_merges(Path(merges))
            tokenizer = load_library_tokenizer(content, str(vocab))
        except AGI2Error as error:
            raise AGI2Error(f"{vocab} and {merges} are not a GPT-2 vocabulary: {error}") from error
        known = (name for name in KNOWN_EOS_TOKENS if tokenizer.token_to_id(name) is not None)
        end = next(known, END_OF_TEXT)
        tokenizer.add_special_tokens([tokenizers.AddedToken(end, special=True)])
        return cls.from_library(tokenizer, str(vocab))

    @classmethod
    def from_library(cls, tokenizer: tokenizers.Tokenizer, name: str) -> BPETokenizer:
        """Wrap a tokenizer of the `tokenizers` library; `name` is for messages.

        Raises:
            AGI2Error: if it is not byte-level, lacks a byte or an end-of-text token, or has a
                component that is not lossless.
        """
        check_byte_level(json.loads(tokenizer.to_str()), name)
        return cls._from_checked(tokenizer, name)

    @classmethod
    def _from_checked(cls, tokenizer: tokenizers.Tokenizer, name: str) -> BPETokenizer:
        lacking = sum(tokenizer.token_to_id(character) is None for character in BYTE_OF)
        if lacking:
            raise AGI2Error(
                f"{name} has no token for {lacking} of the 256 bytes, so that text would lose "
                "characters: use the complete vocabulary"
            )
        self = cls(max(257, tokenizer.get_vocab_size()))
        self._set_tokenizer(tokenizer)
        if self._end_of_text is None:
            raise AGI2Error(f"{name} has no end-of-text token ({', '.join(KNOWN_EOS_TOKENS)})")
        self._user_special = [name for name, id in self._special.items() if id != self._end_of_text]
        samples = [*self._special, *self._added_text_tokens]
        check_round_trip(self.encode, self.decode, self.preprocess, samples, name)
        return self

    @property
    def vocab_size(self) -> int:
        """Vocabulary size, 0 before training; the largest id + 1 if the ids have gaps."""
        return self._size

    @property
    def end_of_text(self) -> int:
        """Id of the end-of-text token, which separates documents."""
        self._require_vocabulary()
        return int(self._end_of_text or 0)

    @property
    def text_end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text, `end_of_text` first: an imported model may have several."""
        return self._ends or (self.end_of_text,)

    @property
    def start_of_text(self) -> int:
        """Id of the beginning-of-text (BOS) token, from which an empty prompt is generated."""
        return self.end_of_text if self._start is None else self._start

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens, the end-of-text token included: name to id."""
        return dict(self._special)

    def add_special_tokens(self, *names: str) -> None:
        """Add special tokens with the next free ids; `fit` and `save` keep them."""
        new = check_new_names(
            names, {*_RESERVED_NAMES, *self._user_special, *self._tokenizer.get_vocab()}
        )
        if self._size:
            if self._tokenizer.get_vocab_size() != self._size:
                raise AGI2Error("special_tokens: there are gaps among the ids of this vocabulary")
            self._tokenizer.add_special_tokens(list(map(special_token, new)))
            self._set_tokenizer(self._tokenizer)
        self._user_special += new
        self.max_vocab_size = max(self.max_vocab_size, self._size, 257 + len(self._user_special))

    def _fit(self, texts: Iterator[str]) -> None:
        """Train the merges; see `bpe_training.train`."""

        def size_for(text_bytes: int) -> int:
            size = vocabulary_for(text_bytes) if self._is_auto_sized else self.max_vocab_size
            return max(257, min(size, self.max_vocab_size) - len(self._user_special))

        tokenizer = train(map(well_formed, texts), size_for, self.pretokenizer, self.split_digits)
        if tokenizer.get_vocab_size() == 257 < size_for(0):
            log.warning("the tokenizer has no merges, only bytes, as the text is too small")
        tokenizer.add_special_tokens(list(map(special_token, self._user_special)))
        self._set_tokenizer(tokenizer)

    train = Tokenizer.fit

    def preprocess(self, text: str) -> str:
        """Normalize a text as `encode` does: to NFC if the tokenizer has that normalizer."""
        normalizer = self._tokenizer.normalizer
        if normalizer is None:
            return text
        return "".join(map(normalizer.normalize_str, split_text(well_formed(text))))

    def _allowed(self, names: str | Collection[str]) -> dict[str, int]:
        return self._added_text_tokens | super()._allowed(names)

    def encode(self, text: str, allowed_special: str | Collection[str] = ()) -> list[int]:
        """Encode a text to token ids; see `Tokenizer.encode`."""
        is_plain = type(allowed_special) is tuple and not allowed_special and type(text) is str
        if is_plain and self._size and not self._added_text_tokens:
            # The checks of the general case take longer than the encoding of a sentence.
            return self._get_engine().encode_to_list(text)
        return super().encode(text, allowed_special)

    def _encode_parts(self, text: str) -> list[np.ndarray]:
        return [self._get_engine().encode([well_formed(text)], self.dtype, usable_cores())[0]]

    def _encode_texts(self, texts: Iterable[str], threads: int) -> tuple[np.ndarray, np.ndarray]:
        if self._added_text_tokens:
            return super()._encode_texts(texts, threads)
        return self._get_engine().encode(map(well_formed, texts), self.dtype, threads)

    def encode_utf8(self, data: bytes, ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts in UTF-8; see `Tokenizer.encode_utf8`."""
        if self._added_text_tokens:
            return super().encode_utf8(data, ends)
        return self._get_engine().encode_utf8(data, ends, self.dtype)

    def _get_engine(self) -> Engine:
        if self._engine is None:
            self._engine = make_engine(self._tokenizer)
        return self._engine

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; empty for special tokens."""
        token = as_id(token)
        if not 0 <= token < self._size:
            raise AGI2Error(f"token {token} is not in a vocabulary of {self.vocab_size}")
        if token not in self._bytes:
            self._bytes[token] = token_to_bytes(self._tokenizer.id_to_token(token) or "")
        return self._bytes[token]

    def to_json(self) -> str:
        """Serialize to the `tokenizers` library's `tokenizer.json` format."""
        return self._tokenizer.to_str(pretty=True)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        # The library does not pickle this flag; without it a copy encodes special tokens in text.
        self._tokenizer.encode_special_tokens = True


# An imported model may have a BOS token and several EOS tokens. They are stored in tokenizer.json
# as a `TemplateProcessing` post-processor, which is never applied. Files made elsewhere have such
# templates, too; this type id marks the ones written here.
TEMPLATE_TYPE = 4711


def _template_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[int | None, tuple[int, ...]]:
    """Return the ids of the BOS and the EOS tokens in the template; (None, ()) without one."""
    if tokenizer.post_processor is None:
        return None, ()
    state = json.loads(tokenizer.post_processor.__getstate__())
    for part in state.get("processors", [state]):
        single = part.get("single", [])
        text = {"Sequence": {"id": "A", "type_id": TEMPLATE_TYPE}}
        if part.get("type") == "TemplateProcessing" and text in single[1:]:
            names = [each["SpecialToken"]["id"] for each in single if each != text]
            start, *ends = map(tokenizer.token_to_id, names)
            return start, tuple(id for id in ends if id is not None)
    return None, ()


KNOWN_EOS_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


@checked
def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from its file, or from a folder with `tokenizer.json` or GPT-2's two files.

    Raises:
        AGI2Error: if there is none, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        vocab, merges = path / "vocab.json", path / "merges.txt"
        if vocab.is_file() and merges.is_file() and not (path / FILE_NAME).is_file():
            return BPETokenizer.from_gpt2_files(vocab, merges)
        path = path / FILE_NAME
    if not os.path.lexists(path):
        raise AGI2Error(
            f"no tokenizer at {path}: give a tokenizer.json, or a folder that holds one, or "
            "vocab.json and merges.txt"
        )
    content = read_tokenizer_file(path)
    if content.get("type") == "basic":
        return BasicTokenizer.from_content(content, str(path))
    return BPETokenizer._from_checked(load_library_tokenizer(content, str(path)), str(path))


Tokenizer._load = load_tokenizer


def new_tokenizer(
    kind: str,
    vocab_size: int | Literal["auto"],
    *,
    lowercase: bool = True,
    fold_whitespace: bool = True,
    byte_fallback: bool = False,
    pretokenizer: PreTokenizer = "gpt2",
    split_digits: bool = False,
    special_tokens: Sequence[str] = (),
) -> tuple[Tokenizer, bool]:
    """Create the tokenizer that a configuration names.

    Args:
        kind: `bpe`, `basic`, `gpt2` (downloaded and cached by the `tokenizers` library), or a path.
        vocab_size: maximum vocabulary size for `bpe`, or `auto`.
        lowercase: for `basic`.
        fold_whitespace: for `basic`.
        byte_fallback: for `basic`.
        pretokenizer: for `bpe`.
        split_digits: for `bpe`.
        special_tokens: names to add, unless a loaded tokenizer has them.

    Returns:
        The tokenizer, and whether it must be fitted.

    Raises:
        AGI2Error: if it cannot be downloaded or loaded, or a special token cannot be added.
    """
    if kind == "bpe":
        bpe = BPETokenizer(
            vocab_size,
            special_tokens=special_tokens,
            pretokenizer=pretokenizer,
            split_digits=split_digits,
        )
        return bpe, True
    if kind == "basic":
        basic = BasicTokenizer(
            lowercase=lowercase,
            fold_whitespace=fold_whitespace,
            byte_fallback=byte_fallback,
            special_tokens=special_tokens,
        )
        return basic, True
    loaded = _fetch_gpt2() if kind == "gpt2" else load_tokenizer(kind)
    loaded.add_special_tokens(*(n for n in special_tokens if n not in loaded.special_tokens))
    return loaded, False


def _fetch_gpt2() -> Tokenizer:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else it warns at each try
    try:
        library = tokenizers.Tokenizer.from_pretrained("openai-community/gpt2")
    except Exception as error:  # network and cache errors are of many types
        raise AGI2Error(
            "GPT-2's vocabulary could not be fetched: put its vocab.json and merges.txt into a "
            'folder and set tokenizer = "that/folder"'
        ) from error
    return BPETokenizer.from_library(library, "gpt2")


def _read_merges(path: Path) -> list[str]:
    """Read the merges of a merges.txt, without its version line."""
    try:
        lines = read_bounded(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise AGI2Error(f"{path} is not UTF-8") from error
    if lines[0].startswith("#version"):
        del lines[0]
    return [line.rstrip() for line in lines if line.strip()]


# Names that no special token may have.
_RESERVED_NAMES = {END_OF_TEXT, *BYTE_OF}
