"""Estimates of a run's peak memory, disk usage, FLOPs and micro-batch size."""

from __future__ import annotations

import functools
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ..config import Config, GPT2Config
from ..cuda_utils import CPU, logits_chunk_tokens, measure_cpu_flops
from ..model import GPT2Model
from ..nn.lora import add_lora, is_lora
from ..tokenizer import ROLE_TOKENS

# Activation memory, in bytes, on a CPU. Fixed, so that runs of one configuration are identical on
# machines with different amounts of memory.
CPU_ACTIVATION_BUDGET = 2 * 2**30


def activation_bytes(
    architecture: GPT2Config, seq_len: int, device: torch.device = CPU, precision: str = "fp32"
) -> int:
    """Estimate the activation memory of one sequence, without logits, in bytes.

    The unit is a vector of `d_model` per token, in fp32. On a CPU a layer saves 12 of them for
    backward, with dropout 16; the rest, and with gradient checkpointing all beyond 1 per layer, is
    heap fragmentation: fitted to the peak memory of a process. On a GPU in half precision it is
    fitted to GPT-2 124M (see `benchmarks/README.md`): bf16 on a CPU keeps about as much as fp32,
    because attention and dropout are others.

    Args:
        architecture: the model's architecture.
        seq_len: tokens of the sequence.
        device: the training device.
        precision: the key of the configuration.
    """
    is_gpu = device.type == "cuda"
    if is_gpu:
        layer = (10.5 if precision != "fp32" else 19.5) * architecture.d_model
    else:
        layer = 15.5 * architecture.d_model
    if architecture.dropout > 0:
        layer += (3.0 if is_gpu else 14.5) * architecture.d_model
        if not is_gpu:
            # The fused attention kernel has no dropout on a CPU: the attention weights (T, T) of
            # each head are saved for backward.
            layer += 3.2 * architecture.n_heads * seq_len
    if architecture.gradient_checkpointing:
        layers = 12 * architecture.n_layers * architecture.d_model + layer
    else:
        layers = architecture.n_layers * layer + 12 * architecture.d_model
    return int(4 * seq_len * layers)


def training_flops(architecture: GPT2Config, parameters: int, seq_len: float) -> float:
    """Return the FLOPs of a training step (forward and backward) per token.

    6 per parameter except position embeddings (forward 2, backward 4), and 12 x layers x width x
    length for attention (Chowdhery et al., 2022, appendix B); without recomputation.
    """
    weights = parameters
    if architecture.position_embedding == "learned":
        weights -= architecture.max_seq_len * architecture.d_model
    return 6 * weights + 12 * architecture.n_layers * architecture.d_model * seq_len


