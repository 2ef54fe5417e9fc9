"""The commands that write configurations: init, plan."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..command_line import command_line
from ..errors import AGI2Error
from . import completion
from .common import Overrides, Quiet, Verbose, app, set_up_log
from .interrupts import saving
from .startup import loading

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="The text to train on: files, folders, globs, URLs.",
        autocompletion=completion.complete_path,
    ),
]


@app.command()
def init(
    sources: Sources,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="default (every key), small_model, large_model, quickstart, moby_dick or chat.",
            autocompletion=completion.complete_recipe,
        ),
    ] = "small_model",
    output: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option("--output", "-o", metavar="FILE", help="The file; by default NAME.toml."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a commented configuration for a text, from a recipe."""
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from .recipes import write_recipe

    write_recipe(sources, recipe, output, force)


@app.command()
def plan(
    named: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this at run time)
        typer.Argument(
            metavar="SOURCE...", help="The text to train on: files, folders, globs, URLs."
        ),
    ] = None,
    sources: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--sources", metavar="SOURCE", help="The same; repeatable."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1e6, metavar="N", help="Minutes to train.")
    ] = 10.0,
    out: Annotated[str, typer.Option(metavar="FILE.toml", help="The file to create.")] = "my.toml",
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Propose a configuration for a text and a time limit.

    It measures the text and the machine, writes the configuration, and estimates the result.
    """
    # `--sources A B C`: typer parses B and C as arguments.
    sources = [*(sources or []), *(named or [])]
    if not sources:
        raise AGI2Error(f"plan needs a text: {command_line('plan my_book.txt --minutes 10')}")
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from ..console import print_line
        from ..data.corpus import check_sources
        from ..data.documents import ReadOptions
        from ..formats.run_dir import name_of
        from .train_text import check_keys

        if os.path.lexists(out):
            raise AGI2Error(f"{out} exists: name another file with --out")
        given = _given_keys(overrides or [])
        reading = ReadOptions.from_config(check_keys(sources, name_of(out), given))
        check_sources(sources, reading)
        from ..train.plan_file import propose

    with saving(out, f"train with: {command_line(f'train {shlex.quote(out)}')}"):
        for line in propose(sources, minutes, Path(out), reading, given):
            print_line(line)


_SET_OTHERWISE = {
    "sources": "name the texts as arguments",
    "model_name": "--out names the file and the run",
    "max_minutes": "use --minutes",
    "resume": "a plan is for a new run",
    "init_from": "a plan is for a new model",
}


def _given_keys(overrides: Sequence[str]) -> dict[str, Any]:
    from ..config_loader import parse_override

    given = dict(map(parse_override, overrides))
    for key, advice in _SET_OTHERWISE.items():
        if key in given:
            raise AGI2Error(f"--set {key}: {advice}")
    return given
