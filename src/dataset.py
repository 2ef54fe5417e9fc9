"""`TextDataset`: token windows of texts. The front door of `data`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .arguments import NonNegativeInt, checked
from .console import show_progress, visible
from .data.batches import EpochBatches
from .data.corpus import check_fits_memory, read_documents
from .data.documents import ReadOptions
from .data.shards import ShardedTokens
from .data.sources import Sources
from .data.splits import split_documents
from .data.tokens import tokenize
from .data.windows import TokenWindows
from .errors import AGI2Error
from .tokenizer import Tokenizer

__all__ = ["EpochBatches", "TextDataset", "split_documents", "tokenize"]


class TextDataset(TokenWindows):
    """Map-style dataset of token windows: `dataset[i]` is a LongTensor of shape (seq_len,).

    Args:
        sources: one source or several (see `corpus.read_documents`).
        tokenizer: a fitted tokenizer.
        seq_len: tokens per window. A shorter text gives one shorter window, with a warning.
        stride: tokens between the starts of consecutive windows, at most `seq_len`, the default.
            The last window ends at the last token of the text, so no token is dropped.
        text_field: field or column that contains the text; by default `text`, or the only one
            with text.
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
        text_field: str | None = None,
        preprocess: Callable[[str], str] | None = None,
        seed: NonNegativeInt | None = None,
        verbose: bool = True,
    ) -> None:
        with visible(verbose), show_progress("reading the text"):
            check_fits_memory(sources, ReadOptions(text_field))
            documents: Iterable[str] = read_documents(sources, text_field)
            if preprocess is not None:
                documents = (_preprocessed(each, preprocess) for each in documents)
            tokens = tokenize(documents, tokenizer)
            super().__init__(tokens, seq_len, stride)
        if seed is not None:
            self._order = np.random.default_rng(seed).permutation(len(self))

    _order: np.ndarray | None = None
    """The index in the text of each window, if they are shuffled."""

    def start(self, index: int) -> int:
        """Return the index in `tokens` of the first token of a window."""
        return super().start(index if self._order is None else int(self._order[index]))

    @property
    def starts(self) -> np.ndarray:
        """Index in `tokens` of the first token of each window, computed."""
        return super().starts if self._order is None else super().starts[self._order]

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

    @classmethod
    def from_shards(
        cls, tokens: ShardedTokens, seq_len: int, *, stride: int, text: str = "text"
    ) -> TextDataset:
        """Create a dataset from tokens on disk; `text` is what they are of, for messages."""
        self = cls.__new__(cls)
        TokenWindows.__init__(self, tokens, seq_len, stride, text)
        return self


def _preprocessed(document: str, preprocess: Callable[[str], str]) -> str:
    result = preprocess(document)
    if not isinstance(result, str):
        raise AGI2Error(f"preprocess must give a string, not {type(result).__name__}")
    return result


def _as_array(tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    if not isinstance(tokens, np.ndarray):
        return np.array(tokens, dtype=np.int64)
    if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
        raise AGI2Error(
            f"tokens must be one row of integers, not {tokens.dtype} of the shape {tokens.shape}"
        )
    return tokens
