"""Code shared by the commands: the Typer application, common options, errors, opening a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer
import typer.core

from .. import __version__
from ..command_line import command_line
from ..errors import MAX_LINE_LENGTH, AGI2Error, mask_secrets, one_line
from . import completion
from .help_text import HelpGroup, HelpTyper
from .interrupts import NOTHING_SAVED, answering_ctrl_c

if TYPE_CHECKING:
    from ..config import Config
    from ..config_loader import Kind
    from ..formats.model_dir import TrainedModel


# Advice when not even the model fits in memory; the trainer's own message is more specific.
_MEMORY_ADVICE = (
    "lower model_embd, model_layer, model_positions, vocab_size, lora_rank or batch_size"
)


_UsageError: Any = typer.BadParameter.__mro__[1]  # click's UsageError, which typer does not export


@contextlib.contextmanager
def _usage_errors_in_one_line() -> Iterator[None]:
    """Print a usage error like any other error, instead of typer's several lines."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
            raise
        _fail(error, _usage_line(error))


def _usage_line(error: Any) -> str:
    """Return the message of a usage error: what is wrong, the invalid value, and what to do."""
    message = one_line(error.format_message().rstrip("."), MAX_LINE_LENGTH * 2 // 3)
    message = message[:1].lower() + message[1:]
    details = getattr(error.__cause__, "errors", None)  # pydantic's, which typer quotes in part
    if callable(details) and error.param is not None:
        message = _value_line(error.param.opts[0], details()[0])
    command = error.ctx.command if error.ctx else app
    if "extra argument" in message:
        message += "; quote a text or a name that contains spaces"
    elif type(error).__name__ == "NoSuchOption" and any(
        isinstance(each, typer.core.TyperArgument) and each.name == "prompt"
        for each in getattr(command, "params", ())
    ):
        message += "; a prompt that begins with - comes after --"
    _, *names = error.ctx.command_path.split() if error.ctx else [""]
    return f"{message}; {command_line(' '.join([*names, '--help']))} shows its usage"


def _value_line(name: str, detail: Mapping[str, Any]) -> str:
    """Return what the value of an option must be, in the words of the keys' messages."""
    bounds = detail.get("ctx", {})
    expected = {
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "int_parsing": "an integer",
        "greater_than_equal": f"at least {bounds.get('ge', 0):,}",
        "less_than_equal": f"at most {bounds.get('le', 0):,}",
    }.get(detail["type"], one_line(detail["msg"], MAX_LINE_LENGTH // 3))
    value = one_line(str(detail["input"]), MAX_LINE_LENGTH // 6)
    return f"{name} must be {expected}, not {value!r}"


class _Commands(HelpGroup):
    """Command group that exits with 2 on an error that the user can fix, with 130 on Ctrl-C."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        try:
            with _usage_errors_in_one_line():
                return super().make_context(*arguments, **options)
        except OSError as error:  # --help and --version print, too
            if error.errno == errno.EPIPE:
                raise
            _fail(error, str(error))

    def invoke(self, ctx: Any) -> Any:
        try:
            with _usage_errors_in_one_line(), answering_ctrl_c(lambda: NOTHING_SAVED):
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # before RuntimeError, their base class
            raise
        except AGI2Error as error:
            if "RANK" in os.environ:
                from ..train.distributed import report_on_rank_0

                report_on_rank_0(error)
            _fail(error, *error.args)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            _fail(error, f"out of memory: {_MEMORY_ADVICE}")
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader closed the pipe: click exits quietly
                raise
            _fail(error, str(error))


def _fail(error: BaseException, *lines: str) -> NoReturn:
    with contextlib.suppress(OSError):  # standard error is closed or full: keep the exit status
        for line in lines:
            print(f"error: {one_line(line)}", file=sys.stderr)
    raise typer.Exit(2) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from ..cuda_utils import is_out_of_memory

    return is_out_of_memory(error)


app = HelpTyper(
    cls=_Commands,
    help="Train a GPT-2 on your own text from one TOML file, and use it.",
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
    typer.Option(min=0, metavar="T", help="Sampling temperature; 0 is greedy decoding."),
]


TopK = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, metavar="K", help="Sample from the K most likely tokens; 0 for all."),
]


MaxLength = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, metavar="N", help="Maximum number of new tokens."),
]


Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, max=2**62, metavar="N", help="Random seed of sampling."),
]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")]


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log debug messages, too.")]


Resume = Annotated[
    bool, typer.Option("--resume", "-r", help="Resume from this run's newest checkpoint, if any.")
]


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"agi2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show version."),
    ] = False,
) -> None:
    """Train a GPT-2 on your own text from one TOML file, and use it."""


def set_up_log(quiet: bool, verbose: bool) -> None:
    """Set up logging to standard error, at the level chosen by `--quiet` and `--verbose`."""
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
    """Set up logging and load the configuration."""
    from ..config_loader import load_config
    from ..utils import log

    set_up_log(quiet, verbose)
    config = load_config(file, kind, overrides or ())
    for key, value in config.items():
        log.debug("%s = %r", key, mask_secrets(value))
    return config


def open_run(argument: str, overrides: Sequence[str] | None, quiet: bool, verbose: bool) -> Config:
    """Load the configuration of a training run, and check all that does not need PyTorch.

    Args:
        argument: a TOML file or a run's folder.
        overrides: `KEY=VALUE` strings.
        quiet: log warnings only.
        verbose: log debug messages, too.

    Raises:
        AGI2Error: if a key, a source or the run to resume is invalid.
    """
    from ..data.corpus import check_configured
    from ..formats.run_dir import (
        check_not_checkpoint,
        check_resume,
        check_resumed,
        check_tokenizer,
        config_file,
        overrides_for_folder,
    )
    from ..train.trackers import check_log_to

    check_not_checkpoint(argument)
    own_overrides = overrides_for_folder(
        argument
    )  # a run's folder may have been moved: override its saved path
    config = _start(
        config_file(argument), "training", [*own_overrides, *(overrides or [])], quiet, verbose
    )
    if not int(os.environ.get("RANK", 0)):  # under torchrun, only rank 0 reads the text
        check_log_to(config.log_to)
        check_configured(config)
        check_tokenizer(config)
        check_resume(config)
        check_resumed(config, argument)
    return config


def open_model(
    argument: str, kind: Kind, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> tuple[Config, str]:
    """Load the configuration of a trained model and check that its weights exist.

    Returns:
        The configuration, and `argument` as it is.
    """
    from ..formats.run_dir import check_weights, config_file, resolve_folder

    file = config_file(argument)
    config = _start(file, kind, overrides, quiet, verbose)
    check_weights(resolve_folder(config, argument), argument)
    return config, argument


def model_folder(argument: str) -> Path:
    """Return the folder of a run or a model, given by its folder or its TOML file."""
    from ..config_loader import load_config
    from ..formats.run_dir import config_file, resolve_folder

    if os.path.isdir(argument):
        config_file(argument)  # raises if it is another kind of folder
        return Path(argument)
    return resolve_folder(load_config(argument, "generation"), argument)


def as_overrides(
    temperature: float | None = None,
    top_k: int | None = None,
    max_length: int | None = None,
    seed: int | None = None,
) -> list[str]:
    """Convert the sampling flags to `KEY=VALUE` overrides, as for `--set`."""
    values = {"temperature": temperature, "max_length": max_length, "sampling_seed": seed}
    flags = [f"{key}={value}" for key, value in values.items() if value is not None]
    return flags + ([] if top_k is None else [f"top_k={top_k or 'null'}"])


def load_for_generation(config: Config, file: str) -> TrainedModel:
    """Load the trained model of a configuration and prepare it for generation."""
    from ..cuda_utils import select_device
    from ..formats.model_dir import load_trained
    from ..inference.prepare import prepare_for_generation

    trained = load_trained(config, select_device(config.device), file)
    prepare_for_generation(trained.model, config.quantize)
    return trained
