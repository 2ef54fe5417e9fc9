"""Conversations to token ids, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .chat_template import ROLES, ChatTemplate, Message
from .conversations import conversations_in
from .shards import ShardedTokens


def encode_conversations(
    texts: Sequence[str], template: ChatTemplate
) -> tuple[np.ndarray, np.ndarray]:
    """Encode conversations, as `ChatTemplate.encode` does.

    The two of a pair are separated by the end-of-text token.

    Args:
        texts: their canonical texts.
        template: the template.

    Returns:
        The ids of all, (N,), and offsets, (texts + 1,), as `Tokenizer.encode_batch` gives them.
    """
    tokenizer, start = template.tokenizer, len(template.reply_start)
    documents = list(map(conversations_in, texts))
    contents = [message.content for each in documents for messages in each for message in messages]
    ids, offsets = tokenizer.encode_batch(contents, threads=1)
    frames = {role: np.array(template.join(role, ()), tokenizer.dtype) for role in ROLES}
    separator = np.array([tokenizer.end_of_text], tokenizer.dtype)
    parts, lengths, at = [np.empty(0, tokenizer.dtype)], [0], 0
    for conversations in documents:
        length = 0
        for index, messages in enumerate(conversations):
            parts += [separator] * bool(index)
            length += bool(index)
            for message in messages:
                frame, text = frames[message.role], ids[offsets[at] : offsets[at + 1]]
                parts += [frame[:start], text, frame[start:]]
                length += len(frame) + len(text)
                at += 1
        lengths.append(length)
    return np.concatenate(parts), np.cumsum(lengths)


def decode_conversations(
    tokens: ShardedTokens, template: ChatTemplate, limit: int
) -> list[list[Message]]:
    """Return conversations in shards, evenly spaced if there are more than `limit`.

    Of pairs of preferences, it is the chosen conversation.
    """
    count, documents = tokens.figures.conversations, tokens.figures.documents
    starts = [*tokens.document_starts.tolist(), len(tokens) + 1]
    step = max(1, -(-count // limit))
    # An end-of-text token stands before the next document.
    found = [
        tokens[starts[index] : starts[index + 1] - 1]
        for index in range(documents - count, documents, step)
    ]
    ends = [np.flatnonzero(ids == template.tokenizer.end_of_text) for ids in found]
    return [
        template.decode(ids[: end[0] if len(end) else None].tolist())
        for ids, end in zip(found, ends, strict=True)
    ]
