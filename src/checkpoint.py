"""A model, or a run, to and from a folder. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .config import Config, GPT2Config
from .config_loader import load_config, save_config
from .errors import AGI2Error
from .model import GPT2Model
from .tokenizer import Tokenizer, load_tokenizer
from .utils import atomic_path, log, sha256_of, sync_file, sync_folder, writing

WEIGHTS = "model.safetensors"
CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
STATE = "state.json"
TENSORS = "training.safetensors"
MANIFEST = "manifest.json"


def run_folder(config: Mapping[str, Any]) -> Path:
    """The folder of the run that a configuration names."""
    return Path(config["output_dir"]) / config["model_name"]


def save_weights(model: GPT2Model, path: Path) -> None:
    """Write a model's weights, whole or not at all. Equal weights give equal files."""
    with atomic_path(path) as beside:
        _save_tensors(model.state_dict(), beside)


def save_model(model: GPT2Model, tokenizer: Tokenizer, config: Config, folder: Path) -> None:
    """Write all that `load_model` needs: weights, tokenizer and configuration."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    describe_model(model.config, tokenizer, config, folder)
    save_weights(model, folder / WEIGHTS)


def describe_model(
    architecture: GPT2Config, tokenizer: Tokenizer, config: Config, folder: Path
) -> None:
    """Write a model's configuration and tokenizer into its folder."""
    save_config(config.changed(**architecture.to_keys()), folder / CONFIG)
    with writing(folder):
        tokenizer.save(folder)


@dataclass(frozen=True)
class TrainedModel:
    """What a folder holds."""

    model: GPT2Model
    tokenizer: Tokenizer
    config: Config


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Read a trained model, in evaluation mode.

    Raises:
        AGI2Error: where a file is missing or broken, or weights, tokenizer and configuration
            disagree.
    """
    folder = Path(folder)
    config = load_config(folder / CONFIG)
    tokenizer = load_tokenizer(folder)
    # Built without memory, then given the file's tensors: nothing is drawn or copied in vain.
    with torch.device("meta"):
        model = GPT2Model(config)
    check_vocabulary(tokenizer, model)
    load_weights(model, folder / WEIGHTS, assign=True)
    return TrainedModel(model.to(device).eval(), tokenizer, config)


def load_trained(config: Config, device: torch.device | str = "cpu") -> TrainedModel:
    """Read the model that a configuration names and has trained.

    Raises:
        AGI2Error: where it is not trained yet, or was trained with another architecture than the
            one written in this configuration.
    """
    folder = run_folder(config)
    if not (folder / WEIGHTS).is_file():
        raise AGI2Error(
            f"{folder}: no trained model there; train it first: agi2 train with this file"
        )
    trained = load_model(folder, device)
    # A smaller text makes a smaller vocabulary, and the other two change no weight.
    names = set(config.architecture.to_keys()) - {
        "vocab_size",
        "dropout",
        "gradient_checkpointing",
    }
    for key in sorted(names & config.model_fields_set):
        wanted, has = config.architecture.to_keys()[key], trained.config.architecture.to_keys()[key]
        if wanted != has:
            raise AGI2Error(
                f"{folder} was trained with {key} = {has!r}, the configuration says {wanted!r}: "
                "train again, or set it back"
            )
    return trained


def check_vocabulary(tokenizer: Tokenizer, model: GPT2Model) -> None:
    """Raise where the tokenizer has ids that the model does not.

    Raises:
        AGI2Error: with both sizes.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise AGI2Error(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}: they do not belong together"
        )


