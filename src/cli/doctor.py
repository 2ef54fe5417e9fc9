"""Pre-flight check of a run: estimated time, memory and disk, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from ..config import Config
from ..config_checks import UNBOUNDED_EPOCHS
from ..cuda_utils import (
    available_memory,
    check_memory,
    describe_device,
    memory_stats,
    select_device,
)
from ..data.batches import EpochBatches
from ..data.corpus import check_configured
from ..data.planned_windows import training_batches
from ..errors import AGI2Error
from ..formats.model_dir import run_folder
from ..model import GPT2Model
from ..nn.heap import keep_freed_memory
from ..train.estimates import (
    Memory,
    Sizes,
    choose_micro_batch_size,
    disk_needed,
    free_disk,
    model_sizes,
    predict_memory,
)
from ..train.loss import NextTokenLoss
from ..train.optimizer import make_optimizers
from ..train.setup import PreparedData, prepare
from ..train.step import accumulate_gradients, apply_gradients
from ..train.timing import measure_step, predict_duration
from ..training import make_trainer
from ..utils import human_bytes, human_time, plural

# Duration of the step benchmark in seconds, without the warm-up.
_BENCHMARK_SECONDS = 8.0
# More epochs than this trigger advice against overfitting.
_MANY_EPOCHS = 12


def examine(config: Config) -> Iterator[str]:
    """Estimate the speed, time, memory and disk of a run, from measured steps.

    Writes nothing but the tokens, which the run will use (see `token_cache`).

    Yields:
        Lines of the report.

    Raises:
        AGI2Error: if a source or a key is invalid; after the report, if the run does not fit.
    """
    check_configured(config)
    keep_freed_memory()  # as in training: it affects the measured speed
    device = select_device(config.device)
    text = prepare(config)
    size = text.tokenizer.vocab_size
    if config.init_from is not None:  # the pretrained model may have more rows than tokens
        size = max(size, config.architecture.vocab_size)
    config = config.changed(vocab_size=size)
    # The table of sinusoidal positions is allocated with the model: fail before that.
    check_memory(config.architecture, "the table of positions", 0)
    yield from _describe_text(text, config)

    batches = training_batches(text.train_data, config, text.tokenizer)
    seq_len = batches.dataset.seq_len - 1
    micro = _micro_batch_size(config, batches, device)
    _warm_up(config)
    memory = predict_memory(config, micro, seq_len, device, memory_stats().process)
    sizes = model_sizes(config)
    available = available_memory(device)
    yield _describe_model(config, sizes, device)
    yield _describe_batches(batches, micro)
    yield (
        f"memory: about {human_bytes(memory.total)} of {human_bytes(available)} "
        f"({_memory_breakdown(memory)})"
    )
    disk, free = disk_needed(config), free_disk(run_folder(config))
    yield f"disk: {human_bytes(disk)} of {human_bytes(free)} free in {config.output_dir}"

    problems = []
    if memory.total > available:
        problems.append(f"memory: {human_bytes(memory.total)} of {human_bytes(available)}")
    else:
        yield from _measure(config, text, sizes)
    if disk > free:
        problems.append(f"disk: {human_bytes(disk)} of {human_bytes(free)}")
        yield "advice: free some disk, set output_dir to another, or lower keep_checkpoints"
    yield from _advise(config, micro, seq_len, device, memory, available)
    if problems:
        raise AGI2Error(f"it does not fit ({'; '.join(problems)}): see the advice above")
    yield "it fits"


def _describe_text(text: PreparedData, config: Config) -> Iterator[str]:
    yield (
        f"text: {plural(text.documents, 'document')}, {plural(text.characters, 'character')}, "
        f"{human_bytes(text.size)}"
    )
    held_out = len(text.val_data.tokens) if text.val_data is not None else 0
    yield f"tokens: {len(text.train_data.tokens):,} to train on, {held_out:,} to validate"
    yield f"vocabulary: {plural(text.tokenizer.vocab_size, 'token')}"


def _describe_model(config: Config, sizes: Sizes, device: torch.device) -> str:
    trained_note = (
        f" ({sizes.trained // 4:,} of them trained)" if sizes.trained < sizes.weights else ""
    )
    return (
        f"model: {sizes.weights // 4:,} parameters{trained_note}, "
        f"{plural(config.model_layer, 'layer')}, {config.model_embd} wide; "
        f"{describe_device(device)}"
    )


def _describe_batches(batches: EpochBatches, micro: int) -> str:
    seq_len = batches.dataset.seq_len - 1
    return (
        f"batch: {plural(batches.batch_size, 'sequence')} of {plural(seq_len, 'token')}, {micro} "
        f"at a time; {plural(batches.steps_per_epoch, 'step')} per epoch"
    )


def _micro_batch_size(config: Config, batches: EpochBatches, device: torch.device) -> int:
    """Return the micro-batch size that training would use."""
    size = config.micro_batch_size
    if size == "auto":
        seq_len = batches.dataset.seq_len
        size = choose_micro_batch_size(
            config.architecture, seq_len, config.batch_size, device, config.precision
        )
    return min(size, batches.batch_size)


def _memory_breakdown(memory: Memory) -> str:
    return ", ".join(
        f"{field.name} {human_bytes(getattr(memory, field.name))}" for field in fields(memory)
    )


def _warm_up(config: Config) -> None:
    """Run a step of a tiny model, to load all libraries before the process's memory is measured."""
    tiny = config.changed(
        preset=None, vocab_size=8, model_layer=1, model_head=1, model_embd=8, model_ff=8
    )
    with torch.device("cpu"):
        model = GPT2Model(tiny).train()
    accumulate_gradients(
        NextTokenLoss(model), torch.zeros(1, 2, dtype=torch.long, device="cpu"), torch.device("cpu")
    )
    apply_gradients(make_optimizers(model, tiny), 1.0)


