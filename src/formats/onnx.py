"""Export to ONNX: the forward pass as a graph for ONNX Runtime and other runtimes."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import AGI2Error
from ..model import GPT2Model
from ..utils import atomic_path, human_bytes

# Bytes of weights in one ONNX file: a protobuf message, graph included, is limited to 2 GiB.
MAX_FILE_BYTES = 2 * 1000**3

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_EXPORT_LOCK = threading.Lock()


def export_onnx(model: GPT2Model, path: Path) -> None:
    """Export a graph from `input_ids` (B, T) to `logits` (B, T, V), with dynamic B and T.

    T is at most the model's `max_seq_len`. The graph has no KV cache and no tokenizer.

    Args:
        model: in evaluation mode, on the CPU.
        path: the file to write, weights included.

    Raises:
        AGI2Error: if the model is prepared for inference or too large for one file, or the file
            cannot be written.
    """
    model.require_weights("saved or exported")
    size = 4 * model.num_parameters()
    if size > MAX_FILE_BYTES:
        raise AGI2Error(
            f"an ONNX file holds {human_bytes(MAX_FILE_BYTES)} at most, this model has "
            f"{human_bytes(size)}: export it with --format hf or gguf"
        )
    # Not a batch of 1: torch.export would specialize the graph to that size.
    example = torch.zeros(2, min(8, model.config.max_seq_len), dtype=torch.long, device="cpu")
    with atomic_path(path) as temporary, _silence():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "batch", 1: "length"},),
            input_names=["input_ids"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        program.save(temporary, external_data=False)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's warnings and log records below ERROR; exceptions pass through.

    Only the exporter's loggers change. The lock serializes exports: of two that overlap, each
    would restore the level that the other had set.
    """
    with _EXPORT_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
