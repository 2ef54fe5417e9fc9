"""Conversations as documents: what the known formats call messages, and the canonical text.

A conversation is a document whose text is JSON: `[["user","Hello!"],["assistant","Hi."]]`. A pair
of preferences is a list of two such lists.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..errors import AGI2Error, safe_repr
from .chat_template import Message, as_messages, check_order

MESSAGE_FIELDS = ("messages", "conversations", "conversation")
"""Fields of a record that contain a list of messages."""
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("user", "assistant"),
    ("input", "output"),
)
"""Fields of a record that contain what the user and the assistant say."""
PREFERENCE_FIELDS = ("chosen", "rejected")
"""Fields of a pair of preferences: two conversations, or what the assistant says in them."""
CONVERSATION_FIELDS = frozenset((*MESSAGE_FIELDS, *(name for pair in PAIRS for name in pair)))

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "ai", "model"), "assistant"),
}
_CALLS = ("tool_calls", "function_call")
"""Fields of a message without which its text alone would be something else."""
_ROLE_FIELDS, _CONTENT_FIELDS = ("role", "from"), ("content", "value")

Pair = tuple[str, str]

PREFERENCES_HINT = "chosen and rejected are a pair of preferences: use the key preferences"


def to_text(*conversations: Sequence[Message]) -> str:
    """Return the canonical text of a conversation, or of a pair."""
    plain = [[[each.role, each.content] for each in messages] for messages in conversations]
    value = plain[0] if len(plain) == 1 else plain
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str) -> list[Message]:
    """Return the messages of a conversation's canonical text."""
    (messages,) = conversations_in(text)
    return messages


def conversations_in(text: str) -> list[list[Message]]:
    """Return the conversations of a canonical text: one, or the two of a pair."""
    value = json.loads(text)
    conversations = value if isinstance(value[0][0], list) else [value]
    return [[Message(role, content) for role, content in each] for each in conversations]


def said_in(text: str) -> Iterator[str]:
    """Yield the text of each message, as a tokenizer is trained on it: after a line feed."""
    for messages in conversations_in(text):
        for message in messages:
            yield f"\n{message.content}"


def turns_of(text: str) -> str:
    """Return what the user and the assistant say in a document, by which copies are found.

    Without the system message, which is often the same in all conversations.
    """
    messages = [each for conversation in conversations_in(text) for each in conversation]
    return "\n".join(each.content for each in messages if each.role != "system")


def is_message(value: Any) -> bool:
    """Return whether a value is one message, not a conversation."""
    return (
        isinstance(value, Mapping)
        and any(name in value for name in _ROLE_FIELDS)
        and any(name in value for name in _CONTENT_FIELDS)
    )


def messages_of(record: Any, pair: Pair | None = None) -> list[Message]:
    """Return the messages of a record: in OpenAI's or ShareGPT's format, or of a pair of fields.

    Args:
        record: what was read, such as from a line of JSON.
        pair: the fields of what the user and the assistant say; by default one of `PAIRS`.

    Raises:
        AGI2Error: if it is in no known format; a line that does not say where the record is.
    """
    if isinstance(record, list):
        return [_message(number, each) for number, each in enumerate(record, 1)]
    if not isinstance(record, Mapping):
        raise AGI2Error(f"{safe_repr(record)} is not a conversation")
    for name in MESSAGE_FIELDS:
        if pair is None and isinstance(record.get(name), list):
            return [*system_message(record, record[name]), *messages_of(record[name])]
    pair = pair or next((each for each in PAIRS if has_pair(record, each)), None)
    if pair is None:
        names = ", ".join(map(str, record)) or "none"
        raise AGI2Error(
            PREFERENCES_HINT
            if has_pair(record, PREFERENCE_FIELDS)
            else "no conversation: it needs messages, conversations, or prompt and completion; its "
            f"fields are {names}"
        )
    asked = _said(record, pair[0], "user")
    if pair == ("instruction", "output") and _is_text(record.get("input")):
        asked = [Message("user", f"{record['instruction']}\n\n{record['input']}")]
    return [*system_message(record, record[pair[0]]), *asked, *_said(record, pair[1], "assistant")]


def has_pair(names: Any, pair: Pair) -> bool:
    """Return whether both names of a pair are among some."""
    return all(name in names for name in pair)


def has_conversations(names: Collection[str]) -> bool:
    """Return whether fields or columns of some names contain conversations in a known format.

    Also if they are those of a message.
    """
    return any(each in names for each in MESSAGE_FIELDS) or any(
        has_pair(names, pair) for pair in (*PAIRS, *zip(_ROLE_FIELDS, _CONTENT_FIELDS, strict=True))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def system_message(record: Mapping[str, Any], messages: Any) -> list[Message]:
    """Return the system message that a record has in a field of its own, if any."""
    text = record.get("system", record.get("system_prompt"))
    if not _is_text(text):
        return []
    if isinstance(messages, list) and messages and _message(1, messages[0]).role == "system":
        return []
    return [Message("system", str(text))]


def _said(record: Mapping[str, Any], name: str, role: Any) -> list[Message]:
    """Return the messages in a field: its text, or a list of messages."""
    value = record[name]
    if isinstance(value, list):
        return messages_of(value)
    if not isinstance(value, str):
        raise AGI2Error(f"{name} is {safe_repr(value)}, not a text")
    return [Message(role, value)]


def _message(number: int, value: Any) -> Message:
    if not is_message(value):
        raise AGI2Error(
            f"message {number}: {safe_repr(value)} has no role and content (or from and value)"
        )
    role = next(value[name] for name in _ROLE_FIELDS if name in value)
    content = next(value[name] for name in _CONTENT_FIELDS if name in value)
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise AGI2Error(
            f"message {number}: the role {safe_repr(role)} is none of system, user and assistant"
        )
    if value.get("weight") not in (None, 1):
        raise AGI2Error(
            f"message {number}: weight {safe_repr(value['weight'])} is not supported: every reply "
            "is trained on"
        )
    for name in _CALLS:
        if value.get(name):
            raise AGI2Error(f"message {number}: {name} is not supported: only text is trained on")
    return Message(known, _text_of(number, content))  # type: ignore[arg-type]


def _text_of(number: int, content: Any) -> str:
    """Return the text of a message: a text, or a list of parts that are texts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if parts and len(texts) == len(parts):
            return "".join(texts)
    if not isinstance(content, str):
        raise AGI2Error(f"message {number}: its content is {safe_repr(content)}, not a text")
    return content


def complete(messages: Sequence[Message]) -> tuple[list[Message], bool]:
    """Return a conversation to train on, and whether a last message without an answer was dropped.

    Half surrogate pairs become `?`.

    Raises:
        AGI2Error: if a message is empty, the roles are in the wrong order, or there is no reply.
    """
    cleaned = as_messages(Message(role, _without_surrogates(text)) for role, text in messages)
    check_order(cleaned)
    is_dropped = cleaned[-1].role != "assistant"
    kept = cleaned[:-1] if is_dropped else cleaned
    if not any(each.role == "assistant" for each in kept):
        raise AGI2Error("no message is of the role assistant: there is nothing to train on")
    return kept, is_dropped


def _without_surrogates(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
