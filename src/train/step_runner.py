"""`StepRunner`: a run's optimizer steps, in its precision, compiled, and under DDP or FSDP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..cuda_utils import (
    can_compile,
    first_line,
    is_device_failure,
    is_out_of_memory,
    select_precision,
)
from ..data.batches import EpochBatches
from ..errors import AGI2Error
from ..model import GPT2Model
from ..utils import log
from .accumulator import GradientAccumulator
from .averaging import WeightAverage
from .distributed import NoSync, ProcessGroup
from .loss import NextTokenLoss
from .optimizer import make_optimizers
from .preference_loss import make_loss
from .step import apply_gradients

# A run ends after this many consecutive skipped steps. In fp16 the first steps overflow, each of
# which halves the loss scale.
_MAX_SKIPPED_STEPS, _MAX_SKIPPED_STEPS_FP16 = 5, 30


class StepRunner:
    """Runs a run's optimizer steps: forward and backward, gradient clipping, the update.

    Args:
        model: a model on the training device. It is sharded if the run uses FSDP.
        config: the run's configuration.
        batches: the batches of the run.
        process_group: the process group.

    Raises:
        AGI2Error: if the batch size is not divisible by the number of processes, or FSDP does not
            support the precision.
    """

    def __init__(
        self,
        model: GPT2Model,
        config: Config,
        batches: EpochBatches,
        process_group: ProcessGroup,
    ) -> None:
        self._config, self._process_group = config, process_group
        self.device = process_group.device
        self.precision = select_precision(config.precision, self.device)
        """The autocast dtype."""
        if process_group.is_initialized:  # it may have been measured: all ranks take rank 0's
            self.precision = process_group.broadcast_from_main(lambda: self.precision)
        self.sharded = config.parallel == "fsdp" and process_group.is_initialized
        """Whether the parameters are sharded across ranks (FSDP)."""
        if self.sharded and self.precision == torch.float16:
            raise AGI2Error('precision: parallel = "fsdp" needs "bf16" or "fp32", not fp16')
        self._module = make_loss(model, config)
        no_sync: NoSync = nullcontext
        if self.sharded:
            no_sync = process_group.wrap_fsdp(self._module, model.blocks)
        self.optimizers = make_optimizers(model, config)
        self.average = WeightAverage(self.optimizers, config.ema_decay)
        """The average of the weights, of the steps that were taken."""
        self.accumulator = GradientAccumulator(
            self._module, config, batches, self.optimizers, process_group, no_sync
        )
        # torch.compile brought no measurable speedup on a CPU.
        compile_by_default = self.device.type == "cuda" and not self.sharded
        self.compiled = compile_by_default if config.compile == "auto" else config.compile
        """Whether to compile the model; after `prepare`, whether it is compiled."""
        self.scaler = self._make_scaler()

    def _make_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    @property
    def micro_batch_size(self) -> int:
        """Sequences of a forward pass on this rank; reduced if they do not fit the memory."""
        return self.accumulator.micro_batch_size

    @property
    def max_skipped_steps(self) -> int:
        """The number of consecutive skipped steps after which a run ends."""
        return _MAX_SKIPPED_STEPS_FP16 if self.scaler.is_enabled() else _MAX_SKIPPED_STEPS

    def settings(self) -> dict[str, Any]:
        """Return the settings that affect floating-point rounding, JSON-serializable."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "compiled": self.compiled,
            "precision": str(self.precision).removeprefix("torch."),
            "processes": self._process_group.world_size,
            "threads": torch.get_num_threads(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the settings of "auto" keys, and the loss scale, from a checkpoint's state."""
        config, accumulator = self._config, self.accumulator
        # These affect rounding: on the same device type, keep the earlier values of "auto" keys.
        is_alike = state.get("device", self.device.type) == self.device.type
        if is_alike and config.micro_batch_size == "auto":
            accumulator.micro_batch_size = min(accumulator.rows, state["micro_batch_size"])
        if state["processes"] == self._process_group.world_size and config.threads == "auto":
            _keep_threads(state["threads"], self.device)
        if is_alike and config.compile == "auto":
            self.compiled = state["compiled"]
        if is_alike and config.precision == "auto":
            self.precision = getattr(torch, state["precision"])
        self.scaler = self._make_scaler()
        if self.scaler.is_enabled() and state["scaler"]:  # pragma: needs gpu
            self.scaler.load_state_dict(state["scaler"])

    def prepare(self) -> None:
        """Compile the model and its loss, and wrap them in DDP (unless they use FSDP)."""
        if self.precision != torch.float32:
            name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[self.precision]
            log.info("matrix products in %s, weights in fp32", name)
        self.compiled = self.compiled and can_compile(self.device)
        if self.compiled:
            self._module.compile_parts()
        if not self.sharded:
            accumulator = self.accumulator
            accumulator.loss, accumulator.no_sync = self._process_group.wrap_ddp(self._module)

    def run(
        self, step: int, learning_rate_factor: float
    ) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Run an optimizer step.

        Args:
            step: the step, which determines the batch and the dropout masks.
            learning_rate_factor: the factor of the peak learning rates.

        Returns:
            The mean loss of the global batch, the grad norm before clipping, and whether the step
            was taken: it is skipped if the gradients are not finite.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate_factor
                if self._config.weight_decay_schedule == "lr":
                    group["weight_decay"] = group["initial_weight_decay"] * learning_rate_factor
        if self._config.self_distillation:
            self._set_teacher()
        loss = self.accumulator.accumulate(step, self.precision, self.scaler, self.compiled)
        # While the GPU computes: apply_gradients synchronizes for the grad norm.
        self.accumulator.prefetch(step + 1)
        norm, is_taken = apply_gradients(
            self.optimizers, self._config.clip_grad_norm, self.scaler, self.precision
        )
        if is_taken:
            self.average.update(step)
        return loss, norm, is_taken

    def _set_teacher(self) -> None:
        """Let the average of the weights be the teacher, from the second step on."""
        module = self._module
        if isinstance(module, NextTokenLoss) and module.teacher is None:
            average = self.average.model_of(module.model)
            if average is not None:
                module.set_teacher(average)

    def diverged(self, newest: Path | None) -> AGI2Error:
        """Return the error for too many consecutive skipped steps, after the newest checkpoint."""
        return AGI2Error(
            f"{self.max_skipped_steps} steps in a row gave no finite loss: lower learning_rate "
            f"(now {self._config.learning_rate:g}) and "
            + (
                f"continue with --resume from {newest}, or name an older checkpoint with resume"
                if newest
                else "start from scratch: there is no earlier checkpoint"
            )
        )

    def describe_failure(self, error: Exception, step: int) -> AGI2Error | None:
        """Return the error for a device that failed or is out of memory; `None` for others."""
        if is_out_of_memory(error):
            return self.accumulator.out_of_memory(step)
        if not is_device_failure(error):
            return None
        return AGI2Error(
            f"{self.device} failed at step {step} ({first_line(error)}): when it works again, or "
            "with another device, continue with --resume"
        )


def _keep_threads(count: int, device: torch.device) -> None:
    """Set the number of CPU threads of the checkpoint, so that reductions round as before."""
    here = torch.get_num_threads()
    if count != here and device.type == "cpu":
        log.info(
            "training with %d CPU threads as before, which keeps the run exact; this machine would "
            "use %d: set threads = %d for these",
            count,
            here,
            here,
        )
    torch.set_num_threads(count)
