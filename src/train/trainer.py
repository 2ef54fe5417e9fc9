"""`Trainer`: the training loop, which can be interrupted and resumed exactly."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..arguments import checked
from ..config import Config
from ..config_checks import UNBOUNDED_EPOCHS
from ..console import show_progress, visible
from ..cuda_utils import (
    can_compile,
    first_line,
    is_device_failure,
    is_out_of_memory,
    select_precision,
)
from ..data.batches import EpochBatches
from ..data.tokens import count_bytes
from ..dataset import TextDataset
from ..errors import AGI2Error, mask_secrets
from ..model import GPT2Model
from ..tokenizer import Tokenizer
from ..utils import keep_freed_memory, log
from .accumulator import GradientAccumulator
from .checkpoint import FORMAT, Checkpoint
from .checkpoint_manager import CheckpointManager, keep_threads, log_changes
from .distributed import NoSync, ProcessGroup, is_lost_process, launch_id
from .estimates import training_flops
from .interrupt import Interrupt
from .loss import NextTokenLoss
from .metrics import Evaluation, MetricsLogger, log_end
from .optimizer import make_optimizers
from .schedule import Schedule
from .state import History, RunState
from .step import (
    apply_gradients,
)
from .validation import Evaluate, Sample

# A run ends after this many consecutive skipped steps. In fp16 the first steps overflow, each of
# which halves the loss scale.
_MAX_SKIPPED_STEPS, _MAX_SKIPPED_STEPS_FP16 = 5, 30


class Trainer:
    """Trains a model on a dataset, with validation, logging and checkpoints in a run folder.

    Args:
        model: a model on the training device.
        tokenizer: a fitted tokenizer.
        train_data: windows of T + 1 tokens with stride T.
        val_data: the same for the held-out text, if any.
        config: the run's configuration.
        folder: the run folder, created if it does not exist.
        process_group: the process group. Each rank has the same data and trains on its own rows of
            every batch; rank 0 writes to `folder`. Default: a single process.
        evaluate: evaluates the model on `val_data`; required if that is given.
        sample: generates the text that is logged at each validation; optional.

    Raises:
        AGI2Error: if the batch size is not divisible by the number of processes.
    """

    @checked
    def __init__(
        self,
        model: GPT2Model,
        tokenizer: Tokenizer,
        train_data: TextDataset,
        val_data: TextDataset | None,
        config: Config,
        folder: str | Path,
        process_group: ProcessGroup | None = None,
        *,
        evaluate: Evaluate | None = None,
        sample: Sample | None = None,
    ) -> None:
        if val_data is not None and evaluate is None:
            raise AGI2Error("evaluate: needed to validate on val_data")
        self._evaluate, self._sample = evaluate, sample
        self.model = model
        self.process_group = process_group or ProcessGroup(model.device)
        self.tokenizer = tokenizer
        self.val_data = val_data
        self.config = config
        self.folder = Path(folder)
        self.device = self.process_group.device
        self.precision = select_precision(config.precision, self.device)
        self.sharded = config.parallel == "fsdp" and self.process_group.is_initialized
        if self.sharded and self.precision == torch.float16:
            raise AGI2Error('precision: parallel = "fsdp" needs "bf16" or "fp32", not fp16')
        self._module = NextTokenLoss(model)
        no_sync: NoSync = nullcontext
        if self.sharded:
            no_sync = self.process_group.wrap_fsdp(self._module, model.blocks)
        self.full_model = model
        """The unsharded model: under FSDP a gathered copy, in validation and at the end only."""
        self.batches = EpochBatches(train_data, config.batch_size, config.seed)
        self.optimizers = make_optimizers(model, config)
        self.accumulator = GradientAccumulator(
            self._module, config, self.batches, self.optimizers, self.process_group, no_sync
        )
        # torch.compile brought no measurable speedup on a CPU.
        compile_by_default = self.device.type == "cuda" and not self.sharded
        self.compiled = compile_by_default if config.compile == "auto" else config.compile
        data = [train_data] if val_data is None else [train_data, val_data]
        self.checkpoints = CheckpointManager(
            self.folder,
            config,
            model,
            self.optimizers,
            tokenizer,
            data,
            self.process_group,
            self.sharded,
        )
        if val_data is None and config.early_stopping_patience is not None:
            log.warning("early_stopping_patience has no effect without text to validate on")
        self.schedule = Schedule(config, self.batches.steps_per_epoch)
        self.chosen = config.chosen()
        """The keys that the user set, as they are logged."""
        self.has_started = False
        """Whether the run folder and its log have been created."""
        self._save_next_step = False
        """Whether to save a checkpoint after the next step, because the folder was lost."""
        self.scaler = self._scaler()
        self.state = RunState()

    @property
    def step(self) -> int:
        """Number of optimizer steps so far, including skipped steps."""
        return self.state.step

    @property
    def total_steps(self) -> int:
        """Number of steps after which the run ends, if nothing else ends it."""
        return self.schedule.total_steps

    @property
    def micro_batch_size(self) -> int:
        """Sequences of a forward pass on this rank; reduced if they do not fit the memory."""
        return self.accumulator.micro_batch_size

    def _scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the training state except tensors, JSON-serializable."""
        return {
            "format": FORMAT,
            **self.state.to_json(),
            "metrics_size": self.metrics_logger.log_size,
            **self._choices(),
            "device": self.device.type,
            "scaler": self.scaler.state_dict(),
            "total_steps": self.total_steps,
            **self.checkpoints.identity,
            "launch": launch_id(),
            "config": mask_secrets(self.config),
        }

    def _choices(self) -> dict[str, Any]:
        """Return the settings that affect floating-point rounding."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "compiled": self.compiled,
            "precision": _dtype_name(self.precision),
            "processes": self.process_group.world_size,
            "threads": torch.get_num_threads(),
        }

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Restore the model, the optimizers and the training state from a checkpoint.

        Raises:
            AGI2Error: if the model, tokenizer or configuration does not match the checkpoint.
        """
        self.checkpoints.load(checkpoint)
        state = checkpoint.state
        self.state = RunState.from_json(state)
        # These affect rounding: on the same device type, keep the earlier values of "auto" keys.
        is_alike = state.get("device", self.device.type) == self.device.type
        if is_alike and self.config.micro_batch_size == "auto":
            accumulator = self.accumulator
            accumulator.micro_batch_size = min(accumulator.rows, state["micro_batch_size"])
        if state["processes"] == self.process_group.world_size and self.config.threads == "auto":
            keep_threads(state["threads"], self.device)
        if is_alike and self.config.compile == "auto":
            self.compiled = state["compiled"]
        if is_alike and self.config.precision == "auto":
            self.precision = getattr(torch, state["precision"])
        self.scaler = self._scaler()
        if self.scaler.is_enabled() and state["scaler"]:  # pragma: needs gpu
            self.scaler.load_state_dict(state["scaler"])
        log_changes(checkpoint, self._choices(), self.config, self.total_steps)
        if end := self.schedule.describe_end(self.state):
            log.warning("nothing is left to train: %s", end)

    # The training loop.

    def fit(self, checkpoint: Checkpoint | None = None, *, verbose: bool = True) -> History:
        """Train from scratch or from a checkpoint until the run is complete.

        Ctrl-C, SIGTERM or SIGHUP saves a checkpoint and raises `KeyboardInterrupt`; a second
        Ctrl-C or SIGTERM exits at once. At the end the best weights are loaded into the model. If
        the run folder is deleted or moved while training, it is created again.

        Args:
            checkpoint: the checkpoint to resume from.
            verbose: whether to log (see `console.visible`).

        Returns:
            `train_loss` (the mean of each epoch, of which the last may be incomplete), `val_loss`
            and `val_steps`, `best_val_loss`, `final_val_loss` (of the best weights, on all held-out
            text) and `bits_per_byte` (or `None`), `steps`, `seconds`, and `stopped`: `finished`,
            `time` (`max_minutes` elapsed) or `early` (early stopping).

        Raises:
            AGI2Error: if the folder is not writable, memory is exhausted, the loss stays
                non-finite, or the device fails; saved checkpoints are kept.
            LostProcess: if the connection to another rank is lost.
        """
        with visible(verbose):
            return self._fit(checkpoint)

    def _fit(self, checkpoint: Checkpoint | None) -> History:
        keep_freed_memory()
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        self._prepare_loss()
        self.metrics_logger = self._make_metrics_logger()
        interrupt = Interrupt()
        try:
            with interrupt:
                # `_begin` may move an old folder away: signals are deferred until a model is saved.
                if self.process_group.is_main:
                    self._begin(checkpoint)
                with self.metrics_logger.shown():
                    stopped = self._loop(interrupt)
                    # Before the final validation, so that a failure in it loses no progress.
                    checkpoint_path = self._save_and_wait()
                self._raise_if_interrupted(interrupt, checkpoint_path)
                interrupt.exits_at_once = True
                return self._finish(stopped)
        except (RuntimeError, MemoryError) as error:
            # When one rank dies, torchrun sends SIGTERM to the others: not an error of this one.
            if interrupt.is_requested and is_lost_process(error):
                raise KeyboardInterrupt from error
            if is_out_of_memory(error):
                raise self.accumulator.out_of_memory(self.step) from error
            if not is_device_failure(error):
                raise
            raise AGI2Error(
                f"{self.device} failed at step {self.step} ({first_line(error)}): when it works "
                "again, or with another device, continue with --resume"
            ) from error
        finally:
            self.metrics_logger.close()
            self.checkpoints.release()

    def _prepare_loss(self) -> None:
        """Compile the model and its loss, and wrap them in DDP (unless they use FSDP)."""
        self.compiled = self.compiled and can_compile(self.device)
        if self.compiled:
            self._module.compile_parts()
        if not self.sharded:
            accumulator = self.accumulator
            accumulator.loss, accumulator.no_sync = self.process_group.wrap_ddp(self._module)

    def _make_metrics_logger(self) -> MetricsLogger:
        config, targets = self.config, self.batches.dataset.seq_len - 1
        bounded = config.epochs < UNBOUNDED_EPOCHS or config.max_steps is not None
        return MetricsLogger(
            self.device,
            self.precision,
            tokens_per_step=self.batches.mean_size * targets,
            flops_per_token=training_flops(self.model.config, self.model.num_parameters(), targets),
            total_steps=self.total_steps if bounded else None,
            world_size=self.process_group.world_size,
        )

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Create or reopen the run folder and its log."""
        self._open_log(self.checkpoints.prepare_folder(checkpoint))
        self.has_started = True

    def _open_log(self, logged: int) -> None:
        """Truncate the log to `logged` bytes and append an entry that describes this start."""
        tokens = self.batches.dataset.tokens
        facts = {
            "chosen": mask_secrets(self.chosen),
            "parameters": self.model.num_parameters(),
            "total_steps": self.total_steps,
            "tokens_per_step": self.metrics_logger.tokens_per_step,
            "train_tokens": len(tokens),
            "train_bytes": count_bytes(tokens, self.tokenizer),
            "val_tokens": len(self.val_data.tokens) if self.val_data else 0,
            "processes": self.process_group.world_size,
            "micro_batch_size": self.micro_batch_size,
            "precision": _dtype_name(self.precision),
            "compiled": self.compiled,
        }
        self.metrics_logger.open(self.config, self.folder, logged, self.step, facts)

    def _recreate_folder_if_lost(self) -> bool:
        """Create the run folder again if it was deleted or moved; return whether it was.

        The best weights are lost with it, so the best val loss is reset.
        """
        has_best = self.state.best_loss < math.inf
        if not self.process_group.broadcast_from_main(lambda: self._is_folder_lost(has_best)):
            return False
        log.warning("%s was deleted or moved away while training: creating it again", self.folder)
        self.state.best_loss, self.state.evaluations_without_gain = math.inf, 0
        self._save_next_step = True
        if self.process_group.is_main:
            self.metrics_logger.close()
            self.checkpoints.restore_folder()
            self._open_log(0)
        return True

    def _is_folder_lost(self, has_best: bool) -> bool:
        return self.checkpoints.is_lost(has_best) or self.metrics_logger.is_lost

    def _loop(self, interrupt: Interrupt) -> str:
        """Run training steps until a stop condition holds; return which one."""
        self.model.train()
        self._first_step, self._seconds_before = self.step, self.state.seconds
        self._started = time.monotonic()
        while True:
            if self.step % self.config.eval_interval == 0 and self.state.evaluated_at != self.step:
                self._validate()
            if reason := self.schedule.stop_reason(self.state):
                return reason
            self._train_one_step()
            self._stop_if_diverged()
            # Ranks must stop at the same step, or the others hang in a collective.
            is_requested, self.state.seconds = self.process_group.all_reduce_stop(
                interrupt.is_requested, self.state.seconds
            )
            if is_requested:
                self._raise_interrupted(self._save_and_wait())
            # After a skipped step the weights may be bad: do not rotate out a good checkpoint.
            is_due = self.step % self.config.checkpoint_interval == 0 or self._save_next_step
            if is_due and not self.state.skipped_in_a_row:
                self.save()

    def _raise_if_interrupted(self, interrupt: Interrupt, path: Path) -> None:
        """Raise `KeyboardInterrupt` if a signal came while the last checkpoint was written."""
        is_requested, _ = self.process_group.all_reduce_stop(
            interrupt.is_requested, self.state.seconds
        )
        if is_requested:
            self._raise_interrupted(path)

    def _raise_interrupted(self, path: Path) -> NoReturn:
        log.info("interrupted: saved %s; continue with --resume", path)
        raise KeyboardInterrupt

    def _train_one_step(self) -> None:
        config = self.config
        started = time.monotonic()
        factor = self.schedule.learning_rate_factor(self.state)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss = self.accumulator.accumulate(self.step, self.precision, self.scaler, self.compiled)
        # While the GPU computes: apply_gradients synchronizes for the grad norm.
        self.accumulator.prefetch(self.step + 1)
        norm, is_taken = apply_gradients(self.optimizers, config.clip_grad_norm, self.scaler)
        self.state.count_step(loss, is_taken, len(self.batches.rows(self.step)))
        if not is_taken:
            log.warning("step %d skipped: its loss or gradients are not finite", self.step)
        now = time.monotonic()
        self.state.seconds = self._seconds_before + now - self._started
        self.metrics_logger.count_step(now - started)
        if self.step % config.log_interval == 0 or self.step == self.total_steps:
            self._log_step(config.learning_rate * factor, norm)
        elif self.step == self._first_step + 1:
            self.metrics_logger.show(self.state, self.schedule.progress(self.state), loss.item())
        if self.step % self.batches.steps_per_epoch == 0:
            self.state.count_epoch()
            self.metrics_logger.log_epoch(self.state)

    def _stop_if_diverged(self) -> None:
        """Raise if too many consecutive steps were skipped."""
        limit = _MAX_SKIPPED_STEPS_FP16 if self.scaler.is_enabled() else _MAX_SKIPPED_STEPS
        if self.state.skipped_in_a_row < limit:
            return
        self.checkpoints.wait()
        newest = self.checkpoints.newest
        raise AGI2Error(
            f"{limit} steps in a row gave no finite loss: lower learning_rate (now "
            f"{self.config.learning_rate:g}) and "
            + (
                f"continue with --resume from {newest}, or name an older checkpoint with resume"
                if newest
                else "start from scratch: there is no earlier checkpoint"
            )
        )

    def _log_step(self, rate: float, norm: torch.Tensor) -> None:
        self._recreate_folder_if_lost()
        epoch, loss = self.step / self.batches.steps_per_epoch, self.state.recent_loss.take()
        self.metrics_logger.show(self.state, self.schedule.progress(self.state), loss)
        self.metrics_logger.log_step(self.state, epoch, loss, rate, norm.item())

    def _validate(self) -> None:
        """Evaluate, save the weights if they are the best so far, and log a sample.

        If this fails, save a checkpoint of the state before it.
        """
        self._recreate_folder_if_lost()
        before = self.state_dict()
        try:
            self._evaluate_and_sample()
        except Exception:
            # With several ranks, saving ends in a barrier that the others may not reach.
            if self.process_group.world_size == 1:
                self.checkpoints.save(before)
                self.checkpoints.wait()
            raise

    def _evaluate_and_sample(self) -> None:
        self.state.evaluated_at = self.step
        self.full_model = self.checkpoints.gather()
        if self.val_data is not None:
            result = self.process_group.broadcast_from_main(
                lambda: self.evaluate(self.config.eval_tokens)
            )
            self._recreate_folder_if_lost()
            is_best = self.state.count_validation(result.loss)
            self.metrics_logger.log_validation(self.step, result)
            if is_best:
                self.checkpoints.save_best(self.full_model)
        if self._sample and self.config.sample_tokens and self.process_group.is_main:
            try:
                text = self.sample(self.config.sample_tokens, self.config.seed + self.step)
                self.metrics_logger.log_sample(self.step, text)
            except AGI2Error as error:  # non-finite weights: `_stop_if_diverged` ends the run
                log.warning("no sample: %s", error)
        self.full_model = self.model  # frees the gathered copy

    def evaluate(self, max_tokens: int = 0) -> Evaluation:
        """Evaluate on about `max_tokens` tokens of the held-out text, or on all of it (0)."""
        assert self.val_data is not None
        assert self._evaluate is not None
        return self._evaluate(
            self.full_model,
            self.val_data,
            self.tokenizer,
            batch_size=self.micro_batch_size,
            max_tokens=max_tokens,
            precision=self.precision,
        )

    def sample(self, max_length: int, seed: int) -> str:
        """Generate text of at most `max_length` tokens with the current weights."""
        assert self._sample is not None
        return self._sample(self.full_model, self.tokenizer, max_length=max_length, seed=seed)

    def save(self) -> Path:
        """Save a checkpoint and return its path; asynchronously if training on a GPU."""
        self._recreate_folder_if_lost()
        self._save_next_step = False
        self.metrics_logger.sync()
        return self.checkpoints.save(self.state_dict())

    def _save_and_wait(self) -> Path:
        """Save a checkpoint and wait until it is complete, on all ranks."""
        path = self.save()
        self.checkpoints.wait()
        return path

    def _finish(self, stopped: str) -> History:
        """Validate, load the best weights into the model and return the history."""
        if self.state.evaluated_at != self.step:
            with show_progress("validating", log_at_once=True):
                self._validate()
            self.save()  # with the result of the validation, so that the run can be extended
        elif self._recreate_folder_if_lost():
            self.save()
        self.full_model = self.checkpoints.load_best()
        history = self.state.result(stopped)
        if self.val_data is not None:
            with show_progress("validating on all held-out text", log_at_once=True):
                final = self.process_group.broadcast_from_main(self.evaluate)
            # best_loss is inf if the folder was lost after the last validation.
            best = self.state.best_loss
            history["best_val_loss"] = best if best < math.inf else final.loss
            history["final_val_loss"] = final.loss
            history["bits_per_byte"] = final.bits_per_byte
            final.log_as_best()
        if self._recreate_folder_if_lost():
            self.checkpoints.save_best(self.full_model)  # the folder with the only copy was lost
        log_end(stopped, self.state, self.folder)
        return history


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
