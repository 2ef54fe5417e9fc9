"""What a run can be told: the architecture (`GPT2Config`) and the whole run (`Config`)."""

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

# The published sizes (Radford et al., 2019), in the configuration's own keys.
PRESETS: dict[str, dict[str, int]] = {
    "small": {"model_layer": 12, "model_head": 12, "model_embd": 768},
    "medium": {"model_layer": 24, "model_head": 16, "model_embd": 1024},
    "large": {"model_layer": 36, "model_head": 20, "model_embd": 1280},
    "xl": {"model_layer": 48, "model_head": 25, "model_embd": 1600},
}


# The largest sizes of a model: far beyond any GPT-2, so that a slip is found before it is built.
LARGEST = {
    "vocab_size": 2**20,
    "max_seq_len": 2**20,
    "d_model": 2**16,
    "n_layers": 2**10,
    "n_heads": 2**16,
    "d_ff": 2**20,
}
# The largest counts of steps, tokens and the like, which stay exact as floating-point numbers.
_COUNT = 10**12


def _sizes(name: str, least: int = 1) -> Range:
    return Range(least, most=LARGEST[name])


@dataclass(frozen=True)
class GPT2Config:
    """The architecture of a model, in the components' language. The defaults are GPT-2 small.

    Raises:
        AGI2Error: where the numbers cannot make a model.
    """

    vocab_size: Annotated[int, _sizes("vocab_size")] = 50257
    max_seq_len: Annotated[int, _sizes("max_seq_len")] = 1024
    """The number of positions: the longest context the model can see."""
    d_model: Annotated[int, _sizes("d_model")] = 768
    n_layers: Annotated[int, _sizes("n_layers")] = 12
    n_heads: Annotated[int, _sizes("n_heads")] = 12
    d_ff: Annotated[int, _sizes("d_ff", least=0)] = 0
    """Width of the feed-forward's hidden layer; 0 means 4 x d_model."""
    dropout: Rate = 0.1
    activation: Activation = "gelu_tanh"
    """`gelu_tanh` is GPT-2's; `gelu` is the exact form."""
    bias: bool = True
    """Whether linear layers and layer norms have biases."""
    norm_position: NormPosition = "pre"
    """`pre` is GPT-2's; `post` is the original Transformer's."""
    position_embedding: PositionKind = "sinusoidal"
    tie_weights: bool = True
    """Whether the output head is the token embedding."""
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
        """The weights of a model of this architecture, tied ones counted once."""
        c, f, b = self.d_model, self.d_ff, int(self.bias)
        norm = c + b * c
        block = 2 * norm + 4 * c * c + 2 * c * f + b * (5 * c + f)
        outside = self.vocab_size * c * (1 if self.tie_weights else 2)
        outside += norm if self.norm_position == "pre" else 0
        outside += self.max_seq_len * c if self.position_embedding == "learned" else 0
        return outside + self.n_layers * block

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @classmethod
    def preset(cls, name: Preset, **changes: Any) -> GPT2Config:
        """A published size (`small`, `medium`, `large`, `xl`), with changes."""
        if not isinstance(name, str) or name not in PRESETS:
            raise AGI2Error(f"preset must be one of {', '.join(PRESETS)}, not {shown(name)}")
        sizes = {ARCHITECTURE_KEYS[key]: value for key, value in PRESETS[name].items()}
        return cls(**{**sizes, **changes})

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> GPT2Config:
        """The architecture named by a run's configuration (what `load_config` returns)."""
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
        """The same architecture in the configuration's keys."""
        return {key: getattr(self, ours) for key, ours in ARCHITECTURE_KEYS.items()}


# The configuration's key for each field of the architecture.
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

# What of an architecture may differ between a trained model and a configuration that names it: a
# smaller text makes a smaller vocabulary, and the other two change no weight.
FREE_ARCHITECTURE_KEYS = {"vocab_size", "dropout", "gradient_checkpointing"}

