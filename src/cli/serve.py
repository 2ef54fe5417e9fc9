"""The command that serves models over HTTP: serve."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import AGI2Error
from . import completion
from .common import MODEL_HELP, Overrides, Quiet, Verbose, app, open_model
from .generate import short_names
from .startup import limit_openmp_spinning, loading

if TYPE_CHECKING:
    from ..serve.models import ModelSource

_MIB = 2**20


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help=f"{MODEL_HELP} Requests name each by its folder's or file's name.",
            autocompletion=completion.complete_model,
        ),
    ],
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port; 0 for a free one.")
    ] = 8000,
    api_key: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            metavar="KEY",
            help="Key that requests must carry; better in the variable AGI2_API_KEY, which other "
            "users of this machine cannot read.",
        ),
    ] = None,
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME", help="Another name of this server; repeatable."),
    ] = None,
    max_rows: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, metavar="N", help="Texts of a model at once; by default what memory allows."
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Texts of a model that may wait.")
    ] = 256,
    max_connections: Annotated[
        int, typer.Option(min=1, metavar="N", help="Open connections; more are refused.")
    ] = 512,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="New tokens that a text may have.")
    ] = 4096,
    deadline: Annotated[
        float, typer.Option(metavar="S", help="Seconds that a request may take.")
    ] = 600.0,
    prefix_cache: Annotated[
        int,
        typer.Option(min=0, metavar="MIB", help="Memory of each model's cached prefixes."),
    ] = 256,
    model_memory: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            metavar="MIB",
            help="Memory of all models' weights; by default half of what is free. Models are "
            "loaded on first use, and idle ones unloaded, if it does not hold all.",
        ),
    ] = None,
    shutdown: Annotated[
        float,
        typer.Option(metavar="S", help="Seconds that requests have to finish at Ctrl-C."),
    ] = 30.0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Serve models over HTTP, with OpenAI's API."""
    limit_openmp_spinning(1_000)
    with loading(not quiet):
        opened = [open_model(each, "generation", overrides, quiet, verbose) for each in models]
        _require_packages()
        from ..serve.models import ModelSource
        from ..serve.server import serve as run
        from ..serve.settings import ServeSettings

        settings = ServeSettings(
            host=host,
            port=port,
            api_key=api_key or os.environ.get("AGI2_API_KEY") or None,
            allowed_hosts=allow_host or (),
            max_rows=max_rows,
            max_waiting=max_waiting,
            max_connections=max_connections,
            max_tokens=max_tokens,
            deadline=deadline,
            prefix_cache_bytes=prefix_cache * _MIB,
            model_memory=None if model_memory is None else model_memory * _MIB,
            shutdown_seconds=shutdown,
        )
        sources: list[ModelSource] = [
            ModelSource(name, config, argument)
            for name, (config, argument) in zip(short_names(models, None), opened, strict=True)
        ]
    run(sources, settings)


def _require_packages() -> None:
    """Check that the packages of the extra `serve` are installed."""
    for name in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise AGI2Error(
                f"serve: {name} is not installed; install it with uv sync --extra serve or "
                "pip install starlette uvicorn prometheus-client"
            )
