"""Text generation: sampling, streaming, batches and beam search.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch

from .arguments import NonNegativeInt, PositiveInt, checked
from .config_keys import GenerationConfig
from .config_loader import make_config
from .cuda_utils import select_device
from .errors import AGI2Error
from .formats.model_dir import TrainedModel
from .inference.beam_search import beam_search as beam_search  # also a name of this module
from .inference.beam_text import BeamText as BeamText
from .inference.beam_text import generate_beam_text as generate_beam_text
from .inference.beam_text import generate_beam_texts as generate_beam_texts
from .inference.choices import Choice, choices_of
from .inference.detokenizer import (
    StoppingCriterion,
    stopping_functions,
)
from .inference.engine import Engine
from .inference.model_runner import ModelRunner, check_prompt, max_batch_rows
from .inference.requests import (
    check_bias,
    check_tokenizer,
    checked_prompts,
    encode_prompt,
    prompt_text,
    text_request,
    with_token_ids,
)
from .inference.sampling import EndToken, sampling_config
from .inference.sequence import Sequence as Request
from .model import GPT2Model
from .tokenizer import Tokenizer


@checked
def generate_tokens(
    model: GPT2Model,
    prompt: Sequence[int],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    *,
    end_token: EndToken = None,
    vocab_size: PositiveInt | None = None,
    seed: NonNegativeInt | None = None,
    **options: Any,
) -> Generator[int, None, None]:
    """Yield new token ids one by one, up to `max_length` or before `end_token`.

    Args:
        model: evaluated without dropout; its mode is not changed. Its weights must not change
            until the generator ends: keys and values of earlier tokens are cached.
        prompt: token ids, at least one: a sequence, or a 1-D array or tensor.
        max_length: maximum number of new tokens.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample from the k most probable tokens.
        top_p: sample from the most probable tokens whose cumulative probability reaches this.
        end_token: ends the sequence; one or several.
        vocab_size: tokens to choose from, if the tokenizer has fewer than the model.
        seed: makes sampling reproducible, whatever else runs; None for a random seed.
        **options: other sampling keys of `GenerationConfig`, `logit_bias` by token id; those that
            apply to text (`stop`, `stop_at_sentence_end`) are ignored.

    Raises:
        AGI2Error: if an option is out of range, the prompt is not in the vocabulary, or the model's
            logits are not finite.
    """
    config = sampling_config(
        max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p, **options
    )
    runner = ModelRunner(model, vocab_size or model.config.vocab_size)
    check_bias(config, runner.vocab_size)
    check_prompt(prompt, runner.vocab_size, end_token)
    request = Request(prompt, config, runner.positions, end_token=end_token, seed=seed)
    return Engine(runner).stream(request)


@checked
def stream_text(
    model: GPT2Model,
    prompt: str | Sequence[int],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    stopping_criteria: Sequence[StoppingCriterion] = (),
    skip_leading_space: bool = False,
    model_seed: str = "",
    seed: NonNegativeInt | None = None,
    runner: ModelRunner | None = None,
    **options: Any,
) -> Generator[str, None, None]:
    """Stream the continuation of a prompt (text, or token ids) in pieces of complete characters.

    The pieces joined are what `generate_text` returns with `return_full_text=False`; see there for
    the arguments. With `skip_leading_space`, leading white space is stripped before stop strings
    are matched. A `runner` that is passed again reuses the KV cache for the prefix that the prompt
    shares with the previous sequence; it decodes one sequence at a time.

    Arguments are checked at the call. Any number of streams of one model may be open at once, in
    any threads, each with its own runner; the model may be in training or evaluation mode, and
    switch. Its weights must not change while a stream is open: keys and values of earlier tokens
    are cached.

    Raises:
        AGI2Error: as `generate_text`; and from the iterator if `runner` is in use.
    """
    tokenizer = check_tokenizer(tokenizer, model)
    config = sampling_config(
        max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p, **options
    )
    ids = encode_prompt(prompt, tokenizer, model_seed)
    return stream_configured(
        model,
        ids,
        config,
        tokenizer,
        stopping_criteria=stopping_criteria,
        skip_leading_space=skip_leading_space,
        seed=seed,
        runner=runner,
    )


def stream_configured(
    model: GPT2Model,
    ids: list[int],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    *,
    stopping_criteria: Sequence[StoppingCriterion] = (),
    skip_leading_space: bool = False,
    seed: int | None = None,
    runner: ModelRunner | None = None,
) -> Generator[str, None, None]:
    """Stream the continuation of a prompt's token ids as configured; see `stream_text`."""
    config = with_token_ids(config, tokenizer)
    if runner is None:
        runner = ModelRunner(model, tokenizer.vocab_size)
    elif runner.model is not model or runner.vocab_size != tokenizer.vocab_size:
        raise AGI2Error("runner is of another model or tokenizer: make one for these, or none")
    request = text_request(
        ids, config, model, tokenizer, stopping_criteria, skip_leading_space, seed=seed
    )
    return stream_request(runner, request)


def stream_request(runner: ModelRunner, request: Request) -> Generator[str, None, None]:
    """Generate a request; yield its text as soon as it cannot belong to a stop string."""
    with closing(Engine(runner).stream(request)) as tokens:
        for _ in tokens:
            yield from request.take_pieces()
    yield from request.take_pieces()


