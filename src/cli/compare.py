"""Comparison of runs: a table of all runs; differences, metrics and samples of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ..command_line import command_line
from ..console import print_line, print_text
from ..errors import AGI2Error
from ..evaluation.charts import Point, Series, chart, chart_group, charts_page
from ..evaluation.comparison import (
    EMPTY_CELL,
    Rows,
    aligned_curves,
    differences,
    format_best,
    format_count,
    rescale_x,
    results,
    state_of,
)
from ..evaluation.html import escape, table
from ..evaluation.report import axes
from ..evaluation.run_log import RunRecord, RunSummary, list_runs, read_run
from ..formats.run_dir import METRICS
from ..utils import human_bytes, log, write_text
from .table import print_table

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
        format_count(history.start.get("parameters")),
        format_count(history.steps),
        *format_best(history),
        ", ".join(map(str, run.checkpoints)) or EMPTY_CELL,
        human_bytes(run.size),
        datetime.fromtimestamp(run.changed).isoformat(" ", "minutes"),
        state_of(run),
    ]


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
        command = command_line("compare trained/one trained/two")
        raise AGI2Error(f"compare needs two runs or more: {command}")
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
            Series(name, rescale_x(run, curve, unit), color, noisy=not dots, dots=dots, run=color)
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
