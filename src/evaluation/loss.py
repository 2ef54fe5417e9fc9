"""Loss of a model on a text: loss in nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..arguments import NonNegativeInt, PositiveInt, checked, convert, is_several
from ..console import Advance, show_progress, visible
from ..cuda_utils import autocast, logits_chunk_tokens
from ..data.planned_windows import PlannedWindows
from ..data.tokens import tokenize
from ..data.windows import IGNORE_INDEX
from ..dataset import TextDataset
from ..errors import AGI2Error
from ..formats.model_dir import check_vocabulary
from ..model import GPT2Model
from ..nn.dropout import evaluating
from ..tokenizer import Tokenizer
from ..train.metrics import Evaluation, exp_or_inf
from ..utils import plural


@checked
def evaluate(
    model: GPT2Model,
    dataset: TextDataset | PlannedWindows,
    tokenizer: Tokenizer,
    *,
    batch_size: PositiveInt = 1,
    max_tokens: NonNegativeInt = 0,
    precision: torch.dtype = torch.float32,
    verbose: bool = True,
) -> Evaluation:
    """Compute the model's loss on a text. Each token but the first is predicted once.

    Args:
        model: the model, whose training mode is left as it is.
        dataset: windows of T + 1 tokens, T predictions each. If the stride is less than T, a token
            in several windows counts in the first of them. Of conversations, only what the
            assistant says counts.
        tokenizer: the model's, to count bytes.
        batch_size: windows in a forward pass.
        max_tokens: evaluate about this many tokens, in evenly spaced windows; 0 for all.
        precision: autocast type of the forward passes.
        verbose: whether to show progress (see `console.visible`).

    Returns:
        The mean loss in nats per token, with the numbers of tokens and bytes.

    Raises:
        AGI2Error: if an argument is invalid, windows have a single token, or the tokenizer has
            more tokens than the model.
    """
    check_vocabulary(tokenizer, model)
    if dataset.seq_len < 2:
        raise AGI2Error("dataset: windows of one token have nothing to predict: seq_len is 1")
    with visible(verbose), show_progress("evaluating", is_determinate=True) as advance:
        return _evaluate(model, dataset, tokenizer, batch_size, max_tokens, precision, advance)


def _evaluate(
    model: GPT2Model,
    dataset: TextDataset | PlannedWindows,
    tokenizer: Tokenizer,
    batch_size: int,
    max_tokens: int,
    precision: torch.dtype,
    advance: Advance,
) -> Evaluation:
    width = dataset.seq_len - 1
    count = len(dataset)
    if max_tokens and count * width > max_tokens:
        count = max(1, max_tokens // width)
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    byte_counts = torch.from_numpy(tokenizer.byte_lengths())
    total, tokens, text_bytes, unknown = 0.0, 0, 0, 0
    with evaluating(), autocast(model.device, precision):
        for first in range(0, len(chosen), batch_size):
            inputs, all_targets, *ids = _batch(dataset, chosen[first : first + batch_size])
            counts = all_targets != IGNORE_INDEX
            targets = all_targets[counts]
            hidden = model.hidden_states(
                inputs.to(model.device), document_ids=ids[0].to(model.device) if ids else None
            )[counts.to(model.device)]
            size = logits_chunk_tokens(model.device)
            for x, y in zip(hidden.split(size), targets.to(model.device).split(size), strict=True):
                losses = F.cross_entropy(model.logits(x).float(), y, reduction="none")
                total += losses.cpu().sum(dtype=torch.float64).item()
            tokens += len(targets)
            text_bytes += int(byte_counts[targets].sum())
            if tokenizer.unknown is not None:
                unknown += int((targets == tokenizer.unknown).sum())
            advance(min(1.0, (first + batch_size) / len(chosen)))
    return Evaluation(total / tokens, tokens, text_bytes, unknown=unknown)


def _batch(dataset: TextDataset | PlannedWindows, indices: list[int]) -> tuple[torch.Tensor, ...]:
    """Return windows as inputs, targets and, if attention is masked, document ids, (B, T) each."""
    if isinstance(dataset, PlannedWindows):
        return dataset.batch(torch.tensor(indices, device="cpu"), 0)
    windows = torch.stack([dataset[index] for index in indices])
    is_new = torch.stack([_new_targets_mask(dataset, index) for index in indices])
    return windows[:, :-1], windows[:, 1:].masked_fill(~is_new, IGNORE_INDEX)


def _new_targets_mask(dataset: TextDataset, index: int) -> torch.Tensor:
    """Return the mask (T,) of a window's targets that are not in the window before it."""
    width = dataset.seq_len - 1
    is_new = torch.ones(width, dtype=torch.bool, device="cpu")
    if index:
        overlap = dataset.start(index - 1) + width - dataset.start(index)
        is_new[: max(overlap, 0)] = False
    return is_new


