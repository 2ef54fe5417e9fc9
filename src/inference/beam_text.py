"""Beam search from text to text; the front door is `generation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..arguments import checked
from ..config_keys import EarlyStopping
from ..model import GPT2Model
from ..tokenizer import Tokenizer
from .beam_search import search_beams
from .detokenizer import decode_until_stop, stop_condition
from .requests import check_tokenizer, encode_prompt, prompt_text, with_token_ids
from .sampling import beam_config


@checked
def generate_beam_text(
    model: GPT2Model,
    prompt: str | Sequence[int],
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    tokenizer: Tokenizer | None = None,
    *,
    return_full_text: bool = True,
    **options: Any,
) -> str:
    """Return the best continuation found by beam search; arguments as `generate_beam_texts`."""
    tokenizer = check_tokenizer(tokenizer, model)
    sizes = (beam_size, max_length, length_penalty)
    best = generate_beam_texts(model, prompt, *sizes, tokenizer, **options)[0]
    return prompt_text(prompt, tokenizer) + best.text if return_full_text else best.text


@dataclass(frozen=True)
class BeamText:
    """A continuation found by beam search."""

    text: str
    score: float
    """As in `Hypothesis`; includes the tokens of a stop string."""


@checked
def generate_beam_texts(
    model: GPT2Model,
    prompt: str | Sequence[int],
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    tokenizer: Tokenizer | None = None,
    *,
    results: int = 1,
    early_stopping: EarlyStopping = "never",
    groups: int = 1,
    diversity_penalty: float = 0.5,
    **options: Any,
) -> list[BeamText]:
    """Return the best continuations found by beam search, at most `results`, the best first.

    Args:
        model: evaluated without dropout; its mode is not changed.
        prompt: text, or its token ids; an empty one starts at the end-of-text token.
        results: at most `beam_size`.
        tokenizer: the model's.
        beam_size, max_length, length_penalty, early_stopping, groups, diversity_penalty: as in
            `beam_search`.
        **options: keys of `GenerationConfig` that do not require sampling.

    Raises:
        AGI2Error: if an option is out of range, or tokenizer and model do not match.
    """
    tokenizer = check_tokenizer(tokenizer, model)
    config = beam_config(
        options,
        max_length=max_length,
        beam_size=beam_size,
        length_penalty=length_penalty,
        beam_results=results,
        beam_early_stopping=early_stopping,
        beam_groups=groups,
        diversity_penalty=diversity_penalty,
    )
    config = with_token_ids(config, tokenizer)
    found = search_beams(
        model,
        encode_prompt(prompt, tokenizer),
        config,
        tokenizer.end_tokens,
        tokenizer.vocab_size,
        stop_condition(tokenizer, config),
    )
    texts: dict[str, float] = {}
    for hypothesis in found:
        # Hypotheses may differ only in what is cut off: the text keeps its best score.
        texts.setdefault(decode_until_stop(hypothesis.tokens, tokenizer, config), hypothesis.score)
    return [BeamText(text, score) for text, score in texts.items()][:results]
