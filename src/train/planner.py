"""Plans a run for a corpus and a time limit: writes its configuration and predicts its result."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch

from ..config_checks import vocabulary_for
from ..config_loader import make_config
from ..console import show_progress, visible
from ..cuda_utils import (
    available_memory,
    describe_device,
    memory_stats,
    select_device,
)
from ..data.corpus import check_rereadable, check_sources
from ..data.readers import iterate_documents
from ..data.tokens import count_bytes
from ..errors import AGI2Error, mask_urls
from ..formats.run_dir import run_folder
from ..utils import human_bytes, human_time, plural, write_text
from .distributed import ProcessGroup
from .estimates import model_sizes, predict_memory, training_flops
from .scaling_law import FITTED, REPEAT_DECAY_EPOCHS, SCALING_LAW, estimate_entropy
from .setup import make_model, prepare
from .timing import measure_step
from .trainer import Trainer

# Seconds to benchmark each shape; no further shape is benchmarked after `_MAX_BENCHMARK_SECONDS`.
_BENCHMARK_SECONDS = 3.0
_MAX_BENCHMARK_SECONDS = 60.0
# Seconds: a shape with a longer estimated step is not benchmarked.
_MAX_STEP_SECONDS = 10.0
# A shorter text is too short for held-out text (10% of it) and training windows.
_MIN_BYTES = 1000
# Characters of the text that are used for the benchmarks and to estimate its entropy.
_SAMPLE_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Shape:
    """A model size, batch size and learning rate."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    rate: float
    """The learning rate of AdamW; above 1e-3 the transformer blocks are trained with Muon."""


# From small to large. Learning rates of the small shapes are from benchmarks/README.md, those of
# the GPT-2 sizes from Brown et al. (2020), table 2.1.
SHAPES = (
    Shape(2, 2, 64, 128, 8, 1.6e-2),
    Shape(4, 4, 128, 128, 8, 1.6e-2),
    Shape(6, 6, 192, 128, 8, 1.2e-2),
    Shape(6, 8, 256, 256, 8, 1e-2),
    Shape(6, 6, 384, 256, 16, 8e-3),
    Shape(8, 8, 512, 256, 16, 6e-3),
    Shape(12, 12, 768, 1024, 32, 6e-4),
    Shape(24, 16, 1024, 1024, 64, 3e-4),
    Shape(36, 20, 1280, 1024, 64, 2.5e-4),
    Shape(48, 25, 1600, 1024, 64, 2e-4),
)
# Maximum parameters per byte of text. The largest model known to benefit from its size on 1 MB of
# text has 10 (nanoGPT's 10.7 M on tinyshakespeare, with dropout); the runs of the fit have 0.3
# to 4.
_MAX_PARAMETERS_PER_BYTE = 12.0
# Maximum epochs: further ones have almost no value (by `effective_bytes`, a twentieth of that of
# the text). Even the smallest text is trained on for `_MIN_STEPS` steps.
_MAX_EPOCHS = 3 * REPEAT_DECAY_EPOCHS
_MIN_STEPS = 300
# (maximum of parameters / tokens * epochs, dropout): the higher, the more the model overfits.
_DROPOUTS = ((25.0, 0.0), (250.0, 0.1), (math.inf, 0.2))
# Up to 4 epochs, repeated data is as good as new data (Muennighoff et al., 2023).
_FULL_VALUE_EPOCHS = 4.0
# Predictions within this factor are considered equal.
_TIE_FACTOR = 1.01
# The fraction of the time limit for training steps, at the speed of the first seconds: validations
# and samples take time, and a CPU clocks down under load (0.66 to 0.73 in three runs).
_STEPS_TIME_FRACTION = 0.7


@dataclass(frozen=True)
class Plan:
    """A configuration and the predicted size, duration and result of its run."""

    keys: dict[str, Any]
    parameters: int
    steps: int
    tokens: int
    epochs: float
    bits_per_byte: float
    """Predicted by the scaling law, which is also used outside its valid range to rank shapes."""
    outside: str
    """Why `bits_per_byte` is outside the valid range; empty if it is inside."""
    minutes: float
    """The estimated duration, at most the time limit."""


@dataclass(frozen=True)
class Corpus:
    """The text that a run is planned for."""

    sources: list[str]
    bytes: int
    entropy: float
    sample: str
    """The beginning of the text, to fit a tokenizer and to benchmark on."""

    @classmethod
    def read(cls, sources: Sequence[str]) -> Corpus:
        """Read all sources.

        Raises:
            AGI2Error: if one cannot be read, or the text is too short.
        """
        size = 0
        parts: list[str] = []
        remaining = _SAMPLE_CHARACTERS
        for document in iterate_documents(sources):
            size += len(document.text.encode("utf-8", "replace"))
            if remaining > 0:
                if parts and not document.continues:
                    parts.append("\n\n")
                    remaining -= 2
                parts.append(document.text[:remaining])
                remaining -= len(parts[-1])
        if size < _MIN_BYTES:
            raise AGI2Error(
                f"the text has {plural(size, 'byte')}, too few to plan for: name sources with at "
                f"least {_MIN_BYTES:,}, and some 100,000 for a model that generates words"
            )
        sample = "".join(parts)
        return cls(list(sources), size, estimate_entropy(sample.encode("utf-8", "replace")), sample)


