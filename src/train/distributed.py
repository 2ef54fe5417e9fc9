"""Distributed training under torchrun: the process group, its collectives, DDP and FSDP.

Without torchrun there is a single process, for which the collectives are no-ops.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..cuda_utils import select_device
from ..errors import AGI2Error

T = TypeVar("T")
NoSync = Callable[[], contextlib.AbstractContextManager]
"""The `no_sync` context: backward passes in it do not synchronize gradients across ranks."""

# Timeout of collectives. The other ranks wait while rank 0 reads the text, validates and saves. It
# matters only if a machine hangs: connections of a rank that died are closed at once.
_TIMEOUT = timedelta(hours=2)


class LostProcess(AGI2Error):
    """The connection to another rank is lost; the root cause is that rank's error."""


@dataclass(frozen=True)
class ProcessGroup:
    """The process group, as seen from one rank."""

    device: torch.device
    """This rank's device."""
    rank: int = 0
    """The global rank of this process."""
    world_size: int = 1
    """The world size."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which reads the text, writes files and logs."""
        return self.rank == 0

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 only, and broadcast its result to all ranks."""
        result = [make() if self.is_main else None]
        if dist.is_initialized():
            dist.broadcast_object_list(result, device=torch.device("cpu"))
        return cast(T, result[0])

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """All-reduce `value` in place to its sum over all ranks."""
        if dist.is_initialized():
            dist.all_reduce(value)
        return value

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """All-reduce `value` in place to its mean over all ranks, bitwise equal on each."""
        if dist.is_initialized():
            self.all_reduce_sum(value)
            value /= self.world_size
        return value

    def all_reduce_stop(self, is_requested: bool, seconds: float) -> tuple[bool, float]:
        """All-reduce whether any rank was asked to stop, and broadcast the seconds of rank 0."""
        if not dist.is_initialized():
            return is_requested, seconds
        flags = torch.tensor(
            [is_requested, seconds if self.is_main else 0.0], dtype=torch.float64, device="cpu"
        )
        dist.all_reduce(flags)  # on the CPU (gloo), so as not to synchronize with the GPU
        return flags[0].item() > 0, flags[1].item()

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Broadcast tensors from rank 0, in place."""
        if dist.is_initialized():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Block until all ranks have reached this barrier."""
        if dist.is_initialized():
            dist.all_reduce(torch.zeros(1, device="cpu"))

    @property
    def is_initialized(self) -> bool:
        """Whether a process group is initialized: always under torchrun, even with one process."""
        return dist.is_initialized()

    def wrap_fsdp(self, module: nn.Module, layers: Iterable[nn.Module]) -> NoSync:
        """Shard a module's parameters, gradients and optimizer state across ranks (FSDP2).

        Each layer, and the rest of the module, is all-gathered for its forward and backward. The
        weights of rank 0 are broadcast first; the module is moved to this rank's device.

        Args:
            module: the root module; its parameters become `DTensor`s.
            layers: the submodules to shard separately, by `fully_shard`. `module` must call their
                `forward`, whose hooks all-gather them.

        Returns:
            A function that returns a `no_sync` context.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.broadcast(parameter.data for parameter in module.parameters())
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        root = fully_shard(module, mesh=mesh)

        @contextlib.contextmanager
        def no_sync() -> Iterator[None]:
            root.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                root.set_requires_gradient_sync(True)

        return no_sync

    def wrap_ddp(self, module: nn.Module) -> tuple[nn.Module, NoSync]:
        """Wrap a module in `DistributedDataParallel`; return it and its `no_sync`.

        DDP broadcasts the weights of rank 0, and averages the gradients over all ranks in the
        backward pass. The wrapper shares its parameters with `module`.
        """
        if not dist.is_initialized():
            return module, contextlib.nullcontext
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name is not in 2.11
            wrapped = DistributedDataParallel(
                module,
                # The only buffers are the position tables, which are the same on all ranks.
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        return wrapped, wrapped.no_sync


@contextlib.contextmanager
def init_distributed(device: str = "auto") -> Iterator[ProcessGroup]:
    """Initialize the process group under torchrun and destroy it at exit; else a single process.

    Args:
        device: as for `select_device`. Each rank uses the CUDA device of its local rank; without
            CUDA, all ranks use the CPU.

    Raises:
        AGI2Error: if a machine has fewer devices than local ranks.
        LostProcess: instead of the backend's error, if another rank died.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield ProcessGroup(select_device(device))
        return
    own = _local_device(device)
    with _sigterm_ends_process():
        _init_process_group(own)
    try:
        yield ProcessGroup(own, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if is_lost_process(error):
            raise LostProcess(
                "the connection to another process was lost: its error is the cause, and a run "
                "continues from its last checkpoint with --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _sigterm_ends_process() -> Iterator[None]:
    """Context manager in which SIGTERM ends the process at once, as nothing is to be saved yet.

    A handler in Python is not called while PyTorch waits for other ranks: if one of them has
    failed, torchrun would kill this one only after 30 s.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


_groups = itertools.count()


def _init_process_group(device: torch.device) -> None:
    # gloo for CPU tensors: collectives on flags between steps do not synchronize with the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, count = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    # The store may still hold keys of an earlier group, of before a restart or of this process.
    store = dist.PrefixStore(f"agi2/{_restarts()}/{next(_groups)}", store)
    dist.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=count)


def is_lost_process(error: Exception) -> bool:
    """Return whether PyTorch raised this error because the connection to another rank is lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _local_device(preference: str) -> torch.device:
    device = select_device(preference)
    if device.type != "cuda":
        return torch.device("cpu")  # gloo supports no other
    number = int(os.environ["LOCAL_RANK"])  # pragma: needs gpu
    if device.index is not None or number >= torch.cuda.device_count():  # pragma: needs gpu
        raise AGI2Error(
            f'process {number} of this machine has no device of its own: set device = "cuda", '
            f"and --nproc-per-node to at most {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(number)  # pragma: needs gpu
    return torch.device("cuda", number)  # pragma: needs gpu


def launch_id() -> str | None:
    """Return torchrun's run id (its `--rdzv-id`), which stays the same after a restart."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def began_in_this_launch(launch: str | None) -> bool:
    """Return whether a checkpoint with this `launch_id` is of the launch torchrun now restarts."""
    named = launch not in (None, "none")  # "none" is torchrun's default id
    return launch == launch_id() and (named or _restarts() > 0)


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def report_on_rank_0(error: AGI2Error) -> None:
    """Sleep before logging an error, so that only one of several ranks logs it.

    If all ranks have the same error, rank 0 logs it and exits, and torchrun terminates the others
    while they sleep. If only this rank has it, no other exits first and it logs the error itself.
    """
    if isinstance(error, LostProcess):
        time.sleep(_LOST_PROCESS_DELAY)
    elif int(os.environ.get("RANK", 0)):
        time.sleep(_NONZERO_RANK_DELAY)


# Seconds; torchrun polls its processes every 0.1 s. A rank with `LostProcess` waits longest: the
# root cause must be logged first.
_NONZERO_RANK_DELAY = 5.0
_LOST_PROCESS_DELAY = 15.0
