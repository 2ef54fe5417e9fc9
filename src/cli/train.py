"""The training commands: train, doctor, verify-resume, plan."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import AGI2Error
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
from .startup import limit_openmp_spinning, loading

if TYPE_CHECKING:
    from ..training import Run


@app.command()
def train(
    file: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model, and print samples."""
    limit_openmp_spinning(10_000)
    overrides = [*(overrides or []), *(["resume=auto"] if resume else [])]
    with loading(not quiet):
        config = open_run(file, overrides, quiet, verbose)
        from ..formats.run_dir import check_output

        check_output(config)
        from ..console import print_text
        from ..generation import generate_text
        from ..inference.sampling import generation_options
        from ..training import train_from_config
        from ..utils import log

    run = train_from_config(config)
    if not run.is_main:
        return
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
        log.info('generate more with: agi2 generate %s "..."', shlex.quote(str(run.folder)))


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
        from ..console import print_line
        from .doctor import examine

    print_line(f"keys: every key of {file} is right")
    for line in examine(config):
        print_line(line)


@app.command("verify-resume")
def verify_resume(
    file: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=3, help="Optimizer steps of the runs.")] = 6,
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


@app.command()
def plan(
    named: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this at run time)
        typer.Argument(metavar="SOURCE", help="The text to train on: files, folders, globs, URLs."),
    ] = None,
    sources: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--sources", metavar="SOURCE", help="The same; repeatable."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, max=1e6, help="Time limit of the run.")] = 10.0,
    out: Annotated[str, typer.Option(metavar="FILE.toml", help="The file to create.")] = "my.toml",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Propose a configuration for a text and a time limit.

    It measures the text and the machine, writes the configuration, and estimates the result.
    """
    # `--sources A B C`: typer parses B and C as arguments.
    sources = [*(sources or []), *(named or [])]
    if not sources:
        raise AGI2Error("plan needs a text: agi2 plan my_book.txt --minutes 10")
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from ..console import print_line
        from ..data.corpus import check_sources

        if os.path.lexists(out):
            raise AGI2Error(f"{out} exists: name another file with --out")
        check_sources(sources)
        from ..train.planner import propose

    for line in propose(sources, minutes, Path(out)):
        print_line(line)
