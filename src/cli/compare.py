"""Comparison of runs: a table of all runs; differences, metrics and samples of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config_checks import UNBOUNDED_EPOCHS
from ..console import print_line, print_text
from ..errors import AGI2Error, mask_secrets
from ..evaluation.charts import Point, Series, chart, chart_group, charts_page
from ..evaluation.html import escape, table
from ..evaluation.report import axes, tokens_per_step
from ..evaluation.run_log import History, RunRecord, RunSummary, list_runs, read_run
from ..formats.run_dir import METRICS
from ..utils import human_bytes, human_time, log, write_text
from .table import Rows, print_table

EMPTY_CELL = "–"
# Keys not compared: the location of a run, which the column names already show.
_LOCATION_KEYS = ("model_name", "output_dir", "resume")
_MAX_ROWS = 20


# agi2 list


def print_runs(folder: Path) -> None:
    """Print a table of the runs in a folder, newest last.

    Raises:
        AGI2Error: if the folder cannot be read, or contains no run.
    """
    runs = list_runs(folder)
    if not runs:
        raise AGI2Error(
            f"{folder} contains no runs; name the folder that contains them (output_dir)"
        )
    head = ["run", "parameters", "steps", "val loss", "bits/byte", "checkpoints", "size"]
    optional = ["checkpoints", "parameters", "size", "date", "steps", "val loss"]
    rows = [_table_row(run) for run in runs]
    if dropped := print_table([*head, "date", "state"], rows, optional):
        log.info("not shown in a narrow terminal: %s", ", ".join(dropped))
    for run in runs:
        if run.problem:
            log.warning("%s is broken: %s", run.name, run.problem)
        elif not run.has_log and run.checkpoints:
            log.warning(
                "%s has no %s: steps and losses are those of its newest checkpoint",
                run.name,
                METRICS,
            )


def _table_row(run: RunSummary) -> list[str]:
    history = run.history
    return [
        run.name,
        _format_count(history.start.get("parameters")),
        _format_count(history.steps),
        *_best(history),
        ", ".join(map(str, run.checkpoints)) or EMPTY_CELL,
        human_bytes(run.size),
        datetime.fromtimestamp(run.changed).isoformat(" ", "minutes"),
        _state(run),
    ]


def _state(run: RunSummary) -> str:
    if run.problem:
        return "broken"
    if run.phase is not None:
        return run.phase
    if not run.has_log and not run.checkpoints:  # such as an imported model
        return "no log"
    return "finished" if run.is_finished else "unfinished"


def _format_count(number: float | None) -> str:
    return EMPTY_CELL if number is None else f"{number:,.0f}"


def _format_number(number: float | None, digits: int = 4) -> str:
    return EMPTY_CELL if number is None or not math.isfinite(number) else f"{number:.{digits}f}"


def _best(history: History) -> tuple[str, str]:
    """Return the formatted val loss and bits per byte of the best validation."""
    best = history.best
    return (
        (EMPTY_CELL, EMPTY_CELL)
        if best is None
        else (_format_number(best.loss), _format_number(best.bits_per_byte, 3))
    )


# agi2 compare


def compare_runs(
    folders: Sequence[Path], prompt: str = "", seed: int = 1, html: Path | None = None
) -> None:
    """Print the configuration differences, results, validation curves and a sample of each run.

    Args:
        folders: folders of two or more runs.
        prompt: prompt of the samples, after each run's own `model_seed`.
        seed: random seed of the samples.
        html: also write the comparison, with charts of the curves, to this HTML file.

    Raises:
        AGI2Error: if there are fewer than two folders, or one is not a run's.
    """
    if len(folders) < 2:
        raise AGI2Error("compare needs two runs or more: agi2 compare trained/one trained/two")
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    unit, curves = aligned_curves(runs)
    sections = [
        ("Configuration", ["key", *names], differences(runs)),
        ("Results", ["", *names], results(runs)),
        ("Validation, bits per byte", [unit, *names], curves),
    ]
    for title, head, rows in sections:
        print_line(f"{title}:")
        if rows:
            print_table(head, rows)
        else:
            print_line("nothing to compare" if head[0] == unit else "no difference")
        print_line("")
    texts = []
    for name, run in zip(names, runs, strict=True):
        texts.append(_generate_sample(run, prompt, seed))
        print_line(f"--- {name} ---")
        print_text(f"{texts[-1]}\n")
    if html is not None:
        charts = _charts_html(runs, names, unit, sections)
        write_text(html, charts_page("Comparison", charts + _samples_html(names, texts, prompt)))


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the names of the runs' folders, or their paths if two names are the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def differences(runs: Sequence[RunRecord]) -> Rows:
    """Return a row for each configuration key that differs: the key and each run's value."""
    rows = []
    for key in runs[0].config:
        values = [mask_secrets(run.config[key]) for run in runs]
        if key not in _LOCATION_KEYS and any(value != values[0] for value in values):
            rows.append([key, *(_format_value(key, value) for value in values)])
    return rows


def _format_value(key: str, value: Any) -> str:
    is_set = value is not None and not (key == "epochs" and value >= UNBOUNDED_EPOCHS)
    return str(value) if is_set else "not set"


