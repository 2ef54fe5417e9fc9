"""Training and evaluation metrics: `MetricsLogger` (log, progress, tok/s, MFU) and `Evaluation`."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import Config
from ..console import TrainingDisplay
from ..cuda_utils import describe_device, memory_stats
from ..utils import human_time, log, plural
from .estimates import peak_flops
from .state import RunState
from .trackers import RunLog


class MetricsLogger:
    """A run's log (opened on rank 0 only), progress display, tok/s and MFU.

    Args:
        device: the training device.
        precision: the autocast dtype.
        tokens_per_step: mean number of target tokens of a global batch.
        flops_per_token: training FLOPs per token.
        total_steps: the number of steps; `None` if the run is not limited by steps.
        world_size: the world size; each rank has such a device.
    """

    def __init__(
        self,
        device: torch.device,
        precision: torch.dtype,
        tokens_per_step: float,
        flops_per_token: float,
        total_steps: int | None,
        world_size: int = 1,
    ) -> None:
        self.display = TrainingDisplay(total_steps)
        self._device = device
        self.tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops(device, precision)
        self._world_size = world_size
        self._log: RunLog | None = None
        # Since the last logged step.
        self._seconds, self._steps = 0.0, 0

    def open(
        self, config: Config, folder: Path, logged: int, step: int, facts: dict[str, Any]
    ) -> None:
        """Open the log, truncate it to `logged` bytes, and append a start entry with `facts`."""
        self._log = RunLog(config, folder, logged, step)
        start = {
            "time": datetime.now().isoformat(" ", "seconds"),
            **facts,
            "device": describe_device(self._device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        self._write({"step": step, "start": start})

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress display in the context; ignore errors of a closed terminal."""
        self.display.__enter__()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.display.__exit__(None, None, None)

    def sync(self) -> None:
        """Flush the log to disk (fsync)."""
        if self._log is not None:
            self._log.sync()

    @property
    def log_size(self) -> int:
        """Size of the log, in bytes."""
        return 0 if self._log is None else self._log.size

    @property
    def is_lost(self) -> bool:
        """Whether the log file was deleted."""
        return self._log is not None and not self._log.file.path.is_file()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(entry)

    def count_step(self, seconds: float) -> None:
        """Count a step and its duration, in seconds."""
        self._seconds += seconds
        self._steps += 1

    @property
    def _speed(self) -> float:
        """Tokens per second (tok/s), over all ranks."""
        return self._steps * self.tokens_per_step / max(self._seconds, 1e-9)

    @property
    def _mfu(self) -> float | None:
        """Model FLOPs utilization (MFU), from 0 to 1; `None` if the peak FLOP/s is unknown."""
        if self._peak_flops is None:  # pragma: needs gpu
            return None
        return self._speed * self._flops_per_token / (self._world_size * self._peak_flops)

    def show(self, state: RunState, progress: float, loss: float) -> None:
        """Update the progress display; `progress` is from 0 to 1, the loss in nats per token."""
        self.display.update(
            state.step,
            progress,
            loss,
            speed=self._speed,
            seconds_left=state.seconds * (1 - progress) / max(progress, 1e-9),
            val_loss=state.val_loss,
            mfu=self._mfu,
            memory=memory_stats(self._device),
        )

    def log_step(
        self, state: RunState, epoch: float, loss: float, rate: float, grad_norm: float
    ) -> None:
        """Log the metrics since the last logged step; reset tok/s and MFU."""
        memory = memory_stats(self._device)
        self._write(
            {
                "step": state.step,
                "epoch": epoch,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": grad_norm,
                **state.recent_pairs.take(),
                "skipped_steps": state.skipped_steps,
                "tokens": round(state.step * self.tokens_per_step),
                "tokens_per_second": self._speed,
                "mfu": self._mfu,
                "seconds": state.seconds,
                "process_memory": memory.process,
                "device_memory": memory.device_peak,
            }
        )
        self._seconds, self._steps = 0.0, 0

    def log_epoch(self, state: RunState) -> None:
        """Log the mean train loss of the last epoch."""
        losses = state.history["train_loss"]
        self._write({"step": state.step, "epoch": len(losses), "epoch_loss": losses[-1]})
        log.info("epoch %d  train loss %.4f", len(losses), losses[-1])

    def log_validation(
        self, step: int, result: Evaluation, averaged: Evaluation | None = None
    ) -> None:
        """Log the result of a validation: of the weights, or of their average if it is better."""
        entry = {}
        if averaged is not None:
            entry = {"weights_val_loss": result.loss, "average_val_loss": averaged.loss}
            result = averaged if averaged.loss < result.loss else result
        self._write({"step": step, "val_loss": result.loss, **result.logged, **entry})
        log.info(
            "step %d  val loss %.4f (%s)  memory %s",
            step,
            result.loss,
            result.describe_bits(),
            memory_stats(self._device),
        )
        if averaged is not None:
            found = entry["weights_val_loss"], entry["average_val_loss"]
            log.info("val loss of the weights %.4f, of their average %.4f", *found)

    def log_sample(self, step: int, text: str) -> None:
        """Log text that the model generated."""
        self._write({"step": step, "sample": text})
        log.info("sample: %s", " ".join(text.split()))


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a text."""

    loss: float
    """Mean negative log-likelihood, in nats per token."""
    tokens: int
    """Number of predicted tokens."""
    text_bytes: int
    """Number of UTF-8 bytes that the predicted tokens decode to."""
    unknown: int = field(default=0, kw_only=True)
    """Number of predicted tokens that are <unk>."""

    @property
    def perplexity(self) -> float:
        """exp(loss), per token; inf on overflow."""
        return exp_or_inf(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte (BPB), comparable between tokenizers; `None` if undefined.

        Bytes are counted after the tokenizer's preprocessing.
        """
        if self.no_bits_per_byte:
            return None
        return self.loss * self.tokens / math.log(2) / self.text_bytes

    @property
    def logged(self) -> dict[str, float | None]:
        """What is logged besides the loss."""
        return {"val_bits_per_byte": self.bits_per_byte}

    @property
    def no_bits_per_byte(self) -> str:
        """Why bits per byte are undefined; empty if they are defined."""
        if self.unknown:
            are = "is" if self.unknown == 1 else "are"
            return (
                f"{self.unknown:,} of {self.tokens:,} tokens {are} <unk>, as the vocabulary lacks "
                "what they stand for"
            )
        if not self.text_bytes:
            return "the tokens decode to no text"
        return "" if math.isfinite(self.loss) else "the loss is not a finite number"

    def describe_bits(self) -> str:
        """Return the bits per byte, or why they are undefined, for the log."""
        bits = self.bits_per_byte
        if bits is None:
            return f"no bits per byte: {self.no_bits_per_byte}"
        return f"{bits:.3f} bits per byte"

    def log_as_best(self) -> None:
        """Log the result of the best weights."""
        log.info(
            "best weights: val loss %.4f, perplexity %.2f, %s",
            self.loss,
            self.perplexity,
            self.describe_bits(),
        )


