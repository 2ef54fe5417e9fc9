"""Sampling parameters and the sampler. B batch, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from ..arguments import convert, convert_fields
from ..config_checks import GREEDY_VALUES, sampling_contradictions
from ..config_keys import GenerationKeys, range_problem
from ..errors import AGI2Error, safe_repr

MASKED = float("-inf")
MIN_TEMPERATURE = 1e-5
"""Minimum temperature; below it decoding is greedy, as division would overflow the logits."""
MAX_PENALTY = 1e4
"""Maximum of a bias: larger ones have no further effect, and their sums overflow."""
NO_TOKEN = -1
"""Returned in place of a token id if every token is masked."""


EndToken = int | Sequence[int] | None
"""What ends a sequence: one token id, several, or none."""


def end_ids(end_token: EndToken) -> tuple[int, ...]:
    """Return the end tokens as a tuple of token ids."""
    if end_token is None:
        return ()
    return tuple(end_token) if isinstance(end_token, Sequence) else (int(end_token),)


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters and stopping conditions, named like the configuration's keys.

    Raises:
        AGI2Error: if an option has the wrong type or is out of range, or two contradict each other.
    """

    max_length: int = 100
    """Maximum number of new tokens."""
    min_length: int = 0
    """Minimum number of new tokens before an end token or the end of a sentence may end the text.
    Stop strings always end it."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy decoding."""
    top_k: int | None = None
    """Sample from the k most probable tokens; 0, or above the vocabulary, means no limit."""
    top_p: float | None = None
    """Sample from the most probable tokens whose cumulative probability reaches this."""
    min_p: float | None = None
    """Sample from tokens of at least this probability relative to the most probable token."""
    typical_p: float | None = None
    """Sample from the locally typical tokens whose cumulative probability reaches this."""
    repetition_penalty: float = 1.0
    """Above 1 penalizes tokens that occur in the prompt or the new text."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that occurs in the new text."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of each token, once per occurrence in the new text."""
    no_repeat_ngram: int | None = None
    """No n-gram of this size occurs twice, in prompt and new text together."""
    logit_bias: Mapping[Any, float] = field(default_factory=dict)
    """Added to the logits of tokens; -100 practically bans one, 100 practically forces it. Keys
    are a token's text (keys of TOML are strings) or, in Python, its id."""
    stop: str | Sequence[str] | None = ()
    """Stop strings: the text ends before the one that is completed first."""
    stop_at_sentence_end: bool = False
    """End the text after `.`, `!`, `?` or `…` and closing quotes, if white space follows (also
    after an abbreviation), or after `。`, `！`, `？`."""

    speculative: Literal["none", "ngram"] = "none"
    """`ngram`: speculative decoding, for the same greedy text faster (`speculative.py`)."""

    def __post_init__(self) -> None:
        convert_fields(self)
        object.__setattr__(self, "top_k", self.top_k or None)
        object.__setattr__(self, "logit_bias", _convert_bias(self.logit_bias))
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (problem := range_problem(name, value)):
                raise AGI2Error(f"{name} must be {problem}, not {value}")
        if not all(-MAX_PENALTY <= bias <= MAX_PENALTY for bias in self.logit_bias.values()):
            raise AGI2Error(
                f"logit_bias must be made of numbers from {-MAX_PENALTY:g} to {MAX_PENALTY:g}, "
                f"not {self.logit_bias}"
            )
        for problem in sampling_contradictions({key: getattr(self, key) for key in _CONDITIONS}):
            raise AGI2Error(problem)

    @property
    def is_greedy(self) -> bool:
        """Whether decoding is greedy (argmax)."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def needs_prompt(self) -> bool:
        """Whether a logits processor depends on the tokens of the prompt."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram is not None


_NUMBERS = [
    each.name
    for each in fields(SamplingParams)
    if GenerationKeys.model_fields[each.name].metadata  # its range
]
_CONDITIONS = (*GREEDY_VALUES, "max_length", "speculative")


