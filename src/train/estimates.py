"""What a run takes, from its sizes: memory, disk, floating-point operations, the micro-batch."""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ..config import Config, GPT2Config
from ..cuda_utils import LOGITS_AT_ONCE
from ..model import GPT2Model
from ..nn.lora import add_lora

# Memory that activations may take on a CPU. Fixed, so that equal configurations give equal runs.
CPU_ACTIVATION_BUDGET = 2 * 2**30


def activation_bytes(architecture: GPT2Config, seq_len: int) -> int:
    """About how many bytes a training step holds for each sequence, in fp32, without its logits.

    Counted in vectors of `d_model` a token. A layer keeps 16 for its backward pass; the rest, and
    all that gradient checkpointing holds beyond 1 a layer, are gaps between freed tensors. Measured
    as the peak memory of a process on a CPU; a GPU, where nothing falls between, holds less.
    """
    layer = 19.5 * architecture.d_model
    if architecture.dropout > 0:
        # Without the fused kernel, which has no dropout on a CPU, attention weights are kept.
        layer += 10.5 * architecture.d_model + 3.2 * architecture.n_heads * seq_len
    if architecture.gradient_checkpointing:
        layers = 12 * architecture.n_layers * architecture.d_model + layer
    else:
        layers = architecture.n_layers * layer + 12 * architecture.d_model
    return int(4 * seq_len * layers)


def training_flops(architecture: GPT2Config, parameters: int, seq_len: int) -> float:
    """Floating-point operations that a training step needs for each token.

    6 for each weight but the positions' (forward 2, backward 4), and attention's 12 x layers x
    width x length (Chowdhery et al., 2022, appendix B), recomputation not counted.
    """
    weights = parameters
    if architecture.position_embedding == "learned":
        weights -= architecture.max_seq_len * architecture.d_model
    return 6 * weights + 12 * architecture.n_layers * architecture.d_model * seq_len


# Dense bf16 (or, before Ampere, fp16) matrix products, in FLOP/s, from the makers' data sheets.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device, precision: torch.dtype = torch.float32) -> float | None:
    """The most floating-point operations a second that matrix products reach on a device.

    A GPU's is the maker's figure for half precision, `None` where it is not known or the precision
    is another; a CPU's is measured in fp32, in about a tenth of a second.
    """
    if device.type == "cuda":  # pragma: needs gpu
        name = torch.cuda.get_device_name(device)
        known = (peak for model, peak in _PEAKS.items() if re.search(rf"\b{model}\b", name))
        return None if precision == torch.float32 else next(known, None)
    if device.type != "cpu":
        return None
    a, b = (torch.ones(512, n, dtype=torch.float32, device="cpu") for n in (512, 2048))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 512 * 512 * 2048 / best


def choose_micro_batch_size(
    architecture: GPT2Config, seq_len: int, batch_size: int, device: torch.device
) -> int:
    """The largest divisor of `batch_size` whose activations fit the device's budget; at least 1."""
    budget = CPU_ACTIVATION_BUDGET
    if device.type == "cuda":  # pragma: needs gpu
        budget = int(0.6 * torch.cuda.get_device_properties(device).total_memory)
    fitting = budget // activation_bytes(architecture, seq_len)
    return max(
        (n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fitting), default=1
    )


@dataclass(frozen=True)
class Memory:
    """What a run takes at its peak, in bytes: of the device's memory, or of the process's."""

    process: int
    """Python, PyTorch, the text and its tokens; nothing on a GPU."""
    weights: int
    """The model's, and the best ones as they are read back at the end."""
    optimizer: int
    """Its state, and what Muon works with."""
    activations: int
    """What one micro-batch keeps for its backward pass, and the gradients that stand beside it."""
    logits: int
    """Of the tokens that the head sees together."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Sizes:
    """What a model and its optimizer hold, in bytes."""

    weights: int
    trained: int
    """Those of the weights that are trained: with LoRA, only its own."""
    head: int
    """The head's part of the trained ones."""
    optimizer: int
    """State that is kept from step to step."""
    muon_work: int
    """What Muon's step takes: every update, and 3.5 copies of the largest group of matrices."""


def model_sizes(config: Config) -> Sizes:
    """Reckoned from a model without memory.

    Args:
        config: a run's, with the vocabulary that its text reached.
    """
    return _sizes(config.architecture, config.optimizer, config.lora_rank)


@functools.cache
def _sizes(architecture: GPT2Config, optimizer: str, lora_rank: int | None) -> Sizes:
    with torch.device("meta"):
        model = GPT2Model(architecture)
        if lora_rank is not None:
            add_lora(model, lora_rank)
    weights = 4 * model.num_parameters()
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = 4 * model.output_weight.numel() if model.output_weight.requires_grad else 0
    if optimizer == "adamw":
        return Sizes(weights, trained, head, 2 * trained, 0)
    groups: dict[tuple[int, ...], int] = defaultdict(int)
    for matrix in (p for p in model.blocks.parameters() if p.dim() == 2):
        rows, columns = sorted(matrix.shape)
        # Query, key and value are three matrices of the smaller size.
        groups[rows, rows if columns == 3 * rows else columns] += 4 * matrix.numel()
    matrices = sum(groups.values())
    work = matrices + 7 * max(groups.values()) // 2
    return Sizes(weights, trained, head, 2 * trained - matrices, work)


def predict_memory(
    config: Config, micro_batch_size: int, seq_len: int, device: torch.device, process: int = 0
) -> Memory:
    """The memory that a run takes at its peak, reckoned from its sizes.

    Args:
        config: the run's, with the vocabulary that its text reached.
        micro_batch_size: sequences at a time.
        seq_len: tokens of a sequence.
        device: what it trains on.
        process: bytes that the process holds before it has a model; of no account on a GPU.
    """
    sizes = model_sizes(config)
    activations = micro_batch_size * activation_bytes(config.architecture, seq_len)
    if micro_batch_size < config.batch_size:
        # The sum so far, and the embeddings' gradients of this part as head and as table. The sum
        # came to lie among the first part's activations: less of what those leave fits the next.
        activations = int(1.4 * activations) + sizes.trained + 2 * sizes.head
    else:
        # Each layer's gradients take the place of its activations, behind the head's.
        activations = max(activations + sizes.head, sizes.trained)
    together = min(micro_batch_size * seq_len, LOGITS_AT_ONCE)
    return Memory(
        process=process if device.type == "cpu" else 0,
        weights=2 * sizes.weights,
        optimizer=sizes.optimizer + sizes.muon_work,
        activations=activations,
        logits=4 * 2 * together * config.vocab_size,
    )


def disk_needed(config: Config) -> int:
    """Bytes of a run's folder at most.

    The checkpoints kept and the one that is being written, and the best weights as they are now
    and as each checkpoint remembers them.
    """
    sizes = model_sizes(config)
    checkpoint = 2 * sizes.weights + sizes.optimizer
    return (config.keep_checkpoints + 1) * checkpoint + sizes.weights


def free_disk(folder: Path) -> int:
    """Free bytes of the file system where a folder is, or would be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
