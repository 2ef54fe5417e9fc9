"""Generates the replies of a model to held-out conversations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..config_keys import GenerationConfig
from ..data.chat_template import ChatTemplate, Message
from ..inference.engine import Engine
from ..inference.model_runner import ModelRunner, max_batch_rows
from ..inference.requests import text_request
from ..model import GPT2Model
from .replies import Reply


def reply_to(
    model: GPT2Model,
    template: ChatTemplate,
    conversations: Iterable[Sequence[Message]],
    max_length: int = 200,
) -> list[Reply]:
    """Generate the last message of conversations, greedily; it ends where one in a chat does.

    Args:
        model: the model.
        template: the chat template of its tokenizer.
        conversations: each is cut before the last message of the assistant; one that is then longer
            than the context is left out.
        max_length: maximum number of tokens of a reply.
    """
    tokenizer = template.tokenizer
    config = GenerationConfig(max_length=max_length, temperature=0.0)
    asked, requests = [], []
    for messages, expected in map(_cut, conversations):
        ids, _ = template.encode(messages, add_generation_prompt=True)
        if messages and len(ids) < model.config.max_seq_len:
            asked.append((messages, expected))
            request = text_request(
                ids,
                config,
                model,
                tokenizer,
                skip_leading_space=True,
                drops_incomplete=True,
                end_tokens=template.end_tokens,
            )
            requests.append(request)
    if requests:
        Engine(ModelRunner(model, tokenizer.vocab_size), max_batch_rows(model)).run(requests)
    return [
        Reply(
            [message._asdict() for message in messages],
            expected,
            request.text.strip(),
            request.finish_reason == "end_token",
        )
        for (messages, expected), request in zip(asked, requests, strict=True)
    ]


def _cut(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Return the messages before the last one of the assistant, and its text."""
    for index in reversed(range(len(messages))):
        if messages[index].role == "assistant":
            return list(messages[:index]), messages[index].content
    return [], ""
