"""Replies to held-out conversations: what was asked, what was expected, what came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import AGI2Error
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


def describe(replies: Sequence[Reply]) -> str:
    """Return a line with the shares of replies that ended by themselves and that are exact."""
    count = len(replies)
    if not count:
        return "no replies to held-out conversations: all are longer than the context"
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
        lines = path.read_text("utf-8").split("\n")  # `splitlines` would split at U+2028, too
        return [Reply(**parse_json(line, str(path))) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise AGI2Error(f"{path} is damaged: {error}") from error
