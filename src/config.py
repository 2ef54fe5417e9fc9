"""Configuration: a model's architecture (`GPT2Config`) and a complete run (`Config`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import ModelWrapValidatorHandler, PrivateAttr, model_validator

from .arguments import Range, Rate, convert_fields
from .config_checks import (
    LARGEST_AUTO_VOCABULARY,
    PRESETS,
    contradictions,
    dependent_defaults,
    plain_values,
)
from .config_keys import (
    LARGEST,
    Activation,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    NormPosition,
    PositionKind,
    Preset,
    TrainConfig,
)
from .errors import AGI2Error, safe_repr


def _sizes(name: str, minimum: int = 1) -> Range:
    return Range(minimum, maximum=LARGEST[name])


@dataclass(frozen=True)
class GPT2Config:
    """Architecture of a model, with the modules' argument names. The defaults are GPT-2 small.

    Raises:
        AGI2Error: if a value is out of range, or d_model is not divisible by n_heads.
    """

    vocab_size: Annotated[int, _sizes("vocab_size")] = 50257
    """Number of tokens in the vocabulary (V)."""
    max_seq_len: Annotated[int, _sizes("max_seq_len")] = 1024
    """Number of positions: the maximum context length in tokens."""
    d_model: Annotated[int, _sizes("d_model")] = 768
    """Width of the embeddings and of every layer's output (C)."""
    n_layers: Annotated[int, _sizes("n_layers")] = 12
    """Number of transformer blocks."""
    n_heads: Annotated[int, _sizes("n_heads")] = 12
    """Number of attention heads per block (H); divides `d_model`."""
    d_ff: Annotated[int, _sizes("d_ff", minimum=0)] = 0
    """Hidden size of the feed-forward layer; 0 means 4 x d_model."""
    dropout: Rate = 0.1
    """Dropout probability in training, 0 to below 1."""
    activation: Activation = "gelu_tanh"
    """`gelu_tanh` is GPT-2's approximation; `gelu` is the exact form."""
    bias: bool = True
    """Whether linear layers and layer norms have biases."""
    norm_position: NormPosition = "pre"
    """`pre`: pre-norm, as in GPT-2; `post`: post-norm, as in the original Transformer."""
    position_embedding: PositionKind = "sinusoidal"
    """`sinusoidal`: a fixed table; `learned`: trained embeddings, as in GPT-2."""
    tie_weights: bool = True
    """Whether the output head shares its weight with the token embedding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        convert_fields(self)
        object.__setattr__(self, "dropout", float(self.dropout))
        if self.d_ff == 0:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        if self.d_model % self.n_heads:
            raise AGI2Error(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")

    @property
    def num_parameters(self) -> int:
        """Number of parameters of a model, tied ones counted once."""
        # Per block: Q, K, V and output projection (4 C^2), two feed-forward matrices (2 C F), two
        # layer norms; biases of 3 C + C + F + C.
        c, f, b = self.d_model, self.d_ff, int(self.bias)
        norm = c + b * c
        block = 2 * norm + 4 * c * c + 2 * c * f + b * (5 * c + f)
        outside = self.vocab_size * c * (1 if self.tie_weights else 2)
        outside += norm if self.norm_position == "pre" else 0
        outside += self.max_seq_len * c if self.position_embedding == "learned" else 0
        return outside + self.n_layers * block

    @property
    def head_dim(self) -> int:
        """Size of an attention head, D."""
        return self.d_model // self.n_heads

    @classmethod
    def preset(cls, name: Preset, **changes: Any) -> GPT2Config:
        """Return a GPT-2 size (`small`, `medium`, `large`, `xl`), with some fields changed.

        Raises:
            AGI2Error: if there is no such preset, or a field is invalid.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise AGI2Error(f"preset must be one of {', '.join(PRESETS)}, not {safe_repr(name)}")
        sizes = {ARCHITECTURE_KEYS[key]: value for key, value in PRESETS[name].items()}
        return cls(**{**sizes, **changes})

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> GPT2Config:
        """Return the architecture of a run's configuration (what `load_config` returns).

        Raises:
            AGI2Error: if it is not a mapping, or a key is unknown or invalid.
        """
        if not isinstance(config, Mapping):
            raise AGI2Error(
                "config must be a GPT2Config or what load_config returns, not " + safe_repr(config)
            )
        fields = Config.model_fields
        for key in config:
            if key not in fields:
                known = ARCHITECTURE_FIELDS.get(key, "")
                raise AGI2Error(
                    f"config: unknown key {safe_repr(key)}"
                    + f"; did you mean {known}, or GPT2Config({key}=...)?" * bool(known)
                )
        return cls(
            **{field: config[key] for key, field in ARCHITECTURE_KEYS.items() if key in config}
        )

    def to_keys(self) -> dict[str, Any]:
        """Return the architecture as a dict of configuration keys."""
        return {key: getattr(self, field) for key, field in ARCHITECTURE_KEYS.items()}


