"""Beam search over token ids. R rows (beams of all groups), V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..arguments import PositiveInt, checked
from ..config_keys import EarlyStopping, GenerationConfig
from ..errors import AGI2Error
from ..model import GPT2Model
from .logits_processors import process_logits
from .model_runner import ModelRunner, check_prompt, check_rows
from .sampling import EndToken, beam_config, end_ids


@dataclass(frozen=True)
class Hypothesis:
    """A sequence found by beam search."""

    tokens: list[int]
    """The new token ids, without the end token."""
    score: float
    """Log-probability divided by length ** length_penalty; the end token counts."""


@checked
def beam_search(
    model: GPT2Model,
    prompt: Sequence[int],
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    *,
    early_stopping: EarlyStopping = "never",
    groups: int = 1,
    diversity_penalty: float = 0.5,
    end_token: EndToken = None,
    vocab_size: PositiveInt | None = None,
    is_finished: Callable[[list[int]], bool] | None = None,
    **options: Any,
) -> list[Hypothesis]:
    """Return the most probable continuations of a prompt, found with `beam_size` beams.

    Finished hypotheses go to a pool of the best. The search ends at `max_length`, or when the pool
    is full, as `early_stopping` specifies.

    Several groups are diverse beam search (Vijayakumar et al., 2016): at each step a group
    subtracts `diversity_penalty` from a token's log-probability for each beam of the preceding
    groups that chose this token (Hamming diversity).

    Args:
        model: evaluated without dropout; its mode is not changed.
        prompt: token ids, at least one.
        beam_size: number of beams, in all groups together.
        max_length: maximum number of new tokens.
        length_penalty: scores are divided by length to this power; above 0 favours long sequences.
        early_stopping: when a full pool ends the search, as in `transformers`. True: at once.
            False: once no beam would enter the pool at its current length. "never": once no beam
            can enter it at any length, so that the best hypotheses are never lost.
        groups: divides `beam_size`; each has its own pool. A group of one beam is greedy.
        diversity_penalty: nats, 0 or more. Guides the search and is not part of a score.
        end_token: ends a hypothesis; one or several.
        vocab_size: tokens to choose from, if the tokenizer has fewer than the model.
        is_finished: called with a hypothesis's new tokens; returning true ends it after them.
        **options: keys of `GenerationConfig` that do not require sampling, applied to
            log-probabilities; `logit_bias` by token id.

    Returns:
        At most `beam_size` distinct hypotheses, the best first.

    Raises:
        AGI2Error: if an option is out of range, or the model's logits are NaN.
    """
    config = beam_config(
        options,
        max_length=max_length,
        beam_size=beam_size,
        length_penalty=length_penalty,
        beam_early_stopping=early_stopping,
        beam_groups=groups,
        diversity_penalty=diversity_penalty,
    )
    vocab_size = vocab_size or model.config.vocab_size
    return search_beams(model, prompt, config, end_token, vocab_size, is_finished)


def search_beams(
    model: GPT2Model,
    prompt: Sequence[int],
    config: GenerationConfig,
    end_token: EndToken,
    vocab_size: int,
    is_finished: Callable[[list[int]], bool] | None,
) -> list[Hypothesis]:
    """Run `beam_search` as configured."""
    check_prompt(prompt, vocab_size, end_token)
    if config.beam_size > vocab_size:
        raise AGI2Error(
            f"beam_size {config.beam_size} is above the vocabulary of {vocab_size} tokens: lower it"
        )
    check_rows(model, config.beam_size, len(prompt) + config.max_length, "beam_size")
    rules = _SearchOptions(config, end_ids(end_token), is_finished)
    groups_of_beams = [_Group(rules, model.device) for _ in range(config.beam_groups)]
    runner = ModelRunner(model, vocab_size)
    logits = runner.prefill(prompt)
    while True:
        log_probs = logits.float().log_softmax(dim=-1)
        log_probs = process_logits(log_probs, runner.tokens, config, len(prompt), end_token)
        beams: list[_Beam] = []
        preceding_tokens: list[int] = []
        for group in groups_of_beams:
            if not group.is_over:
                kept = group.step(log_probs, runner.tokens[:, len(prompt) :], preceding_tokens)
                preceding_tokens += [beam.token for beam in kept]
                if not group.is_over:
                    group.rows = slice(len(beams), len(beams) + len(kept))
                    beams += kept
        if not beams:
            break
        runner.reorder(torch.tensor([beam.row for beam in beams], device=model.device))
        logits = runner.decode(torch.tensor([beam.token for beam in beams], device=model.device))
    # Two groups may find the same sequence.
    distinct = {tuple(each.tokens): each for group in groups_of_beams for each in group.pool}
    return sorted(distinct.values(), key=lambda hypothesis: -hypothesis.score)


class _SearchOptions:
    """Search options shared by all groups; see `beam_search`."""

    def __init__(
        self,
        config: GenerationConfig,
        end_tokens: tuple[int, ...],
        is_finished: Callable[[list[int]], bool] | None,
    ) -> None:
        self.max_length = config.max_length
        self.length_penalty = config.length_penalty
        self.early_stopping = config.beam_early_stopping
        self.diversity_penalty = config.diversity_penalty
        self.beams_per_group = config.beam_size // config.beam_groups
        self.end_tokens = end_tokens
        self.is_finished = is_finished
        has_reward = min(config.presence_penalty, config.frequency_penalty) < 0
        self.may_rise = has_reward or any(bias > 0 for bias in config.logit_bias.values())
        """Whether a token can raise a hypothesis's log-probability, as a `logit_bias` above 0."""


