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
            help="A Hugging Face GPT-2: a folder, or a name such as openai-community/gpt2; or a "
            "GGUF file.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Import a GPT-2 of Hugging Face, or a GGUF file.

    The result is a model to generate from, or to fine-tune (init_from).
    """
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from ..formats.export import check_not_exists

        check_not_exists(out)
        from ..foreign_models import is_gguf
        from ..formats.gguf_import import import_gguf
        from ..formats.huggingface import import_huggingface
        from ..utils import log

    then = "try it: " + command_line(f'generate {shlex.quote(str(out))} "..."')
    with saving(out, then):
        (import_gguf if is_gguf(source) else import_huggingface)(source, out)
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
            help="For gguf: f16, q8_0 (int8 weights) or q4_0 (int4).",
            autocompletion=completion.complete_quantization,
        ),
    ] = None,
    kv_cache: Annotated[
        bool,
        typer.Option(
            "--kv-cache", help="For onnx: a graph with a KV cache as an input and an output."
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export a trained model to the format of another project."""
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from ..formats.export import check_export, export_model
        from ..utils import log

        folder = model_folder(model)
        check_export(folder, out, format, quantize, kv_cache)
        import torch  # noqa: F401

    with saving(out, f"it is the exported {folder}"):
        export_model(folder, out, format, quantize, kv_cache=kv_cache)
    log.info("saved to %s", out)
