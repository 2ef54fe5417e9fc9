"""The training API: one epoch over any dataloader, or a complete run from a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .config import Config
from .console import show_progress, visible
from .cuda_utils import describe_device, select_device
from .data.chat_template import ChatTemplate
from .data.conversation_tokens import decode_conversations
from .data.corpus import check_configured
from .data.planned_windows import PlannedWindows
from .data.preference_windows import PreferenceWindows
from .errors import AGI2Error, one_line
from .evaluation.held_out import reply_to
from .evaluation.loss import evaluate
from .evaluation.preferences import evaluate_pairs
from .evaluation.replies import MAX_REPLIES, describe, save_replies
from .evaluation.report import write_report
from .formats.run_dir import run_folder
from .generation import generate_text
from .inference.requests import with_token_ids
from .inference.sampling import generation_options
from .model import GPT2Model
from .nn.lora import merge_lora
from .tokenizer import Tokenizer
from .train.arguments import (
    Sources,
    configuration_of,
    ignore_tokenizer_key,
)
from .train.distributed import ProcessGroup, init_distributed
from .train.epoch import Criterion, Epoch
from .train.folder_lock import FolderLock
from .train.setup import (
    PreparedData,
    find_checkpoint_to_resume,
    make_model,
    prepare_on_rank_0,
)
from .train.state import History
from .train.step import Batch
from .train.trackers import check_log_to
from .train.trainer import Trainer
from .train.validation import Evaluate, Sample
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
    """Train for one epoch; log progress, the mean train loss, tok/s and memory.

    Args:
        model: the model, which is set to training mode.
        dataloader: yields windows (B, T), in which the targets are the next tokens, or pairs of
            inputs and targets (B, T).
        optimizer: the optimizer of the model's parameters.
        criterion: returns the mean loss of logits (N, V) and targets (N,).
        device: the model's device, to which batches are moved; by default that of its parameters.
        clip_grad_norm: the maximum grad norm, `None` for no clipping. With clipping, a step with
            non-finite gradients is skipped, with a warning.
        scheduler: stepped after each optimizer step; a `ReduceLROnPlateau` is stepped once at the
            end, with the mean loss.
        verbose: whether to log (see `console.visible`).

    Returns:
        The mean loss, in nats per token.

    Raises:
        AGI2Error: if the dataloader is empty, an argument has the wrong type, or the weights are
            float16.
    """
    epoch = Epoch(model, optimizer, criterion, device, clip_grad_norm, scheduler)
    with visible(verbose):
        return epoch.run(dataloader)


@dataclass(frozen=True)
class Run:
    """The result of a finished run."""

    model: GPT2Model
    tokenizer: Tokenizer
    history: History
    folder: Path
    training_text: Sequence[str]
    """The preprocessed training documents, decoded when asked for; empty on ranks other than 0."""
    is_main: bool = True
    """Whether this is rank 0."""


@ignore_tokenizer_key
def train_model(
    model: GPT2Model,
    tokenizer: Tokenizer | str,
    sources: Sources,
    epochs: int | None = None,
    *,
    verbose: bool = True,
    **kwargs: Any,
) -> History:
    """Train a model; save checkpoints and logs to the run folder `output_dir`/`model_name`.

    A configuration may be passed as keyword arguments, although it has a key `tokenizer`, too:
    `train_model(model, tokenizer, **config)`.

    Args:
        model: the model, trained in place on `device`. At the end it has the best weights.
        tokenizer: a tokenizer with at most the model's `vocab_size` tokens. If it is not fitted, it
            is fitted on the training text. A string is used as the key `tokenizer`.
        sources: a file, folder or glob pattern, or several (see `corpus.read_documents`).
        epochs: number of epochs; default 10, or unlimited if `max_steps` or `max_minutes` is given.
        verbose: whether to log (see `console.visible`).
        **kwargs: other keys of the configuration. Architecture keys are ignored, with a warning if
            they differ from the model's.

    Returns:
        The training history: see `Trainer.fit`.

    Raises:
        AGI2Error: if a source, a key or the resumed checkpoint is invalid.
    """
    with visible(verbose):
        keys = {**kwargs, "sources": sources, "epochs": epochs}
        if isinstance(tokenizer, str | os.PathLike):
            return _run(configuration_of(model, {**keys, "tokenizer": tokenizer}), model).history
        if not isinstance(tokenizer, Tokenizer):
            raise AGI2Error(
                f"tokenizer: {type(tokenizer).__name__} is not a tokenizer: make a BPETokenizer or "
                "a BasicTokenizer"
            )
        return _run(configuration_of(model, keys), model, tokenizer).history


def train_from_config(
    config: Config, *, verbose: bool = True, kind: type[Trainer] = Trainer
) -> Run:
    """Train from a configuration: create the tokenizer and the model, and train.

    Args:
        config: the run's configuration.
        verbose: whether to log (see `console.visible`).
        kind: the trainer's class.

    Returns:
        The trained model, its tokenizer and the history.

    Raises:
        AGI2Error: as for `train_model`.
    """
    with visible(verbose):
        return _run(config, kind=kind)


def _run(
    config: Config,
    model: GPT2Model | None = None,
    tokenizer: Tokenizer | None = None,
    kind: type[Trainer] = Trainer,
) -> Run:
    """Train in a single process, or as a rank of a process group under torchrun."""
    threads = torch.get_num_threads()
    try:
        with init_distributed(config.device) as process_group:
            # Locked before its checkpoint is chosen, until its report is written: else another
            # process could train in between, or move the folder away.
            folder_lock = FolderLock(run_folder(config)) if process_group.is_main else nullcontext()
            with folder_lock as lock:
                return _train(config, process_group, model, tokenizer, kind, lock)
    finally:
        torch.set_num_threads(threads)


def _train(
    config: Config,
    process_group: ProcessGroup,
    model: GPT2Model | None,
    tokenizer: Tokenizer | None,
    kind: type[Trainer],
    lock: FolderLock | None = None,
) -> Run:
    """Prepare the data, train, and write the report; create `model` and `tokenizer` if `None`.

    `lock` is the run folder's, on rank 0.
    """
    if process_group.is_main:
        check_log_to(config.log_to)
        check_configured(config)
    checkpoint = process_group.broadcast_from_main(lambda: find_checkpoint_to_resume(config))
    text = prepare_on_rank_0(config, checkpoint, tokenizer, process_group)
    with show_progress("setting up the model"):  # PyTorch imports its compiler for an optimizer
        trainer = make_trainer(
            config, text, model, kind, process_group, is_resumed=checkpoint is not None
        )
    trainer.checkpoints.lock = lock
    trainer.text_lines = text.corpus.lines if text.corpus is not None else []
    _log_sizes(trainer, text)
    is_main = process_group.is_main
    try:
        history = trainer.fit(checkpoint)
        if config.lora_rank is not None:
            merge_lora(trainer.full_model)
            trainer.checkpoints.save_best(trainer.full_model)
        if is_main:
            _reply_to_held_out(trainer, text)
    except BaseException:
        if is_main:
            trainer.checkpoints.warn_if_nothing_is_saved()
        raise
    finally:  # also if the run was interrupted or failed
        if is_main and trainer.has_started:
            _write_report(trainer.folder, text.training_text)
    return Run(
        trainer.full_model, text.tokenizer, history, trainer.folder, text.training_text, is_main
    )


def make_trainer(
    config: Config,
    text: PreparedData,
    model: GPT2Model | None = None,
    kind: type[Trainer] = Trainer,
    process_group: ProcessGroup | None = None,
    is_resumed: bool = False,
) -> Trainer:
    """Create the model and its trainer; write nothing to disk.

    Args:
        config: the run's configuration.
        text: the result of `prepare`.
        model: the model to train; by default a new one.
        kind: the trainer's class.
        process_group: the process group; default: a single process.
        is_resumed: whether a checkpoint is loaded later, so that `init_from` is ignored.

    Raises:
        AGI2Error: if a generation option does not fit the tokenizer, or as for
            `train.setup.make_model`.
    """
    sample = _make_sampler(config, text.tokenizer)
    process_group = process_group or ProcessGroup(select_device(config.device))
    chosen = config.chosen()  # as the user set it: `vocab_size` is changed to the tokenizer's
    model, config = make_model(config, text.tokenizer, process_group, model, is_resumed, text.added)
    trainer = kind(
        model,
        text.tokenizer,
        text.train_data,
        text.val_data,
        config,
        run_folder(config),
        process_group,
        evaluate=_make_evaluator(config),
        sample=sample,
    )
    trainer.chosen = chosen
    return trainer


def _make_evaluator(config: Config) -> Evaluate:
    """Return the function that validates on text and conversations, or on pairs of preferences."""
    if config.preferences:
        return partial(evaluate_pairs, beta=config.dpo_beta)
    return evaluate


def _make_sampler(config: Config, tokenizer: Tokenizer) -> Sample:
    """Return a function that generates samples according to the configuration."""
    with_token_ids(config.generation, tokenizer)  # raises if a bias does not name a token
    options = {**generation_options(config), "model_seed": "", "min_length": 0}

    def sample(model: GPT2Model, tokenizer: Tokenizer, *, max_length: int, seed: int) -> str:
        own = {"tokenizer": tokenizer, "max_length": max_length, "seed": seed}
        return generate_text(model, config.model_seed, **{**options, **own})

    return sample


def _log_sizes(trainer: Trainer, text: PreparedData) -> None:
    """Log the sizes of the text, the model and the batches."""
    log.info(
        "%s: %s; a vocabulary of %s",
        trainer.config.model_name,
        plural(text.characters, "character"),
        plural(text.tokenizer.vocab_size, "token"),
    )
    log.info(
        "%s to train on, %s to validate on",
        plural(len(text.train_data.tokens), "token"),
        f"{len(text.val_data.tokens) if text.val_data else 0:,}",
    )
    log.info(
        "%s; %s an epoch of %s (%d at a time)",
        plural(trainer.model.num_parameters(), "parameter"),
        plural(trainer.batches.steps_per_epoch, "step"),
        plural(trainer.batches.batch_size, "sequence"),
        trainer.runner.micro_batch_size,
    )
    world_size = trainer.process_group.world_size
    log.info(
        "%strains on %s",
        f"each of {world_size} processes " if world_size > 1 else "",
        describe_device(trainer.runner.device),
    )
    windows = trainer.batches.dataset
    if isinstance(windows, PlannedWindows | PreferenceWindows):
        for line in windows.describe():
            log.info("%s", one_line(line))


def _reply_to_held_out(trainer: Trainer, text: PreparedData) -> None:
    """Save the model's replies to held-out conversations or pairs, if there are any."""
    if text.corpus is None or not text.corpus.val.figures.conversations:
        return
    template = ChatTemplate(text.tokenizer)
    conversations = decode_conversations(text.corpus.val, template, MAX_REPLIES)
    with show_progress("replying to held-out conversations"):
        replies = reply_to(trainer.full_model, template, conversations)
    log.info("%s", describe(replies))
    try:
        save_replies(replies, trainer.folder)
    except AGI2Error as error:  # e.g. disk full: must not fail a run whose model is saved
        log.warning("the replies are not saved: %s", error)


def _write_report(folder: Path, training_text: Sequence[str]) -> None:
    try:
        log.info("report: %s", write_report(folder, training_text))
    except AGI2Error as error:  # e.g. disk full: must not fail a run whose model is saved
        log.warning("no report: %s", error)
