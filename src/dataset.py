"""Datasets and batches of fixed-length token windows. Shapes: B batch, T time (window length)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from .arguments import NonNegativeInt, checked
from .console import busy, visible
from .data.corpus import read_documents
from .data.sources import Sources
from .data.splits import split_documents
from .errors import AGI2Error
from .tokenizer import Tokenizer
from .utils import log, plural

__all__ = ["EpochBatches", "TextDataset", "split_documents", "tokenize"]


def tokenize(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Encode documents into one token array, separated by the end-of-text token.

    Args:
        documents: the texts, encoded one at a time.
        tokenizer: a fitted tokenizer.

    Returns:
        Token ids, (N,), of the tokenizer's `dtype` (uint16 or uint32).
    """
    separator = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    parts: list[np.ndarray] = []
    for document in documents:
        parts += [tokenizer.encode_array(document), separator]
    return np.concatenate(parts[:-1]) if parts else np.array([], dtype=tokenizer.dtype)


class TokenWindows(Dataset[torch.Tensor]):
    """Map-style dataset of windows of a token array: `windows[i]` is a LongTensor (seq_len,).

    Args:
        tokens: token ids, (N,).
        seq_len: tokens per window. Fewer tokens give one shorter window, with a warning.
        stride: tokens between the starts of consecutive windows, at most `seq_len`, the default.
            The last window ends at the last token, so no token is dropped.

    Raises:
        AGI2Error: if there are fewer than two tokens, or `seq_len` or `stride` is below 1.
    """

    tokens: np.ndarray
    seq_len: int
    stride: int
    starts: np.ndarray
    """Index in `tokens` of the first token of each window."""

    def __init__(self, tokens: np.ndarray, seq_len: int, stride: int | None = None) -> None:
        if seq_len < 1 or (stride is not None and stride < 1):
            raise AGI2Error(f"seq_len {seq_len} and stride {stride}: both must be at least 1")
        if len(tokens) < 2:
            raise AGI2Error(f"the text has {plural(len(tokens), 'token')}: at least 2 are needed")
        if len(tokens) < seq_len:
            log.warning(
                "the text has only %s: windows are that short", plural(len(tokens), "token")
            )
            seq_len = len(tokens)
        self.tokens = tokens
        self.seq_len = seq_len
        self.stride = min(stride or seq_len, seq_len)  # a longer stride would skip tokens
        last = len(tokens) - seq_len
        self.starts = np.arange(0, last + 1, self.stride)
        if self.starts[-1] != last:
            self.starts = np.append(self.starts, last)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.window(self.starts[index])

    def window(self, start: int) -> torch.Tensor:
        """Return the window, a LongTensor (T,), that starts at token `start`."""
        return torch.from_numpy(self.tokens[start : start + self.seq_len].astype(np.int64))


class TextDataset(TokenWindows):
    """Map-style dataset of token windows: `dataset[i]` is a LongTensor of shape (seq_len,).

    Args:
        sources: one source or several (see `corpus.read_documents`).
        tokenizer: a fitted tokenizer.
        seq_len: tokens per window. A shorter text gives one shorter window, with a warning.
        stride: tokens between the starts of consecutive windows, at most `seq_len`, the default.
            The last window ends at the last token of the text, so no token is dropped.
        text_field: field of `.jsonl` and column of `.csv` files that holds the text.
        preprocess: function from text to text, applied to each document before encoding.
        seed: shuffles the windows; if `None`, they are in text order.
        verbose: whether to log what is read (see `console.visible`).

    Raises:
        AGI2Error: if a source cannot be read, the text has fewer than two tokens, or `seq_len` or
            `stride` is below 1.
    """

    @checked
    def __init__(
        self,
        sources: Sources,
        tokenizer: Tokenizer,
        seq_len: int,
        *,
        stride: int | None = None,
        text_field: str = "text",
        preprocess: Callable[[str], str] | None = None,
        seed: NonNegativeInt | None = None,
        verbose: bool = True,
    ) -> None:
        with visible(verbose), busy("reading the text"):
            documents: Iterable[str] = read_documents(sources, text_field)
            if preprocess is not None:
                documents = (_preprocessed(each, preprocess) for each in documents)
            tokens = tokenize(documents, tokenizer)
            super().__init__(tokens, seq_len, stride)
        if seed is not None:
            self.starts = np.random.default_rng(seed).permutation(self.starts)

    @classmethod
    @checked
    def from_tokens(
        cls, tokens: np.ndarray | Sequence[int], seq_len: int, *, stride: int | None = None
    ) -> TextDataset:
        """Create a dataset from token ids: a 1-D integer array or a sequence, (N,).

        Raises:
            AGI2Error: if `tokens` is not 1-D or not of integers; also as for the class.
        """
        self = cls.__new__(cls)
        TokenWindows.__init__(self, _as_array(tokens), seq_len, stride)
        return self


