"""Error messages about keys and values that are refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .arguments import describe, describe_range
from .errors import AGI2Error, safe_repr

# Names that other projects use for these keys.
SYNONYMS = {
    "lr": "learning_rate",
    "max_iters": "max_steps",
    "iterations": "max_steps",
    "block_size": "seq_len",
    "context_length": "model_positions",
    "n_positions": "model_positions",
    "n_layer": "model_layer",
    "n_layers": "model_layer",
    "num_layers": "model_layer",
    "n_head": "model_head",
    "n_heads": "model_head",
    "num_heads": "model_head",
    "n_embd": "model_embd",
    "d_model": "model_embd",
    "hidden_size": "model_embd",
    "d_ff": "model_ff",
    "grad_clip": "clip_grad_norm",
    "num_beams": "beam_size",
    "max_new_tokens": "max_length",
    "beta2": "adam_beta2",
    "source": "sources",
    "packing": "windows",
    "name": "model_name",
}

NO_STARTING_MODEL = "preferences are for a model that answers already: set init_from to its folder"
MAX_PROBLEMS = 20
"""Maximum number of problems reported one by one; the rest are only counted."""


def error_of(problems: Sequence[str]) -> AGI2Error:
    """Return an error with a line per problem, at most `MAX_PROBLEMS` of them."""
    more = len(problems) - MAX_PROBLEMS
    if more > 0:
        problems = [*problems[:MAX_PROBLEMS], f"and {more:,} more problem{'s' * (more > 1)}"]
    return AGI2Error(*problems)


def explain(
    fields: Mapping[str, FieldInfo], values: Mapping[str, Any], error: ValidationError
) -> list[tuple[str | None, str]]:
    """Return the key and a one-line message of each value that pydantic refused.

    Args:
        fields: the known keys.
        values: the values by key, as given: errors in others repeat that of the key they derive
            from.
        error: pydantic's.

    Returns:
        Pairs of key and message; the key is None for values that contradict each other. Messages
        after the first `MAX_PROBLEMS` are empty: only their number is shown.
    """
    details = error.errors(include_url=False)
    if not details[0]["loc"]:
        return [(None, line) for line in str(details[0]["ctx"]["error"]).split("\n")]
    # pydantic reports a union's error once per member type.
    refused: dict[tuple[Any, ...], Any] = {}
    for detail in details:
        key, *inside = detail["loc"]
        if key in values:
            is_token = "[key]" in inside
            refused.setdefault((key, *inside[: _depth(fields, key)], is_token), detail["input"])
    return [
        (key, _message(fields, key, inside, is_token, value) if number < MAX_PROBLEMS else "")
        for number, ((key, *inside, is_token), value) in enumerate(refused.items())
    ]


def _depth(fields: Mapping[str, FieldInfo], key: Any) -> int:
    """Return 1 if a value has elements that are validated, 0 if not."""
    return int(key in fields and get_origin(fields[key].annotation) in (list, dict))


def _message(
    fields: Mapping[str, FieldInfo], key: str, inside: Sequence[Any], is_token: bool, value: Any
) -> str:
    """Return what a value, or an element of it, must be, and what it is."""
    if key not in fields:
        name = key if key.strip() and key.isprintable() else repr(key)
        return f"unknown key {name}{_suggestion(key, fields)}"
    hint, bounds, name = fields[key].annotation, fields[key].metadata, key
    if inside and get_origin(hint) is list:
        hint, name = get_args(hint)[0], f"{key}[{inside[0]}]"
    elif inside:
        hint = get_args(hint)[0 if is_token else 1]
        name = f"a token of {key}" if is_token else f"{key} of {inside[0]!r}"
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)[0], get_args(hint)[1].metadata
    return f"{name} must be {_allowed(hint, bounds, value)}, not {safe_repr(value)}"


def _allowed(hint: Any, bounds: Iterable[Any], value: Any) -> str:
    """Return the range of a number, or the type if the value has another one."""
    origin = get_origin(hint)
    is_union = origin in (Union, UnionType)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if is_union else [hint]
    if bounds and float in kinds and type(value) in (int, float):
        return describe_range(bounds)
    if bounds and int in kinds and type(value) is int:
        return describe_range(bounds, value)
    if origin is list:
        is_numbers = get_origin(get_args(hint)[0]) is Annotated
        return "a list of numbers" if is_numbers else "a list of strings"
    if origin is dict:
        return "a mapping from tokens to numbers"
    return " or ".join(map(describe, kinds))


def _suggestion(key: str, fields: Iterable[str]) -> str:
    synonym = SYNONYMS.get(key.lower(), "")
    close = difflib.get_close_matches(key[:50].lower(), fields, n=1)
    nearest = synonym if synonym in fields else close[0] if close else None
    if nearest:
        return f"; did you mean {nearest}?"
    return "; resources/default.toml lists every key"
