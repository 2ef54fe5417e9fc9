"""The tokens of a corpus whose units were tokenized by several processes, as one stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..tokenizer import Tokenizer
from ..utils import sync_file
from .build import SPLITS
from .shards import SHARD_TOKENS, SplitFigures, index_path, shard_path

FIGURES = "figures.json"
"""The file in the folder of a unit's tokens with its `SplitFigures`."""
_COPIED_TOKENS = 2**22  # tokens copied at a time


class TokenStream:
    """The tokens of the training or the validation text, which are in the units' files.

    Args:
        folders: the folders of the units' tokens.
        split: index in `SPLITS`.
        tokenizer: the tokenizer.
    """

    def __init__(self, folders: list[Path], split: int, tokenizer: Tokenizer) -> None:
        self.name = SPLITS[split]
        self._dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
        self._end_of_text = np.array([tokenizer.end_of_text], self._dtype)
        self.figures = SplitFigures()
        self._segments: list[tuple[int, Path | None, int]] = []
        """Index of the first token, folder (`None`: an end-of-text token) and length of each."""
        self._indices: list[tuple[int, Path]] = []
        for folder in folders:
            own = SplitFigures(**json.loads((folder / FIGURES).read_text("utf-8"))[split])
            if own.documents:
                self._append(folder, own)

    def _append(self, folder: Path, own: SplitFigures) -> None:
        total = self.figures
        if self.name == "val" and total.documents:  # a unit does not know of those before it
            self._segments.append((total.tokens, None, 1))
            total.tokens += 1
        self._segments.append((total.tokens, folder, own.tokens))
        self._indices.append((total.tokens, folder))
        total.tokens += own.tokens
        total.documents += own.documents
        total.text_bytes += own.text_bytes
        total.unknown += own.unknown
        total.conversations += own.conversations

    @property
    def shards(self) -> list[str]:
        """Names of the shards."""
        count = -(-self.figures.tokens // SHARD_TOKENS)
        return [f"{self.name}-{index:05d}" for index in range(count)]

    def write_shard(self, index: int, path: Path) -> None:
        """Write the tokens of a shard to a file."""
        start = index * SHARD_TOKENS
        end = min(start + SHARD_TOKENS, self.figures.tokens)
        with open(path, "wb") as file:
            for first, folder, length in self._segments:
                begin, stop = max(start, first), min(end, first + length)
                if begin >= stop:
                    continue
                tokens = self._end_of_text if folder is None else self._map(folder)
                for at in range(begin, stop, _COPIED_TOKENS):
                    last = min(at + _COPIED_TOKENS, stop)
                    file.write(tokens[at - first : last - first].data)
        sync_file(path)

    def _map(self, folder: Path) -> np.ndarray:
        return np.memmap(shard_path(folder, self.name, 0), self._dtype, "r")

    def document_starts(self) -> Iterator[np.ndarray]:
        """Yield the index of the first token of each document, unit by unit."""
        for first, folder in self._indices:
            yield np.fromfile(index_path(folder, self.name), "<i8") + first
