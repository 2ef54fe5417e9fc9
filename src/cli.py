"""The command `agi2`, and the four scripts: subcommands only.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer
import typer.core

from . import __version__, completion
from .errors import AGI2Error, masked, one_line
from .startup import limit_spinning, loading

if TYPE_CHECKING:
    import torch

    from .config import Config
    from .config_loader import Kind
    from .model_folder import TrainedModel


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
                from .distributed import let_the_first_speak

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
    from .step import is_out_of_memory

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
_MODEL = "A run's folder, its TOML file, or a model's folder."
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=_MODEL, autocompletion=completion.complete_model)
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


@app.command()
def train(
    file: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model, and print what it generates."""
    limit_spinning(10_000)
    overrides = [*(overrides or []), *(["resume=auto"] if resume else [])]
    with loading(not quiet):
        config = _start_run(file, overrides, quiet, verbose)
        from .run_folder import check_output

        check_output(config)
        from .console import print_text
        from .evaluation import originality
        from .generation import generate_text
        from .sampling import sampling_keys
        from .training import train_from_config
        from .utils import log, plural

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
        print_text(f"--- sample {number} ---\n{text}\n")
    if quiet:
        return
    learned = "\n".join(run.training_text)[:_COMPARED]
    found = [originality(text, learned) for text in samples]
    copied = max((each.longest_copy for each in found), key=len)
    known = sum(each.known_words for each in found) / len(found)
    log.info("%.0f %% of the words of the samples occur in the training text", 100 * known)
    length = plural(len(copied), "character")
    log.info("the longest span copied from it has %s: %r", length, copied)
    # The folder: a file may have been overridden by --set.
    log.info('generate more with: agi2 generate %s "..."', shlex.quote(str(run.folder)))


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
    with loading(not quiet):
        config = _start_run(file, overrides, quiet, verbose)
        from .console import print_line
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
    """Prove that a run that is killed and resumed ends as one that never stopped."""
    with loading(not quiet):
        config = _start_run(file, overrides, quiet, verbose)
        from .console import print_line
        from .verify_resume import verify

    for line in verify(config, steps):
        print_line(line)


