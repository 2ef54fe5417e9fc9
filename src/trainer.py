"""One optimizer step, and `Trainer`: a run that can be stopped and resumed exactly."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint as checkpoints
from .checkpoint import FREE_ARCHITECTURE_KEYS, Checkpoint
from .config import UNBOUNDED_EPOCHS, Config
from .cuda_utils import (
    autocast,
    can_compile,
    choose_micro_batch_size,
    describe_device,
    memory_stats,
    select_precision,
)
from .dataset import EpochBatches, TextDataset
from .errors import AGI2Error
from .evaluation import Evaluation, evaluate
from .generation import generate_text
from .metrics import MetricsFile, RunningMean, TrainingDisplay, busy
from .model import GPT2Model
from .optimization import Optimizer, learning_rate_factor, make_optimizers
from .tokenizer import Tokenizer
from .utils import Interrupt, human_time, keep_freed_memory, log, writing

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (N, V) and targets (N,) to the mean loss."""
Batch = torch.Tensor | Sequence[torch.Tensor]
"""Windows (B, T), or inputs and targets, (B, T) each."""
History = dict[str, Any]

# A change of these would make another run: the data's order, or what the steps are.
FIXED_ON_RESUME = (
    "sources",
    "text_field",
    "val_fraction",
    "tokenizer",
    "seq_len",
    "batch_size",
    "seed",
    "optimizer",
)


def split_batch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets: each token's target is the one after it."""
    if isinstance(batch, torch.Tensor):
        return batch[:, :-1], batch[:, 1:]
    inputs, targets = batch
    return inputs, targets