def _preprocessed(document: str, preprocess: Callable[[str], str]) -> str:
    found = preprocess(document)
    if not isinstance(found, str):
        raise AGI2Error(f"preprocess must give a string, not {type(found).__name__}")
    return found


def _as_array(tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    if not isinstance(tokens, np.ndarray):
        return np.array(tokens, dtype=np.int64)
    if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
        raise AGI2Error(
            f"tokens must be one row of integers, not {tokens.dtype} of the shape {tokens.shape}"
        )
    return tokens


class EpochBatches:
    """Deterministic batch sampler: the batch of a step is a pure function of the seed and the step.

    An epoch has as many windows as the dataset; they cover every token, and each is in exactly one
    batch. Every epoch draws a new offset, as far as the number of windows allows, and a new
    permutation. There is no sampler state to save: training can resume at any step.

    Args:
        dataset: the windows.
        batch_size: maximum windows per batch. If it does not divide the windows of an epoch, the
            batches are smaller, of sizes that differ by at most one: no short last batch.
        seed: seed of the offsets and permutations.
    """

    batch_size: int
    """Windows in the largest batch, which is the first of each epoch."""

    def __init__(self, dataset: TokenWindows, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.windows = len(dataset)
        """Windows per epoch."""
        self.steps_per_epoch = -(-self.windows // batch_size)
        """Batches per epoch."""
        self.batch_size = -(-self.windows // self.steps_per_epoch)
        self._room = len(dataset.tokens) - dataset.seq_len
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.long, device="cpu")

    def windows_before(self, step: int) -> int:
        """Return the number of windows in all batches before step `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch * self.windows + -(-index * self.windows // self.steps_per_epoch)

    def rows(self, step: int, part: int = 0, parts: int = 1) -> range:
        """Return the range of window positions, counted over all epochs, of a batch or its shard.

        Shard sizes differ by at most one; the last shards of a small batch may be empty.
        """
        first, last = self.windows_before(step), self.windows_before(step + 1)
        size = last - first
        return range(first - (-size * part // parts), first - (-size * (part + 1) // parts))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> torch.Tensor:
        """Return the batch of a step, or one shard of it.

        Args:
            step: step of the run, from 0.
            part: index of the shard, such as a process's rank.
            parts: number of shards, such as the world size.

        Returns:
            A LongTensor (B, T) on the CPU; B may be 0 for a shard.
        """
        self._lay(step // self.steps_per_epoch)
        rows = self.rows(step, part, parts)
        first = rows.start - self._epoch * self.windows
        starts = self._starts[first : first + len(rows)].tolist()
        if not starts:
            return torch.empty(0, self.dataset.seq_len, dtype=torch.long, device="cpu")
        return torch.stack([self.dataset.window(start) for start in starts])

    def _lay(self, epoch: int) -> None:
        """Compute the shuffled window starts of an epoch, unless they are cached."""
        if epoch == self._epoch:
            return
        # A seed per (seed, epoch), unique for up to 1,000,003 epochs, in the range of manual_seed.
        generator = torch.Generator("cpu").manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        stride = self.dataset.stride
        # The first window starts at the first token and the last ends at the last token. The others
        # are one stride apart, at a random offset with which the two end gaps are at most a stride.
        least = self._room - (self.windows - 2) * stride if self.windows > 2 else stride
        offset = torch.randint(least, stride + 1, (), generator=generator, device="cpu")
        order = torch.randperm(self.windows, generator=generator, device="cpu")
        starts = (order - 1) * stride + offset
        starts[order == 0] = 0
        starts[order == self.windows - 1] = self._room
        self._epoch, self._starts = epoch, starts


def bytes_of(tokens: np.ndarray, tokenizer: Tokenizer) -> int | None:
    """Count the UTF-8 bytes of the text that tokens decode to, as for bits per byte.

    Args:
        tokens: token ids, (N,).
        tokenizer: the tokenizer of these ids.

    Returns:
        The number of bytes, or `None` if a token is `<unk>`, whose text is not known.
    """
    unknown = tokenizer.unknown
    if unknown is not None and (tokens == unknown).any():
        return None
    return int(tokenizer.byte_lengths()[tokens].sum())
