"""`CheckpointManager`: saves and loads the checkpoints and best weights that belong to a run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ARCHITECTURE_KEYS, FREE_ARCHITECTURE_KEYS, Config
from ..config_loader import CONFIG
from ..data.planned_windows import hash_of_bounds
from ..data.shards import SHARD_TOKENS, token_hashes
from ..dataset import TextDataset
from ..errors import AGI2Error, mask_secrets
from ..formats.model_dir import WEIGHTS, load_weights, save_config_and_tokenizer, save_weights
from ..model import GPT2Model
from ..tokenizer import FILE_NAME as TOKENIZER
from ..tokenizer import Tokenizer
from ..utils import convert_write_errors, full_tensor, log, plural, replace_non_finite
from . import checkpoint as checkpoints
from .checkpoint import Checkpoint, Snapshot
from .distributed import ProcessGroup
from .folder_lock import FolderLock, claim_folder
from .optimizer import AVERAGE, Optimizer, load_optimizer_tensors, optimizer_tensors

# Keys that must not change on resume, as they determine the order of the data or the optimizer
# steps. The text is compared by its hash, so its path may change.
FIXED_ON_RESUME = (
    "val_fraction",
    "tokenizer",
    "seq_len",
    "batch_size",
    "seed",
    "optimizer",
    "lowercase",
    "fold_whitespace",
    "lora_rank",
    "pretokenizer",
    "split_digits",
    "special_tokens",
    "byte_fallback",
    "windows",
    "mask_documents",
    "source_weights",
    "text_share",
)


# Checkpoints of earlier versions lack the keys that did not exist yet.
_DEFAULTS = {key: Config.model_validate({})[key] for key in FIXED_ON_RESUME[-8:]}
_ARCHITECTURE = ARCHITECTURE_KEYS.keys() - FREE_ARCHITECTURE_KEYS


class Background:
    """A background thread that runs one task at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._last: Future[Any] | None = None

    def start(self, work: Callable[[], Any]) -> None:
        """Wait for the previous task, then start `work` in the background."""
        self.wait()
        self._last = self._threads.submit(work)

    def wait(self) -> None:
        """Wait for the last task; raise the exception that it raised, if any."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


@dataclass
class CheckpointManager:
    """Saves and loads a run's checkpoints and best weights.

    All ranks must call its methods; rank 0 writes, or, under FSDP, each rank its shards.
    """

    folder: Path
    """The run folder."""
    config: Config
    model: GPT2Model
    optimizers: Sequence[Optimizer]
    tokenizer: Tokenizer
    data: Sequence[TextDataset]
    """The training data, and the validation data if any."""
    process_group: ProcessGroup
    sharded: bool
    """Whether the parameters are sharded across ranks (FSDP)."""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Other tensors that are saved with the optimizers' state, and loaded in place."""
    lock: FolderLock | None = None
    """The lock of the folder; if it is given, the caller releases it."""
    _saving: Background = field(default_factory=Background)
    _owns_lock: bool = False
    _folder_stat: os.stat_result | None = None
    _moved_to: Path | None = None
    """The new path of an earlier run's folder that was moved away for this run."""

    @property
    def best_weights(self) -> Path:
        """The file of the best weights, or of the latest until the first validation."""
        return self.folder / WEIGHTS

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What must match on resume: hashes of tokenizer and text, weights' dtype, fixed keys."""
        digest = hashlib.sha256()
        for dataset in self.data:
            digest.update("".join(token_hashes(dataset.tokens)).encode())
        digest.update(hash_of_bounds(self.data[0], self.config).encode())
        keys = self.model.config.to_keys()
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "text": digest.hexdigest(),
            "weights": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "fixed": {
                **{key: self.config[key] for key in FIXED_ON_RESUME},
                **{key: v for key, v in keys.items() if key not in FREE_ARCHITECTURE_KEYS},
            },
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint into the model and the optimizers.

        Raises:
            AGI2Error: if its tokenizer, text or fixed keys differ from this run's.
        """
        checkpoints.check_state(checkpoint)
        before, now = checkpoint.state, self.identity
        if before["tokenizer"] != now["tokenizer"]:
            raise AGI2Error(f"{checkpoint.folder} was trained with another tokenizer")
        if (were := before.get("weights", now["weights"])) != now["weights"]:
            raise AGI2Error(
                f"{checkpoint.folder} has weights of {were}, the model of {now['weights']}: "
                "convert the model first"
            )
        for key, value in now["fixed"].items():
            was = {**_DEFAULTS, **before["fixed"]}.get(key)
            if was != value:
                raise AGI2Error(
                    f"{checkpoint.folder} was trained with {key} = {was!r}, now it is {value!r}: "
                    "set it back, or start from scratch without resume"
                )
        if before["text"] not in (now["text"], self._digest_of_tokens()):
            raise AGI2Error(
                f"the text has changed since {checkpoint.folder}: restore it, or start from "
                "scratch without resume"
            )
        tensors = checkpoint.load_into(self.model)
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        if self.config.ema_decay is None:  # it may have been set before
            tensors = {name: v for name, v in tensors.items() if not name.endswith(f".{AVERAGE}")}
        load_optimizer_tensors(self.model, self.optimizers, tensors)

    def _digest_of_tokens(self) -> str:
        """Return the hash of the text as earlier versions computed it: of all tokens at once."""
        digest = hashlib.sha256()
        for dataset in self.data:
            for first in range(0, len(dataset.tokens), SHARD_TOKENS):
                chunk = dataset.tokens[first : first + SHARD_TOKENS]
                digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()

    def prepare_folder(self, checkpoint: Checkpoint | None) -> int:
        """Restore the run folder to its state at the checkpoint, or create a new one, and lock it.

        The lock is held until `release`.

        Returns:
            The size, in bytes, to truncate the log to: 0 for a new run.

        Raises:
            AGI2Error: if another process trains in the folder, or it is not writable.
        """
        log_size = 0
        # There was no folder to lock when the checkpoint was chosen.
        is_new = self.lock is not None and not self.lock.is_held
        lock = self._take_lock()
        if checkpoint is not None and checkpoint.run.resolve() == self.folder.resolve():
            log_size = checkpoint.state["metrics_size"]
            checkpoints.delete_checkpoints_after(self.folder, checkpoint.state["step"])
        else:
            if is_new and self.config.resume == "auto" and self.newest is not None:
                raise AGI2Error(
                    f"{self.folder}: another process has trained there meanwhile: give the same "
                    "command again, which resumes that run"
                )
            self._moved_to = claim_folder(self.folder, lock)
        self._initialize_folder(lock)
        if checkpoint is not None:
            checkpoint.restore_best(self.best_weights)
        with convert_write_errors(self.folder):
            checkpoints.delete_temporary_files(self.folder)
        return log_size

    def restore_folder(self) -> None:
        """Create and lock the run folder again, or restore what was deleted in it.

        Raises:
            AGI2Error: if another process trains in the folder, or it is not writable.
        """
        lock = self._take_lock()
        if not self._is_same_folder():
            claim_folder(self.folder, lock)
        self._initialize_folder(lock)

    def _take_lock(self) -> FolderLock:
        if self.lock is None:
            self.lock, self._owns_lock = FolderLock(self.folder), True
        self.lock.take()
        return self.lock

    def _initialize_folder(self, lock: FolderLock) -> None:
        """Write the model's configuration and tokenizer to the run folder, and remember it."""
        with convert_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.take()
            self._folder_stat = self.folder.stat()
        self._save_metadata(self.folder)

    def _is_same_folder(self) -> bool:
        """Return whether the folder of this name is the one in which this run began."""
        assert self._folder_stat is not None
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(self.folder.stat(), self._folder_stat)
        return False

    def _save_metadata(self, folder: Path) -> None:
        save_config_and_tokenizer(self.model.config, self.tokenizer, self.config, folder)

    def is_lost(self, has_best: bool) -> bool:
        """Return whether the run folder was deleted, emptied or moved away while training.

        Args:
            has_best: whether the folder must contain best weights.

        Raises:
            AGI2Error: if another folder is in its place.
        """
        with convert_write_errors(self.folder):
            if not self.folder.is_dir():
                return True
            content = {path.name for path in self.folder.iterdir()}
            is_same = self._is_same_folder()
        if not is_same and content:
            raise AGI2Error(
                f"{self.folder} is not the folder any more in which this run began, which was "
                "moved away: continue there with --resume and its model_name"
            )
        if is_same and content >= {CONFIG, TOKENIZER}:
            self._take_lock()  # its file may be deleted; raises if another process has locked it
        needed = {CONFIG, TOKENIZER, *({WEIGHTS} if has_best else ())}
        return not is_same or not needed <= content

    def warn_if_nothing_is_saved(self) -> None:
        """Log where the earlier run was moved to if this one ends without saving a model."""
        if self._moved_to is not None and not self.best_weights.is_file():
            log.warning(
                "nothing was saved: %s contains no model; the earlier run was moved to %s",
                self.folder,
                self._moved_to,
            )

    def save(self, state: Mapping[str, Any]) -> Path:
        """Save a checkpoint; until the first validation, also update the run's weights.

        On a GPU, tensors are copied to the CPU and written asynchronously: call `wait`.

        Args:
            state: the state except tensors, JSON-serializable, with `step` and `best_loss`.

        Returns:
            The checkpoint's folder.
        """
        path = checkpoints.checkpoint_folder(self.folder, state["step"])
        if not (self.sharded or self.process_group.is_main):
            return path
        has_best = state["best_loss"] is not None
        snapshot = Snapshot(
            state,
            self.model.state_dict(),
            {**optimizer_tensors(self.model, self.optimizers), **self.tensors},
            self.best_weights if has_best else None,
            self._save_metadata,
        )
        if self.sharded:
            keep = self.config.keep_checkpoints
            checkpoints.save_shards(self.folder, snapshot, keep, self.process_group)
            if not has_best:
                self.save_best(self.gather())
            return path
        self._saving.wait()
        if self.process_group.device.type == "cpu":
            self._write(snapshot)
        else:  # pragma: needs gpu
            snapshot = replace(
                snapshot,
                weights={name: tensor.cpu() for name, tensor in snapshot.weights.items()},
                tensors={name: tensor.cpu() for name, tensor in snapshot.tensors.items()},
            )
            self._saving.start(functools.partial(self._write, snapshot))
        return path

    def _write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint; until the first validation, also the run's weights."""
        checkpoints.save_checkpoint(self.folder, snapshot, self.config.keep_checkpoints)
        if snapshot.best is None:
            save_weights(snapshot.weights, self.best_weights, self.tokenizer, self.model.config)

    def release(self) -> None:
        """Release the lock of the run folder, unless the caller has given it."""
        if self.lock is not None and self._owns_lock:
            self.lock.release()

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint's folder, if there is any."""
        return next(reversed(checkpoints.list_checkpoints(self.folder)), None)

    def wait(self) -> None:
        """Wait on all ranks (a barrier) until the last checkpoint is complete."""
        self._saving.wait()
        self.process_group.barrier()

    def save_best(self, model: GPT2Model) -> None:
        """Save rank 0's `model` as the run's best weights."""
        if self.process_group.is_main:
            self._saving.wait()  # an asynchronous save may be writing or linking the same file
            save_weights(model.state_dict(), self.best_weights, self.tokenizer, model.config)

    def load_best(self) -> GPT2Model:
        """Load the best weights into the model; return it as `gather` does."""
        self._saving.wait()
        if self.sharded:
            self.process_group.barrier()  # until rank 0 has written them
            load_weights(self.model, self.best_weights)
            return self.gather()
        if self.process_group.is_main:
            load_weights(self.model, self.best_weights)
        self.process_group.broadcast(self.model.state_dict().values())
        return self.model

    def gather(self) -> GPT2Model:
        """Return the unsharded model: under FSDP, a copy with full tensors on rank 0.

        A collective: all ranks must call it. On other ranks it returns the sharded model.
        """
        if not self.sharded:
            return self.model
        weights = {}
        for name, tensor in self.model.state_dict().items():
            # Tensor by tensor, so that other ranks never hold them all.
            gathered = full_tensor(tensor)
            if self.process_group.is_main:
                weights[name] = gathered
        model = self.model
        if self.process_group.is_main:
            with torch.device("meta"):
                model = GPT2Model(self.model.config)
            model.load_state_dict(weights, assign=True)
            model.to(self.process_group.device)
        return model


def log_changes(
    checkpoint: Checkpoint, choices: Mapping[str, Any], config: Config, total_steps: int
) -> None:
    """Log the resumed step and what changed; `choices` are the settings that affect rounding."""
    before = checkpoint.state
    for name, now in choices.items():
        if before[name] != now:
            log.warning("%s was %s in this run: the rounding changes", name, before[name])
    log.info("resuming %s at step %d", checkpoint.folder, before["step"])
    for key, was in before["config"].items():
        # The architecture is that of the model, which `load` has compared already.
        was, now = mask_secrets(was), mask_secrets(config.get(key))
        if key not in ("resume", *_ARCHITECTURE) and was != replace_non_finite(now):
            log.info("%s is now %r, it was %r", key, now, was)
    if before["total_steps"] != total_steps:
        log.info(
            "the run is now %s long, not %d: the learning rate follows the new length",
            plural(total_steps, "step"),
            before["total_steps"],
        )
