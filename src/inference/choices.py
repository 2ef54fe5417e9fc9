"""Choices: the tokens of a sequence with their probabilities and alternatives."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from ..tokenizer import Tokenizer
from .detokenizer import StreamDecoder
from .sequence import Sequence


@dataclass(frozen=True)
class Choice:
    """A generated token with its probability and the most probable alternatives."""

    token: int
    text: str
    """The characters that it completes; "" if the character takes more tokens."""
    probability: float
    """The model's probability of the token, before logits processors."""
    runners_up: list[tuple[int, float]]
    """The most probable other token ids with their probabilities, in descending order."""


def choices_of(
    sequence: Sequence, tokenizer: Tokenizer, runners_up: int, skip_leading_space: bool = False
) -> list[Choice]:
    """Return the choices whose texts joined are the text of a finished sequence.

    Args:
        sequence: with `top` at least `runners_up + 1`, as the token itself may be among them.
        tokenizer: the model's.
        runners_up: number of alternatives of each token.
        skip_leading_space: whether the sequence's text has no white space at its start.
    """
    characters = StreamDecoder(tokenizer)
    choices = []
    for token, (probability, best) in zip(sequence.new_tokens, sequence.probabilities, strict=True):
        others = [(other, share) for other, share in best if other != token][:runners_up]
        text = characters.push(token)
        if skip_leading_space:
            text = text.lstrip()
            skip_leading_space = not text
        choices.append(Choice(token, text, probability, others))
    return _cut(choices, sequence.text)


def _cut(choices: SequenceOf[Choice], text: str) -> list[Choice]:
    """Truncate choices to `text`: a prefix of their joined texts, perhaps ending in U+FFFD."""
    shown = []
    for choice in choices:
        if not text:
            break
        shown.append(replace(choice, text=text[: len(choice.text)]))
        text = text[len(choice.text) :]
    if text:  # U+FFFD for an incomplete character
        shown[-1] = replace(shown[-1], text=shown[-1].text + text)
    return shown
