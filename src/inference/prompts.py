"""Checks of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import AGI2Error
from ..utils import log, plural
from .sampling import EndToken, end_ids


def warn_if_long(length: int, positions: int) -> None:
    """Log a warning if a prompt of this length does not fit into the model's positions."""
    if length > positions:
        log.warning(
            "the prompt has %s, the model sees %d at a time: only the last are read",
            plural(length, "token"),
            positions,
        )


def check_prompt(prompt: Sequence[int], vocab_size: int, end_token: EndToken = None) -> None:
    """Check a prompt's token ids and the end tokens.

    Raises:
        AGI2Error: if the prompt is empty, or a token is not in the vocabulary.
    """
    for end in end_ids(end_token):
        if not 0 <= end < vocab_size:
            raise AGI2Error(f"end_token {end} is not in the vocabulary of {vocab_size} tokens")
    if len(prompt) == 0:
        raise AGI2Error("the prompt has no tokens")
    if not all(0 <= token < vocab_size for token in prompt):
        raise AGI2Error(f"the prompt has a token above the vocabulary of {vocab_size}")
