"""Windows with documents: packed, masked or mixed by weight. R rows, T inputs of a window."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import torch

from ..config import Config
from ..console import show_progress
from ..errors import AGI2Error
from ..tokenizer import Tokenizer
from .batches import EpochBatches
from .chat_template import ChatTemplate
from .conversation_windows import ConversationPlan, ConversationRow
from .preference_windows import PreferenceWindows
from .shards import ShardedTokens
from .window_plans import DocumentPlan, DocumentRange, MixturePlan, Plan, Row, StreamPlan
from .windows import IGNORE_INDEX, TokenWindows, Windows

Dataset = TypeVar("Dataset", bound=TokenWindows)


def training_batches(
    dataset: TokenWindows, config: Config, tokenizer: Tokenizer | None = None
) -> EpochBatches:
    """Return the batches of a run; see `training_windows`."""
    windows = training_windows(dataset, config, tokenizer)
    return EpochBatches(windows, config.batch_size, config.seed)


def training_windows(
    dataset: TokenWindows, config: Config, tokenizer: Tokenizer | None = None
) -> Windows:
    """Return the windows to train on: those of the dataset, unless keys ask for others.

    Args:
        dataset: windows of the training text as one stream of tokens.
        config: the run's configuration.
        tokenizer: the tokenizer, needed for conversations and preferences.

    Raises:
        AGI2Error: if the text is not in shards, which have its documents, or a source has no text.
    """
    if not _needs_documents(config):
        return dataset
    tokens = dataset.tokens
    if not isinstance(tokens, ShardedTokens):
        raise AGI2Error(
            "windows, mask_documents, source_weights, conversations and preferences are for texts "
            "that train_model or the command train has read: token ids alone have no documents"
        )
    with show_progress("planning the windows"):
        if config.preferences:
            assert tokenizer is not None
            return PreferenceWindows(tokens, dataset.seq_len - 1, ChatTemplate(tokenizer))
        return _planned(tokens, dataset.seq_len - 1, config, tokenizer)


def validation_windows(
    dataset: Dataset, tokenizer: Tokenizer, are_pairs: bool = False
) -> Dataset | PlannedWindows | PreferenceWindows:
    """Return the windows to validate on: the held-out conversations, if there are any.

    Args:
        dataset: windows of the held-out text as one stream of tokens.
        tokenizer: the tokenizer.
        are_pairs: whether the conversations are pairs of preferences.

    Raises:
        AGI2Error: if no pair fits into a window.
    """
    tokens = dataset.tokens
    if not isinstance(tokens, ShardedTokens) or not tokens.figures.conversations:
        return dataset
    template, width = ChatTemplate(tokenizer), dataset.seq_len - 1
    if are_pairs:
        return PreferenceWindows(tokens, width, template, "validate on")
    plan = ConversationPlan(tokens, width, template)
    return PlannedWindows(tokens, plan, template=template)


def _planned(
    tokens: ShardedTokens, width: int, config: Config, tokenizer: Tokenizer | None
) -> PlannedWindows:
    plans, weights = _text_plans(tokens, width, config)
    if not config.conversations:
        mixture = MixturePlan(plans, weights, config.seed) if weights else plans[0]
        return PlannedWindows(tokens, mixture, config.mask_documents, config.sources)
    assert tokenizer is not None
    template = ChatTemplate(tokenizer)
    spoken = ConversationPlan(tokens, width, template)
    if not len(spoken):
        raise AGI2Error("conversations: none is left to train on: give more, or val_conversations")
    if not plans or config.text_share == 0:
        return PlannedWindows(tokens, spoken, template=template)
    mixture = _with_text(spoken, plans, weights, config)
    names = [*(config.sources if weights else ["sources"]), "conversations"]
    return PlannedWindows(tokens, mixture, config.mask_documents, names, template)


def _with_text(
    spoken: ConversationPlan, plans: list[Plan], weights: list[float], config: Config
) -> MixturePlan:
    """Return the mixture of plans of text and conversations; each of these is once in an epoch."""
    text = sum(plan.targets for plan in plans)
    if not text:
        raise AGI2Error("sources: there is no text in them to train on: leave sources out")
    total = text + spoken.targets
    if config.text_share is not None:
        total = spoken.targets / (1 - config.text_share)
    weights = weights or [1.0]
    shares = [(total - spoken.targets) * weight / sum(weights) for weight in weights]
    return MixturePlan([*plans, spoken], [*shares, spoken.targets], config.seed, total)


def _text_plans(
    tokens: ShardedTokens, width: int, config: Config
) -> tuple[list[Plan], list[float]]:
    """Return the plans of the text: one, or one for each source and the sources' weights."""
    if not config.source_weights:
        documents = tokens.figures.documents - tokens.figures.conversations
        text = DocumentRange(tokens, range(documents))
        is_read = bool(config.sources) or not config.conversations
        return [_plan(text, width, config)] if is_read else [], []
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
    return plans, config.source_weights


def _needs_documents(config: Config) -> bool:
    return (
        config.windows != "stream"
        or config.mask_documents
        or bool(config.source_weights)
        or config.has_messages
    )


