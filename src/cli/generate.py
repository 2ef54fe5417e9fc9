"""The commands that generate text: generate, beam, chat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import AGI2Error
from . import completion
from .common import (
    MODEL_HELP,
    MaxLength,
    Model,
    Overrides,
    Prompt,
    Quiet,
    Seed,
    Temperature,
    TopK,
    Verbose,
    app,
    as_overrides,
    load_for_generation,
    open_model,
)
from .interrupts import CHATTED, answering_ctrl_c
from .startup import limit_openmp_spinning, loading

if TYPE_CHECKING:
    from ..config import Config
    from ..interactive import InteractivePrompt


@app.command()
def generate(
    model: Model,
    prompt: Prompt,
    overrides: Overrides = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    show_probs: Annotated[
        bool,
        typer.Option("--show-probs", help="Show the probability of each token, and alternatives."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate a continuation of a prompt."""
    limit_openmp_spinning(1_000)
    flags = as_overrides(temperature, top_k, max_length, seed)
    with loading(not quiet):
        config, file = open_model(model, "generation", [*(overrides or []), *flags], quiet, verbose)
        if show_probs and config.samples > 1:
            raise AGI2Error(
                f"--show-probs shows one text, not {config.samples}: leave samples at 1"
            )
        from ..console import print_text
        from ..generation import generate_batch, generate_choices, stream_text
        from ..inference.sampling import generation_options
        from .token_view import print_choices

        trained = load_for_generation(config, file)
    options = {
        **generation_options(config),
        "tokenizer": trained.tokenizer,
        "seed": _sampling_seed(config),
    }
    if show_probs:
        print_choices(prompt, generate_choices(trained.model, prompt, **options), trained.tokenizer)
    elif config.samples > 1:
        texts = generate_batch(
            trained.model, [prompt], n=config.samples, return_full_text=False, **options
        )[0]
        for number, text in enumerate(texts, 1):
            print_text(f"--- sample {number} ---\n{prompt}{text}\n")
    else:
        # The prompt is printed with the first piece, after all options have been validated.
        shown = prompt
        try:
            for piece in stream_text(trained.model, prompt, **options):
                print_text(shown + piece, end="")
                shown = ""
        except KeyboardInterrupt:
            print_text("")  # the answer to it is in a line of its own
            raise
        print_text(shown)


@app.command()
def beam(
    model: Model,
    prompt: Prompt,
    overrides: Overrides = None,
    max_length: MaxLength = None,
    results: Annotated[
        Optional[int],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            "--results",
            "-n",
            metavar="N",
            help="Number of texts to show; above 1, each with its score.",
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate the most likely continuation by beam search."""
    limit_openmp_spinning(1_000)
    flags = [] if results is None else [f"beam_results={results}"]
    flags += as_overrides(max_length=max_length)
    with loading(not quiet):
        config, file = open_model(model, "generation", [*(overrides or []), *flags], quiet, verbose)
        from ..console import print_text
        from ..generation import generate_beam_texts
        from ..inference.sampling import beam_options

        trained = load_for_generation(config, file)
    texts = generate_beam_texts(
        trained.model,
        config.model_seed + prompt,
        tokenizer=trained.tokenizer,
        **beam_options(config),
    )
    if config.beam_results == 1:
        print_text(prompt + texts[0].text)
        return
    for number, each in enumerate(texts, 1):
        print_text(f"--- text {number}, score {each.score:.4f} ---\n{prompt}{each.text}\n")


@app.command()
def chat(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL]",
            help=f"{MODEL_HELP} Two: each message goes to both, side by side.",
            autocompletion=completion.complete_model,
        ),
    ],
    overrides: Overrides = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", help="The system message.")
    ] = "",
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colors (so does the variable NO_COLOR).")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Chat with a model, or with two side by side."""
    if len(models) > 2:
        raise AGI2Error(f"chat takes one model or two, not {len(models)}")
    limit_openmp_spinning(1_000)
    flags = [*(overrides or []), *as_overrides(temperature, top_k, max_length, seed)]
    with loading(not quiet):
        opened = [open_model(each, "interactive", flags, quiet, verbose) for each in models]
        prompts = _conversations(models, opened, system)
    from ..console import console
    from .chat import chat as talk

    console.no_color = console.no_color or no_color
    with answering_ctrl_c(lambda: CHATTED):
        talk(prompts, opened[0][0].chat_stats)


def _conversations(
    models: list[str], opened: list[tuple[Config, str]], system: str
) -> dict[str, InteractivePrompt]:
    """Return a conversation with each model, by its name; all have the same sampling seed."""
    from ..inference.sampling import generation_options
    from ..interactive import InteractivePrompt

    seed = _sampling_seed(opened[0][0])
    prompts = {}
    for name, (config, file) in zip(short_names(models), opened, strict=True):
        trained = load_for_generation(config, file)
        own_seed = seed if config.sampling_seed is None else config.sampling_seed
        options = {**generation_options(config), "seed": own_seed, "system": system}
        prompts[name] = InteractivePrompt(
            trained.model, config.max_context_length, trained.tokenizer, **options
        )
    return prompts


def short_names(models: list[str], length: int | None = 30) -> list[str]:
    """Return a name for each model: its folder's or file's, numbered if they are the same.

    Args:
        models: run folders, TOML files or model folders.
        length: maximum number of characters of the folder's or file's name; None for no limit.
    """
    from ..formats.run_dir import name_of

    paths = [Path(os.path.abspath(each)) for each in models]
    paths = [path.parent if path.name == "config.toml" else path for path in paths]
    names = [path.name if path.is_dir() else name_of(path) for path in paths]
    names = [name[:length] for name in names]
    if len(set(names)) == len(names):
        return names
    return [f"{number} {name}" for number, name in enumerate(names, 1)]


def _sampling_seed(config: Config) -> int:
    """Return the configured sampling seed, or a random one, logged so that it can be reused."""
    import secrets

    from ..utils import log

    if config.sampling_seed is not None:
        return config.sampling_seed
    seed = secrets.randbelow(2**31)
    log.info("sampling_seed = %d repeats this", seed)
    return seed
