"""Windows with documents: packed, masked or mixed by weight. R rows, T inputs of a window."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch

from ..config import Config
from ..console import show_progress
from ..errors import AGI2Error
from .batches import EpochBatches
from .shards import ShardedTokens
from .window_plans import DocumentPlan, DocumentRange, MixturePlan, Plan, Row, StreamPlan
from .windows import IGNORE_INDEX, TokenWindows, Windows


def training_batches(dataset: TokenWindows, config: Config) -> EpochBatches:
    """Return the batches of a run; see `training_windows`."""
    return EpochBatches(training_windows(dataset, config), config.batch_size, config.seed)


def training_windows(dataset: TokenWindows, config: Config) -> Windows:
    """Return the windows to train on: those of the dataset, unless keys ask for others.

    Args:
        dataset: windows of the training text as one stream of tokens.
        config: the run's configuration.

    Raises:
        AGI2Error: if the text is not in shards, which have its documents, or a source has no text.
    """
    if not _needs_documents(config):
        return dataset
    tokens = dataset.tokens
    if not isinstance(tokens, ShardedTokens):
        raise AGI2Error(
            "windows, mask_documents and source_weights are for texts that train_model or the "
            "command train has read: token ids alone have no documents"
        )
    with show_progress("planning the windows"):
        return _planned(tokens, dataset.seq_len - 1, config)


def _planned(tokens: ShardedTokens, width: int, config: Config) -> PlannedWindows:
    if not config.source_weights:
        text = DocumentRange(tokens, range(tokens.figures.documents))
        return PlannedWindows(tokens, _plan(text, width, config), config.mask_documents)
    plans = []
    counts = tokens.figures.source_documents
    for name, (first, stop) in zip(
        config.sources, pairwise(accumulate(counts, initial=0)), strict=True
    ):
        plans.append(_plan(DocumentRange(tokens, range(first, stop)), width, config))
        if not len(plans[-1]):
            raise AGI2Error(
                f"source_weights: {name} has no text to train on: leave it out of sources"
            )
    mixture = MixturePlan(plans, config.source_weights, config.seed)
    return PlannedWindows(tokens, mixture, config.mask_documents, config.sources)


def _needs_documents(config: Config) -> bool:
    return config.windows != "stream" or config.mask_documents or bool(config.source_weights)


def hash_of_bounds(dataset: TokenWindows, config: Config) -> str:
    """Return a hash of what the windows depend on besides the tokens; empty if it is nothing."""
    if not _needs_documents(config):
        return ""
    assert isinstance(dataset.tokens, ShardedTokens)
    digest = hashlib.sha256(np.ascontiguousarray(dataset.tokens.document_starts).data)
    if config.source_weights:
        digest.update(str(dataset.tokens.figures.source_documents).encode())
    return digest.hexdigest()


def _plan(text: DocumentRange, width: int, config: Config) -> Plan:
    if config.windows == "stream":
        return StreamPlan(text, width)
    return DocumentPlan(text, width, config.windows == "packed")


class PlannedWindows:
    """Windows of a plan, as batches of inputs, targets and document ids; see `Windows`.

    A window that is shorter than the longest one is padded on the right, with `IGNORE_INDEX` as
    targets.

    Args:
        tokens: the training text.
        plan: what the windows contain.
        is_masked: whether batches have document ids, by which attention is masked.
        sources: names of the sources of a mixture.
    """

    def __init__(
        self,
        tokens: ShardedTokens,
        plan: Plan,
        is_masked: bool,
        sources: list[str] | None = None,
    ) -> None:
        self.tokens: np.ndarray | ShardedTokens = tokens
        self.seq_len = plan.longest + 1
        self._plan, self._is_masked, self._sources = plan, is_masked, sources
        self._document_starts = tokens.document_starts

    def __len__(self) -> int:
        return len(self._plan)

    @property
    def mean_targets(self) -> float:
        """Mean number of targets of a window."""
        return self._plan.targets / len(self._plan)

    @cached_property
    def attention_length(self) -> float:
        """Mean length of the sequence in which a target's input attends, over all targets."""
        return self._plan.attention_length(self._is_masked)

    def describe(self) -> Iterator[str]:
        """Yield lines on the padding, and on the shares of the sources."""
        padding = 1 - self.mean_targets / (self.seq_len - 1)
        yield f"{len(self):,} windows an epoch, {100 * padding:.1f} % padding"
        if isinstance(self._plan, MixturePlan):
            for name, share, repeats in zip(
                self._sources or [], self._plan.shares, self._plan.repeats, strict=True
            ):
                yield (
                    f"{name}: {100 * share:.1f} % of the training tokens, "
                    f"{repeats:.3g} times an epoch"
                )

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return the offset of an epoch."""
        return self._plan.draw_offset(epoch, generator)

    def weight(self, order: torch.Tensor, offset: int) -> int:
        """Return the number of targets of windows of an epoch."""
        return sum(length for row in self._plan.rows(order, offset) for _, length in row)

    def batch(self, order: torch.Tensor, offset: int) -> tuple[torch.Tensor, ...]:
        """Return windows of an epoch as inputs, targets and, if masked, document ids, (R, T)."""
        rows = self._plan.rows(order, offset)
        shape = (len(rows), self.seq_len - 1)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        for index, row in enumerate(rows):
            place = 0
            for first, length in row:
                tokens, end = self.tokens[first : first + length + 1], place + length
                inputs[index, place:end], targets[index, place:end] = tokens[:-1], tokens[1:]
                place = end
        parts = [inputs, targets]
        if self._is_masked:
            parts.append(self._document_ids(rows))
        return tuple(map(torch.from_numpy, parts))

    def _document_ids(self, rows: list[Row]) -> np.ndarray:
        """Return the document of each input, (R, T), counted in each row; padding is another."""
        is_first = np.zeros((len(rows), self.seq_len), np.int64)
        # A document's first input is the end-of-text token before its first token.
        starts = self._document_starts
        for index, row in enumerate(rows):
            place = 0
            for first, length in row:
                inside = slice(*np.searchsorted(starts, [first + 2, first + length + 1]))
                is_first[index, starts[inside] - 1 - first + place] = 1
                is_first[index, place] = 1
                place += length
            is_first[index, place] = 1
        return is_first[:, :-1].cumsum(axis=1)