# Fields of the architecture whose configuration key has another name.
_RENAMED = {
    "max_seq_len": "model_positions",
    "d_model": "model_embd",
    "n_layers": "model_layer",
    "n_heads": "model_head",
    "d_ff": "model_ff",
}
ARCHITECTURE_KEYS: dict[str, str] = {
    _RENAMED.get(field.name, field.name): field.name for field in fields(GPT2Config)
}

ARCHITECTURE_FIELDS = {ours: key for key, ours in ARCHITECTURE_KEYS.items()}

# Keys that may differ from those of the model of `init_from`: `vocab_size` is only a maximum, and
# the other two do not affect the weights.
FREE_ARCHITECTURE_KEYS = {"vocab_size", "dropout", "gradient_checkpointing"}

# Required keys of each kind of use. All other keys have a default.
REQUIRED_KEYS: dict[str, tuple[str, ...]] = {
    "training": ("sources", "model_name"),
    "generation": ("model_name",),
    "interactive": ("model_name",),
}


# Pydantic orders the keys of base classes from the last to the first.
class Config(GenerationConfig, TrainConfig, ModelConfig, DataConfig, Mapping):
    """Complete configuration of a run: four sections in one, flat, validated, immutable.

    Also a mapping: `config["epochs"]` and `**config` work.

    Args:
        **keys: values by key; None and "" mean "not set".

    Raises:
        AGI2Error: with a line per problem.
    """

    # Keys adopted from the model of `init_from` instead of set by the user.
    _adopted: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="wrap")
    @classmethod
    def _fill_dependent_defaults(
        cls, values: dict[str, Any], validate: ModelWrapValidatorHandler[Config]
    ) -> Config:
        """Normalize the given values and fill in the defaults that depend on other keys.

        A preset sets the sizes; `seq_len` and `max_context_length` default to `model_positions`.
        Such defaults are not in `model_fields_set`, so that `changed` derives them again.
        """
        fields = cls.model_fields
        # A known key with null or "" is not set; unknown keys are kept for the error message.
        values = {
            key: value
            for key, value in values.items()
            if key not in fields or (value is not None and value != "")
        }
        values = plain_values(fields, values)
        # `plain_values` makes None of `resume = false` and `top_k = 0`.
        values = {k: v for k, v in values.items() if v is not None or k not in fields}
        values = {**PRESETS.get(str(values.get("preset")), {}), **values}
        config = validate({**dependent_defaults(values), **values})
        object.__setattr__(config, "__pydantic_fields_set__", set(values))
        return config

    @model_validator(mode="before")
    @classmethod
    def _convert(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values  # which `_fill_dependent_defaults` has converted

    def _contradictions(self) -> list[str]:
        return contradictions(self)

    @property
    def has_messages(self) -> bool:
        """Whether it trains on conversations or on pairs of them, whose roles have tokens."""
        return bool(self.conversations or self.preferences)

    @property
    def generation(self) -> GenerationConfig:
        """The section of generation, beam search and chat."""
        keys = {key: self[key] for key in GenerationConfig.model_fields}
        return GenerationConfig.model_construct(**keys)

    # The `Mapping` interface, over the keys.
    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(type(self).model_fields)

    def __len__(self) -> int:
        return len(type(self).model_fields)

    def changed(self, **changes: Any) -> Config:
        """Return a validated copy with some keys changed; dependent defaults are derived again."""
        sizes = PRESETS.get(str(self.preset), {})
        values = {key: self[key] for key in self.model_fields_set if self[key] != sizes.get(key)}
        changed = Config(**{**values, **changes})
        changed._adopted = self._adopted - changes.keys()
        return changed

    def adopting(self, keys: Iterable[str]) -> Config:
        """Mark keys as adopted from a pretrained model instead of set by the user; return self."""
        self._adopted = frozenset(keys)
        return self

    def chosen(self) -> dict[str, Any]:
        """Return the keys that the user set to other values than their defaults.

        Excludes values that equal the default, the preset's or the dependent default, and keys
        adopted from a pretrained model.
        """
        defaults = {
            **Config(),
            **PRESETS.get(str(self.preset), {}),
            **dependent_defaults(self),
            "model_ff": 4 * self.model_embd,
        }
        values = {key: self[key] for key in self if key in self.model_fields_set - self._adopted}
        return {k: v for k, v in values.items() if v != defaults[k] and (k, v) != ("model_ff", 0)}

    @property
    def architecture(self) -> GPT2Config:
        """Architecture of the model; with `vocab_size = "auto"`, with the largest vocabulary."""
        if self.vocab_size != "auto":
            return GPT2Config.from_mapping(self)
        # Not known before the text is read: the most that it can be.
        return GPT2Config.from_mapping({**self, "vocab_size": LARGEST_AUTO_VOCABULARY})
