"""Values as TOML would give them, defaults that depend on other keys, and contradictions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

MAX_THREADS = 1024
DEVICES = r"auto|cpu|mps|cuda(:[0-9]+)?"

# The GPT-2 sizes (Radford et al., 2019), as configuration keys.
PRESETS: dict[str, dict[str, int]] = {
    "small": {"model_layer": 12, "model_head": 12, "model_embd": 768},
    "medium": {"model_layer": 24, "model_head": 16, "model_embd": 1024},
    "large": {"model_layer": 36, "model_head": 20, "model_embd": 1280},
    "xl": {"model_layer": 48, "model_head": 25, "model_embd": 1600},
}


def plain_value(key: str, value: Any) -> Any:
    """Convert a value to the type that it would have in TOML.

    Accepts paths, tuples, `torch.device` and zero-dimensional NumPy or PyTorch values; normalizes
    a preset's case, a boolean `resume`, and `top_k = 0`, which means no limit.
    """
    if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list):
        value = [os.fspath(each) if isinstance(each, os.PathLike) else each for each in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if key == "device" and type(value).__name__ == "device":
        value = str(value)
    if key == "preset" and isinstance(value, str):
        value = value.lower()
    if key == "resume" and isinstance(value, bool):
        value = "auto" if value else None
    if key == "top_k" and value == 0 and not isinstance(value, bool):
        value = None
    return value


def integral_value(field: FieldInfo | None, value: Any) -> Any:
    """Convert an integral float (10.0, 1e3) to int if the key takes int but not float."""
    if type(value) is not float or field is None or not value.is_integer():
        return value
    kinds = get_args(field.annotation) or (field.annotation,)
    return int(value) if int in kinds and float not in kinds else value


def contradictions(config: Any) -> list[str]:
    """Return an error line for each constraint between keys that a configuration violates.

    Each line begins with its key, so that `config_loader` can prepend the key's location.
    """
    return [
        *_wrong_sizes(config),
        *_wrong_generation(config),
        *_wrong_lora(config),
        *_wrong_names(config),
    ]


def _wrong_sizes(config: Any) -> Iterator[str]:
    if config.model_embd % config.model_head:
        yield f"model_embd {config.model_embd} is not divisible by model_head {config.model_head}"
    if config.seq_len > config.model_positions:
        yield (
            f"seq_len {config.seq_len} is above model_positions {config.model_positions}: "
            "lower the one or raise the other"
        )
    micro = config.micro_batch_size
    if micro != "auto" and (micro < 1 or config.batch_size % micro):
        yield f"micro_batch_size {micro} does not divide batch_size {config.batch_size}"
    if config.threads != "auto" and not 1 <= config.threads <= MAX_THREADS:
        yield f"threads {config.threads} is not in the range 1 to {MAX_THREADS}"


def _wrong_generation(config: Any) -> Iterator[str]:
    if config.beam_size % config.beam_groups:
        yield f"beam_groups {config.beam_groups} does not divide beam_size {config.beam_size}"
    if config.beam_results > config.beam_size:
        yield (
            f"beam_results {config.beam_results} is above beam_size {config.beam_size}: "
            "lower the one or raise the other"
        )
    yield from sampling_contradictions(config)
    if config.samples > 1 and config.temperature == 0:
        yield f"samples {config.samples} would all be equal at temperature 0"


def _wrong_lora(config: Any) -> Iterator[str]:
    if config.lora_rank is None:
        return
    if config.init_from is None:
        yield "lora_rank goes with a trained model: set init_from"
    if config.optimizer != "adamw":
        yield 'lora_rank is trained by AdamW: set optimizer = "adamw"'
    if config.parallel != "ddp":
        yield 'lora_rank is not for sharded models: set parallel = "ddp"'


def _wrong_names(config: Any) -> Iterator[str]:
    name = config.model_name
    if name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        yield f"model_name {name!r} is not a folder's name"
    if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        yield (
            f"model_name {name!r} is too long for a folder's name: at most {_MAX_NAME_BYTES} bytes"
        )
    if "\0" in config.output_dir:
        yield f"output_dir {config.output_dir!r} is not a folder's name"
    if not re.fullmatch(DEVICES, config.device):
        yield f"device {config.device!r} is none of auto, cpu, cuda, cuda:1, mps"


# Speculative decoding by prompt lookup requires greedy decoding: these are the required values.
GREEDY_VALUES: dict[str, Any] = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram": None,
    "logit_bias": {},
    "min_length": 0,
}


def sampling_contradictions(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield an error line for each contradiction between sampling options."""
    for key, required in GREEDY_VALUES.items():
        if options["speculative"] != "none" and options[key] != required:
            yield (
                f'{key} {options[key]} does not go with speculative = "ngram", which is greedy: '
                + (
                    f"set {key} = {required:g}"
                    if isinstance(required, float)
                    else f"leave {key} out"
                )
            )
    if options["min_length"] > options["max_length"]:
        yield (
            f"min_length {options['min_length']} is above max_length {options['max_length']}: "
            "lower the one or raise the other"
        )


def dependent_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that depend on other keys."""
    positions = given.get("model_positions", 1024)
    follows = {"seq_len": positions, "max_context_length": positions}
    if given.get("max_steps") is not None or given.get("max_minutes") is not None:
        follows["epochs"] = UNBOUNDED_EPOCHS
    return follows


# File systems allow 255 bytes; the rest is for the suffix of a run's backup (`NAME.1`).
_MAX_NAME_BYTES = 240
# Default of `epochs` if `max_steps` or `max_minutes` is set: epochs then do not end the run.
UNBOUNDED_EPOCHS = 1_000_000