# Peak FLOP/s of dense matrix products in bf16 (before Ampere: fp16), from NVIDIA's data sheets.
_PEAK_FLOPS = {
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
    """Return a device's peak FLOP/s for matrix products, the denominator of MFU.

    For a GPU it is the data sheet's value for half precision, or `None` for an unknown GPU or for
    fp32; for a CPU it is measured (see `measure_cpu_flops`).
    """
    if device.type == "cuda":  # pragma: needs gpu
        name = torch.cuda.get_device_name(device)
        known = (peak for model, peak in _PEAK_FLOPS.items() if re.search(rf"\b{model}\b", name))
        return None if precision == torch.float32 else next(known, None)
    if device.type != "cpu":
        return None
    return measure_cpu_flops(torch.get_num_threads(), precision)


def choose_micro_batch_size(
    architecture: GPT2Config,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
) -> int:
    """Return the largest divisor of `batch_size` whose activations fit into the device's budget.

    The budget is 60% of a GPU's memory (the rest is for weights, gradients, optimizer state and
    logits), or `CPU_ACTIVATION_BUDGET`. The result is at least 1.
    """
    budget = CPU_ACTIVATION_BUDGET
    if device.type == "cuda":  # pragma: needs gpu
        budget = int(0.6 * torch.cuda.get_device_properties(device).total_memory)
    fitting = budget // activation_bytes(architecture, seq_len, device, precision)
    return max(
        (n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fitting), default=1
    )


@dataclass(frozen=True)
class Memory:
    """A run's peak memory by category, in bytes: of the device, or, on a CPU, of the process."""

    process: int
    """Python, PyTorch, the text and its tokens; 0 on a GPU."""
    weights: int
    """The model's weights, and the best weights that are loaded at the end."""
    optimizer: int
    """Optimizer state, and Muon's temporary buffers."""
    activations: int
    """Activations of one micro-batch, and the gradients that exist at the same time."""
    logits: int
    """Buffers for the logits of one chunk of the loss (`logits_chunk_tokens`)."""

    @property
    def total(self) -> int:
        """The sum of all categories."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and its optimizer, in bytes."""

    weights: int
    trainable: int
    """Parameters with a gradient: with LoRA the adapters, and the embeddings if tokens are new."""
    trained: int
    """Those of them that change: with LoRA the adapters, and the rows of new tokens."""
    head: int
    """The LM head's share of the trainable parameters."""
    optimizer: int
    """Persistent optimizer state."""
    muon_buffers: int
    """Temporary buffers of Muon: all updates, and 3.5 copies of the largest group of matrices."""


def model_sizes(config: Config) -> Sizes:
    """Compute the sizes from a model on the meta device.

    Args:
        config: the run's configuration, with the vocabulary size of the fitted tokenizer.
    """
    new_tokens = len(ROLE_TOKENS) + 1 if config.has_messages else 0
    sizes = _sizes(config.architecture, config.optimizer, config.lora_rank, new_tokens)
    if config.ema_decay is None:
        return sizes
    return replace(sizes, optimizer=sizes.optimizer + sizes.trainable)


@functools.cache
def _sizes(
    architecture: GPT2Config, optimizer: str, lora_rank: int | None, new_tokens: int
) -> Sizes:
    with torch.device("meta"):
        model = GPT2Model(architecture)
        if lora_rank is not None:
            add_lora(model, lora_rank, range(new_tokens))
    weights = 4 * model.num_parameters()
    gradients = {name: 4 * p.numel() for name, p in model.named_parameters() if p.requires_grad}
    trainable = trained = sum(gradients.values())
    if lora_rank is not None:
        adapters = sum(size for name, size in gradients.items() if is_lora(name))
        trained = adapters + (trainable - adapters) * new_tokens // architecture.vocab_size
    head = 4 * model.output_weight.numel() if model.output_weight.requires_grad else 0
    if optimizer == "adamw":
        return Sizes(weights, trainable, trained, head, 2 * trainable, 0)
    groups: dict[tuple[int, ...], int] = defaultdict(int)
    for matrix in (p for p in model.blocks.parameters() if p.dim() == 2):
        rows, columns = sorted(matrix.shape)
        # Muon splits the concatenated query, key and value into three square matrices.
        groups[rows, rows if columns == 3 * rows else columns] += 4 * matrix.numel()
    matrices = sum(groups.values())
    buffers = matrices + 7 * max(groups.values()) // 2
    return Sizes(weights, trainable, trained, head, 2 * trainable - matrices, buffers)


def predict_memory(
    config: Config, micro_batch_size: int, seq_len: int, device: torch.device, process: int = 0
) -> Memory:
    """Estimate a run's peak memory.

    Args:
        config: the run's configuration, with the vocabulary size of the fitted tokenizer.
        micro_batch_size: sequences per micro-batch.
        seq_len: tokens per sequence.
        device: the training device.
        process: memory of the process before the model is created, in bytes; ignored on a GPU.
    """
    sizes = model_sizes(config)
    one = activation_bytes(config.architecture, seq_len, device, config.precision)
    activations = micro_batch_size * one
    if micro_batch_size < config.batch_size:
        # Gradient accumulation: the accumulated gradients, and this micro-batch's gradients of the
        # tied embeddings, as LM head and as table. 1.4: the accumulated gradients were allocated
        # among the first micro-batch's activations and fragment the heap.
        activations = int(1.4 * activations) + sizes.trainable + 2 * sizes.head
    else:
        # A layer's activations are freed as its gradients are allocated, after those of the head.
        activations = max(activations + sizes.head, sizes.trainable)
    chunk_tokens = min(micro_batch_size * seq_len, logits_chunk_tokens(device))
    return Memory(
        process=process if device.type == "cpu" else 0,
        weights=2 * sizes.weights,
        optimizer=sizes.optimizer + sizes.muon_buffers,
        activations=activations,
        logits=4 * 2 * chunk_tokens * config.architecture.vocab_size,
    )


def disk_needed(config: Config) -> int:
    """Return the maximum size of a run folder, in bytes.

    It contains the checkpoints that are kept, the one being written, and the best weights, of
    which each checkpoint may have a different copy.
    """
    sizes = model_sizes(config)
    checkpoint = 2 * sizes.weights + sizes.optimizer
    return (config.keep_checkpoints + 1) * checkpoint + sizes.weights


def free_disk(folder: Path) -> int:
    """Return the free bytes of a folder's file system; the folder need not exist."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
