"""The sampling keys of a request as `GenerationConfig`, and its sequences."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from ..config_keys import GenerationConfig
from ..inference.detokenizer import IncrementalDetokenizer
from ..inference.model_runner import check_prompt
from ..inference.requests import check_bias, with_token_ids
from ..inference.sampling import generation_options, sampling_config
from ..inference.sequence import Sequence as Request
from .errors import RequestError
from .models import ServedModel
from .schemas import SamplingKeys
from .settings import ServeSettings

# Keys of requests that are keys of the configuration, by name.
_SAME = (
    "temperature",
    "top_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop_at_sentence_end",
)
# Those of which 0 means no limit.
_ZERO_IS_NONE = ("top_k", "min_p", "no_repeat_ngram")


def sampling_options(
    body: SamplingKeys, served: ServedModel, max_length: int, turn_end: Sequence[str] = ()
) -> GenerationConfig:
    """Return the options of a request: its keys, and for those without a value the model's.

    Args:
        body: the request.
        served: its model.
        max_length: maximum number of new tokens.
        turn_end: stop strings in addition to those of the request.

    Raises:
        AGI2Error: if keys contradict each other.
        RequestError: if a token of `logit_bias` is not in the vocabulary.
    """
    options = generation_options(served.source.config)
    del options["model_seed"], options["seed"]
    changes: dict[str, Any] = {key: getattr(body, key) for key in _SAME}
    for key, value in changes.items():
        if value is not None:
            options[key] = value
    for key in _ZERO_IS_NONE:
        value = getattr(body, key)
        if value is not None:
            options[key] = value or None
    options["max_length"] = max_length
    options["min_length"] = min(options["min_length"], max_length)
    if body.min_tokens is not None:
        if body.min_tokens > max_length:
            raise RequestError(
                f"min_tokens {body.min_tokens} is above the maximum of {max_length} tokens",
                param="min_tokens",
            )
        options["min_length"] = body.min_tokens
    stop = options["stop"] if body.stop is None else body.stop
    options["stop"] = [*turn_end, *([stop] if isinstance(stop, str) else stop)]
    config = sampling_config(**options)
    if body.logit_bias is None:
        return with_token_ids(config, served.trained.tokenizer)
    bias: dict[str | int, float] = {int(key): value for key, value in body.logit_bias.items()}
    config = config.model_copy(update={"logit_bias": bias})
    check_bias(config, served.trained.tokenizer.vocab_size)
    return config


def token_limit(given: int | None, default: int, settings: ServeSettings, param: str) -> int:
    """Return the maximum number of new tokens of a request.

    Raises:
        RequestError: if it asks for more than the server allows.
    """
    if given is not None and given > settings.max_tokens:
        raise RequestError(
            f"{param} {given} is above the {settings.max_tokens} that this server allows",
            param=param,
        )
    return min(default, settings.max_tokens) if given is None else given


def as_texts(
    given: str | list[str] | list[int] | list[list[int]],
) -> list[str | Sequence[int]]:
    """Return one text or its token ids, or several of either, as a list of several."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return list(given)


def check_length(ids: Sequence[int], served: ServedModel, param: str) -> None:
    """Check that a prompt fits into the model's positions, and is of its vocabulary.

    Raises:
        RequestError: if it is too long.
        AGI2Error: if a token is not in the vocabulary.
    """
    if len(ids) > served.positions:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, the model can attend to {served.positions}: "
            "shorten it",
            param=param,
            code="context_length_exceeded",
        )
    check_prompt(ids, served.trained.tokenizer.vocab_size)


def first_seed(body: SamplingKeys, served: ServedModel) -> int:
    """Return the seed of the first text: the request's, the configured or a random one."""
    if body.seed is not None:
        return body.seed
    configured = served.source.config.sampling_seed
    return secrets.randbelow(2**31) if configured is None else configured


def make_sequences(
    prompts: Iterable[Sequence[int]],
    body: SamplingKeys,
    served: ServedModel,
    options: GenerationConfig,
    seed: int,
    *,
    choices: int = 1,
    top: int | None = None,
    end_tokens: Iterable[int] = (),
    prompt_logprobs: bool = False,
    max_new_tokens: int | None = None,
    skip_leading_space: bool = False,
    is_reply: bool = False,
    is_continued: bool = False,
) -> list[Request]:
    """Return the sequences of a request: those of each prompt one after the other.

    Args:
        prompts: token ids, checked.
        body: the request.
        served: its model.
        options: from `sampling_options`.
        seed: of the first text; text i of a prompt has `seed + i`.
        choices: number of texts for each prompt.
        top: number of most likely tokens to record for each token; None for none.
        end_tokens: tokens that end a text, in addition to the tokenizer's.
        prompt_logprobs: whether to record those of the prompt's tokens, too.
        max_new_tokens: in place of `options.max_length`; 0 only computes the prompts.
        skip_leading_space: whether to strip white space from the start of a text.
        is_reply: whether a text that is cut may be continued: it ends with a complete character.
        is_continued: whether a text begins with the rest of a character of the prompt's end.
    """
    tokenizer = served.trained.tokenizer
    ends = () if body.ignore_eos else (*tokenizer.end_tokens, *end_tokens)
    named = body.logprob_token_ids or []
    if any(token >= tokenizer.vocab_size for token in named):
        raise RequestError(
            f"logprob_token_ids must be below the vocabulary of {tokenizer.vocab_size} tokens",
            param="logprob_token_ids",
        )
    return [
        Request(
            ids,
            options,
            served.positions,
            end_token=ends,
            seed=seed + index,
            detokenizer=IncrementalDetokenizer(
                tokenizer,
                options,
                skip_leading_space=skip_leading_space,
                continues=ids if is_continued else (),
                drops_incomplete=is_reply,
            ),
            top=top,
            named_tokens=named,
            prompt_logprobs=prompt_logprobs,
            max_new_tokens=max_new_tokens,
        )
        for ids in prompts
        for index in range(choices)
    ]
