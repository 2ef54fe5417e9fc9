"""Writes the configuration of a planned run, and describes it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch

from ..command_line import command_line
from ..cuda_utils import describe_device, select_device
from ..data.corpus import check_rereadable, check_sources
from ..data.documents import ReadOptions
from ..errors import AGI2Error, mask_urls
from ..formats.run_dir import name_of
from ..utils import human_bytes, human_time, plural, write_text
from .planner import Corpus, Plan, choose_shape
from .scaling_law import SCALING_LAW


def propose(
    sources: Sequence[str],
    minutes: float,
    out: Path,
    reading: ReadOptions | None = None,
    given: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Plan a run, write its configuration, and yield lines that describe it.

    Args:
        sources: as for `corpus.read_documents`.
        minutes: the time limit of the run on this machine.
        out: the TOML file to write; its stem becomes the run's name.
        reading: how the sources are read.
        given: keys that the user has set.

    Raises:
        AGI2Error: if `out` exists, or a source cannot be read.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise AGI2Error(f"--minutes {minutes}: name a number of minutes above 0")
    if out.exists():
        raise AGI2Error(f"{out} exists: name another file with --out")
    check_sources(sources, reading)
    check_rereadable(sources, "the planned run reads it again", reading)
    given = given or {}
    corpus = Corpus.read(sources, reading, seed=given.get("seed"))
    device = select_device(given.get("device", "auto"))
    yield f"# {describe_corpus(corpus, device)}"
    plan = choose_shape(corpus, minutes, device, name_of(out), given)
    yield write_plan(plan, out)
    for line in describe_plan(plan, minutes):
        yield f"# {line}"
    quoted = shlex.quote(str(out))
    doctor, train = (command_line(f"{name} {quoted}") for name in ("doctor", "train"))
    yield f"# wrote {out}; next: {doctor}, {train}"


def write_plan(plan: Plan, out: Path) -> str:
    """Write the configuration of a plan; return it, without the secrets of its URLs."""
    text = to_toml(plan.keys, plan.minutes, plan.given)
    write_text(out, text, private=mask_urls(text) != text)
    return mask_urls(text)


def describe_corpus(corpus: Corpus, device: torch.device) -> str:
    """Return a line about the text and the device."""
    return (
        f"text: {human_bytes(corpus.bytes)}, {corpus.entropy:.2f} bits per byte by a trigram "
        f"model; {describe_device(device)}"
    )


def describe_plan(plan: Plan, minutes: float) -> Iterator[str]:
    """Yield lines about the duration, the size and the predicted result of a plan.

    Args:
        plan: the plan.
        minutes: the time limit of which it was made.
    """
    if "max_steps" in plan.keys.keys() - plan.given and plan.minutes < minutes:
        yield (
            f"the run takes {human_time(60 * plan.minutes)} of {human_time(60 * minutes)}: for a "
            "lower loss, more text is needed"
        )
    yield (
        f"predicted: {plural(plan.steps, 'step')} of "
        f"{plural(plan.tokens // plan.steps, 'token')}, {plan.epochs:.3g} epochs"
    )
    yield f"model: {plural(plan.parameters, 'parameter')}"
    if plan.steps < _FEW_STEPS:
        time = human_time(60 * minutes)
        yield f"few steps: {time} are too short for this machine; raise --minutes"
    if plan.outside:
        yield "no prediction of the bits per byte: the scaling law was fitted to other runs"
        yield plan.outside
        return
    # Twice the error on texts that are not in the fit.
    error = 2 * SCALING_LAW.error * plan.bits_per_byte
    yield f"predicted: {plan.bits_per_byte:.2f} ± {error:.2f} bits per byte on held-out text"


_FEW_STEPS = 20
"""Fewer steps than this are said to be too few."""

_COMMENTS = {
    "sources": "The text to train on.",
    "vocab_size": "By the size of the text: fewer tokens for it, but each seen often enough.",
    "model_layer": "The size with the lowest expected loss for the time.",
    "dropout": "Both against overfitting, by how often so many weights see the text.",
    "batch_size": "In a short time, many small steps reach a lower loss than few large ones.",
    "max_minutes": "The learning rate falls with this clock.",
    "max_steps": "More epochs over this text would not lower the loss much.",
    "eval_interval": "About ten validations, five checkpoints.",
}


def to_toml(
    keys: Mapping[str, Any],
    minutes: float,
    given: Collection[str] = (),
    comments: Mapping[str, str] | None = None,
) -> str:
    """Return the keys that are set as TOML with comments, those that the user has set last."""
    comments = _COMMENTS if comments is None else comments
    lines = [f"# Planned for {human_time(60 * minutes)}. resources/default.toml has every key."]
    for key in (key for key in keys if key not in given and keys[key] is not None):
        if key in comments:
            lines += ["", f"# {comments[key]}"]
        lines.append(_line(key, keys[key]))
    chosen = [_line(key, keys[key]) for key in keys if key in given and keys[key] is not None]
    return (
        "\n".join([*lines, *(["", "# Set on the command line.", *chosen] if chosen else [])]) + "\n"
    )


def _line(key: str, value: Any) -> str:
    return tomli_w.dumps({key: value}).rstrip("\n")
