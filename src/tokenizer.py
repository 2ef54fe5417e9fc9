"""Text to token ids and back: by character (`BasicTokenizer`), by byte pairs (`BPETokenizer`)."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .errors import AGI2Error
from .utils import write_text

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
FILE_NAME = "tokenizer.json"

# Longer texts are cut into pieces of about this many characters, which are encoded in parallel.
_PIECE = 1 << 16
# So much of a text becomes an array at a time.
_STRETCH = 1 << 22


class Tokenizer(ABC):
    """What every tokenizer does. Text never turns into a special token."""

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

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Build the vocabulary from a corpus, in place of the one there was."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Text to token ids."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for: part of a character, or nothing, perhaps.

        Raises:
            AGI2Error: where there is no such token.
        """

    @abstractmethod
    def to_json(self) -> str:
        """The whole tokenizer as JSON text."""

    def preprocess(self, text: str) -> str:
        """The text that is really encoded."""
        return text

    def encode_array(self, text: str) -> np.ndarray:
        """Text to token ids in the smallest unsigned type that holds the vocabulary."""
        return np.array(self.encode(text), dtype=self.dtype)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of the text that each id (V,) stands for."""
        return np.array([len(self.token_bytes(token)) for token in range(self.vocab_size)])

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids to text; special tokens give none, broken UTF-8 gives U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into a folder, whole or not at all."""
        write_text(Path(folder) / FILE_NAME, self.to_json())

    @property
    def fingerprint(self) -> str:
        """A hash that two tokenizers share when they are the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class BasicTokenizer(Tokenizer):
    """One token for each character.

    Args:
        vocabulary: the characters, in the order of their ids (after the two special tokens);
            without it, `fit` builds one.
        lowercase: whether text is lower-cased.
        fold_whitespace: whether every run of white space becomes one space.

    Raises:
        AGI2Error: where the vocabulary is not made of different single characters.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | None = None,
        *,
        lowercase: bool = True,
        fold_whitespace: bool = True,
    ) -> None:
        self.lowercase = lowercase
        self.fold_whitespace = fold_whitespace
        self._set_vocabulary(vocabulary or [])

    def _set_vocabulary(self, characters: Sequence[str]) -> None:
        if any(len(character) != 1 for character in characters):
            raise AGI2Error("a basic vocabulary is made of single characters")
        if len(set(characters)) != len(characters):
            raise AGI2Error("a character stands twice in the vocabulary")
        self.vocabulary = [UNKNOWN, END_OF_TEXT, *characters]
        self._ids = {character: id for id, character in enumerate(self.vocabulary)}

    @property
    def vocab_size(self) -> int:
        """Number of characters, and two."""
        return len(self.vocabulary)

    @property
    def end_of_text(self) -> int:
        """The id of the token between documents."""
        return 1

    def preprocess(self, text: str) -> str:
        """The text that is really encoded."""
        if self.lowercase:
            text = text.lower()
        return re.sub(r"\s+", " ", text) if self.fold_whitespace else text

    def fit(self, texts: Iterable[str]) -> None:
        """Take every character of the texts."""
        self._set_vocabulary(sorted(set().union(*map(self.preprocess, texts))))

    def encode(self, text: str) -> list[int]:
        """Text to ids; a character that is not in the vocabulary is `<unk>`.

        Raises:
            AGI2Error: where there is no vocabulary yet.
        """
        if self.vocab_size == 2:
            raise AGI2Error("this tokenizer has no vocabulary yet: call fit(texts) first")
        return [self._ids.get(character, 0) for character in self.preprocess(text)]

    def token_bytes(self, token: int) -> bytes:
        """A character's bytes; U+FFFD for `<unk>`, nothing for the end of text."""
        if not 0 <= token < self.vocab_size:
            raise AGI2Error(f"token {token} is not in a vocabulary of {self.vocab_size}")
        if token < 2:
            return b"" if token == self.end_of_text else "\ufffd".encode()
        return self.vocabulary[token].encode("utf-8", "replace")

    def to_json(self) -> str:
        """The characters and the two switches."""
        content = {
            "type": "basic",
            "lowercase": self.lowercase,
            "fold_whitespace": self.fold_whitespace,
            "vocabulary": self.vocabulary[2:],
        }
        return json.dumps(content, ensure_ascii=True, indent=0)


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019).

    Every string can be encoded, since every byte is a token. Training and encoding are the
    `tokenizers` library's.

    Args:
        vocab_size: the most tokens that training makes: at least 257, the bytes and the end of
            text.

    Raises:
        AGI2Error: where `vocab_size` is below that.
    """

    def __init__(self, vocab_size: int = 50000) -> None:
        if vocab_size < 257:
            raise AGI2Error(f"vocab_size must be at least 257 for byte pairs, not {vocab_size}")
        self.max_vocab_size = vocab_size
        self._set_tokenizer(_byte_level(models.BPE()))

    def _set_tokenizer(self, tokenizer: tokenizers.Tokenizer) -> None:
        # Special tokens that stand in a text are text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        # A file may ask to cut every text to a length, or to fill it up.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._end_of_text = next(
            (id for id, t in added.items() if t.special and t.content in KNOWN_END_TOKENS), None
        )
        self._start, self._ends = _around_text(tokenizer)
        self._end_of_text = self._ends[0] if self._ends else self._end_of_text
        # Ids may have gaps.
        self._size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        # Other tokens' are found when they are asked for: most of a large vocabulary never are.
        self._bytes = {id: b"" if t.special else t.content.encode() for id, t in added.items()}
        pre = tokenizer.pre_tokenizer
        # Where words are cut as GPT-2 cuts them, a text may be cut before any space.
        self._may_cut = (
            isinstance(pre, pre_tokenizers.ByteLevel)
            and pre.use_regex
            and tokenizer.normalizer is None
            and all(token.special for token in added.values())
        )

    @classmethod
    def from_gpt2_files(cls, vocab: str | Path, merges: str | Path) -> BPETokenizer:
        """Read a vocabulary in GPT-2's own layout: `vocab.json` and `merges.txt`.

        Raises:
            AGI2Error: where they are missing or not of that layout.
        """
        try:
            model = models.BPE.from_file(str(vocab), str(merges))
        except Exception as error:  # the library raises nothing narrower
            raise AGI2Error(f"{vocab} and {merges} are not a GPT-2 vocabulary: {error}") from error
        tokenizer = _byte_level(model)
        known = (name for name in KNOWN_END_TOKENS if tokenizer.token_to_id(name) is not None)
        end = next(known, END_OF_TEXT)
        tokenizer.add_special_tokens([tokenizers.AddedToken(end, special=True)])
        return cls.from_library(tokenizer, str(vocab))

    @classmethod
    def from_library(cls, tokenizer: tokenizers.Tokenizer, name: str) -> BPETokenizer:
        """Take over a tokenizer of the `tokenizers` library; `name` is for messages.

        Raises:
            AGI2Error: where it is not byte-level, or lacks a byte or an end of text.
        """
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise AGI2Error(f"{name} is not a byte-level tokenizer")
        lacking = sum(tokenizer.token_to_id(character) is None for character in _BYTE_OF)
        if lacking:
            raise AGI2Error(
                f"{name} has no token for {lacking} of the 256 bytes, so that text would lose "
                "characters: take the whole vocabulary"
            )
        self = cls(max(257, tokenizer.get_vocab_size()))
        self._set_tokenizer(tokenizer)
        if self._end_of_text is None:
            raise AGI2Error(f"{name} has no end-of-text token ({', '.join(KNOWN_END_TOKENS)})")
        return self

    @property
    def vocab_size(self) -> int:
        """The size reached by training (0 before)."""
        return self._size

    @property
    def end_of_text(self) -> int:
        """The id of the token between documents."""
        return int(self._trained()._end_of_text or 0)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end a text, `end_of_text` first: an imported model may have several."""
        return self._ends or (self.end_of_text,)

    @property
    def start_of_text(self) -> int:
        """The id that an empty prompt starts from."""
        return self.end_of_text if self._start is None else self._start

    def fit(self, texts: Iterable[str]) -> None:
        """Learn the merges."""
        trainer = trainers.BpeTrainer(
            vocab_size=self.max_vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer = _byte_level(models.BPE())
        pieces = (piece for text in texts for piece in _pieces(_well_formed(text)))
        tokenizer.train_from_iterator(pieces, trainer)
        self._set_tokenizer(tokenizer)

    train = fit

    def encode(self, text: str) -> list[int]:
        """Text to ids.

        Raises:
            AGI2Error: where nothing has been learned yet.
        """
        self._trained()
        text = _well_formed(text)
        if len(text) <= _PIECE or not self._may_cut:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        encoded = self._tokenizer.encode_batch_fast(list(_pieces(text)), add_special_tokens=False)
        return [id for piece in encoded for id in piece.ids]

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, a stretch at a time, so that no list holds all of a long text."""
        if len(text) <= _STRETCH or not self._may_cut:
            return super().encode_array(text)
        stretches = _pieces(_well_formed(text), _STRETCH)
        return np.concatenate([super(BPETokenizer, self).encode_array(part) for part in stretches])

    def token_bytes(self, token: int) -> bytes:
        """A token's bytes; nothing for special tokens."""
        if not 0 <= token < self._size:
            raise AGI2Error(f"token {token} is not in a vocabulary of {self.vocab_size}")
        if token not in self._bytes:
            self._bytes[token] = _bytes_of(self._tokenizer.id_to_token(token) or "")
        return self._bytes[token]

    def to_json(self) -> str:
        """The `tokenizers` library's own layout."""
        return self._tokenizer.to_str(pretty=True)

    def _trained(self) -> BPETokenizer:
        if not self._size:
            raise AGI2Error("this tokenizer has no vocabulary yet: call fit(texts) first")
        return self


# A model that was imported may have another start than its end, and several ends. The tokenizer's
# file says so in the form that the library has for what stands around a text, a template, which is
# not applied here. Others have such templates, too; this type id makes it one of ours.
TEMPLATE_TYPE = 4711


def _around_text(tokenizer: tokenizers.Tokenizer) -> tuple[int | None, tuple[int, ...]]:
    """The ids of what starts a text, and of what ends it, where the file says so."""
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


KNOWN_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


class StreamDecoder:
    """Tokens to text one by one, holding back what is not yet a whole character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


# What stands in a `BasicTokenizer`'s file; a token of such characters has escaped quotes.
_BASIC = re.compile(rb'"type"\s*:\s*"basic"')


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer: its file, or a folder with `tokenizer.json` or GPT-2's two files.

    Raises:
        AGI2Error: where there is none, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        vocab, merges = path / "vocab.json", path / "merges.txt"
        if vocab.is_file() and merges.is_file() and not (path / FILE_NAME).is_file():
            return BPETokenizer.from_gpt2_files(vocab, merges)
        path = path / FILE_NAME
    if not path.is_file():
        raise AGI2Error(
            f"no tokenizer at {path}: give a tokenizer.json, or a folder that holds one, or "
            "vocab.json and merges.txt"
        )
    try:
        data = path.read_bytes()
        # Others may be large, and are parsed by the library alone.
        content = json.loads(data) if _BASIC.search(data) else {}
        if content.get("type") == "basic":
            return BasicTokenizer(
                content["vocabulary"],
                lowercase=content["lowercase"],
                fold_whitespace=content["fold_whitespace"],
            )
        library = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # a broken file can break either reader in many ways
        raise AGI2Error(f"{path} is not a tokenizer: {error}") from error
    return BPETokenizer.from_library(library, str(path))


def new_tokenizer(
    kind: str, vocab_size: int, *, lowercase: bool = True, fold_whitespace: bool = True
) -> tuple[Tokenizer, bool]:
    """The tokenizer that a configuration names, and whether it still has to be fitted.

    Args:
        kind: `bpe`, `basic`, `gpt2` (fetched once by the `tokenizers` library), or a path.
        vocab_size: the ceiling for `bpe`.
        lowercase: for `basic`.
        fold_whitespace: for `basic`.

    Raises:
        AGI2Error: where it cannot be had.
    """
    if kind == "bpe":
        return BPETokenizer(vocab_size), True
    if kind == "basic":
        return BasicTokenizer(lowercase=lowercase, fold_whitespace=fold_whitespace), True
    if kind != "gpt2":
        return load_tokenizer(kind), False
    try:
        library = tokenizers.Tokenizer.from_pretrained("openai-community/gpt2")
    except Exception as error:  # any kind of network or cache trouble
        raise AGI2Error(
            "GPT-2's vocabulary could not be fetched: put its vocab.json and merges.txt into a "
            'folder and set tokenizer = "that/folder"'
        ) from error
    return BPETokenizer.from_library(library, "gpt2"), False


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _well_formed(text: str) -> str:
    """The text with `?` for each lone surrogate: it is no Unicode, and the library refuses it."""
    return text.encode("utf-8", "replace").decode("utf-8")


_CUT = re.compile(r"(?<=\S)(?= )")


def _pieces(text: str, length: int | None = None) -> Iterator[str]:
    """Cut a long text, into pieces a little longer than `length`, before spaces after words.

    No token of a GPT-2 vocabulary goes across such a place, so the ids stay the same.
    """
    start = 0
    while cut := _CUT.search(text, start + (length or _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves, the other bytes for those from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    if not _BYTE_OF.keys() >= set(token):  # a token that is not byte-level stands for itself
        return token.encode()
    return bytes(_BYTE_OF[character] for character in token)
