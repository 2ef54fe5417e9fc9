"""Weights of a Hugging Face GPT-2, from and to our `state_dict`. C channels (`d_model`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..config import GPT2Config
from ..errors import AGI2Error, safe_repr
from ..model import GPT2Model
from .huggingface_folder import read_hf_json
from .model_dir import WEIGHTS, check_finite, load_tensors

# Module names in `transformers`, by module of `GPT2Model`; then those inside a block.
_NAMES = {
    "token_embeddings": "transformer.wte",
    "position_embeddings": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
_NAMES_IN_A_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.proj": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.expand": "mlp.c_fc",
    "ffn.contract": "mlp.c_proj",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def renamed(key: str, names: Mapping[str, str], block: str, inside: Mapping[str, str]) -> str:
    """Map a `state_dict` key of `GPT2Model` to another project's key.

    Args:
        key: key in our `state_dict`.
        names: the other project's names of modules outside the blocks, by ours.
        block: its prefix of a block, before the index.
        inside: its names of modules inside a block, by ours.
    """
    module, _, kind = key.rpartition(".")
    if not module.startswith("blocks."):
        return f"{names[module]}.{kind}"
    _, index, part = module.split(".", 2)
    return f"{block}.{index}.{inside[part]}.{kind}"


def hf_key(key: str) -> str:
    """Return the `transformers` key for a `state_dict` key of `GPT2Model`."""
    return renamed(key, _NAMES, "transformer.h", _NAMES_IN_A_BLOCK)


def is_transposed(key: str) -> bool:
    """Return whether `transformers` stores this weight as (inputs, outputs), in a `Conv1D`."""
    return key.startswith("blocks.") and key.endswith(".weight") and "norm" not in key


def to_hf_state_dict(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a `state_dict` to the keys and layout of `transformers`; values do not change."""
    return {
        hf_key(name): weight.t() if is_transposed(name) else weight
        for name, weight in weights.items()
    }


def as_gpt2(model: GPT2Model) -> tuple[GPT2Config, dict[str, torch.Tensor]]:
    """Convert a model to plain GPT-2 (learned positions, biases) with the same logits.

    Sinusoidal positions become a table of position embeddings. The factor sqrt(C) is folded into
    the token embeddings, so the head, which has no such factor, is untied. Missing biases become
    zeros.

    Returns:
        The architecture, and the weights under our `state_dict` keys.

    Raises:
        AGI2Error: if GPT-2 cannot represent the model.
    """
    config, weights = model.config, dict(model.state_dict())
    if config.norm_position != "pre":
        raise AGI2Error(
            "GPT-2 is pre-norm: a model with norm_position = "
            f'"{config.norm_position}" cannot be converted to it'
        )
    if config.position_embedding != "learned":
        weights["head.weight"] = model.output_weight.detach()
        weights["token_embeddings.weight"] = (
            weights["token_embeddings.weight"] * model.embedding_scale
        )
        weights["position_embeddings.weight"] = model.position_embeddings.weight
        config = replace(config, position_embedding="learned", tie_weights=False)
    if not config.bias:
        for name in list(weights):
            if name.startswith(("blocks.", "final_norm.")):
                bias = name.removesuffix("weight") + "bias"
                weights[bias] = weights[name].new_zeros(len(weights[name]))
        config = replace(config, bias=True)
    return config, weights


def read_hf_weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    """Load one safetensors file, or all shards of an index; strip the prefix `transformer.`."""
    index = place / f"{WEIGHTS}.index.json"
    if os.path.lexists(place / WEIGHTS):  # even if it cannot be read: no other is meant
        files = {WEIGHTS}
    elif os.path.lexists(index):
        places = read_hf_json(index, name).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise AGI2Error(f"{name}: {index.name} is damaged: it has no weight_map of file names")
        files = set(places.values())
        if outside := [file for file in files if not re.fullmatch(r"[^/\\\0]+\.safetensors", file)]:
            raise AGI2Error(
                f"{name}: {index.name} names {safe_repr(min(outside))}, which is not a "
                ".safetensors file of this folder"
            )
    else:
        raise AGI2Error(
            f"{name} has no {WEIGHTS}; pytorch_model.bin is not read, as a pickle can run any "
            "code: if you trust it, open it with transformers, and save_pretrained() writes "
            "safetensors"
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(files):
        more = load_tensors(place / file)
        if twice := more.keys() & tensors.keys():
            raise AGI2Error(f"{name}: {min(twice)} is in two of its files")
        tensors.update(more)
    # `GPT2LMHeadModel` saves keys with the prefix `transformer.`, `GPT2Model` without.
    found = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    if len(found) < len(tensors):
        raise AGI2Error(f"{name}: its weights have a tensor twice, with and without transformer.")
    return found


def has_own_head(found: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the output head is untied: not equal to the token embedding."""
    head, embedding = found.get("lm_head.weight"), found.get("wte.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return head is not None
    return not torch.equal(head.float(), embedding.float())


def from_hf_state_dict(
    found: dict[str, torch.Tensor], model: GPT2Model, name: str
) -> dict[str, torch.Tensor]:
    """Convert the tensors of `transformers` to our `state_dict`, in fp32.

    Raises:
        AGI2Error: for a missing or unexpected key, a wrong shape, a type that is not floating, or a
            value that is NaN or infinite.
    """
    found, weights = dict(found), {}
    for ours, expected in model.state_dict().items():
        theirs = hf_key(ours).removeprefix("transformer.")
        if theirs not in found:
            raise AGI2Error(f"{name}: {theirs} is missing in its weights")
        weight = found.pop(theirs)
        weight = weight.t() if is_transposed(ours) and weight.dim() == 2 else weight
        if weight.shape != expected.shape:
            raise AGI2Error(
                f"{name}: its weights and its config.json disagree: {theirs} is "
                f"{tuple(weight.shape)}, not {tuple(expected.shape)}"
            )
        if weight.dtype not in _FLOATS:
            kind = str(weight.dtype).removeprefix("torch.")
            raise AGI2Error(f"{name}: {theirs} is of the type {kind}: AGI2 reads floating point")
        weights[ours] = weight.float().contiguous()
        check_finite({theirs: weights[ours]}, name)
    # Ignored keys: causal masks, which old versions of `transformers` saved, and a tied head.
    strangers = [key for key in found if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", key)]
    strangers = [key for key in strangers if not (key == "lm_head.weight" and model.head is None)]
    if strangers:
        raise AGI2Error(f"{name}: {sorted(strangers)[0]} is not a tensor of GPT-2")
    return weights
