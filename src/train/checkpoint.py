"""Checkpoints: all that resumes a run exactly; written atomically, verified by hashes.

A checkpoint is a self-contained folder. It can be copied and resumed anywhere, and, unless it is
sharded, loaded as a model directory:

    model.safetensors      weights; with `parallel = "fsdp"`, `shards/` replaces this and the next
    training.safetensors   optimizer state
    best.safetensors       the best weights so far, if there was a validation
    tokenizer.json         the tokenizer (checkpoints of earlier versions lack this and the next
    config.toml            file: they can be resumed only in their run's folder)
    state.json             everything else: step, seconds, losses, loss scale, configuration
    manifest.json          the SHA-256 of each of these files

There is no pickle: loading a checkpoint cannot execute code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
    read_state,
    run_folder,
    step_of,
)
from ..model import GPT2Model
from ..tokenizer import FILE_NAME
from ..utils import (
    atomic_path,
    convert_write_errors,
    log,
    read_json_object,
    replace_non_finite,
    sha256_of,
    sync_file,
    sync_folder,
)
from .distributed import ProcessGroup

BEST = "best.safetensors"
TENSORS = "training.safetensors"
MANIFEST = "manifest.json"

SaveMetadata = Callable[[Path], None]
"""Writes a model's tokenizer and configuration into a folder."""

# The version of the checkpoint's layout and of `state.json`; `find_checkpoint` rejects others.
FORMAT = 3


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from."""

    state: Mapping[str, Any]
    """Everything except tensors, JSON-serializable, with the key `step`."""
    weights: Mapping[str, torch.Tensor]
    """The model's state dict."""
    tensors: Mapping[str, torch.Tensor]
    """The optimizers' state."""
    best: Path | None = None
    """The best weights so far, added as a hard link if the file system has them, else copied."""
    save_metadata: SaveMetadata = lambda folder: None
    """Writes the tokenizer and the configuration into the checkpoint."""


def save_checkpoint(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Save a checkpoint atomically: write to a temporary folder, fsync it, and rename it.

    Args:
        folder: the run folder.
        snapshot: what to save.
        keep: number of checkpoints to keep; older ones are deleted once this one is complete.

    Returns:
        The checkpoint's folder.

    Raises:
        AGI2Error: if it cannot be written; older checkpoints are kept.
    """
    with _atomic_checkpoint(folder, snapshot, keep) as temporary:
        save_tensors(snapshot.weights, temporary / WEIGHTS)
        save_tensors(snapshot.tensors, temporary / TENSORS)
    return checkpoint_folder(folder, snapshot.state["step"])


def save_shards(folder: Path, snapshot: Snapshot, keep: int, process_group: ProcessGroup) -> None:
    """Save a sharded checkpoint: as `save_checkpoint`, but each rank writes a file of its shards.

    A collective: all ranks must call it. Rank 0 writes everything that is not a tensor.

    Raises:
        AGI2Error: if it cannot be written.
    """
    # Imported here because it takes a second.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    with (
        _atomic_checkpoint(folder, snapshot, keep)
        if process_group.is_main
        else contextlib.nullcontext(_temporary_folder(folder, snapshot))
    ) as temporary:
        process_group.barrier()  # until rank 0 has created the folder
        writer = dcp.HuggingFaceStorageWriter(str(temporary / SHARDS), save_distributed=True)
        try:
            dcp.save({**snapshot.weights, **snapshot.tensors}, storage_writer=writer)
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise AGI2Error(f"cannot write {temporary}: {reason}; set output_dir") from error
    process_group.barrier()  # until rank 0 has renamed the folder


def _temporary_folder(folder: Path, snapshot: Snapshot) -> Path:
    target = checkpoint_folder(folder, snapshot.state["step"])
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def _atomic_checkpoint(folder: Path, snapshot: Snapshot, keep: int) -> Iterator[Path]:
    """Yield a temporary folder for the tensors; add the other files, fsync and rename it."""
    target = checkpoint_folder(folder, snapshot.state["step"])
    temporary = _temporary_folder(folder, snapshot)
    with convert_write_errors(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            snapshot.save_metadata(temporary)
            content = json.dumps(
                replace_non_finite(dict(snapshot.state)), indent=1, allow_nan=False
            )
            (temporary / STATE).write_text(content, encoding="utf-8")
            if snapshot.best is not None:
                _link(snapshot.best, temporary / BEST)
            _write_manifest(temporary)
            _replace_folder(target, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    """Write the hashes of all files in a folder, and fsync everything in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    for file in [*files, folder / MANIFEST]:
        sync_file(file)
    for subfolder in {file.parent for file in files}:
        sync_folder(subfolder)


def _replace_folder(target: Path, temporary: Path) -> None:
    """Rename a complete checkpoint to its name, and delete the earlier one of this name."""
    old = target.with_name(f"{target.name}.old")
    # Renamed, not deleted, so that this step always has a complete checkpoint: `list_checkpoints`
    # finds .old folders, too.
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(temporary, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, of which the hashes were verified."""

    folder: Path
    state: dict[str, Any]

    @property
    def run(self) -> Path:
        """The run folder: two levels up, unless the checkpoint was copied elsewhere."""
        return self.folder.absolute().parent.parent

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer: the checkpoint's, or the run's (earlier versions)."""
        return self.folder if (self.folder / FILE_NAME).is_file() else self.run

    def load_into(self, model: GPT2Model) -> dict[str, torch.Tensor]:
        """Load the weights into the model; return the optimizer tensors."""
        if (self.folder / SHARDS).is_dir():
            return _load_shards(self.folder / SHARDS, model)
        load_weights(model, self.folder / WEIGHTS)
        return load_tensors(self.folder / TENSORS)

    def restore_best(self, path: Path) -> None:
        """Copy the best weights at the time of the checkpoint, if there were any, to `path`."""
        if (self.folder / BEST).is_file():
            with atomic_path(path) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)


def _load_shards(folder: Path, model: GPT2Model) -> dict[str, torch.Tensor]:
    """Load shards into a model; return the optimizer tensors, sharded as the model is.

    The model may be unsharded, or sharded over any number of ranks, which read only their shards.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    parameters = dict(model.named_parameters())
    weights, tensors = model.state_dict(), {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        if name not in weights:
            assert isinstance(saved, dcp.TensorStorageMetadata)
            parameter = parameters.get(name.removeprefix("optimizer.").rpartition(".")[0])
            tensors[name] = (
                torch.zeros_like(parameter.detach())
                if parameter is not None and saved.size == parameter.shape
                else torch.zeros(saved.size, dtype=saved.properties.dtype, device="cpu")
            )
    is_sharded = any(hasattr(weight, "full_tensor") for weight in weights.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about loading without a process group
        dcp.load({**weights, **tensors}, storage_reader=reader, no_dist=not is_sharded)
    return tensors


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint: verify its hashes and read its state.

    Raises:
        AGI2Error: if it is incomplete or damaged.
    """
    try:
        manifest = read_json_object(folder / MANIFEST)
        damaged = [name for name in manifest if not _is_intact(folder, name, manifest[name])]
        state = read_state(folder)
    except (AGI2Error, OSError, ValueError) as error:  # ValueError: a NUL in a file name
        raise AGI2Error(f"{folder} is not a complete checkpoint: {error}") from error
    sharded = any(name.startswith(f"{SHARDS}/") for name in manifest)
    needed = (STATE,) if sharded else (WEIGHTS, TENSORS, STATE)
    damaged += [name for name in needed if name not in manifest]
    if damaged:
        raise AGI2Error(f"{folder / damaged[0]} is damaged: its content does not match its hash")
    return Checkpoint(folder, state)


def _is_intact(folder: Path, name: str, digest: Any) -> bool:
    """Return whether a file is inside the checkpoint and matches its hash in the manifest."""
    path = folder / name
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return is_inside and path.is_file() and sha256_of(path) == digest


# The keys of `state.json` that a run is resumed from, and their types.
_NUMBER, _NUMBER_OR_NONE = (int, float), (int, float, type(None))
_STATE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step", "skipped_steps", "skipped_in_a_row", "evaluated_at"), (int,)),
    **dict.fromkeys(("validations_without_improvement", "metrics_size", "total_steps"), (int,)),
    **dict.fromkeys(("micro_batch_size", "processes", "threads"), (int,)),
    **dict.fromkeys(("tokenizer", "text", "precision"), (str,)),
    **dict.fromkeys(("fixed", "config", "history", "scaler"), (dict,)),
    **dict.fromkeys(("epoch_loss", "recent_loss"), (list,)),
    "seconds": _NUMBER,
    "best_loss": _NUMBER_OR_NONE,
    "compiled": (bool,),
}