@checked
def evaluate_tokens(
    model: GPT2Model,
    tokens: np.ndarray | Sequence[int],
    tokenizer: Tokenizer,
    stride: int,
    *,
    precision: torch.dtype = torch.float32,
    verbose: bool = True,
) -> Evaluation:
    """Compute the model's loss on a text with a sliding window of P = `max_seq_len` tokens.

    Each window starts `stride` tokens after the previous one; the last window ends with the text.
    A window scores only the tokens that no earlier window has scored, so each token but the first
    is scored once, after the first window with more than P - `stride` tokens of context.

    Args:
        model: the model, whose training mode is left as it is.
        tokens: token ids, of shape (tokens,).
        tokenizer: the model's, to count bytes.
        stride: tokens, 1 to P. A smaller stride gives more context, and takes more time.
        precision: autocast type of the forward passes.
        verbose: whether to show progress (see `console.visible`).

    Returns:
        The mean loss in nats per token, with the numbers of tokens and bytes.

    Raises:
        AGI2Error: if the stride is not in 1 to P, there are fewer than two tokens, or the loss is
            not finite.
    """
    positions = model.config.max_seq_len
    if not 1 <= stride <= positions:
        raise AGI2Error(
            f"stride must be between 1 and the model's {plural(positions, 'position')}, "
            f"not {stride}"
        )
    if not is_several(tokens):
        convert(Sequence[int], "tokens", tokens)
    if len(tokens) < 2:
        raise AGI2Error(f"the text has {plural(len(tokens), 'token')}: at least 2 are needed")
    width = min(positions, len(tokens) - 1)
    windows = TextDataset.from_tokens(tokens, width + 1, stride=min(stride, width))
    rows = max(1, EVAL_TOKENS_PER_BATCH // width)
    evaluation = evaluate(
        model, windows, tokenizer, batch_size=rows, precision=precision, verbose=verbose
    )
    if not math.isfinite(evaluation.loss):
        raise AGI2Error("the loss is not a finite number: the model's weights are broken")
    return evaluation


# Tokens of a forward pass (B·T), which bounds its memory.
EVAL_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """The loss on a text, with its number of words."""

    words: int
    """Number of words, separated by white space, in the text of the scored tokens."""

    @property
    def word_perplexity(self) -> float | None:
        """exp(total loss / words): like bits per byte, comparable between tokenizers.

        `None` if it is not meaningful: see `no_word_perplexity`.
        """
        if self.no_word_perplexity:
            return None
        return exp_or_inf(self.loss * self.tokens / self.words)

    @property
    def no_word_perplexity(self) -> str:
        """Why `word_perplexity` is `None`; empty if it is not."""
        if self.no_bits_per_byte:
            return self.no_bits_per_byte
        if self.text_bytes > _MAX_MEAN_WORD_BYTES * self.words:
            return f"the text has few spaces: {self.words:,} words"
        return ""


# Maximum mean bytes per word. In languages that separate words by spaces it is 5 to 17; above the
# maximum the text has no such words (Chinese, Japanese).
_MAX_MEAN_WORD_BYTES = 40


@checked
def evaluate_text(
    model: GPT2Model,
    documents: str | Sequence[str],
    tokenizer: Tokenizer,
    stride: int,
    *,
    precision: torch.dtype = torch.float32,
    verbose: bool = True,
) -> TextEvaluation:
    """Call `evaluate_tokens` on a text, or on documents joined with the end-of-text token."""
    with visible(verbose), show_progress("tokenizing the text"):
        tokens = tokenize([documents] if isinstance(documents, str) else documents, tokenizer)
    evaluation = evaluate_tokens(
        model, tokens, tokenizer, stride, precision=precision, verbose=verbose
    )
    predicted = tokens[1:]
    ends = np.flatnonzero(predicted == tokenizer.end_of_text)
    parts = [tokenizer.decode(part.tolist()) for part in np.split(predicted, ends)]
    words = sum(len(part.split()) for part in parts)
    return TextEvaluation(
        evaluation.loss, evaluation.tokens, evaluation.text_bytes, words, unknown=evaluation.unknown
    )