# Keys that each kind of use cannot do without. Everything else has a default.
REQUIRED_KEYS: dict[str, tuple[str, ...]] = {
    "training": ("sources", "model_name"),
    "generation": ("model_name",),
    "interactive": ("model_name",),
}


class Config(BaseModel, Mapping):
    """A whole run. Flat, validated, immutable; also a mapping (`config["epochs"]`, `**config`)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )

    # What to learn from, and where it goes.
    sources: list[str] = Field(default_factory=list)
    """Files, folders, globs, URLs or `builtin:python-docs`."""
    model_name: str = "model"
    """The run's name: the folder below `output_dir`."""
    output_dir: str = "trained"
    """The folder that holds all runs."""
    text_field: str = "text"
    """The field of `.jsonl` and the column of `.csv` that holds the text."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """The share held out for validation: the end of each document, or whole documents."""

    # The tokenizer.
    tokenizer: str = "bpe"
    """`bpe`, `basic`, `gpt2`, or the path of a trained tokenizer."""
    vocab_size: int = Field(50257, ge=1, le=LARGEST["vocab_size"])
    """A ceiling: a small text makes a smaller vocabulary."""
    lowercase: bool = True
    """Whether the basic tokenizer lower-cases."""
    fold_whitespace: bool = True
    """Whether the basic tokenizer turns every run of white space into one space."""

    # What training starts from.
    init_from: str | None = None
    """The folder of a trained or imported model, which brings its architecture and tokenizer."""
    lora_rank: int | None = Field(None, ge=1, le=4096)
    """Train LoRA matrices of this rank beside the weights of `init_from`, which stay."""

    # The architecture.
    preset: Preset | None = None
    """A published size; explicit `model_*` keys override it."""
    model_layer: int = Field(12, ge=1, le=LARGEST["n_layers"])
    """Number of transformer blocks."""
    model_head: int = Field(12, ge=1, le=LARGEST["n_heads"])
    """Attention heads of each block."""
    model_embd: int = Field(768, ge=1, le=LARGEST["d_model"])
    """Width of the model."""
    model_ff: int = Field(0, ge=0, le=LARGEST["d_ff"])
    """Width of the feed-forward's hidden layer; 0 means 4 x `model_embd`."""
    model_positions: int = Field(1024, ge=1, le=LARGEST["max_seq_len"])
    """The longest context, in tokens."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in training."""
    activation: Activation = "gelu_tanh"
    """The feed-forward's activation."""
    bias: bool = True
    """Whether linear layers and layer norms have biases."""
    norm_position: NormPosition = "pre"
    """Layer norm before each sublayer (GPT-2) or after it."""
    position_embedding: PositionKind = "sinusoidal"
    """Fixed sine waves, or learned as GPT-2's."""
    tie_weights: bool = True
    """Whether the output head is the token embedding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    # Training.
    epochs: int = Field(10, ge=1, le=_COUNT)
    """Passes over the text."""
    max_steps: int | None = Field(None, ge=1, le=_COUNT)
    """Optimizer steps at most."""
    max_minutes: float | None = Field(None, gt=0, le=1e9)
    """Minutes at most; the learning rate then falls with the clock, so that two runs differ."""
    batch_size: int = Field(12, ge=1, le=2**20)
    """Sequences per optimizer step."""
    micro_batch_size: int | Literal["auto"] = Field("auto")
    """Sequences at a time: divides `batch_size`; gradients accumulate. `auto` fits the memory."""
    seq_len: int = Field(1024, ge=1, le=_COUNT)
    """Tokens per training sequence."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon on the blocks' matrices, AdamW on the rest."""
    learning_rate: float = Field(3e-4, gt=0, le=1e30)
    """The highest learning rate of AdamW, reached after warm-up."""
    muon_learning_rate: float = Field(0.02, gt=0, le=1e30)
    """The highest learning rate of Muon."""
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after warm-up, to zero at the end; `wsd` holds it first."""
    lr_decay_fraction: float = Field(0.2, gt=0, le=1)
    """The share of the run, at its end, in which `wsd` falls."""
    warmup_steps: int = Field(100, ge=0, le=_COUNT)
    """Steps in which the learning rate rises: at most a tenth of the run."""
    weight_decay: float = Field(0.1, ge=0, le=1e30)
    """Decoupled weight decay, on matrices alone."""
    adam_beta2: float = Field(0.99, gt=0, lt=1)
    """Decay of AdamW's second moment."""
    clip_grad_norm: float = Field(1.0, gt=0)
    """The largest gradient norm; a huge number sets no limit."""
    seed: int = Field(1337, ge=0, le=2**62)
    """The seed of everything random in training."""
    eval_interval: int = Field(250, ge=1, le=_COUNT)
    """Steps between validations."""
    eval_tokens: int = Field(65536, ge=0, le=_COUNT)
    """Validation tokens looked at while training, 0 for all; the last validation sees all."""
    early_stopping_patience: int | None = Field(None, ge=1, le=_COUNT)
    """Stop after so many validations without a better loss."""
    checkpoint_interval: int = Field(500, ge=1, le=_COUNT)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1, le=_COUNT)
    """Checkpoints kept on disk."""
    log_interval: int = Field(10, ge=1, le=_COUNT)
    """Steps between lines of the log."""
    sample_tokens: int = Field(64, ge=0, le=_COUNT)
    """Tokens of sample text at each validation, 0 for none."""
    log_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Where else the log goes; `metrics.jsonl` is always written."""

    # The machine.
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    threads: int | Literal["auto"] = Field("auto")
    """PyTorch's CPU threads in training; `auto`: a thread a core, on resume as many as before."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 or fp16 on CUDA, fp32 elsewhere."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the model (`ddp`), or a part of it (`fsdp`)."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to compile the model with `torch.compile`; `auto`: on CUDA."""
    resume: str | None = None
    """A checkpoint folder, a run folder, or `auto`: this run's newest checkpoint, if any."""

    # Text out.
    max_length: int = Field(100, ge=1, le=2**30)
    """New tokens to write at most."""
    min_length: int = Field(0, ge=0, le=_COUNT)
    """New tokens before the end of text or of a sentence may end it; stop strings always do."""
    samples: int = Field(1, ge=1, le=10_000)
    """Texts to write for a prompt."""
    temperature: float = Field(0.8, ge=0)
    """0 is greedy; higher is more surprising."""
    top_k: int | None = Field(None, ge=1, le=_COUNT)
    """Sample from the k likeliest tokens."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the likeliest tokens that make up this share."""
    min_p: float | None = Field(None, gt=0, le=1)
    """Sample from tokens at least this share as likely as the likeliest."""
    typical_p: float | None = Field(None, gt=0, le=1)
    """Sample from the tokens of most typical surprise that make up this share."""
    repetition_penalty: float = Field(1.0, ge=1e-4, le=1e4)
    """Above 1 discourages tokens that are already there."""
    presence_penalty: float = Field(0.0, ge=-1e4, le=1e4)
    """Taken off the logit of each token that stands in the new text."""
    frequency_penalty: float = Field(0.0, ge=-1e4, le=1e4)
    """Taken off the logit of each token, times as often as it stands in the new text."""
    no_repeat_ngram: int | None = Field(None, ge=1, le=_COUNT)
    """No run of so many tokens comes twice."""
    logit_bias: dict[str, float] = Field(default_factory=dict)
    """Added to the logits of tokens, each named by its text."""
    stop: list[str] = Field(default_factory=list)
    """Writing ends before any of these strings."""
    stop_at_sentence_end: bool = False
    """Writing ends at the end of a sentence."""
    model_seed: str = ""
    """Text put before every prompt."""
    sampling_seed: int | None = Field(None, ge=0, le=2**62)
    """Repeats a text; without it each is new."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Bits of the weights that write, on a CPU: fewer are faster and a little less exact."""
    speculative: Literal["none", "ngram"] = "none"
    """`ngram`: greedy text, faster where it repeats itself (prompt-lookup decoding)."""
    beam_size: int = Field(5, ge=1, le=2**10)
    """Hypotheses that beam search keeps."""
    length_penalty: float = Field(1.0, ge=-10, le=10)
    """Beam scores are divided by length to this power."""
    beam_results: int = Field(1, ge=1, le=_COUNT)
    """Texts that `agi2 beam` shows; above 1, each with its score."""
    beam_early_stopping: EarlyStopping = "never"
    """With `beam_size` texts ended: stop, or once a better one is unlikely (false), impossible."""
    beam_groups: int = Field(1, ge=1, le=_COUNT)
    """Groups of beams that keep away from each other's tokens; divides `beam_size`."""
    diversity_penalty: float = Field(0.5, ge=0, le=1e6)
    """How far: nats taken off a token for each beam of another group that takes it."""
    max_context_length: int = Field(1024, ge=1, le=_COUNT)
    """Tokens of conversation kept in a chat."""

    # Keys that the model of `init_from` set, not the user.
    _adopted: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="wrap")
    @classmethod
    def _fill_dependent_defaults(
        cls, given: dict[str, Any], validate: ModelWrapValidatorHandler[Config]
    ) -> Config:
        """A preset sets the sizes; a length that is not given follows the model's positions.

        What only follows does not count as given: `changed` works it out anew.
        """
        # A key that is null or empty is not set, but an unknown one is still an error.
        given = {
            key: value
            for key, value in given.items()
            if key not in cls.model_fields or (value is not None and value != "")
        }
        given = {key: _plain(key, value) for key, value in given.items()}
        given = {key: _whole(cls.model_fields.get(key), value) for key, value in given.items()}
        # `None` again: a `resume` of false, a `top_k` of 0.
        given = {k: v for k, v in given.items() if v is not None or k not in cls.model_fields}
        for key in ("sources", "stop", "log_to"):
            if isinstance(given.get(key), str):
                given[key] = [given[key]]
        given = {**PRESETS.get(str(given.get("preset")), {}), **given}
        config = validate({**_dependent_defaults(given), **given})
        object.__setattr__(config, "__pydantic_fields_set__", set(given))
        return config

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        """Raise with a line for each problem, which begins with its key."""
        problems = []
        if self.model_embd % self.model_head:
            problems.append(
                f"model_embd {self.model_embd} is not divisible by model_head {self.model_head}"
            )
        if self.seq_len > self.model_positions:
            problems.append(
                f"seq_len {self.seq_len} is above model_positions {self.model_positions}: "
                "lower the one or raise the other"
            )
        micro = self.micro_batch_size
        if micro != "auto" and (micro < 1 or self.batch_size % micro):
            problems.append(
                f"micro_batch_size {micro} does not divide batch_size {self.batch_size}"
            )
        if self.threads != "auto" and not 1 <= self.threads <= MAX_THREADS:
            problems.append(f"threads {self.threads} is not in the range 1 to {MAX_THREADS}")
        if self.beam_size % self.beam_groups:
            problems.append(
                f"beam_groups {self.beam_groups} does not divide beam_size {self.beam_size}"
            )
        if self.beam_results > self.beam_size:
            problems.append(
                f"beam_results {self.beam_results} is above beam_size {self.beam_size}: "
                "lower the one or raise the other"
            )
        if self.speculative != "none":
            problems += not_greedy(self)
        if self.lora_rank is not None:
            if self.init_from is None:
                problems.append("lora_rank goes with a trained model: set init_from")
            if self.optimizer != "adamw":
                problems.append('lora_rank is trained by AdamW: set optimizer = "adamw"')
            if self.parallel != "ddp":
                problems.append('lora_rank is not for sharded models: set parallel = "ddp"')
        if self.model_name in (".", "..") or re.search(r"[/\\\x00-\x1f]", self.model_name):
            problems.append(f"model_name {self.model_name!r} is not a folder's name")
        if len(self.model_name.encode("utf-8", "replace")) > _LONGEST_NAME:
            problems.append(
                f"model_name {self.model_name!r} is too long for a folder's name: at most "
                f"{_LONGEST_NAME} bytes"
            )
        if "\0" in self.output_dir:
            problems.append(f"output_dir {self.output_dir!r} is not a folder's name")
        if self.min_length > self.max_length:
            problems.append(f"min_length {self.min_length} is above max_length {self.max_length}")
        if self.samples > 1 and self.temperature == 0:
            problems.append(f"samples {self.samples} would all be equal at temperature 0")
        if not re.fullmatch(DEVICES, self.device):
            problems.append(f"device {self.device!r} is none of auto, cpu, cuda, cuda:1, mps")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    # A mapping over the keys, so that `**config` and `config["epochs"]` work.
    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(type(self).model_fields)

    def __len__(self) -> int:
        return len(type(self).model_fields)

    def changed(self, **changes: Any) -> Config:
        """A validated copy with some keys set; those that follow from others follow anew."""
        sizes = PRESETS.get(str(self.preset), {})
        given = {key: self[key] for key in self.model_fields_set if self[key] != sizes.get(key)}
        changed = Config(**{**given, **changes})
        changed._adopted = self._adopted - changes.keys()
        return changed

    def adopting(self, keys: Iterable[str]) -> Config:
        """This configuration, in which a trained model has set some keys: nobody chose them."""
        self._adopted = frozenset(keys)
        return self

    def chosen(self) -> dict[str, Any]:
        """The keys and values that somebody set, and that change something.

        Left out are those that only say what would follow without them (a default, a preset's
        size, a length that is the model's), and what was adopted from a trained model.
        """
        defaults = {
            **Config.model_validate({}),
            **PRESETS.get(str(self.preset), {}),
            **_dependent_defaults(self),
            "model_ff": 4 * self.model_embd,
        }
        given = {key: self[key] for key in self if key in self.model_fields_set - self._adopted}
        return {k: v for k, v in given.items() if v != defaults[k] and (k, v) != ("model_ff", 0)}

    @property
    def architecture(self) -> GPT2Config:
        """The model's part, in the components' language."""
        return GPT2Config.from_mapping(self)


