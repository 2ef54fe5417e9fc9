"""Several processes that train one model under torchrun: who they are and what they share.

Without torchrun there is one process, which is of the same kind and pays for none of this.
"""

from __future__ import annotations

import contextlib
import itertools
import os
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
KeepLocal = Callable[[], contextlib.AbstractContextManager]
"""Gradients made within stay this process's own."""

# The first process reads the text, validates and saves while the others wait for it. One that
# died is found out at once, by its closed connections: this is for a machine that hangs.
_TIMEOUT = timedelta(hours=2)


class LostProcess(AGI2Error):
    """Another process is gone: what ended that one is the error, this one only follows."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them."""

    device: torch.device
    """This process's own."""
    rank: int = 0
    """This process's number."""
    count: int = 1
    """How many there are."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that reads the text, writes and prints."""
        return self.rank == 0

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main process, on every process; the others do not call it."""
        result = [make() if self.is_main else None]
        if dist.is_initialized():
            dist.broadcast_object_list(result, device=torch.device("cpu"))
        return cast(T, result[0])

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of each process's `value`, the same on all to the last bit; made in place."""
        if dist.is_initialized():
            dist.all_reduce(value)
            value /= self.count
        return value

    def agree(self, asked: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process was asked to stop, and the main process's clock."""
        if not dist.is_initialized():
            return asked, seconds
        votes = torch.tensor(
            [asked, seconds if self.is_main else 0.0], dtype=torch.float64, device="cpu"
        )
        dist.all_reduce(votes)  # on the CPU: a GPU goes on working
        return votes[0].item() > 0, votes[1].item()

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with the main process's."""
        if dist.is_initialized():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait_for_all(self) -> None:
        """Until every process has come here."""
        if dist.is_initialized():
            dist.all_reduce(torch.zeros(1, device="cpu"))

    @property
    def are_joined(self) -> bool:
        """Whether there is a group: under torchrun, also of one process."""
        return dist.is_initialized()

    def shard(self, module: nn.Module, layers: Iterable[nn.Module]) -> KeepLocal:
        """Leave each process a part of every parameter, its gradient and its state (FSDP2).

        Each layer, and what of the module is in none of them, is gathered while it computes. All
        begin with the main process's weights; the module moves to this process's device.

        Args:
            module: its `forward` calls that of every layer; its parameters become `DTensor`s.
            layers: parts of it.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.copy_from_main(parameter.data for parameter in module.parameters())
        mesh = init_device_mesh(self.device.type, (self.count,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        root = fully_shard(module, mesh=mesh)

        @contextlib.contextmanager
        def keep_local() -> Iterator[None]:
            root.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                root.set_requires_gradient_sync(True)

        return keep_local

    def share(self, module: nn.Module) -> tuple[nn.Module, KeepLocal]:
        """A module whose backward pass leaves every process the mean of all gradients (DDP).

        All begin with the main process's weights. The parameters stay those of `module`.
        """
        if not dist.is_initialized():
            return module, contextlib.nullcontext
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a new name that 2.11 has not
            shared = DistributedDataParallel(
                module,
                # A buffer is a table of position waves here: equal everywhere.
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        return shared, shared.no_sync


@contextlib.contextmanager
def start_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end; alone without it.

    Args:
        device: as for `select_device`. Each process takes the CUDA device of its number on its
            machine; without CUDA, all compute on the CPU.

    Raises:
        AGI2Error: where a machine has fewer devices than processes.
        LostProcess: in place of what the connections raise when another process is gone.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield Processes(select_device(device))
        return
    own = _own_device(device)
    _join(own)
    try:
        yield Processes(own, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if is_lost_process(error):
            raise LostProcess(
                "the connection to another process broke: that one's error says why, and a run "
                "goes on from its last checkpoint with --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


_groups = itertools.count()


def _join(device: torch.device) -> None:
    # What is agreed on between steps goes from CPU to CPU, and waits for no GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, count = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    # The store may still hold what an earlier group left: before a restart, or in this process.
    store = dist.PrefixStore(f"agi2/{_restarts()}/{next(_groups)}", store)
    dist.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=count)


def is_lost_process(error: Exception) -> bool:
    """Whether PyTorch says that the connection to another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _own_device(preference: str) -> torch.device:
    device = select_device(preference)
    if device.type != "cuda":
        return torch.device("cpu")  # gloo knows no other
    number = int(os.environ["LOCAL_RANK"])  # pragma: needs gpu
    if device.index is not None or number >= torch.cuda.device_count():  # pragma: needs gpu
        raise AGI2Error(
            f'process {number} of this machine finds no device of its own: set device = "cuda", '
            f"and --nproc-per-node to at most {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(number)  # pragma: needs gpu
    return torch.device("cuda", number)  # pragma: needs gpu


def launch_id() -> str | None:
    """What torchrun calls this launch (its `--rdzv-id`), the same after each restart."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def began_in_this_launch(launch: str | None) -> bool:
    """Whether what was written under this `launch_id` is what torchrun restarts now."""
    named = launch not in (None, "none")  # without a rendezvous, torchrun calls each so
    return launch == launch_id() and (named or _restarts() > 0)


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def let_the_first_speak(error: AGI2Error) -> None:
    """Wait before telling of an error, so that of several processes only one does.

    Where all have the same error, the main process tells it and ends, upon which torchrun ends
    the others while they wait here. Where the error is this process's alone, nobody does.
    """
    if isinstance(error, LostProcess):
        time.sleep(_FOLLOWERS_WAIT)
    elif int(os.environ.get("RANK", 0)):
        time.sleep(_OTHERS_WAIT)


# Seconds; torchrun looks after its processes ten times a second.
_OTHERS_WAIT = 5.0
_FOLLOWERS_WAIT = 15.0
