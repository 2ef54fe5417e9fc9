"""`Trainer`: the training loop, which can be interrupted and resumed exactly."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..arguments import checked
from ..config import Config
from ..config_checks import UNBOUNDED_EPOCHS
from ..console import busy, visible
from ..cuda_utils import (
    can_compile,
    first_line,
    is_device_failure,
    is_out_of_memory,
    select_precision,
)
from ..data.batches import EpochBatches
from ..data.tokens import bytes_of
from ..dataset import TextDataset
from ..errors import AGI2Error, masked
from ..model import GPT2Model
from ..tokenizer import Tokenizer
from ..utils import human_time, keep_freed_memory, log, plural, seed_everything
from .checkpoint import FORMAT, Checkpoint
from .checkpoint_manager import CheckpointManager, log_changes
from .distributed import Processes, is_lost_process, launch_id
from .estimates import choose_micro_batch_size, training_flops
from .interrupt import Interrupt
from .loss import LossFunction, NextTokenLoss
from .metrics import Evaluation, Telemetry
from .optimizer import make_optimizers
from .schedule import learning_rate_factor
from .state import History, RunState
from .step import (
    accumulate_gradients,
    apply_gradients,
)
from .validation import Evaluate, Sample

# A run ends after this many consecutive skipped steps. In fp16 the first steps overflow, each of
# which halves the loss scale.
_SKIPPED_AT_MOST, _SKIPPED_IN_FP16 = 5, 30


class Trainer:
    """Trains a model on a dataset, with validation, logging and checkpoints in a run folder.

    Args:
        model: a model on the training device.
        tokenizer: a fitted tokenizer.
        train_data: windows of T + 1 tokens with stride T.
        val_data: the same for the held-out text, if any.
        config: the run's configuration.
        folder: the run folder, created if it does not exist.
        processes: the process group. Each rank has the same data and trains on its own rows of
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
        processes: Processes | None = None,
        *,
        evaluate: Evaluate | None = None,
        sample: Sample | None = None,
    ) -> None:
        if val_data is not None and evaluate is None:
            raise AGI2Error("evaluate: needed to validate on val_data")
        self._evaluate, self._sample = evaluate, sample
        self.model = model
        self.processes = processes or Processes(model.device)
        self.tokenizer = tokenizer
        self.val_data = val_data
        self.config = config
        self.folder = Path(folder)
        self.device = self.processes.device
        self.precision = select_precision(config.precision, self.device)
        self.sharded = config.parallel == "fsdp" and self.processes.is_initialized
        if self.sharded and self.precision == torch.float16:
            raise AGI2Error('precision: parallel = "fsdp" needs "bf16" or "fp32", not fp16')
        self._module = NextTokenLoss(model)
        if self.sharded:
            self._no_sync = self.processes.wrap_fsdp(self._module, model.blocks)
        self.whole = model
        """The unsharded model: under FSDP a gathered copy, in validation and at the end only."""
        self.batches = EpochBatches(train_data, config.batch_size, config.seed)
        self.optimizers = make_optimizers(model, config)
        self._rows = self._local_batch_size()
        self.micro_batch_size = min(self._rows, self._micro_batch_size())
        # torch.compile brought no measurable speedup on a CPU.
        wanted = self.device.type == "cuda" and not self.sharded
        self.compiled = wanted if config.compile == "auto" else config.compile
        data = [train_data] if val_data is None else [train_data, val_data]
        self.kept = CheckpointManager(
            self.folder,
            config,
            model,
            self.optimizers,
            tokenizer,
            data,
            self.processes,
            self.sharded,
        )
        if val_data is None and config.early_stopping_patience is not None:
            log.warning("early_stopping_patience has no effect without text to validate on")
        self.total_steps = config.epochs * self.batches.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.chosen = config.chosen()
        """The keys that the user set, as they are logged."""
        self.has_begun = False
        """Whether the run folder and its log have been created."""
        self._save_next_step = False
        """Whether to save a checkpoint after the next step, because the folder was lost."""
        self.scaler = self._scaler()
        self.state = RunState()

    @property
    def step(self) -> int:
        """Number of optimizer steps so far, including skipped steps."""
        return self.state.step

    def _scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    def _local_batch_size(self) -> int:
        """Return the local batch size: the maximum number of sequences of a batch on this rank."""
        batch, count = self.config.batch_size, self.processes.count
        if batch % count:
            raise AGI2Error(
                f"batch_size: {plural(batch, 'sequence')} cannot be shared equally by {count} "
                "processes"
            )
        return -(-self.batches.batch_size // count)

    def _rows_per_step(self) -> float:
        """Return the mean global batch size over an epoch; an `int` if all batches are equal."""
        mean = self.batches.windows / self.batches.steps_per_epoch
        return int(mean) if mean.is_integer() else mean

    def _micro_batch_size(self) -> int:
        size = self.config.micro_batch_size
        if size == "auto":
            return choose_micro_batch_size(
                self.model.config,
                self.batches.dataset.seq_len,
                self.config.batch_size // self.processes.count,
                self.device,
            )
        return size

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the training state except tensors, JSON-serializable."""
        return {
            "format": FORMAT,
            **self.state.to_json(),
            "metrics_size": self.telemetry.log_size,
            **self._choices(),
            "device": self.device.type,
            "scaler": self.scaler.state_dict(),
            "total_steps": self.total_steps,
            **self.kept.identity,
            "launch": launch_id(),
            "config": masked(self.config),
        }

    def _choices(self) -> dict[str, Any]:
        """Return the settings that affect floating-point rounding."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "compiled": self.compiled,
            "precision": _name_of(self.precision),
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
        }

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Restore the model, the optimizers and the training state from a checkpoint.

        Raises:
            AGI2Error: if the model, tokenizer or configuration does not match the checkpoint.
        """
        self.kept.load(checkpoint)
        state = checkpoint.state
        self.state = RunState.from_json(state)
        # These affect rounding: on the same device type, keep the earlier values of "auto" keys.
        is_alike = state.get("device", self.device.type) == self.device.type
        if is_alike and self.config.micro_batch_size == "auto":
            self.micro_batch_size = min(self._rows, state["micro_batch_size"])
        if state["processes"] == self.processes.count and self.config.threads == "auto":
            self._use_threads(state["threads"])
        if is_alike and self.config.compile == "auto":
            self.compiled = state["compiled"]
        if is_alike and self.config.precision == "auto":
            self.precision = getattr(torch, state["precision"])
        self.scaler = self._scaler()
        if self.scaler.is_enabled() and state["scaler"]:  # pragma: needs gpu
            self.scaler.load_state_dict(state["scaler"])
        log_changes(checkpoint, self._choices(), self.config, self.total_steps)
        if why := self._why_over():
            log.warning("nothing is left to train: %s", why)

    def _use_threads(self, count: int) -> None:
        """Set the number of CPU threads of the checkpoint, so that reductions round as before."""
        here = torch.get_num_threads()
        if count != here and self.device.type == "cpu":
            log.info(
                "training with %d CPU threads as before, which keeps the run exact; this machine "
                "would use %d: set threads = %d for these",
                count,
                here,
                here,
            )
        torch.set_num_threads(count)

    def _why_over(self) -> str:
        """Return why the run is complete, and how to continue it; empty if it is not complete."""
        if self._patience_is_over():
            found, patience = (
                self.state.evaluations_without_gain,
                self.config.early_stopping_patience,
            )
            return (
                f"the run stopped early, after {found} validations without a better loss; set "
                f"early_stopping_patience above {found} (now {patience}), or leave it out"
            )
        if self.step >= self.total_steps:
            return f"the run has its {self.total_steps} steps; raise epochs or max_steps"
        if self._time_is_over():
            return f"the run has its {self.config.max_minutes:g} minutes; raise max_minutes"
        return ""

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
        self.telemetry = self._telemetry()
        interrupt = Interrupt()
        try:
            with interrupt:
                # `_begin` may move an old folder away: signals are deferred until a model is saved.
                if self.processes.is_main:
                    self._begin(checkpoint)
                with self.telemetry.shown():
                    stopped = self._loop(interrupt)
                    # Before the final validation, so that a failure in it loses no progress.
                    place = self._save_and_wait()
                self._leave_if_asked(interrupt, place)
                interrupt.at_once = True
                return self._finish(stopped)
        except (RuntimeError, MemoryError) as error:
            # When one rank dies, torchrun sends SIGTERM to the others: not an error of this one.
            if interrupt.asked and is_lost_process(error):
                raise KeyboardInterrupt from error
            if is_out_of_memory(error):
                raise self._out_of_memory() from error
            if not is_device_failure(error):
                raise
            raise AGI2Error(
                f"{self.device} failed at step {self.step} ({first_line(error)}): when it works "
                "again, or with another device, continue with --resume"
            ) from error
        finally:
            self.telemetry.close()
            self.kept.release()

    def _prepare_loss(self) -> None:
        """Compile the model and its loss, and wrap them in DDP (unless they use FSDP)."""
        self.compiled = self.compiled and can_compile(self.device)
        if self.compiled:
            self._module.compile_parts()
        self.loss: LossFunction = self._module
        if not self.sharded:
            self.loss, self._no_sync = self.processes.wrap_ddp(self._module)

    def _telemetry(self) -> Telemetry:
        config, targets = self.config, self.batches.dataset.seq_len - 1
        bounded = config.epochs < UNBOUNDED_EPOCHS or config.max_steps is not None
        return Telemetry(
            self.device,
            self.precision,
            tokens_per_step=self._rows_per_step() * targets,
            flops_per_token=training_flops(self.model.config, self.model.num_parameters(), targets),
            total_steps=self.total_steps if bounded else None,
            processes=self.processes.count,
        )

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Create or reopen the run folder and its log."""
        self._open_log(self.kept.prepare_folder(checkpoint))
        self.has_begun = True

    def _open_log(self, logged: int) -> None:
        """Truncate the log to `logged` bytes and append an entry that describes this start."""
        tokens = self.batches.dataset.tokens
        about = {
            "chosen": masked(self.chosen),
            "parameters": self.model.num_parameters(),
            "total_steps": self.total_steps,
            "tokens_per_step": self.telemetry.tokens_per_step,
            "train_tokens": len(tokens),
            "train_bytes": bytes_of(tokens, self.tokenizer),
            "val_tokens": len(self.val_data.tokens) if self.val_data else 0,
            "processes": self.processes.count,
            "micro_batch_size": self.micro_batch_size,
            "precision": _name_of(self.precision),
            "compiled": self.compiled,
        }
        self.telemetry.open(self.config, self.folder, logged, self.step, about)

    def _keep_folder(self) -> bool:
        """Create the run folder again if it was deleted or moved; return whether it was.

        The best weights are lost with it, so the best val loss is reset.
        """
        has_best = self.state.best_loss < math.inf
        if not self.processes.broadcast_from_main(lambda: self._is_folder_lost(has_best)):
            return False
        log.warning("%s was deleted or moved away while training: creating it again", self.folder)
        self.state.best_loss, self.state.evaluations_without_gain = math.inf, 0
        self._save_next_step = True
        if self.processes.is_main:
            self.telemetry.close()
            self.kept.restore_folder()
            self._open_log(0)
        return True

    def _is_folder_lost(self, has_best: bool) -> bool:
        return self.kept.is_lost(has_best) or self.telemetry.is_lost

    def _loop(self, interrupt: Interrupt) -> str:
        """Run training steps until a stop condition holds; return which one."""
        self.model.train()
        self._first_step, self._first_second = self.step, self.state.seconds
        self._started = time.monotonic()
        self._upcoming: torch.Tensor | None = None
        while True:
            if self.step % self.config.eval_interval == 0 and self.state.evaluated_at != self.step:
                self._validate()
            if self._patience_is_over():
                return "early"
            if self.step >= self.total_steps:
                return "finished"
            if self._time_is_over():
                return "time"
            self._train_one_step()
            self._stop_if_diverged()
            # Ranks must stop at the same step, or the others hang in a collective.
            asked, self.state.seconds = self.processes.all_reduce_stop(
                interrupt.asked, self.state.seconds
            )
            if asked:
                self._leave(self._save_and_wait())
            # After a skipped step the weights may be bad: do not rotate out a good checkpoint.
            is_due = self.step % self.config.checkpoint_interval == 0 or self._save_next_step
            if is_due and not self.state.skipped_in_a_row:
                self.save()

    def _leave_if_asked(self, interrupt: Interrupt, place: Path) -> None:
        """Raise `KeyboardInterrupt` if a signal came while the last checkpoint was written."""
        asked, _ = self.processes.all_reduce_stop(interrupt.asked, self.state.seconds)
        if asked:
            self._leave(place)

    def _leave(self, place: Path) -> NoReturn:
        log.info("interrupted: saved %s; continue with --resume", place)
        raise KeyboardInterrupt

    def _train_one_step(self) -> None:
        config = self.config
        started = time.monotonic()
        factor = self._learning_rate_factor()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss = self._accumulate()
        # Prefetch while the GPU computes: apply_gradients synchronizes for the grad norm.
        self._upcoming = self._fetch(self.step + 1)
        norm, taken = apply_gradients(self.optimizers, config.clip_grad_norm, self.scaler)
        self.state.count_step(loss, taken, len(self.batches.rows(self.step)))
        if not taken:
            log.warning("step %d skipped: its loss or gradients are not finite", self.step)
        now = time.monotonic()
        self.state.seconds = self._first_second + now - self._started
        self.telemetry.count_step(now - started)
        if self.step % config.log_interval == 0 or self.step == self.total_steps:
            self._log_step(config.learning_rate * factor, norm)
        elif self.step == self._first_step + 1:
            self.telemetry.show(self.state, self._progress(), loss.item())
        if self.step % self.batches.steps_per_epoch == 0:
            self.state.count_epoch()
            self.telemetry.log_epoch(self.state)

    def _fetch(self, step: int) -> torch.Tensor:
        """Return this rank's batch of a step; on CUDA as a non-blocking copy to the device."""
        batch = self.batches.batch(step, self.processes.rank, self.processes.count)
        if self.device.type == "cuda":  # pragma: needs gpu
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch

    def _accumulate(self) -> torch.Tensor:
        """Accumulate gradients, in smaller micro-batches if out of memory; return the mean loss."""
        batch = self._upcoming if self._upcoming is not None else self._fetch(self.step)
        rows, count = len(self.batches.rows(self.step)), self.processes.count
        while True:
            # Dropout is seeded by the step, so that a retried or resumed step has the same masks,
            # and by the rank, so that ranks have different ones. The factors keep seeds distinct.
            seed = self.config.seed * 1_000_033 + self.step + self.processes.rank * 2**40
            seed_everything(seed % 2**63)
            try:
                loss = accumulate_gradients(
                    self.loss,
                    batch,
                    self.device,
                    micro_batch_size=self.micro_batch_size,
                    precision=self.precision,
                    scaler=self.scaler,
                    no_sync=self._no_sync,
                    weight=len(batch) * count / rows,
                    rounds=-(-rows // (count * self.micro_batch_size)),
                    is_padded=self.compiled,
                )
                return self.processes.all_reduce_mean(loss)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, whose traceback keeps the tensors alive.
            self._shrink_micro_batch()

    def _shrink_micro_batch(self) -> None:
        """Reduce the micro-batch size to the largest divisor of the batch up to half of it."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":  # pragma: needs gpu
            torch.cuda.empty_cache()
        if self.processes.count > 1 or self.micro_batch_size == 1:
            raise self._out_of_memory()
        whole, half = self.config.batch_size, self.micro_batch_size // 2
        smaller = max(n for n in range(1, half + 1) if whole % n == 0)
        log.warning(
            "out of memory with %s at a time: continuing with %d (the same gradients)",
            plural(self.micro_batch_size, "sequence"),
            smaller,
        )
        self.micro_batch_size = smaller

    def _out_of_memory(self) -> AGI2Error:
        """Return the error for out of memory that a smaller micro-batch cannot fix."""
        who = f" on process {self.processes.rank}" if self.processes.count > 1 else ""
        return AGI2Error(
            f"out of memory at step {self.step}{who}, with "
            f"{plural(self.micro_batch_size, 'sequence')} at a time: lower micro_batch_size, set "
            "gradient_checkpointing = true, or lower seq_len, vocab_size, model_layer or model_embd"
            + ('; or share the model: parallel = "fsdp"' if who else "")
        )

    def _stop_if_diverged(self) -> None:
        """Raise if too many consecutive steps were skipped."""
        limit = _SKIPPED_IN_FP16 if self.scaler.is_enabled() else _SKIPPED_AT_MOST
        if self.state.skipped_in_a_row < limit:
            return
        self.kept.wait()
        newest = self.kept.newest
        raise AGI2Error(
            f"{limit} steps in a row gave no finite loss: lower learning_rate (now "
            f"{self.config.learning_rate:g}) and "
            + (
                f"continue with --resume from {newest}, or name an older checkpoint with resume"
                if newest
                else "start from scratch: there is no earlier checkpoint"
            )
        )

    @property
    def _clock(self) -> float:
        """Elapsed fraction of `max_minutes`; 0 without it."""
        limit = self.config.max_minutes
        return 0.0 if limit is None else self.state.seconds / (60 * limit)

    def _progress(self) -> float:
        """Return the completed fraction of the run, by steps or by time, whichever is larger."""
        return min(max(self.step / self.total_steps, self._clock), 1.0)

    def _learning_rate_factor(self) -> float:
        config = self.config
        return learning_rate_factor(
            config.lr_schedule,
            self.step,
            self.total_steps,
            config.warmup_steps,
            config.lr_decay_fraction,
            self._clock,
        )

    def _time_is_over(self) -> bool:
        return self._clock >= 1.0

    def _patience_is_over(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def _log_step(self, rate: float, norm: torch.Tensor) -> None:
        self._keep_folder()
        epoch, loss = self.step / self.batches.steps_per_epoch, self.state.recent_loss.take()
        self.telemetry.show(self.state, self._progress(), loss)
        self.telemetry.log_step(self.state, epoch, loss, rate, norm.item())

    def _validate(self) -> None:
        """Evaluate, save the weights if they are the best so far, and log a sample.

        If this fails, save a checkpoint of the state before it.
        """
        self._keep_folder()
        before = self.state_dict()
        try:
            self._look()
        except Exception:
            # With several ranks, saving ends in a barrier that the others may not reach.
            if self.processes.count == 1:
                self.kept.save(before)
                self.kept.wait()
            raise

    def _look(self) -> None:
        self.state.evaluated_at = self.step
        self.whole = self.kept.gather()
        if self.val_data is not None:
            result = self.processes.broadcast_from_main(
                lambda: self.evaluate(self.config.eval_tokens)
            )
            self._keep_folder()
            is_best = self.state.count_validation(result.loss)
            self.telemetry.log_validation(self.step, result)
            if is_best:
                self.kept.save_best(self.whole)
        if self._sample and self.config.sample_tokens and self.processes.is_main:
            try:
                text = self.sample(self.config.sample_tokens, self.config.seed + self.step)
                self.telemetry.log_sample(self.step, text)
            except AGI2Error as error:  # non-finite weights: `_stop_if_diverged` ends the run
                log.warning("no sample: %s", error)
        self.whole = self.model  # frees the gathered copy

    def evaluate(self, max_tokens: int = 0) -> Evaluation:
        """Evaluate on about `max_tokens` tokens of the held-out text, or on all of it (0)."""
        assert self.val_data is not None
        assert self._evaluate is not None
        return self._evaluate(
            self.whole,
            self.val_data,
            self.tokenizer,
            batch_size=self.micro_batch_size,
            max_tokens=max_tokens,
            precision=self.precision,
        )

    def sample(self, max_length: int, seed: int) -> str:
        """Generate text of at most `max_length` tokens with the current weights."""
        assert self._sample is not None
        return self._sample(self.whole, self.tokenizer, max_length=max_length, seed=seed)

    def save(self) -> Path:
        """Save a checkpoint and return its path; asynchronously if training on a GPU."""
        self._keep_folder()
        self._save_next_step = False
        self.telemetry.sync()
        return self.kept.save(self.state_dict())

    def _save_and_wait(self) -> Path:
        """Save a checkpoint and wait until it is complete, on all ranks."""
        place = self.save()
        self.kept.wait()
        return place

    def _finish(self, stopped: str) -> History:
        """Validate, load the best weights into the model and return the history."""
        if self.state.evaluated_at != self.step:
            with busy("validating", everywhere=True):
                self._validate()
            self.save()  # with the result of the validation, so that the run can be extended
        elif self._keep_folder():
            self.save()
        self.whole = self.kept.load_best()
        history = {
            **self.state.history,
            "steps": self.step,
            "seconds": self.state.seconds,
            "stopped": stopped,
        }
        if self.state.epoch_loss.count:  # of an incomplete epoch
            history["train_loss"] = [*history["train_loss"], self.state.epoch_loss.take()]
            log.info("incomplete epoch  train loss %.4f", history["train_loss"][-1])
        if self.val_data is not None:
            with busy("validating on all held-out text", everywhere=True):
                final = self.processes.broadcast_from_main(self.evaluate)
            # best_loss is inf if the folder was lost after the last validation.
            best = self.state.best_loss
            history["best_val_loss"] = best if best < math.inf else final.loss
            history["final_val_loss"] = final.loss
            history["bits_per_byte"] = final.bits_per_byte
            log.info(
                "best weights: val loss %.4f, perplexity %.2f, %s",
                final.loss,
                final.perplexity,
                final.describe_bits(),
            )
        if self._keep_folder():
            self.kept.save_best(self.whole)  # the folder with the only copy was lost
        log.info(
            "%s after %s, %s: %s",
            {"early": "stopped early", "time": "time is over"}.get(stopped, stopped),
            plural(self.step, "step"),
            human_time(self.state.seconds),
            self.folder,
        )
        return history


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
