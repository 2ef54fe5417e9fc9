"""What a run needs before training: its text, tokenizer, datasets and model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..config import FREE_ARCHITECTURE_KEYS, Config
from ..console import show_progress
from ..cuda_utils import check_memory
from ..data.corpus import read_documents
from ..data.documents import ReadOptions
from ..data.tokens import tokenize
from ..dataset import TextDataset, split_documents
from ..errors import AGI2Error
from ..formats.model_dir import check_vocabulary, load_model, run_folder
from ..model import GPT2Model
from ..nn.lora import add_lora
from ..tokenizer import Tokenizer, load_tokenizer, new_tokenizer
from ..utils import log, seed_everything
from .arguments import copy_vocabulary, fit_to, is_fitted
from .checkpoint import Checkpoint, find_checkpoint, newest_checkpoint
from .distributed import ProcessGroup, began_in_this_launch, launch_id


@dataclass(frozen=True)
class PreparedData:
    """The data and the tokenizer of a run."""

    tokenizer: Tokenizer
    train_data: TextDataset
    val_data: TextDataset | None
    documents: list[str]
    """The complete text; empty on ranks other than 0."""
    training_text: list[str]
    """The preprocessed training documents; empty on ranks other than 0."""


def prepare(
    config: Config, checkpoint: Checkpoint | None = None, tokenizer: Tokenizer | None = None
) -> PreparedData:
    """Read the text, load or fit the tokenizer, and tokenize the text into windows.

    Args:
        config: the run's configuration.
        checkpoint: the checkpoint to resume from, whose tokenizer is used.
        tokenizer: used instead of the configured tokenizer; fitted in place if it is not fitted.

    Raises:
        AGI2Error: if the text cannot be read, or the tokenizer cannot be loaded or fitted.
    """
    with show_progress("reading the text"):
        documents = list(read_documents(config.sources, options=ReadOptions.from_config(config)))
    train, held_out = split_documents(documents, config.val_fraction, config.seed)
    if tokenizer is None or not is_fitted(tokenizer):
        with show_progress("training the tokenizer"):
            tokenizer = _make_tokenizer(config, train, checkpoint, tokenizer)
    with show_progress("tokenizing the text"):
        train_data, val_data = _windows(train, held_out, tokenizer, config.seq_len)
    # Preprocessed as the model's input is: memorized text is searched for in this.
    preprocessed = [tokenizer.preprocess(document) for document in train]
    return PreparedData(tokenizer, train_data, val_data, documents, preprocessed)


def make_model(
    config: Config,
    tokenizer: Tokenizer,
    process_group: ProcessGroup,
    model: GPT2Model | None = None,
    is_resumed: bool = False,
) -> tuple[GPT2Model, Config]:
    """Create a model, or adapt the one given, and move it to the device; seed everything first.

    Args:
        config: the run's configuration.
        tokenizer: the fitted tokenizer, whose vocabulary size a new model has.
        process_group: the process group.
        model: the model to train; by default a new one.
        is_resumed: whether a checkpoint is loaded later, so that `init_from` is ignored.

    Returns:
        The model, and the configuration with its vocabulary size.

    Raises:
        AGI2Error: if the model does not fit into memory, its vocabulary is smaller than the
            tokenizer's, or it does not match the model of `init_from`.
    """
    seed_everything(config.seed)
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    if model is None:
        if config.init_from is None:
            config = config.changed(vocab_size=tokenizer.vocab_size)
        model = _new_model(config, process_group.device)
    check_vocabulary(tokenizer, model)
    if config.init_from is not None and not is_resumed:
        _load_pretrained(Path(config.init_from), model, tokenizer)
    if config.lora_rank is not None:
        add_lora(model, config.lora_rank)
    # FSDP moves the model shard by shard: the full model may not fit on the device.
    if not (config.parallel == "fsdp" and process_group.is_initialized):
        model.to(process_group.device)
    return model, config


def _new_model(config: Config, device: torch.device) -> GPT2Model:
    """Create a model on the CPU, if there is memory to train it on `device`."""
    # Bytes per parameter in fp32: weight, gradient and two AdamW moments. With LoRA few
    # parameters have the latter three; with FSDP all are sharded.
    has_full_state = config.lora_rank is None and config.parallel == "ddp"
    check_memory(config.architecture, "training a model", 16 if has_full_state else 4, device)
    with torch.device("cpu"):  # not the user's default device: the model is moved later
        return GPT2Model(config)


def _load_pretrained(folder: Path, model: GPT2Model, tokenizer: Tokenizer) -> None:
    """Load pretrained weights into a model (`init_from`).

    Raises:
        AGI2Error: if the pretrained model has another architecture or tokenizer.
    """
    trained = load_model(folder)
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        raise AGI2Error(f"init_from: {folder} has another tokenizer than this run: use its own")
    keys, pretrained_keys = model.config.to_keys(), trained.model.config.to_keys()
    for key in sorted(keys.keys() - (FREE_ARCHITECTURE_KEYS - {"vocab_size"})):
        if keys[key] != pretrained_keys[key]:
            raise AGI2Error(
                f"init_from: {folder} has {key} = {pretrained_keys[key]!r}, this run "
                f"{keys[key]!r}: both must be the same"
            )
    model.load_state_dict(trained.model.state_dict())


def find_checkpoint_to_resume(config: Config) -> Checkpoint | None:
    """Return the checkpoint of `resume`, or this launch's newest if torchrun restarted it."""
    if launch_id() is not None:
        newest = newest_checkpoint(run_folder(config))
        if newest is not None and began_in_this_launch(newest.state.get("launch")):
            return newest
    return find_checkpoint(config)