def propose(sources: Sequence[str], minutes: float, out: Path) -> Iterator[str]:
    """Plan a run, write its configuration, and yield lines that describe it.

    Args:
        sources: as for `corpus.read_documents`.
        minutes: the time limit of the run on this machine.
        out: the TOML file to write; its stem becomes the run's name.

    Raises:
        AGI2Error: if `out` exists, or a source cannot be read.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise AGI2Error(f"--minutes {minutes}: name a number of minutes above 0")
    if out.exists():
        raise AGI2Error(f"{out} exists: name another file with --out")
    check_sources(sources)
    check_rereadable(sources, "the planned run reads it again")
    corpus = Corpus.read(sources)
    device = select_device("auto")
    yield (
        f"# text: {human_bytes(corpus.bytes)}, {corpus.entropy:.2f} bits per byte after bzip2; "
        f"{describe_device(device)}"
    )
    plan = choose_shape(corpus, minutes, device, out.stem)
    text = to_toml(plan.keys, plan.minutes)
    write_text(out, text, private=mask_urls(text) != text)
    yield mask_urls(text)
    if plan.minutes < minutes:
        yield (
            f"# the run takes {human_time(60 * plan.minutes)} of {human_time(60 * minutes)}: more "
            "epochs over this text would hardly lower the loss; more text would"
        )
    yield (
        f"# predicted: {plural(plan.steps, 'step')} of "
        f"{plural(plan.tokens // plan.steps, 'token')}, {plan.tokens:,} in all, "
        f"{plan.epochs:.3g} epochs over the text"
    )
    yield _prediction_line(plan)
    yield f"# wrote {out}; next: agi2 doctor {out}, agi2 train {out}"


def _prediction_line(plan: Plan) -> str:
    if plan.outside:
        return (
            "# no prediction of the bits per byte, as the scaling law was fitted to other runs: "
            f"{plan.outside}"
        )
    error = 2 * SCALING_LAW.error * plan.bits_per_byte
    return (
        f"# predicted: {plan.bits_per_byte:.2f} ± {error:.2f} bits per byte on held-out text "
        f"(twice the error of the scaling law's fit), for {plan.parameters:,} parameters and the "
        "entropy that bzip2 estimates"
    )


def choose_shape(corpus: Corpus, minutes: float, device: torch.device, name: str) -> Plan:
    """Choose the shape with the best predicted bits per byte, and benchmark it.

    Args:
        corpus: the text.
        minutes: the time limit of the run.
        device: the training device.
        name: the run's name.
    """
    shapes = [_keys(corpus, shape, name) for shape in SHAPES]
    max_parameters = _MAX_PARAMETERS_PER_BYTE * corpus.bytes
    usable = [
        keys for keys in shapes if _parameters(keys) <= max_parameters and _fits(keys, device)
    ]
    shapes = usable or shapes[:1]
    measured: dict[int, Throughput] = {}
    chosen = min(1 if device.type == "cpu" else 6, len(shapes) - 1)
    deadline = time.monotonic() + _MAX_BENCHMARK_SECONDS
    step_seconds = 0.0
    while chosen not in measured and step_seconds <= _MAX_STEP_SECONDS:
        measured[chosen] = _measure(shapes[chosen], corpus)
        plans, speeds = [], []
        for index, keys in enumerate(shapes):
            # Until it is benchmarked, assume the same FLOP/s as the nearest benchmarked shape.
            nearest = min(measured, key=partial(_distance, index))
            flops_per_second = measured[nearest].tokens_per_second * _flops(shapes[nearest])
            speed = replace(measured[nearest], tokens_per_second=flops_per_second / _flops(keys))
            speeds.append(speed)
            plans.append(_estimate(corpus, keys, minutes, speed))
        best = min(plan.bits_per_byte for plan in plans)
        # The scaling law ignores overfitting: of equals, take the largest, with fewest epochs.
        chosen = max(i for i, plan in enumerate(plans) if plan.bits_per_byte <= _TIE_FACTOR * best)
        step_seconds = _step_tokens(shapes[chosen]) / speeds[chosen].tokens_per_second
        if time.monotonic() > deadline:
            break
    return plans[chosen]


def _step_tokens(keys: dict[str, Any]) -> int:
    return int(keys["batch_size"] * keys["model_positions"])


def _distance(a: int, b: int) -> int:
    return abs(a - b)


def dropout_for(parameters: int, text_tokens: float, epochs: float) -> float:
    """Return the dropout rate for this many epochs, from the runs in `benchmarks/README.md`."""
    if epochs <= _FULL_VALUE_EPOCHS:
        return 0.0
    exposure = parameters / text_tokens * epochs
    return next(rate for maximum, rate in _DROPOUTS if exposure <= maximum)


def _keys(corpus: Corpus, shape: Shape, name: str) -> dict[str, Any]:
    """Return the configuration of a shape, except the keys that depend on its speed."""
    return {
        "sources": corpus.sources,
        "model_name": name,
        "vocab_size": vocabulary_for(corpus.bytes),
        "model_layer": shape.layers,
        "model_head": shape.heads,
        "model_embd": shape.width,
        "model_positions": shape.context,
        "position_embedding": "learned",
        "dropout": 0.0,
        "batch_size": shape.batch,
        "optimizer": "muon" if shape.rate > 1e-3 else "adamw",
        "learning_rate": shape.rate,
        "lr_schedule": "linear",
    }


def _fits(keys: dict[str, Any], device: torch.device) -> bool:
    """Return whether training with a micro-batch of one sequence fits into memory."""
    config = make_config(keys)
    memory = predict_memory(config, 1, config.seq_len, device, memory_stats().process)
    return memory.total < available_memory(device)


def _parameters(keys: dict[str, Any]) -> int:
    return model_sizes(make_config(keys)).weights // 4


def _flops(keys: dict[str, Any]) -> float:
    """Return the training FLOPs per token."""
    config = make_config(keys)
    return training_flops(config.architecture, _parameters(keys), config.seq_len)


@dataclass(frozen=True)
class Throughput:
    """The training throughput of a shape on this machine."""

    tokens_per_second: float
    bytes_per_token: float


def _measure(keys: dict[str, Any], corpus: Corpus) -> Throughput:
    """Benchmark training steps of a shape on the sample; log none of this short run's lines."""
    what = f"measuring the speed of a model of {_parameters(keys):,} parameters"
    with show_progress(what), visible(False):
        return _benchmark(keys, corpus)


