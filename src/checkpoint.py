"""A model, or a run, to and from a folder. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .config import Config, GPT2Config
from .config_loader import load_config, save_config
from .distributed import Processes
from .errors import AGI2Error
from .model import GPT2Model
from .tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from .utils import atomic_path, log, sha256_of, sharded_as, sync_file, sync_folder, writing

WEIGHTS = "model.safetensors"
CONFIG = "config.toml"
BEST = "best.safetensors"
CHECKPOINTS = "checkpoints"
STATE = "state.json"
TENSORS = "training.safetensors"
MANIFEST = "manifest.json"
SHARDS = "shards"

# What of an architecture may differ between a trained model and a configuration that names it: a
# smaller text makes a smaller vocabulary, and the other two change no weight.
FREE_ARCHITECTURE_KEYS = {"vocab_size", "dropout", "gradient_checkpointing"}


def run_folder(config: Mapping[str, Any]) -> Path:
    """The folder of the run that a configuration names."""
    return Path(config["output_dir"]) / config["model_name"]


def save_weights(
    tensors: Mapping[str, torch.Tensor], path: Path, tokenizer: Tokenizer | None = None
) -> None:
    """Write a model's `state_dict`, whole or not at all. Equal weights give equal files.

    The file notes the weights' hash, and the tokenizer's if given: `load_model` checks both.
    """
    notes = {"sha256": _hash_of(tensors)}
    if tokenizer is not None:
        notes["tokenizer"] = tokenizer.fingerprint
    with atomic_path(path) as beside:
        _save_tensors(tensors, beside, notes)


def save_model(model: GPT2Model, tokenizer: Tokenizer, config: Config, folder: Path) -> None:
    """Write all that `load_model` needs: weights, tokenizer and configuration."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    describe_model(model.config, tokenizer, config, folder)
    save_weights(model.state_dict(), folder / WEIGHTS, tokenizer)


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
    expected = _notes(folder / WEIGHTS).get("tokenizer")
    if expected is not None and sha256_of(folder / FILE_NAME) != expected:
        raise AGI2Error(
            f"{folder / FILE_NAME} is another tokenizer than the one that {folder / WEIGHTS} was "
            "trained with: put that one back, or train again"
        )
    return TrainedModel(model.to(device).eval(), tokenizer, config)


def load_trained(
    config: Config, device: torch.device | str = "cpu", file: str = "FILE.toml"
) -> TrainedModel:
    """Read the model that a configuration names and has trained.

    Args:
        config: with the run's `output_dir` and `model_name`.
        device: where the model goes.
        file: what the configuration was read from, for messages.

    Raises:
        AGI2Error: where it is not trained yet, or was trained with another architecture than the
            one written in this configuration.
    """
    folder = run_folder(config)
    if not os.path.isfile(folder / WEIGHTS):
        raise AGI2Error(f"{folder}: no trained model there; train it first: agi2 train {file}")
    trained = load_model(folder, device)
    wanted, has = config.architecture.to_keys(), trained.config.architecture.to_keys()
    for key in sorted(wanted.keys() & config.model_fields_set - FREE_ARCHITECTURE_KEYS):
        if wanted[key] != has[key]:
            raise AGI2Error(
                f"{folder} was trained with {key} = {has[key]!r}, the configuration says "
                f"{wanted[key]!r}: train again, or set it back"
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
    for name in sorted(expected.keys() | tensors.keys()):
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        theirs = tuple(tensors[name].shape) if name in tensors else "nothing"
        if ours != theirs:
            raise AGI2Error(
                f"{path} holds a model of another shape: {name} is {theirs}, not {ours}"
            )
    if _notes(path).get("sha256", "") not in ("", _hash_of(tensors)):
        raise AGI2Error(f"{path} is damaged: its content does not match its hash")
    if not assign:
        tensors = {name: sharded_as(tensor, expected[name]) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=assign)


def _hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors' bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _notes(path: Path) -> dict[str, str]:
    """What `save_weights` noted in a file."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get("agi2", "{}")))
    except (ValueError, TypeError) as error:
        raise AGI2Error(f"{path} is damaged: {error}") from error


def _save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, notes: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: where there is no right or no room.
    """
    path.touch()
    mode = path.stat().st_mode
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        # Under one key: the library would write several in an order that changes.
        save_file(tensors, path, {"agi2": json.dumps(notes)} if notes else None)
    except SafetensorError as error:
        raise OSError(str(error).removeprefix("Error while serializing: ")) from error
    path.chmod(mode)  # the library lets no other user read it


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
                key.removeprefix(prefix): (
                    sharded_as(value, parameter)
                    if value.shape == parameter.shape
                    else value.to(parameter.device)
                )
                for key, value in tensors.items()
                if key.startswith(prefix)
            }


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where a run's checkpoint of a step stands."""
    return folder / CHECKPOINTS / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: Path | None = None,
) -> Path:
    """Write a checkpoint beside its place, sync it, and rename it into place.

    Args:
        folder: the run's.
        step: optimizer steps done.
        weights: the model's.
        tensors: the optimizers' state.
        state: everything else, as JSON.
        keep: older checkpoints beyond so many are deleted, once this one is whole.
        best: the run's best weights so far, which become part of the checkpoint (as a hard link
            where the file system has them, so that they take no room).

    Raises:
        AGI2Error: where it cannot be written; older checkpoints are then as they were.
    """
    with _placing(folder, step, state, keep, best) as beside:
        _save_tensors(weights, beside / WEIGHTS)
        _save_tensors(tensors, beside / TENSORS)
    return checkpoint_folder(folder, step)


