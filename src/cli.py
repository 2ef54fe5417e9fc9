"""The command `agi2`, and the four scripts: subcommands only.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
import typer.core

from . import __version__
from .errors import AGI2Error

if TYPE_CHECKING:
    import torch

    from .config import Config
    from .config_loader import Kind
    from .model_folder import TrainedModel


# What to do where a model does not even fit; a run says more.
_SMALLER = "lower model_embd, model_layer, model_positions, vocab_size, lora_rank or batch_size"


class _Commands(typer.core.TyperGroup):
    """The subcommands, where an error that the user can mend ends with 2 and Ctrl-C with 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AGI2Error as error:
            if "RANK" in os.environ:
                from .distributed import let_the_first_speak

                let_the_first_speak(error)
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt
        except (RuntimeError, MemoryError) as error:
            from .step import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            print(f"error: out of memory: {_SMALLER}", file=sys.stderr)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads has had enough
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # importing rich for the help would double its time
    help="Train a GPT-2 on your own text from one TOML file, and use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[str, typer.Argument(metavar="FILE.toml", help="The configuration.")]
RunOrFile = Annotated[
    str, typer.Argument(metavar="FILE.toml", help="The configuration, or a run's folder.")
]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads this at run time)
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key of the file; repeatable."
    ),
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


@app.command()
def train(
    file: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model, and print what it writes."""
    _wait_gently(10_000)
    config = _start(
        file, "training", [*(overrides or []), *(["resume=auto"] if resume else [])], quiet, verbose
    )
    from .evaluation import originality
    from .generation import generate_text
    from .sampling import sampling_keys
    from .training import train_from_config
    from .utils import log

    run = train_from_config(config)
    if not run.is_main:
        return
    samples = []
    for number in range(1, _SAMPLES + 1):
        text = generate_text(
            run.model,
            config.model_seed,
            tokenizer=run.tokenizer,
            seed=config.seed + number,
            **sampling_keys(config),
        )
        samples.append(text)
        print(f"--- sample {number} ---\n{text}\n", flush=True)
    if quiet:
        return
    learned = "\n".join(run.training_text)[:_COMPARED]
    found = [originality(text, learned) for text in samples]
    copied = max((each.longest_copy for each in found), key=len)
    known = sum(each.known_words for each in found) / len(found)
    log.info("%.0f %% of the words it wrote occur in the text it learned from", 100 * known)
    log.info("the longest span copied from it has %d characters: %r", len(copied), copied)
    log.info('write more with: agi2 generate %s "..."', file)


# Samples printed after training, and how much of the text they are compared with.
_SAMPLES = 3
_COMPARED = 20_000_000


@app.command()
def doctor(
    file: ConfigFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say before a run how long it takes, what it needs, and whether it fits."""
    config = _start(file, "training", overrides, quiet, verbose)
    from .doctor import examine

    print(f"keys: every key of {file} is right")
    for line in examine(config):
        print(line, flush=True)


@app.command("verify-resume")
def verify_resume(
    file: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=3, help="Optimizer steps of the runs.")] = 6,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prove that a run that is killed and resumed ends as one that never stopped."""
    config = _start(file, "training", overrides, quiet, verbose)
    from .verify_resume import verify

    for line in verify(config, steps):
        print(line, flush=True)


@app.command()
def plan(
    sources: Annotated[
        list[str], typer.Option("--sources", metavar="FILE...", help="What to learn from.")
    ],
    minutes: Annotated[float, typer.Option(min=0.1, max=1e6, help="How long the run may take.")],
    more: Annotated[Optional[list[str]], typer.Argument(hidden=True)] = None,  # noqa: UP045
    out: Annotated[str, typer.Option(metavar="FILE.toml", help="Where it is written.")] = "my.toml",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Propose a configuration for a text and a time, and say what to expect of it."""
    _set_up_log(quiet, verbose)
    from .planning import propose

    # `--sources A B C`: what follows the first stands by itself.
    for line in propose([*sources, *(more or [])], minutes, Path(out)):
        print(line, flush=True)


