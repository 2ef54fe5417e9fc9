"""Sampling keys in a Hugging Face `generation_config.json`, from and to the configuration.

vLLM and `transformers` use them for what a request leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config_keys import GenerationConfig

# Keys of generation_config.json, by key of `GenerationConfig`: those that choose among the likely
# tokens, which greedy decoding does not, and those that change the logits. `transformers` has no
# presence_penalty and frequency_penalty; vLLM reads them.
_TRUNCATION = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "typical_p": "typical_p"}
_PENALTIES = {
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
}
# Keys that do nothing at 0, for which `GenerationConfig` has `None`.
_OFF_AT_0 = ("top_k", "min_p", "no_repeat_ngram")


def to_hf_generation(options: GenerationConfig) -> dict[str, Any]:
    """Return the keys of `generation_config.json` that sample as these options do."""
    neutral = GenerationConfig()
    penalties = {
        theirs: getattr(options, ours)
        for ours, theirs in _PENALTIES.items()
        if getattr(options, ours) != getattr(neutral, ours)
    }
    if options.is_greedy:  # vLLM reads only the temperature, `transformers` only do_sample
        return {"do_sample": False, "temperature": 0.0, **penalties}
    truncation = {theirs: getattr(options, ours) for ours, theirs in _TRUNCATION.items()}
    kept = {key: value for key, value in truncation.items() if value is not None}
    # The default of `transformers` is the 50 most likely tokens; 0 is all.
    return {"do_sample": True, "temperature": options.temperature, "top_k": 0, **kept, **penalties}


def from_hf_generation(found: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Convert the sampling keys of a `generation_config.json`.

    Without `do_sample` none are: then the file does not say how to sample.

    Returns:
        Keys of `GenerationConfig`, and the keys of the file that these represent; those with an
        invalid value are not among them.
    """
    is_sampled = found.get("do_sample")
    if not isinstance(is_sampled, bool):
        return {}, set()
    all_names = {"temperature": "temperature", **_TRUNCATION, **_PENALTIES}
    names = all_names if is_sampled else _PENALTIES
    keys: dict[str, Any] = {} if is_sampled else {"temperature": 0.0}
    kept = {"do_sample"}
    if not is_sampled and found.get("temperature") == 0:
        kept.add("temperature")
    for ours, theirs in names.items():
        value = found.get(theirs)
        is_off = ours in _OFF_AT_0 and type(value) in (int, float) and value == 0
        if is_off or (value is not None and not GenerationConfig.problems({ours: value})):
            kept.add(theirs)
            keys.update({} if is_off else {ours: value})
    return keys, kept