class Windows(Protocol):
    """Windows of tokens to evaluate on."""

    @property
    def seq_len(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...


def final_eval_tokens(eval_tokens: int, held_out: Windows | None, trained: int) -> int:
    """Return on how many tokens the best weights are evaluated, 0 for all; log if not on all.

    Not on more than the run was trained on: of a large text, a short run would take longer to
    evaluate than to train.

    Args:
        eval_tokens: tokens of the other evaluations, the least; 0 for all.
        held_out: windows of the text that is held out.
        trained: windows that the run was trained on.
    """
    assert held_out is not None
    width = held_out.seq_len - 1
    limit, tokens = max(eval_tokens, trained * width), len(held_out) * width
    if not eval_tokens or limit >= tokens:
        return 0
    log.info("best weights: evaluated on %s of %s held-out tokens", f"{limit:,}", f"{tokens:,}")
    return limit


def log_end(stopped: str, state: RunState, folder: Path) -> None:
    """Log why a run ended, after how many steps, and its folder."""
    log.info(
        "%s after %s, %s: %s",
        {"early": "stopped early", "time": "time is over"}.get(stopped, stopped),
        plural(state.step, "step"),
        human_time(state.seconds),
        folder,
    )


def exp_or_inf(value: float) -> float:
    """Return exp(value); inf on overflow."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
