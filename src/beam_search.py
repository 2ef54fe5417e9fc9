"""Beam search: the likeliest continuations of a prompt, in tokens. B rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .decoder import Decoder, check_options
from .errors import AGI2Error
from .model import GPT2Model
from .sampling import apply_repetition_penalty
from .utils import evaluating


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found."""

    tokens: list[int]
    """The new tokens, without the one that ended them."""
    score: float
    """Log-probability divided by length ** length_penalty; the ending token counts."""


def beam_search(
    model: GPT2Model,
    prompt: Sequence[int],
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    *,
    repetition_penalty: float = 1.0,
    end_token: int | None = None,
    vocab_size: int | None = None,
    is_finished: Callable[[list[int]], bool] | None = None,
) -> list[Hypothesis]:
    """Search for the likeliest continuations, keeping `beam_size` of them at each step.

    Hypotheses that end go to a pool of the best `beam_size`; the search is over once none that
    still grows can beat the worst of a full pool.

    Args:
        model: put in evaluation mode, and back.
        prompt: token ids, at least one.
        beam_size: hypotheses kept; 1 is greedy.
        max_length: new tokens at most.
        length_penalty: scores are divided by length to this power; above 0 favours long texts.
        repetition_penalty: as for sampling, on log-probabilities.
        end_token: ends a hypothesis.
        vocab_size: choose among so many tokens, where the tokenizer has fewer than the model.
        is_finished: is given a hypothesis's new tokens; true ends it after them.

    Returns:
        At most `beam_size` hypotheses, the best first.

    Raises:
        AGI2Error: where an option is out of its range.
    """
    vocab_size = vocab_size or model.config.vocab_size
    check_options(vocab_size, prompt, max_length, repetition_penalty=repetition_penalty)
    if beam_size < 1:
        raise AGI2Error(f"beam_size must be at least 1, not {beam_size}")
    if not -10 <= length_penalty <= 10:
        raise AGI2Error(f"length_penalty must be between -10 and 10, not {length_penalty}")
    pool = _Pool(beam_size, length_penalty)
    start = len(prompt)
    with evaluating(model):
        decoder = Decoder(model, vocab_size)
        logits = decoder.read([prompt])
        scores = torch.zeros(1, device=model.device)
        for length in range(1, max_length + 1):
            log_probs = logits.float().log_softmax(dim=-1)
            log_probs = apply_repetition_penalty(log_probs, decoder.tokens, repetition_penalty)
            total = (scores.unsqueeze(1) + log_probs).flatten()
            # Twice as many as needed: at most half of them end here.
            best = total.topk(min(2 * beam_size, total.numel()))
            histories = decoder.tokens[:, start:].tolist()
            rows: list[int] = []
            tokens: list[int] = []
            kept: list[float] = []
            for rank, (score, index) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                row, token = divmod(index, log_probs.size(1))
                ended = token == end_token
                grown = histories[row] if ended else [*histories[row], token]
                if ended or (is_finished is not None and is_finished(grown)):
                    if rank < beam_size:
                        pool.add(grown, score, length)
                elif len(kept) < beam_size:
                    rows.append(row)
                    tokens.append(token)
                    kept.append(score)
            if length == max_length:
                for row, token, score in zip(rows, tokens, kept, strict=True):
                    pool.add([*histories[row], token], score, length)
            # One beam is greedy: it ends where the likeliest token ends it.
            greedy_end = beam_size == 1 and pool.hypotheses
            if greedy_end or not kept or length == max_length:
                break
            if pool.beats(kept[0], length, max_length):
                break
            decoder.reorder(torch.tensor(rows, device=model.device))
            scores = torch.tensor(kept, device=model.device)
            logits = decoder.step(torch.tensor(tokens, device=model.device))
    return pool.hypotheses


class _Pool:
    """The best finished hypotheses."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self._size = size
        self._penalty = length_penalty
        self.hypotheses: list[Hypothesis] = []

    def add(self, tokens: list[int], log_probability: float, length: int) -> None:
        self.hypotheses.append(Hypothesis(tokens, log_probability / length**self._penalty))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[self._size :]

    def beats(self, log_probability: float, length: int, max_length: int) -> bool:
        """Whether nothing that grows from here can still get into a full pool."""
        if len(self.hypotheses) < self._size:
            return False
        # A log-probability only falls; dividing by a greater length is the best it can hope for.
        reach = max_length if self._penalty > 0 else length + 1
        return log_probability / reach**self._penalty <= self.hypotheses[-1].score
