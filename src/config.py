"""Configuration: a model's architecture (`GPT2Config`) and a complete run (`Config`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)
from pydantic.fields import FieldInfo

from .arguments import Range, Rate, convert_fields
from .errors import AGI2Error, shown

Activation = Literal["gelu_tanh", "gelu", "relu", "silu"]
NormPosition = Literal["pre", "post"]
PositionKind = Literal["sinusoidal", "learned"]
Preset = Literal["small", "medium", "large", "xl"]
EarlyStopping = bool | Literal["never"]
MAX_THREADS = 1024
DEVICES = r"auto|cpu|mps|cuda(:[0-9]+)?"

# The GPT-2 sizes (Radford et al., 2019), as configuration keys.
PRESETS: dict[str, dict[str, int]] = {
    "small": {"model_layer": 12, "model_head": 12, "model_embd": 768},
    "medium": {"model_layer": 24, "model_head": 16, "model_embd": 1024},
    "large": {"model_layer": 36, "model_head": 20, "model_embd": 1280},
    "xl": {"model_layer": 48, "model_head": 25, "model_embd": 1600},
}


# Upper bounds of the sizes, far beyond any GPT-2: a typo is an error before anything is allocated.
LARGEST = {
    "vocab_size": 2**20,
    "max_seq_len": 2**20,
    "d_model": 2**16,
    "n_layers": 2**10,
    "n_heads": 2**16,
    "d_ff": 2**20,
}
# Upper bound of counts (steps, tokens), far below 2**53: exact in float64.
_COUNT = 10**12


def _sizes(name: str, least: int = 1) -> Range:
    return Range(least, most=LARGEST[name])


@dataclass(frozen=True)
class GPT2Config:
    """Architecture of a model, with the modules' argument names. The defaults are GPT-2 small.

    Raises:
        AGI2Error: if a value is out of range, or d_model is not divisible by n_heads.
    """

    vocab_size: Annotated[int, _sizes("vocab_size")] = 50257
    max_seq_len: Annotated[int, _sizes("max_seq_len")] = 1024
    """Number of positions: the maximum context length in tokens."""
    d_model: Annotated[int, _sizes("d_model")] = 768
    n_layers: Annotated[int, _sizes("n_layers")] = 12
    n_heads: Annotated[int, _sizes("n_heads")] = 12
    d_ff: Annotated[int, _sizes("d_ff", least=0)] = 0
    """Hidden size of the feed-forward layer; 0 means 4 x d_model."""
    dropout: Rate = 0.1
    activation: Activation = "gelu_tanh"
    """`gelu_tanh` is GPT-2's approximation; `gelu` is the exact form."""
    bias: bool = True
    """Whether linear layers and layer norms have biases."""
    norm_position: NormPosition = "pre"
    """`pre`: pre-norm, as in GPT-2; `post`: post-norm, as in the original Transformer."""
    position_embedding: PositionKind = "sinusoidal"
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
            raise AGI2Error(f"preset must be one of {', '.join(PRESETS)}, not {shown(name)}")
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
                "config must be a GPT2Config or what load_config returns, not " + shown(config)
            )
        for key in config:
            if key not in Config.model_fields:
                known = ARCHITECTURE_FIELDS.get(key, "")
                raise AGI2Error(
                    f"config: unknown key {shown(key)}"
                    + f"; did you mean {known}, or GPT2Config({key}=...)?" * bool(known)
                )
        return cls(
            **{ours: config[key] for key, ours in ARCHITECTURE_KEYS.items() if key in config}
        )

    def to_keys(self) -> dict[str, Any]:
        """Return the architecture as a dict of configuration keys."""
        return {key: getattr(self, ours) for key, ours in ARCHITECTURE_KEYS.items()}


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


