"""Hugging Face's GPT-2, in and out: the layout that `transformers` reads and writes.

V vocabulary, C channels (`d_model`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..arguments import checked
from ..config import GPT2Config
from ..config_loader import make_config
from ..console import busy, visible
from ..cuda_utils import check_memory, first_line
from ..errors import AGI2Error, shown
from ..model import GPT2Model
from ..tokenizer import FILE_NAME, BPETokenizer, Tokenizer
from ..utils import atomic_folder, atomic_path, log, write_text, writing
from .huggingface_tokenizer import load_their_tokenizer, read_their_json, write_their_tokenizer
from .model_dir import (
    CONFIG,
    WEIGHTS,
    check_finite,
    check_vocabulary,
    load_tensors,
    save_model,
    save_tensors,
)

# `transformers`' name of each of our modules; those inside a block below.
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

# What a GPT-2's config.json may only say in one way, as GPT2Config has no field for it.
_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}

# What may not be there at all.
_ABSENT: dict[str, Any] = {"pruned_heads": {}, "quantization_config": None}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# What is fetched of a model on the hub. Nothing that is pickled.
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
    """Another project's name for one of our weights.

    Args:
        ours: its name in our `state_dict`.
        names: of modules outside the blocks.
        block: what the blocks are called, before their number.
        inside: names of modules inside a block.
    """
    module, _, kind = ours.rpartition(".")
    if not module.startswith("blocks."):
        return f"{names[module]}.{kind}"
    _, index, part = module.split(".", 2)
    return f"{block}.{index}.{inside[part]}.{kind}"


def their_name(ours: str) -> str:
    """`transformers`' name for one of our weights."""
    return renamed(ours, _NAMES, "transformer.h", _NAMES_IN_A_BLOCK)


def is_transposed(ours: str) -> bool:
    """Whether `transformers` keeps this weight as (inputs, outputs): its linear layers' are."""
    return ours.startswith("blocks.") and ours.endswith(".weight") and "norm" not in ours


