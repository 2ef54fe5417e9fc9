"""The options of sampling and of beam search, and the draw of a token.

Top-k, top-p and the other filters are in `logits_processors`. B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..config_keys import GenerationConfig
from ..cuda_utils import to_device
from ..errors import AGI2Error, safe_repr

MASKED = float("-inf")
NO_TOKEN = -1
"""Returned in place of a token id if every token is masked."""

EndToken = int | Sequence[int] | None
"""What ends a sequence: one token id, several, or none."""


def end_ids(end_token: EndToken) -> tuple[int, ...]:
    """Return the end tokens as a tuple of token ids."""
    if end_token is None:
        return ()
    return tuple(end_token) if isinstance(end_token, Sequence) else (int(end_token),)


# The keys of `GenerationConfig` that affect the tokens of a beam; the others need sampling, or are
# arguments of their own.
_BEAM_KEYS = (
    "min_length",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram",
    "logit_bias",
    "stop",
    "stop_at_sentence_end",
)
_SAMPLING_KEYS = (
    *("max_length", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *_BEAM_KEYS,
    "speculative",
)


def sampling_config(**options: Any) -> GenerationConfig:
    """Return the configuration of a request that is sampled.

    Raises:
        AGI2Error: if an option is unknown, invalid or not one of sampling.
    """
    _check_applicable(options, _SAMPLING_KEYS, "sampling_", "sampling")
    return GenerationConfig(**options)


def beam_config(options: Mapping[str, Any], **given: Any) -> GenerationConfig:
    """Return the configuration of a request of beam search.

    Args:
        options: keys that beam search shares with sampling.
        **given: keys of beam search.

    Raises:
        AGI2Error: if an option is unknown, invalid or requires sampling, which beam search would
            ignore.
    """
    _check_applicable(options, _BEAM_KEYS, "beam_", "beam search, which does not sample")
    return GenerationConfig(temperature=0.0, **given, **options)


def _check_applicable(
    options: Mapping[str, Any], keys: Sequence[str], prefix: str, method: str
) -> None:
    for name in sorted(options.keys() & GenerationConfig.model_fields.keys() - set(keys)):
        if name.startswith(prefix):
            raise AGI2Error(f"{name}: the argument is called {name.removeprefix(prefix)} here")
        raise AGI2Error(f"{name} does not go with {method}: remove it")


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
        **{key: config[key] for key in _SAMPLING_KEYS},
    }


def beam_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `generate_beam_texts` from a run's configuration."""
    return {
        "beam_size": config["beam_size"],
        "max_length": config["max_length"],
        "length_penalty": config["length_penalty"],
        "results": config["beam_results"],
        "early_stopping": config["beam_early_stopping"],
        "groups": config["beam_groups"],
        "diversity_penalty": config["diversity_penalty"],
        **{key: config[key] for key in _BEAM_KEYS},
    }


class DrawnTokens:
    """Sampled tokens of B rows, which a GPU may still be computing.

    Args:
        ids: token ids (B,), `NO_TOKEN` for a row whose largest logit is not finite.
        logits: processed logits that have the rows, in one part or several.
    """

    def __init__(self, ids: torch.Tensor, logits: Sequence[torch.Tensor]) -> None:
        self.ids = ids
        self._logits = logits
        is_cuda = ids.device.type == "cuda"
        self._copy = ids.to("cpu", non_blocking=is_cuda)
        self._copied: torch.cuda.Event | None = None
        if is_cuda:  # pragma: needs gpu
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(ids.device))

    def read(self) -> list[int]:
        """Return the token ids, `NO_TOKEN` for a row in which every token is masked.

        Raises:
            AGI2Error: if the model's logits are not finite.
        """
        if self._copied is not None:  # pragma: needs gpu
            self._copied.synchronize()  # not with what was started after the copy
        found: list[int] = self._copy.tolist()
        if NO_TOKEN in found:
            for logits in self._logits:
                excluded = (logits == MASKED).all(dim=-1)
                if not (logits.amax(dim=-1).isfinite() | excluded).all():
                    raise AGI2Error(
                        "the model's logits are not finite: its weights contain NaN or infinity; "
                        "use an earlier checkpoint, or train again with a lower learning_rate"
                    )
        return found


def draw(logits: torch.Tensor, uniform: Sequence[float] | None) -> DrawnTokens:
    """Sample a token for each row of processed logits (B, V), without waiting for a GPU.

    Args:
        logits: from `process_logits`.
        uniform: B random numbers in [0, 1), for inverse transform sampling: each row takes the
            token at which the cumulative probability passes its number, whatever the other rows
            are. None takes the argmax.
    """
    if uniform is None:
        # NumPy's argmax takes a twentieth of PyTorch's time on a CPU.
        numbers = logits.float().numpy() if logits.device.type == "cpu" else logits
        tokens = torch.as_tensor(numbers.argmax(-1), device=logits.device)
        largest = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    else:
        # float64, or tokens of tiny probability could not be sampled; MPS has no float64.
        device = torch.device("cpu") if logits.device.type == "mps" else logits.device
        cumulated = logits.softmax(dim=-1).to(device).cumsum(dim=-1, dtype=torch.float64)
        largest = cumulated[:, -1]
        thresholds = to_device(uniform, device, torch.float64) * largest
        tokens = torch.searchsorted(cumulated, thresholds.unsqueeze(1), right=True).squeeze(1)
        tokens, largest = tokens.to(logits.device), largest.to(logits.device, torch.float32)
    return DrawnTokens(tokens.masked_fill(~largest.isfinite(), NO_TOKEN), [logits])