def _measure(config: Config, text: PreparedData, sizes: Sizes) -> Iterator[str]:
    """Measure training steps; yield lines on the throughput and the duration of the run."""
    trainer = make_trainer(config, text)
    step, update = measure_step(trainer, _BENCHMARK_SECONDS)
    tokens = trainer.batches.batch_size * trainer.batches.dataset.mean_targets
    precision = str(trainer.runner.precision).removeprefix("torch.")
    uncompiled = ", not compiled as the run will be" if trainer.runner.compiled else ""
    yield f"speed: {step:.3g} s a step, {tokens / step:,.0f} tokens/s ({precision}{uncompiled})"
    estimate = predict_duration(trainer, step, update, sizes.weights + sizes.optimizer)
    yield (
        f"time: {human_time(estimate.seconds)} for {plural(estimate.steps, 'step')}: "
        f"{estimate.epochs:.3g} epochs over the text, {human_time(estimate.seconds_per_epoch)} each"
    )
    if estimate.epochs < 1 and config.max_minutes is not None:
        yield (
            f"advice: max_minutes = {config.max_minutes:g} is too short for one epoch over "
            f"the text: give it {math.ceil(estimate.seconds_per_epoch / 6) / 10:g}, or take a "
            "smaller model"
        )
    if estimate.epochs > _MANY_EPOCHS:
        key = "epochs" if config.epochs < UNBOUNDED_EPOCHS else "the time or the steps"
        yield (
            f"advice: {estimate.epochs:.0f} epochs are many for this text, the model will overfit: "
            f"lower {key}, raise dropout, or set early_stopping_patience"
        )


def _advise(
    config: Config, micro: int, seq_len: int, device: torch.device, memory: Memory, available: int
) -> Iterator[str]:
    """Yield what gradient checkpointing would save, and, if the run does not fit, other savings."""
    fits = memory.total <= available
    for what, cost, changes, rows, length in _savings(config, micro, seq_len):
        if fits and changes.keys() != {"gradient_checkpointing"}:
            continue
        reduced = predict_memory(config.changed(**changes), rows, length, device, memory.process)
        if reduced.total >= memory.total:
            continue
        yield (
            f"{'note' if fits else 'advice'}: {what}: {human_bytes(reduced.total)}, saves "
            f"{human_bytes(memory.total - reduced.total)}, {cost}"
            f"{'' if fits else ' (fits)' if reduced.total <= available else ' (not enough)'}"
        )


def _savings(
    config: Config, micro: int, seq_len: int
) -> Iterator[tuple[str, str, dict[str, Any], int, int]]:
    """Yield changes that save memory, cheapest first.

    Yields:
        Description, cost, changed keys, micro-batch size and sequence length.
    """
    smaller = [n for n in range(micro - 1, 0, -1) if config.batch_size % n == 0]
    for rows in dict.fromkeys([*smaller[:1], *smaller[-1:]]):
        changes: dict[str, Any] = {"micro_batch_size": rows}
        yield f"micro_batch_size = {rows}", "the same result, about as fast", changes, rows, seq_len
    if not config.gradient_checkpointing:
        slower = "a third more time"
        changes = {"gradient_checkpointing": True}
        yield "gradient_checkpointing = true", slower, changes, micro, seq_len
        if micro > 1:
            both = {**changes, "micro_batch_size": 1}
            yield "the same and micro_batch_size = 1", slower, both, 1, seq_len
    if seq_len > 1:
        half = seq_len // 2
        yield f"seq_len = {half}", "a shorter context", {"seq_len": half}, micro, half
    if config.init_from is not None:
        return  # vocabulary, layers and width are fixed by the pretrained model
    if config.architecture.vocab_size > 8192:
        fewer = {"vocab_size": 8192}
        yield "vocab_size = 8192", "more tokens for the same text", fewer, micro, seq_len
    if config.model_layer > 1:
        layers = config.model_layer // 2
        fewer = {"model_layer": layers}
        yield f"model_layer = {layers}", "a smaller model", fewer, micro, seq_len
    if config.model_embd >= 2 * config.model_head:
        width = config.model_embd // 2 // config.model_head * config.model_head
        narrower = {"model_embd": width}
        yield f"model_embd = {width}", "a smaller model", narrower, micro, seq_len
