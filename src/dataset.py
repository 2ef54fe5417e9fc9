"""Documents as windows of tokens, split, shuffled and batched. B batch, T window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from .corpus import read_documents
from .errors import AGI2Error
from .tokenizer import Tokenizer
from .utils import log

# From so many documents on, whole ones are held out; with fewer, the end of each.
_MANY_DOCUMENTS = 20


def split_documents(
    documents: Sequence[str], val_fraction: float, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Hold out text for validation: none of it stays in training.

    Args:
        documents: the corpus.
        val_fraction: the share of the characters to hold out.
        seed: chooses the documents, where whole ones are held out.

    Returns:
        Training documents and validation documents. With 20 different documents or more, whole
        ones are held out until the share is reached; with fewer, the last part of each.
    """
    if val_fraction == 0:
        return list(documents), []
    # Documents of the same text stay together.
    lengths: Counter[str] = Counter()
    for document in documents:
        lengths[document] += len(document)
    if len(lengths) < _MANY_DOCUMENTS:
        return _split_each(documents, val_fraction)
    wanted = val_fraction * lengths.total()
    texts = list(lengths)
    chosen: set[str] = set()
    generator = torch.Generator("cpu").manual_seed(seed)
    for index in torch.randperm(len(texts), generator=generator, device="cpu").tolist():
        length = lengths[texts[index]]
        # A document that would overshoot by more than half its length stays in training.
        if length <= 2 * wanted:
            chosen.add(texts[index])
            wanted -= length
    if not chosen:  # every document is longer than what is wanted
        return _split_each(documents, val_fraction)
    return [d for d in documents if d not in chosen], [d for d in documents if d in chosen]


def _split_each(documents: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Hold out the end of each document."""
    cuts = [int(len(document) * (1 - val_fraction)) for document in documents]
    train = [document[:cut] for document, cut in zip(documents, cuts, strict=True)]
    held_out = [document[cut:] for document, cut in zip(documents, cuts, strict=True)]
    return [d for d in train if d], [d for d in held_out if d]


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

    Raises:
        AGI2Error: where a source cannot be read or gives fewer than two tokens, or `seq_len` or
            `stride` is below 1.
    """

    tokens: np.ndarray
    seq_len: int
    stride: int
    starts: np.ndarray
    """The first token of each window."""

    def __init__(
        self,
        sources: str | list[str],
        tokenizer: Tokenizer,
        seq_len: int,
        *,
        stride: int | None = None,
        text_field: str = "text",
        preprocess: Callable[[str], str] | None = None,
        seed: int | None = None,
    ) -> None:
        documents: Iterable[str] = read_documents(sources, text_field)
        if preprocess is not None:
            documents = map(preprocess, documents)
        self._set_tokens(tokenize(documents, tokenizer), seq_len, stride)
        if seed is not None:
            self.starts = np.random.default_rng(seed).permutation(self.starts)

    @classmethod
    def from_tokens(
        cls, tokens: np.ndarray, seq_len: int, *, stride: int | None = None
    ) -> TextDataset:
        """Windows over tokens that are already there."""
        self = cls.__new__(cls)
        self._set_tokens(tokens, seq_len, stride)
        return self

    def _set_tokens(self, tokens: np.ndarray, seq_len: int, stride: int | None) -> None:
        if seq_len < 1 or (stride is not None and stride < 1):
            raise AGI2Error(f"seq_len {seq_len} and stride {stride}: both must be at least 1")
        if len(tokens) < 2:
            raise AGI2Error(f"the text has {len(tokens)} tokens: at least 2 are needed")
        if len(tokens) < seq_len:
            log.warning("the text has only %d tokens: windows are that short", len(tokens))
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


class EpochBatches:
    """Which windows make up each batch of each epoch: a pure function of the seed.

    Every epoch lays the grid of windows at another offset and visits it in another order.
    Nothing here is stateful, so that a run can be resumed at any batch.

    Args:
        dataset: the windows.
        batch_size: windows of a batch; fewer where the text has fewer.
        seed: of the order.
    """

    def __init__(self, dataset: TextDataset, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        room = len(dataset.tokens) - dataset.seq_len
        grid = room // dataset.stride + 1
        # One window fewer than would fit, so that the grid has room to move.
        self._windows = grid if grid <= batch_size else grid - 1
        self._slack = room - (self._windows - 1) * dataset.stride
        self.batch_size = min(batch_size, self._windows)
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.long, device="cpu")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; what is left over has its turn in another."""
        return self._windows // self.batch_size

    def batch(self, step: int, part: int = 0, parts: int = 1) -> torch.Tensor:
        """The batch (B, T) of the run's step `step`, counted from 0; or one of its equal parts.

        Args:
            step: the step.
            part: which of them, counted from 0.
            parts: how many; divides the batch.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            seed = (self.seed * 1_000_003 + epoch) % 2**63
            generator = torch.Generator("cpu").manual_seed(seed)
            offset = torch.randint(self._slack + 1, (), generator=generator, device="cpu")
            order = torch.randperm(self._windows, generator=generator, device="cpu")
            self._epoch, self._starts = epoch, order * self.dataset.stride + offset
        rows = self.batch_size // parts
        first = index * self.batch_size + part * rows
        starts = self._starts[first : first + rows].tolist()
        return torch.stack([self.dataset.window(start) for start in starts])