def check_state(checkpoint: Checkpoint) -> None:
    """Check that the state has all keys needed to resume, with valid types and values.

    Raises:
        AGI2Error: if it does not.
    """
    state, path = checkpoint.state, checkpoint.folder / STATE
    for key, types in _STATE_TYPES.items():
        if type(state.get(key)) not in types:
            raise AGI2Error(f"{path}: {key} is missing, or of another type than AGI2 writes")
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
        raise AGI2Error(f"{path}: a value in it is invalid")


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return a run's newest complete checkpoint; skip damaged ones with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return open_checkpoint(path)
        except AGI2Error as error:
            log.warning("%s; trying the one before", error)
    return None


def find_checkpoint(config: Config) -> Checkpoint | None:
    """Return the checkpoint that `resume` names: a checkpoint folder, a run folder, or `auto`.

    Raises:
        AGI2Error: if it does not exist, is incomplete, or has another format version.
    """
    checkpoint = _named_checkpoint(config)
    if checkpoint is not None and checkpoint.state.get("format") != FORMAT:
        raise AGI2Error(
            f"{checkpoint.folder} has the format {checkpoint.state.get('format')}, this version of "
            f"AGI2 reads {FORMAT}: resume with the version that wrote it, or start from scratch "
            "without resume"
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
        raise AGI2Error(f"resume: {folder} contains no complete checkpoint")
    return checkpoint


def delete_checkpoints_after(folder: Path, step: int) -> None:
    """Delete the checkpoints after `step`, because the run is resumed from there.

    Raises:
        AGI2Error: if they cannot be deleted.
    """
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            log.warning("%s is of a later step: deleted", path)
            with convert_write_errors(path):
                shutil.rmtree(path)


def delete_temporary_files(folder: Path) -> None:
    """Delete the temporary files of a killed process from a run folder."""
    for partial in (folder / CHECKPOINTS).glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for temporary in folder.iterdir():
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", temporary.name):  # `atomic_path`'s
            temporary.unlink(missing_ok=True)
