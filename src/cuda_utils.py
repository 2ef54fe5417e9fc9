"""Which device to use, in which precision, and how much memory it has."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

from .arguments import as_device, convert
from .config import DEVICES, GPT2Config
from .errors import AGI2Error
from .utils import human_bytes, log, plural

CPU = torch.device("cpu")


def cuda_available() -> bool:
    """Whether there is a CUDA device that PyTorch can use."""
    return torch.cuda.is_available()


def select_device(preference: str = "auto") -> torch.device:
    """The device to use: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    `auto` takes CUDA, then MPS, then the CPU. A device that is not there falls back to the CPU,
    with one line of warning.

    Raises:
        AGI2Error: where the preference is none of these.
    """
    preference = convert(str, "device", preference)
    if preference == "auto":
        preference = "cuda" if cuda_available() else "mps" if _mps_available() else "cpu"
    if not re.fullmatch(DEVICES, preference):
        raise AGI2Error(f"device {preference!r}: use auto, cpu, cuda, cuda:N or mps")
    kind, _, index = preference.partition(":")
    if kind == "cuda":
        available = int(index or 0) < torch.cuda.device_count()
    else:
        available = kind == "cpu" or _mps_available()
    if not available:
        log.warning("device %s is not available: using the CPU", preference)
        return torch.device("cpu")
    return torch.device(preference)


def _mps_available() -> bool:
    return torch.backends.mps.is_available()


def select_precision(preference: str, device: torch.device) -> torch.dtype:
    """The type that matrix products use: `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 on a CUDA device that has it, fp16 on one that has not, and fp32 elsewhere (on
    a CPU without AMX, bf16 products are slower than fp32). fp16 without CUDA falls back to fp32.
    """
    if preference == "auto":
        if device.type != "cuda":
            return torch.float32
        # Older devices emulate it, slowly.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if preference == "fp16" and device.type != "cuda":
        log.warning("precision fp16 needs CUDA: using fp32")
        return torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[preference]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision: weights stay fp32, matrix products use `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True)
class MemoryStats:
    """Memory in bytes. The device's are zero on a CPU."""

    process: int
    device_allocated: int = 0
    device_peak: int = 0
    device_total: int = 0

    def __str__(self) -> str:
        text = human_bytes(self.process)
        if self.device_total:
            text += f", GPU {human_bytes(self.device_peak)} of {human_bytes(self.device_total)}"
        return text


def memory_stats(device: torch.device | str = "cpu") -> MemoryStats:
    """What this process holds, and what it holds on a CUDA device."""
    device = as_device("device", device)
    process = psutil.Process().memory_info().rss
    if device.type != "cuda":
        return MemoryStats(process)
    return MemoryStats(  # pragma: needs gpu
        process,
        torch.cuda.memory_allocated(device),
        torch.cuda.max_memory_allocated(device),
        torch.cuda.get_device_properties(device).total_memory,
    )


def container_memory(root: Path = Path("/")) -> int | None:
    """Bytes that control groups (Linux, version 1 or 2) let this process hold; `None` for any.

    What a container may hold is not what its machine has. A group is bound by those above it.

    Args:
        root: where the system's files are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return None
    limits = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            place, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            place, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for above in (group, *group.parents):
            # A group that is not seen from inside the container, or has no limit ("max").
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((place / above / name).read_text()))
    return min(limits, default=None)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may hold on a device, those that it holds already included."""
    if device.type == "cuda":  # pragma: needs gpu
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    machine = psutil.virtual_memory().available + memory_stats().process
    return min(machine, container_memory() or machine)


def check_memory(
    architecture: GPT2Config, what: str, bytes_per_parameter: int = 4, device: torch.device = CPU
) -> None:
    """Raise where a model alone takes more memory than there is. Nothing is allocated.

    Args:
        architecture: the model's.
        what: stands first in the message.
        bytes_per_parameter: 4 for fp32 weights, 16 with their gradients and AdamW's state.
        device: where they go.

    Raises:
        AGI2Error: with both sizes, and the keys to lower.
    """
    table = 0
    if architecture.position_embedding == "sinusoidal":
        table = 3 * 8 * architecture.max_seq_len * architecture.d_model  # while it is computed
    needed = bytes_per_parameter * architecture.num_parameters + table
    room = available_memory(device)
    if needed > room:
        raise AGI2Error(
            f"{what} of {architecture.num_parameters:,} parameters takes {human_bytes(needed)}, "
            f"this machine has {human_bytes(room)}: lower model_layer, model_embd, model_ff, "
            "model_positions or vocab_size"
        )


def describe_device(device: torch.device) -> str:
    """One line about a device, for the log."""
    if device.type == "cuda":  # pragma: needs gpu
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)} ({human_bytes(total)})"
    if device.type == "cpu":
        return f"CPU, {plural(torch.get_num_threads(), 'thread')}"
    return device.type


# Tokens whose logits exist at the same time: so few that they stay near the processor and that a
# large vocabulary takes little memory, enough that the matrix products run at full speed.
LOGITS_AT_ONCE = 1024


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works here; one line of warning where it does not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        log.warning("torch.compile does not work here (%s): running without it", first_line(error))
        return False
    return True


def first_line(error: Exception) -> str:
    """What an error says first, or what it is."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch or Python says that there is no memory left, in any of their ways."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_device_failure(error: Exception) -> bool:
    """Whether PyTorch says that the device itself has failed: fallen off the bus, reset, lost."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
