"""The commands that generate text: generate, beam, chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import AGI2Error
from .common import (
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
from .startup import limit_openmp_spinning, loading

if TYPE_CHECKING:
    from ..config import Config


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
        for piece in stream_text(trained.model, prompt, **options):
            print_text(shown + piece, end="")
            shown = ""
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
    model: Model,
    overrides: Overrides = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Chat with a model."""
    limit_openmp_spinning(1_000)
    flags = as_overrides(temperature, top_k, max_length, seed)
    with loading(not quiet):
        config, file = open_model(
            model, "interactive", [*(overrides or []), *flags], quiet, verbose
        )
        from ..inference.sampling import generation_options
        from ..interactive import InteractivePrompt
        from .chat import chat as talk

        trained = load_for_generation(config, file)
    options = {**generation_options(config), "seed": _sampling_seed(config)}
    prompt = InteractivePrompt(
        trained.model, config.max_context_length, trained.tokenizer, **options
    )
    talk(prompt)


def _sampling_seed(config: Config) -> int:
    """Return the configured sampling seed, or a random one, logged so that it can be reused."""
    import secrets

    from ..utils import log

    if config.sampling_seed is not None:
        return config.sampling_seed
    seed = secrets.randbelow(2**31)
    log.info("sampling_seed = %d repeats this", seed)
    return seed
