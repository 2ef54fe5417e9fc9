"""Before a run: what it takes, measured where that is cheap, and whether it will fit."""

from __future__ import annotations

import functools
import math
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..config import UNBOUNDED_EPOCHS, Config, GPT2Config
from ..cuda_utils import (
    LOGITS_AT_ONCE,
    activation_bytes,
    available_memory,
    check_memory,
    choose_micro_batch_size,
    describe_device,
    memory_stats,
    select_device,
)
from ..data.corpus import check_sources
from ..dataset import EpochBatches
from ..errors import AGI2Error
from ..formats.model_dir import run_folder
from ..model import GPT2Model
from ..nn.lora import add_lora
from ..train.optimizer import make_optimizers
from ..train.step import NextTokenLoss, accumulate_gradients, apply_gradients
from ..train.trainer import Trainer
from ..training import Prepared, make_trainer, prepare
from ..utils import human_bytes, human_time, keep_freed_memory, plural

# What a disk takes with hashing and syncing, in bytes a second: only for the share of saving.
_DISK_SPEED = 200e6
# Seconds for which steps are measured, beside the warm-up.
_MEASURED_SECONDS = 8.0
# From so many passes on a small model has seen enough of a text.
_MANY_PASSES = 12


@dataclass(frozen=True)
class Memory:
    """What a run takes at its peak, in bytes: of the device's memory, or of the process's."""

    process: int
    """Python, PyTorch, the text and its tokens; nothing on a GPU."""
    weights: int
    """The model's, and the best ones as they are read back at the end."""
    optimizer: int
    """Its state, and what Muon works with."""
    activations: int
    """What one micro-batch keeps for its backward pass, and the gradients that stand beside it."""
    logits: int
    """Of the tokens that the head sees together."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Sizes:
    """What a model and its optimizer hold, in bytes."""

    weights: int
    trained: int
    """Those of the weights that are trained: with LoRA, only its own."""
    head: int
    """The head's part of the trained ones."""
    optimizer: int
    """State that is kept from step to step."""
    muon_work: int
    """What Muon's step takes: every update, and 3.5 copies of the largest group of matrices."""


def model_sizes(config: Config) -> Sizes:
    """Reckoned from a model without memory.

    Args:
        config: a run's, with the vocabulary that its text reached.
    """
    return _sizes(config.architecture, config.optimizer, config.lora_rank)


@functools.cache
def _sizes(architecture: GPT2Config, optimizer: str, lora_rank: int | None) -> Sizes:
    with torch.device("meta"):
        model = GPT2Model(architecture)
        if lora_rank is not None:
            add_lora(model, lora_rank)
    weights = 4 * model.num_parameters()
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = 4 * model.output_weight.numel() if model.output_weight.requires_grad else 0
    if optimizer == "adamw":
        return Sizes(weights, trained, head, 2 * trained, 0)
    groups: dict[tuple[int, ...], int] = defaultdict(int)
    for matrix in (p for p in model.blocks.parameters() if p.dim() == 2):
        rows, columns = sorted(matrix.shape)
        # Query, key and value are three matrices of the smaller size.
        groups[rows, rows if columns == 3 * rows else columns] += 4 * matrix.numel()
    matrices = sum(groups.values())
    work = matrices + 7 * max(groups.values()) // 2
    return Sizes(weights, trained, head, 2 * trained - matrices, work)


def predict_memory(
    config: Config, micro_batch_size: int, seq_len: int, device: torch.device, process: int = 0
) -> Memory:
    """The memory that a run takes at its peak, reckoned from its sizes.

    Args:
        config: the run's, with the vocabulary that its text reached.
        micro_batch_size: sequences at a time.
        seq_len: tokens of a sequence.
        device: what it trains on.
        process: bytes that the process holds before it has a model; of no account on a GPU.
    """
    sizes = model_sizes(config)
    activations = micro_batch_size * activation_bytes(config.architecture, seq_len)
    if micro_batch_size < config.batch_size:
        # The sum so far, and the embeddings' gradients of this part as head and as table. The sum
        # came to lie among the first part's activations: less of what those leave fits the next.
        activations = int(1.4 * activations) + sizes.trained + 2 * sizes.head
    else:
        # Each layer's gradients take the place of its activations, behind the head's.
        activations = max(activations + sizes.head, sizes.trained)
    together = min(micro_batch_size * seq_len, LOGITS_AT_ONCE)
    return Memory(
        process=process if device.type == "cpu" else 0,
        weights=2 * sizes.weights,
        optimizer=sizes.optimizer + sizes.muon_work,
        activations=activations,
        logits=4 * 2 * together * config.vocab_size,
    )


