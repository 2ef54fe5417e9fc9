"""Checkpoints: everything that a run needs to continue as if it had never stopped.

A checkpoint is a folder that is complete by itself. It may be copied and resumed anywhere, and, but
for one of shards, used as the folder of a trained model:

    model.safetensors      the weights; with `parallel = "fsdp"`, `shards/` has them and the next
    training.safetensors   the optimizers' state
    best.safetensors       the best weights so far, once a validation has chosen any
    tokenizer.json         the tokenizer (checkpoints of earlier versions lack it and the next:
    config.toml            they are resumed where they are, in their run's folder)
    state.json             everything else
    manifest.json          the SHA-256 of each of these files

Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..errors import AGI2Error
from ..formats.model_dir import load_tensors, load_weights, save_tensors
from ..formats.run_dir import (
    CHECKPOINTS,
    SHARDS,
    STATE,
    WEIGHTS,
    check_resume,
    checkpoint_folder,
    list_checkpoints,
    run_folder,
    step_of,
)
from ..model import GPT2Model
from ..tokenizer import FILE_NAME
from ..utils import (
    atomic_path,
    finite,
    log,
    read_json_object,
    sha256_of,
    sharded_as,
    sync_file,
    sync_folder,
    writing,
)
from .distributed import Processes

BEST = "best.safetensors"
TENSORS = "training.safetensors"
MANIFEST = "manifest.json"

Describe = Callable[[Path], None]
"""Writes what describes a model, its tokenizer and configuration, into a folder."""

# Of `state.json`, and of what stands beside it: `find_checkpoint` gives no other.
FORMAT = 3


def optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """The optimizers' states as named tensors; together they cover each parameter once."""
    return {
        f"optimizer.{name}.{key}": torch.as_tensor(value, device=getattr(value, "device", "cpu"))
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


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: Path | None = None,
    describe: Describe = lambda folder: None,
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
        describe: writes tokenizer and configuration, which become part of it, too.

    Raises:
        AGI2Error: where it cannot be written; older checkpoints are then as they were.
    """
    with _placing(folder, step, state, keep, best, describe) as beside:
        save_tensors(weights, beside / WEIGHTS)
        save_tensors(tensors, beside / TENSORS)
    return checkpoint_folder(folder, step)


def save_shards(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: Path | None,
    describe: Describe,
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

    placing = _placing(folder, step, state, keep, best, describe)
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
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    keep: int,
    best: Path | None,
    describe: Describe,
) -> Iterator[Path]:
    """A folder to write a checkpoint's tensors to, which then takes its place."""
    place, beside = checkpoint_folder(folder, step), _beside(folder, step)
    with writing(place):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            describe(beside)
            content = json.dumps(finite(dict(state)), indent=1, allow_nan=False)
            (beside / STATE).write_text(content, encoding="utf-8")
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    folder: Path
    state: dict[str, Any]

    @property
    def run(self) -> Path:
        """The folder of the run that wrote it, unless it was copied elsewhere."""
        return self.folder.absolute().parent.parent

    @property
    def tokenizer(self) -> Path:
        """The folder that has its tokenizer: its own, or, of an earlier version's, its run's."""
        return self.folder if (self.folder / FILE_NAME).is_file() else self.run

    def load_into(self, model: GPT2Model) -> dict[str, torch.Tensor]:
        """Fill the model; return the other tensors."""
        if (self.folder / SHARDS).is_dir():
            return _load_shards(self.folder / SHARDS, model)
        load_weights(model, self.folder / WEIGHTS)
        return load_tensors(self.folder / TENSORS)

    def restore_best(self, path: Path) -> None:
        """Make `path` the best weights at the time of the checkpoint, if any were chosen then."""
        if (self.folder / BEST).is_file():
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
                else torch.zeros(saved.size, dtype=saved.properties.dtype, device="cpu")
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
        manifest = read_json_object(folder / MANIFEST)
        damaged = [name for name in manifest if not _is_whole(folder, name, manifest[name])]
        state = read_json_object(folder / STATE)
    except (AGI2Error, OSError, ValueError) as error:  # the last for a NUL in a name
        raise AGI2Error(f"{folder} is not a whole checkpoint: {error}") from error
    sharded = any(name.startswith(f"{SHARDS}/") for name in manifest)
    needed = (STATE,) if sharded else (WEIGHTS, TENSORS, STATE)
    damaged += [name for name in needed if name not in manifest]
    if damaged:
        raise AGI2Error(f"{folder / damaged[0]} is damaged: its content does not match its hash")
    return Checkpoint(folder, state)


def _is_whole(folder: Path, name: str, digest: Any) -> bool:
    """Whether a file of a checkpoint has the content that its manifest says."""
    path = folder / name
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return is_inside and path.is_file() and sha256_of(path) == digest


# What a state must hold, and of which types: a run is resumed from these alone.
_NUMBER, _NUMBER_OR_NONE = (int, float), (int, float, type(None))
_STATE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step", "skipped_steps", "skipped_in_a_row", "evaluated_at"), (int,)),
    **dict.fromkeys(("evaluations_without_gain", "metrics_size", "total_steps"), (int,)),
    **dict.fromkeys(("micro_batch_size", "processes", "threads"), (int,)),
    **dict.fromkeys(("tokenizer", "text", "precision"), (str,)),
    **dict.fromkeys(("fixed", "config", "history", "scaler"), (dict,)),
    **dict.fromkeys(("epoch_loss", "recent_loss"), (list,)),
    "seconds": _NUMBER,
    "best_loss": _NUMBER_OR_NONE,
    "compiled": (bool,),
}