class _Beam(NamedTuple):
    """A row of the runner and its next token."""

    row: int
    token: int
    total: float
    """What beams are ranked by: the log-probability minus the diversity penalties."""
    log_probability: float


class _Group:
    """A group of competing beams, and the pool of its best finished hypotheses.

    `rows` is its slice of the runner's rows: at first the prompt, which all groups share.
    """

    def __init__(self, rules: _SearchOptions, device: torch.device) -> None:
        self.pool: list[Hypothesis] = []
        self.rows = slice(0, 1)
        self.is_over = False
        self._size = rules.beams_per_group
        self._rules = rules
        self._totals = self._log_probabilities = torch.zeros(1, dtype=torch.float32, device=device)

    def step(
        self, log_probs: torch.Tensor, texts: torch.Tensor, preceding_tokens: Sequence[int]
    ) -> list[_Beam]:
        """Choose the beams of the next step, and update the pool and `is_over`.

        Args:
            log_probs: of the next token, (R, V), for all rows of the runner.
            texts: the new tokens so far, (R, length).
            preceding_tokens: the next tokens of the beams of the preceding groups.

        Returns:
            The unfinished beams, also if the search is over; the most probable first.
        """
        length = texts.size(1) + 1
        beams: list[_Beam] = []
        is_last = length == self._rules.max_length
        candidates = self._candidates(log_probs, preceding_tokens)
        if not candidates:  # every token is masked: the hypotheses end as they are
            for row, total in enumerate(self._log_probabilities.tolist(), self.rows.start):
                self._add(texts[row].tolist(), total, max(1, length - 1))
        for rank, beam in enumerate(candidates):
            is_end = beam.token in self._rules.end_tokens
            has_ended = is_end or self._is_finished(texts, beam)
            if rank < self._size and (has_ended or is_last):
                new = [] if is_end else [beam.token]
                self._add([*texts[beam.row].tolist(), *new], beam.log_probability, length)
            if not has_ended:
                beams.append(beam)
            if len(beams) == self._size:
                break
        self.is_over = is_last or self._cannot_improve(beams, length)
        device = log_probs.device
        self._totals = torch.tensor(
            [beam.total for beam in beams], dtype=torch.float32, device=device
        )
        self._log_probabilities = torch.tensor(
            [beam.log_probability for beam in beams], dtype=torch.float32, device=device
        )
        return beams

    def _candidates(self, log_probs: torch.Tensor, preceding_tokens: Sequence[int]) -> list[_Beam]:
        """Return the best 2 * size candidates: every beam may produce one that is finished."""
        log_probs = log_probs[self.rows]
        ranked = log_probs
        if preceding_tokens:
            ids = torch.tensor(preceding_tokens, device=log_probs.device)
            counts = ids.bincount(minlength=log_probs.size(1))
            ranked = log_probs - self._rules.diversity_penalty * counts
        # Top-k per row first: over all of (R, V) it would take longer than a small model's step.
        values, tokens = ranked.topk(min(2 * self._size, ranked.size(1)), dim=1)
        totals = (self._totals.unsqueeze(1) + values).flatten()
        best = totals.topk(min(2 * self._size, len(totals)))
        rows, tokens = best.indices // tokens.size(1), tokens.flatten()[best.indices]
        sums = self._log_probabilities[rows] + log_probs[rows, tokens]
        columns = (rows + self.rows.start, tokens, best.values, sums)
        beams = [_Beam(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        if math.isnan(beams[0].total):  # topk orders NaN first
            raise AGI2Error("the model's logits are not numbers: are its weights corrupt?")
        return [beam for beam in beams if beam.total > -math.inf]

    def _is_finished(self, texts: torch.Tensor, beam: _Beam) -> bool:
        is_finished = self._rules.is_finished
        return is_finished is not None and is_finished([*texts[beam.row].tolist(), beam.token])

    def _add(self, tokens: list[int], log_probability: float, length: int) -> None:
        """Add a hypothesis to the pool, which keeps the `size` best."""
        score = log_probability / length**self._rules.length_penalty
        self.pool.append(Hypothesis(tokens, score))
        self.pool.sort(key=lambda hypothesis: -hypothesis.score)
        del self.pool[self._size :]

    def _cannot_improve(self, beams: Sequence[_Beam], length: int) -> bool:
        """Return whether extending these beams cannot improve the pool (`early_stopping`)."""
        if not beams:
            return True
        if len(self.pool) < self._size:
            return False
        # One beam is greedy search: it ends at the first end token.
        if self._size == 1 or self._rules.early_stopping is True:
            return True
        if self._rules.may_rise and self._rules.early_stopping == "never":
            return False
        best = max(beam.log_probability for beam in beams)
        # Log-probabilities only decrease: this one over the largest length bounds the score.
        penalty = self._rules.length_penalty
        to_the_end = self._rules.early_stopping == "never" and penalty > 0
        length_bound = self._rules.max_length if to_the_end else length
        return best / length_bound**penalty <= self.pool[-1].score
