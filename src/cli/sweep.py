"""The command sweep: trains several recipes for the same time each, and keeps the best."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from . import completion
from .common import ConfigFile, Overrides, Quiet, Verbose, app, open_run
from .interrupts import NOTHING_SAVED, answering
from .startup import limit_openmp_spinning, loading


@app.command()
def sweep(
    file: ConfigFile,
    minutes: Annotated[
        Optional[float],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            min=0.01, max=1e6, metavar="N", help="Minutes to train each recipe; 5 by default."
        ),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=10**12, metavar="N", help="Steps to train each recipe, instead of minutes."
        ),
    ] = None,
    runs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=10_000, metavar="N", help="Number of recipes; 12 by default."),
    ] = None,
    tried: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--try",
            metavar="KEY=VALUES",
            help="Values of a key to try: a,b,c, or LOW:HIGH; repeatable. By default "
            "learning rates, regularization and sizes around those of the file.",
            autocompletion=completion.complete_override,
        ),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=2**62, metavar="N", help="Seed of the search; 1 by default."),
    ] = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep the weights of all runs, not only the best.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each run, and no table.")
    ] = False,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", "-r", help="Continue the sweep, if it was begun.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train several recipes for the same time each, and keep the best.

    The first recipe is that of the file, the others differ in the keys that are tried. The folder
    NAME-sweep has the runs; sweep.jsonl, a line for each; and best.toml, the best recipe.
    """
    limit_openmp_spinning(10_000)
    with answering(lambda: NOTHING_SAVED):
        with loading(not quiet):
            config = open_run(file, overrides, quiet, verbose)
            from .sweep_plan import SweepOptions
            from .sweep_runs import Sweep

            given = SweepOptions(minutes, steps, runs, tuple(tried or ()), seed)
            chosen = Sweep(config, [file, *(f"--set={each}" for each in overrides or [])])
        with chosen.lock:
            chosen.begin(given, resume)
            chosen.train_all(keep_all, json, quiet, verbose)
            chosen.report(json)
