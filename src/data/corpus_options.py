"""What a tokenized corpus depends on, and its key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..tokenizer import Tokenizer
from .documents import ReadOptions
from .token_cache import corpus_key

_FORMAT = 1


@dataclass(frozen=True)
class CorpusOptions:
    """What the text of a corpus and its split depend on."""

    sources: list[str]
    reading: ReadOptions = field(default_factory=ReadOptions)
    val_fraction: float = 0.1
    seed: int = 0
    val_sources: list[str] = field(default_factory=list)
    dedup: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """All but names of files, which say nothing of the text in them."""
        reading = replace(self.reading, preprocess=None)
        return {**asdict(replace(self, reading=reading)), "sources": None, "val_sources": None}


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