def check_state(checkpoint: Checkpoint) -> None:
    """Raise where a state does not hold what a run is resumed from.

    Raises:
        AGI2Error: which names the key.
    """
    state, path = checkpoint.state, checkpoint.folder / STATE
    for key, types in _STATE_TYPES.items():
        if type(state.get(key)) not in types:
            raise AGI2Error(f"{path}: {key} is missing, or of another type than a run writes")
    counts = [state[key] for key, types in _STATE_TYPES.items() if types == (int,)]
    curves = [state["history"].get(key) for key in ("train_loss", "val_loss", "val_steps")]
    losses = [state["epoch_loss"], state["recent_loss"]]
    are_numbers = all(
        isinstance(curve, list) and all(type(each) in _NUMBER_OR_NONE for each in curve)
        for curve in [*curves, *losses]
    )
    if (
        not are_numbers
        or [len(loss) for loss in losses] != [2, 2]
        or not all(0 <= count < 2**62 for count in counts)
        or not (state["threads"] and state["micro_batch_size"] and state["total_steps"])
        or state["precision"] not in ("float32", "bfloat16", "float16")
    ):
        raise AGI2Error(f"{path}: a number or a name in it is none that a run writes")


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
        AGI2Error: where it names one that is not there, not whole, or of another format.
    """
    checkpoint = _named_checkpoint(config)
    if checkpoint is not None and checkpoint.state.get("format") != FORMAT:
        raise AGI2Error(
            f"{checkpoint.folder} has the format {checkpoint.state.get('format')}, this version of "
            f"AGI2 reads {FORMAT}: go on with the version that wrote it, or start anew without "
            "resume"
        )
    return checkpoint


def _named_checkpoint(config: Config) -> Checkpoint | None:
    if config.resume is None:
        return None
    if config.resume == "auto":
        return newest_checkpoint(run_folder(config))
    check_resume(config)
    folder = Path(config.resume)
    if re.fullmatch(r"step-\d+", folder.name) or (folder / MANIFEST).is_file():
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
        if step_of(place) > step:
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


def make_room(folder: Path) -> Path | None:
    """Move what stands in a run folder's place to the first free NAME.1, NAME.2, ...

    Returns:
        Where it is now; `None` if there was nothing.

    Raises:
        AGI2Error: where it cannot be moved.
    """
    with writing(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        os.rename(folder, aside)
    log.info("%s exists: moved to %s", folder, aside)
    return aside
