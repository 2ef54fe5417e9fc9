"""The command tune: fine-tunes a model on conversations, or on pairs of preferences."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from . import completion
from .common import Overrides, Quiet, Resume, Verbose, app, set_up_log
from .startup import limit_openmp_spinning, loading
from .train import run_training


@app.command()
def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The model: a run, its TOML file, or a model's folder.",
            autocompletion=completion.complete_path,
        ),
    ],
    chats: Annotated[
        list[str],
        typer.Argument(
            metavar="CHATS...",
            help="Conversations: JSON lines, CSV or Parquet files, or text with speakers; or "
            "pairs of preferences: chosen and rejected.",
            autocompletion=completion.complete_path,
        ),
    ],
    minutes: Annotated[
        Optional[float],  # noqa: UP045 (typer reads this at run time)
        typer.Option(min=0.1, max=1e6, metavar="N", help="Minutes to train; 10 by default."),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Name of the run; by default MODEL-chat, or MODEL-dpo."),
    ] = None,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--text", metavar="PATH", help="Plain text to mix in, against forgetting; repeatable."
        ),
    ] = None,
    text_share: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0.0, max=0.99, metavar="SHARE", help="Share of plain text; 0.2 by default."
        ),
    ] = None,
    lora: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=4096, metavar="RANK", help="Train LoRA adapters instead of all weights."
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a model on conversations, so that it answers; or on preferences, by DPO.

    A configuration is planned for the model, the machine and the time, and written beside the
    run: trained/NAME.toml.
    """
    limit_openmp_spinning(10_000)
    keys: dict[str, Any] = {"sources": text, "text_share": text_share, "lora_rank": lora}
    keys = {key: value for key, value in keys.items() if value is not None}

    def configure() -> tuple[str, list[str]]:
        with loading(not quiet):
            from .tuning_run import TuningRun

            set_up_log(quiet, verbose)
            run = TuningRun.from_model(model, chats, keys, minutes, name, overrides or [], resume)
            run.check()
        file = run.configure(quiet)
        resumed = ["resume=auto"] if resume else []
        return file, [*((overrides or []) if run.is_resumed else []), *resumed]

    run_training([model, *chats], configure, quiet, verbose)
