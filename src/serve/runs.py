"""`/api/runs`: the training runs beside the models that are served, also while they run.

Requests name runs by ids of a table of the folders found, which is made for each request: no part
of a request is a path.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from ..config_loader import CONFIG
from ..errors import AGI2Error
from ..evaluation.charts import Point, downsample
from ..evaluation.comparison import Rows, differences, results, state_of
from ..evaluation.html import visible_text
from ..evaluation.report import losses
from ..evaluation.run_log import RunRecord, RunSummary, is_run, read_run, summarize
from ..formats.run_dir import CHECKPOINTS, METRICS, WEIGHTS
from ..train.folder_lock import read_phase
from .bodies import Body
from .endpoints import Call
from .errors import RequestError
from .streaming import JSONBody

_MAX_SAMPLES = 50
_MAX_COMPARED = 6
_MAX_POINTS = 600
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Curve = list[tuple[float, float | None]]
"""Steps and values; null for one that was not finite."""


class RunLine(TypedDict):
    """A run, in a line."""

    id: str
    name: str
    state: str
    """preparing, training, validating, finished, unfinished, no log or broken."""
    problem: str
    """What is wrong with a broken run, else empty."""
    steps: int
    total_steps: int | None
    parameters: int | None
    val_loss: float | None
    """The best one, in nats per token; of preferences per pair."""
    bits_per_byte: float | None
    changed: float
    """Time of the last log entry, in seconds since 1970."""


class RunList(TypedDict):
    """The runs of a folder, newest first."""

    folder: str
    runs: list[RunLine]


class Sample(TypedDict):
    """A text that a run generated at a step."""

    step: int
    text: str


class RunDetails(TypedDict):
    """The curves and samples of a run."""

    id: str
    name: str
    unit: str
    """Of the losses."""
    x_name: str
    train_loss: Curve
    val_loss: Curve
    learning_rate: Curve
    speed: Curve
    """Tokens per second."""
    samples: list[Sample]


class CompareBody(Body):
    """A request to compare runs."""

    runs: Annotated[list[_Id], Field(min_length=2, max_length=_MAX_COMPARED)]
    """Ids of `/api/runs`."""


class RunComparison(TypedDict):
    """A comparison: rows of a name and a cell for each run."""

    differences: Rows
    """Of the configurations."""
    results: Rows


async def list_runs(call: Call) -> Response:
    """List the runs in the folders of the models that are served, newest first."""
    return JSONBody(await asyncio.to_thread(_list, call))


def _list(call: Call) -> RunList:
    summaries = [(id, _summary(path)) for id, path in _found(call).items()]
    summaries.sort(key=lambda each: each[1].changed, reverse=True)
    return {
        "folder": ", ".join(sorted({visible_text(folder) for folder in _folders(call)})),
        "runs": [_line(*each) for each in summaries],
    }


async def show_run(call: Call, run: str) -> Response:
    """Show the curves and the last samples of a run."""
    return JSONBody(await asyncio.to_thread(_details, call, run))


def _details(call: Call, id: str) -> RunDetails:
    record = _read(call, [id])[0]
    history = record.history
    unit, train, validation = losses(history)
    return {
        "id": id,
        "name": visible_text(record.name),
        "unit": unit,
        "x_name": "step",
        "train_loss": _curve(train),
        "val_loss": _curve(validation),
        "learning_rate": _curve(history.curve("learning_rate")),
        "speed": _curve(history.speed),
        "samples": [
            {"step": step, "text": visible_text(text)}
            for step, text in history.samples[-_MAX_SAMPLES:]
        ],
    }


async def compare_runs(call: Call, body: CompareBody) -> Response:
    """Compare the configurations and results of runs."""
    records = await asyncio.to_thread(_read, call, body.runs)
    found: RunComparison = {
        "differences": _visible(differences(records)),
        "results": _visible(results(records)),
    }
    return JSONBody(found)


def _visible(rows: Rows) -> Rows:
    return [[visible_text(cell) for cell in row] for row in rows]


# The table


def _folders(call: Call) -> list[Path]:
    """Return the folders that contain the models."""
    sources = call.state.models.sources.values()
    return sorted({source.folder.parent for source in sources})


def _found(call: Call) -> dict[str, Path]:
    """Return the runs' folders by their ids.

    Raises:
        AGI2Error: if a folder cannot be read.
    """
    paths: list[Path] = []
    for folder in _folders(call):
        try:
            paths += (path for path in folder.iterdir() if is_run(path))
        except OSError as error:
            raise AGI2Error(f"{folder} cannot be read: {error.strerror}") from error
    real = {path.resolve(): path for path in paths}  # a folder may be named in several ways
    return {hashlib.sha256(os.fsencode(each)).hexdigest()[:16]: real[each] for each in real}


def _read(call: Call, ids: Iterable[str]) -> list[RunRecord]:
    """Return runs by their ids.

    Raises:
        RequestError: if there is no such run.
        AGI2Error: if one is broken.
    """
    found = _found(call)
    for id in ids:
        if id not in found:
            raise RequestError("there is no such run", status=404, param="run", code="not_found")
    return [_record(found[id], _signature(found[id])) for id in ids]


# A page that is open asks every few seconds: what has not changed is not read again.


def _signature(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """Return what changes with a run: times and sizes of its files."""
    return tuple(_stat(folder / name) for name in (METRICS, CONFIG, CHECKPOINTS, WEIGHTS))


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=16)
def _record(folder: Path, signature: object) -> RunRecord:
    return read_run(folder)


@functools.lru_cache(maxsize=256)
def _cached_summary(folder: Path, signature: object) -> RunSummary:
    return summarize(folder)


def _summary(folder: Path) -> RunSummary:
    found = _cached_summary(folder, _signature(folder))
    return replace(found, phase=read_phase(folder))


# JSON


def _line(id: str, run: RunSummary) -> RunLine:
    best, start = run.history.best, run.history.start
    return {
        "id": id,
        "name": visible_text(run.name),
        "state": state_of(run),
        "problem": visible_text(run.problem),
        "steps": run.history.steps,
        "total_steps": _count(start.get("total_steps")),
        "parameters": _count(start.get("parameters")),
        "val_loss": None if best is None else _finite(best.loss),
        "bits_per_byte": None if best is None else _finite(best.bits_per_byte),
        "changed": run.changed,
    }


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _curve(points: list[Point]) -> Curve:
    return [(step, _finite(value)) for step, value in downsample(points, _MAX_POINTS)]
