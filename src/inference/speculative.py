"""Greedy text, several tokens for one pass of the model, where the text repeats itself."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from ..arguments import checked
from ..errors import AGI2Error
from .model_runner import Decoder, check_prompt
from .sampling import EndToken, SamplingOptions, draw, end_ids


class NgramIndex:
    """A text, and where each of its n-grams stood last.

    Args:
        tokens: the text.
        ngram: n, the length of what is looked up.
    """

    def __init__(self, tokens: Sequence[int], ngram: int) -> None:
        self.tokens: list[int] = []
        self._ngram = ngram
        self._places: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the text's end."""
        if len(self.tokens) >= self._ngram:
            self._places[tuple(self.tokens[-self._ngram :])] = len(self.tokens)
        self.tokens.append(token)

    def propose(self, count: int) -> list[int]:
        """The `count` tokens that followed where the last n tokens stood before; [] if nowhere.

        Where that is so near that what followed reaches the text's end, the text is taken to go on
        as it has: a loop is proposed as often as it fits.
        """
        place = self._places.get(tuple(self.tokens[-self._ngram :]))
        if place is None:
            return []
        period = len(self.tokens) - place
        return [self.tokens[place + index % period] for index in range(count)]


@checked
def speculate_tokens(
    decoder: Decoder,
    prompt: Sequence[int],
    max_length: int = 100,
    *,
    end_token: EndToken = None,
    ngram: int = 3,
    proposals: int = 5,
) -> Generator[int, None, None]:
    """Yield what greedy decoding writes, up to `max_length` tokens or before `end_token`.

    Prompt-lookup decoding (Saxena, 2023): the tokens that followed the last n-gram where it stood
    before are a guess at what follows now. One pass of the model reads them all, and those are
    kept that it would have written itself, up to the first that differs (Leviathan et al., 2023).
    The tokens are those of plain decoding, except where two are equally likely to rounding.

    On a CPU a pass over 6 tokens takes an eighth longer than a pass over one, over 8 half as long
    again: so 5 are guessed, and after a bad guess as many tokens are written plainly.

    Args:
        decoder: of one text at a time.
        prompt: token ids, at least one.
        max_length: new tokens at most.
        end_token: ends the text; one or several.
        ngram: tokens that must have stood in the text before.
        proposals: tokens guessed at once, at most.

    Raises:
        AGI2Error: where an option is out of its range, the prompt is not in the vocabulary, the
            decoder is in use, or the model's logits are not numbers.
    """
    SamplingOptions(max_length)  # which checks it
    check_prompt(prompt, decoder.vocab_size)
    for name, value in (("ngram", ngram), ("proposals", proposals)):
        if value < 1:
            raise AGI2Error(f"{name} must be at least 1, not {value}")
    text = NgramIndex(prompt, ngram)
    ends = end_ids(end_token)
    with decoder.reserved():
        logits = decoder.read([prompt])
        guess: list[int] = []
        left, wait = max_length, 0
        while True:
            written = draw(logits, None).tolist()
            agreed = 0
            while agreed < len(guess) and guess[agreed] == written[agreed]:
                agreed += 1
            decoder.take_back(len(guess) - agreed)
            # What is agreed upon, and the token that the model writes after it.
            for token in written[: agreed + 1]:
                if token in ends:
                    return
                yield token
                text.append(token)
            left -= agreed + 1
            if left == 0:
                return
            wait = proposals if 4 * agreed < len(guess) else wait - agreed - 1
            # Where the window is full it slides: no guess may reach beyond.
            most = min(proposals, decoder.room - 1, left - 1)
            guess = text.propose(most) if wait <= 0 else []
            unread = torch.tensor([[text.tokens[-1], *guess]], device=logits.device)
            logits = decoder.extend(unread)[0]