def _benchmark(keys: dict[str, Any], corpus: Corpus) -> Throughput:
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.txt"
        sample.write_text(corpus.sample, encoding="utf-8")
        config = make_config({**keys, "sources": [str(sample)], "max_steps": 1000})
        config = config.changed(token_cache="off")
        text = prepare(config)
        group = ProcessGroup(select_device(config.device))
        model, config = make_model(config, text.tokenizer, group)
        datasets = text.train_data, None
        trainer = Trainer(model, text.tokenizer, *datasets, config, run_folder(config), group)
    data = trainer.batches.dataset
    seconds, _ = measure_step(trainer, _BENCHMARK_SECONDS)
    tokens = trainer.batches.batch_size * (data.seq_len - 1)
    size = (count_bytes(data.tokens, trainer.tokenizer) or 0) / len(data.tokens)
    return Throughput(tokens / seconds, size)


def _estimate(corpus: Corpus, keys: dict[str, Any], minutes: float, speed: Throughput) -> Plan:
    """Estimate the steps, epochs and result of a shape within the time limit."""
    train_bytes = (1 - make_config(keys).val_fraction) * corpus.bytes
    # A batch cannot have more windows than the text.
    per_step = max(1, min(_step_tokens(keys), int(train_bytes / speed.bytes_per_token)))
    affordable = 60 * minutes * _STEPS_TIME_FRACTION * speed.tokens_per_second / per_step
    useful = max(_MIN_STEPS, _MAX_EPOCHS * train_bytes / (per_step * speed.bytes_per_token))
    steps = max(1, int(min(affordable, useful)))
    seen = steps * per_step * speed.bytes_per_token
    epochs = seen / train_bytes
    parameters = _parameters(keys)
    keys = {
        **keys,
        "dropout": dropout_for(parameters, train_bytes / speed.bytes_per_token, epochs),
        **(
            {"max_steps": steps}
            if useful < affordable
            else {"max_minutes": max(0.01, round(0.95 * minutes, 2))}
        ),
        "eval_interval": max(10, steps // 10),
        "checkpoint_interval": max(10, steps // 5),
    }
    bits = SCALING_LAW.bits_per_byte(corpus.entropy, parameters, train_bytes, seen)
    outside = FITTED.why_outside(train_bytes, parameters, epochs, corpus.entropy)
    estimated_minutes = minutes * min(1.0, useful / affordable)
    return Plan(keys, parameters, steps, steps * per_step, epochs, bits, outside, estimated_minutes)


_COMMENTS = {
    "sources": "The text to train on.",
    "vocab_size": "By the size of the text: fewer tokens for it, but each seen often enough.",
    "model_layer": "The size with the lowest expected loss for the time.",
    "dropout": "Against overfitting, as many weights see the text many times.",
    "batch_size": "In a short time, many small steps reach a lower loss than few large ones.",
    "max_minutes": "The learning rate falls with this clock.",
    "max_steps": "More epochs over this text would hardly lower the loss.",
    "eval_interval": "About ten validations, five checkpoints.",
}


def to_toml(keys: dict[str, Any], minutes: float) -> str:
    """Return the keys as TOML with comments."""
    lines = [f"# Planned for {human_time(60 * minutes)}. resources/default.toml has every key."]
    for key, value in keys.items():
        if key in _COMMENTS:
            lines += ["", f"# {_COMMENTS[key]}"]
        lines.append(tomli_w.dumps({key: value}).rstrip("\n"))
    return "\n".join(lines) + "\n"
