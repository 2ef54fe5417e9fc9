"""One training epoch over any dataloader: the implementation of `train_epoch`.

B batch, T time, N tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..arguments import convert, is_several
from ..console import TrainingDisplay
from ..cuda_utils import memory_stats
from ..errors import AGI2Error
from ..utils import human_time, log
from .loss import count_targets
from .step import Batch, accumulate_gradients, apply_gradients, split_batch

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes logits (N, V) and targets (N,); returns the mean loss."""

# Progress is shown about 20 times an epoch, but at most every 10 batches; every 100 batches if the
# dataloader has no length.
_DISPLAYS_PER_EPOCH, _MIN_DISPLAY_INTERVAL, _DISPLAY_INTERVAL_WITHOUT_LENGTH = 20, 10, 100


@dataclass
class Epoch:
    """A training epoch; see `training.train_epoch` for the arguments.

    Raises:
        AGI2Error: if an argument has the wrong type or value.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    device: torch.device | str | None
    clip_grad_norm: float | None
    scheduler: Any

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise AGI2Error(f"model: {_kind(self.model)} is not a torch.nn.Module")
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise AGI2Error(f"optimizer: {_kind(self.optimizer)} is not a torch.optim.Optimizer")
        if not callable(self.criterion):
            raise AGI2Error(f"criterion: {_kind(self.criterion)} cannot be called: give a function")
        if self.scheduler is not None and not callable(getattr(self.scheduler, "step", None)):
            raise AGI2Error(f"scheduler: {_kind(self.scheduler)} has no method step")
        clip = convert(float | None, "clip_grad_norm", self.clip_grad_norm)
        if clip is not None and not clip > 0:
            raise AGI2Error(f"clip_grad_norm = {clip!r}: give a number above 0, None for no limit")
        self.clip_grad_norm = clip
        if any(p.dtype == torch.float16 for p in self.model.parameters()):
            raise AGI2Error(
                "the model's weights are float16, in which steps overflow and vanish: train "
                "model.float()"
            )
        self.device = self._model_device()

    def _model_device(self) -> torch.device:
        """Return the model's device; check that `device`, if given, is the same."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        if self.device in (None, "auto"):
            return device
        try:
            requested = torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            raise AGI2Error(f"device = {self.device!r}: give cpu, cuda, cuda:1 or mps") from error
        if requested.type != device.type or requested.index not in (None, device.index):
            raise AGI2Error(
                f"device = {str(requested)!r}, but the model is on {device}: move it first"
            )
        return device

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of inputs and targets (B, T)."""
        return self.criterion(self.model(inputs).flatten(0, 1), targets.flatten())

    def run(self, dataloader: Iterable[Batch]) -> float:
        """Train on every batch once; return the mean loss per token, in nats.

        Raises:
            AGI2Error: if the dataloader is empty.
        """
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        tokens, counted, started = 0, 0, time.monotonic()
        count = None
        if isinstance(dataloader, Sized) and is_several(dataloader):
            count = len(dataloader)
        with TrainingDisplay(count) as display:
            for number, batch in enumerate(_checked(dataloader), 1):
                targets = split_batch(batch)[1]
                num_targets = int(count_targets(targets))
                tokens += targets.numel()
                if not num_targets:
                    log.warning("batch %d skipped: all of its targets are ignored", number)
                    continue
                loss = self._step(batch, number)
                total += loss.cpu().double() * num_targets
                counted += num_targets
                if number % _interval(count) == 0:
                    seconds = time.monotonic() - started
                    self._show(display, number, count, loss.item(), tokens, seconds)
        if not tokens:
            raise AGI2Error("the dataloader is empty: there is nothing to train on")
        mean = total.item() / max(counted, 1)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(mean)
        log.info(
            "epoch  train loss %.4f  lr %.3g  %s tokens in %s  memory %s",
            mean,
            self.optimizer.param_groups[0]["lr"],
            f"{tokens:,}",
            human_time(time.monotonic() - started),
            memory_stats(torch.device(self.device or "cpu")),
        )
        return mean

    def _step(self, batch: Batch, number: int) -> torch.Tensor:
        """Train on one batch; return its mean loss."""
        device = torch.device(self.device or "cpu")
        loss = accumulate_gradients(self.loss, batch, device)
        _, is_taken = apply_gradients([self.optimizer], self.clip_grad_norm)
        if not is_taken:
            log.warning("batch %d skipped: its loss or gradients are not finite", number)
        elif self.scheduler is not None and not isinstance(
            self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
        ):
            self.scheduler.step()
        return loss

    def _show(
        self,
        display: TrainingDisplay,
        number: int,
        count: int | None,
        loss: float,
        tokens: int,
        seconds: float,
    ) -> None:
        speed = tokens / max(seconds, 1e-9)
        memory = memory_stats(torch.device(self.device or "cpu"))
        if count is None:
            log.info("step %d  loss %.4f  %s tok/s  %s", number, loss, f"{speed:,.0f}", memory)
            return
        display.update(
            number,
            number / count,
            loss,
            speed=speed,
            seconds_left=seconds * (count / number - 1),
            val_loss=None,
            mfu=None,
            memory=memory,
        )


def _interval(count: int | None) -> int:
    return (
        _DISPLAY_INTERVAL_WITHOUT_LENGTH
        if count is None
        else max(_MIN_DISPLAY_INTERVAL, count // _DISPLAYS_PER_EPOCH)
    )


def _checked(dataloader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches, each checked.

    Raises:
        AGI2Error: if a batch is neither a tensor of windows nor a pair of inputs and targets.
    """
    if not is_several(dataloader):
        raise AGI2Error(
            f"dataloader: {_kind(dataloader)} is not iterable: give a DataLoader, or another "
            "iterable of batches"
        )
    for batch in dataloader:
        is_window = isinstance(batch, torch.Tensor)
        if is_window and (batch.dim() != 2 or batch.size(1) < 2):  # type: ignore[union-attr]
            raise AGI2Error(
                f"dataloader: a batch has the shape {tuple(batch.shape)}, "  # type: ignore[union-attr]
                "not (batch, at least 2 tokens): wrap a dataset in a DataLoader"
            )
        if not is_window and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise AGI2Error(
                f"dataloader: a batch is a {_kind(batch)}: it must be a tensor (batch, tokens), or "
                "a pair of inputs and targets"
            )
        yield batch


def _kind(value: object) -> str:
    return type(value).__name__