@app.command()
def plan(
    sources: Annotated[
        list[str], typer.Option("--sources", metavar="FILE...", help="The text to train on.")
    ],
    minutes: Annotated[float, typer.Option(min=0.1, max=1e6, help="How long the run may take.")],
    more: Annotated[Optional[list[str]], typer.Argument(hidden=True)] = None,  # noqa: UP045
    out: Annotated[str, typer.Option(metavar="FILE.toml", help="Where it is written.")] = "my.toml",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Propose a configuration for a text and a time, and say what to expect of it."""
    sources = [*sources, *(more or [])]  # `--sources A B C`: what follows the first stands alone
    with loading(not quiet):
        _set_up_log(quiet, verbose)
        from .console import print_line
        from .corpus import check_sources

        if os.path.lexists(out):
            raise AGI2Error(f"{out} exists: name another file with --out")
        check_sources(sources)
        from .planning import propose

    for line in propose(sources, minutes, Path(out)):
        print_line(line)


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
        typer.Option("--show-probs", help="Show how likely each token was, and the runners-up."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Continue a prompt, token by token."""
    limit_spinning(1_000)
    flags = _as_overrides(temperature, top_k, max_length, seed)
    with loading(not quiet):
        config, file = _open(model, "generation", [*(overrides or []), *flags], quiet, verbose)
        if show_probs and config.samples > 1:
            raise AGI2Error(
                f"--show-probs shows one text, not {config.samples}: leave samples at 1"
            )
        from .console import print_text
        from .generation import generate_batch, generate_choices, stream_text
        from .sampling import sampling_keys
        from .token_view import print_choices

        trained = _load(config, file)
    given = {
        "tokenizer": trained.tokenizer,
        "seed": _sampling_seed(config),
        **sampling_keys(config),
    }
    start = config.model_seed + prompt
    if show_probs:
        print_choices(prompt, generate_choices(trained.model, start, **given), trained.tokenizer)
    elif config.samples > 1:
        texts = generate_batch(
            trained.model, [start], n=config.samples, return_full_text=False, **given
        )[0]
        for number, text in enumerate(texts, 1):
            print_text(f"--- sample {number} ---\n{prompt}{text}\n")
    else:
        # The prompt with the first piece: by then every option is known to be right.
        shown = prompt
        for piece in stream_text(trained.model, start, **given):
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
        typer.Option("--results", "-n", help="Show so many texts; above 1, each with its score."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search for the likeliest text with beams; nothing is drawn at random."""
    limit_spinning(1_000)
    flags = [] if results is None else [f"beam_results={results}"]
    flags += _as_overrides(max_length=max_length)
    with loading(not quiet):
        config, file = _open(model, "generation", [*(overrides or []), *flags], quiet, verbose)
        from .console import print_text
        from .generation import generate_beam_texts
        from .sampling import beam_keys

        trained = _load(config, file)
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
    """Talk with a model."""
    limit_spinning(1_000)
    flags = _as_overrides(temperature, top_k, max_length, seed)
    with loading(not quiet):
        config, file = _open(model, "interactive", [*(overrides or []), *flags], quiet, verbose)
        from .interactive import InteractivePrompt
        from .interactive import chat as talk
        from .sampling import sampling_keys

        trained = _load(config, file)
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
    model: Model,
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
    with loading(not quiet):
        config, file = _open(model, "generation", overrides, quiet, verbose)
        from .corpus import read_documents

        # Before PyTorch is imported: what cannot be read is said at once.
        documents = [] if text is None else list(read_documents(text, config.text_field))
        trained = _load(config, file)
        from .cuda_utils import select_precision

    precision = select_precision(config.precision, trained.model.device)
    if config.quantize != "none":
        import torch

        precision = torch.float32  # of what goes into products that have their own
    if tasks is not None:
        _evaluate_in_tasks(trained, precision, tasks.split(","), task_path, as_json)
    else:
        _evaluate_on_text(trained, precision, documents, stride, as_json)


def _evaluate_on_text(
    trained: TrainedModel,
    precision: torch.dtype,
    documents: Sequence[str],
    stride: int | None,
    as_json: bool,
) -> None:
    """Evaluate a model on a text, and print figures."""
    from .evaluation import evaluate_text
    from .utils import json_line

    model = trained.model
    positions = model.config.max_seq_len
    stride = max(1, positions // 2) if stride is None else stride
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
    reasons = {
        "perplexity_per_word": found.no_word_perplexity,
        "bits_per_byte": found.no_bits_per_byte,
    }
    reasons = {name: why for name, why in reasons.items() if why}
    if as_json:
        print(json_line({**figures, "reasons": reasons} if reasons else figures))
        return
    for name, value in figures.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if value else "0"
        if value is None:
            shown = f"- ({reasons[name]})"
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
    from .console import print_table
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
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL...", help=_MODEL, autocompletion=completion.complete_model
        ),
    ],
    prompt: Annotated[str, typer.Option(help="The text that each continues.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Repeats the texts.")] = 1,
    html: Annotated[
        Optional[Path],  # noqa: UP045 (typer reads this at run time)
        typer.Option(metavar="FILE", help="Also draw the curves into this file."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what differs between runs: keys, losses, and what each generates."""
    with loading(not quiet):
        _set_up_log(quiet, verbose)
        from .compare import compare_runs

        folders = [_folder_of(model) for model in models]
    compare_runs(folders, prompt, seed, html)


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
    with loading(not quiet):
        _set_up_log(quiet, verbose)
        from .interop.export import check_free

        check_free(out)
        from .interop.huggingface import import_huggingface
        from .utils import log

    import_huggingface(source, out)
    log.info('%s is there; try it: agi2 generate %s "..."', out, shlex.quote(str(out)))


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What is written.")],
    format: Annotated[
        str,
        typer.Option(
            help="hf (for transformers), gguf (for llama.cpp) or onnx.",
            autocompletion=completion.complete_format,
        ),
    ] = "hf",
    quantize: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(
            help="For gguf: q8_0, matrices of 8 bits.",
            autocompletion=completion.complete_quantization,
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained model in another project's format."""
    with loading(not quiet):
        _set_up_log(quiet, verbose)
        from .interop.export import check_export, export_model
        from .utils import log

        folder = _folder_of(model)
        check_export(folder, out, format, quantize)
        import torch  # noqa: F401

    export_model(folder, out, format, quantize)
    log.info("%s is there", out)


def _set_up_log(quiet: bool, verbose: bool) -> None:
    import logging
    import platform
    from importlib.metadata import version

    from .console import setup_logging
    from .utils import log

    setup_logging(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log.debug(
        "agi2 %s, Python %s, PyTorch %s", __version__, platform.python_version(), version("torch")
    )


def _start(
    file: str, kind: Kind, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> Config:
    """Set up the log, then read the configuration."""
    from .config_loader import load_config
    from .utils import log

    _set_up_log(quiet, verbose)
    config = load_config(file, kind, overrides or ())
    for key, value in config.items():
        log.debug("%s = %r", key, masked(value))
    return config


def _start_run(
    argument: str, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> Config:
    """The configuration of a run, with everything checked that needs no PyTorch."""
    from .corpus import check_sources
    from .metrics import check_log_to
    from .run_folder import check_resume, check_resumed, config_file, naming

    place = naming(argument)  # a folder that is named is that run's, wherever it was moved
    config = _start(config_file(argument), "training", [*place, *(overrides or [])], quiet, verbose)
    if not int(os.environ.get("RANK", 0)):  # of several processes only the first reads the text
        check_log_to(config.log_to)
        check_sources(config.sources)
        check_resume(config)
        check_resumed(config, argument)
    return config


def _open(
    argument: str, kind: Kind, overrides: Sequence[str] | None, quiet: bool, verbose: bool
) -> tuple[Config, str]:
    """The configuration of a trained model, and the file that it stands in."""
    from .run_folder import check_weights, config_file, folder_of

    file = config_file(argument)
    config = _start(file, kind, overrides, quiet, verbose)
    check_weights(folder_of(config, argument), argument)
    return config, argument


def _folder_of(argument: str) -> Path:
    """The folder of a run or a model, by any of its names."""
    from .config_loader import load_config
    from .run_folder import config_file, folder_of

    if os.path.isdir(argument):
        config_file(argument)  # raises if it is another kind of folder
        return Path(argument)
    return folder_of(load_config(argument, "generation"), argument)


def _as_overrides(
    temperature: float | None = None,
    top_k: int | None = None,
    max_length: int | None = None,
    seed: int | None = None,
) -> list[str]:
    """The flags for keys that are often set, as `--set` has them."""
    given = {"temperature": temperature, "max_length": max_length, "sampling_seed": seed}
    flags = [f"{key}={value}" for key, value in given.items() if value is not None]
    return flags + ([] if top_k is None else [f"top_k={top_k or 'null'}"])


def _load(config: Config, file: str) -> TrainedModel:
    """The model that a configuration has trained, ready to generate."""
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


def _replace_closed_streams() -> None:
    """Put the null device where a standard stream was closed before the start.

    Else the next file that is opened has its number, and whatever C code prints goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Numbers are given from below: in this order, each has its own again.
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def main(arguments: Sequence[str] | None = None, program: str = "agi2") -> None:
    """Run a command and exit: 0, 2 for an error that the user can mend, 130 for Ctrl-C."""
    _replace_closed_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    if os.environ.get("_AGI2_COMPLETE") == "complete_bash":
        completion.join_words(os.environ)
    try:
        app(args=arguments, prog_name=program)
    except OSError as error:  # standard error does not take what typer says of a wrong argument
        raise SystemExit(2) from error
    finally:
        # While libraries clean up, one more Ctrl-C would only show their tracebacks.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
