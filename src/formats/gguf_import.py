"""Import of a GGUF file of llama.cpp's architecture `gpt2`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arguments import checked
from ..config import GPT2Config
from ..config_keys import LARGEST
from ..console import show_progress, visible
from ..cuda_utils import check_memory
from ..errors import AGI2Error, safe_repr
from ..model import GPT2Model
from ..utils import log
from .gguf import gguf_name
from .gguf_file import GGUFFile
from .gguf_tokenizer import read_tokenizer
from .imported import save_imported
from .model_dir import check_finite, check_vocabulary

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
# Sizes in the metadata: the key, and the field of `GPT2Config`.
_SIZES = {
    "gpt2.context_length": "max_seq_len",
    "gpt2.embedding_length": "d_model",
    "gpt2.block_count": "n_layers",
    "gpt2.feed_forward_length": "d_ff",
    "gpt2.attention.head_count": "n_heads",
}
_EPSILON = "gpt2.attention.layer_norm_epsilon"
# Other keys that writers add, each with the field that it repeats, or with its only value.
_REPEATED = {"gpt2.attention.head_count_kv": "n_heads", "gpt2.vocab_size": "vocab_size"}
_FIXED = {"gpt2.attention.causal": True, "general.type": "model", "split.count": 1}


@checked
def import_gguf(source: str | Path, folder: str | Path, *, verbose: bool = True) -> None:
    """Convert a GGUF file of a GPT-2 to a folder for `load_model`; weights become fp32.

    Args:
        source: the file. Its tensors may be in fp32, fp16, bf16, or in Q8_0, Q4_0, Q4_1, Q5_0,
            Q5_1, Q4_K, Q5_K or Q6_K, which are dequantized.
        folder: the folder to create.
        verbose: whether to show progress (see `console.visible`).

    Raises:
        AGI2Error: if it cannot be read, is damaged, is not a GPT-2, or uses a type, a tokenizer or
            a feature that AGI2 does not support.
    """
    with visible(verbose), show_progress(f"importing {source}"):
        _import(Path(source), Path(folder))


def _import(path: Path, folder: Path) -> None:
    with GGUFFile(path) as file:
        architecture = read_architecture(file)
        check_memory(architecture, f"{path}: this model")
        tokenizer = read_tokenizer(file)
        if _has_own_head(file):
            architecture = replace(architecture, tie_weights=False)
        with torch.device("meta"):
            model = GPT2Model(architecture)
        check_vocabulary(tokenizer, model, path)
        weights = _read_weights(file, model)
    model.load_state_dict(weights, assign=True)
    save_imported(model, tokenizer, folder)


def read_architecture(file: GGUFFile) -> GPT2Config:
    """Return the architecture of a GPT-2, its head tied to the embedding.

    Raises:
        AGI2Error: if it is another model, a size is missing, out of range or not that of the
            tensors, or a feature is not supported.
    """
    kind = file.metadata.get("general.architecture")
    if kind != "gpt2":
        raise AGI2Error(
            f"{file.path}: general.architecture = {safe_repr(kind)}; only gpt2 can be imported"
        )
    sizes: dict[str, Any] = {
        field: _size(file, key, LARGEST[field]) for key, field in _SIZES.items()
    }
    if sizes["d_model"] % sizes["n_heads"]:
        raise AGI2Error(
            f"{file.path}: gpt2.embedding_length = {sizes['d_model']} is not divisible by "
            f"gpt2.attention.head_count = {sizes['n_heads']}"
        )
    sizes["vocab_size"] = _embedding_rows(file, sizes["d_model"])
    _check_features(file, sizes)
    # Before a wrong number builds thousands of modules.
    blocks = {name.split(".")[1] for name in file.entries if re.match(r"blk\.\d+\.", name)}
    if len(blocks) != sizes["n_layers"]:
        raise AGI2Error(
            f"{file.path}: gpt2.block_count = {sizes['n_layers']}, but it has the tensors of "
            f"{len(blocks)} blocks"
        )
    return GPT2Config(**sizes, position_embedding="learned")


def _size(file: GGUFFile, key: str, maximum: int) -> int:
    value = file.metadata.get(key)
    if type(value) is not int or not 1 <= value <= maximum:
        found = "missing" if value is None else f"{safe_repr(value)}, not an integer"
        raise AGI2Error(f"{file.path}: {key} is {found} from 1 to {maximum:,}")
    return value


def _embedding_rows(file: GGUFFile, d_model: int) -> int:
    """Return the number of token embeddings (V)."""
    entry = file.entries.get(_EMBEDDING)
    if entry is None:
        raise AGI2Error(f"{file.path}: {_EMBEDDING} is missing")
    rows = entry.shape[0]
    if entry.shape != (rows, d_model) or rows > LARGEST["vocab_size"]:
        raise AGI2Error(
            f"{file.path}: {_EMBEDDING} is {entry.shape}, not (V, {d_model}) with V up to "
            f"{LARGEST['vocab_size']:,}"
        )
    return rows


def _check_features(file: GGUFFile, sizes: Mapping[str, int]) -> None:
    """Check that the metadata has only what AGI2 supports; warn of keys that are not known."""
    epsilon = file.metadata.get(_EPSILON)
    if not isinstance(epsilon, float) or np.float32(epsilon) != np.float32(1e-5):
        raise AGI2Error(f"{file.path}: {_EPSILON} = {safe_repr(epsilon)}; AGI2 has only 1e-05")
    expected = {**_FIXED, **{key: sizes[field] for key, field in _REPEATED.items()}}
    for key, value in expected.items():
        found = file.metadata.get(key, value)
        if type(found) is not type(value) or found != value:
            raise AGI2Error(f"{file.path}: {key} = {safe_repr(found)}; AGI2 has only {value!r}")
    known = {_EPSILON, *_SIZES, *expected}
    for key in sorted(file.metadata.keys() - known):
        if key.startswith("gpt2."):
            log.warning("%s: not kept: %s", file.path, key)


def _has_own_head(file: GGUFFile) -> bool:
    """Return whether the output head is untied: not equal to the token embedding."""
    if _HEAD not in file.entries or file.entries[_HEAD].shape != file.entries[_EMBEDDING].shape:
        return _HEAD in file.entries
    return not torch.equal(file.tensor(_HEAD), file.tensor(_EMBEDDING))


def _read_weights(file: GGUFFile, model: GPT2Model) -> dict[str, torch.Tensor]:
    """Return our `state_dict`, in fp32; check all names and shapes before a tensor is read.

    Raises:
        AGI2Error: for a missing or unexpected tensor, a wrong shape, or a value that is NaN or
            infinite.
    """
    names = {gguf_name(ours): ours for ours in model.state_dict()}
    for theirs, ours in names.items():
        shape = tuple(model.state_dict()[ours].shape)
        if theirs not in file.entries:
            raise AGI2Error(f"{file.path}: {theirs} is missing")
        if file.entries[theirs].shape != shape:
            raise AGI2Error(
                f"{file.path}: {theirs} is {file.entries[theirs].shape}, not {shape} as its "
                "metadata says"
            )
    tied_head = {_HEAD} if model.head is None else set()
    if strangers := file.entries.keys() - names.keys() - tied_head:
        raise AGI2Error(f"{file.path}: {min(strangers)} is not a tensor of GPT-2")
    weights = {}
    for theirs, ours in names.items():
        weights[ours] = file.tensor(theirs)
        check_finite({theirs: weights[ours]}, str(file.path))
    return weights
