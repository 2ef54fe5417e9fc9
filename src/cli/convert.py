"""The commands that convert models: import, export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..command_line import command_line
from . import completion
from .common import (
    Model,
    Quiet,
    Verbose,
    app,
    model_folder,
    set_up_log,
)
from .interrupts import saving
from .startup import loading


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_NAME",
            help="A Hugging Face GPT-2: a folder, or a name such as openai-community/gpt2.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Import a Hugging Face GPT-2.

    The result is a model to generate from, or to fine-tune (init_from).
    """
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from ..formats.export import check_not_exists

        check_not_exists(out)
        from ..formats.huggingface import import_huggingface
        from ..utils import log

    then = "try it: " + command_line(f'generate {shlex.quote(str(out))} "..."')
    with saving(out, then):
        import_huggingface(source, out)
    log.info("saved to %s; %s", out, then)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to create.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="hf (for transformers), gguf (for llama.cpp) or onnx.",
            autocompletion=completion.complete_format,
        ),
    ] = "hf",
    quantize: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            metavar="NAME",
            help="For gguf: q8_0, int8 weights.",
            autocompletion=completion.complete_quantization,
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export a trained model to the format of another project."""
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from ..formats.export import check_export, export_model
        from ..utils import log

        folder = model_folder(model)
        check_export(folder, out, format, quantize)
        import torch  # noqa: F401

    with saving(out, f"it is the exported {folder}"):
        export_model(folder, out, format, quantize)
    log.info("saved to %s", out)
