"""Training from end to end: one epoch over any batches, or a whole run from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .checkpoint import Checkpoint, find_checkpoint, newest_checkpoint
from .config import FREE_ARCHITECTURE_KEYS, Config
from .config_loader import make_config
from .corpus import check_sources, read_documents
from .cuda_utils import describe_device, memory_stats, select_device
from .dataset import TextDataset, split_documents, tokenize
from .distributed import Processes, began_in_this_launch, launch_id, start_processes
from .errors import AGI2Error
from .lora import add_lora, merge_lora
from .metrics import busy, check_log_to
from .model import GPT2Model
from .model_folder import check_vocabulary, load_model, run_folder
from .report import write_report
from .run_state import History
from .step import Batch, accumulate_gradients, apply_gradients, split_batch
from .tokenizer import Tokenizer, load_tokenizer, new_tokenizer
from .trainer import Trainer
from .utils import log, plural, seed_everything

__all__ = ["Run", "Trainer", "train_epoch", "train_from_config", "train_model"]

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (N, V) and targets (N,) to the mean loss."""


def train_epoch(
    model: nn.Module,
    dataloader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    criterion: Criterion = F.cross_entropy,
    device: torch.device | str = "cpu",
    clip_grad_norm: float | None = 1.0,
) -> float:
    """Train on every batch once.

    Args:
        model: on `device`; left in training mode.
        dataloader: batches (B, T), which are shifted, or (inputs, targets) pairs.
        optimizer: over the model's parameters.
        criterion: mean loss from logits (N, V) and targets (N,).
        device: where to compute.
        clip_grad_norm: the largest gradient norm, `None` for no limit.

    Returns:
        The mean loss per token, in nats.

    Raises:
        AGI2Error: where there is no batch.
    """

    def loss_function(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return criterion(model(inputs).flatten(0, 1), targets.flatten())

    model.train()
    total, tokens = torch.zeros((), dtype=torch.float64, device="cpu"), 0
    for batch in dataloader:
        loss = accumulate_gradients(loss_function, batch, torch.device(device))
        apply_gradients([optimizer], clip_grad_norm)
        count = split_batch(batch)[1].numel()
        total += loss.cpu().double() * count
        tokens += count
    if not tokens:
        raise AGI2Error("the dataloader is empty: there is nothing to train on")
    log.debug("epoch done, memory %s", memory_stats(device))
    return total.item() / tokens


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


def train_model(
    model: GPT2Model,
    tokenizer: Tokenizer,
    /,  # by position, as the configuration has a key `tokenizer` of its own
    sources: str | list[str],
    epochs: int = 10,
    **kwargs: Any,
) -> History:
    """Train a model from start to finish, in the folder `output_dir`/`model_name`.

    Args:
        model: trained in place, on the device that `device` names; ends with its best weights.
        tokenizer: fitted, and not larger than the model.
        sources: what to learn from (see `corpus.read_documents`).
        epochs: passes over the text.
        **kwargs: any other key of the configuration. Keys that describe the architecture are
            the model's own.

    Returns:
        The training history: see `Trainer.fit`.

    Raises:
        AGI2Error: where a source, a key or the resumed checkpoint is wrong.
    """
    given = {**kwargs, "sources": sources, "epochs": epochs}
    # A model has the positions it has: a shorter one trains on shorter windows.
    given = {**given, **model.config.to_keys(), "preset": None}
    given["seq_len"] = min(given.get("seq_len") or 1024, model.config.max_seq_len)
    return _run(make_config(given), model, tokenizer).history


def train_from_config(config: Config) -> Run:
    """Do all that a configuration says: tokenizer, model, training.

    Raises:
        AGI2Error: as `train_model`.
    """
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
        tokenizer: fitted, in place of the configured one.

    Raises:
        AGI2Error: where the text or the tokenizer cannot be had.
    """
    with busy("reading the text"):
        documents = list(read_documents(config.sources, config.text_field))
    train, held_out = split_documents(documents, config.val_fraction, config.seed)
    if tokenizer is None:
        with busy("making the tokenizer"):
            tokenizer = _make_tokenizer(config, train, checkpoint)
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
    chosen = config.chosen()
    if model is None:
        if config.init_from is None:
            config = config.changed(vocab_size=text.tokenizer.vocab_size)
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
    with start_processes(config.device) as processes:
        return _train(config, processes, model, tokenizer)


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
    return text or sent


def _make_tokenizer(
    config: Config, documents: list[str], checkpoint: Checkpoint | None
) -> Tokenizer:
    """The run's own tokenizer where it goes on; else the one configured, fitted if need be."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint.run)
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
