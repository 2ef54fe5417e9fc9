"""Windows of a token array. B batch, T time (window length)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import AGI2Error
from ..utils import log, plural
from .shards import ShardedTokens

IGNORE_INDEX = -100
"""A target that does not count: neither in the loss, nor in its mean. As in `F.cross_entropy`."""


class Windows(Protocol):
    """The windows of an epoch, from which `EpochBatches` makes batches."""

    tokens: np.ndarray | ShardedTokens

    @property
    def seq_len(self) -> int:
        """Tokens of the longest window, its last target included."""

    @property
    def mean_targets(self) -> float:
        """Mean number of targets of a window."""

    @property
    def attention_length(self) -> float:
        """Mean length of the sequence in which a target's input attends, over all targets."""

    def __len__(self) -> int:
        """Return the number of windows of an epoch."""

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return the offset of an epoch's windows, in which it differs from other epochs."""

    def batch(self, order: torch.Tensor, offset: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return windows as a batch (see `train.step.Batch`).

        Args:
            order: indices of the windows, (B,).
            offset: of the epoch.
        """

    def weight(self, order: torch.Tensor, offset: int) -> int:
        """Return the weight of windows in a mean over targets: proportional to their number."""


@dataclass(frozen=True)
class Stream:
    """The windows of a stream of tokens: all of one length, and a stride apart.

    The first starts at the first token, and the last ends at the last token.
    """

    tokens: int
    """Number of tokens."""
    seq_len: int
    """Tokens of a window."""
    stride: int
    """Tokens between the starts of consecutive windows."""

    def __len__(self) -> int:
        return -(-self.last_start // self.stride) + 1

    @property
    def last_start(self) -> int:
        """Index of the first token of the last window."""
        return self.tokens - self.seq_len

    def draw_offset(self, generator: torch.Generator) -> int:
        """Draw the start of the second window of an epoch.

        The others are one stride apart; the two gaps at the ends are at most a stride.
        """
        windows, stride = len(self), self.stride
        min_offset = self.last_start - (windows - 2) * stride if windows > 2 else stride
        return int(torch.randint(min_offset, stride + 1, (), generator=generator, device="cpu"))

    def starts(self, order: torch.Tensor, offset: int) -> torch.Tensor:
        """Return the indices of the first tokens, (N,), of windows of an epoch with an offset."""
        starts = (order - 1) * self.stride + offset
        starts[order == 0] = 0
        starts[order == len(self) - 1] = self.last_start
        return starts


class TokenWindows(Dataset[torch.Tensor]):
    """Map-style dataset of windows of a token array: `windows[i]` is a LongTensor (seq_len,).

    Args:
        tokens: token ids, (N,), in memory or on disk.
        seq_len: tokens per window. Fewer tokens give one shorter window, with a warning.
        stride: tokens between the starts of consecutive windows, at most `seq_len`, the default.
            The last window ends at the last token, so no token is dropped.
        text: what the tokens are of, for the warning.

    Raises:
        AGI2Error: if there are fewer than two tokens, or `seq_len` or `stride` is below 1.
    """

    tokens: np.ndarray | ShardedTokens
    seq_len: int
    stride: int
    last_start: int
    """Index in `tokens` of the first token of the last window in the order of the text."""

    def __init__(
        self,
        tokens: np.ndarray | ShardedTokens,
        seq_len: int,
        stride: int | None = None,
        text: str = "text",
    ) -> None:
        if seq_len < 1 or (stride is not None and stride < 1):
            raise AGI2Error(f"seq_len {seq_len} and stride {stride}: both must be at least 1")
        if len(tokens) < 2:
            raise AGI2Error(f"the text has {plural(len(tokens), 'token')}: at least 2 are needed")
        if len(tokens) < seq_len:
            log.warning(
                "the %s has only %s: windows are that short", text, plural(len(tokens), "token")
            )
            seq_len = len(tokens)
        self.tokens = tokens
        self.seq_len = seq_len
        self.stride = min(stride or seq_len, seq_len)  # a longer stride would skip tokens
        self._stream = Stream(len(tokens), seq_len, self.stride)
        self.last_start = self._stream.last_start

    def __len__(self) -> int:
        return len(self._stream)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.window(self.start(index))

    def start(self, index: int) -> int:
        """Return the index in `tokens` of the first token of a window."""
        return min(range(len(self))[index] * self.stride, self.last_start)

    @property
    def starts(self) -> np.ndarray:
        """Index in `tokens` of the first token of each window, computed."""
        return np.minimum(np.arange(len(self)) * self.stride, self.last_start)

    def window(self, start: int) -> torch.Tensor:
        """Return the window, a LongTensor (T,), that starts at token `start`."""
        return torch.from_numpy(self.tokens[start : start + self.seq_len].astype(np.int64))

    # See `Windows`.

    @property
    def mean_targets(self) -> int:
        """Number of targets of a window."""
        return self.seq_len - 1

    @property
    def attention_length(self) -> int:
        """Number of inputs of a window."""
        return self.seq_len - 1

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return the start of the second window of an epoch."""
        return self._stream.draw_offset(generator)

    def batch(self, order: torch.Tensor, offset: int) -> torch.Tensor:
        """Return windows of an epoch, a LongTensor (B, T); B may be 0."""
        starts = self._stream.starts(order, offset).tolist()
        if not starts:
            return torch.empty(0, self.seq_len, dtype=torch.long, device="cpu")
        return torch.stack([self.window(start) for start in starts])

    def weight(self, order: torch.Tensor, offset: int) -> int:
        """Return the number of windows: all have the same number of targets."""
        return len(order)
