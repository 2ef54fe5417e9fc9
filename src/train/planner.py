"""Plans a run for a corpus and a time limit: chooses its configuration and predicts its result."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..config_checks import vocabulary_for
from ..config_loader import make_config
from ..console import show_progress, visible
from ..cuda_utils import available_memory, memory_stats, select_device
from ..data.documents import ReadOptions, ReadReport
from ..data.readers import iterate_documents, log_counts
from ..data.tokens import count_bytes
from ..errors import AGI2Error
from ..formats.run_dir import run_folder
from ..tokenizer import new_tokenizer
from ..utils import plural
from .distributed import ProcessGroup
from .entropy import text_entropy
from .estimates import model_sizes, predict_memory, training_flops
from .regularization import regularization_for
from .scaling_law import FITTED, REPEAT_DECAY_EPOCHS, SCALING_LAW
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
_SEED: int = Config.model_fields["seed"].default


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


_MAX_ADAMW_RATE = 1e-3
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
    given: frozenset[str] = frozenset()
    """The keys that the user has set."""


@dataclass(frozen=True)
class Corpus:
    """The text that a run is planned for."""

    sources: list[str]
    bytes: int
    entropy: float
    """Bits per byte by a trigram model."""
    sample: str
    """The beginning of the text, to fit a tokenizer and to benchmark on."""

    @classmethod
    def read(
        cls,
        sources: Sequence[str],
        options: ReadOptions | None = None,
        *,
        seed: int | None = None,
        is_logged: bool = True,
    ) -> Corpus:
        """Read all sources.

        Args:
            sources: files, folders, glob patterns, URLs, built-in texts.
            options: how to read them.
            seed: of the run, which chooses its validation text; by default that of the key.
            is_logged: whether to log what was read and skipped; otherwise only if the text is too
                short.

        Raises:
            AGI2Error: if one cannot be read, or the text is too short.
        """
        size = 0
        texts: list[list[str]] = []  # the parts of each document
        remaining = _SAMPLE_CHARACTERS
        report = ReadReport()
        for document in iterate_documents(sources, options, report, is_logged=is_logged):
            size += len(document.text.encode("utf-8", "replace"))
            if remaining > 0:
                if not (texts and document.continues):
                    texts.append([])
                texts[-1].append(document.text[:remaining])
                remaining -= len(texts[-1][-1])
        if size < _MIN_BYTES:
            for source in [] if is_logged else report.sources:
                log_counts(source, are_amounts_logged=True)
            raise AGI2Error(
                f"the text has {plural(size, 'byte')}, too few to plan for: name sources with at "
                f"least {_MIN_BYTES:,}, and some 100,000 for a model that generates words"
            )
        documents = list(map("".join, texts))
        entropy = text_entropy(documents, _SEED if seed is None else seed)
        return cls(list(sources), size, entropy, "\n\n".join(documents))


def choose_shape(
    corpus: Corpus,
    minutes: float,
    device: torch.device,
    name: str,
    given: Mapping[str, Any] | None = None,
) -> Plan:
    """Choose the shape with the best predicted bits per byte, and benchmark it.

    Args:
        corpus: the text.
        minutes: the time limit of the run.
        device: the training device.
        name: the run's name.
        given: keys that the user has set, which the plan keeps.

    Raises:
        AGI2Error: if a given key goes with no shape.
    """
    given = dict(given or {})
    shapes = _candidates(corpus, device, name, given)
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
            plans.append(_estimate(corpus, keys, minutes, speed, given))
        best = min(plan.bits_per_byte for plan in plans)
        # The scaling law ignores overfitting: of equals, take the largest, with fewest epochs.
        chosen = max(i for i, plan in enumerate(plans) if plan.bits_per_byte <= _TIE_FACTOR * best)
        step_seconds = _step_tokens(shapes[chosen]) / speeds[chosen].tokens_per_second
        if time.monotonic() > deadline:
            break
    return plans[chosen]


def _candidates(
    corpus: Corpus, device: torch.device, name: str, given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the keys of the shapes that suit the text, the memory and the given keys."""
    shapes, problems = list[dict[str, Any]](), list[AGI2Error]()
    for shape in SHAPES:
        keys = _keys(corpus, shape, name, given)
        try:
            make_config(keys)
            shapes.append(keys)
        except AGI2Error as error:  # such as model_embd, of which model_head must be a divisor
            problems.append(error)
    if not shapes:
        raise problems[0]
    vocabulary = _vocabulary(corpus, shapes[0])
    shapes = [{**keys, "vocab_size": vocabulary} for keys in shapes]
    max_parameters = _MAX_PARAMETERS_PER_BYTE * corpus.bytes
    usable = [
        keys for keys in shapes if _parameters(keys) <= max_parameters and _fits(keys, device)
    ]
    return usable or shapes[:1]


def _vocabulary(corpus: Corpus, keys: Mapping[str, Any]) -> int:
    """Return the vocabulary size that a run will have, as far as it is known before."""
    config = make_config(keys)
    if config.tokenizer == "bpe":
        if isinstance(config.vocab_size, int):
            return config.vocab_size
        return vocabulary_for(int(_train_bytes(corpus, keys)))
    tokenizer, is_new = new_tokenizer(config.tokenizer, config.vocab_size)
    if is_new:
        tokenizer.fit([corpus.sample])
    return tokenizer.vocab_size