@app.command()
def generate(
    file: RunOrFile,
    prompt: Prompt,
    overrides: Overrides = None,
    show_probs: Annotated[
        bool,
        typer.Option("--show-probs", help="Show how likely each token was, and the runners-up."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Go on from a prompt, word by word."""
    _wait_gently(1_000)
    file = _file_of(file)
    config = _start(file, "generation", overrides, quiet, verbose)
    if show_probs and config.samples > 1:
        raise AGI2Error(f"--show-probs shows one text, not {config.samples}: leave samples at 1")
    trained = _load(config, file)
    from .generation import generate_batch, generate_choices, stream_text
    from .sampling import sampling_keys

    given = {
        "tokenizer": trained.tokenizer,
        "seed": _sampling_seed(config),
        **sampling_keys(config),
    }
    start = config.model_seed + prompt
    if show_probs:
        from .token_view import print_choices

        print_choices(prompt, generate_choices(trained.model, start, **given), trained.tokenizer)
    elif config.samples > 1:
        texts = generate_batch(
            trained.model, [start], n=config.samples, return_full_text=False, **given
        )[0]
        for number, text in enumerate(texts, 1):
            print(f"--- sample {number} ---\n{prompt}{text}\n")
    else:
        # The prompt with the first piece: by then every option is known to be right.
        shown = prompt
        for piece in stream_text(trained.model, start, **given):
            print(shown + piece, end="", flush=True)
            shown = ""
        print(shown)


@app.command()
def beam(
    file: RunOrFile,
    prompt: Prompt,
    overrides: Overrides = None,
    results: Annotated[
        Optional[int],  # noqa: UP045 (typer reads this at run time)
        typer.Option("--results", "-n", help="Show so many texts; above 1, each with its score."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search for the likeliest text with beams; nothing is drawn at random."""
    _wait_gently(1_000)
    shown = [] if results is None else [f"beam_results={results}"]
    file = _file_of(file)
    config = _start(file, "generation", [*(overrides or []), *shown], quiet, verbose)
    trained = _load(config, file)
    from .generation import generate_beam_texts
    from .sampling import beam_keys

    texts = generate_beam_texts(
        trained.model,
        config.model_seed + prompt,
        config.beam_size,
        config.max_length,
        config.length_penalty,
        trained.tokenizer,
        results=config.beam_results,
        early_stopping=config.beam_early_stopping,
        groups=config.beam_groups,
        diversity_penalty=config.diversity_penalty,
        **beam_keys(config),
    )
    if config.beam_results == 1:
        print(prompt + texts[0].text)
        return
    for number, each in enumerate(texts, 1):
        print(f"--- text {number}, score {each.score:.4f} ---\n{prompt}{each.text}\n")


@app.command()
def chat(
    file: RunOrFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Talk with a model."""
    _wait_gently(1_000)
    file = _file_of(file)
    config = _start(file, "interactive", overrides, quiet, verbose)
    trained = _load(config, file)
    from .interactive import InteractivePrompt
    from .interactive import chat as talk
    from .sampling import sampling_keys

    prompt = InteractivePrompt(
        trained.model,
        config.max_context_length,
        trained.tokenizer,
        model_seed=config.model_seed,
        seed=_sampling_seed(config),
        **sampling_keys(config),
    )
    talk(prompt)


@app.command(name="eval")
def eval_(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or its configuration.")
    ],
    text: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(metavar="FILE", help="The text, which the model has not learned from."),
    ] = None,
    stride: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="TOKENS", help="Of the sliding window; half of it by default."),
    ] = None,
    tasks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME,NAME", help="Tasks of EleutherAI's lm-eval."),
    ] = None,
    task_path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Where tasks of your own are (YAML files)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say how good a model is: on a text, or in tasks of lm-eval.

    A text is read through a sliding window as long as the model's positions. Each window begins
    --stride tokens after the one before it, the last one so that it ends with the text, and
    predicts the tokens that none before has predicted: all but the text's first token are
    predicted, once. Bytes and words are those of the predicted tokens, as the tokenizer has them.

    \b
    loss                  mean of -ln(probability) of the predicted tokens, in nats
    perplexity per token  exp(loss)
    perplexity per word   exp(loss x tokens / words); words stand between white space
    bits per byte         loss x tokens / ln(2) / bytes of UTF-8
    """
    if (text is None) == (tasks is None):
        raise AGI2Error("eval needs --text FILE or --tasks NAME,NAME, one of them")
    if stride is not None and text is None:
        raise AGI2Error("--stride goes with --text")
    if task_path is not None and tasks is None:
        raise AGI2Error("--task-path goes with --tasks")
    if tasks is not None:
        _check_lm_eval()
    config, trained = _open(run, overrides, quiet, verbose)
    from .cuda_utils import select_precision

    precision = select_precision(config.precision, trained.model.device)
    if config.quantize != "none":
        import torch

        from .quantization import prepare_for_generation

        prepare_for_generation(trained.model, config.quantize)
        precision = torch.float32  # of what goes into products that have their own
    if tasks is not None:
        _evaluate_in_tasks(trained, precision, tasks.split(","), task_path, as_json)
        return
    from .corpus import read_documents
    from .evaluation import evaluate_text
    from .metrics import busy
    from .utils import json_line

    model = trained.model
    positions = model.config.max_seq_len
    stride = max(1, positions // 2) if stride is None else stride
    documents = read_documents(str(text), config.text_field)
    with busy("evaluating"):
        found = evaluate_text(model, documents, trained.tokenizer, stride, precision=precision)
    figures = {
        "loss": found.loss,
        "perplexity_per_token": found.perplexity,
        "perplexity_per_word": found.word_perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "words": found.words,
        "bytes": found.text_bytes,
        "window": positions,
        "stride": stride,
    }
    if as_json:
        print(json_line(figures))
        return
    for name, value in figures.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name.replace('_', ' '):<21} {shown}")


def _check_lm_eval() -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise AGI2Error(
            "--tasks: lm-eval is not installed; install it with uv sync --extra eval or "
            "pip install lm-eval"
        )


def _evaluate_in_tasks(
    trained: TrainedModel,
    precision: torch.dtype,
    names: Sequence[str],
    folder: Path | None,
    as_json: bool,
) -> None:
    """Run tasks of lm-eval, and print their results."""
    from .compare import print_table
    from .lm_eval_adapter import AGI2LM, run_tasks
    from .utils import json_line

    results = run_tasks(AGI2LM(trained, precision), names, folder)
    if as_json:
        print(json_line(results))
        return
    rows = [
        [task, metric, f"{value:.4f}"]
        for task, metrics in results.items()
        for metric, value in metrics.items()
    ]
    print_table(["task", "metric", "value"], rows)


@app.command(name="list")
def list_(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds the runs.")
    ] = Path("trained"),
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the runs in a folder, the newest last."""
    _set_up_log(quiet, verbose)
    from .compare import print_runs

    print_runs(folder)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Runs' folders.")],
    prompt: Annotated[str, typer.Option(help="The text that each goes on from.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Repeats the texts.")] = 1,
    html: Annotated[
        Optional[Path],  # noqa: UP045 (typer reads this at run time)
        typer.Option(metavar="FILE", help="Also draw the curves into this file."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what differs between runs: keys, losses, and what each writes."""
    _set_up_log(quiet, verbose)
    from .compare import compare_runs

    compare_runs(runs, prompt, seed, html)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_NAME",
            help="A Hugging Face GPT-2: a folder, or a name such as openai-community/gpt2.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that it becomes.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a Hugging Face GPT-2 a model to generate with, or to train on from (init_from)."""
    _set_up_log(quiet, verbose)
    from .interop.export import check_free
    from .interop.huggingface import import_huggingface
    from .utils import log

    check_free(out)
    import_huggingface(source, out)
    log.info('%s is there; try it: agi2 generate %s/config.toml "..."', out, out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trained model's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What is written.")],
    format: Annotated[
        str, typer.Option(help="hf (for transformers), gguf (for llama.cpp) or onnx.")
    ] = "hf",
    quantize: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(help="For gguf: q8_0, matrices of 8 bits."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained model in another project's format."""
    _set_up_log(quiet, verbose)
    from .interop.export import export_model
    from .utils import log

    export_model(run, out, format, quantize)
    log.info("%s is there", out)


def _set_up_log(quiet: bool, verbose: bool) -> None:
    import logging
    import platform

    import torch

    from .metrics import setup_logging
    from .utils import log

    setup_logging(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log.debug(
        "agi2 %s, Python %s, PyTorch %s", __version__, platform.python_version(), torch.__version__
    )


def _wait_gently(spins: int) -> None:
    """Let PyTorch's threads, which are not there yet, soon stop waiting at full speed.

    By default they go on for so long that beside other work a step takes several times as long;
    alone, this costs nothing that could be measured. A pass in C (`native.c`) needs still less.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(spins))


def _start(
    file: str, kind: Kind | None, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> Config:
    """Set up the log, then read the configuration."""
    from .config_loader import load_config
    from .utils import log

    _set_up_log(quiet, verbose)
    config = load_config(file, kind, overrides or ())
    for key, value in config.items():
        log.debug("%s = %r", key, value)
    return config


def _file_of(run: str) -> str:
    """A configuration's file: a run's folder has its own."""
    return os.path.join(run, "config.toml") if os.path.isdir(run) else run


def _open(
    run: str, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> tuple[Config, TrainedModel]:
    """What a run's folder holds, or what a configuration has trained."""
    from .cuda_utils import select_device
    from .model_folder import load_trained

    file = _file_of(run)
    config = _start(file, "generation", overrides, quiet, verbose)
    return config, load_trained(config, select_device(config.device), file)


def _load(config: Config, file: str) -> TrainedModel:
    """The model that a configuration has trained, ready to write."""
    from .cuda_utils import select_device
    from .model_folder import load_trained
    from .quantization import prepare_for_generation

    trained = load_trained(config, select_device(config.device), file)
    prepare_for_generation(trained.model, config.quantize)
    return trained


def _sampling_seed(config: Config) -> int:
    """The configured seed, or a new one, logged so that its text can be had again."""
    import secrets

    from .utils import log

    if config.sampling_seed is not None:
        return config.sampling_seed
    seed = secrets.randbelow(2**31)
    log.info("sampling_seed = %d repeats this", seed)
    return seed


def main(arguments: Sequence[str] | None = None, program: str = "agi2") -> None:
    """Run a command and exit: 0, 2 for an error that the user can mend, 130 for Ctrl-C."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        app(args=arguments, prog_name=program)
    finally:
        # While libraries clean up, one more Ctrl-C would only show their tracebacks.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