def results(runs: Sequence[RunRecord]) -> Rows:
    """Return rows of parameters, steps, tokens, time, tok/s and losses of each run."""
    histories = [run.history for run in runs]
    rows = {
        "parameters": [_format_count(each.start.get("parameters")) for each in histories],
        "steps": [_format_count(each.steps) for each in histories],
        "tokens": [_format_count(_tokens(each)) for each in histories],
        "time": [
            EMPTY_CELL if seconds is None else human_time(seconds)
            for seconds in (each.last("seconds") for each in histories)
        ],
        "tokens/s": [_format_count(each.last("tokens_per_second")) for each in histories],
        "best val loss": [_best(each)[0] for each in histories],
        "best bits per byte": [_best(each)[1] for each in histories],
        "last bits per byte": [
            _format_number(each.last("val_bits_per_byte"), 3) for each in histories
        ],
    }
    return [[name, *cells] for name, cells in rows.items()]


def _tokens(history: History) -> float | None:
    """Return the tokens that a run was trained on; `None` if they were not logged."""
    size = tokens_per_step(history)
    if size is None:
        return history.last("tokens")
    return round(history.steps * size)


def aligned_curves(runs: Sequence[RunRecord]) -> tuple[str, Rows]:
    """Return validation bits per byte of all runs, aligned on a common x-axis.

    The x-values are those of the run with the fewest validations, within the range that all runs
    cover. Other runs contribute their most recent validation up to x, without interpolation.

    Returns:
        The unit of x (`step` if all runs have the same tokens per step, else `tokens`), and rows
        of x and each run's value.
    """
    unit = _unit(runs)
    curves = [_rescale_x(run, run.history.curve("val_bits_per_byte"), unit) for run in runs]
    if not all(curves):
        return unit, []
    start = max(curve[0][0] for curve in curves)
    end = min(curve[-1][0] for curve in curves)
    positions = [x for x, _ in min(curves, key=len) if start <= x <= end]
    positions = positions[:: math.ceil(len(positions) / _MAX_ROWS) or 1]
    rows = []
    for position in positions:
        values = [[y for x, y in curve if x <= position][-1] for curve in curves]
        rows.append([_format_count(position), *(_format_number(value, 3) for value in values)])
    return unit, rows


def _unit(runs: Sequence[RunRecord]) -> str:
    sizes = {tokens_per_step(run.history) for run in runs}
    return "step" if len(sizes) == 1 or None in sizes else "tokens"


def _rescale_x(run: RunRecord, curve: list[Point], unit: str) -> list[Point]:
    """Return a curve with x in `unit`: steps, or tokens."""
    size = (tokens_per_step(run.history) if unit == "tokens" else None) or 1
    return [(step * size, value) for step, value in curve]


def _generate_sample(run: RunRecord, prompt: str, seed: int) -> str:
    """Generate text from a prompt with a run's own configuration; on failure, return the error."""
    # Imported here because they import PyTorch, which the tables do not need.
    from ..cuda_utils import select_device
    from ..formats.model_dir import load_model
    from ..generation import generate_text
    from ..inference.sampling import generation_options

    config = run.config
    try:
        trained = load_model(run.folder, select_device(config.device))
        options = {**generation_options(config), "model_seed": "", "seed": seed}
        start = config.model_seed + prompt
        return generate_text(trained.model, start, tokenizer=trained.tokenizer, **options)
    except AGI2Error as error:
        return f"({error})"


def _charts_html(
    runs: Sequence[RunRecord],
    names: Sequence[str],
    unit: str,
    sections: Sequence[tuple[str, Sequence[str], Rows]],
) -> str:
    """Return the HTML body: charts with the overlaid curves of all runs, and the tables."""

    def overlay(title: str, unit_name: str, curves: list[list[Point]], dots: bool = False) -> str:
        series = [
            Series(name, _rescale_x(run, curve, unit), color, noisy=not dots, dots=dots, run=color)
            for color, (name, run, curve) in enumerate(zip(names, runs, curves, strict=True))
        ]
        return chart(title, unit_name, series, x_name=unit, log="loss" in title)

    histories = [run.history for run in runs]
    validation = [each.curve("val_bits_per_byte") for each in histories]
    training = [
        [(step, loss * (each.bits_per_nat or math.nan)) for step, loss in each.curve("loss")]
        for each in histories
    ]
    figures = [
        f"<div class=\"wide\">{overlay('Val loss', 'bits per byte', validation, dots=True)}</div>",
        overlay("Train loss", "bits per byte", training),
        overlay("Speed", "tokens per second", [each.speed for each in histories]),
    ]
    tables = "".join(
        f"<h2>{escape(title)}</h2>"
        + (
            table(list(map(escape, head)), [list(map(escape, row)) for row in rows])
            if rows
            else '<p class="soft">no difference</p>'
        )
        for title, head, rows in sections
    )
    charts = chart_group(figures, [axes(each) for each in histories], unit)
    return f"<h1>{escape(' · '.join(names))}</h1><br>{charts}{tables}"


def _samples_html(names: Sequence[str], texts: Sequence[str], prompt: str) -> str:
    """Return the samples of all runs as HTML."""
    prompt_note = f'<p class="soft">of the prompt: {escape(prompt)}</p>' if prompt else ""
    cards = "".join(
        f'<div class="card"><b>{escape(name)}</b><pre>{escape(text)}</pre></div>'
        for name, text in zip(names, texts, strict=True)
    )
    return f"<h2>Generated continuations</h2>{prompt_note}{cards}"
