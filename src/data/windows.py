"""Windows of a token array. T time (window length)."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import AGI2Error
from ..utils import log, plural
from .shards import ShardedTokens


class TokenWindows(Dataset[torch.Tensor]):
    """Map-style dataset of windows of a token array: `windows[i]` is a LongTensor (seq_len,).

    Args:
        tokens: token ids, (N,), in memory or on disk.
        seq_len: tokens per window. Fewer tokens give one shorter window, with a warning.
        stride: tokens between the starts of consecutive windows, at most `seq_len`, the default.
            The last window ends at the last token, so no token is dropped.

    Raises:
        AGI2Error: if there are fewer than two tokens, or `seq_len` or `stride` is below 1.
    """

    tokens: np.ndarray | ShardedTokens
    seq_len: int
    stride: int
    last_start: int
    """Index in `tokens` of the first token of the last window in the order of the text."""

    def __init__(
        self, tokens: np.ndarray | ShardedTokens, seq_len: int, stride: int | None = None
    ) -> None:
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
        self.last_start = len(tokens) - seq_len

    def __len__(self) -> int:
        return -(-self.last_start // self.stride) + 1

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
