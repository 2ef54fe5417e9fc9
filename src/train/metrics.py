"""What is measured of a run: `Evaluation`, and `Telemetry`, its log and display while it trains."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..console import TrainingDisplay
from ..cuda_utils import describe_device, memory_stats
from ..utils import log
from .estimates import peak_flops
from .state import RunState
from .trackers import RunLog


class Telemetry:
    """A run's log, which only one of its processes opens, its display, and its speed.

    Args:
        device: what it trains on.
        precision: of matrix products.
        tokens_per_step: targets of a batch, on the average of an epoch.
        flops_per_token: floating-point operations for each of them.
        total_steps: where the run is bounded by steps.
        processes: that train together, each on such a device.
    """

    def __init__(
        self,
        device: torch.device,
        precision: torch.dtype,
        tokens_per_step: float,
        flops_per_token: float,
        total_steps: int | None,
        processes: int = 1,
    ) -> None:
        self.display = TrainingDisplay(total_steps)
        self._device = device
        self.tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops(device, precision)
        self._processes = processes
        self._log: RunLog | None = None
        # Of the steps since the last line of the log.
        self._seconds, self._steps = 0.0, 0

    def open(
        self, config: Config, folder: Path, logged: int, step: int, about: dict[str, Any]
    ) -> None:
        """Open the log, of which the first `logged` bytes stay; note a start and all about it."""
        self._log = RunLog(config, folder, logged, step)
        start = {
            "time": datetime.now().isoformat(" ", "seconds"),
            **about,
            "device": describe_device(self._device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        self._write({"step": step, "start": start})

    def close(self) -> None:
        """Finish writing."""
        if self._log is not None:
            self._log.close()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the display meanwhile; that its terminal is closed ends nothing."""
        self.display.__enter__()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.display.__exit__(None, None, None)

    def sync(self) -> None:
        """Ask the disk to keep the log as it is."""
        if self._log is not None:
            self._log.sync()

    @property
    def log_size(self) -> int:
        """Bytes of the log."""
        return 0 if self._log is None else self._log.size

    @property
    def is_lost(self) -> bool:
        """Whether the file of the log is gone."""
        return self._log is not None and not self._log.file.path.is_file()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(entry)

    def count_step(self, seconds: float) -> None:
        """A step was taken, in so many seconds."""
        self._seconds += seconds
        self._steps += 1

    @property
    def _speed(self) -> float:
        """Tokens per second."""
        return self._steps * self.tokens_per_step / max(self._seconds, 1e-9)

    @property
    def _share_of_peak(self) -> float | None:
        """The share of all devices' peak FLOP/s that the steps reach, where the peak is known."""
        if self._peak_flops is None:  # pragma: needs gpu
            return None
        return self._speed * self._flops_per_token / (self._processes * self._peak_flops)

    def show(self, state: RunState, progress: float, loss: float) -> None:
        """Show where the run is: the share of it that is done, and its loss in nats per token."""
        self.display.update(
            state.step,
            progress,
            loss,
            speed=self._speed,
            seconds_left=state.seconds * (1 - progress) / max(progress, 1e-9),
            val_loss=state.val_loss,
            share_of_peak=self._share_of_peak,
            memory=memory_stats(self._device),
        )

    def log_step(
        self, state: RunState, epoch: float, loss: float, rate: float, grad_norm: float
    ) -> None:
        """Log the steps since the last such line, and measure the speed anew from here."""
        memory = memory_stats(self._device)
        self._write(
            {
                "step": state.step,
                "epoch": epoch,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": grad_norm,
                "skipped_steps": state.skipped_steps,
                "tokens": round(state.step * self.tokens_per_step),
                "tokens_per_second": self._speed,
                "share_of_peak": self._share_of_peak,
                "seconds": state.seconds,
                "process_memory": memory.process,
                "device_memory": memory.device_peak,
            }
        )
        self._seconds, self._steps = 0.0, 0

    def log_epoch(self, state: RunState) -> None:
        """Log the mean loss of the epoch that ends."""
        losses = state.history["train_loss"]
        self._write({"step": state.step, "epoch": len(losses), "epoch_loss": losses[-1]})
        log.info("epoch %d  training loss %.4f", len(losses), losses[-1])

    def log_validation(self, step: int, result: Evaluation) -> None:
        """Log what a validation found."""
        bits = result.bits_per_byte
        self._write({"step": step, "val_loss": result.loss, "val_bits_per_byte": bits})
        log.info(
            "step %d  validation loss %.4f (%s)  memory %s",
            step,
            result.loss,
            result.describe_bits(),
            memory_stats(self._device),
        )

    def log_sample(self, step: int, text: str) -> None:
        """Log what the model writes."""
        self._write({"step": step, "sample": text})
        log.info("sample: %s", " ".join(text.split()))


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text."""

    loss: float
    """Mean negative log-likelihood, in nats per token."""
    tokens: int
    """Tokens predicted."""
    text_bytes: int
    """UTF-8 bytes of the text that those tokens stand for, as the tokenizer gives it back."""
    unknown: int = field(default=0, kw_only=True)
    """Of the tokens predicted, those that stand for characters not in the vocabulary."""

    @property
    def perplexity(self) -> float:
        """exp(loss), per token; infinite beyond what a number holds."""
        return exp_or_inf(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits to encode a byte of text, comparable between tokenizers; `None` where it has none.

        The bytes are those of the text after the tokenizer's preprocessing.
        """
        if self.no_bits_per_byte:
            return None
        return self.loss * self.tokens / math.log(2) / self.text_bytes

    @property
    def no_bits_per_byte(self) -> str:
        """Why there are no bits per byte; empty where there are."""
        if self.unknown:
            are = "is" if self.unknown == 1 else "are"
            return (
                f"{self.unknown:,} of {self.tokens:,} tokens {are} <unk>, as the vocabulary lacks "
                "what they stand for"
            )
        if not self.text_bytes:
            return "the tokens stand for no text"
        return "" if math.isfinite(self.loss) else "the loss is not a finite number"

    def describe_bits(self) -> str:
        """The bits per byte for a log, or why there are none."""
        bits = self.bits_per_byte
        if bits is None:
            return f"no bits per byte: {self.no_bits_per_byte}"
        return f"{bits:.3f} bits per byte"


def exp_or_inf(value: float) -> float:
    """exp(value); infinite beyond what a float holds."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