def save_shards(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: Path | None,
    processes: Processes,
) -> None:
    """As `save_checkpoint`, of sharded tensors: each process writes a file of its own parts.

    All processes take part; what is not a tensor is the main one's.

    Raises:
        AGI2Error: where it cannot be written.
    """
    # Takes a second to import.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    placing = _placing(folder, step, state, keep, best)
    with placing if processes.is_main else contextlib.nullcontext(_beside(folder, step)) as beside:
        processes.wait_for_all()  # until the folder is there
        writer = dcp.HuggingFaceStorageWriter(str(beside / SHARDS), save_distributed=True)
        try:
            dcp.save({**weights, **tensors}, storage_writer=writer)
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise AGI2Error(f"cannot write {beside}: {reason}; set output_dir") from error
    processes.wait_for_all()  # until it is in its place


def _beside(folder: Path, step: int) -> Path:
    place = checkpoint_folder(folder, step)
    return place.with_name(f".{place.name}.partial")


@contextlib.contextmanager
def _placing(
    folder: Path, step: int, state: Mapping[str, Any], keep: int, best: Path | None
) -> Iterator[Path]:
    """A folder to write a checkpoint's tensors to, which then takes its place."""
    place, beside = checkpoint_folder(folder, step), _beside(folder, step)
    with writing(place):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            (beside / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            if best is not None:
                _link(best, beside / BEST)
            files = sorted(file for file in beside.rglob("*") if file.is_file())
            hashes = {file.relative_to(beside).as_posix(): sha256_of(file) for file in files}
            (beside / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
            for file in [*files, beside / MANIFEST]:
                sync_file(file)
            for inside in {file.parent for file in files}:
                sync_folder(inside)
            old = place.with_name(f"{place.name}.old")
            if place.exists():  # never away, not even for a moment: `list_checkpoints` finds it
                shutil.rmtree(old, ignore_errors=True)
                os.rename(place, old)
            os.rename(beside, place)
            sync_folder(place.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def list_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest last."""
    places = (folder / CHECKPOINTS).glob("step-*")
    whole = [place for place in places if re.fullmatch(r"step-\d+(\.old)?", place.name)]
    return sorted(whole, key=lambda place: (_step_of(place), not place.name.endswith(".old")))


def _step_of(place: Path) -> int:
    return int(place.name.removeprefix("step-").removesuffix(".old"))


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
        if (self.folder / SHARDS).is_dir():
            return _load_shards(self.folder / SHARDS, model)
        load_weights(model, self.folder / WEIGHTS)
        return _load_tensors(self.folder / TENSORS)

    def restore_best(self, path: Path) -> None:
        """Make `path` the best weights at the time of the checkpoint, if any were chosen then."""
        if (self.folder / BEST).exists():
            with atomic_path(path) as beside:
                shutil.copyfile(self.folder / BEST, beside)


def _load_shards(folder: Path, model: GPT2Model) -> dict[str, torch.Tensor]:
    """Fill a model, sharded in any way or not at all; return the other tensors, sharded alike.

    Of a sharded model, each process reads no more than its own parts.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    parameters = dict(model.named_parameters())
    weights, tensors = model.state_dict(), {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        if name not in weights:
            assert isinstance(saved, dcp.TensorStorageMetadata)
            parameter = parameters[name.removeprefix("optimizer.").rpartition(".")[0]]
            alike = saved.size == parameter.shape
            tensors[name] = (
                torch.zeros_like(parameter.detach())
                if alike
                else torch.zeros(saved.size, dtype=saved.properties.dtype)
            )
    is_sharded = any(hasattr(weight, "full_tensor") for weight in weights.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that one process reads by itself
        dcp.load({**weights, **tensors}, storage_reader=reader, no_dist=not is_sharded)
    return tensors


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a checkpoint's hashes and read its state.

    Raises:
        AGI2Error: where it is incomplete or damaged.
    """
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        damaged = [name for name in manifest if sha256_of(folder / name) != manifest[name]]
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise AGI2Error(f"{folder} is not a whole checkpoint: {error}") from error
    sharded = any(name.startswith(f"{SHARDS}/") for name in manifest)
    needed = (STATE,) if sharded else (WEIGHTS, TENSORS, STATE)
    damaged += [name for name in needed if name not in manifest]
    if damaged:
        raise AGI2Error(f"{folder / damaged[0]} is damaged: its content does not match its hash")
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
    """Delete the checkpoints of later steps: the run goes on from an earlier one.

    Raises:
        AGI2Error: where they cannot be deleted.
    """
    for place in list_checkpoints(folder):
        if _step_of(place) > step:
            log.warning("%s is of a later step: deleted", place)
            with writing(place):
                shutil.rmtree(place)


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written in a run's folder."""
    for partial in (folder / CHECKPOINTS).glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for beside in folder.iterdir():
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", beside.name):  # `atomic_path`'s
            beside.unlink(missing_ok=True)


def make_room(folder: Path) -> None:
    """Move what stands in a run folder's place to the first free NAME.1, NAME.2, ...

    Raises:
        AGI2Error: where it cannot be moved.
    """
    with writing(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        os.rename(folder, aside)
    log.info("%s exists: moved to %s", folder, aside)
