"""Plain text with speakers: who speaks is at the start of a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import AGI2Error
from .chat_template import Message, Role

ROLES: tuple[Role, ...] = ("user", "assistant", "system")
_DEFAULT = "User|Human, Assistant|AI, System"
_SEPARATOR = re.compile(r"\s*-{3,}\s*")


@dataclass
class Spoken:
    """A conversation in a text with speakers."""

    line: int
    """Number of its first line, from 1."""
    messages: list[Message] = field(default_factory=list)
    problem: str = ""
    """What is wrong with it, if anything is."""

    def add(self, role: Role | None, text: str) -> None:
        """Add a line: the first one of a speaker, or (`None`) the next one."""
        last = self.messages[-1] if self.messages else None
        if last is not None and role in (None, last.role):
            self.messages[-1] = Message(last.role, f"{last.content}\n{text}")
        elif role is not None:
            self.messages.append(Message(role, text))
        else:
            self.problem = self.problem or "text before the first speaker; set speakers"


def speaker_pattern(speakers: str | None) -> re.Pattern[str]:
    """Return the pattern of the start of a line with which somebody begins to speak.

    Args:
        speakers: a regular expression with the groups `user` and `assistant`, and `system` if
            there are such messages; or names, that of the user first, then the assistant's and the
            system's, such as `Anna, Ben`: lines then begin with `Anna:` or `Ben:`. Several names
            of one speaker are separated by `|`.

    Raises:
        AGI2Error: if it is neither.
    """
    text = _DEFAULT if speakers is None else speakers
    try:
        if "(?P<" in text:
            pattern = re.compile(text)
            if missing := {"user", "assistant"} - pattern.groupindex.keys():
                raise AGI2Error(f"speakers {text!r} has no group {missing.pop()!r}")
            return pattern
    except (re.error, RecursionError, OverflowError) as error:
        raise AGI2Error(f"speakers {text!r} is not a regular expression: {error}") from error
    names = [[name.strip() for name in part.split("|")] for part in text.split(",")]
    if not 2 <= len(names) <= len(ROLES) or not all(all(each) for each in names):
        raise AGI2Error(
            f"speakers {text!r} names neither user and assistant, such as 'Anna, Ben', nor is it "
            "a regular expression with the groups user and assistant"
        )
    alternatives = (
        f"(?P<{role}>{'|'.join(map(re.escape, each))})"
        for role, each in zip(ROLES, names, strict=False)
    )
    return re.compile(rf"\s*(?:{'|'.join(alternatives)})\s*:", re.IGNORECASE)


def split_conversations(lines: Iterable[str], pattern: re.Pattern[str]) -> Iterator[Spoken]:
    """Yield the conversations of a text with speakers.

    A conversation ends before a system message, at a line of three or more dashes, and at the end
    of the text. Lines of the same speaker one after the other are one message.

    Args:
        lines: the lines of the text.
        pattern: the start of a line with which somebody begins to speak.
    """
    current: Spoken | None = None
    for number, line in enumerate(lines, 1):
        found = pattern.match(line)
        role = None if found is None else _role(found)
        is_end = _SEPARATOR.fullmatch(line) is not None
        if current is not None and (is_end or role == "system"):
            yield current
            current = None
        if is_end or (current is None and not line.strip()):
            continue
        current = current or Spoken(number)
        current.add(role, line if found is None or role is None else line[found.end() :])
    if current is not None:
        yield current


def _role(found: re.Match[str]) -> Role | None:
    groups = found.groupdict()
    return next((role for role in ROLES if groups.get(role) is not None), None)