class Section(BaseModel):
    """A section of the configuration: keys, with default, range and docstring."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class DataKeys(Section):
    """Training data, output and tokenizer."""

    sources: list[str] = Field(default_factory=list)
    """Training data: files, folders, globs, URLs or `builtin:python-docs`. Required for
    training.
    """
    model_name: str = "model"
    """Name of the run and of its folder in `output_dir`. Always required."""
    output_dir: str = "trained"
    """Parent folder of all runs."""
    text_field: str = "text"
    """Field of `.jsonl` and column of `.csv` files that contains the text."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction held out for validation (0 to below 1): the end of each document, or complete
    documents.
    """

    # Tokenizer.
    tokenizer: str = "bpe"
    """`bpe` (byte-level), `basic` (characters), `gpt2`, or the path of a trained tokenizer."""
    vocab_size: int = Field(50257, ge=1, le=LARGEST["vocab_size"])
    """Maximum vocabulary size (1 or more); a small text yields a smaller one."""
    lowercase: bool = True
    """Whether the basic tokenizer lowercases the text (true, false)."""
    fold_whitespace: bool = True
    """Whether the basic tokenizer collapses each run of white space into one space (true,
    false).
    """


class ModelKeys(Section):
    """Fine-tuning and architecture."""

    # Fine-tuning.
    init_from: str | None = None
    """Folder of the pretrained model to fine-tune, which sets the architecture and tokenizer."""
    lora_rank: int | None = Field(None, ge=1, le=4096)
    """Fine-tune with LoRA adapters of this rank (1 or more); the weights of `init_from` are
    frozen.
    """

    # Architecture.
    preset: Preset | None = None
    """GPT-2 size: `small`, `medium`, `large` or `xl`; explicit model_* keys override it."""
    model_layer: int = Field(12, ge=1, le=LARGEST["n_layers"])
    """Number of transformer blocks (1 or more)."""
    model_head: int = Field(12, ge=1, le=LARGEST["n_heads"])
    """Number of attention heads per block (1 or more); divides `model_embd`."""
    model_embd: int = Field(768, ge=1, le=LARGEST["d_model"])
    """Embedding size of the model (1 or more)."""
    model_ff: int = Field(0, ge=0, le=LARGEST["d_ff"])
    """Hidden size of the feed-forward layer (1 or more); 0 means 4 x `model_embd`."""
    model_positions: int = Field(1024, ge=1, le=LARGEST["max_seq_len"])
    """Maximum context length in tokens (1 or more)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability in training (0 to below 1)."""
    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward layer: `gelu_tanh` (GPT-2's), `gelu`, `relu` or `silu`."""
    bias: bool = True
    """Whether linear layers and layer norms have biases (true, false)."""
    norm_position: NormPosition = "pre"
    """Layer norm before each sublayer (`pre`, as in GPT-2) or after it (`post`)."""
    position_embedding: PositionKind = "sinusoidal"
    """Fixed position embeddings (`sinusoidal`), or learned ones as in GPT-2 (`learned`)."""
    tie_weights: bool = True
    """Whether the output head shares its weight with the token embedding (true, false)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (true, false): less memory, about a third more
    time.
    """