def to_their_layout(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights as `transformers` names and lays them out; no number changes."""
    return {
        their_name(name): weight.t() if is_transposed(name) else weight
        for name, weight in weights.items()
    }


def their_config(config: GPT2Config) -> dict[str, Any]:
    """The fields of `transformers`' `GPT2Config` for a model of this architecture."""
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
    """A model of the same logits with what GPT-2 has: learned positions, biases.

    Sinusoidal positions become the table that they are, the token embeddings are multiplied by
    sqrt(`d_model`) as the model does it, and the head, which is not, is a matrix of its own.
    Biases that are not there are zeros.

    Returns:
        Its architecture, and its weights under our names.

    Raises:
        AGI2Error: where GPT-2 cannot express the model.
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


# Out


def export_huggingface(model: GPT2Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that `transformers` loads: the same logits, the same ids.

    `AutoTokenizer` gives the same ids for every text but one that names a special token, which
    `transformers` reads as that token and AGI2 as text.

    Args:
        model: pre-norm.
        tokenizer: byte-level.
        folder: made where it is not there.

    Raises:
        AGI2Error: where `transformers` cannot express the model or the tokenizer, or the folder
            cannot be written.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise AGI2Error(
            'a character tokenizer has no form in this format: train with tokenizer = "bpe"'
        )
    config, weights = as_gpt2(model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ends = write_their_tokenizer(tokenizer, folder, config.max_seq_len)
    model_notes = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **their_config(config),
        **ends,
    }
    write_text(folder / "config.json", json.dumps(model_notes, indent=2) + "\n")
    write_text(folder / "generation_config.json", json.dumps(ends, indent=2) + "\n")
    with atomic_path(folder / WEIGHTS) as beside:
        save_tensors(to_their_layout(weights), beside, {"format": "pt"})


# In


@checked
def import_huggingface(source: str | Path, folder: str | Path, *, verbose: bool = True) -> None:
    """Make a Hugging Face GPT-2 a model of AGI2's, which `load_model` reads.

    Args:
        source: a folder, or a name on the hub such as `openai-community/gpt2`.
        folder: where it goes.
        verbose: whether to show that it takes its time (see `console.visible`).

    Raises:
        AGI2Error: where it cannot be had, is not a GPT-2, or does not fit together.
    """
    with visible(verbose), busy(f"importing {source}"):
        _import(Path(source).as_posix(), Path(folder))


def _import(source: str, folder: Path) -> None:
    place = _find(source)
    if not (place / "config.json").exists():
        raise AGI2Error(f"{source} is no Hugging Face model: it has no config.json")
    theirs = read_their_json(place / "config.json", source)
    architecture = our_config(theirs, source)
    check_memory(architecture, f"{source}: this model")
    tokenizer = load_their_tokenizer(place, source, theirs)
    found = _read_weights(place, source)
    if _has_own_head(found):  # also where config.json says that it is tied
        architecture = replace(architecture, tie_weights=False)
    with torch.device("meta"):
        model = GPT2Model(architecture)
    check_vocabulary(tokenizer, model)
    weights = _our_weights(found, model, source)
    check_finite(weights, source)
    model.load_state_dict(weights, assign=True)
    given = {**architecture.to_keys(), "model_name": folder.name, "output_dir": str(folder.parent)}
    with atomic_folder(folder) as beside:
        save_model(model, tokenizer, make_config(given, name=str(folder)), beside)


def our_config(theirs: Mapping[str, Any], name: str) -> GPT2Config:
    """The architecture that a config.json describes.

    Args:
        theirs: its content.
        name: whose it is, for messages.

    Raises:
        AGI2Error: where it is not a GPT-2, or one with something that AGI2 does not have.
    """
    if theirs.get("model_type") != "gpt2":
        kind = shown(theirs.get("model_type"))
        raise AGI2Error(f"{name} is a {kind}, not a gpt2: it has other parts")
    theirs = _without_aliases(theirs, name)
    for key, value in {**_FIXED, **_ABSENT}.items():
        if theirs.get(key, value) != value:
            raise AGI2Error(f"{name}: {key} = {shown(theirs[key])}; AGI2 has only {value!r}")
    _check_dropout(theirs, name)
    activation = str(theirs.get("activation_function", "gelu_new"))
    if activation not in _OUR_ACTIVATIONS:
        known = ", ".join(_OUR_ACTIVATIONS)
        raise AGI2Error(f"{name}: activation_function {activation!r} is none of {known}")
    tied = theirs.get("tie_word_embeddings", True)
    if type(tied) is not bool:
        raise AGI2Error(f"{name}: tie_word_embeddings = {shown(tied)} is neither true nor false")
    try:
        return GPT2Config(
            vocab_size=_whole_number(theirs["vocab_size"]),
            max_seq_len=_whole_number(theirs.get("n_positions", 1024)),
            d_model=_whole_number(theirs["n_embd"]),
            n_layers=_whole_number(theirs["n_layer"]),
            n_heads=_whole_number(theirs["n_head"]),
            d_ff=_whole_number(theirs.get("n_inner") or 0),
            dropout=theirs.get("resid_pdrop", 0.1),
            activation=_OUR_ACTIVATIONS[activation],  # type: ignore[arg-type]
            position_embedding="learned",
            tie_weights=tied,
        )
    except KeyError as error:
        raise AGI2Error(f"{name}: {error.args[0]} is missing in config.json") from error
    except (TypeError, ValueError) as error:
        raise AGI2Error(f"{name}: config.json: {error}") from error


# Other names that `transformers` reads for the same, as other models have them.
_ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def _without_aliases(theirs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A config.json with GPT-2's own names.

    Raises:
        AGI2Error: where two names of one size say different things.
    """
    found = dict(theirs)
    for key, alias in [*_ALIASES.items(), ("n_positions", "n_ctx")]:
        value = found.pop(alias, None)
        if value is not None and found.setdefault(key, value) != value:
            raise AGI2Error(
                f"{name}: {key} = {shown(found[key])} and {alias} = {shown(value)} in config.json "
                "contradict each other: take the wrong one out"
            )
    return found


def _check_dropout(theirs: Mapping[str, Any], name: str) -> None:
    """Say where a model that is trained on has other dropout rates than AGI2 can keep."""
    rates = {key: theirs.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if any(rate != rates["resid_pdrop"] for rate in rates.values()):
        log.warning(
            "%s: not kept: %s; AGI2 has one rate for all: that of resid_pdrop",
            name,
            ", ".join(f"{key} = {shown(rate)}" for key, rate in rates.items()),
        )


def _whole_number(value: Any) -> int:
    """One that a model can have: PyTorch counts all elements of a matrix in 64 bits."""
    if type(value) is not int or abs(value) > 2**31:
        raise ValueError(f"{shown(value)} is no whole number that a model can have")
    return value


def _find(source: str) -> Path:
    """A folder as it is; a name on the hub as the folder that it is fetched to."""
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
    except Exception as error:  # any kind of network or cache trouble
        raise AGI2Error(
            f"{source} is no folder, and could not be fetched from the Hugging Face hub "
            f"({first_line(error)}): check the name and the network, or give a folder that holds "
            f"config.json, {WEIGHTS} and {FILE_NAME}"
        ) from error


def _read_weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file, or of those that an index names, by short names."""
    index = place / f"{WEIGHTS}.index.json"
    if (place / WEIGHTS).is_file():
        files = {WEIGHTS}
    elif index.is_file():
        places = read_their_json(index, name).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise AGI2Error(f"{name}: {index.name} is damaged: it has no weight_map of file names")
        files = set(places.values())
        if any(Path(file).name != file for file in files):
            raise AGI2Error(f"{name}: {index.name} names files that are not in this folder")
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
            raise AGI2Error(f"{name}: {min(twice)} stands in two of its files")
        tensors.update(more)
    # A GPT-2 without its head has no prefix.
    found = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    if len(found) < len(tensors):
        raise AGI2Error(f"{name}: its weights have a tensor twice, with and without transformer.")
    return found


def _has_own_head(found: Mapping[str, torch.Tensor]) -> bool:
    """Whether there is an output head that is not the token embedding."""
    head, embedding = found.get("lm_head.weight"), found.get("wte.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return head is not None
    return not torch.equal(head.float(), embedding.float())


def _our_weights(
    found: dict[str, torch.Tensor], model: GPT2Model, name: str
) -> dict[str, torch.Tensor]:
    """Their tensors as our `state_dict`, in fp32.

    Raises:
        AGI2Error: where one is missing, has another shape, or has no place.
    """
    found, weights = dict(found), {}
    for ours, expected in model.state_dict().items():
        theirs = their_name(ours).removeprefix("transformer.")
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
    # Old files hold each layer's causal mask; a tied head is the token embedding.
    strangers = [key for key in found if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", key)]
    strangers = [key for key in strangers if not (key == "lm_head.weight" and model.head is None)]
    if strangers:
        raise AGI2Error(f"{name}: {sorted(strangers)[0]} has no place in a GPT-2")
    return weights
