"""What every reader reports: unreadable files, and counts of what is skipped."""

from __future__ import annotations

import logging
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AGI2Error, one_line
from ..utils import human_bytes, log, plural

STDIN = Path("-")
"""The source that means standard input."""


class Unreadable(AGI2Error):
    """A file cannot be read as text; if it was found in a folder, it is skipped.

    Args:
        reason: short category, by which skipped files are counted.
        message: message for the user, which names the file.
        depth: `Input.depth` of the file or archive that cannot be read further, and with it all
            that it contains; by default only the input that is read.
    """

    def __init__(self, reason: str, message: str, depth: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.depth = depth


@dataclass
class Entry:
    """What was skipped for one reason."""

    count: int
    size: int
    """The size of all items together, in `unit`."""
    unit: str
    example: str
    kinds: dict[str, int] = field(default_factory=dict)
    """The number of items of each kind, such as of each suffix of file names."""

    def describe_kinds(self) -> str:
        """Return the kind, or the most common ones with their counts: `.png (3), .mp3 (1)`."""
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        listed = Counter(self.kinds).most_common(_MAX_KINDS)
        names = ", ".join(f"{kind} ({count:,})" for kind, count in listed)
        more = len(self.kinds) - len(listed)
        return names + f" and {plural(more, 'other')}" * (more > 0)


_MAX_KINDS = 5
KINDS = "{kinds}"
"""The place of the kinds in a reason; in one without it, several kinds are listed at the end."""


class Skipped:
    """Counter of what was skipped in a source: per reason, the count, size and first example.

    Args:
        form: how a line begins: a format of `count`, `places` and `files`, with the number of
            items, and `reason`.
    """

    def __init__(self, form: str = "{count} {reason}") -> None:
        self._form = form
        self._entries: dict[tuple[str, str], Entry] = {}

    def add(
        self,
        reason: str,
        example: str,
        *,
        count: int = 1,
        size: int = 0,
        unit: str = "B",
        kind: str = "",
    ) -> None:
        """Add skipped items.

        Args:
            reason: why, in which `KINDS` is where the kinds are listed.
            example: the first of them.
            count: their number.
            size: their total size, in `unit`.
            unit: `B`, bytes of files, or another unit.
            kind: of what kind they are, if that is counted.
        """
        if log.isEnabledFor(logging.DEBUG):  # each; otherwise only the first is logged
            log.debug("%s: %s", reason.replace(KINDS, kind), one_line(example))
        entry = self._entries.setdefault((reason, unit), Entry(0, 0, unit, example))
        entry.count += count
        entry.size += size
        if kind:
            entry.kinds[kind] = entry.kinds.get(kind, 0) + count

    def merge(self, other: Skipped) -> None:
        """Add the counts of another counter."""
        for (reason, unit), entry in other._entries.items():
            self.add(reason, entry.example, count=entry.count, size=entry.size, unit=unit)
            own = self._entries[reason, unit]
            own.kinds = dict(Counter(own.kinds) + Counter(entry.kinds))

    def to_json(self) -> list[list[Any]]:
        """Return the counts as `from_json` reads them."""
        return [
            [reason, each.unit, each.count, each.size, each.example, dict(each.kinds)]
            for (reason, _), each in self._entries.items()
        ]

    @classmethod
    def from_json(cls, counts: list[list[Any]]) -> Skipped:
        """Return the counter of which `to_json` returned the counts."""
        counter = cls()
        for reason, unit, count, size, example, kinds in counts:
            counter._entries[reason, unit] = Entry(count, size, unit, example, kinds)
        return counter

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def bytes(self) -> int:
        """The size of all items that were counted in bytes: of files."""
        return sum(entry.size for entry in self._entries.values() if entry.unit == "B")

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield each reason with its counts."""
        for (reason, _), entry in self._entries.items():
            yield reason.replace(KINDS, entry.describe_kinds()) if entry.kinds else reason, entry

    def lines(self) -> Iterator[str]:
        """Yield one printable line per reason."""
        for reason, entry in self.entries():
            unit = _singular(entry.unit) if entry.size == 1 else entry.unit
            amount = f"{entry.size:,} {unit}"
            if entry.unit == "B":
                amount = human_bytes(entry.size)
            size = f" ({amount})" if entry.size else ""
            begin = self._form.format(
                count=f"{entry.count:,}",
                places=plural(entry.count, "place"),
                files=plural(entry.count, "file"),
                reason=_singular(reason) if entry.count == 1 else reason,
            )
            is_listed = len(entry.kinds) > 1 and entry.describe_kinds() not in reason
            kinds = f": {entry.describe_kinds()}" * is_listed
            yield one_line(f"{begin}{size}{kinds}, such as {entry.example}")


def _singular(reason: str) -> str:
    """Return a reason for one item."""
    for many, one in _SINGULAR.items():
        reason = reason.replace(many, one)
    return reason


_SINGULAR = {
    "characters": "character",
    "bytes ": "byte ",
    "members of": "member of",
    "documents without": "document without",
    "attachments": "attachment",
    "conversations": "conversation",
    "pairs": "pair",
    "messages ": "message ",
    "chapters ": "chapter ",
    "lines before": "line before",
    "texts next to": "text next to",
    "pages of": "page of",
    "pipes": "pipe",
    "broken links": "broken link",
    "that are links or devices": "that is a link or a device",
    "that are ": "that is ",
    "that change": "that changes",
    "that need ": "that needs ",
    "that unpack ": "that unpacks ",
    "that describe ": "that describes ",
    "after their end": "after its end",
}


def check_kind(mode: int, name: str) -> None:
    """Check that a path is a regular file or a pipe.

    Args:
        mode: its `st_mode`.
        name: name for the message; `-`, standard input, may also be a socket.

    Raises:
        Unreadable: if it is a device, such as a terminal, a socket or a folder.
    """
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or (stat.S_ISSOCK(mode) and name == "-")):
        raise Unreadable(
            "neither a file nor a pipe",
            f"{name}: neither a file nor a pipe: name a text file, or pipe a text into it",
        )


def unreadable(error: Exception, name: str) -> Unreadable:
    """Return the error for a file that the operating system cannot open or read."""
    reason = getattr(error, "strerror", None) or str(error)
    return Unreadable("that cannot be read", f"{name}: cannot be read: {reason}", depth=0)
