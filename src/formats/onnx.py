"""Export to ONNX: the forward pass as a graph for ONNX Runtime and other runtimes."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.kv_cache import LayerCache
from ..utils import atomic_path, human_bytes

# Bytes of weights in one ONNX file: a protobuf message, graph included, is limited to 2 GiB.
MAX_FILE_BYTES = 2 * 1000**3

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_EXPORT_LOCK = threading.Lock()


class _Concatenated(LayerCache):
    """One layer's keys and values, (B, H, S, D), which grow by concatenation as a graph can."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T tokens to each row; return all keys and values."""
        self.keys = torch.cat([self.keys, key], dim=2)
        self.values = torch.cat([self.values, value], dim=2)
        return self.keys, self.values


class _WithKVCache(nn.Module):
    """A model whose KV cache is an input and an output: the graph of a decode step."""

    def __init__(self, model: GPT2Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, past: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (B, 1, V) of the last token, and the KV cache with all tokens.

        Args:
            input_ids: the new tokens, (B, T).
            past: keys and values of the S tokens before them, (L, 2, B, H, S, D).
        """
        model, seen, new = self.model, past.size(4), input_ids.size(1)
        x = model.token_embeddings(input_ids) * model.embedding_scale
        x = x + model.position_embeddings(new, offset=seen)
        places = torch.arange(seen + new, device=x.device)
        mask = places <= places[seen:].unsqueeze(1)
        present = []
        for block, layer in zip(model.blocks, past, strict=True):
            cache = _Concatenated(layer[0], layer[1])
            x = block(x, mask, causal=False, cache=cache)
            present.append(torch.stack([cache.keys, cache.values]))
        return model.logits(model.final_norm(x)[:, -1:]), torch.stack(present)


def export_onnx(model: GPT2Model, path: Path, kv_cache: bool = False) -> None:
    """Export a graph from `input_ids` (B, T) to `logits`, without a tokenizer.

    B, T and S are dynamic; S + T is at most the model's `max_seq_len`. L layers, H heads, D head
    size.

    Args:
        model: in evaluation mode, on the CPU.
        path: the file to write, weights included.
        kv_cache: whether the graph has a KV cache: keys and values of S earlier tokens are its
            input `past` (L, 2, B, H, S, D), S = 0 at first, and with the new tokens its output
            `present`. `logits` are then those of the last token, (B, 1, V), else (B, T, V).

    Raises:
        AGI2Error: if the model is prepared for inference or too large for one file, has under 4
            positions and `kv_cache` is true, or the file cannot be written.
    """
    model.require_weights("saved or exported")
    size = 4 * model.num_parameters()
    if size > MAX_FILE_BYTES:
        raise AGI2Error(
            f"an ONNX file holds {human_bytes(MAX_FILE_BYTES)} at most, this model has "
            f"{human_bytes(size)}: export it with --format hf or gguf"
        )
    config = model.config
    if kv_cache and config.max_seq_len < 4:
        raise AGI2Error("an ONNX graph with a KV cache needs a model of at least 4 positions")
    # Not sizes of 1: torch.export would specialize the graph to them.
    example = [torch.zeros(2, min(8, config.max_seq_len), dtype=torch.long, device="cpu")]
    shapes = [{0: "batch", 1: "length"}]
    names = ["input_ids"], ["logits"]
    if kv_cache:
        example = [example[0][:, :2]]
        sizes = (config.n_layers, 2, 2, config.n_heads, 2, config.head_dim)
        example.append(torch.zeros(sizes, device="cpu"))
        shapes.append({2: "batch", 4: "past"})
        names = ["input_ids", "past"], ["logits", "present"]
    with atomic_path(path) as temporary, _silence():
        program = torch.onnx.export(
            _WithKVCache(model).eval() if kv_cache else model,
            tuple(example),
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=names[0],
            output_names=names[1],
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
