"""The commands about training data."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from . import completion
from .common import ConfigFile, Overrides, Quiet, Verbose, app, open_run, set_up_log
from .help_text import HelpTyper
from .interrupts import PREPARED, answering_ctrl_c
from .startup import loading

group = HelpTyper(help="Inspect and prepare training data.")
app.add_typer(group, name="data")


@group.command()
def inspect(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, globs, URLs or -; or a TOML file that names them.",
            autocompletion=completion.complete_path,
        ),
    ],
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            metavar="TOKENIZER",
            help="Counts the tokens: a tokenizer.json, a run's folder, or gpt2; by default, one is "
            "trained on the text.",
            autocompletion=completion.complete_model,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a text contains, and what of it is skipped and why.

    Documents, bytes, tokens, languages, copies and near copies, odd characters, the longest and
    shortest documents, and their lengths. The text is read once and not changed.
    """
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from .inspect_report import inspect_sources

    inspect_sources(sources, overrides or [], tokenizer, as_json)


@group.command()
def prepare(
    file: ConfigFile,
    overrides: Overrides = None,
    part: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            metavar="K/N", help="Share the work with N processes; this is number K, from 1."
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tokenize the text of a configuration, so that its training starts at once.

    With --part, N processes share the work, on one machine or on several that share the folder of
    the key token_cache. Any of them may be interrupted and started again.
    """
    with loading(not quiet):
        config = open_run(file, overrides, quiet, verbose)
        from ..console import print_line
        from .data_prepare import prepare_data

    with answering_ctrl_c(lambda: PREPARED):
        for line in prepare_data(config, part):
            print_line(line)