def load_weights(model: GPT2Model, path: Path, *, assign: bool = False) -> None:
    """Fill a model from a file.

    Args:
        model: of the same architecture.
        path: a safetensors file.
        assign: take the file's tensors instead of copying them.

    Raises:
        AGI2Error: where the file is missing, broken, or of another shape.
    """
    tensors = _load_tensors(path)
    expected = model.state_dict()
    for name in expected.keys() | tensors.keys():
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        theirs = tuple(tensors[name].shape) if name in tensors else "nothing"
        if ours != theirs:
            raise AGI2Error(
                f"{path} holds a model of another shape: {name} is {theirs}, not {ours}"
            )
    model.load_state_dict(tensors, assign=assign)


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise AGI2Error(f"cannot write {path}: {error}; free some room") from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise AGI2Error(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise AGI2Error(f"{path} is damaged: {error}") from error


# Checkpoints: everything that a run needs to go on as if it had never stopped.


def optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """The optimizers' states as named tensors; together they cover each parameter once."""
    return {
        f"optimizer.{name}.{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"optimizer.{names[parameter]}."
            optimizer.state[parameter] = {
                key.removeprefix(prefix): value.to(parameter.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }


def save_checkpoint(
    folder: Path,
    step: int,
    model: GPT2Model,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint beside its place, sync it, and rename it into place.

    Args:
        folder: the run's.
        step: optimizer steps done.
        model: its weights.
        tensors: optimizer state and random states.
        state: everything else, as JSON.
        keep: older checkpoints beyond so many are deleted, once this one is whole.

    Raises:
        AGI2Error: where it cannot be written; older checkpoints are then as they were.
    """
    place = folder / CHECKPOINTS / f"step-{step:08d}"
    beside = place.with_name(f".{place.name}.partial")
    with writing(place):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            _save_tensors(model.state_dict(), beside / WEIGHTS)
            _save_tensors(tensors, beside / TENSORS)
            (beside / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            hashes = {name: sha256_of(beside / name) for name in (WEIGHTS, TENSORS, STATE)}
            (beside / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
            for file in beside.iterdir():
                sync_file(file)
            sync_folder(beside)
            if place.exists():  # a run that went back to an older checkpoint comes by again
                shutil.rmtree(place)
            os.rename(beside, place)
            sync_folder(place.parent)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def list_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest last."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    folder: Path
    state: dict[str, Any]

    @property
    def run(self) -> Path:
        """The folder of the run that wrote it."""
        return self.folder.parent.parent

    def load_into(self, model: GPT2Model) -> dict[str, torch.Tensor]:
        """Fill the model; return the other tensors."""
        load_weights(model, self.folder / WEIGHTS)
        return _load_tensors(self.folder / TENSORS)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a checkpoint's hashes and read its state.

    Raises:
        AGI2Error: where it is incomplete or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if sha256_of(folder / name) != expected:
                raise AGI2Error(f"{folder / name} is damaged: its content does not match its hash")
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise AGI2Error(f"{folder} is not a whole checkpoint: {error}") from error
    return Checkpoint(folder, state)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """A run's newest whole checkpoint; damaged ones are passed over with a warning."""
    for place in reversed(list_checkpoints(folder)):
        try:
            return open_checkpoint(place)
        except AGI2Error as error:
            log.warning("%s; trying the one before", error)
    return None


def find_checkpoint(config: Config) -> Checkpoint | None:
    """The checkpoint that `resume` names: a checkpoint folder, a run folder, or `auto`.

    Raises:
        AGI2Error: where it names one that is not there or not whole.
    """
    if config.resume is None:
        return None
    if config.resume == "auto":
        return newest_checkpoint(run_folder(config))
    folder = Path(config.resume)
    if not folder.is_dir():
        raise AGI2Error(
            f"resume: {folder} does not exist; name a checkpoint folder, a run folder, or auto"
        )
    if re.fullmatch(r"step-\d+", folder.name):
        return open_checkpoint(folder)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise AGI2Error(f"resume: {folder} holds no whole checkpoint")
    return checkpoint


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps: the run goes on from an earlier one."""
    for place in list_checkpoints(folder):
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)


def make_room(folder: Path) -> None:
    """Move a run folder that exists to the first free NAME.1, NAME.2, ..."""
    if folder.exists() and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        with writing(folder):
            os.rename(folder, aside)
        log.info("%s exists: moved to %s", folder, aside)
