"""The command eval: loss and perplexity on a text, or tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import AGI2Error
from .common import (
    Model,
    Overrides,
    Quiet,
    Verbose,
    app,
    load_for_generation,
    open_model,
)
from .startup import loading

if TYPE_CHECKING:
    import torch

    from ..formats.model_dir import TrainedModel


@app.command(name="eval")
def eval_(
    model: Model,
    text: Annotated[
        Optional[str],  # noqa: UP045 (typer reads this at run time)
        typer.Option(metavar="FILE", help="Text that the model was not trained on."),
    ] = None,
    stride: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="TOKENS", help="Window stride; half of the window by default."),
    ] = None,
    tasks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME,NAME", help="Tasks of EleutherAI's lm-eval."),
    ] = None,
    task_path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Folder of custom tasks (YAML files)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a model on a text, or in tasks of lm-eval.

    A text is evaluated in sliding windows of the model's context length. Each window starts
    --stride tokens after the previous one, the last one ends with the text, and a window scores
    only the tokens that no earlier window has scored: each token but the first is scored once.
    p is the probability of a scored token. Bytes (of UTF-8) and words (separated by white space)
    are those of the scored tokens, after the tokenizer's preprocessing.

    \b
    loss                  mean of -ln(p), in nats
    perplexity per token  exp(loss)
    perplexity per word   exp(loss x tokens / words)
    bits per byte         loss x tokens / ln(2) / bytes
    """
    _check_flags(text, stride, tasks, task_path)
    with loading(not quiet):
        config, file = open_model(model, "generation", overrides, quiet, verbose)
        from ..data.corpus import check_fits_memory, read_documents
        from ..data.documents import ReadOptions

        # A model's folder is data: its configuration names no code that is run here.
        options = replace(ReadOptions.from_config(config), preprocess=None)
        # Before importing PyTorch, so that an unreadable file is reported at once.
        documents = []
        if text is not None:
            check_fits_memory(text, options)
            documents = list(read_documents(text, options=options))
        trained = load_for_generation(config, file)
        from ..cuda_utils import select_precision

    precision = select_precision(config.precision, trained.model.device)
    if config.quantize != "none":
        import torch

        precision = torch.float32  # no autocast: quantized layers use their own types
    if tasks is not None:
        _evaluate_in_tasks(trained, precision, tasks.split(","), task_path, as_json)
    else:
        _evaluate_on_text(trained, precision, documents, stride, as_json)


def _check_flags(
    text: str | None, stride: int | None, tasks: str | None, task_path: Path | None
) -> None:
    """Check which flags are given together, and that lm-eval is installed if it is needed."""
    if (text is None) == (tasks is None):
        raise AGI2Error("eval needs either --text FILE or --tasks NAME,NAME")
    if stride is not None and text is None:
        raise AGI2Error("--stride goes with --text")
    if task_path is not None and tasks is None:
        raise AGI2Error("--task-path goes with --tasks")
    if tasks is not None:
        _check_lm_eval()


def _evaluate_on_text(
    trained: TrainedModel,
    precision: torch.dtype,
    documents: Sequence[str],
    stride: int | None,
    as_json: bool,
) -> None:
    """Evaluate a model on a text; print loss, perplexity and bits per byte."""
    from ..evaluation.loss import evaluate_text
    from ..utils import json_line

    model = trained.model
    positions = model.config.max_seq_len
    stride = max(1, positions // 2) if stride is None else stride
    evaluation = evaluate_text(model, documents, trained.tokenizer, stride, precision=precision)
    metrics = {
        "loss": evaluation.loss,
        "perplexity_per_token": evaluation.perplexity,
        "perplexity_per_word": evaluation.word_perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
        "tokens": evaluation.tokens,
        "words": evaluation.words,
        "bytes": evaluation.text_bytes,
        "window": positions,
        "stride": stride,
    }
    reasons = {
        "perplexity_per_word": evaluation.no_word_perplexity,
        "bits_per_byte": evaluation.no_bits_per_byte,
    }
    reasons = {name: reason for name, reason in reasons.items() if reason}
    if as_json:
        print(json_line({**metrics, "reasons": reasons} if reasons else metrics))
        return
    for name, value in metrics.items():
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
    """Run tasks of lm-eval and print their metrics."""
    from ..evaluation.harness import AGI2LM, run_tasks
    from ..utils import json_line
    from .table import print_table

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