def _convert_bias(biases: Any) -> dict[str | int, float]:
    """Return a `logit_bias` with keys and values converted to plain Python types."""
    if biases is None:
        return {}
    if not isinstance(biases, Mapping):
        raise AGI2Error(f"logit_bias must be a mapping from tokens to numbers, not {biases!r}")
    return {
        convert(str | int, "a token of logit_bias", token): convert(
            float, f"logit_bias of {token!r}", bias
        )
        for token, bias in biases.items()
    }


def sampling_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a run's configuration that are fields of `SamplingParams`."""
    return {each.name: config[each.name] for each in fields(SamplingParams)}


def generation_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `generate_text` from a run's configuration.

    `generate_text(model, "Call me", tokenizer=tokenizer, **generation_options(config))` returns
    what `agi2 generate` prints. `stream_text`, `generate_batch`, `generate_choices` and, for chat,
    `InteractivePrompt` accept them, too.

    Args:
        config: as returned by `load_config`.

    Raises:
        AGI2Error: if it is not a mapping.
    """
    if not isinstance(config, Mapping):
        raise AGI2Error(f"config must be what load_config returns, not {safe_repr(config)}")
    return {
        "model_seed": config["model_seed"],
        "seed": config["sampling_seed"],
        **sampling_keys(config),
    }


# Logits processors that do not require sampling: beam search applies them, too.
_NON_SAMPLING_KEYS = (
    "min_length",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram",
    "logit_bias",
)


_BEAM_OPTIONS = (*_NON_SAMPLING_KEYS, "stop", "stop_at_sentence_end")


def beam_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a run's configuration that `generate_beam_texts` accepts as options."""
    return {name: config[name] for name in _BEAM_OPTIONS}


def check_beam_options(options: Mapping[str, Any]) -> None:
    """Check that no option requires sampling, which beam search would ignore.

    Raises:
        AGI2Error: if one does; the message names it.
    """
    for name in options.keys() - set(_BEAM_OPTIONS):
        raise AGI2Error(f"{name} does not go with beam search, which does not sample: remove it")


def non_sampling_options(options: SamplingParams) -> dict[str, Any]:
    """Return the options that `beam_search` accepts: those that do not require sampling."""
    return {name: getattr(options, name) for name in _NON_SAMPLING_KEYS}


def sample(logits: torch.Tensor, uniform: Sequence[float] | None) -> torch.Tensor:
    """Sample a token for each row of processed logits: (B, V) to ids (B,).

    Args:
        logits: from `process_logits`.
        uniform: B random numbers in [0, 1), for inverse transform sampling: each row takes the
            token at which the cumulative probability passes its number, whatever the other rows
            are. None takes the argmax.

    Returns:
        Token ids (B,), `NO_TOKEN` for a row in which every token is masked.

    Raises:
        AGI2Error: if the model's logits are not finite.
    """
    if uniform is None:
        # NumPy's argmax takes a twentieth of PyTorch's time on a CPU.
        numbers = logits.float().numpy() if logits.device.type == "cpu" else logits
        tokens = torch.as_tensor(numbers.argmax(-1), device=logits.device)
        largest = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    else:
        # float64, or tokens of tiny probability could not be sampled; MPS has no float64.
        device = "cpu" if logits.device.type == "mps" else logits.device
        cumulated = logits.softmax(dim=-1).to(device).cumsum(dim=-1, dtype=torch.float64)
        largest = cumulated[:, -1]
        thresholds = torch.tensor(uniform, dtype=torch.float64, device=device) * largest
        tokens = torch.searchsorted(cumulated, thresholds.unsqueeze(1), right=True).squeeze(1)
        tokens = tokens.to(logits.device)
    if all(map(math.isfinite, largest.tolist())):
        return tokens
    excluded = (logits == MASKED).all(dim=-1)
    if not (largest.to(logits.device).isfinite() | excluded).all():
        raise AGI2Error(
            "the model's logits are not finite: its weights contain NaN or infinity; use an "
            "earlier checkpoint, or train again with a lower learning_rate"
        )
    return tokens.masked_fill(excluded, NO_TOKEN)
