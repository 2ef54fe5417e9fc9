"""Beam search: the likeliest continuations of a prompt, in tokens. R rows, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..arguments import PositiveInt, checked
from ..config import EarlyStopping
from ..errors import AGI2Error
from ..model import GPT2Model
from .model_runner import Decoder, check_prompt, check_rows
from .sampling import EndToken, SamplingOptions, check_of_beams, end_ids, process_logits


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found."""

    tokens: list[int]
    """The new tokens, without the one that ended them."""
    score: float
    """Log-probability divided by length ** length_penalty; the ending token counts."""


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
    """Search for the likeliest continuations, keeping `beam_size` of them at each step.

    Hypotheses that end go to a pool of the best. The search is over at `max_length`, or with a
    full pool, as `early_stopping` says.

    Several groups of beams are searched side by side (diverse beam search, Vijayakumar et al.,
    2016): at each step a group takes `diversity_penalty` off a token's log-probability for each
    beam of the groups before it that went on with this token (the Hamming distance).

    Args:
        model: evaluated without dropout; its mode is not changed.
        prompt: token ids, at least one.
        beam_size: hypotheses kept, in all groups together.
        max_length: new tokens at most.
        length_penalty: scores are divided by length to this power; above 0 favours long texts.
        early_stopping: what a full pool means, as in `transformers`. True: the end. False: the end
            once none that grows would get into it at its present length. "never": the end once
            none can get into it any more, so that none of the best is lost.
        groups: divides `beam_size`; each has a pool of its own. A group of one beam is greedy.
        diversity_penalty: nats, 0 or more. It guides the search, and is no part of a score.
        end_token: ends a hypothesis; one or several.
        vocab_size: choose among so many tokens, where the tokenizer has fewer than the model.
        is_finished: is given a hypothesis's new tokens; true ends it after them.
        **options: those of `SamplingOptions` that bear on tokens however they are chosen (see
            `sampling.undrawn`), on log-probabilities; `logit_bias` by token id.

    Returns:
        At most `beam_size` hypotheses that differ, the best first.

    Raises:
        AGI2Error: where an option is out of its range, or the model's logits are not numbers.
    """
    vocab_size = vocab_size or model.config.vocab_size
    check_of_beams(options)
    given = SamplingOptions(max_length, temperature=0.0, **options)
    check_prompt(prompt, vocab_size, end_token)
    may_rise = min(given.presence_penalty, given.frequency_penalty) < 0
    may_rise = may_rise or any(bias > 0 for bias in given.logit_bias.values())
    rules = _Rules(
        *(max_length, length_penalty, early_stopping, diversity_penalty),
        *(end_ids(end_token), is_finished, may_rise),
    )
    _check_beams(vocab_size, beam_size, groups, rules)
    check_rows(model, beam_size, len(prompt) + max_length, "beam_size")
    groups_of_beams = [_Group(beam_size // groups, rules, model.device) for _ in range(groups)]
    decoder = Decoder(model, vocab_size)
    logits = decoder.read([prompt])
    while True:
        log_probs = logits.float().log_softmax(dim=-1)
        log_probs = process_logits(log_probs, decoder.tokens, given, len(prompt), end_token)
        beams: list[_Beam] = []
        taken: list[int] = []
        for group in groups_of_beams:
            if not group.is_over:
                kept = group.step(log_probs, decoder.tokens[:, len(prompt) :], taken)
                taken += [beam.token for beam in kept]
                if not group.is_over:
                    group.rows = slice(len(beams), len(beams) + len(kept))
                    beams += kept
        if not beams:
            break
        decoder.reorder(torch.tensor([beam.row for beam in beams], device=model.device))
        logits = decoder.step(torch.tensor([beam.token for beam in beams], device=model.device))
    # Two groups may find the same text.
    found = {tuple(each.tokens): each for group in groups_of_beams for each in group.pool}
    return sorted(found.values(), key=lambda hypothesis: -hypothesis.score)


class _Rules(NamedTuple):
    """The options of a search that every group follows; see `beam_search`."""

    max_length: int
    length_penalty: float
    early_stopping: EarlyStopping
    diversity_penalty: float
    end_tokens: tuple[int, ...]
    is_finished: Callable[[list[int]], bool] | None
    may_rise: bool
    """Whether a token may add to a hypothesis's log-probability: a bias does, above 0."""


class _Beam(NamedTuple):
    """A row of the decoder, and the token that it goes on with."""

    row: int
    token: int
    total: float
    """What it is chosen by: its log-probability less the penalties for lack of diversity."""
    log_probability: float


class _Group:
    """Beams that compete with each other, and a pool of the best that have ended.

    `rows` are its rows among the decoder's: at first the prompt, which all groups share.
    """

    def __init__(self, size: int, rules: _Rules, device: torch.device) -> None:
        self.pool: list[Hypothesis] = []
        self.rows = slice(0, 1)
        self.is_over = False
        self._size = size
        self._rules = rules
        self._totals = self._log_probabilities = torch.zeros(1, dtype=torch.float32, device=device)

    def step(
        self, log_probs: torch.Tensor, texts: torch.Tensor, taken: Sequence[int]
    ) -> list[_Beam]:
        """Choose how to go on, and whether to.

        Args:
            log_probs: of the next token, (R, V), for all rows of the decoder.
            texts: the new tokens so far, (R, length).
            taken: the tokens that the beams of the groups before this one go on with.

        Returns:
            The beams that go on, or would if this were not the end; the likeliest first.
        """
        length = texts.size(1) + 1
        beams: list[_Beam] = []
        is_last = length == self._rules.max_length
        candidates = self._candidates(log_probs, taken)
        if not candidates:  # every token is excluded: the texts end as they are
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
        self.is_over = is_last or self._cannot_gain(beams, length)
        device = log_probs.device
        self._totals = torch.tensor(
            [beam.total for beam in beams], dtype=torch.float32, device=device
        )
        self._log_probabilities = torch.tensor(
            [beam.log_probability for beam in beams], dtype=torch.float32, device=device
        )
        return beams

    def _candidates(self, log_probs: torch.Tensor, taken: Sequence[int]) -> list[_Beam]:
        """The best ways to go on, ended or not: twice as many as needed, for half may end."""
        log_probs = log_probs[self.rows]
        wanted = log_probs
        if taken:
            ids = torch.tensor(taken, device=log_probs.device)
            counts = ids.bincount(minlength=log_probs.size(1))
            wanted = log_probs - self._rules.diversity_penalty * counts
        # First within each row: to order the whole would take longer than a small model's step.
        values, tokens = wanted.topk(min(2 * self._size, wanted.size(1)), dim=1)
        totals = (self._totals.unsqueeze(1) + values).flatten()
        best = totals.topk(min(2 * self._size, len(totals)))
        rows, tokens = best.indices // tokens.size(1), tokens.flatten()[best.indices]
        sums = self._log_probabilities[rows] + log_probs[rows, tokens]
        columns = (rows + self.rows.start, tokens, best.values, sums)
        beams = [_Beam(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        if math.isnan(beams[0].total):  # which counts as the greatest
            raise AGI2Error("the model's logits are not numbers: are its weights whole?")
        return [beam for beam in beams if beam.total > -math.inf]

    def _is_finished(self, texts: torch.Tensor, beam: _Beam) -> bool:
        is_finished = self._rules.is_finished
        return is_finished is not None and is_finished([*texts[beam.row].tolist(), beam.token])

    def _add(self, tokens: list[int], log_probability: float, length: int) -> None:
        """Put a hypothesis into the pool, where it is good enough."""
        score = log_probability / length**self._rules.length_penalty
        self.pool.append(Hypothesis(tokens, score))
        self.pool.sort(key=lambda hypothesis: -hypothesis.score)
        del self.pool[self._size :]

    def _cannot_gain(self, beams: Sequence[_Beam], length: int) -> bool:
        """Whether to stop, rather than let these beams grow."""
        if not beams:
            return True
        if len(self.pool) < self._size:
            return False
        # One beam is greedy: it ends where the likeliest token ends it.
        if self._size == 1 or self._rules.early_stopping is True:
            return True
        if self._rules.may_rise and self._rules.early_stopping == "never":
            return False
        best = max(beam.log_probability for beam in beams)
        # A log-probability only falls; divided by the greatest length, it falls least.
        penalty = self._rules.length_penalty
        to_the_end = self._rules.early_stopping == "never" and penalty > 0
        reach = self._rules.max_length if to_the_end else length
        return best / reach**penalty <= self.pool[-1].score


def _check_beams(vocab_size: int, beam_size: int, groups: int, rules: _Rules) -> None:
    """Raise where an option of the search cannot be used."""
    checks = [
        (beam_size >= 1, f"beam_size must be at least 1, not {beam_size}"),
        (
            beam_size <= vocab_size,
            f"beam_size {beam_size} is above the vocabulary of {vocab_size} tokens: lower it",
        ),
        (groups >= 1, f"beam_groups must be at least 1, not {groups}"),
        (
            groups >= 1 and beam_size % groups == 0,
            f"beam_groups {groups} does not divide beam_size {beam_size}",
        ),
        (
            -10 <= rules.length_penalty <= 10,
            f"length_penalty must be between -10 and 10, not {rules.length_penalty}",
        ),
        (
            0 <= rules.diversity_penalty <= 1e6,
            f"diversity_penalty must be from 0 to 1000000, not {rules.diversity_penalty}",
        ),
    ]
    for is_right, message in checks:
        if not is_right:
            raise AGI2Error(message)
