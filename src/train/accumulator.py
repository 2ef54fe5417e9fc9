"""`GradientAccumulator`: calls `step` with micro-batches that fit the memory, in every rank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ..config import Config, GPT2Config
from ..cuda_utils import is_out_of_memory
from ..data.batches import EpochBatches
from ..errors import AGI2Error
from ..utils import log, plural, seed_everything
from .distributed import NoSync, ProcessGroup
from .estimates import choose_micro_batch_size
from .graphed_backward import GraphedBackward
from .loss import LossFunction, NextTokenLoss
from .optimizer import Optimizer
from .preference_loss import TrainingLoss
from .step import Batch, accumulate_gradients, backward_of, split_batch


class GradientAccumulator:
    """Computes the loss and the gradients of a step, on this rank's rows of the batch.

    If a micro-batch does not fit the memory, the step is repeated with smaller ones: its gradients
    are the same.

    Args:
        loss: the model and its loss; `loss` and `no_sync` are replaced if they are wrapped in DDP.
        config: the run's configuration.
        batches: the batches of the run.
        optimizers: the optimizers, whose gradients are zeroed before a step is repeated.
        processes: the process group.
        no_sync: the `no_sync` context of FSDP.

    Raises:
        AGI2Error: if the batch size is not divisible by the number of processes.
    """

    def __init__(
        self,
        loss: TrainingLoss,
        config: Config,
        batches: EpochBatches,
        optimizers: Sequence[Optimizer],
        processes: ProcessGroup,
        no_sync: NoSync = nullcontext,
    ) -> None:
        self.loss: LossFunction = loss
        self._module = loss
        self.no_sync = no_sync
        self._config, self._batches = config, batches
        self._optimizers, self._processes = optimizers, processes
        self.rows = self._local_batch_size()
        """Maximum number of sequences of a batch on this rank."""
        self.micro_batch_size = min(self.rows, self._micro_batch_size(loss.model.config))
        self._prefetched: tuple[int, Batch] | None = None
        self._graph: GraphedBackward | None = None

    def _local_batch_size(self) -> int:
        batch, count = self._config.batch_size, self._processes.world_size
        if batch % count:
            raise AGI2Error(
                f"batch_size: {plural(batch, 'sequence')} cannot be shared equally by {count} "
                "processes"
            )
        return -(-self._batches.batch_size // count)

    def _micro_batch_size(self, architecture: GPT2Config) -> int:
        size = self._config.micro_batch_size
        if size == "auto":
            return choose_micro_batch_size(
                architecture,
                self._batches.dataset.seq_len,
                self._config.batch_size // self._processes.world_size,
                self._processes.device,
                self._config.precision,
            )
        return size

    def fetch(self, step: int) -> Batch:
        """Return this rank's batch of a step; on CUDA as a non-blocking copy to the device."""
        batch = self._batches.batch(step, self._processes.rank, self._processes.world_size)
        if self._processes.device.type == "cuda":  # pragma: needs gpu
            if isinstance(batch, tuple):
                return tuple(self._copy(part) for part in batch)
            return self._copy(batch)
        return batch

    def _copy(self, part: torch.Tensor) -> torch.Tensor:  # pragma: needs gpu
        return part.pin_memory().to(self._processes.device, non_blocking=True)

    def prefetch(self, step: int) -> None:
        """Fetch the batch that `accumulate` needs next, while the GPU computes."""
        self._prefetched = step, self.fetch(step)

    def accumulate(
        self,
        step: int,
        precision: torch.dtype,
        scaler: torch.amp.GradScaler,
        is_padded: bool = False,
    ) -> torch.Tensor:
        """Accumulate the gradients of a step, in smaller micro-batches if out of memory.

        Args:
            step: the step.
            precision: the autocast dtype.
            scaler: the loss scaler.
            is_padded: as for `step.accumulate_gradients`.

        Returns:
            The mean loss of the global batch.

        Raises:
            AGI2Error: if a micro-batch of one sequence does not fit, or there are several ranks.
        """
        if self._prefetched is None or self._prefetched[0] != step:
            self.prefetch(step)
        assert self._prefetched is not None
        batch = self._prefetched[1]
        rows, world_size = len(self._batches.rows(step)), self._processes.world_size
        num_targets = self._processes.all_reduce_sum(self._module.count(split_batch(batch)[1]))
        while True:
            self._seed_dropout(step)
            self._module.sums = None
            try:
                graph = self._graph_of(precision, scaler, is_padded)
                loss = accumulate_gradients(
                    self.loss,
                    batch,
                    self._processes.device,
                    micro_batch_size=self.micro_batch_size,
                    precision=precision,
                    scaler=scaler,
                    backward=graph,
                    no_sync=self.no_sync,
                    num_targets=num_targets,
                    world_size=world_size,
                    # The rows of the largest share, which every rank must split equally.
                    min_micro_batches=-(-rows // (world_size * self.micro_batch_size)),
                    is_padded=is_padded,
                    count=self._module.count,
                )
                return self._processes.all_reduce_mean(loss)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, whose traceback keeps the tensors alive.
            graph = None
            self._shrink(step)

    def _graph_of(
        self, precision: torch.dtype, scaler: torch.amp.GradScaler, is_padded: bool
    ) -> GraphedBackward | None:
        """Return the CUDA graph of a micro-batch with gradients of 0; `None` without.

        A run on one GPU whose micro-batches have one shape has it, unless a forward and backward
        pass needs the values of tensors, as those of preferences do, or changes the state of the
        random numbers (gradient checkpointing) or the scale of the loss, or has a teacher only from
        the second step on (self-distillation).
        """
        if (
            self._processes.device.type != "cuda"
            or not is_padded
            or self._processes.is_initialized
            or scaler.is_enabled()
            or self._config.gradient_checkpointing
            or self._config.self_distillation
            or not isinstance(self._module, NextTokenLoss)
        ):
            return None
        if self._graph is None:  # pragma: needs gpu
            backward = backward_of(self.loss, self._processes.device, precision)
            self._graph = GraphedBackward(backward, self._module)
        self._graph.attach()  # pragma: needs gpu
        return self._graph  # pragma: needs gpu

    def take_sums(self) -> torch.Tensor | None:
        """Return the sums over the pairs of the last step's global batch; `None` if no pairs."""
        sums = self._module.sums
        return None if sums is None else self._processes.all_reduce_sum(sums)

    def _seed_dropout(self, step: int) -> None:
        """Seed dropout by the step and the rank; the factors keep seeds distinct.

        A retried or resumed step has the same masks, and ranks have different ones.
        """
        seed = self._config.seed * 1_000_033 + step + self._processes.rank * 2**40
        if self._processes.device.type == "cpu":
            # `torch.manual_seed` formats the stack for each kind of GPU: a millisecond per step.
            torch.default_generator.manual_seed(seed % 2**63)
        else:  # pragma: needs gpu
            seed_everything(seed % 2**63)

    def _shrink(self, step: int) -> None:
        """Reduce the micro-batch size to the largest divisor of the batch up to half of it."""
        self._graph = None
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self._processes.device.type == "cuda":  # pragma: needs gpu
            torch.cuda.empty_cache()
        if self._processes.world_size > 1 or self.micro_batch_size == 1:
            raise self.out_of_memory(step)
        batch_size, half = self._config.batch_size, self.micro_batch_size // 2
        smaller = max(n for n in range(1, half + 1) if batch_size % n == 0)
        log.warning(
            "out of memory with %s at a time: continuing with %d (the same gradients)",
            plural(self.micro_batch_size, "sequence"),
            smaller,
        )
        self.micro_batch_size = smaller

    def out_of_memory(self, step: int) -> AGI2Error:
        """Return the error for out of memory that a smaller micro-batch cannot fix."""
        who = f" on process {self._processes.rank}" if self._processes.world_size > 1 else ""
        return AGI2Error(
            f"out of memory at step {step}{who}, with "
            f"{plural(self.micro_batch_size, 'sequence')} at a time: lower micro_batch_size, set "
            "gradient_checkpointing = true, or lower seq_len, vocab_size, model_layer or model_embd"
            + ('; or share the model: parallel = "fsdp"' if who else "")
        )