def training_step(
    model: nn.Module,
    batch: Batch,
    optimizers: Sequence[Optimizer],
    criterion: Criterion,
    device: torch.device | str,
    *,
    clip_grad_norm: float | None = None,
    micro_batch_size: int | None = None,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step on a batch, a micro-batch at a time.

    Micro-batches are weighted by their rows, so that the gradient is the whole batch's.

    Args:
        model: in training mode.
        batch: windows (B, T) that are shifted, or inputs and targets.
        optimizers: together over all parameters, whose gradients are unset before and after.
        criterion: mean loss from logits (N, V) and targets (N,).
        device: where the model is.
        clip_grad_norm: the largest gradient norm, if any.
        micro_batch_size: rows at a time; all by default.
        precision: of matrix products.
        scaler: for fp16, whose small gradients would vanish. It leaves out a step that overflows.

    Returns:
        The mean loss and the gradient norm before clipping (0 without clipping): scalars that
        stay on the device.
    """
    device = torch.device(device)
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    inputs, targets = split_batch(batch)
    rows = inputs.size(0)
    size = micro_batch_size or rows
    loss_sum = torch.zeros((), device=device)
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with autocast(device, precision):
            loss = criterion(model(x).flatten(0, 1), y.flatten()) * (len(x) / rows)
        scaler.scale(loss).backward()
        loss_sum += loss.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.zeros((), device=device)
    if clip_grad_norm is not None:
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
    # Clipping spreads an overflow to every gradient, so that no optimizer may step.
    overflow = scaler.is_enabled() and not norm.isfinite()
    for optimizer in optimizers:
        if not overflow:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return loss_sum, norm


class Trainer:
    """A run: a model, its data and its folder, from any step to the end.

    Args:
        model: on the device to train on.
        tokenizer: fitted.
        train_data: windows of T + 1 tokens with stride T.
        val_data: the same of held-out text, if any.
        config: the run's.
        folder: where everything is written; made where it is not there.
    """

    def __init__(
        self,
        model: GPT2Model,
        tokenizer: Tokenizer,
        train_data: TextDataset,
        val_data: TextDataset | None,
        config: Config,
        folder: Path,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.val_data = val_data
        self.config = config
        self.folder = folder
        self.weights = folder / checkpoints.WEIGHTS
        self.device = model.device
        self.batches = EpochBatches(train_data, config.batch_size, config.seed)
        self.precision = select_precision(config.precision, self.device)
        self.optimizers = make_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )
        self.micro_batch_size = min(self.batches.batch_size, self._micro_batch_size())
        wanted = self.device.type == "cuda" if config.compile == "auto" else config.compile
        self.compiled = wanted and can_compile(self.device)
        self.forward: nn.Module = torch.compile(model) if self.compiled else model  # type: ignore
        if val_data is None and config.early_stopping_patience is not None:
            log.warning("early_stopping_patience has no effect without text to validate on")
        self.total_steps = config.epochs * self.batches.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        # Everything below is saved in a checkpoint.
        self.step = 0
        self.seconds = 0.0
        self.epoch_loss = RunningMean()
        self.recent_loss = RunningMean()
        self.evaluated_at = 0
        self.best_loss = float("inf")
        self.evaluations_without_gain = 0
        self.history: History = {"train_loss": [], "val_loss": [], "val_steps": []}

    def _micro_batch_size(self) -> int:
        size = self.config.micro_batch_size
        if size == "auto":
            return choose_micro_batch_size(
                self.model.config, self.batches.dataset.seq_len, self.config.batch_size, self.device
            )
        return size

    # What a checkpoint holds.

    def state_dict(self) -> dict[str, Any]:
        """Everything but tensors that a resumed run needs, as JSON can hold it."""
        return {
            "format": 1,
            "step": self.step,
            "seconds": self.seconds,
            "epoch_loss": self.epoch_loss.state(),
            "recent_loss": self.recent_loss.state(),
            "evaluated_at": self.evaluated_at,
            "best_loss": self.best_loss if self.best_loss < float("inf") else None,
            "evaluations_without_gain": self.evaluations_without_gain,
            "history": self.history,
            "metrics_size": self.metrics.size,
            "micro_batch_size": self.micro_batch_size,
            "compiled": self.compiled,
            "threads": torch.get_num_threads(),
            "scaler": self.scaler.state_dict(),
            "total_steps": self.total_steps,
            "tokenizer": self.tokenizer.fingerprint,
            "text": self._text_hash(),
            "fixed": self._fixed(),
        }

    def _fixed(self) -> dict[str, Any]:
        """What may not change when a run is resumed."""
        architecture = self.model.config.to_keys()
        return {
            **{key: self.config[key] for key in FIXED_ON_RESUME},
            **{k: v for k, v in architecture.items() if k not in FREE_ARCHITECTURE_KEYS},
        }

    def _text_hash(self) -> str:
        """What the training and validation tokens are, as a hash."""
        digest = hashlib.sha256(self.batches.dataset.tokens.data)
        if self.val_data is not None:
            digest.update(self.val_data.tokens.data)
        return digest.hexdigest()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Optimizer state and random states."""
        tensors = checkpoints.optimizer_tensors(self.model, self.optimizers)
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":  # pragma: needs gpu
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Become the run that wrote this checkpoint.

        Raises:
            AGI2Error: where model, tokenizer or configuration do not belong to it.
        """
        state = checkpoint.state
        if state["tokenizer"] != self.tokenizer.fingerprint:
            raise AGI2Error(f"{checkpoint.folder} was trained with another tokenizer")
        for key, now in self._fixed().items():
            if state["fixed"][key] != now:
                raise AGI2Error(
                    f"{checkpoint.folder} was trained with {key} = {state['fixed'][key]!r}, now "
                    f"it is {now!r}: set it back, or start anew without resume"
                )
        if state["text"] != self._text_hash():
            raise AGI2Error(
                f"the text has changed since {checkpoint.folder}: put it back as it was, or start "
                "anew without resume"
            )
        tensors = checkpoint.load_into(self.model)
        checkpoints.load_optimizer_tensors(self.model, self.optimizers, tensors)
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in tensors:  # pragma: needs gpu
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.epoch_loss = RunningMean(*state["epoch_loss"])
        self.recent_loss = RunningMean(*state["recent_loss"])
        self.evaluated_at = state["evaluated_at"]
        self.best_loss = float("inf") if state["best_loss"] is None else state["best_loss"]
        self.evaluations_without_gain = state["evaluations_without_gain"]
        self.history = state["history"]
        # These change rounding, so they are as they were.
        self.micro_batch_size = state["micro_batch_size"]
        if state["compiled"] != self.compiled:
            log.warning("compile was %s in this run: the rounding changes", state["compiled"])
        torch.set_num_threads(state["threads"])
        self.scaler.load_state_dict(state["scaler"] or self.scaler.state_dict())
        log.info("resuming %s at step %d", checkpoint.folder, self.step)
        if state["total_steps"] != self.total_steps:
            log.info(
                "the run is now %d steps long, not %d: the learning rate follows the new length",
                self.total_steps,
                state["total_steps"],
            )

    # The run.

    def fit(self, checkpoint: Checkpoint | None = None) -> History:
        """Train to the end, from a checkpoint or from the start.

        Ctrl-C or SIGTERM saves a checkpoint and leaves with `KeyboardInterrupt`; a second one
        leaves at once. The model ends with its best weights.

        Returns:
            `train_loss` (one mean an epoch, the last perhaps of a part), `val_loss` and
            `val_steps`, `best_val_loss`, `final_val_loss` (of the best weights, on all held-out
            text) and `bits_per_byte`, `steps`, `seconds`, and `stopped`: `finished`, `time` or
            `early`.

        Raises:
            AGI2Error: where the folder cannot be written.
        """
        keep_freed_memory()
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        self._prepare_folder(checkpoint)
        bounded = self.config.epochs < UNBOUNDED_EPOCHS or self.config.max_steps is not None
        display = TrainingDisplay(self.total_steps if bounded else None)
        with Interrupt() as interrupt, display as self.display:
            stopped = self._loop(interrupt)
        return self._finish(stopped)

    def _prepare_folder(self, checkpoint: Checkpoint | None) -> None:
        """Go on in the run's folder as it was at the checkpoint, or begin a new one."""
        logged = 0
        if checkpoint is not None and checkpoint.run.resolve() == self.folder.resolve():
            logged = checkpoint.state["metrics_size"]
            checkpoints.forget_after(self.folder, self.step)
        else:
            checkpoints.make_room(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints.describe_model(self.model.config, self.tokenizer, self.config, self.folder)
        if checkpoint is not None:
            checkpoint.restore_best(self.weights)
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", logged)
        self.metrics.write({"step": self.step, "start": self._describe()})

    def _describe(self) -> dict[str, Any]:
        """What begins here, for whoever reads the log."""
        data = self.batches.dataset
        return {
            "time": datetime.now().isoformat(" ", "seconds"),
            "parameters": self.model.num_parameters(),
            "total_steps": self.total_steps,
            "tokens_per_step": self._tokens_per_step,
            "train_tokens": len(data.tokens),
            "train_bytes": int(self.tokenizer.byte_lengths()[data.tokens].sum()),
            "val_tokens": len(self.val_data.tokens) if self.val_data else 0,
            "micro_batch_size": self.micro_batch_size,
            "precision": str(self.precision).removeprefix("torch."),
            "compiled": self.compiled,
            "device": describe_device(self.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }

    def _loop(self, interrupt: Interrupt) -> str:
        """Step until something ends the run; say what."""
        self.model.train()
        self._first_step, self._first_second = self.step, self.seconds
        self._started = time.monotonic()
        while True:
            # After this step's checkpoint, so that a crash in here loses nothing.
            if self.step % self.config.eval_interval == 0 and self.evaluated_at != self.step:
                self._validate()
            if self._patience_is_over():
                return "early"
            if self.step >= self.total_steps:
                return "finished"
            if self._time_is_over():
                return "time"
            self._train_one_step()
            if interrupt.asked:
                place = self.save()
                log.info("interrupted: saved %s; go on with --resume", place)
                raise KeyboardInterrupt
            if self.step % self.config.checkpoint_interval == 0:
                self.save()

    def _train_one_step(self) -> None:
        config = self.config
        factor = self._learning_rate_factor()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss, norm = training_step(
            self.forward,
            self.batches.batch(self.step),
            self.optimizers,
            F.cross_entropy,
            self.device,
            clip_grad_norm=config.clip_grad_norm,
            micro_batch_size=self.micro_batch_size,
            precision=self.precision,
            scaler=self.scaler,
        )
        self.epoch_loss.add(loss)
        self.recent_loss.add(loss)
        self.step += 1
        self.seconds = self._first_second + time.monotonic() - self._started
        if self.step == self._first_step + 1:
            self._show(loss.item())
        if self.step % config.log_interval == 0 or self.step == self.total_steps:
            self._log_step(config.learning_rate * factor, norm)
        if self.step % self.batches.steps_per_epoch == 0:
            self._log_epoch()

    def _progress(self) -> float:
        """The share of the run that is done, by steps or by the clock."""
        done = self.step / self.total_steps
        if self.config.max_minutes is not None:
            done = max(done, self.seconds / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def _learning_rate_factor(self) -> float:
        warmup = min(self.config.warmup_steps, self.total_steps // 10)
        start = warmup / self.total_steps
        progress = (self._progress() - start) / (1 - start)
        return learning_rate_factor(
            self.config.lr_schedule, progress, self.step, warmup, self.config.lr_decay_fraction
        )

    def _time_is_over(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self.seconds >= 60 * limit

    def _patience_is_over(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.evaluations_without_gain >= patience

    def _log_step(self, rate: float, norm: torch.Tensor) -> None:
        loss = self.recent_loss.take()
        memory = memory_stats(self.device)
        self.metrics.write(
            {
                "step": self.step,
                "epoch": self.step / self.batches.steps_per_epoch,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm.item(),
                "tokens": self.step * self._tokens_per_step,
                "tokens_per_second": self._speed(),
                "seconds": self.seconds,
                "process_memory": memory.process,
                "device_memory": memory.device_peak,
            }
        )
        self._show(loss)

    @property
    def _tokens_per_step(self) -> int:
        return self.batches.batch_size * (self.batches.dataset.seq_len - 1)

    def _speed(self) -> float:
        """Tokens per second since this process began to train."""
        tokens = (self.step - self._first_step) * self._tokens_per_step
        return tokens / max(self.seconds - self._first_second, 1e-9)

    def _show(self, loss: float) -> None:
        progress = self._progress()
        left = self.seconds * (1 - progress) / max(progress, 1e-9)
        self.display.update(self.step, progress, loss, self._speed(), left)

    def _log_epoch(self) -> None:
        loss = self.epoch_loss.take()
        self.history["train_loss"].append(loss)
        epoch = len(self.history["train_loss"])
        self.metrics.write({"step": self.step, "epoch": epoch, "epoch_loss": loss})
        log.info("epoch %d  training loss %.4f", epoch, loss)

    def _validate(self) -> None:
        """Evaluate, keep the weights if they are the best, and write a sample."""
        self.evaluated_at = self.step
        if self.val_data is not None:
            result = self.evaluate(self.config.eval_tokens)
            self._log_validation(result)
            if result.loss < self.best_loss:
                self.best_loss = result.loss
                self.evaluations_without_gain = 0
                checkpoints.save_weights(self.model, self.weights, self.tokenizer)
            else:
                self.evaluations_without_gain += 1
        if self.config.sample_tokens:
            text = self.sample(self.config.sample_tokens, seed=self.config.seed + self.step)
            self.metrics.write({"step": self.step, "sample": text})
            log.info("sample: %s", " ".join(text.split()))

    def _log_validation(self, result: Evaluation) -> None:
        loss, bits = result.loss, result.bits_per_byte
        self.history["val_loss"].append(loss)
        self.history["val_steps"].append(self.step)
        self.metrics.write({"step": self.step, "val_loss": loss, "val_bits_per_byte": bits})
        log.info(
            "step %d  validation loss %.4f (%.3f bits per byte)  memory %s",
            self.step,
            loss,
            bits,
            memory_stats(self.device),
        )

    def evaluate(self, max_tokens: int = 0) -> Evaluation:
        """The model's loss on the held-out text, or on part of it."""
        assert self.val_data is not None
        return evaluate(
            self.model,
            self.val_data,
            self.tokenizer,
            batch_size=self.micro_batch_size,
            max_tokens=max_tokens,
            precision=self.precision,
        )

    def sample(self, tokens: int, seed: int) -> str:
        """Text as the model writes it now."""
        config = self.config
        return generate_text(
            self.model,
            config.model_seed,
            tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            self.tokenizer,
            repetition_penalty=config.repetition_penalty,
            stop=config.stop,
            seed=seed,
        )

    def save(self) -> Path:
        """Write a checkpoint; the run's weights too, while no validation has chosen any."""
        chosen = self.best_loss < float("inf")
        place = checkpoints.save_checkpoint(
            self.folder,
            self.step,
            self.model,
            self.tensors(),
            self.state_dict(),
            self.config.keep_checkpoints,
            best=self.weights if chosen else None,
        )
        if not chosen:
            checkpoints.save_weights(self.model, self.weights, self.tokenizer)
        return place

    def _finish(self, stopped: str) -> History:
        """Save, validate a last time, and leave the best weights in the model."""
        self.save()  # before the validation, so that a crash in there loses nothing
        if self.evaluated_at != self.step:
            self._validate()
            self.save()  # with what it found: a longer run may go on from here
        checkpoints.load_weights(self.model, self.weights)
        history = {**self.history, "steps": self.step, "seconds": self.seconds, "stopped": stopped}
        if self.epoch_loss.count:  # the epoch that the end broke off
            history["train_loss"] = [*history["train_loss"], self.epoch_loss.take()]
            log.info("last epoch, in part  training loss %.4f", history["train_loss"][-1])
        if self.val_data is not None:
            with busy("validating on all held-out text"):
                final = self.evaluate()
            history["best_val_loss"] = self.best_loss
            history["final_val_loss"] = final.loss
            history["bits_per_byte"] = final.bits_per_byte
            log.info(
                "best weights: validation loss %.4f, perplexity %.2f, %.3f bits per byte",
                final.loss,
                final.perplexity,
                final.bits_per_byte,
            )
        log.info(
            "%s after %d steps, %s: %s",
            {"early": "stopped early", "time": "time is over"}.get(stopped, stopped),
            self.step,
            human_time(self.seconds),
            self.folder,
        )
        return history
