"""Replies to held-out conversations: what was asked, what was expected, what came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config_keys import GenerationConfig
from ..data.chat_template import ChatTemplate, Message
from ..errors import AGI2Error
from ..inference.engine import Engine
from ..inference.model_runner import ModelRunner, max_batch_rows
from ..inference.requests import text_request
from ..model import GPT2Model
from ..utils import parse_json, plural, write_text

FILE_NAME = "replies.jsonl"
"""The file in a run's folder with a line for each reply."""
MAX_REPLIES = 50
"""Number of held-out conversations that a run replies to."""


@dataclass(frozen=True)
class Reply:
    """The reply of a model to a conversation whose next message is known."""

    messages: list[dict[str, str]]
    """What was said before, with `role` and `content`."""
    expected: str
    reply: str
    is_ended: bool
    """Whether the model has ended it, rather than the limit of tokens."""

    @property
    def is_exact(self) -> bool:
        """Whether it is what was expected."""
        return self.is_ended and self.reply == self.expected


def reply_to(
    model: GPT2Model,
    template: ChatTemplate,
    conversations: Iterable[Sequence[Message]],
    max_length: int = 200,
) -> list[Reply]:
    """Generate the last message of conversations, greedily.

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
            requests.append(text_request(ids, config, model, tokenizer, skip_leading_space=True))
    if requests:
        Engine(ModelRunner(model, tokenizer.vocab_size), max_batch_rows(model)).run(requests)
    return [
        Reply(
            [message._asdict() for message in messages],
            expected,
            request.text.rstrip(),
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


def describe(replies: Sequence[Reply]) -> str:
    """Return a line with the shares of replies that ended by themselves and that are exact."""
    count = len(replies)
    ended, exact = sum(each.is_ended for each in replies), sum(each.is_exact for each in replies)
    return (
        f"replies to {plural(count, 'held-out conversation')}: {ended} ended by themselves, "
        f"{exact} exactly as expected"
    )


def save_replies(replies: Iterable[Reply], folder: Path) -> None:
    """Write the replies to a run's folder.

    Raises:
        AGI2Error: if they cannot be written.
    """
    lines = (json.dumps(asdict(reply), ensure_ascii=False) for reply in replies)
    write_text(folder / FILE_NAME, "".join(f"{line}\n" for line in lines))


def load_replies(folder: Path) -> list[Reply]:
    """Return the replies in a run's folder; none if there is no file.

    Raises:
        AGI2Error: if the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8").splitlines()
        return [Reply(**parse_json(line, str(path))) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise AGI2Error(f"{path} is damaged: {error}") from error