class TrainKeys(Section):
    """Training, device and precision."""

    epochs: int = Field(10, ge=1, le=_COUNT)
    """Number of epochs (1 or more); unlimited if only `max_steps` or `max_minutes` is set."""
    max_steps: int | None = Field(None, ge=1, le=_COUNT)
    """Maximum number of optimizer steps (1 or more)."""
    max_minutes: float | None = Field(None, gt=0, le=1e9)
    """Maximum minutes (above 0); the schedule then follows the clock, and runs are not
    reproducible.
    """
    batch_size: int = Field(12, ge=1, le=2**20)
    """Sequences per optimizer step, over all processes (1 or more)."""
    micro_batch_size: int | Literal["auto"] = Field("auto")
    """Sequences per forward; divides `batch_size` (gradient accumulation). `auto`: fits memory."""
    seq_len: int = Field(1024, ge=1, le=_COUNT)
    """Tokens per training sequence (1 to `model_positions`, its default)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: Muon for the blocks' matrices, AdamW for the other parameters."""
    learning_rate: float = Field(3e-4, gt=0, le=1e30)
    """Peak learning rate of AdamW (above 0), reached after warmup."""
    muon_learning_rate: float = Field(0.02, gt=0, le=1e30)
    """Peak learning rate of Muon (above 0)."""
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Schedule after warmup: `cosine`, `linear` or `wsd` (warmup-stable-decay), to zero; or
    `constant`.
    """
    lr_decay_fraction: float = Field(0.2, gt=0, le=1)
    """Length of the decay phase of `wsd`, as a fraction of the run (above 0, at most 1)."""
    warmup_steps: int = Field(100, ge=0, le=_COUNT)
    """Linear warmup steps (0 or more), limited to a tenth of the run."""
    weight_decay: float = Field(0.1, ge=0, le=1e30)
    """Decoupled weight decay (0 or more), applied to matrices only."""
    adam_beta2: float = Field(0.99, gt=0, lt=1)
    """beta2 of AdamW (between 0 and 1)."""
    clip_grad_norm: float = Field(1.0, gt=0)
    """Maximum gradient norm (above 0); a huge number disables clipping."""
    seed: int = Field(1337, ge=0, le=2**62)
    """Random seed of training (0 or more)."""
    eval_interval: int = Field(250, ge=1, le=_COUNT)
    """Steps between validations (1 or more)."""
    eval_tokens: int = Field(65536, ge=0, le=_COUNT)
    """Validation tokens per evaluation, 0 for all; the last evaluation always uses all."""
    early_stopping_patience: int | None = Field(None, ge=1, le=_COUNT)
    """Stop after this many validations without a better val loss (1 or more)."""
    checkpoint_interval: int = Field(500, ge=1, le=_COUNT)
    """Steps between checkpoints (1 or more)."""
    keep_checkpoints: int = Field(2, ge=1, le=_COUNT)
    """Number of checkpoints kept on disk (1 or more)."""
    log_interval: int = Field(10, ge=1, le=_COUNT)
    """Steps between log lines (1 or more)."""
    sample_tokens: int = Field(64, ge=0, le=_COUNT)
    """Tokens to generate as a sample at each validation, 0 for none."""
    log_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Experiment trackers, in addition to `metrics.jsonl`: a list of `tensorboard`, `wandb`."""

    # Device and precision.
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`; the CPU is used if the device is not available."""
    threads: int | Literal["auto"] = Field("auto")
    """CPU threads in training (1 to 1024); `auto`: one per core, or those of the resumed run."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """In training: `fp32`, `bf16`, `fp16` (CUDA only); `auto`: bf16 or fp16 on CUDA, else fp32."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: replicate the model (`ddp`) or shard it (`fsdp`)."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to train with `torch.compile` (true, false); `auto`: on CUDA."""
    resume: str | None = None
    """A checkpoint folder, a run folder, or `auto`: this run's newest checkpoint, if any."""


class GenerationKeys(Section):
    """Generation, beam search and chat."""

    max_length: int = Field(100, ge=1, le=2**30)
    """Maximum number of new tokens (1 or more)."""
    min_length: int = Field(0, ge=0, le=_COUNT)
    """New tokens before an end token or a sentence's end may stop generation (0 to `max_length`);
    `stop` always may.
    """
    samples: int = Field(1, ge=1, le=10_000)
    """Number of texts to generate from a prompt (1 or more); several need a temperature above 0."""
    temperature: float = Field(0.8, ge=0)
    """Sampling temperature (0 or more); 0 is greedy decoding."""
    top_k: int | None = Field(None, ge=1, le=_COUNT)
    """Sample from the k most likely tokens (1 or more)."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling: sample from the most likely tokens with this total probability (above 0, to
    1).
    """
    min_p: float | None = Field(None, gt=0, le=1)
    """Sample from tokens with at least this fraction of the highest probability (above 0, to 1)."""
    typical_p: float | None = Field(None, gt=0, le=1)
    """Locally typical sampling (Meister et al., 2023): sample from the tokens whose information
    content is closest to the entropy, with this total probability (above 0, to 1).
    """
    repetition_penalty: float = Field(1.0, ge=1e-4, le=1e4)
    """Above 1 makes tokens of the prompt and the new text less likely, below 1 more likely (as in
    CTRL).
    """
    presence_penalty: float = Field(0.0, ge=-1e4, le=1e4)
    """Subtracted from the logits of tokens that occur in the new text; negative values encourage
    them.
    """
    frequency_penalty: float = Field(0.0, ge=-1e4, le=1e4)
    """Subtracted from the logits of tokens for each occurrence in the new text."""
    no_repeat_ngram: int | None = Field(None, ge=1, le=_COUNT)
    """N-grams of this size (1 or more) occur only once, in prompt and new text together."""
    logit_bias: dict[str, float] = Field(default_factory=dict)
    """Added to the logits of tokens, given by their text, such as { " the" = -5.0 }."""
    stop: list[str] = Field(default_factory=list)
    """Stop strings: generation ends before any of them."""
    stop_at_sentence_end: bool = False
    """Whether generation ends at the end of a sentence (true, false)."""
    model_seed: str = ""
    """Text put before every prompt."""
    sampling_seed: int | None = Field(None, ge=0, le=2**62)
    """Random seed of sampling (0 or more); by default a new one for each text."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Weight quantization for generation on a CPU: `none`, `int8` or `int4`; faster, slightly less
    accurate.
    """
    speculative: Literal["none", "ngram"] = "none"
    """`none`, or `ngram`: speculative decoding by prompt lookup; greedy decoding only, with the
    same result.
    """
    beam_size: int = Field(5, ge=1, le=2**10)
    """Number of beams (1 or more)."""
    length_penalty: float = Field(1.0, ge=-10, le=10)
    """Exponent of the length by which beam scores are divided; a higher one prefers longer
    texts.
    """
    beam_results: int = Field(1, ge=1, le=_COUNT)
    """Number of texts that `agi2 beam` shows (1 to `beam_size`); above 1, each with its score."""
    beam_early_stopping: EarlyStopping = "never"
    """As in `transformers`: true (at `beam_size` texts), false (heuristic), `never` (exact)."""
    beam_groups: int = Field(1, ge=1, le=_COUNT)
    """Number of groups in diverse beam search (1 or more); divides `beam_size`."""
    diversity_penalty: float = Field(0.5, ge=0, le=1e6)
    """Subtracted from the log-probability of a token for each beam of an earlier group that chose
    it at this step (0 or more).
    """
    max_context_length: int = Field(1024, ge=1, le=_COUNT)
    """Maximum number of conversation tokens in a chat's context (1 or more); `model_positions` by
    default.
    """


# Pydantic orders the keys of base classes from the last to the first.
class Config(GenerationKeys, TrainKeys, ModelKeys, DataKeys, Mapping):
    """Complete configuration of a run: flat, validated, immutable.

    Also a mapping: `config["epochs"]` and `**config` work.
    """

    # Keys adopted from the model of `init_from` instead of set by the user.
    _adopted: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="wrap")
    @classmethod
    def _fill_dependent_defaults(
        cls, given: dict[str, Any], validate: ModelWrapValidatorHandler[Config]
    ) -> Config:
        """Normalize the given values and fill in the defaults that depend on other keys.

        A preset sets the sizes; `seq_len` and `max_context_length` default to `model_positions`.
        Such defaults are not in `model_fields_set`, so that `changed` derives them again.
        """
        # A known key with null or "" is not set; unknown keys are kept for the error message.
        given = {
            key: value
            for key, value in given.items()
            if key not in cls.model_fields or (value is not None and value != "")
        }
        given = {key: plain_value(key, value) for key, value in given.items()}
        given = {
            key: integral_value(cls.model_fields.get(key), value) for key, value in given.items()
        }
        # `plain_value` makes None of `resume = false` and `top_k = 0`.
        given = {k: v for k, v in given.items() if v is not None or k not in cls.model_fields}
        for key in ("sources", "stop", "log_to"):
            if isinstance(given.get(key), str):
                given[key] = [given[key]]
        given = {**PRESETS.get(str(given.get("preset")), {}), **given}
        config = validate({**dependent_defaults(given), **given})
        object.__setattr__(config, "__pydantic_fields_set__", set(given))
        return config

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        """Raise `ValueError` with a line per contradiction between keys."""
        if problems := contradictions(self):
            raise ValueError("\n".join(problems))
        return self

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
        given = {key: self[key] for key in self.model_fields_set if self[key] != sizes.get(key)}
        changed = Config(**{**given, **changes})
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
            **Config.model_validate({}),
            **PRESETS.get(str(self.preset), {}),
            **dependent_defaults(self),
            "model_ff": 4 * self.model_embd,
        }
        given = {key: self[key] for key in self if key in self.model_fields_set - self._adopted}
        return {k: v for k, v in given.items() if v != defaults[k] and (k, v) != ("model_ff", 0)}

    @property
    def architecture(self) -> GPT2Config:
        """Architecture of the model."""
        return GPT2Config.from_mapping(self)


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
    if config.speculative != "none":
        yield from not_greedy(config)
    if config.min_length > config.max_length:
        yield f"min_length {config.min_length} is above max_length {config.max_length}"
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
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        yield f"model_name {name!r} is too long for a folder's name: at most {_LONGEST_NAME} bytes"
    if "\0" in config.output_dir:
        yield f"output_dir {config.output_dir!r} is not a folder's name"
    if not re.fullmatch(DEVICES, config.device):
        yield f"device {config.device!r} is none of auto, cpu, cuda, cuda:1, mps"


# Speculative decoding by prompt lookup requires greedy decoding: these are the required values.
PLAIN_GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram": None,
    "logit_bias": {},
    "min_length": 0,
}


def not_greedy(options: Mapping[str, Any]) -> list[str]:
    """Return an error line for each option that is incompatible with `speculative = "ngram"`."""
    return [
        f'{key} {options[key]} does not go with speculative = "ngram", which is greedy: '
        + (f"set {key} = {plain:g}" if isinstance(plain, float) else f"leave {key} out")
        for key, plain in PLAIN_GREEDY.items()
        if options[key] != plain
    ]


def dependent_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that depend on other keys."""
    positions = given.get("model_positions", 1024)
    follows = {"seq_len": positions, "max_context_length": positions}
    if given.get("max_steps") is not None or given.get("max_minutes") is not None:
        follows["epochs"] = UNBOUNDED_EPOCHS
    return follows


# File systems allow 255 bytes; the rest is for the suffix of a run's backup (`NAME.1`).
_LONGEST_NAME = 240


# Default of `epochs` if `max_steps` or `max_minutes` is set: epochs then do not end the run.
UNBOUNDED_EPOCHS = 1_000_000
