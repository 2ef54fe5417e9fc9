"""Conversion of the arguments of `train_model` to a configuration."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from ..config import ARCHITECTURE_KEYS, Config
from ..config_checks import PRESETS
from ..config_loader import make_config
from ..console import visible
from ..errors import AGI2Error
from ..model import GPT2Model
from ..tokenizer import BasicTokenizer, BPETokenizer, Tokenizer
from ..utils import log

Source = str | os.PathLike[str]
Sources = Source | Sequence[Source]
"""A file, a folder, a glob pattern or a built-in text; or a sequence of these."""

F = TypeVar("F", bound=Callable[..., Any])

# Keys of generation, beam search and chat only. Samples while training use `sample_tokens`.
UNUSED_IN_TRAINING = (
    *("max_length", "min_length", "samples", "sampling_seed", "quantize", "speculative"),
    *("beam_size", "length_penalty", "beam_results", "beam_early_stopping", "beam_groups"),
    *("diversity_penalty", "max_context_length"),
)


def ignore_tokenizer_key(function: F) -> F:
    """Decorate a function so that the key `tokenizer` may be passed in addition to its tokenizer.

    Without this, `f(model, tokenizer, **config)` raises `TypeError` (multiple values for argument
    'tokenizer'). The key is ignored, with a warning if it names another kind of tokenizer.

    Args:
        function: a function whose second argument is the tokenizer.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1 and "tokenizer" in kwargs:
            with visible(kwargs.get("verbose", True)):
                _warn_if_other(args[1], kwargs.pop("tokenizer"))
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _warn_if_other(tokenizer: Any, key: Any) -> None:
    kinds = {"bpe": BPETokenizer, "gpt2": BPETokenizer, "basic": BasicTokenizer}
    kind = kinds.get(key) if isinstance(key, str) else None
    if key not in (None, "", tokenizer) and (kind is None or not isinstance(tokenizer, kind)):
        log.warning("tokenizer = %r is not followed: the tokenizer that was given is used", key)


def configuration_of(model: GPT2Model, values: Mapping[str, Any]) -> Config:
    """Create a run's configuration from a model and keyword arguments.

    Args:
        model: the model, which determines the architecture.
        values: keys of the configuration; paths, devices, tuples and NumPy or PyTorch scalars are
            converted to strings, lists and numbers.

    Raises:
        AGI2Error: if the model or a key is invalid.
    """
    if not isinstance(model, GPT2Model):
        raise AGI2Error(f"model: {type(model).__name__} is not a GPT2Model")
    kinds = {p.dtype for p in model.parameters()}
    for kind in (torch.float16, torch.bfloat16):
        if kind in kinds:
            raise AGI2Error(
                f"model: its weights are {str(kind)[6:]}, in which small steps vanish: pass "
                'model.float(), and precision = "auto" for fast products'
            )
    keys = {key: _to_plain(key, value) for key, value in values.items()}
    keys["sources"] = _sources(values["sources"])
    if isinstance(keys.get("resume"), bool):
        keys["resume"] = "auto" if keys["resume"] else None
    # seq_len cannot exceed the model's context length.
    positions, length = model.config.max_seq_len, keys.get("seq_len")
    if length is None:
        keys["seq_len"] = min(1024, positions)
    elif isinstance(length, int) and length > positions:
        log.warning("seq_len = %d is not followed: the model has %d positions", length, positions)
        keys["seq_len"] = positions
    effective = {**keys, **model.config.to_keys(), "preset": None}
    config = make_config(effective, name="train_model")
    _log_ignored_keys(keys, model)
    return config


def _to_plain(key: str, value: Any) -> Any:
    """Convert the value of a key to a type that TOML has."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.Tensor) and value.is_meta:
        raise AGI2Error(f"{key}: a tensor on the meta device has no value: pass a number")
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_to_plain(key, inside) for inside in value]
    return value


def _sources(sources: Any) -> list[str]:
    """Convert one or several sources to a list of strings.

    Raises:
        AGI2Error: if one is not a path.
    """
    listed = list(sources) if isinstance(sources, tuple | list) else [sources]
    for source in listed:
        if not isinstance(source, str | os.PathLike):
            raise AGI2Error(
                f"sources: {type(source).__name__} is not a path: give a string, a Path, or a list "
                "of these"
            )
    return [str(_to_plain("sources", source)) for source in listed]


def _log_ignored_keys(keys: Mapping[str, Any], model: GPT2Model) -> None:
    """Log keys that are unused in training, or that conflict with the model's architecture."""
    model_keys = model.config.to_keys()
    requested = {**PRESETS.get(str(keys.get("preset")).lower(), {}), **keys}
    for key in ARCHITECTURE_KEYS:
        value = requested.get(key)
        if value in (None, "", model_keys[key]) or (key == "model_ff" and value == 0):
            continue
        log.warning("%s = %r is not followed: the model has %r", key, value, model_keys[key])
    fields = Config.model_fields
    unused = [
        key
        for key in UNUSED_IN_TRAINING
        if keys.get(key) not in (None, "", fields[key].get_default(call_default_factory=True))
    ]
    if (
        "max_context_length" in unused
        and keys["max_context_length"] == model_keys["model_positions"]
    ):
        unused.remove("max_context_length")  # its default is `model_positions`
    if unused:
        log.info("not used in training, written to the run's config.toml: %s", ", ".join(unused))


def is_fitted(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer has a vocabulary."""
    try:
        tokenizer.encode("a")
    except AGI2Error:
        return False
    return True


def fit_to(tokenizer: Tokenizer, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Fit a tokenizer on documents, with a vocabulary of at most the model's size.

    Args:
        tokenizer: fitted in place.
        documents: the training text.
        vocab_size: the model's vocabulary size.

    Returns:
        `tokenizer`.

    Raises:
        AGI2Error: if `vocab_size` is too small for the tokenizer.
    """
    if isinstance(tokenizer, BPETokenizer):
        min_size = BPETokenizer(vocab_size=257).max_vocab_size
        if vocab_size < min_size:
            raise AGI2Error(
                f"the model has {vocab_size} tokens, byte pairs are at least {min_size}: make it "
                f"with vocab_size = {min_size} or more, or use a BasicTokenizer"
            )
        tokenizer.max_vocab_size = min(tokenizer.max_vocab_size, vocab_size)
    tokenizer.fit(documents)
    log_fitted(tokenizer)
    return tokenizer


def log_fitted(tokenizer: Tokenizer) -> None:
    """Log that a tokenizer that was given has been fitted."""
    log.info("the tokenizer was not fitted: now it is, %d tokens", tokenizer.vocab_size)


def copy_vocabulary(tokenizer: Tokenizer, other: Tokenizer) -> Tokenizer:
    """Copy the vocabulary of `other`, of the same class, into `tokenizer`; return `tokenizer`.

    Raises:
        AGI2Error: if the classes differ.
    """
    if tokenizer is not other:
        if type(tokenizer) is not type(other):
            raise AGI2Error(
                f"the run was trained with a {type(other).__name__}, not a "
                f"{type(tokenizer).__name__}: load its own tokenizer.json"
            )
        vars(tokenizer).update(vars(other))
    return tokenizer
