"""A run's picture: its curves, samples and settings in one HTML file that opens offline."""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from .charts import Point, Series, chart, escape, page, table
from .config import Config
from .evaluation import longest_common_span
from .runs import History, RunRecord, read_run
from .utils import human_time, write_text

FILE_NAME = "report.html"

# Bounds, so that a report takes seconds and a megabyte at most; it says where they cut something.
MAX_SAMPLES = 20
COMPARED_SAMPLES = 10
COMPARED_LETTERS = 2_000
COMPARED_TEXT = 20_000_000
MAX_STARTS = 20
_CONTEXT = 60


def write_report(folder: Path, training_text: Sequence[str] | None = None) -> Path:
    """Write `report.html` into a run's folder, from what the run wrote down there.

    Args:
        folder: the run's.
        training_text: the documents it learned from, to look for copies of them in its samples.

    Returns:
        The file.

    Raises:
        AGI2Error: where the folder is no run's, is broken, or cannot be written.
    """
    run = read_run(folder)
    copies = None if training_text is None else find_copies(run, training_text)
    sections = [
        _summary(run),
        f'<div class="charts">{"".join(_charts(run.history))}</div>',
        _samples(run.history),
        _memorisation(copies, training_text),
        _configuration(run.config),
        _machine(run.history),
    ]
    write_text(folder / FILE_NAME, page(run.config.model_name, "".join(sections)))
    return folder / FILE_NAME


# The summary


def _summary(run: RunRecord) -> str:
    history = run.history
    seconds, tokens, best = history.last("seconds"), history.last("tokens"), history.best
    parameters = history.start.get("parameters")
    tiles = [
        ("parameters", _count(parameters)),
        ("steps", _count(history.steps)),
        ("of training", "–" if seconds is None else human_time(seconds)),
        ("tokens seen", _count(tokens)),
    ]
    if best is None:
        tiles.append(("validation loss", "none"))
    else:
        tiles.append((f"best validation loss, at step {best.step:,}", f"{best.loss:.4f}"))
        tiles.append(("bits per byte, there", f"{best.bits_per_byte:.3f}"))
    resumed = len(history.starts) - 1
    facts = [
        str(history.starts[0][1].get("time", "")) if history.starts else "",
        str(history.start.get("device", "")),
        f"resumed {resumed} time{'s' * (resumed > 1)}" if resumed > 0 else "",
    ]
    return (
        f"<header><h1>{escape(run.config.model_name)}</h1>"
        f'<p class="soft">{escape(" · ".join(filter(None, facts)))}</p></header>'
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(value)}</b><span>{name}</span></div>" for name, value in tiles)
        + "</div>"
    )


def _count(number: float | None) -> str:
    if number is None:
        return "–"
    if number >= 1e6:
        return f"{number / 1e6:,.2f} M"
    return f"{number:,.0f}"


# The curves


def _charts(history: History) -> list[str]:
    unit, training, validation = losses(history)
    loss = [
        Series("training", training, noisy=True),
        Series("validation", validation, color=1, dots=True),
    ]
    rate = [Series("learning rate", history.curve("learning_rate"))]
    norm = [Series("norm", history.curve("grad_norm"), noisy=True)]
    speed = [Series("speed", history.speed, noisy=True)]
    resumed = [step for step, _ in history.starts[1:]]
    return [
        f'<div class="wide">{chart("Loss", unit, loss, log=True, resumed=resumed)}</div>',
        chart("Learning rate", "of AdamW", rate, from_zero=True, resumed=resumed),
        chart("Gradient norm", "before clipping", norm, log=True, resumed=resumed),
        chart("Speed", "tokens per second", speed, from_zero=True, resumed=resumed),
    ]


def losses(history: History) -> tuple[str, list[Point], list[Point]]:
    """Unit, training curve and validation curve: bits per byte where the run says how many."""
    factor = history.bits_per_nat
    if factor is None:
        return "nats per token", history.curve("loss"), history.curve("val_loss")
    training = [(step, loss * factor) for step, loss in history.curve("loss")]
    return "bits per byte", training, history.curve("val_bits_per_byte")


# The samples, and what in them is copied


@dataclass(frozen=True)
class Copy:
    """The longest span that a sample has in common with the text."""

    step: int
    written: str
    """The sample, without what it was asked to go on from; cut where it is long."""
    span: str
    document: int
    """From 1."""
    offset: int
    """Letters of the document before the span."""
    places: int
    """How often the span stands in the text."""
    before: str
    after: str
    """What stands around it in the text."""


def find_copies(run: RunRecord, documents: Sequence[str]) -> list[Copy]:
    """Look for each of the last samples in the text; one that shares no letter is left out."""
    text = _BETWEEN.join(_first_letters(documents))
    starts = [0, *accumulate(len(document) + 1 for document in documents)]
    copies = []
    for step, sample in run.history.samples[-COMPARED_SAMPLES:]:
        written = sample.removeprefix(run.config.model_seed)[:COMPARED_LETTERS]
        span = longest_common_span(written, text)
        if not span:
            continue
        at = text.find(span)
        document = bisect.bisect_right(starts, at)
        end = at + len(span)
        copies.append(
            Copy(
                step,
                written,
                span,
                document,
                at - starts[document - 1],
                text.count(span),
                text[max(0, at - _CONTEXT) : at].rpartition(_BETWEEN)[2],
                text[end : end + _CONTEXT].partition(_BETWEEN)[0],
            )
        )
    return copies