def hash_of_bounds(dataset: TokenWindows, config: Config) -> str:
    """Return a hash of what the windows depend on besides the tokens; empty if it is nothing."""
    if not _needs_documents(config):
        return ""
    assert isinstance(dataset.tokens, ShardedTokens)
    digest = hashlib.sha256(np.ascontiguousarray(dataset.tokens.document_starts).data)
    if config.source_weights:
        digest.update(str(dataset.tokens.figures.source_documents).encode())
    if config.conversations:
        digest.update(str(dataset.tokens.figures.conversations).encode())
    if config.preferences:
        digest.update(b"pairs")
    return digest.hexdigest()


def _plan(text: DocumentRange, width: int, config: Config) -> Plan:
    if config.windows == "stream":
        return StreamPlan(text, width)
    return DocumentPlan(text, width, config.windows == "packed")


class PlannedWindows:
    """Windows of a plan, as batches of inputs, targets and document ids; see `Windows`.

    A window that is shorter than the longest one is padded on the right, with `IGNORE_INDEX` as
    targets; so are the targets in conversations that are not the assistant's words. Attention and
    positions do not cross from a conversation to another.

    Args:
        tokens: the training text.
        plan: what the windows contain.
        is_masked: whether attention does not cross from a document of the text to another.
        names: names of the plans of a mixture.
        template: the chat template, if there are conversations.
    """

    def __init__(
        self,
        tokens: ShardedTokens,
        plan: Plan,
        is_masked: bool = False,
        names: list[str] | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        self.tokens: np.ndarray | ShardedTokens = tokens
        self.seq_len = plan.longest + 1
        self._plan, self._is_masked, self._names = plan, is_masked, names
        self._template = template
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
        """Yield lines on the padding, on long conversations, and on the shares of the sources."""
        padding = 1 - self.mean_targets / (self.seq_len - 1)
        yield f"{len(self):,} windows an epoch, {100 * padding:.1f} % padding"
        plans = self._plan.plans if isinstance(self._plan, MixturePlan) else [self._plan]
        for plan in plans:
            if isinstance(plan, ConversationPlan):
                yield from plan.describe()
        if isinstance(self._plan, MixturePlan):
            for name, share, repeats in zip(
                self._names or [], self._plan.shares, self._plan.repeats, strict=True
            ):
                yield (
                    f"{name}: {100 * share:.1f} % of the training tokens, "
                    f"{repeats:.3g} times an epoch"
                )

    def draw_offset(self, epoch: int, generator: torch.Generator) -> int:
        """Return the offset of an epoch."""
        return self._plan.draw_offset(epoch, generator)

    def weight(self, order: torch.Tensor, offset: int) -> int:
        """Return the number of targets of windows of an epoch that count."""
        if self._template is not None:
            return int((self.batch(order, offset)[1] != IGNORE_INDEX).sum())
        rows = (row for row in self._plan.rows(order, offset) if isinstance(row, list))
        return sum(length for row in rows for _, length in row)

    def batch(self, order: torch.Tensor, offset: int) -> tuple[torch.Tensor, ...]:
        """Return windows of an epoch as inputs, targets and, if masked, document ids, (R, T)."""
        rows = self._plan.rows(order, offset)
        shape = (len(rows), self.seq_len - 1)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        is_first = np.zeros((len(rows), self.seq_len), np.int64)
        for index, row in enumerate(rows):
            own = inputs[index], targets[index], is_first[index]
            if isinstance(row, ConversationRow):
                self._fill_conversations(row, *own)
            else:
                self._fill_text(row, *own)
        parts = [inputs, targets]
        if self._is_masked or self._template is not None:
            # The document of each input, counted in each row; padding is another.
            parts.append(is_first[:, :-1].cumsum(axis=1))
        return tuple(map(torch.from_numpy, parts))

    def _fill_text(
        self, row: Row, inputs: np.ndarray, targets: np.ndarray, is_first: np.ndarray
    ) -> None:
        """Fill a row, (T,) each, with pieces of text, and mark the first inputs of documents."""
        # A document's first input is the end-of-text token before its first token.
        place, starts = 0, self._document_starts
        is_first[0] = 1
        for first, length in row:
            tokens, end = self.tokens[first : first + length + 1], place + length
            inputs[place:end], targets[place:end] = tokens[:-1], tokens[1:]
            if self._is_masked:
                inside = slice(*np.searchsorted(starts, [first + 2, first + length + 1]))
                is_first[starts[inside] - 1 - first + place] = 1
                is_first[place] = 1
            place = end
        is_first[place] = 1

    def _fill_conversations(
        self, row: ConversationRow, inputs: np.ndarray, targets: np.ndarray, is_first: np.ndarray
    ) -> None:
        """Fill a row, (T,) each, with pieces of conversations, and mark their first inputs."""
        assert self._template is not None
        segments = [each for piece in row.pieces for each in piece.segments]
        ids = np.concatenate([self.tokens[first : first + n] for first, n in segments])
        lengths = np.array([sum(n for _, n in piece.segments) for piece in row.pieces])
        ends = np.cumsum(lengths)
        counted = np.where(self._template.target_mask(ids), ids.astype(np.int64), IGNORE_INDEX)
        for piece, first in zip(row.pieces, (ends - lengths).tolist(), strict=True):
            counted[first : first + piece.uncounted] = IGNORE_INDEX
        end = len(ids) - len(lengths)
        inputs[:end] = np.delete(ids, ends - 1)
        targets[:end] = np.delete(counted, ends - lengths)
        is_first[ends - lengths - np.arange(len(lengths))] = 1
        is_first[end] = 1
