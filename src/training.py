"""Training from end to end: one epoch over any batches, or a whole run from a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .config import FREE_ARCHITECTURE_KEYS, Config
from .console import busy, visible
from .cuda_utils import CPU, check_memory, describe_device, select_device
from .data.corpus import check_sources, read_documents
from .dataset import TextDataset, split_documents, tokenize
from .errors import AGI2Error
from .evaluation.report import write_report
from .formats.model_dir import check_vocabulary, load_model, run_folder
from .generation import check_options
from .inference.sampling import sampling_keys
from .model import GPT2Model
from .nn.lora import add_lora, merge_lora
from .tokenizer import Tokenizer, load_tokenizer, new_tokenizer
from .train.arguments import (
    Sources,
    become,
    beside_its_key,
    configuration_of,
    fit_to,
    is_fitted,
)
from .train.checkpoint import Checkpoint, find_checkpoint, newest_checkpoint
from .train.distributed import Processes, began_in_this_launch, launch_id, start_processes
from .train.epoch import Criterion, Epoch
from .train.state import History
from .train.step import Batch
from .train.trackers import check_log_to
from .train.trainer import Trainer
from .utils import log, plural, seed_everything

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


@dataclass(frozen=True)
class Prepared:
    """All that a run has before it has a model."""

    tokenizer: Tokenizer
    train_data: TextDataset
    val_data: TextDataset | None
    documents: list[str]
    """The whole text."""
    training_text: list[str]
    """What is learned from."""


def prepare(
    config: Config, checkpoint: Checkpoint | None = None, tokenizer: Tokenizer | None = None
) -> Prepared:
    """Read the text, make the tokenizer, cut the text into windows of tokens.

    Args:
        config: the run's.
        checkpoint: what the run goes on from: it has its tokenizer.
        tokenizer: in place of the configured one; fitted here if it is not yet.

    Raises:
        AGI2Error: where the text or the tokenizer cannot be had.
    """
    with busy("reading the text"):
        documents = list(read_documents(config.sources, config.text_field))
    train, held_out = split_documents(documents, config.val_fraction, config.seed)
    if tokenizer is None or not is_fitted(tokenizer):
        with busy("making the tokenizer"):
            tokenizer = _make_tokenizer(config, train, checkpoint, tokenizer)
    check_options(tokenizer, sampling_keys(config))  # for the samples, at the end
    with busy("cutting the text into tokens"):
        train_data, val_data = _windows(train, held_out, tokenizer, config.seq_len)
    # As the model sees it: only so can a copy be found.
    seen = [tokenizer.preprocess(document) for document in train]
    return Prepared(tokenizer, train_data, val_data, documents, seen)


def make_trainer(
    config: Config,
    text: Prepared,
    model: GPT2Model | None = None,
    kind: type[Trainer] = Trainer,
    processes: Processes | None = None,
    is_resumed: bool = False,
) -> Trainer:
    """A run that has not begun, and has written nothing.

    Args:
        config: the run's.
        text: what `prepare` made of it.
        model: trained in place of a new one.
        kind: the class of the run.
        processes: those that train together; by default this one alone.
        is_resumed: whether a checkpoint's weights follow, so that none of `init_from` are needed.

    Raises:
        AGI2Error: where the model has fewer tokens than the tokenizer, or does not fit the one of
            `init_from`.
    """
    seed_everything(config.seed)
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    chosen = config.chosen()
    if model is None:
        if config.init_from is None:
            config = config.changed(vocab_size=text.tokenizer.vocab_size)
        # Weights, gradients and AdamW's state; of a part of them, where they are shared or stay.
        is_whole = config.lora_rank is None and config.parallel == "ddp"
        device = processes.device if processes else CPU
        check_memory(config.architecture, "training a model", 16 if is_whole else 4, device)
        with torch.device("cpu"):  # whatever the default device: it moves below
            model = GPT2Model(config)
    check_vocabulary(text.tokenizer, model)
    if config.init_from is not None and not is_resumed:
        _start_from(Path(config.init_from), model, text.tokenizer)
    if config.lora_rank is not None:
        add_lora(model, config.lora_rank)
    processes = processes or Processes(select_device(config.device))
    if not (config.parallel == "fsdp" and processes.are_joined):  # else it moves part by part
        model.to(processes.device)
    folder = run_folder(config)
    data = text.train_data, text.val_data
    trainer = kind(model, text.tokenizer, *data, config, folder, processes)
    trainer.chosen = chosen  # a small text has made a smaller vocabulary than this says
    return trainer


def _start_from(folder: Path, model: GPT2Model, tokenizer: Tokenizer) -> None:
    """Give a model the weights of a trained one.

    Raises:
        AGI2Error: where it has another architecture or tokenizer.
    """
    trained = load_model(folder)
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        raise AGI2Error(f"init_from: {folder} has another tokenizer than this run: use its own")
    ours, theirs = model.config.to_keys(), trained.model.config.to_keys()
    for key in sorted(ours.keys() - (FREE_ARCHITECTURE_KEYS - {"vocab_size"})):
        if ours[key] != theirs[key]:
            raise AGI2Error(
                f"init_from: {folder} has {key} = {theirs[key]!r}, this run {ours[key]!r}: "
                "both must be the same"
            )
    model.load_state_dict(trained.model.state_dict())


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
    checkpoint = processes.from_main(lambda: _find_checkpoint(config))
    text = _prepare_together(config, checkpoint, tokenizer, processes)
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


def _write_report(folder: Path, training_text: list[str]) -> None:
    try:
        log.info("report: %s", write_report(folder, training_text))
    except AGI2Error as error:  # a full disk, say: the model is trained and saved all the same
        log.warning("no report: %s", error)


def _find_checkpoint(config: Config) -> Checkpoint | None:
    """What `resume` names; this launch's own newest checkpoint where torchrun restarted it."""
    if launch_id() is not None:
        newest = newest_checkpoint(run_folder(config))
        if newest is not None and began_in_this_launch(newest.state.get("launch")):
            return newest
    return find_checkpoint(config)


