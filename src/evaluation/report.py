"""Report of a run: curves, samples, memorization and configuration in one HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, GPT2Config
from ..config_checks import UNBOUNDED_EPOCHS
from ..errors import mask_secrets
from ..utils import human_time, write_text
from .charts import Axes, Point, Series, chart, chart_group, charts_page
from .copies import find_copies, memorization_section
from .html import escape, table, unbroken
from .replies import Reply, describe, load_replies
from .run_log import History, RunRecord, Validation, read_run

FILE_NAME = "report.html"

# Limits that keep a report below a megabyte and a few seconds; it shows what they cut.
MAX_SAMPLES = 20
MAX_STARTS = 20
MAX_TEXT_LINES = 500


def write_report(folder: Path, training_text: Sequence[str] | None = None) -> Path:
    """Write `report.html` into a run's folder, from its configuration and logs.

    Args:
        folder: the run's folder.
        training_text: the training documents; if given, samples are searched for copies of them.

    Returns:
        The path of the report.

    Raises:
        AGI2Error: if the folder is not a run's, a file in it is corrupt, or it cannot be written.
    """
    run = read_run(folder)
    copies = None if training_text is None else find_copies(run, training_text)
    sections = [
        _summary(run),
        chart_group(_charts(run.history), [axes(run.history)]),
        _replies(load_replies(folder)),
        _samples(run.history),
        memorization_section(run, copies, training_text),
        _text(run.history),
        _configuration(run),
        _machine(run.history),
    ]
    write_text(folder / FILE_NAME, charts_page(run.config.model_name, "".join(sections)))
    return folder / FILE_NAME


# The summary


def _summary(run: RunRecord) -> str:
    history = run.history
    seconds, tokens, best = history.last("seconds"), history.last("tokens"), history.best
    parameters = history.start.get("parameters")
    tiles = [
        ("parameters", _format_count(parameters)),
        ("steps", _format_count(history.steps)),
        ("of training", "–" if seconds is None else human_time(seconds)),
        ("tokens seen", _format_count(tokens)),
    ]
    if best is None:
        tiles.append(("val loss", "none"))
    else:
        unit = "DPO, per pair" if _has_pairs(history) else "nats per token"
        tiles.append((f"best val loss ({unit}), step {best.step:,}", f"{best.loss:.4f}"))
        tiles += _tiles_of_best(history, best)
    resumed = len(history.starts) - 1
    facts = [
        str(history.starts[0][1].get("time", "")) if history.starts else "",
        str(history.start.get("device", "")),
        f"trains for {bounds(run.config)}",
        f"resumed {resumed} time{'s' * (resumed > 1)}" if resumed > 0 else "",
    ]
    return (
        f"<header><h1>{escape(run.config.model_name)}</h1>"
        f'<p class="soft">{unbroken(escape(" · ".join(filter(None, facts))))}</p></header>'
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(value)}</b><span>{name}</span></div>" for name, value in tiles)
        + "</div>"
    )


def _has_pairs(history: History) -> bool:
    """Return whether a run was trained on pairs of preferences."""
    return bool(history.curve("margin") or history.curve("val_margin"))


def _tiles_of_best(history: History, best: Validation) -> list[tuple[str, str]]:
    """Return what else is known of the best weights, each with its value."""
    if not _has_pairs(history):
        bits = best.bits_per_byte
        return [("bits per byte at that step", f"{bits:.3f}" if math.isfinite(bits) else "–")]
    names = {"accuracy": "accuracy", "margin": "margin of rewards", "kl": "KL, nats per token"}
    found = {key: dict(history.curve(f"val_{key}")).get(best.step, math.nan) for key in names}
    return [
        (f"{name} at that step", f"{found[key]:.4g}" if math.isfinite(found[key]) else "–")
        for key, name in names.items()
    ]


def bounds(config: Config) -> str:
    """Format the stopping criteria, such as `2 min 30 s` or `10 epochs`."""
    ends = []
    if config.epochs < UNBOUNDED_EPOCHS:
        ends.append(_format_plural(config.epochs, "epoch"))
    if config.max_steps is not None:
        ends.append(_format_plural(config.max_steps, "step"))
    if config.max_minutes is not None:
        seconds = 60 * config.max_minutes
        ends.append(human_time(seconds) if seconds >= 1 else f"{seconds:.2g} s")
    patience = config.early_stopping_patience
    if patience is not None:
        ends.append(f"{_format_plural(patience, 'validation')} without a better loss")
    if not ends:
        return _format_plural(config.epochs, "epoch")
    return ends[0] if len(ends) == 1 else f"{' or '.join(ends)}, whichever comes first"


def _format_plural(number: float, noun: str) -> str:
    return f"{number:,g} {noun}{'s' * (number != 1)}" if number < 1e6 else f"{number:,} {noun}s"


def _format_count(number: float | None) -> str:
    if number is None:
        return "–"
    if number >= 1e6:
        return f"{number / 1e6:,.2f} M"
    return f"{number:,.0f}"


# The curves


def _charts(history: History) -> list[str]:
    unit, training, validation = losses(history)
    loss = [
        Series("train loss", training, noisy=True),
        Series("val loss", validation, color=1, dots=True),
    ]
    rate = [Series("learning rate", history.curve("learning_rate"))]
    norm = [Series("grad norm", history.curve("grad_norm"), noisy=True)]
    speed = [Series("speed", history.speed, noisy=True)]
    resumed = [step for step, _ in history.starts[1:]]
    return [
        f'<div class="wide">{chart("Loss", unit, loss, log=True, resumed=resumed)}</div>',
        *(_pair_charts(history, resumed) if _has_pairs(history) else []),
        chart("Learning rate", "of AdamW", rate, from_zero=True, resumed=resumed),
        chart("Gradient norm", "before clipping", norm, log=True, resumed=resumed),
        chart("Speed", "tokens per second", speed, from_zero=True, resumed=resumed),
    ]


def _pair_charts(history: History, resumed: list[int]) -> list[str]:
    def both(key: str) -> list[Series]:
        return [
            Series("train", history.curve(key), noisy=True),
            Series("val", history.curve(f"val_{key}"), color=1, dots=True),
        ]

    return [
        chart("Accuracy", "pairs whose chosen reply has the higher reward", both("accuracy"),
              from_zero=True, resumed=resumed),
        chart("Margin", "reward of the chosen reply minus the rejected one's", both("margin"),
              resumed=resumed),
        chart("KL divergence", "from the starting model, estimate in nats per token", both("kl"),
              from_zero=True, resumed=resumed),
    ]  # fmt: skip


# Maximum moments of the time axis; between two, time is interpolated linearly over the steps.
_MAX_MOMENTS = 500


def axes(history: History) -> Axes:
    """Return the axes of a run: step, seconds, and if logged tokens, at the same moments."""
    steps, seconds = [0.0], [0.0]
    for step, second in history.curve("seconds"):
        if step > steps[-1] and seconds[-1] < second < math.inf:
            steps.append(step)
            seconds.append(second)
    every = math.ceil(len(steps) / _MAX_MOMENTS)
    values = {}
    if len(steps) > 1:
        steps, seconds = ([*each[:-1:every], each[-1]] for each in (steps, seconds))
        values["time"] = seconds
    else:
        steps.append(max(history.steps, 1))
    values["step"] = steps
    size = tokens_per_step(history)
    if size is not None:
        values["tokens"] = [step * size for step in steps]
    return values


def tokens_per_step(history: History) -> float | None:
    """Return the training tokens of an optimizer step, or `None` if not logged."""
    size = history.start.get("tokens_per_step")
    return size if isinstance(size, int | float) and 1 <= size < 1e15 else None


def losses(history: History) -> tuple[str, list[Point], list[Point]]:
    """Return unit, train loss and val loss: per pair, or in bits per byte if logged, or in nats."""
    if _has_pairs(history):
        return "DPO, per pair", history.curve("loss"), history.curve("val_loss")
    factor = history.bits_per_nat
    validations = history.validations
    if factor is None or (validations and all(math.isnan(v.bits_per_byte) for v in validations)):
        return "nats per token", history.curve("loss"), history.curve("val_loss")
    training = [(step, loss * factor) for step, loss in history.curve("loss")]
    return "bits per byte", training, history.curve("val_bits_per_byte")


# The samples, and memorization in them


def _samples(history: History) -> str:
    samples = history.samples
    if not samples:
        return '<h2>Samples</h2><p class="soft">no samples</p>'
    shown = samples
    if len(samples) > MAX_SAMPLES:
        last = len(samples) - 1
        shown = [samples[round(i * last / (MAX_SAMPLES - 1))] for i in range(MAX_SAMPLES)]
    bits = {each.step: each.bits_per_byte for each in history.validations}
    cards = []
    for step, text in shown:
        known = math.isfinite(bits.get(step, math.nan))
        bits_note = f" · {bits[step]:.3f} bits per byte" if known else ""
        cards.append(
            f'<div class="card"><b>step {step:,}</b><small>{unbroken(bits_note)}</small>'
            f"<pre>{escape(text)}</pre></div>"
        )
    note = "" if shown is samples else f'<p class="soft">{len(shown)} of {len(samples):,}</p>'
    return f"<h2>Samples during training</h2>{note}{''.join(cards)}"


# Replies to held-out conversations


def _replies(replies: Sequence[Reply]) -> str:
    if not replies:
        return ""
    cards = []
    for reply in replies[:MAX_SAMPLES]:
        said = "".join(
            f"<small>{escape(message['role'])}</small><pre>{escape(message['content'])}</pre>"
            for message in reply.messages
        )
        note = "" if reply.is_ended else " (not ended)"
        came = "as expected" if reply.is_exact else f"reply{note}"
        expected = "" if reply.is_exact else _said("expected", reply.expected)
        cards.append(f'<div class="card">{said}{expected}{_said(came, reply.reply)}</div>')
    return (
        f'<h2>Held-out conversations</h2><p class="soft">{escape(describe(replies))}</p>'
        + "".join(cards)
    )


def _said(what: str, text: str) -> str:
    return f"<b>{what}</b><pre>{escape(text)}</pre>"


# The text


def _text(history: History) -> str:
    """Return the lines that were logged when the text was read: also what was skipped, and why."""
    lines = history.start.get("text")
    if not isinstance(lines, list) or not lines:
        return ""
    more = len(lines) - MAX_TEXT_LINES
    shown = [*lines[:MAX_TEXT_LINES], *([f"and {more:,} more"] if more > 0 else [])]
    return "<h2>Text: what was read, what was skipped</h2>" + "".join(
        f"<p>{unbroken(escape(line))}</p>" for line in shown
    )


# Settings and machine


def _configuration(run: RunRecord) -> str:
    config, chosen = run.config, _chosen(run)
    defaults = Config()
    changed = [[key, _value(value), _value(defaults[key])] for key, value in chosen.items()]
    rows = [[f"<code>{key}</code>", f"<code>{_value(config[key])}</code>"] for key in config]
    note = "Keys that differ from their defaults:" if changed else "All by default."
    return (
        f'<h2>Configuration</h2><p class="soft">{note}</p>'
        + table(["key", "value", "default"], [[f"<code>{c}</code>" for c in r] for r in changed])
        * bool(changed)
        + f"<details><summary>All {len(rows)} keys</summary>"
        + table(["key", "value"], rows)
        + "</details>"
    )


def _chosen(run: RunRecord) -> dict[str, Any]:
    """Return the keys that the user set.

    Old runs did not log them: of their effective configuration, keys are excluded that training
    derives from the tokenizer (`vocab_size`) or from `init_from` (the architecture).
    """
    logged = run.history.start.get("chosen")
    if isinstance(logged, dict):
        return {key: value for key, value in logged.items() if key in run.config}
    derived = {"vocab_size"}
    if run.config.init_from is not None:
        derived |= {"tokenizer", *GPT2Config().to_keys()}
    return {k: v for k, v in run.config.chosen().items() if k not in derived}


def _value(value: object) -> str:
    return escape(
        "not set" if value is None else json.dumps(mask_secrets(value), ensure_ascii=False)
    )


# Labels of the facts that a run logs at its start.
_FACTS = {
    "time": "time",
    "parameters": "parameters",
    "tokens_per_step": "tokens per step, on average",
    "train_tokens": "training tokens",
    "train_bytes": "bytes of these tokens' text",
    "val_tokens": "validation tokens",
    "processes": "processes",
    "micro_batch_size": "sequences at a time, in each process",
    "precision": "precision",
    "compiled": "compiled",
    "device": "device",
    "python": "Python",
    "torch": "PyTorch",
}


def _machine(history: History) -> str:
    starts = history.starts[-MAX_STARTS:]
    if not starts:
        return ""
    rows = [
        [name, *(_format_fact(start.get(key)) for _, start in starts)]
        for key, name in _FACTS.items()
        if any(key in start for _, start in starts)
    ]
    head = ["", *(f"{'resumed at' if step else 'from'} step {step:,}" for step, _ in starts)]
    cut = len(history.starts) - len(starts)
    note = f'<p class="soft">The last {len(starts)} starts of {len(history.starts):,}.</p>' * (
        cut > 0
    )
    return f"<h2>Data, machine and versions</h2>{note}{table(head, rows)}"


def _format_fact(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return unbroken(escape(value))