def _plain(key: str, value: Any) -> Any:
    """A value of a key in the type that a TOML file would have given it.

    From Python come paths, tuples, devices and NumPy's numbers; and three values mean a plain one.
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


def _whole(field: FieldInfo | None, value: Any) -> Any:
    """A value of a key for integers: one like 10.0 or 1e3 as an integer, as functions take it."""
    if type(value) is not float or field is None or not value.is_integer():
        return value
    kinds = get_args(field.annotation) or (field.annotation,)
    return int(value) if int in kinds and float not in kinds else value


# Prompt-lookup decoding writes plain greedy text: other values of these keys contradict it.
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
    """A line for each option that `speculative = "ngram"` does not go with."""
    return [
        f'{key} {options[key]} does not go with speculative = "ngram", which writes greedy text: '
        + (f"set {key} = {plain:g}" if isinstance(plain, float) else f"leave {key} out")
        for key, plain in PLAIN_GREEDY.items()
        if options[key] != plain
    ]


def _dependent_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of keys that follow from others."""
    positions = given.get("model_positions", 1024)
    follows = {"seq_len": positions, "max_context_length": positions}
    if given.get("max_steps") is not None or given.get("max_minutes") is not None:
        follows["epochs"] = UNBOUNDED_EPOCHS
    return follows


# File systems take 255 bytes; a run that is moved away gets a number behind its name.
_LONGEST_NAME = 240


# With `max_steps` or `max_minutes` alone, passes over the text do not end a run.
UNBOUNDED_EPOCHS = 1_000_000