def _prepare_together(
    config: Config,
    checkpoint: Checkpoint | None,
    tokenizer: Tokenizer | None,
    processes: Processes,
) -> Prepared:
    """The main process reads the text; the others are sent what it made of it, but not the text."""
    text = prepare(config, checkpoint, tokenizer) if processes.is_main else None

    def made() -> Prepared:
        assert text is not None
        return replace(text, documents=[], training_text=[])

    sent = processes.from_main(made)
    if tokenizer is not None:
        become(tokenizer, sent.tokenizer)
    return text or sent


def _make_tokenizer(
    config: Config,
    documents: list[str],
    checkpoint: Checkpoint | None,
    unfitted: Tokenizer | None = None,
) -> Tokenizer:
    """The run's own tokenizer if it is resumed; else the one given or configured, fitted."""
    if checkpoint is not None:
        saved = load_tokenizer(checkpoint.tokenizer)
        return saved if unfitted is None else become(unfitted, saved)
    if unfitted is not None:
        return fit_to(unfitted, documents, config.vocab_size)
    tokenizer, is_new = new_tokenizer(
        config.tokenizer,
        config.vocab_size,
        lowercase=config.lowercase,
        fold_whitespace=config.fold_whitespace,
    )
    if is_new:
        tokenizer.fit(documents)
    return tokenizer


def _windows(
    train: list[str], held_out: list[str], tokenizer: Tokenizer, seq_len: int
) -> tuple[TextDataset, TextDataset | None]:
    """Windows of seq_len + 1 tokens, so that each step trains on seq_len targets."""
    tokens = tokenize(train, tokenizer)
    if len(tokens) > 1:
        # The first document, too, stands after an end of text: what an empty prompt starts from.
        tokens = np.concatenate([tokenize(["", ""], tokenizer), tokens])
    train_data = TextDataset.from_tokens(tokens, seq_len + 1, stride=seq_len)
    tokens = tokenize(held_out, tokenizer)
    if len(tokens) < 2:
        if held_out:
            log.warning("the held-out text is too short to validate on")
        return train_data, None
    # Never longer than what the model trains on.
    width = min(seq_len, train_data.seq_len - 1)
    return train_data, TextDataset.from_tokens(tokens, width + 1, stride=width)
