"""The commands about tokenizers: train, inspect, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from . import completion
from .common import Quiet, Verbose, app, set_up_log
from .help_text import HelpTyper
from .startup import loading

group = HelpTyper(help="Train, inspect and compare tokenizers.")
app.add_typer(group, name="tokenizer")

_TOKENIZER_HELP = (
    "A tokenizer.json or its folder, a run's or a model's folder, its TOML file, or gpt2."
)
_TEXT_HELP = "A file, a folder or another source; or a text of several words."


@group.command()
def train(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="The text: files, folders, globs, URLs."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to create.")],
    vocab_size: Annotated[
        str, typer.Option(metavar="N", help="Maximum vocabulary size, or auto: by the text's size.")
    ] = "auto",
    pretokenizer: Annotated[
        str, typer.Option(metavar="NAME", help="How text is split into words: gpt2 or gpt4.")
    ] = "gpt2",
    split_digits: Annotated[
        bool, typer.Option("--split-digits", help="Make every digit a token of its own.")
    ] = False,
    special_token: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this at run time)
        typer.Option(metavar="NAME", help="Add a special token; repeatable."),
    ] = None,
    text_field: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Field of .jsonl and column of .csv files with the text."
        ),
    ] = "text",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a byte-level BPE tokenizer on a text.

    The vocabulary is the end-of-text token, the 256 bytes, the most frequent merges, and the
    special tokens. For a run that uses it: tokenizer = "FOLDER".
    """
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from .tokenizer_report import train_tokenizer

    train_tokenizer(
        sources, text_field, vocab_size, pretokenizer, split_digits, special_token or [], out
    )


@group.command()
def inspect(
    tokenizer: Annotated[
        str,
        typer.Argument(
            metavar="TOKENIZER",
            help=_TOKENIZER_HELP,
            autocompletion=completion.complete_model,
        ),
    ],
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="TEXT", help=_TEXT_HELP),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show a tokenizer's vocabulary, and how it splits a text."""
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from .tokenizer_report import inspect_tokenizer

    inspect_tokenizer(tokenizer, text)


@group.command()
def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="TOKENIZER... TEXT",
            help=f"{_TOKENIZER_HELP} Last, a text: a file, a folder or another source; or a text "
            "of several words.",
            autocompletion=completion.complete_model,
        ),
    ],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare how well tokenizers compress a text.

    GPT-2's is compared, too, if its vocabulary is in the cache: to download it, name it (gpt2).
    """
    with loading(not quiet):
        set_up_log(quiet, verbose)
        from .tokenizer_report import compare_tokenizers

    compare_tokenizers(arguments[:-1], arguments[-1])
