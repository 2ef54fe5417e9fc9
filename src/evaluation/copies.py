"""Copies of the training text in a run's samples, and their section of the report."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .html import escape, table
from .run_log import RunRecord

# Limits that keep a report below a few seconds; it shows what they cut.
MAX_COMPARED_SAMPLES = 10
MAX_COMPARED_CHARACTERS = 2_000
MAX_COMPARED_TEXT = 20_000_000
_CONTEXT = 60  # characters shown before and after a copy


@dataclass(frozen=True)
class Copy:
    """The longest span that a sample has in common with the training text."""

    step: int
    sample: str
    """The sample without its prompt; cut if it is long."""
    span: str
    document: int
    """Number of the document, from 1."""
    offset: int
    """Offset of the span in the document, in characters."""
    occurrences: int
    """Number of occurrences of the span in the training text."""
    before: str
    after: str
    """Context of the span in the training text; `before` it, `after` it."""


def find_copies(run: RunRecord, documents: Sequence[str]) -> list[Copy]:
    """Find the longest copy in each of the last samples; omit samples without any."""
    # Deferred: they import NumPy, which `agi2 list` does not need.
    from ..data.decoded import first_characters
    from .memorization import longest_common_span

    compared = first_characters(documents, MAX_COMPARED_TEXT)
    text = _DOCUMENT_SEPARATOR.join(compared)
    starts = [0, *accumulate(len(document) + 1 for document in compared)]
    copies = []
    for step, sample in run.history.samples[-MAX_COMPARED_SAMPLES:]:
        generated = sample.removeprefix(run.config.model_seed)[:MAX_COMPARED_CHARACTERS]
        span = longest_common_span(generated, text)
        if not span:
            continue
        start = text.find(span)
        document = bisect.bisect_right(starts, start)
        end = start + len(span)
        copies.append(
            Copy(
                step,
                generated,
                span,
                document,
                start - starts[document - 1],
                _occurrences(span, text),
                text[max(0, start - _CONTEXT) : start].rpartition(_DOCUMENT_SEPARATOR)[2],
                text[end : end + _CONTEXT].partition(_DOCUMENT_SEPARATOR)[0],
            )
        )
    return copies


def _occurrences(span: str, text: str) -> int:
    """Count the occurrences of a span in a text, also overlapping, up to `_MAX_OCCURRENCES`.

    In a text that repeats one character, a span occurs almost everywhere: counting all would take
    minutes.
    """
    if not any(span.startswith(span[start:]) for start in range(1, len(span))):
        return min(text.count(span), _MAX_OCCURRENCES)  # its occurrences cannot overlap
    count, position = 0, text.find(span)
    while position >= 0 and count < _MAX_OCCURRENCES:
        count, position = count + 1, text.find(span, position + 1)
    return count


_MAX_OCCURRENCES = 10_000
# A lone surrogate, which no decoded UTF-8 contains: no common span can cross documents.
_DOCUMENT_SEPARATOR = "\udfff"


def memorization_section(
    run: RunRecord, copies: Sequence[Copy] | None, documents: Sequence[str] | None
) -> str:
    """Return the report's section on the copies; empty if they were not searched for."""
    if copies is None or documents is None or not run.history.samples:
        return ""
    from ..data.decoded import first_characters

    characters = sum(map(len, first_characters(documents, MAX_COMPARED_TEXT + 1)))
    cut = "the first " * (characters > MAX_COMPARED_TEXT)
    rows = []
    for copy in reversed(copies):
        share = len(copy.span) / len(copy.sample)
        place = f"document {copy.document:,}, at character {copy.offset:,}"
        if copy.occurrences > 1:
            least = "at least " * (copy.occurrences == _MAX_OCCURRENCES)
            place += f", and {least}{copy.occurrences - 1:,} more"
        rows.append(
            [
                f"{copy.step:,}",
                f"{len(copy.span):,} <small>{share:.0%}</small>",
                f"<pre>{_marked(copy.sample, copy.span)}</pre>",
                f"<pre>{_around(copy)}</pre><small>{place}</small>",
            ]
        )
    samples = min(len(run.history.samples), MAX_COMPARED_SAMPLES)
    note = (
        "The longest span that "
        + (f"each of the last {samples} samples" if samples > 1 else "the last sample")
        + f" (its first {MAX_COMPARED_CHARACTERS:,} characters) has in common, character for "
        f"character, with the training text ({cut}{min(characters, MAX_COMPARED_TEXT):,} "
        f"characters in {len(documents):,} document{'s' * (len(documents) != 1)})."
    )
    head = ["step", "characters", "sample", "training text"]
    body = table(head, rows, "copies") if rows else '<p class="soft">nothing in common</p>'
    return f'<h2>Memorization</h2><p class="soft">{note}</p>{body}'


def _marked(text: str, span: str) -> str:
    before, _, after = text.partition(span)
    return f"{escape(before)}<mark>{escape(span)}</mark>{escape(after)}"


def _around(copy: Copy) -> str:
    before = "…" + copy.before if len(copy.before) == _CONTEXT else copy.before
    after = copy.after + "…" if len(copy.after) == _CONTEXT else copy.after
    return f"{escape(before)}<mark>{escape(copy.span)}</mark>{escape(after)}"
