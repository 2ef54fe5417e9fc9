"""Device selection, mixed precision, memory statistics and classification of device errors."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import psutil
import torch

from .arguments import as_device, convert
from .config import GPT2Config
from .config_checks import DEVICES
from .errors import AGI2Error
from .utils import human_bytes, log, plural

CPU = torch.device("cpu")


def cuda_available() -> bool:
    """Return whether PyTorch can use a CUDA device."""
    return torch.cuda.is_available()


def select_device(preference: str = "auto") -> torch.device:
    """Return the device for a preference: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    `auto` is CUDA if available, else MPS, else the CPU. If the device is not available, log a
    warning and return the CPU.

    Raises:
        AGI2Error: if the preference is none of these.
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
    """Return the autocast dtype for a preference: `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 on a CUDA device that supports it, fp16 on other CUDA devices, bf16 on a CPU that
    is fast in it (see `has_fast_bf16`), and fp32 elsewhere. fp16 without CUDA falls back to fp32.
    """
    if preference == "auto":
        if device.type != "cuda":
            is_fast = device.type == "cpu" and has_fast_bf16()
            return torch.bfloat16 if is_fast else torch.float32
        # Emulation, on devices before Ampere, is slow.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if preference == "fp16" and device.type != "cuda":
        log.warning("precision fp16 needs CUDA: using fp32")
        return torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[preference]


# Native bf16 multiplies at least twice as fast as fp32; emulated, it is slower.
_FAST_BF16 = 1.5


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies matrices in bf16 much faster than in fp32.

    It does with instructions for it: AVX512-BF16, AMX, or Arm's. PyTorch is asked whether it
    has any, and a measurement whether they are not emulated.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    threads = torch.get_num_threads()
    bf16, fp32 = (measure_cpu_flops(threads, each) for each in (torch.bfloat16, torch.float32))
    return bf16 >= _FAST_BF16 * fp32


@functools.cache
def measure_cpu_flops(threads: int, dtype: torch.dtype) -> float:
    """Return the FLOP/s of matrix products on this CPU; once measured, in about 0.1 s, the same.

    Args:
        threads: PyTorch's present number of threads.
        dtype: of the factors.
    """
    a, b = (torch.ones(512, n, dtype=dtype, device="cpu") for n in (512, 2048))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 512 * 512 * 2048 / best


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return a mixed-precision context: matrix products use `dtype`, weights remain fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True)
class MemoryStats:
    """Memory statistics, in bytes; those of the device are 0 without CUDA."""

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
    """Return the process's resident memory (RSS), and its memory on a CUDA device."""
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
    """Return this process's cgroup (v1 or v2) memory limit in bytes; `None` for no limit.

    A container's limit may be below the machine's memory. The limits of parent groups apply, too.

    Args:
        root: the root of the file system.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    limits = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for above in (group, *group.parents):
            # OSError: not visible in the container. ValueError: no limit ("max").
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((mount / above / name).read_text()))
    return min(limits, default=None)


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Copy numbers, or nested lists of them, to a device, without waiting for a GPU's earlier work.

    `torch.tensor(values, device=device)` waits until a GPU has done all it was given.
    """
    tensor = torch.tensor(values, dtype=dtype, device="cpu")
    if device.type == "cuda":  # pragma: needs gpu
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def available_memory(device: torch.device) -> int:
    """Return the memory available to this process on a device, including what it uses, in bytes."""
    if device.type == "cuda":  # pragma: needs gpu
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    machine = psutil.virtual_memory().available + memory_stats().process
    return min(machine, container_memory() or machine)


