"""Import and export of Hugging Face GPT-2 models, in the layout of `transformers`.

V vocabulary, C channels (`d_model`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..arguments import checked
from ..config import LARGEST, GPT2Config
from ..config_loader import make_config
from ..console import busy, visible
from ..cuda_utils import check_memory, first_line
from ..errors import AGI2Error, shown
from ..model import GPT2Model
from ..tokenizer import FILE_NAME, BPETokenizer, Tokenizer
from ..utils import atomic_folder, atomic_path, log, write_text, writing
from .huggingface_tokenizer import load_hf_tokenizer, read_hf_json, save_hf_tokenizer
from .model_dir import (
    CONFIG,
    WEIGHTS,
    check_finite,
    check_vocabulary,
    load_tensors,
    save_model,
    save_tensors,
)

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
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
_OUR_ACTIVATIONS = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}

# Sizes in config.json: the key, and the field of `GPT2Config`.
_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "max_seq_len",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_inner": "d_ff",
}
# Their values if a file leaves them out; `None`: 4 x n_embd.
_DEFAULTS: dict[str, Any] = {"n_positions": 1024, "n_inner": None}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

# Keys of config.json with one supported value each, as `GPT2Config` has no field for them.
_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}

# Keys that are supported only if unset: pruned or quantized checkpoints.
_ABSENT: dict[str, Any] = {"pruned_heads": {}, "quantization_config": None}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# File patterns to download from the hub. No pickle: pytorch_model.bin can run any code.
_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.json",
    "merges.txt",
)


def renamed(ours: str, names: Mapping[str, str], block: str, inside: Mapping[str, str]) -> str:
    """Map a `state_dict` key of `GPT2Model` to another project's key.

    Args:
        ours: key in our `state_dict`.
        names: the other project's names of modules outside the blocks, by ours.
        block: its prefix of a block, before the index.
        inside: its names of modules inside a block, by ours.
    """
    module, _, kind = ours.rpartition(".")
    if not module.startswith("blocks."):
        return f"{names[module]}.{kind}"
    _, index, part = module.split(".", 2)
    return f"{block}.{index}.{inside[part]}.{kind}"


def hf_key(ours: str) -> str:
    """Return the `transformers` key for a `state_dict` key of `GPT2Model`."""
    return renamed(ours, _NAMES, "transformer.h", _NAMES_IN_A_BLOCK)


def is_transposed(ours: str) -> bool:
    """Return whether `transformers` stores this weight as (inputs, outputs), in a `Conv1D`."""
    return ours.startswith("blocks.") and ours.endswith(".weight") and "norm" not in ours


def to_hf_state_dict(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a `state_dict` to the keys and layout of `transformers`; values do not change."""
    return {
        hf_key(name): weight.t() if is_transposed(name) else weight
        for name, weight in weights.items()
    }


def to_hf_config(config: GPT2Config) -> dict[str, Any]:
    """Return the fields of `transformers.GPT2Config` for this architecture."""
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_weights,
        **_FIXED,
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
            f'GPT-2 normalises before each layer: a model with norm_position = "'
            f'{config.norm_position}" has no form in this format'
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


# Export