@checked
def generate_text(
    model: GPT2Model,
    prompt: str | Sequence[int],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str | None = None,
    *,
    stopping_criteria: Sequence[StoppingCriterion] = (),
    model_seed: str = "",
    seed: NonNegativeInt | None = None,
    return_full_text: bool = True,
    on_text: Callable[[str], object] | None = None,
    **options: Any,
) -> str:
    """Generate a continuation of a prompt.

    Args:
        model: evaluated without dropout; its mode is not changed.
        prompt: text, or its token ids; an empty one starts at the end-of-text token.
        max_length: maximum number of new tokens.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample from the k most probable tokens; 0, or above the vocabulary, means no limit.
        top_p: sample from the most probable tokens whose cumulative probability reaches this.
        tokenizer: the model's.
        device: moves the model there first, if given: `auto`, `cpu`, `cuda`, ...
        stopping_criteria: each is called with the continuation so far; returning true ends it.
        model_seed: text before the prompt, which is not returned.
        seed: makes sampling reproducible; None for a random seed.
        return_full_text: return prompt and continuation, or the continuation alone.
        on_text: called with each piece of the continuation as soon as it is generated.
        **options: other sampling keys of `GenerationConfig`, such as `min_p` and `stop`.

    Raises:
        AGI2Error: if an option is out of range, tokenizer and model do not match, or the model's
            logits are not finite.
    """
    if device is not None:
        model.to(select_device(str(device)))
    tokenizer = check_tokenizer(tokenizer, model)
    pieces = []
    for piece in stream_text(
        model,
        prompt,
        max_length,
        temperature,
        top_k,
        top_p,
        tokenizer,
        stopping_criteria=stopping_criteria,
        model_seed=model_seed,
        seed=seed,
        **options,
    ):
        pieces.append(piece)
        if on_text is not None:
            on_text(piece)
    continuation = "".join(pieces)
    return prompt_text(prompt, tokenizer) + continuation if return_full_text else continuation


@checked
def generate_batch(
    model: GPT2Model,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    n: int = 1,
    stopping_criteria: Sequence[StoppingCriterion] = (),
    model_seed: str = "",
    seed: NonNegativeInt | None = None,
    return_full_text: bool = True,
    **options: Any,
) -> list[list[str]]:
    """Generate `n` continuations of each of several prompts, in batches.

    A text does not depend on the rest of its batch: text `i` of a prompt is what `generate_text`
    returns for that prompt with the seed `seed + i`, up to the rounding of matrix products, which
    is rarely visible except in bfloat16 and float16. Arguments as there, and:

    Args:
        prompts: texts or their token ids, of any lengths.
        n: number of texts for each prompt; `temperature` must be above 0 if it is above 1.

    Returns:
        For each prompt its `n` texts.

    Raises:
        AGI2Error: as `generate_text`; and if `n` is above 1 in greedy decoding.
    """
    tokenizer = check_tokenizer(tokenizer, model)
    config = sampling_config(
        max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p, **options
    )
    config = with_token_ids(config, tokenizer)
    if n < 1:
        raise AGI2Error(f"n must be at least 1, not {n}")
    if n > 1 and config.is_greedy:
        raise AGI2Error(f"at temperature 0 all {n} texts would be equal: raise it, or ask for one")
    if config.speculative != "none":
        raise AGI2Error('speculative = "ngram" decodes one sequence at a time: remove it')
    given_prompts = checked_prompts(prompts)
    criteria = stopping_functions(stopping_criteria)
    seeds = [None if seed is None else seed + i for i in range(n)]
    requests = [
        text_request(ids, config, model, tokenizer, criteria, seed=each)
        for ids in [encode_prompt(prompt, tokenizer, model_seed) for prompt in given_prompts]
        for each in seeds
    ]
    Engine(ModelRunner(model, tokenizer.vocab_size), max_batch_rows(model)).run(requests)
    texts = iter([request.text for request in requests])
    starts = [prompt_text(each, tokenizer) if return_full_text else "" for each in given_prompts]
    return [[start + next(texts) for _ in range(n)] for start in starts]


@checked
def generate_choices(
    model: GPT2Model,
    prompt: str | Sequence[int],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    runners_up: NonNegativeInt = 4,
    model_seed: str = "",
    seed: NonNegativeInt | None = None,
    **options: Any,
) -> list[Choice]:
    """Generate a continuation of a prompt, with the probability of each token.

    Arguments as in `generate_text`, whose continuation is the choices' texts joined, and:

    Args:
        runners_up: number of alternatives to return for each token.

    Returns:
        One choice for each token.
    """
    tokenizer = check_tokenizer(tokenizer, model)
    config = sampling_config(
        max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p, **options
    )
    config = with_token_ids(config, tokenizer)
    if config.speculative != "none":
        raise AGI2Error('speculative = "ngram" gives no probabilities: remove it')
    ids = encode_prompt(prompt, tokenizer, model_seed)
    request = text_request(ids, config, model, tokenizer, seed=seed, top=runners_up + 1)
    Engine(ModelRunner(model, tokenizer.vocab_size)).run([request])
    return choices_of(request, tokenizer, runners_up)


def stream_as_configured(
    trained: TrainedModel, prompt: str | Sequence[int], changes: Mapping[str, Any]
) -> Generator[str, None, None]:
    """Stream a continuation as a trained model's configuration specifies, with `changes` to it.

    Raises:
        AGI2Error: if a key is invalid, or `quantize` is not what the model was prepared with.
    """
    keys = {key: trained.config[key] for key in trained.config.model_fields_set}
    config = make_config({**keys, **changes}, "generation", "generate")
    if config.quantize not in ("none", trained.model.prepared):
        raise AGI2Error(
            f'quantize = "{config.quantize}": call prepare_for_generation(trained.model, '
            f'"{config.quantize}") first, or pass quantize="none"'
        )
    ids = encode_prompt(prompt, trained.tokenizer, config.model_seed)
    return stream_configured(
        trained.model, ids, config.generation, trained.tokenizer, seed=config.sampling_seed
    )
