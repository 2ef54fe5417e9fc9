"""What a tokenized corpus depends on, and its key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..tokenizer import Tokenizer
from .documents import SOURCE_KEYS, ReadOptions
from .token_cache import corpus_key

# Changes with what is read of which files, and with how it is split.
_FORMAT = 3


@dataclass(frozen=True)
class CorpusOptions:
    """What the text of a corpus and its split depend on."""

    sources: list[str]
    reading: ReadOptions = field(default_factory=ReadOptions)
    val_fraction: float = 0.1
    seed: int = 0
    val_sources: list[str] = field(default_factory=list)
    dedup: bool = False
    conversations: list[str] = field(default_factory=list)
    val_conversations: list[str] = field(default_factory=list)
    preferences: list[str] = field(default_factory=list)
    val_preferences: list[str] = field(default_factory=list)

    @property
    def groups(self) -> list[list[str]]:
        """The sources of each of `SOURCE_KEYS`, in the order of their documents."""
        return [getattr(self, key) for key in SOURCE_KEYS]

    @property
    def hashes_plain(self) -> bool:
        """Whether copies of documents to validate on are found in other forms, too."""
        return bool(self.val_sources or self.val_conversations or self.val_preferences)

    def reading_of(self, group: int) -> ReadOptions:
        """Return how the sources of a group are read, by its index in `groups`."""
        key = SOURCE_KEYS[group].removeprefix("val_")
        are_pairs = key == "preferences"
        return replace(self.reading, are_conversations=key != "sources", are_pairs=are_pairs)

    @property
    def identity(self) -> dict[str, Any]:
        """All but names of files, which say nothing of the text in them."""
        reading = replace(self.reading, preprocess=None)
        return asdict(replace(self, reading=reading)) | dict.fromkeys(SOURCE_KEYS)


@dataclass(frozen=True)
class TokenizerSource:
    """Where the tokenizer of a corpus comes from."""

    identity: str | None
    """What it depends on besides the training text; `None` if that is unknown."""
    make: Callable[[Iterable[str]], Tokenizer]
    """Returns the tokenizer, fitted on the training text if it has to be."""
    load: Callable[[Path], Tokenizer]
    """Returns the tokenizer, of which `tokenizer.json` is in a folder."""
    is_fitted: bool = False
    """Whether `make` does without the training text."""
    added: int = 0
    """Number of its tokens that were added for the roles of conversations."""


def key_of(identity: Any, options: CorpusOptions, tokenizer: TokenizerSource) -> str:
    """Return the key of a corpus, the name of its folder; `identity` is that of its text."""
    return corpus_key(
        {
            "format": _FORMAT,
            "text": identity,
            "tokenizer": tokenizer.identity,
            "options": options.identity,
        }
    )
