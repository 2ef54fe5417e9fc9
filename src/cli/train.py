"""The training commands: train, doctor, verify-resume."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..command_line import command_line
from ..errors import AGI2Error
from . import completion
from .common import (
    ConfigFile,
    Overrides,
    Quiet,
    Resume,
    Verbose,
    app,
    open_run,
    set_up_log,
)
from .interrupts import TrainingProgress, answering
from .startup import limit_openmp_spinning, loading

if TYPE_CHECKING:
    from ..config import Config
    from ..training import Run


@app.command()
def train(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="The text: files, folders, globs, URLs or -; or a TOML file, or a run's folder.",
            autocompletion=completion.complete_path,
        ),
    ],
    minutes: Annotated[
        Optional[float],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            min=0.1, max=1e6, metavar="N", help="Minutes to train on a text; 10 by default."
        ),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Name of a run on a text; by default the text's."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model, and print samples.

    For a text, a configuration is planned that suits it, the machine and the time, and written
    beside the run: trained/NAME.toml.
    """
    limit_openmp_spinning(10_000)

    def configure() -> tuple[str, list[str]]:
        return _configuration(paths, minutes, name, overrides or [], resume, quiet, verbose)

    run_training(paths, configure, quiet, verbose)


def run_training(
    arguments: list[str], configure: Callable[[], tuple[str, list[str]]], quiet: bool, verbose: bool
) -> None:
    """Train, and print samples or replies; answer an interrupt.

    Args:
        arguments: the command's, for the answer.
        configure: returns the configuration to train with, and overrides.
        quiet: log warnings only.
        verbose: log debug messages, too.
    """
    progress = TrainingProgress(arguments)
    with answering(progress.describe):
        file, overrides = configure()
        progress.file = file
        with loading(not quiet):
            config = open_run(file, overrides, quiet, verbose)
            from ..formats.run_dir import check_output

            check_output(config)
            from ..training import train_from_config
            from ..utils import log

        progress.begin(config)
        run = train_from_config(config)
        progress.is_finished = True
        if run.is_main:
            has_replies = _print_replies(run)
            if not has_replies and (config.sources or not config.has_messages):
                _print_samples(run, config, quiet)
            if not quiet:
                log.info("chat with it: %s", command_line(f"chat {shlex.quote(str(run.folder))}"))


def _configuration(
    paths: list[str],
    minutes: float | None,
    name: str | None,
    overrides: list[str],
    resume: bool,
    quiet: bool,
    verbose: bool,
) -> tuple[str, list[str]]:
    """Return the configuration to train with, planned for a text if none is named; and overrides.

    Raises:
        AGI2Error: if the arguments are not valid, or there is no plan for the text.
    """
    resumed = ["resume=auto"] if resume else []
    with loading(not quiet):
        from .train_text import TextRun, find_configuration

        file = find_configuration(paths)
        if file is not None:
            for option, key, value in (
                ("--minutes", "max_minutes", minutes),
                ("--name", "model_name", name),
            ):
                if value is not None:
                    raise AGI2Error(
                        f"{option} is for a text, and {file} is a configuration or a run: "
                        f"--set {key}={value}"
                    )
            return file, [*overrides, *resumed]
        set_up_log(quiet, verbose)
        text = TextRun.from_arguments(paths, minutes, name, overrides, resume)
        text.check()
    file = text.configure(quiet)
    return file, [*(overrides if text.is_resumed else []), *resumed]


def _print_replies(run: Run) -> bool:
    """Print replies to held-out conversations; return whether there are any."""
    from ..console import print_text
    from ..evaluation.replies import load_replies

    replies = load_replies(run.folder)
    for reply in replies[:_NUM_SAMPLES]:
        said = [*reply.messages, {"role": "assistant", "content": reply.reply}]
        print_text("\n".join(f"{each['role']}: {each['content']}" for each in said) + "\n")
    return bool(replies)


def _print_samples(run: Run, config: Config, quiet: bool) -> None:
    """Print samples of a trained model; log what they have of the text, and what to do next."""
    from ..console import print_text
    from ..generation import generate_text
    from ..inference.sampling import generation_options
    from ..utils import log

    options = {**generation_options(config), "model_seed": "", "tokenizer": run.tokenizer}
    samples = []
    for number in range(1, _NUM_SAMPLES + 1):
        options["seed"] = config.seed + number
        text = generate_text(run.model, config.model_seed, **options)
        samples.append(text)
        print_text(f"--- sample {number} ---\n{text}\n")
    if not quiet:
        _log_overlap(run, samples)
        # The folder rather than the file, which --set may have overridden.
        folder = shlex.quote(str(run.folder))
        log.info("generate more with: %s", command_line(f'generate {folder} "..."'))


# Samples printed after training; characters of the training text to search for copies in them.
_NUM_SAMPLES = 3
_MAX_COMPARED_CHARACTERS = 20_000_000


def _log_overlap(run: Run, samples: list[str]) -> None:
    """Log how many of the samples' words occur in the training text, and the longest copy."""
    from ..data.decoded import first_characters
    from ..evaluation.memorization import known_words, longest_common_span
    from ..utils import log, plural

    training_text = "\n".join(first_characters(run.training_text, _MAX_COMPARED_CHARACTERS))
    known = known_words("\n".join(samples), training_text)
    if known is not None:
        log.info("%.0f %% of the words of the samples occur in the training text", 100 * known)
    copied = max((longest_common_span(text, training_text) for text in samples), key=len)
    length = plural(len(copied), "character")
    log.info("the longest span copied from it has %s: %r", length, copied)


@app.command()
def doctor(
    file: ConfigFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Estimate the time, memory and disk of a run."""
    with loading(not quiet):
        config = open_run(file, overrides, quiet, verbose)
        from ..console import print_wrapped
        from .doctor import examine

    print_wrapped(f"keys: every key of {file} is right")
    for line in examine(config):
        print_wrapped(line)


@app.command("verify-resume")
def verify_resume(
    file: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[
        int, typer.Option(min=3, metavar="N", help="Steps of the runs, at least 3.")
    ] = 6,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check that a run that is killed and resumed ends the same.

    A short run is trained twice, once without interruption, and compared bit by bit.
    """
    with loading(not quiet):
        config = open_run(file, overrides, quiet, verbose)
        from ..console import print_line
        from .verify_resume import verify

    for line in verify(config, steps):
        print_line(line)