def check_memory(
    architecture: GPT2Config, what: str, bytes_per_parameter: int = 4, device: torch.device = CPU
) -> None:
    """Check that a model's parameters fit into memory, without allocating them.

    Args:
        architecture: the model's architecture.
        what: the beginning of the error message.
        bytes_per_parameter: 4 for fp32 weights, 16 with gradients and AdamW state.
        device: the device.

    Raises:
        AGI2Error: if they do not fit.
    """
    table = 0
    if architecture.position_embedding == "sinusoidal":
        # Three temporary float64 tables while the embeddings are computed.
        table = 3 * 8 * architecture.max_seq_len * architecture.d_model
    needed = bytes_per_parameter * architecture.num_parameters + table
    available = available_memory(device)
    if needed > available:
        raise AGI2Error(
            f"{what} of {architecture.num_parameters:,} parameters takes {human_bytes(needed)}, "
            f"this machine has {human_bytes(available)}: lower model_layer, model_embd, model_ff, "
            "model_positions or vocab_size"
        )


def describe_device(device: torch.device) -> str:
    """Return a one-line description of a device, for the log."""
    if device.type == "cuda":  # pragma: needs gpu
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)} ({human_bytes(total)})"
    if device.type == "cpu":
        return f"CPU, {plural(torch.get_num_threads(), 'thread')}"
    return device.type


_LARGE_GPU = 40 * 10**9


def logits_chunk_tokens(device: torch.device) -> int:
    """Return the number of tokens whose logits are materialized at once, in loss and evaluation.

    Few enough for the memory of a large vocabulary, and on a CPU for its cache; enough for matrix
    products at full speed, and few additions to the gradient of the LM head.
    """
    if device.type == "cuda":  # pragma: needs gpu
        is_large = torch.cuda.get_device_properties(device).total_memory >= _LARGE_GPU
        return 16384 if is_large else 4096
    return 1024 if device.type == "cpu" else 4096


class CapturedGraph(NamedTuple):
    """A CUDA graph and its result."""

    graph: torch.cuda.CUDAGraph
    out: torch.Tensor

    def replay(self) -> torch.Tensor:  # pragma: needs gpu
        """Compute the result again; the next replay overwrites it."""
        self.graph.replay()
        return self.out


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}
"""The side stream used for captures, by device."""
# A process captures one graph at a time: work of another thread on the side stream would become a
# part of it.
_CAPTURING = threading.Lock()


def capture_graph(
    compute: Callable[[], torch.Tensor], device: torch.device, otherwise: str, pool: Any = None
) -> CapturedGraph | None:  # pragma: needs gpu
    """Capture a computation over static tensors as a CUDA graph.

    Launching hundreds of small kernels takes the CPU longer than the GPU takes to run them; a CUDA
    graph launches all of them at once. It requires static shapes and addresses, and no
    synchronization. If the capture fails, log a warning and return None.

    Args:
        compute: returns a tensor. It is run once before, because the lazy initialization in
            libraries cannot be captured.
        device: the GPU.
        otherwise: the end of the warning, such as "decoding without".
        pool: memory pool for intermediate tensors; None for a new one.
    """
    with _CAPTURING, torch.cuda.device(device):
        current_stream = torch.cuda.current_stream()
        # One stream per device: libraries keep a workspace for each stream they have run on.
        if device not in _STREAMS:
            _STREAMS[device] = torch.cuda.Stream()
        side_stream = _STREAMS[device]
        graph = torch.cuda.CUDAGraph()
        try:
            side_stream.wait_stream(current_stream)
            with torch.cuda.stream(side_stream):
                compute()
            current_stream.wait_stream(side_stream)
            # Other threads may use the GPU during the capture.
            with torch.cuda.graph(
                graph, pool=pool, stream=side_stream, capture_error_mode="thread_local"
            ):
                out = compute()
        except RuntimeError as error:  # also out of memory
            torch.cuda.set_stream(current_stream)
            current_stream.wait_stream(side_stream)
            log.warning("CUDA graphs do not work here (%s): %s", first_line(error), otherwise)
            return None
    return CapturedGraph(graph, out)


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` works on a device; log a warning if it does not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler raises many types of exception
        log.warning("torch.compile does not work here (%s): running without it", first_line(error))
        return False
    return True


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of PyTorch or Python means out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_device_failure(error: Exception) -> bool:
    """Return whether an error means that the device failed (reset, lost, fallen off the bus)."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