def export_huggingface(model: GPT2Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder for `from_pretrained` of `transformers`, with the same logits and token ids.

    Two differences of `AutoTokenizer` remain: it encodes the string of a special token in a text
    as that token, AGI2 as plain text; and it encodes a word of over 1,200 characters at once,
    which AGI2 splits (see `tokenization.pieces`).

    Args:
        model: pre-norm.
        tokenizer: byte-level BPE.
        folder: created if missing.

    Raises:
        AGI2Error: if `transformers` does not support the architecture or the tokenizer, or the
            folder cannot be written.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise AGI2Error(
            'a character tokenizer has no form in this format: train with tokenizer = "bpe"'
        )
    config, weights = as_gpt2(model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ends = save_hf_tokenizer(tokenizer, folder, config.max_seq_len)
    model_notes = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **to_hf_config(config),
        **ends,
    }
    write_text(folder / "config.json", json.dumps(model_notes, indent=2) + "\n")
    write_text(folder / "generation_config.json", json.dumps(ends, indent=2) + "\n")
    with atomic_path(folder / WEIGHTS) as beside:
        save_tensors(to_hf_state_dict(weights), beside, {"format": "pt"})


# Import


@checked
def import_huggingface(source: str | Path, folder: str | Path, *, verbose: bool = True) -> None:
    """Convert a Hugging Face GPT-2 model to a folder for `load_model`.

    Args:
        source: a local folder, or a model id on the hub such as `openai-community/gpt2`.
        folder: the folder to create.
        verbose: whether to show progress (see `console.visible`).

    Raises:
        AGI2Error: if it cannot be downloaded, is not a GPT-2, or its files contradict each other.
    """
    with visible(verbose), busy(f"importing {source}"):
        _import(Path(source).as_posix(), Path(folder))


def _import(source: str, folder: Path) -> None:
    place = _find(source)
    if not (place / "config.json").exists():
        raise AGI2Error(f"{source} is not a Hugging Face model: it has no config.json")
    theirs = read_hf_json(place / "config.json", source)
    architecture = from_hf_config(theirs, source)
    check_memory(architecture, f"{source}: this model")
    tokenizer = load_hf_tokenizer(place, source, theirs)
    found = _read_weights(place, source)
    if _has_own_head(found):  # even if config.json says that it is tied
        architecture = replace(architecture, tie_weights=False)
    with torch.device("meta"):
        model = GPT2Model(architecture)
    check_vocabulary(tokenizer, model, source)
    weights = _our_weights(found, model, source)
    model.load_state_dict(weights, assign=True)
    given = {**architecture.to_keys(), "model_name": folder.name, "output_dir": str(folder.parent)}
    with atomic_folder(folder) as beside:
        save_model(model, tokenizer, make_config(given, name=str(folder)), beside)


def from_hf_config(theirs: Mapping[str, Any], name: str) -> GPT2Config:
    """Convert a config.json of `transformers` to a `GPT2Config`.

    Args:
        theirs: content of config.json.
        name: name of the model, for error messages.

    Raises:
        AGI2Error: if it is not a GPT-2, or uses a feature that AGI2 does not support.
    """
    name = f"{name}: config.json"
    if theirs.get("model_type") != "gpt2":
        kind = shown(theirs.get("model_type"))
        raise AGI2Error(f"{name}: model_type = {kind}; only gpt2 can be imported")
    theirs = _without_aliases(theirs, name)
    for key, value in {**_FIXED, **_ABSENT}.items():
        found = theirs.get(key, value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise AGI2Error(f"{name}: {key} = {shown(found)}; AGI2 has only {value!r}")
    activation = theirs.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _OUR_ACTIVATIONS:
        known = ", ".join(_OUR_ACTIVATIONS)
        raise AGI2Error(f"{name}: activation_function = {shown(activation)} is none of {known}")
    # The order of operations under reorder_and_upcast_attn does not change what is computed.
    for key in ("tie_word_embeddings", "reorder_and_upcast_attn"):
        if type(theirs.get(key, True)) is not bool:
            raise AGI2Error(f"{name}: {key} = {shown(theirs[key])} is neither true nor false")
    sizes: dict[str, Any] = {ours: _size(theirs, key, name) for key, ours in _SIZES.items()}
    if sizes["d_model"] % sizes["n_heads"]:
        raise AGI2Error(
            f"{name}: n_embd = {sizes['d_model']} is not divisible by n_head = {sizes['n_heads']}"
        )
    return GPT2Config(
        **sizes,
        dropout=_dropout(theirs, name),
        activation=_OUR_ACTIVATIONS[activation],  # type: ignore[arg-type]
        position_embedding="learned",
        tie_weights=theirs.get("tie_word_embeddings", True),
    )


def _size(theirs: Mapping[str, Any], key: str, name: str) -> int:
    """Return a size of config.json; 0 for an `n_inner` that is not set.

    Raises:
        AGI2Error: if it is missing, or is not an integer within the limits of `GPT2Config`.
    """
    if key not in theirs and key not in _DEFAULTS:
        raise AGI2Error(f"{name}: {key} is missing")
    value, most = theirs.get(key, _DEFAULTS.get(key)), LARGEST[_SIZES[key]]
    if value is None and key == "n_inner":
        return 0
    if type(value) is not int or not 1 <= value <= most:
        raise AGI2Error(f"{name}: {key} = {shown(value)} is not an integer from 1 to {most:,}")
    return value


# The `attribute_map` of `transformers.GPT2Config`: generic aliases that it accepts.
_ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def _without_aliases(theirs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the content of a config.json with its aliases replaced by GPT-2's own keys.

    Raises:
        AGI2Error: if a key and its alias have different values.
    """
    found = dict(theirs)
    for key, alias in [*_ALIASES.items(), ("n_positions", "n_ctx")]:
        value = found.pop(alias, None)
        if value is not None and found.setdefault(key, value) != value:
            raise AGI2Error(
                f"{name}: {key} = {shown(found[key])} and {alias} = {shown(value)} contradict each "
                "other: take the wrong one out"
            )
    return found


def _dropout(theirs: Mapping[str, Any], name: str) -> float:
    """Return the dropout rate; warn if there are several, as AGI2 has one for all.

    Raises:
        AGI2Error: if a rate is not a number from 0 to below 1.
    """
    rates = {key: theirs.get(key, 0.1) for key in _DROPOUTS}
    for key, rate in rates.items():
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            raise AGI2Error(f"{name}: {key} = {shown(rate)} is not a number from 0 to below 1")
    if len(set(rates.values())) > 1:
        log.warning(
            "%s: not kept: %s; AGI2 has one rate for all: that of resid_pdrop",
            name,
            ", ".join(f"{key} = {shown(rate)}" for key, rate in rates.items()),
        )
    return float(rates["resid_pdrop"])


def _find(source: str) -> Path:
    """Return a local folder as it is; download a model id from the hub and return its folder."""
    folder = Path(source)
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            raise AGI2Error(f"{source} is a model of AGI2's already: use it as it is")
        return folder
    if folder.exists():
        raise AGI2Error(f"{source} is a file: name the folder that it is in")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise AGI2Error(f"{source}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except Exception as error:  # any network or cache error
        raise AGI2Error(
            f"{source} is not a folder, and could not be fetched from the Hugging Face hub "
            f"({first_line(error)}): check the name and the network, or give a folder that holds "
            f"config.json, {WEIGHTS} and {FILE_NAME}"
        ) from error


def _read_weights(place: Path, name: str) -> dict[str, torch.Tensor]:
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
                f"{name}: {index.name} names {shown(min(outside))}, which is no .safetensors file "
                "of this folder"
            )
    else:
        raise AGI2Error(
            f"{name} has no {WEIGHTS}; pytorch_model.bin is not read, as a pickle can run any "
            "code: open it with transformers where you trust it, and save_pretrained() writes "
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


def _has_own_head(found: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the output head is untied: not equal to the token embedding."""
    head, embedding = found.get("lm_head.weight"), found.get("wte.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return head is not None
    return not torch.equal(head.float(), embedding.float())


def _our_weights(
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
        raise AGI2Error(f"{name}: {sorted(strangers)[0]} has no place in a GPT-2")
    return weights