def measure_step(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """Take real steps, without writing anything, and time them.

    Args:
        trainer: a run that has not begun. Its weights change.
        seconds: how long to go on; one step at least.

    Returns:
        The seconds of a whole optimizer step, and of that the optimizer's.
    """
    loss = NextTokenLoss(trainer.model.train())
    rows = trainer.micro_batch_size

    def micro_batch(batch: torch.Tensor) -> float:
        start = time.perf_counter()
        accumulate_gradients(loss, batch, trainer.device, precision=trainer.precision)
        _synchronize(trainer.device)
        return time.perf_counter() - start

    def optimizer_step() -> float:
        start = time.perf_counter()
        apply_gradients(trainer.optimizers, trainer.config.clip_grad_norm)
        _synchronize(trainer.device)
        return time.perf_counter() - start

    # What only the first step has to do (kernels are chosen, states made) is not counted.
    micro_batch(trainer.batches.batch(0)[:1, :65])
    optimizer_step()
    passes, updates = [], []
    until = time.monotonic() + seconds
    for step in range(trainer.total_steps):
        passes.append(micro_batch(trainer.batches.batch(step)[:rows]))
        updates.append(optimizer_step())
        if time.monotonic() + passes[-1] + updates[-1] > until:
            break
    update = statistics.median(updates)
    return statistics.median(passes) * (trainer.batches.batch_size / rows) + update, update


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":  # pragma: needs gpu
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Duration:
    """How long a run takes, and how far it comes."""

    seconds: float
    steps: int
    passes: float
    """Over the training text."""
    per_pass: float
    """Seconds."""


def predict_duration(
    trainer: Trainer, step_seconds: float, update_seconds: float, checkpoint_bytes: int
) -> Duration:
    """The time to the end, with validations and checkpoints roughly included."""
    config = trainer.config
    # A validation is a forward pass, a third of a training step's work; a sample is short.
    each = (step_seconds - update_seconds) / 3 / trainer.batches.batch_size
    windows = len(trainer.val_data) if trainer.val_data is not None else 0
    looked_at = windows
    if config.eval_tokens and trainer.val_data is not None:
        looked_at = min(windows, config.eval_tokens // (trainer.val_data.seq_len - 1))
    aside = looked_at * each / config.eval_interval
    aside += checkpoint_bytes / _DISK_SPEED / config.checkpoint_interval
    steps = trainer.total_steps
    if config.max_minutes is not None:
        steps = max(1, min(steps, int(60 * config.max_minutes / (step_seconds + aside))))
    per_epoch = trainer.batches.steps_per_epoch
    return Duration(
        steps * (step_seconds + aside) + windows * each,
        steps,
        steps / per_epoch,
        per_epoch * (step_seconds + aside),
    )


def disk_needed(config: Config) -> int:
    """Bytes of a run's folder at most.

    The checkpoints kept and the one that is being written, and the best weights as they are now
    and as each checkpoint remembers them.
    """
    sizes = model_sizes(config)
    checkpoint = 2 * sizes.weights + sizes.optimizer
    return (config.keep_checkpoints + 1) * checkpoint + sizes.weights


def free_disk(folder: Path) -> int:
    """Free bytes of the file system where a folder is, or would be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def examine(config: Config) -> Iterator[str]:
    """Line by line, what a run would take, measured here and now. Nothing is written.

    Raises:
        AGI2Error: at the end, where the run does not fit this machine; before, where the text or
            a key is wrong.
    """
    check_sources(config.sources)
    keep_freed_memory()  # as a run does
    device = select_device(config.device)
    text = prepare(config)
    if config.init_from is None:  # else the vocabulary is that model's
        config = config.changed(vocab_size=text.tokenizer.vocab_size)
    check_memory(config.architecture, "the table of positions", 0)  # which is made at once
    yield from _describe_text(text, config)

    batches = EpochBatches(text.train_data, config.batch_size, config.seed)
    seq_len = text.train_data.seq_len - 1
    micro = _micro_batch_size(config, batches, device)
    _warm_up(config)
    memory = predict_memory(config, micro, seq_len, device, memory_stats().process)
    sizes = model_sizes(config)
    room = available_memory(device)
    few = f" ({sizes.trained // 4:,} of them trained)" if sizes.trained < sizes.weights else ""
    yield (
        f"model: {sizes.weights // 4:,} parameters{few}, {plural(config.model_layer, 'layer')}, "
        f"{config.model_embd} wide; {describe_device(device)}"
    )
    yield (
        f"batch: {plural(batches.batch_size, 'sequence')} of {plural(seq_len, 'token')}, {micro} "
        f"at a time; {plural(batches.steps_per_epoch, 'step')} for a pass over the text"
    )
    yield f"memory: about {human_bytes(memory.total)} of {human_bytes(room)} ({_parts(memory)})"
    disk, free = disk_needed(config), free_disk(run_folder(config))
    yield f"disk: {human_bytes(disk)} of {human_bytes(free)} free in {config.output_dir}"

    problems = []
    if memory.total > room:
        problems.append(f"memory: {human_bytes(memory.total)} of {human_bytes(room)}")
    else:
        yield from _measure(config, text, sizes)
    if disk > free:
        problems.append(f"disk: {human_bytes(disk)} of {human_bytes(free)}")
        yield "advice: free some disk, set output_dir to another, or lower keep_checkpoints"
    yield from _advise(config, micro, seq_len, device, memory, room)
    if problems:
        raise AGI2Error(f"it does not fit ({'; '.join(problems)}): see the advice above")
    yield "it fits"


def _describe_text(text: Prepared, config: Config) -> Iterator[str]:
    characters = sum(map(len, text.documents))
    size = sum(len(document.encode()) for document in text.documents)
    yield (
        f"text: {plural(len(text.documents), 'document')}, {plural(characters, 'character')}, "
        f"{human_bytes(size)}"
    )
    held_out = len(text.val_data.tokens) if text.val_data is not None else 0
    yield f"tokens: {len(text.train_data.tokens):,} to train on, {held_out:,} to validate"
    yield f"vocabulary: {plural(text.tokenizer.vocab_size, 'token')}"


def _micro_batch_size(config: Config, batches: EpochBatches, device: torch.device) -> int:
    """Sequences at a time, as a run chooses them."""
    size = config.micro_batch_size
    if size == "auto":
        seq_len = batches.dataset.seq_len
        size = choose_micro_batch_size(config.architecture, seq_len, config.batch_size, device)
    return min(size, batches.batch_size)


def _parts(memory: Memory) -> str:
    return ", ".join(
        f"{field.name} {human_bytes(getattr(memory, field.name))}" for field in fields(memory)
    )


def _warm_up(config: Config) -> None:
    """Load all that the first step of any model loads, so that it counts as the process's."""
    tiny = config.changed(
        preset=None, vocab_size=8, model_layer=1, model_head=1, model_embd=8, model_ff=8
    )
    with torch.device("cpu"):
        model = GPT2Model(tiny).train()
    accumulate_gradients(
        NextTokenLoss(model), torch.zeros(1, 2, dtype=torch.long, device="cpu"), torch.device("cpu")
    )
    apply_gradients(make_optimizers(model, tiny), 1.0)


def _measure(config: Config, text: Prepared, sizes: Sizes) -> Iterator[str]:
    """Speed, and how long the run takes."""
    trainer = make_trainer(config, text)
    step, update = measure_step(trainer, _MEASURED_SECONDS)
    tokens = trainer.batches.batch_size * (trainer.batches.dataset.seq_len - 1)
    precision = str(trainer.precision).removeprefix("torch.")
    uncompiled = ", not compiled as the run will be" if trainer.compiled else ""
    yield f"speed: {step:.3g} s a step, {tokens / step:,.0f} tokens/s ({precision}{uncompiled})"
    found = predict_duration(trainer, step, update, sizes.weights + sizes.optimizer)
    yield (
        f"time: {human_time(found.seconds)} for {plural(found.steps, 'step')}: "
        f"{found.passes:.1f} passes over the text, {human_time(found.per_pass)} each"
    )
    if found.passes < 1 and config.max_minutes is not None:
        yield (
            f"advice: max_minutes = {config.max_minutes:g} is too short for one pass over the "
            f"text: give it {math.ceil(found.per_pass / 6) / 10:g}, or take a smaller model"
        )
    if found.passes > _MANY_PASSES:
        key = "epochs" if config.epochs < UNBOUNDED_EPOCHS else "the time or the steps"
        yield (
            f"advice: {found.passes:.0f} passes are many for this text, it will be learned by "
            f"heart: lower {key}, raise dropout, or set early_stopping_patience"
        )


def _advise(
    config: Config, micro: int, seq_len: int, device: torch.device, memory: Memory, room: int
) -> Iterator[str]:
    """What gradient checkpointing would save; where the run does not fit, all that could help."""
    fits = memory.total <= room
    for what, cost, changes, rows, length in _savings(config, micro, seq_len):
        if fits and changes.keys() != {"gradient_checkpointing"}:
            continue
        less = predict_memory(config.changed(**changes), rows, length, device, memory.process)
        if less.total >= memory.total:
            continue
        yield (
            f"{'note' if fits else 'advice'}: {what}: {human_bytes(less.total)}, saves "
            f"{human_bytes(memory.total - less.total)}, {cost}"
            f"{'' if fits else ' (fits)' if less.total <= room else ' (not enough)'}"
        )


def _savings(
    config: Config, micro: int, seq_len: int
) -> Iterator[tuple[str, str, dict[str, Any], int, int]]:
    """What, at what cost, the changed keys, the micro-batch and the length: cheapest first."""
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
        return  # its vocabulary, layers and width are those of the model it starts from
    if config.vocab_size > 8192:
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
