"""Requests: the prompts and options of the public functions, checked, as sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..arguments import convert, is_several
from ..config_keys import GenerationConfig
from ..errors import AGI2Error, safe_repr
from ..formats.model_dir import check_vocabulary
from ..model import GPT2Model
from ..tokenizer import Tokenizer
from .detokenizer import IncrementalDetokenizer, StoppingCriterion
from .model_runner import check_prompt
from .sequence import Sequence as Request


def text_request(
    ids: list[int],
    options: GenerationConfig,
    model: GPT2Model,
    tokenizer: Tokenizer,
    criteria: StoppingCriterion | Iterable[StoppingCriterion] = (),
    skip_leading_space: bool = False,
    *,
    drops_incomplete: bool = False,
    end_tokens: Iterable[int] = (),
    seed: int | None = None,
    top: int | None = None,
    named_tokens: Iterable[int] = (),
    prompt_logprobs: bool = False,
    max_new_tokens: int | None = None,
) -> Request:
    """Return a sequence that generates text.

    Args:
        ids: the prompt, from `encode_prompt`.
        options: with `logit_bias` by token id, as `with_token_ids` returns them.
        model: gives the number of positions.
        tokenizer: the model's.
        criteria: stopping criteria.
        skip_leading_space, drops_incomplete: as in `IncrementalDetokenizer`.
        end_tokens: tokens that end it, in addition to the tokenizer's.
        seed, top, named_tokens, prompt_logprobs, max_new_tokens: as in `sequence.Sequence`.

    Raises:
        AGI2Error: if a token is not in the vocabulary, or a criterion is not callable.
    """
    check_prompt(ids, tokenizer.vocab_size)
    named = list(named_tokens)
    if not all(0 <= token < tokenizer.vocab_size for token in named):
        raise AGI2Error(f"a named token is not in the vocabulary of {tokenizer.vocab_size} tokens")
    return Request(
        ids,
        options,
        model.config.max_seq_len,
        end_token=(*tokenizer.end_tokens, *end_tokens),
        seed=seed,
        detokenizer=IncrementalDetokenizer(
            tokenizer, options, criteria, skip_leading_space, drops_incomplete=drops_incomplete
        ),
        top=top,
        named_tokens=named,
        prompt_logprobs=prompt_logprobs,
        max_new_tokens=max_new_tokens,
    )


def checked_prompts(prompts: Any) -> list[str | Sequence[int]]:
    """Return the prompts of a batch as a list; raise an `AGI2Error` if they are something else."""
    if not is_several(prompts):
        raise AGI2Error(
            f"prompts must be a list of texts or of token ids, not {safe_repr(prompts)}"
        )
    if isinstance(prompts, str):
        raise AGI2Error(f"prompts must be a list of texts, not one text: [{prompts!r}]")
    return [convert(str | Sequence[int], "prompts", prompt) for prompt in prompts]


def with_token_ids(options: GenerationConfig, tokenizer: Tokenizer) -> GenerationConfig:
    """Return options with the tokens of `logit_bias` named by id.

    Raises:
        AGI2Error: if a key of `logit_bias` is not one token.
    """
    if not options.logit_bias:
        return options
    bias: dict[str | int, float] = {}
    for name, value in options.logit_bias.items():
        ids = tokenizer.encode(name) if isinstance(name, str) else [name]
        if len(ids) != 1:
            pieces = " + ".join(repr(tokenizer.decode([id])) for id in ids) or "no token"
            raise AGI2Error(f"logit_bias: {name!r} is not one token but {pieces}: name tokens")
        bias[ids[0]] = value
    options = options.model_copy(update={"logit_bias": bias})
    check_bias(options, tokenizer.vocab_size)
    return options


def check_bias(options: GenerationConfig, vocab_size: int) -> None:
    """Check that the keys of `logit_bias` are token ids below `vocab_size`."""
    for token in options.logit_bias:
        if isinstance(token, str) or not 0 <= token < vocab_size:
            raise AGI2Error(f"logit_bias: {token!r} is not a token id below {vocab_size}")


def encode_prompt(
    prompt: str | Iterable[int], tokenizer: Tokenizer, model_seed: str = ""
) -> list[int]:
    """Return the token ids of `model_seed` and a prompt; if empty, the start-of-text token."""
    if isinstance(prompt, str):
        ids = list(tokenizer.encode(model_seed + prompt))
    else:
        ids = [*tokenizer.encode(model_seed), *prompt]
    return ids or [tokenizer.start_of_text]


def prompt_text(prompt: str | Iterable[int], tokenizer: Tokenizer) -> str:
    """Return a prompt, text or token ids, as text."""
    return prompt if isinstance(prompt, str) else tokenizer.decode(list(prompt))


def check_tokenizer(tokenizer: Tokenizer | None, model: GPT2Model) -> Tokenizer:
    """Return the tokenizer; raise an `AGI2Error` if there is none, or it is not the model's."""
    if tokenizer is None:
        raise AGI2Error("a tokenizer is needed: pass the one the model was trained with")
    check_vocabulary(tokenizer, model)
    return tokenizer
