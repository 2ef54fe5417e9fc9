"""Values as TOML would give them, dependent defaults, and contradictions between keys."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from .arguments import MismatchError, to_float, to_int, to_scalar

MAX_THREADS = 1024
DEVICES = r"auto|cpu|mps|cuda(:[0-9]+)?"

# The GPT-2 sizes (Radford et al., 2019), as configuration keys.
PRESETS: dict[str, dict[str, int]] = {
    "small": {"model_layer": 12, "model_head": 12, "model_embd": 768},
    "medium": {"model_layer": 24, "model_head": 16, "model_embd": 1024},
    "large": {"model_layer": 36, "model_head": 20, "model_embd": 1280},
    "xl": {"model_layer": 48, "model_head": 25, "model_embd": 1600},
}


# (maximum bytes of text, vocabulary size). A larger vocabulary means fewer tokens per text, but
# each occurs less often in training. Of 512 to 4,096 on 1.2 MB of text, 4,096 was the best by bits
# per byte (benchmarks/README.md): a token then occurs about 90 times. For other texts, a token
# occurs at least 40 times, and more often in larger ones, whose models are larger, too.
_VOCABULARIES = (
    (50_000, 512),
    (300_000, 1024),
    (800_000, 2048),
    (8_000_000, 4096),
    (50_000_000, 8192),
)
LARGEST_AUTO_VOCABULARY = 32_000
MAX_VOCABULARY = 2**20


def vocabulary_for(text_bytes: int) -> int:
    """Return the vocabulary size for a text of this many bytes: what `vocab_size = "auto"` is."""
    fitting = (size for maximum, size in _VOCABULARIES if text_bytes <= maximum)
    return next(fitting, LARGEST_AUTO_VOCABULARY)


def plain_values(fields: Mapping[str, FieldInfo], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of known keys to the types that they would have in TOML.

    Args:
        fields: the known keys.
        values: values by key, such as paths, tuples, a `torch.device`, NumPy or PyTorch scalars,
            and numbers of other types that the key takes without loss (10.0 and 1e3 as integers).
    """
    return {
        key: _plain_value(key, value, fields[key].annotation) if key in fields else value
        for key, value in values.items()
    }


def _plain_value(key: str, value: Any, annotation: Any) -> Any:
    value = to_scalar(value)
    if get_origin(annotation) is list:
        return _plain_list(value)
    if get_origin(annotation) is dict:
        return _plain_dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if key == "device" and type(value).__name__ == "device":
        return str(value)
    if key == "preset" and isinstance(value, str):
        return value.lower()
    if key == "resume" and isinstance(value, bool):
        return "auto" if value else None
    value = _plain_number(value, get_args(annotation) or (annotation,))
    return None if key == "top_k" and value == 0 and not isinstance(value, bool) else value


def _plain_list(value: Any) -> Any:
    """Convert one text, several or none to a list; return what is neither unchanged."""
    if value is None:
        return []
    if isinstance(value, str | os.PathLike):
        return [os.fspath(value)]
    if isinstance(value, bytes | Mapping) or not hasattr(value, "__iter__"):
        return value
    return [os.fspath(each) if isinstance(each, os.PathLike) else to_scalar(each) for each in value]


def _plain_dict(value: Any) -> Any:
    """Convert a mapping from tokens, texts or ids, to numbers; return what is none unchanged."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    return {
        _plain_number(token, (int,)): _plain_number(number, (float,))
        for token, number in value.items()
    }


def _plain_number(value: Any, kinds: Sequence[Any]) -> Any:
    """Convert a number to one of the types `kinds` if that loses nothing."""
    try:
        if float in kinds:
            return to_float(value)
        return to_int(value) if int in kinds else value
    except MismatchError:
        return to_scalar(value)


def is_encoding(name: str) -> bool:
    """Return whether Python knows an encoding of text with this name."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return False


