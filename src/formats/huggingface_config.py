"""`config.json` of a Hugging Face GPT-2, from and to `GPT2Config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import GPT2Config
from ..config_keys import LARGEST
from ..errors import AGI2Error, safe_repr
from ..utils import log

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
_FROM_HF_ACTIVATIONS = {
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


def from_hf_config(hf_config: Mapping[str, Any], name: str) -> GPT2Config:
    """Convert a config.json of `transformers` to a `GPT2Config`.

    Args:
        hf_config: content of config.json.
        name: name of the model, for error messages.

    Raises:
        AGI2Error: if it is not a GPT-2, or uses a feature that AGI2 does not support.
    """
    name = f"{name}: config.json"
    if hf_config.get("model_type") != "gpt2":
        kind = safe_repr(hf_config.get("model_type"))
        raise AGI2Error(f"{name}: model_type = {kind}; only gpt2 can be imported")
    hf_config = _without_aliases(hf_config, name)
    _check_features(hf_config, name)
    activation = hf_config.get("activation_function", "gelu_new")
    sizes: dict[str, Any] = {field: _size(hf_config, key, name) for key, field in _SIZES.items()}
    if sizes["d_model"] % sizes["n_heads"]:
        raise AGI2Error(
            f"{name}: n_embd = {sizes['d_model']} is not divisible by n_head = {sizes['n_heads']}"
        )
    return GPT2Config(
        **sizes,
        dropout=_dropout(hf_config, name),
        activation=_FROM_HF_ACTIVATIONS[activation],  # type: ignore[arg-type]
        position_embedding="learned",
        tie_weights=hf_config.get("tie_word_embeddings", True),
    )


def _check_features(hf_config: Mapping[str, Any], name: str) -> None:
    """Check that a GPT-2's config.json has only features that AGI2 supports."""
    for key, value in {**_FIXED, **_ABSENT}.items():
        value_found = hf_config.get(key, value)
        if value_found != value or isinstance(value_found, bool) != isinstance(value, bool):
            raise AGI2Error(f"{name}: {key} = {safe_repr(value_found)}; AGI2 has only {value!r}")
    activation = hf_config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _FROM_HF_ACTIVATIONS:
        known = ", ".join(_FROM_HF_ACTIVATIONS)
        raise AGI2Error(f"{name}: activation_function = {safe_repr(activation)} is none of {known}")
    # The order of operations under reorder_and_upcast_attn does not change what is computed.
    for key in ("tie_word_embeddings", "reorder_and_upcast_attn"):
        if type(hf_config.get(key, True)) is not bool:
            raise AGI2Error(
                f"{name}: {key} = {safe_repr(hf_config[key])} is neither true nor false"
            )


def _size(hf_config: Mapping[str, Any], key: str, name: str) -> int:
    """Return a size of config.json; 0 for an `n_inner` that is not set.

    Raises:
        AGI2Error: if it is missing, or is not an integer within the limits of `GPT2Config`.
    """
    if key not in hf_config and key not in _DEFAULTS:
        raise AGI2Error(f"{name}: {key} is missing")
    value, maximum = hf_config.get(key, _DEFAULTS.get(key)), LARGEST[_SIZES[key]]
    if value is None and key == "n_inner":
        return 0
    if type(value) is not int or not 1 <= value <= maximum:
        raise AGI2Error(
            f"{name}: {key} = {safe_repr(value)} is not an integer from 1 to {maximum:,}"
        )
    return value


# The `attribute_map` of `transformers.GPT2Config`: generic aliases that it accepts.
_ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def _without_aliases(hf_config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the content of a config.json with its aliases replaced by GPT-2's own keys.

    Raises:
        AGI2Error: if a key and its alias have different values.
    """
    keys = dict(hf_config)
    for key, alias in [*_ALIASES.items(), ("n_positions", "n_ctx")]:
        value = keys.pop(alias, None)
        if value is not None and keys.setdefault(key, value) != value:
            raise AGI2Error(
                f"{name}: {key} = {safe_repr(keys[key])} and {alias} = {safe_repr(value)} "
                "contradict each other: remove the wrong one"
            )
    return keys


def _dropout(hf_config: Mapping[str, Any], name: str) -> float:
    """Return the dropout rate; warn if there are several, as AGI2 has one for all.

    Raises:
        AGI2Error: if a rate is not a number from 0 to below 1.
    """
    rates = {key: hf_config.get(key, 0.1) for key in _DROPOUTS}
    for key, rate in rates.items():
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            raise AGI2Error(f"{name}: {key} = {safe_repr(rate)} is not a number from 0 to below 1")
    if len(set(rates.values())) > 1:
        log.warning(
            "%s: not kept: %s; AGI2 has one rate for all: that of resid_pdrop",
            name,
            ", ".join(f"{key} = {safe_repr(rate)}" for key, rate in rates.items()),
        )
    return float(rates["resid_pdrop"])