def prepare_on_rank_0(
    config: Config,
    checkpoint: Checkpoint | None,
    tokenizer: Tokenizer | None,
    process_group: ProcessGroup,
) -> PreparedData:
    """Call `prepare` on rank 0; broadcast its tokenizer and tokens, but not the text."""
    text = prepare(config, checkpoint, tokenizer) if process_group.is_main else None

    def without_documents() -> PreparedData:
        assert text is not None
        return replace(text, documents=[], training_text=[])

    received = process_group.broadcast_from_main(without_documents)
    if tokenizer is not None:
        copy_vocabulary(tokenizer, received.tokenizer)
    return text or received


def _make_tokenizer(
    config: Config,
    documents: list[str],
    checkpoint: Checkpoint | None,
    unfitted: Tokenizer | None = None,
) -> Tokenizer:
    """Return the checkpoint's tokenizer if resumed; else the given or configured one, fitted."""
    if checkpoint is not None:
        saved = load_tokenizer(checkpoint.tokenizer)
        return saved if unfitted is None else copy_vocabulary(unfitted, saved)
    if unfitted is not None:
        return fit_to(unfitted, documents, config.architecture.vocab_size)
    tokenizer, is_new = new_tokenizer(
        config.tokenizer,
        config.vocab_size,
        lowercase=config.lowercase,
        fold_whitespace=config.fold_whitespace,
        byte_fallback=config.byte_fallback,
        pretokenizer=config.pretokenizer,
        split_digits=config.split_digits,
        special_tokens=config.special_tokens,
    )
    if is_new:
        tokenizer.fit(documents)
    return tokenizer


def _windows(
    train: list[str], held_out: list[str], tokenizer: Tokenizer, seq_len: int
) -> tuple[TextDataset, TextDataset | None]:
    """Return datasets of windows of seq_len + 1 tokens: seq_len inputs and targets each."""
    tokens = tokenize(train, tokenizer)
    if len(tokens) > 1:
        # The first document follows an end-of-text token, too: an empty prompt starts with it.
        tokens = np.concatenate([tokenize(["", ""], tokenizer), tokens])
    train_data = TextDataset.from_tokens(tokens, seq_len + 1, stride=seq_len)
    tokens = tokenize(held_out, tokenizer)
    if len(tokens) < 2:
        if held_out:
            log.warning("the held-out text is too short to validate on")
        return train_data, None
    # Not longer than the training windows, which a short text makes shorter than seq_len.
    width = min(seq_len, train_data.seq_len - 1)
    return train_data, TextDataset.from_tokens(tokens, width + 1, stride=width)