def contradictions(config: Any) -> list[str]:
    """Return an error line for each constraint between keys that a configuration violates.

    Each line begins with its key, so that `config_loader` can prepend the key's location.
    """
    return [
        *_wrong_sizes(config),
        *_wrong_sources(config),
        *_wrong_preferences(config),
        *_wrong_tokenizer(config),
        *generation_contradictions(config),
        *_wrong_optimizer(config),
        *_wrong_lora(config),
        *_wrong_distillation(config),
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


def _wrong_sources(config: Any) -> Iterator[str]:
    weights, sources = len(config.source_weights), len(config.sources)
    if weights and weights != sources:
        yield f"source_weights has {weights} numbers for {sources} sources: give one for each"
    if config.text_share is not None and bool(config.sources) != bool(config.conversations):
        yield "text_share is that of sources beside conversations: set both, or leave it out"
    if config.windows == "documents" and config.conversations and not config.sources:
        yield "windows is that of sources: conversations are always packed: leave it out"
    for kind in ("sources", "conversations"):
        if config[f"val_{kind}"] and not config[kind] and config.sources + config.conversations:
            yield f"val_{kind} goes with {kind} to train on: set {kind}, or leave it out"


def _wrong_preferences(config: Any) -> Iterator[str]:
    if config.val_preferences and not config.preferences:
        yield "val_preferences goes with preferences to train on: set preferences, or leave it out"
    if not config.preferences:
        return
    for key in ("sources", "val_sources", "conversations", "val_conversations"):
        if config[key]:
            yield f"{key} does not go with preferences, which are trained on alone: leave it out"
    for key in ("source_weights", "text_share", "text_field", "speakers", "mask_documents"):
        if config[key]:
            yield f"{key} has no effect on preferences: leave it out"
    if config.windows != "stream":
        yield "windows has no effect on preferences: leave it out"


def _wrong_tokenizer(config: Any) -> Iterator[str]:
    if config.vocab_size != "auto" and not 1 <= config.vocab_size <= MAX_VOCABULARY:
        yield f"vocab_size {config.vocab_size} is not in the range 1 to {MAX_VOCABULARY:,}"
    for key, kind, default in (
        ("pretokenizer", "bpe", "gpt2"),
        ("split_digits", "bpe", False),
        ("byte_fallback", "basic", False),
    ):
        if config[key] != default and config.tokenizer != kind:
            yield f'{key} goes with a new vocabulary: set tokenizer = "{kind}", or leave {key} out'
    if config.special_tokens and config.init_from is not None:
        yield "special_tokens: the vocabulary of init_from stays as it is: leave special_tokens out"


def generation_contradictions(config: Any) -> list[str]:
    """Return an error line for each constraint between keys of generation that is violated."""
    return [*_wrong_beams(config), *_wrong_sampling(config)]


def _wrong_beams(config: Any) -> Iterator[str]:
    if config.beam_size % config.beam_groups:
        yield f"beam_groups {config.beam_groups} does not divide beam_size {config.beam_size}"
    if config.beam_results > config.beam_size:
        yield (
            f"beam_results {config.beam_results} is above beam_size {config.beam_size}: "
            "lower the one or raise the other"
        )


def _wrong_sampling(config: Any) -> Iterator[str]:
    for key, required in GREEDY_VALUES.items():
        value = getattr(config, key)
        if config.speculative != "none" and value != required:
            yield (
                f'{key} {value} does not go with speculative = "ngram", which is greedy: '
                + (
                    f"set {key} = {required:g}"
                    if isinstance(required, float)
                    else f"leave {key} out"
                )
            )
    if config.min_length > config.max_length:
        yield (
            f"min_length {config.min_length} is above max_length {config.max_length}: "
            "lower the one or raise the other"
        )
    if config.samples > 1 and config.temperature == 0:
        yield f"samples {config.samples} would all be equal at temperature 0"


def _wrong_optimizer(config: Any) -> Iterator[str]:
    if config.normuon and config.optimizer != "muon":
        yield 'normuon goes with Muon: set optimizer = "muon", or leave normuon out'
    if config.head_lr_factor != 1 and config.tie_weights:
        yield (
            "head_lr_factor is for a head of its own: set tie_weights = false, or use "
            "embedding_lr_factor"
        )


def _wrong_distillation(config: Any) -> Iterator[str]:
    if not config.self_distillation:
        return
    if config.ema_decay is None:
        yield "self_distillation needs the average of the weights: set ema_decay, such as to 0.998"
    if config.preferences:
        yield "self_distillation is for texts and conversations: leave it out with preferences"
    if config.parallel != "ddp":
        yield 'self_distillation is not for sharded models: set parallel = "ddp"'


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
    for token in config.logit_bias:
        if isinstance(token, int):  # TOML has no such keys; from Python, a request may have them
            yield f"logit_bias {token} is a token id: a configuration names tokens by their text"
    name = config.model_name
    if name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        yield f"model_name {name!r} is not a folder's name"
    if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        yield (
            f"model_name {name!r} is too long for a folder's name: at most {_MAX_NAME_BYTES} bytes"
        )
    if "\0" in config.output_dir:
        yield f"output_dir {config.output_dir!r} is not a folder's name"
    if config.encoding is not None and not is_encoding(config.encoding):
        yield f"encoding {config.encoding!r} is none that Python knows, such as utf-8 or cp1252"
    if config.preprocess is not None and not re.fullmatch(r".+:[^:]+", config.preprocess):
        yield f"preprocess {config.preprocess!r} is not module:function, such as clean:keep"
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


def dependent_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that depend on other keys."""
    positions = given.get("model_positions", 1024)
    follows: dict[str, Any] = {"seq_len": positions, "max_context_length": positions}
    if given.get("max_steps") is not None or given.get("max_minutes") is not None:
        follows["epochs"] = UNBOUNDED_EPOCHS
    if given.get("preferences"):
        follows |= DPO_DEFAULTS
    return follows


# Of DPO: the reference has no dropout, and higher rates unlearn the language.
DPO_DEFAULTS = {"dropout": 0.0, "learning_rate": 1e-5}


# File systems allow 255 bytes; the rest is for the suffix of a run's backup (`NAME.1`).
_MAX_NAME_BYTES = 240
# Default of `epochs` if `max_steps` or `max_minutes` is set: epochs then do not end the run.
UNBOUNDED_EPOCHS = 1_000_000