# Half of a pair: no text that was read as UTF-8 holds it, so that no span crosses documents.
_BETWEEN = "\udfff"


def _first_letters(documents: Sequence[str]) -> list[str]:
    """The documents, up to `COMPARED_TEXT` letters in all."""
    kept, left = [], COMPARED_TEXT
    for document in documents:
        kept.append(document[:left])
        left -= len(kept[-1])
        if not left:
            break
    return kept


def _samples(history: History) -> str:
    samples = history.samples
    if not samples:
        return '<h2>Samples</h2><p class="soft">none were written</p>'
    shown = samples
    if len(samples) > MAX_SAMPLES:
        last = len(samples) - 1
        shown = [samples[round(i * last / (MAX_SAMPLES - 1))] for i in range(MAX_SAMPLES)]
    bits = {each.step: each.bits_per_byte for each in history.validations}
    cards = []
    for step, text in shown:
        found = f" · {bits[step]:.3f} bits per byte" if step in bits else ""
        cards.append(
            f'<div class="card"><b>step {step:,}</b><small>{found}</small>'
            f"<pre>{escape(text)}</pre></div>"
        )
    note = "" if shown is samples else f'<p class="soft">{len(shown)} of {len(samples):,}</p>'
    return f"<h2>Samples as they changed</h2>{note}{''.join(cards)}"


def _memorisation(copies: Sequence[Copy] | None, documents: Sequence[str] | None) -> str:
    if copies is None or documents is None:
        return ""
    letters = sum(map(len, documents))
    compared = min(letters, COMPARED_TEXT)
    rows = []
    for copy in reversed(copies):
        share = len(copy.span) / len(copy.written)
        place = f"document {copy.document:,}, at letter {copy.offset:,}"
        if copy.places > 1:
            place += f", and {copy.places - 1:,} more"
        rows.append(
            [
                f"{copy.step:,}",
                f"{len(copy.span):,} <small>{share:.0%}</small>",
                f"<pre>{_marked(copy.written, copy.span)}</pre>",
                f"<pre>{_around(copy)}</pre><small>{place}</small>",
            ]
        )
    cut = f"the first {compared:,} of {letters:,}" if compared < letters else f"{letters:,}"
    note = (
        f"The longest span that each of the last {COMPARED_SAMPLES} samples (its first "
        f"{COMPARED_LETTERS:,} letters) has in common, letter for letter, with the training text "
        f"({cut} letters in {len(documents):,} document{'s' * (len(documents) != 1)})."
    )
    head = ["step", "letters", "sample", "training text"]
    body = table(head, rows, "copies") if rows else '<p class="soft">nothing in common</p>'
    return f'<h2>Memorisation</h2><p class="soft">{note}</p>{body}'


def _marked(text: str, span: str) -> str:
    before, _, after = text.partition(span)
    return f"{escape(before)}<mark>{escape(span)}</mark>{escape(after)}"


def _around(copy: Copy) -> str:
    before = "…" + copy.before if len(copy.before) == _CONTEXT else copy.before
    after = copy.after + "…" if len(copy.after) == _CONTEXT else copy.after
    return f"{escape(before)}<mark>{escape(copy.span)}</mark>{escape(after)}"


# Settings and machine


def _configuration(config: Config) -> str:
    rows, changed = [], []
    for key, field in Config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        row = [f"<code>{cell}</code>" for cell in (key, _value(config[key]), _value(default))]
        rows.append(row[:2])
        if config[key] != default:
            changed.append(row)
    return (
        '<h2>Configuration</h2><p class="soft">What differs from the defaults:</p>'
        + table(["key", "value", "default"], changed)
        + f"<details><summary>All {len(rows)} keys</summary>"
        + table(["key", "value"], rows)
        + "</details>"
    )


def _value(value: object) -> str:
    return escape("not set" if value is None else json.dumps(value, ensure_ascii=False))


def _machine(history: History) -> str:
    starts = history.starts[-MAX_STARTS:]
    if not starts:
        return ""
    keys = list(dict.fromkeys(key for _, start in starts for key in start))
    rows = [
        [f"<code>{escape(key)}</code>", *(_fact(start.get(key)) for _, start in starts)]
        for key in keys
    ]
    head = ["", *(f"{'resumed at' if step else 'from'} step {step:,}" for step, _ in starts)]
    cut = len(history.starts) - len(starts)
    note = f'<p class="soft">The last {len(starts)} starts of {len(history.starts):,}.</p>' * (
        cut > 0
    )
    return f"<h2>Machine and versions</h2>{note}{table(head, rows)}"


def _fact(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(value)