def _train_bytes(corpus: Corpus, keys: Mapping[str, Any]) -> float:
    config = make_config(keys)
    return corpus.bytes * (1 if config.val_sources else 1 - config.val_fraction)


def _step_tokens(keys: dict[str, Any]) -> int:
    return int(keys["batch_size"] * make_config(keys).seq_len)


def _distance(a: int, b: int) -> int:
    return abs(a - b)


def _keys(
    corpus: Corpus, shape: Shape, name: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration of a shape, except the keys that depend on its speed."""
    given = given or {}
    optimizer = given.get("optimizer") or ("muon" if shape.rate > _MAX_ADAMW_RATE else "adamw")
    sizes = {
        "model_layer": shape.layers,
        "model_head": shape.heads,
        "model_embd": shape.width,
    }
    return {
        "sources": corpus.sources,
        "model_name": name,
        "vocab_size": "auto",
        **({} if given.get("preset") else sizes),
        "model_positions": shape.context,
        "position_embedding": "learned",
        "dropout": 0.0,
        "weight_decay": 0.1,
        "batch_size": shape.batch,
        "optimizer": optimizer,
        "learning_rate": shape.rate if optimizer == "muon" else min(shape.rate, _MAX_ADAMW_RATE),
        "lr_schedule": "linear",
        **given,
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


# Keys about the sources, which the sample is not, and about what a benchmark does not log.
_SOURCE_KEYS = ("val_sources", "source_weights", "encoding", "text_field", "preprocess", "log_to")


def _benchmark(keys: dict[str, Any], corpus: Corpus) -> Throughput:
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.txt"
        sample.write_text(corpus.sample, encoding="utf-8")
        # The sample is plain text, which has been read with the keys that change the reading.
        unset = dict.fromkeys(_SOURCE_KEYS)
        plain = {"sources": [str(sample)], "max_steps": 1000, "token_cache": "off"}
        config = make_config({**keys, **unset, **plain})
        text = prepare(config)
        group = ProcessGroup(select_device(config.device))
        model, config = make_model(config, text.tokenizer, group)
        datasets = text.train_data, None
        trainer = Trainer(model, text.tokenizer, *datasets, config, run_folder(config), group)
    seconds, _ = measure_step(trainer, _BENCHMARK_SECONDS)
    tokens = trainer.batches.batch_size * trainer.batches.dataset.mean_targets
    data = text.train_data.tokens
    return Throughput(tokens / seconds, (count_bytes(data, trainer.tokenizer) or 0) / len(data))


def _estimate(
    corpus: Corpus,
    keys: dict[str, Any],
    minutes: float,
    speed: Throughput,
    given: Mapping[str, Any],
) -> Plan:
    """Estimate the steps, epochs and result of a shape within the time limit."""
    train_bytes = _train_bytes(corpus, keys)
    # A batch cannot have more windows than the text.
    per_step = max(1, min(_step_tokens(keys), int(train_bytes / speed.bytes_per_token)))
    affordable = 60 * minutes * _STEPS_TIME_FRACTION * speed.tokens_per_second / per_step
    steps_per_epoch = train_bytes / (per_step * speed.bytes_per_token)
    useful = max(_MIN_STEPS, _MAX_EPOCHS * steps_per_epoch)
    allowed = _allowed_steps(keys, given, steps_per_epoch)
    expected = min(affordable, useful, allowed)
    steps = max(1, int(expected))
    # A shape with steps too long for the time must not seem to see more text than a smaller one.
    seen = (steps if expected >= 1 else expected) * per_step * speed.bytes_per_token
    epochs = seen / train_bytes
    parameters = _parameters(keys)
    by_steps = useful < affordable and math.isinf(allowed)
    text_tokens = train_bytes / speed.bytes_per_token
    dropout, decay = regularization_for(keys["optimizer"], parameters, text_tokens, epochs)
    keys = {
        **keys,
        "vocab_size": "auto",
        "dropout": dropout,
        "weight_decay": decay,
        **({"max_steps": steps} if by_steps else {"max_minutes": max_minutes(minutes)}),
        "eval_interval": max(10, steps // 10),
        "checkpoint_interval": max(10, steps // 5),
        **given,
    }
    bits = SCALING_LAW.bits_per_byte(corpus.entropy, parameters, train_bytes, seen)
    outside = FITTED.why_outside(train_bytes, parameters, epochs, corpus.entropy)
    estimated_minutes = minutes * min(1.0, useful / affordable, allowed / affordable)
    return Plan(
        keys, parameters, steps, steps * per_step, epochs, bits, outside, estimated_minutes,
        frozenset(given),
    )  # fmt: skip


def max_minutes(minutes: float) -> float:
    """Return the key `max_minutes` of a run that takes this long in all."""
    return max(0.01, round(0.95 * minutes, 2))


def _allowed_steps(
    keys: Mapping[str, Any], given: Mapping[str, Any], steps_per_epoch: float
) -> float:
    """Return the most steps that `max_steps` and `epochs` allow, if the user has set them."""
    config = make_config(keys)
    epochs = config.epochs * steps_per_epoch if given.get("epochs") else math.inf
    return min(epochs, math.inf if config.max_steps is None else config.max_steps)
