"""ONNX out: the model as a graph that ONNX Runtime and others compute."""

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

# What one ONNX file can hold, in bytes.
LARGEST = 2 * 1000**3

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_EXPORTING = threading.Lock()


def export_onnx(model: GPT2Model, path: Path) -> None:
    """Write a graph from `input_ids` (B, T) to `logits` (B, T, V), for any B and T.

    T is at most the model's positions. The graph keeps no cache, and holds no tokenizer.

    Args:
        model: in evaluation mode, on the CPU.
        path: the file, which holds the weights, too.

    Raises:
        AGI2Error: where the model is too large for one file, or it cannot be written.
    """
    model.needs_weights("saved or exported")
    size = 4 * model.num_parameters()
    if size > LARGEST:
        raise AGI2Error(
            f"an ONNX file holds {human_bytes(LARGEST)} at most, this model has "
            f"{human_bytes(size)}: export it with --format hf or gguf"
        )
    example = torch.zeros(2, min(8, model.config.max_seq_len), dtype=torch.long, device="cpu")
    with atomic_path(path) as beside, _silence():
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
        program.save(beside, external_data=False)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back what the exporter logs about its own parts; what it raises comes through.

    Others' log lines are not touched, and one export at a time changes the exporter's levels: two
    that overlap would each take the other's level for the one to restore.
    """
    with _EXPORTING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
