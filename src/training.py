"""Training from end to end: one epoch over any batches, or a whole run from a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .config import Config
from .console import visible
from .cuda_utils import describe_device
from .data.corpus import check_sources
from .errors import AGI2Error
from .evaluation.loss import evaluate
from .evaluation.report import write_report
from .generation import check_options, generate_text
from .inference.sampling import sampling_keys
from .model import GPT2Model
from .nn.lora import merge_lora
from .tokenizer import Tokenizer
from .train import setup
from .train.arguments import (
    Sources,
    beside_its_key,
    configuration_of,
)
from .train.distributed import Processes, start_processes
from .train.epoch import Criterion, Epoch
from .train.setup import Prepared, find_resumed, prepare_together
from .train.state import History
from .train.step import Batch
from .train.trackers import check_log_to
from .train.trainer import Trainer
from .utils import log, plural

__all__ = ["Run", "Trainer", "train_epoch", "train_from_config", "train_model"]


def train_epoch(
    model: nn.Module,
    dataloader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    criterion: Criterion = F.cross_entropy,
    device: torch.device | str | None = None,
    clip_grad_norm: float | None = 1.0,
    *,
    scheduler: LRScheduler | None = None,
    verbose: bool = True,
) -> float:
    """Train on every batch once, and log progress, the mean loss and the memory.

    Args:
        model: left in training mode.
        dataloader: batches (B, T), which are shifted, or (inputs, targets) pairs.
        optimizer: over the model's parameters.
        criterion: mean loss from logits (N, V) and targets (N,).
        device: where the model is, and the batches go; by default, the model's.
        clip_grad_norm: the largest gradient norm, `None` for no limit. With a limit, a step whose
            gradients are not finite is skipped, with a warning.
        scheduler: stepped after each optimizer step; a `ReduceLROnPlateau` is given the mean loss
            at the end.
        verbose: whether to log (see `console.visible`).

    Returns:
        The mean loss per token, in nats.

    Raises:
        AGI2Error: if there is no batch, an argument is not of its kind, or the weights are float16.
    """
    epoch = Epoch(model, optimizer, criterion, device, clip_grad_norm, scheduler)
    with visible(verbose):
        return epoch.run(dataloader)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    model: GPT2Model
    tokenizer: Tokenizer
    history: History
    folder: Path
    training_text: list[str]
    """What was learned from; empty in all but the main process."""
    is_main: bool = True
    """Whether this is the only process, or the one that writes and prints."""


@beside_its_key
def train_model(
    model: GPT2Model,
    tokenizer: Tokenizer | str,
    sources: Sources,
    epochs: int | None = None,
    *,
    verbose: bool = True,
    **kwargs: Any,
) -> History:
    """Train a model from start to finish, in the folder `output_dir`/`model_name`.

    Every argument works by position and by keyword. A configuration, which has a key `tokenizer` of
    its own, may follow by keyword: `train_model(model, tokenizer, **config)`.

    Args:
        model: trained in place, on the device that `device` names; ends with its best weights.
        tokenizer: not larger than the model. One that is not fitted yet is fitted on the text to
            train on, to at most the model's `vocab_size`. A text is read as the key `tokenizer`.
        sources: one file, folder or pattern to train on, or several (see `corpus.read_documents`).
        epochs: epochs over the text; 10 by default, without a limit if `max_steps` or
            `max_minutes` is given.
        verbose: whether to log (see `console.visible`).
        **kwargs: any other key of the configuration. Keys that describe the architecture are
            the model's own; the log names those that say otherwise.

    Returns:
        The training history: see `Trainer.fit`.

    Raises:
        AGI2Error: if a source, a key or the resumed checkpoint is wrong.
    """
    with visible(verbose):
        given = {**kwargs, "sources": sources, "epochs": epochs}
        if isinstance(tokenizer, str | os.PathLike):
            return _run(configuration_of(model, {**given, "tokenizer": tokenizer}), model).history
        if not isinstance(tokenizer, Tokenizer):
            raise AGI2Error(
                f"tokenizer: {type(tokenizer).__name__} is not a tokenizer: make a BPETokenizer or "
                "a BasicTokenizer"
            )
        return _run(configuration_of(model, given), model, tokenizer).history


def train_from_config(config: Config, *, verbose: bool = True) -> Run:
    """Do all that a configuration says: tokenizer, model, training.

    Args:
        config: the run's.
        verbose: whether to log (see `console.visible`).

    Raises:
        AGI2Error: as `train_model`.
    """
    with visible(verbose):
        return _run(config)


def _run(config: Config, model: GPT2Model | None = None, tokenizer: Tokenizer | None = None) -> Run:
    """Train, alone or as one of several processes."""
    threads = torch.get_num_threads()
    try:
        with start_processes(config.device) as processes:
            return _train(config, processes, model, tokenizer)
    finally:
        torch.set_num_threads(threads)


def _train(
    config: Config, processes: Processes, model: GPT2Model | None, tokenizer: Tokenizer | None
) -> Run:
    """Train, with a model and a tokenizer that are given or made."""
    if processes.is_main:
        check_log_to(config.log_to)
        check_sources(config.sources)
    checkpoint = processes.from_main(lambda: find_resumed(config))
    text = prepare_together(config, checkpoint, tokenizer, processes)
    trainer = make_trainer(
        config, text, model, processes=processes, is_resumed=checkpoint is not None
    )
    model = trainer.model
    log.info(
        "%s: %s, %s to train on, %s to validate; vocabulary %d",
        config.model_name,
        plural(sum(map(len, text.documents)), "character"),
        plural(len(text.train_data.tokens), "token"),
        f"{len(text.val_data.tokens) if text.val_data else 0:,}",
        text.tokenizer.vocab_size,
    )
    log.info(
        "%s; %s an epoch of %s (%d at a time); %s, each: %s",
        plural(model.num_parameters(), "parameter"),
        plural(trainer.batches.steps_per_epoch, "step"),
        plural(trainer.batches.batch_size, "sequence"),
        trainer.micro_batch_size,
        plural(processes.count, "process", "processes"),
        describe_device(trainer.device),
    )
    is_main = processes.is_main
    try:
        history = trainer.fit(checkpoint)
        if config.lora_rank is not None:
            merge_lora(trainer.whole)
            trainer.kept.save_best(trainer.whole)
    except BaseException:
        if is_main:
            trainer.kept.warn_if_nothing_is_saved()
        raise
    finally:  # also of a run that was stopped, or failed
        if is_main and trainer.has_begun:
            _write_report(trainer.folder, text.training_text)
    return Run(trainer.whole, text.tokenizer, history, trainer.folder, text.training_text, is_main)


def make_trainer(
    config: Config,
    text: Prepared,
    model: GPT2Model | None = None,
    kind: type[Trainer] = Trainer,
    processes: Processes | None = None,
    is_resumed: bool = False,
) -> Trainer:
    """A run that has not begun, which evaluates and generates as the configuration says.

    Args:
        config: the run's.
        text: what `prepare` made of it.
        model: trained in place of a new one.
        kind: the class of the run.
        processes: those that train together; by default this one alone.
        is_resumed: whether a checkpoint's weights follow, so that none of `init_from` are needed.

    Raises:
        AGI2Error: if an option of generation does not fit the tokenizer, or as
            `train.setup.make_trainer`.
    """
    options = sampling_keys(config)
    check_options(text.tokenizer, options)

    def sample(model: GPT2Model, tokenizer: Tokenizer, *, max_length: int, seed: int) -> str:
        limits = {"max_length": max_length, "min_length": 0}
        return generate_text(
            model, config.model_seed, tokenizer=tokenizer, seed=seed, **{**options, **limits}
        )

    return setup.make_trainer(
        config, text, model, kind, processes, is_resumed, evaluate=evaluate, sample=sample
    )


def _write_report(folder: Path, training_text: list[str]) -> None:
    try:
        log.info("report: %s", write_report(folder, training_text))
    except AGI2Error as error:  # a full disk, say: the model is trained and saved all the same
        log.warning("no report: %s", error)
