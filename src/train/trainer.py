"""`Trainer`: the training loop, which can be interrupted and resumed exactly."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from ..arguments import checked
from ..config import Config
from ..console import show_progress, visible
from ..data.planned_windows import training_batches, validation_windows
from ..data.tokens import count_bytes
from ..dataset import TextDataset
from ..errors import AGI2Error, mask_secrets
from ..model import GPT2Model
from ..nn.heap import freed_memory_kept
from ..tokenizer import Tokenizer
from ..utils import log
from .averaging import WeightAverage
from .checkpoint import FORMAT, Checkpoint
from .checkpoint_manager import CheckpointManager, log_changes
from .distributed import ProcessGroup, is_lost_process, launch_id
from .estimates import training_flops
from .garbage import frozen_objects
from .interrupt import Interrupt, describe_interrupt
from .metrics import Evaluation, MetricsLogger, final_eval_tokens, log_end
from .preference_reference import References
from .run_folder import RunFolder
from .schedule import Schedule
from .state import History, RunState
from .step_runner import StepRunner
from .validation import Evaluate, Sample

# The settings of `StepRunner.settings` that the start entry of the log records.
_LOGGED_SETTINGS = ("processes", "micro_batch_size", "precision", "compiled")


class Trainer:
    """Trains a model on a dataset, with validation, logging and checkpoints in a run folder.

    Args:
        model: a model on the training device.
        tokenizer: a fitted tokenizer.
        train_data: windows of T + 1 tokens with stride T; see also `training_batches`.
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
        self._evaluate, self._sample, self.model = evaluate, sample, model
        self.process_group = process_group or ProcessGroup(model.device)
        self.tokenizer = tokenizer
        self.val_data = val_data
        are_pairs = bool(config.preferences)
        self.val_windows = val_data and validation_windows(val_data, tokenizer, are_pairs)
        self.config = config
        self.folder = Path(folder)
        self.full_model = model
        """The unsharded model: under FSDP a gathered copy, in validation and at the end only."""
        self.batches = training_batches(train_data, config, tokenizer)
        self.runner = StepRunner(model, config, self.batches, self.process_group)
        data = [train_data] if val_data is None else [train_data, val_data]
        run = self.folder, config, model, self.runner.optimizers, tokenizer, data
        self.checkpoints = CheckpointManager(*run, self.process_group, self.runner.sharded)
        self.references = References(self.batches.dataset, self.val_windows, model)
        self.checkpoints.tensors = self.references.tensors
        for key in ("early_stopping_patience", "ema_decay"):
            if val_data is None and config[key] is not None:
                log.warning("%s has no effect without text to validate on", key)
        self.schedule = Schedule(config, self.batches.steps_per_epoch)
        self.chosen = config.chosen()
        """The keys that the user set, as they are logged."""
        self.text_lines: list[str] = []
        """What was read and what was skipped, as it is logged."""
        self.has_started = False
        """Whether the run folder and its log have been created."""
        self.state = RunState()

    @property
    def step(self) -> int:
        """Number of optimizer steps so far, including skipped steps."""
        return self.state.step

    @property
    def total_steps(self) -> int:
        """Number of steps after which the run ends, if nothing else ends it."""
        return self.schedule.total_steps

    def state_dict(self) -> dict[str, Any]:
        """Return the training state except tensors, JSON-serializable."""
        return {
            "format": FORMAT,
            **self.state.to_json(),
            "metrics_size": self.metrics_logger.log_size,
            **self.runner.settings(),
            "device": self.runner.device.type,
            "scaler": self.runner.scaler.state_dict(),
            "total_steps": self.total_steps,
            **self.checkpoints.identity,
            "launch": launch_id(),
            "config": mask_secrets(self.config),
        }

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Restore the model, the optimizers and the training state from a checkpoint.

        Raises:
            AGI2Error: if the model, tokenizer or configuration does not match the checkpoint.
        """
        self.checkpoints.load(checkpoint)
        self.state = RunState.from_json(checkpoint.state)
        self.runner.restore(checkpoint.state)
        log_changes(checkpoint, self.runner.settings(), self.config, self.total_steps)
        if end := self.schedule.describe_end(self.state):
            log.warning("nothing is left to train: %s", end)

    # The training loop.

    def fit(self, checkpoint: Checkpoint | None = None, *, verbose: bool = True) -> History:
        """Train from scratch or from a checkpoint until the run is complete.

        Ctrl-C, SIGTERM or SIGHUP saves a checkpoint and raises `KeyboardInterrupt`, whose message
        names it; a second Ctrl-C or SIGTERM exits at once. At the end the best weights are loaded
        into the model. If the run folder is deleted or moved while training, it is created again.

        Args:
            checkpoint: the checkpoint to resume from.
            verbose: whether to log (see `console.visible`).

        Returns:
            `train_loss` (the mean of each epoch, of which the last may be incomplete), `val_loss`
            and `val_steps`, `best_val_loss`, `final_val_loss` and `bits_per_byte` (or `None`) of
            the best weights, `steps`, `seconds`, and `stopped`: `finished`, `time` or `early`.

        Raises:
            AGI2Error: if the folder is not writable, memory is exhausted, the loss stays
                non-finite, or the device fails; saved checkpoints are kept.
            LostProcess: if the connection to another rank is lost.
        """
        with visible(verbose), freed_memory_kept():
            return self._fit(checkpoint)

    def _fit(self, checkpoint: Checkpoint | None) -> History:
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        else:
            self.references.compute(self.checkpoints, self.runner)
        self.runner.prepare()
        self.metrics_logger = self._make_metrics_logger()
        self.run_folder = RunFolder(
            self.checkpoints, self.metrics_logger, self.process_group, self._describe_start
        )
        interrupt = Interrupt()
        try:
            with interrupt:
                # This may move an old folder away: signals are deferred until a model is saved.
                if self.process_group.is_main:
                    self.run_folder.open(checkpoint, self.step)
                    self.has_started = True
                with self.metrics_logger.shown(), frozen_objects():
                    stopped = self._loop(interrupt)
                    # Before the final validation, so that a failure in it loses no progress.
                    checkpoint_path = self._save_and_wait()
                interrupt.exits_at_once = True
                self._stop_if_interrupted(interrupt, checkpoint_path)
                return self._finish(stopped)
        except (RuntimeError, MemoryError) as error:
            # When one rank dies, torchrun sends SIGTERM to the others: not an error of this one.
            if interrupt.is_requested and is_lost_process(error):
                raise KeyboardInterrupt from error
            if (failure := self.runner.describe_failure(error, self.step)) is None:
                raise
            raise failure from error
        finally:
            self.run_folder.close()

    def _make_metrics_logger(self) -> MetricsLogger:
        length = self.batches.dataset.attention_length
        return MetricsLogger(
            self.runner.device,
            self.runner.precision,
            tokens_per_step=self.batches.targets_per_step,
            flops_per_token=training_flops(self.model.config, self.model.num_parameters(), length),
            total_steps=self.schedule.planned_steps,
            world_size=self.process_group.world_size,
        )

    def _describe_start(self) -> dict[str, Any]:
        """Return what the start entry of the log says about the run."""
        tokens, settings = self.batches.dataset.tokens, self.runner.settings()
        return {
            "chosen": mask_secrets(self.chosen),
            "text": mask_secrets(self.text_lines),
            "parameters": self.model.num_parameters(),
            "total_steps": self.total_steps,
            "tokens_per_step": self.metrics_logger.tokens_per_step,
            "train_tokens": len(tokens),
            "train_bytes": count_bytes(tokens, self.tokenizer),
            "val_tokens": len(self.val_data.tokens) if self.val_data else 0,
            **{key: settings[key] for key in _LOGGED_SETTINGS},
        }

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
                raise KeyboardInterrupt(describe_interrupt(self.folder, self._save_and_wait()))
            # After a skipped step the weights may be bad: do not rotate out a good checkpoint.
            is_due = (
                self.step % self.config.checkpoint_interval == 0 or self.run_folder.needs_checkpoint
            )
            if is_due and not self.state.skipped_in_a_row:
                self.save()

    def _stop_if_interrupted(self, interrupt: Interrupt, path: Path) -> None:
        """Raise `KeyboardInterrupt` if a signal came while the last checkpoint was written."""
        is_requested, _ = self.process_group.all_reduce_stop(
            interrupt.is_requested, self.state.seconds
        )
        if is_requested:
            raise KeyboardInterrupt(describe_interrupt(self.folder, path))

    def _train_one_step(self) -> None:
        config = self.config
        started = time.monotonic()
        factor = self.schedule.learning_rate_factor(self.state)
        weight = self.batches.weight(self.step)
        loss, norm, is_taken = self.runner.run(self.step, factor)
        self.state.count_step(loss, is_taken, weight, self.runner.accumulator.take_sums())
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
        if self.state.skipped_in_a_row >= self.runner.max_skipped_steps:
            self.checkpoints.wait()
            raise self.runner.diverged(self.checkpoints.newest)

    def _log_step(self, rate: float, norm: torch.Tensor) -> None:
        self.run_folder.recreate_if_lost(self.state)
        epoch, loss = self.step / self.batches.steps_per_epoch, self.state.recent_loss.take()
        self.metrics_logger.show(self.state, self.schedule.progress(self.state), loss)
        self.metrics_logger.log_step(self.state, epoch, loss, rate, norm.item())

    def _validate(self) -> None:
        """Evaluate, save the weights if they are the best so far, and log a sample.

        If this fails, save a checkpoint of the state before it.
        """
        self.run_folder.recreate_if_lost(self.state)
        before = self.state_dict()
        try:
            with show_progress("validating"):
                self._evaluate_and_sample()
        except Exception:
            # With several ranks, saving ends in a barrier that the others may not reach.
            if self.process_group.world_size == 1:
                self.checkpoints.save(before)
                self.checkpoints.wait()
            raise

    def _evaluate_and_sample(self) -> None:
        self.state.evaluated_at = self.step
        if self.val_data is not None:
            self._compare_weights(self.runner.average)
        else:
            self.full_model = self.checkpoints.gather()
        if self._sample and self.config.sample_tokens and self.process_group.is_main:
            try:
                text = self.sample(self.config.sample_tokens, self.config.seed + self.step)
                self.metrics_logger.log_sample(self.step, text)
            except AGI2Error as error:  # non-finite weights: `_stop_if_diverged` ends the run
                log.warning("no sample: %s", error)
        self.full_model = self.model  # frees the gathered copy

    def _compare_weights(self, average: WeightAverage) -> None:
        """Evaluate the weights and their average, if any; save the better if it is the best."""
        averaged = average.evaluate(self._evaluate_weights)
        result = weights = self._evaluate_weights()
        if averaged is not None and averaged.loss < weights.loss:
            result = averaged
        self.run_folder.recreate_if_lost(self.state)
        is_best = self.state.count_validation(result.loss)
        self.metrics_logger.log_validation(self.step, weights, averaged)
        if is_best:
            with average.swapped(result is averaged):
                self.checkpoints.save_best(self.checkpoints.gather())

    def _evaluate_weights(self) -> Evaluation:
        self.full_model, limit = self.checkpoints.gather(), self.config.eval_tokens
        return self.process_group.broadcast_from_main(lambda: self.evaluate(limit))

    def evaluate(self, max_tokens: int = 0) -> Evaluation:
        """Evaluate on about `max_tokens` tokens of the held-out text, or on all of it (0)."""
        assert self.val_windows is not None
        assert self._evaluate is not None
        return self._evaluate(
            self.full_model,
            self.val_windows,
            self.tokenizer,
            batch_size=self.runner.micro_batch_size,
            max_tokens=max_tokens,
            precision=self.runner.precision,
        )

    def _evaluate_best(self) -> Evaluation:
        trained = self.step * self.batches.batch_size
        limit = final_eval_tokens(self.config.eval_tokens, self.val_windows, trained)
        with show_progress("validating the best weights", log_at_once=True):
            return self.evaluate(limit)

    def sample(self, max_length: int, seed: int) -> str:
        """Generate text of at most `max_length` tokens with the current weights."""
        assert self._sample is not None
        return self._sample(self.full_model, self.tokenizer, max_length=max_length, seed=seed)

    def save(self) -> Path:
        """Save a checkpoint and return its path; asynchronously if training on a GPU."""
        self.run_folder.recreate_if_lost(self.state)
        self.metrics_logger.sync()
        return self.run_folder.save(self.state_dict())

    def _save_and_wait(self) -> Path:
        """Save a checkpoint and wait until it is complete, on all ranks."""
        path = self.save()
        self.checkpoints.wait()
        return path

    def _finish(self, stopped: str) -> History:
        """Validate, load the best weights into the model and return the history."""
        self.run_folder.show_phase("validating")
        if self.state.evaluated_at != self.step:
            with show_progress("validating", log_at_once=True):
                self._validate()
            self.save()  # with the result of the validation, so that the run can be extended
        elif self.run_folder.recreate_if_lost(self.state):
            self.save()
        self.full_model = self.checkpoints.load_best()
        history = self.state.result(stopped)
        if self.val_data is not None:
            final = self.process_group.broadcast_from_main(self._evaluate_best)
            best = self.state.best_loss  # inf if the folder was lost after the last validation
            history["best_val_loss"] = best if best < math.inf else final.loss
            history["final_val_loss"] = final.loss
            history["bits_per_byte"] = final.bits_per_byte
            final.log_as_best()
        if self.run_folder.recreate_if_lost(self.state):
            self.checkpoints.save_best(self.full_model)  # the folder with the only copy was lost
        log_end(stopped, self.state, self.folder)
        return history
