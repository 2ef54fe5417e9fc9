"""Speculative decoding with n-gram (prompt lookup) proposals, for greedy decoding."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from ..arguments import checked
from ..config_keys import GenerationConfig
from ..errors import AGI2Error
from .model_runner import ModelRunner, check_prompt
from .sampling import EndToken, draw, end_ids


class NgramIndex:
    """A token sequence with the last occurrence of each of its n-grams.

    Args:
        tokens: the sequence.
        ngram: n, the size of the n-grams.
    """

    def __init__(self, tokens: Sequence[int], ngram: int) -> None:
        self.tokens: list[int] = []
        self._ngram = ngram
        self._positions: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Append a token to the sequence."""
        if len(self.tokens) >= self._ngram:
            self._positions[tuple(self.tokens[-self._ngram :])] = len(self.tokens)
        self.tokens.append(token)

    def propose(self, count: int) -> list[int]:
        """Return the `count` tokens after the last n-gram's previous occurrence, [] if none.

        If fewer than `count` tokens have followed it, they are repeated: a loop is continued.
        """
        position = self._positions.get(tuple(self.tokens[-self._ngram :]))
        if position is None:
            return []
        period = len(self.tokens) - position
        return [self.tokens[position + index % period] for index in range(count)]


@checked
def speculate_tokens(
    runner: ModelRunner,
    prompt: Sequence[int],
    max_length: int = 100,
    *,
    end_token: EndToken = None,
    ngram: int = 3,
    proposals: int = 5,
) -> Generator[int, None, None]:
    """Yield the tokens of greedy decoding, up to `max_length` or before `end_token`.

    Prompt lookup decoding (Saxena, 2023): the tokens that followed the previous occurrence of the
    last n-gram are the draft. One forward pass verifies them: those up to the first mismatch with
    greedy decoding are accepted (Leviathan et al., 2023), the others rolled back. The tokens are
    those of plain decoding, unless two logits are equal up to rounding.

    On a CPU a forward pass over 6 tokens takes an eighth longer than over 1, over 8 half as long
    again: hence 5 draft tokens, and after a rejected draft as many plain decode steps.

    Args:
        runner: decodes one sequence at a time.
        prompt: token ids, at least one.
        max_length: maximum number of new tokens.
        end_token: ends the sequence; one or several.
        ngram: size of the n-gram that is looked up.
        proposals: maximum number of draft tokens.

    Raises:
        AGI2Error: if an option is out of range, the prompt is not in the vocabulary, the runner
            is in use, or the model's logits are not finite.
    """
    GenerationConfig(max_length=max_length)  # checks it
    check_prompt(prompt, runner.vocab_size)
    for name, value in (("ngram", ngram), ("proposals", proposals)):
        if value < 1:
            raise AGI2Error(f"{name} must be at least 1, not {value}")
    text = NgramIndex(prompt, ngram)
    ends = end_ids(end_token)
    with runner.reserved():
        logits = runner.prefill(prompt)
        draft: list[int] = []
        remaining, cooldown = max_length, 0
        while True:
            greedy = draw(logits, None).read()
            accepted = 0
            while accepted < len(draft) and draft[accepted] == greedy[accepted]:
                accepted += 1
            runner.rollback(len(draft) - accepted)
            # The accepted draft tokens, and the token that the model generates after them.
            for token in greedy[: accepted + 1]:
                if token in ends:
                    return
                yield token
                text.append(token)
            remaining -= accepted + 1
            if remaining == 0:
                return
            cooldown = proposals if 4 * accepted < len(draft) else cooldown - accepted - 1
            # A full window slides at the next token: a draft must fit before that.
            max_draft = min(proposals, runner.remaining_capacity - 1, remaining - 1)
            draft = text.propose(max_draft) if cooldown <= 0 else []
            inputs = torch.tensor([[text.tokens[-1], *draft]], device=logits.device)
            logits = runner.extend(inputs)[0]
