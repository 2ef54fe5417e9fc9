"""The commands that compare runs: list, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from . import completion
from .common import (
    MODEL_HELP,
    Quiet,
    Verbose,
    app,
    model_folder,
    set_up_log,
)
from .startup import loading


@app.command(name="list")
def list_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder that contains the runs.")
    ] = Path("trained"),
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the runs in a folder, newest last."""
    set_up_log(quiet, verbose)
    from .compare import print_runs

    print_runs(folder)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL...", help=MODEL_HELP, autocompletion=completion.complete_model
        ),
    ],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Prompt of the samples.")] = "",
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, metavar="N", help="Random seed of sampling.")
    ] = 1,
    html: Annotated[
        Optional[Path],  # noqa: UP045 (typer reads this at run time)
        typer.Option(metavar="FILE", help="Also write the comparison to this HTML file."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare the configurations, losses and samples of runs."""
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from .compare import compare_runs

        folders = [model_folder(model) for model in models]
    compare_runs(folders, prompt, seed, html)
