"""What the commands share: the application, its arguments, its errors, how a run is opened."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer
import typer.core

from .. import __version__
from ..errors import AGI2Error, masked, one_line
from . import completion

if TYPE_CHECKING:
    from ..config import Config
    from ..config_loader import Kind
    from ..formats.model_dir import TrainedModel


# What to do where a model does not even fit; a run says more.
_SMALLER = "lower model_embd, model_layer, model_positions, vocab_size, lora_rank or batch_size"


_UsageError: Any = typer.BadParameter.__mro__[1]  # typer has no name of its own for it


@contextlib.contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Escape what a wrong argument brings into typer's messages."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # whose message is the help
            error.message = one_line(error.message or "")
        raise


class _Commands(typer.core.TyperGroup):
    """The subcommands, where an error that the user can fix ends with 2 and Ctrl-C with 130."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        try:
            with _printable_usage_errors():
                return super().make_context(*arguments, **options)
        except OSError as error:  # --help and --version print, too
            if error.errno == errno.EPIPE:
                raise
            _fail(error, str(error))

    def invoke(self, ctx: Any) -> Any:
        try:
            with _printable_usage_errors():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # RuntimeErrors, too
            raise
        except AGI2Error as error:
            if "RANK" in os.environ:
                from ..train.distributed import let_the_first_speak

                let_the_first_speak(error)
            _fail(error, *error.args)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            _fail(error, f"out of memory: {_SMALLER}")
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads has had enough
                raise
            _fail(error, str(error))


def _fail(error: BaseException, *lines: str) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody can be told: the exit status says it
        for line in lines:
            print(f"error: {one_line(line)}", file=sys.stderr)
    raise typer.Exit(2) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from ..cuda_utils import is_out_of_memory

    return is_out_of_memory(error)


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # importing rich for the help would double its time
    help="Train a GPT-2 on your own text from one TOML file, and use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


ConfigFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE.toml",
        help="A configuration, or a run's folder.",
        autocompletion=completion.complete_model,
    ),
]


MODEL_HELP = "A run's folder, its TOML file, or a model's folder."


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=completion.complete_model)
]


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")]


Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads this at run time)
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a key of the file; repeatable.",
        autocompletion=completion.complete_override,
    ),
]


Temperature = Annotated[
    Optional[float],  # noqa: UP045 (typer reads this at run time)
    typer.Option(min=0, help="0 is greedy; higher is more surprising."),
]


TopK = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Sample from so many likeliest tokens; 0 for all."),
]


MaxLength = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="New tokens at most."),
]


Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, max=2**62, help="Repeats a text."),
]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")]


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")]


Resume = Annotated[
    bool, typer.Option("--resume", "-r", help="Go on from this run's newest checkpoint, if any.")
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"agi2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Train a GPT-2 on your own text from one TOML file, and use it."""


def set_up_log(quiet: bool, verbose: bool) -> None:
    """Log to standard error, at the level that the flags say."""
    import logging
    import platform
    from importlib.metadata import version

    from ..console import setup_logging
    from ..utils import log

    setup_logging(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log.debug(
        "agi2 %s, Python %s, PyTorch %s", __version__, platform.python_version(), version("torch")
    )


def _start(
    file: str, kind: Kind, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> Config:
    """Set up the log, then read the configuration."""
    from ..config_loader import load_config
    from ..utils import log

    set_up_log(quiet, verbose)
    config = load_config(file, kind, overrides or ())
    for key, value in config.items():
        log.debug("%s = %r", key, masked(value))
    return config


def open_run(argument: str, overrides: Sequence[str] | None, quiet: bool, verbose: bool) -> Config:
    """The configuration of a run, with everything checked that needs no PyTorch."""
    from ..data.corpus import check_sources
    from ..formats.run_dir import check_resume, check_resumed, config_file, naming
    from ..train.trackers import check_log_to

    place = naming(argument)  # a folder that is named is that run's, wherever it was moved
    config = _start(config_file(argument), "training", [*place, *(overrides or [])], quiet, verbose)
    if not int(os.environ.get("RANK", 0)):  # of several processes only the first reads the text
        check_log_to(config.log_to)
        check_sources(config.sources)
        check_resume(config)
        check_resumed(config, argument)
    return config


def open_model(
    argument: str, kind: Kind, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> tuple[Config, str]:
    """The configuration of a trained model, and the file that it stands in."""
    from ..formats.run_dir import check_weights, config_file, folder_of

    file = config_file(argument)
    config = _start(file, kind, overrides, quiet, verbose)
    check_weights(folder_of(config, argument), argument)
    return config, argument


def model_folder(argument: str) -> Path:
    """The folder of a run or a model, by any of its names."""
    from ..config_loader import load_config
    from ..formats.run_dir import config_file, folder_of

    if os.path.isdir(argument):
        config_file(argument)  # raises if it is another kind of folder
        return Path(argument)
    return folder_of(load_config(argument, "generation"), argument)


def as_overrides(
    temperature: float | None = None,
    top_k: int | None = None,
    max_length: int | None = None,
    seed: int | None = None,
) -> list[str]:
    """The flags for keys that are often set, as `--set` has them."""
    given = {"temperature": temperature, "max_length": max_length, "sampling_seed": seed}
    flags = [f"{key}={value}" for key, value in given.items() if value is not None]
    return flags + ([] if top_k is None else [f"top_k={top_k or 'null'}"])


def load_to_generate(config: Config, file: str) -> TrainedModel:
    """The model that a configuration has trained, ready to generate."""
    from ..cuda_utils import select_device
    from ..formats.model_dir import load_trained
    from ..inference.prepare import prepare_for_generation

    trained = load_trained(config, select_device(config.device), file)
    prepare_for_generation(trained.model, config.quantize)
    return trained
