"""How good a model is: loss, perplexity, bits per byte; and how much it merely copies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .cuda_utils import LOGITS_AT_ONCE, autocast
from .dataset import TextDataset
from .model import GPT2Model
from .tokenizer import Tokenizer
from .utils import evaluating


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text."""

    loss: float
    """Mean negative log-likelihood, in nats per token."""
    tokens: int
    """Tokens predicted."""
    text_bytes: int
    """UTF-8 bytes of the text that those tokens stand for."""

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits to encode a byte of text: comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / max(self.text_bytes, 1)


def evaluate(
    model: GPT2Model,
    dataset: TextDataset,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 1,
    max_tokens: int = 0,
    precision: torch.dtype = torch.float32,
) -> Evaluation:
    """The model's loss on a text. Every token is predicted once, but for the very first.

    Args:
        model: left in the mode it was in.
        dataset: windows of T + 1 tokens with stride T: T predictions each.
        tokenizer: to count bytes.
        batch_size: windows at a time.
        max_tokens: look at about so many tokens, evenly spread; 0 for all.
        precision: of matrix products.
    """
    width = dataset.seq_len - 1
    count = len(dataset)
    if max_tokens and count * width > max_tokens:
        count = max(1, max_tokens // width)
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    byte_counts = torch.from_numpy(tokenizer.byte_lengths())
    total, tokens, text_bytes = 0.0, 0, 0
    with evaluating(model), autocast(model.device, precision):
        for first in range(0, len(chosen), batch_size):
            indices = chosen[first : first + batch_size]
            windows = torch.stack([dataset[index] for index in indices])
            targets = windows[:, 1:]
            fresh = torch.stack([_fresh_targets(dataset, index) for index in indices])
            hidden = model.hidden_states(windows[:, :-1].to(model.device)).flatten(0, 1)
            losses = torch.cat(
                [
                    F.cross_entropy(model.logits(x).float(), y, reduction="none")
                    for x, y in zip(
                        hidden.split(LOGITS_AT_ONCE),
                        targets.flatten().to(model.device).split(LOGITS_AT_ONCE),
                        strict=True,
                    )
                ]
            )
            total += losses.cpu()[fresh.flatten()].sum(dtype=torch.float64).item()
            tokens += int(fresh.sum())
            text_bytes += int(byte_counts[targets[fresh]].sum())
    return Evaluation(total / tokens, tokens, text_bytes)


def _fresh_targets(dataset: TextDataset, index: int) -> torch.Tensor:
    """Which of a window's targets no earlier window has predicted: all but in the last one."""
    width = dataset.seq_len - 1
    fresh = torch.ones(width, dtype=torch.bool)
    if index:
        overlap = dataset.starts[index - 1] + width - dataset.starts[index]
        fresh[: max(overlap, 0)] = False
    return fresh


@dataclass(frozen=True)
class Originality:
    """How a written text relates to the text that the model learned from."""

    known_words: float
    """The share of its words that occur there."""
    longest_copy: str
    """The longest span that stands there letter for letter."""


def originality(written: str, learned: str) -> Originality:
    """Compare what a model wrote with what it learned from."""
    vocabulary = set(_words(learned))
    words = _words(written)
    known = sum(word in vocabulary for word in words) / max(len(words), 1)
    return Originality(known, longest_common_span(written, learned))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def longest_common_span(written: str, learned: str) -> str:
    """The longest substring of `written` that occurs in `learned`.

    A common span of 8 letters or more lies in a piece of `learned` in which every 8 letters in a
    row occur in `written`, too. Such pieces are few and short: only they are searched, the longest
    first. Where that finds nothing, the same with 4 letters, with 2, and letter by letter.
    """
    for width in (8, 4, 2):
        best = ""
        for start, end in _shared_pieces(written, learned, width):
            if end - start <= len(best):
                break
            best = max(best, _search_span(learned[start:end], written), key=len)
        # Fewer than `width` letters where a piece only seemed to be shared.
        if len(best) >= width:
            return best
    return next((letter for letter in dict.fromkeys(written) if letter in learned), "")


def _search_span(written: str, learned: str) -> str:
    """The same, one start after the other: for short texts."""
    best = ""
    for start in range(len(written)):
        # Only a span that is longer than the best is of interest.
        while (end := start + len(best)) < len(written) and written[start : end + 1] in learned:
            best = written[start : end + 1]
    return best


def _shared_pieces(written: str, learned: str, width: int) -> Iterator[tuple[int, int]]:
    """Where in `learned` every `width` letters in a row seem to occur in `written`.

    Letters count by their lowest byte, and windows by a hash: what seems equal may not be.

    Yields:
        start and end of each piece, the longest first.
    """
    if min(len(written), len(learned)) < width:
        return
    known = np.zeros(2**_HASH_BITS, dtype=bool)
    text = _low_bytes(written)
    for offset in range(width):
        known[_window_hashes(text, offset, width)] = True
    text = _low_bytes(learned)
    # With a false window at either end, so that each piece has a start and an end.
    shared = np.zeros(len(learned) - width + 3, dtype=bool)
    for offset in range(width):
        hashes = _window_hashes(text, offset, width)
        shared[1 + offset : -1][: len(hashes) * width : width] = known[hashes]
    edges = np.flatnonzero(shared[1:] != shared[:-1])
    starts, ends = edges[::2], edges[1::2] + width - 1
    for piece in np.argsort(starts - ends, kind="stable"):
        yield int(starts[piece]), int(ends[piece])


_HASH_BITS = 18


def _low_bytes(text: str) -> bytes:
    """The lowest byte of each letter."""
    return text.encode("utf-32-le", "surrogatepass")[::4]


def _window_hashes(text: bytes, offset: int, width: int) -> np.ndarray:
    """A hash of the `width` bytes (2, 4 or 8) at offset, offset + width, ..."""
    count = max(0, (len(text) - offset) // width)
    windows = np.frombuffer(text, f"<u{width}", count, min(offset, len(text))).astype(np.uint64)
    windows *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the highest bits are the best
    windows >>= np.uint64(64 - _HASH_BITS)
    return windows.view(np.int64)
