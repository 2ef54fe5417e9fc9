"""Preferences as documents: pairs of conversations, of which one was chosen and one rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ..errors import AGI2Error, safe_repr
from .chat_template import Message
from .conversations import (
    PREFERENCE_FIELDS,
    complete,
    conversations_in,
    has_pair,
    messages_of,
    system_message,
    to_text,
)

PreferencePair = tuple[list[Message], list[Message]]
"""The chosen and the rejected conversation."""


def pair_of(record: Any) -> PreferencePair:
    """Return the chosen and the rejected conversation of a record.

    Each is a list of messages, or, after `prompt`, the text or messages of the assistant. A list
    that begins with the system's or the user's message is complete, whatever `prompt` is.

    Raises:
        AGI2Error: if it is in another format; a line that does not say where the record is.
    """
    if not isinstance(record, Mapping):
        raise AGI2Error(f"{safe_repr(record)} is not a pair")
    if not has_pair(record, PREFERENCE_FIELDS):
        names = ", ".join(map(str, record)) or "none"
        raise AGI2Error(f"no pair: it needs chosen and rejected; its fields are {names}")
    chosen, rejected = (_conversation(record, name) for name in PREFERENCE_FIELDS)
    return chosen, rejected


def _conversation(record: Mapping[str, Any], name: str) -> list[Message]:
    value, prompt = record[name], record.get("prompt")
    if isinstance(value, str):
        said = [Message("assistant", value)]
    elif isinstance(value, list):
        said = messages_of(value)
    else:
        raise AGI2Error(f"{name} is {safe_repr(value)}, neither a text nor a list of messages")
    if not said or said[0].role != "assistant":
        return [*system_message(record, value), *said]
    if isinstance(prompt, str):
        asked = [Message("user", prompt)]
    elif isinstance(prompt, list):
        asked = messages_of(prompt)
    else:
        what = "missing" if prompt is None else f"{safe_repr(prompt)}, not a text"
        raise AGI2Error(f"{name} begins with the reply, but prompt is {what}")
    return [*system_message(record, prompt), *asked, *said]


def complete_pair(chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    """Return the conversations of a pair to train on.

    Raises:
        AGI2Error: if one is invalid or does not end with a reply; or if they are the same, or
            differ first in another message than the assistant's.
    """
    found = []
    for name, messages in zip(PREFERENCE_FIELDS, (chosen, rejected), strict=True):
        try:
            kept, is_dropped = complete(messages)
        except AGI2Error as error:
            raise AGI2Error(f"{name}: {error}") from error
        if is_dropped:
            raise AGI2Error(f"{name}: the last message is of the user: there is no reply to it")
        found.append(kept)
    chosen, rejected = found
    same = _common(chosen, rejected)
    if chosen == rejected:
        raise AGI2Error("chosen and rejected are the same")
    if same == min(len(chosen), len(rejected)):
        longer = PREFERENCE_FIELDS[len(rejected) > len(chosen)]
        raise AGI2Error(f"{longer} only continues the other conversation: no reply differs")
    if chosen[same].role != "assistant" or rejected[same].role != "assistant":
        raise AGI2Error(
            f"chosen and rejected differ in message {same + 1}, which is not the assistant's: what "
            "is said before the replies must be the same"
        )
    return chosen, rejected


def _common(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Return the number of messages that both conversations begin with."""
    both = zip(chosen, rejected, strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))


def number_prompts(texts: Iterable[str]) -> np.ndarray:
    """Return a number for each pair, (P,), the same for pairs of replies to the same messages.

    Args:
        texts: the canonical texts of the pairs.
    """
    numbers: dict[bytes, int] = {}
    found = []
    for text in texts:
        chosen, rejected = conversations_in(text)
        prompt = to_text(chosen[: _common(chosen, rejected)])
        digest = hashlib.sha256(prompt.encode()).digest()[:16]
        found.append(numbers.setdefault(digest, len(numbers)))
    return np.array(found, np.int64)
