"""Documents as windows of tokens, split, shuffled and batched. B batch, T window."""

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
    """The documents' tokens in one compact array, joined with the end-of-text token."""
    separator = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    parts: list[np.ndarray] = []
    for document in documents:
        parts += [tokenizer.encode_array(document), separator]
    return np.concatenate(parts[:-1]) if parts else np.array([], dtype=tokenizer.dtype)


class TextDataset(Dataset[torch.Tensor]):
    """Sources as windows of tokens: `dataset[i]` is a LongTensor of shape (seq_len,).

    Args:
        sources: one source or several (see `corpus.read_documents`).
        tokenizer: a fitted tokenizer.
        seq_len: tokens of a window. A text that is shorter makes one shorter window, with a
            warning.
        stride: tokens from one window's start to the next's; `seq_len` by default. The last
            window ends with the text's last token, so that none is left out.
        text_field: where `.jsonl` and `.csv` hold the text.
        preprocess: a function from text to text, applied to each document.
        seed: shuffles the windows; without it they follow the text.
        verbose: whether to log what is read (see `console.visible`).

    Raises:
        AGI2Error: where a source cannot be read or gives fewer than two tokens, or `seq_len` or
            `stride` is below 1.
    """

    tokens: np.ndarray
    seq_len: int
    stride: int
    starts: np.ndarray
    """The first token of each window."""

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
            self._set_tokens(tokens, seq_len, stride)
        if seed is not None:
            self.starts = np.random.default_rng(seed).permutation(self.starts)

    @classmethod
    @checked
    def from_tokens(
        cls, tokens: np.ndarray | Sequence[int], seq_len: int, *, stride: int | None = None
    ) -> TextDataset:
        """Windows over tokens that are already there: an array of integers, or a sequence."""
        self = cls.__new__(cls)
        self._set_tokens(_as_array(tokens), seq_len, stride)
        return self

    def _set_tokens(self, tokens: np.ndarray, seq_len: int, stride: int | None) -> None:
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
        self.stride = min(stride or seq_len, seq_len)  # a longer one would skip tokens
        last = len(tokens) - seq_len
        self.starts = np.arange(0, last + 1, self.stride)
        if self.starts[-1] != last:
            self.starts = np.append(self.starts, last)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.window(self.starts[index])

    def window(self, start: int) -> torch.Tensor:
        """The window (T,) from token `start` on."""
        return torch.from_numpy(self.tokens[start : start + self.seq_len].astype(np.int64))


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
    """Which windows make up each batch of each epoch: a pure function of the seed.

    An epoch has as many windows as the dataset. Together they hold every token of the text, and
    each of them is in one batch. Every epoch lays them at another offset, as far as their number
    allows, and visits them in another order. Nothing here is stateful, so that a run can be
    resumed at any batch.

    Args:
        dataset: the windows.
        batch_size: windows of a batch, at most. Where an epoch has no whole number of such batches,
            each has fewer, so that all are of the same size, or differ by one.
        seed: of the order.
    """

    batch_size: int
    """Windows of the largest batch, the first one of each epoch."""

    def __init__(self, dataset: TextDataset, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.windows = len(dataset)
        """Windows of an epoch."""
        self.steps_per_epoch = -(-self.windows // batch_size)
        """Batches of an epoch."""
        self.batch_size = -(-self.windows // self.steps_per_epoch)
        self._room = len(dataset.tokens) - dataset.seq_len
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.long, device="cpu")

    def windows_before(self, step: int) -> int:
        """The number of windows in all batches before the one of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch * self.windows + -(-index * self.windows // self.steps_per_epoch)

    def rows(self, step: int, part: int = 0, parts: int = 1) -> range:
        """Which windows of all epochs' in a row are a batch's, or one part's of it.

        Parts differ by one window at most; the later ones of a small batch may have none.
        """
        first, last = self.windows_before(step), self.windows_before(step + 1)
        size = last - first
        return range(first - (-size * part // parts), first - (-size * (part + 1) // parts))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> torch.Tensor:
        """The batch (B, T) of the run's step `step`, counted from 0; or one of its parts.

        Args:
            step: the step.
            part: which of them, counted from 0.
            parts: how many.
        """
        self._lay(step // self.steps_per_epoch)
        rows = self.rows(step, part, parts)
        first = rows.start - self._epoch * self.windows
        starts = self._starts[first : first + len(rows)].tolist()
        if not starts:
            return torch.empty(0, self.dataset.seq_len, dtype=torch.long, device="cpu")
        return torch.stack([self.dataset.window(start) for start in starts])

    def _lay(self, epoch: int) -> None:
        """Lay the windows of an epoch, in their order."""
        if epoch == self._epoch:
            return
        generator = torch.Generator("cpu").manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        stride = self.dataset.stride
        # The first window is at the text's start and the last at its end. Those between begin a
        # stride apart, at an offset with which neither end is more than a stride away.
        least = self._room - (self.windows - 2) * stride if self.windows > 2 else stride
        offset = torch.randint(least, stride + 1, (), generator=generator, device="cpu")
        order = torch.randperm(self.windows, generator=generator, device="cpu")
        starts = (order - 1) * stride + offset
        starts[order == 0] = 0
        starts[order == self.windows - 1] = self._room
        self._epoch, self._starts = epoch, starts


def bytes_of(tokens: np.ndarray, tokenizer: Tokenizer) -> int | None:
    """Count the UTF-8 bytes of the text that tokens stand for.

    Args:
        tokens: ids, (tokens,).
        tokenizer: theirs.

    Returns:
        `None` where one stands for characters that are not in the vocabulary.
    """
    unknown = tokenizer.unknown
    if unknown is not None and (tokens == unknown).any():
        return None
    return int(tokenizer.byte_lengths()[tokens].sum())
