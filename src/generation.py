"""Text generation: sampling, streaming, batches and beam search.

B batch (rows), T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from .arguments import NonNegativeInt, PositiveInt, checked, convert
from .config_keys import EarlyStopping
from .config_loader import make_config
from .cuda_utils import select_device
from .errors import AGI2Error, safe_repr
from .formats.model_dir import TrainedModel, check_vocabulary
from .inference.beam_search import beam_search
from .inference.detokenizer import (
    IncrementalDetokenizer,
    StoppingCriterion,
    StreamDecoder,
    stop_strings,
)
from .inference.logits_processors import process_logits
from .inference.model_runner import ModelRunner, check_prompt, max_batch_rows
from .inference.sampling import (
    NO_TOKEN,
    EndToken,
    SamplingParams,
    check_beam_options,
    end_ids,
    generation_options,
    non_sampling_options,
    sample,
)
from .inference.speculative import speculate_tokens
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
        **options: other fields of `SamplingParams`, `logit_bias` by token id; those that apply to
            text (`stop`, `stop_at_sentence_end`) are ignored.

    Raises:
        AGI2Error: if an option is out of range, the prompt is not in the vocabulary, or the model's
            logits are not finite.
    """
    params = SamplingParams(
        max_length, temperature=temperature, top_k=top_k, top_p=top_p, **options
    )
    runner = ModelRunner(model, vocab_size or model.config.vocab_size)
    _check_bias(params, runner.vocab_size)
    check_prompt(prompt, runner.vocab_size, end_token)
    return _generate_ids(runner, prompt, params, end_token, seed)


def _generate_ids(
    runner: ModelRunner,
    prompt: Sequence[int],
    options: SamplingParams,
    end_token: EndToken,
    seed: int | None,
) -> Generator[int, None, None]:
    """Yield new token ids, by speculative decoding or sampling."""
    if options.speculative == "ngram":
        yield from speculate_tokens(runner, prompt, options.max_length, end_token=end_token)
        return
    with closing(_sample_tokens(runner, prompt, options, end_token, seed)) as choices:
        for token, _ in choices:
            yield token


def _sample_tokens(
    runner: ModelRunner,
    prompt: Sequence[int],
    options: SamplingParams,
    end_token: EndToken,
    seed: int | None,
) -> Generator[tuple[int, torch.Tensor], None, None]:
    """Yield new token ids, each with the model's logits (1, V) before processing."""
    check_prompt(prompt, runner.vocab_size)
    generator = random.Random(seed)
    with runner.reserved():
        logits = runner.prefill([prompt])
        for index in range(options.max_length):
            tokens = _next_tokens(runner, logits, options, len(prompt), end_token, [generator])
            token = int(tokens)
            if token in (*end_ids(end_token), NO_TOKEN):
                return
            yield token, logits
            if index + 1 < options.max_length:
                logits = runner.decode(tokens)


def _next_tokens(
    runner: ModelRunner,
    logits: torch.Tensor,
    options: SamplingParams,
    prompt_length: int,
    end_token: EndToken,
    generators: Sequence[random.Random],
) -> torch.Tensor:
    """Sample the next token of each row, (B,), each with its own random number generator."""
    if runner.is_padded and options.needs_prompt:  # logits processors must not see padding
        rows = [runner.row(index) for index in range(len(generators))]
        num_generated = runner.tokens.size(1) - prompt_length
        logits = torch.cat(
            [
                process_logits(part, row, options, row.size(1) - num_generated, end_token)
                for part, row in zip(logits.split(1), rows, strict=True)
            ]
        )
    else:
        logits = process_logits(logits, runner.tokens, options, prompt_length, end_token)
    if options.is_greedy:
        return sample(logits, None)
    return sample(logits, [each.random() for each in generators])


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
    tokenizer = _check_tokenizer(tokenizer, model)
    params = _sampling_params(tokenizer, max_length, temperature, top_k, top_p, options)
    if runner is None:
        runner = ModelRunner(model, tokenizer.vocab_size)
    elif runner.model is not model or runner.vocab_size != tokenizer.vocab_size:
        raise AGI2Error("runner is of another model or tokenizer: make one for these, or none")
    ids = _encode(prompt, tokenizer, model_seed)
    check_prompt(ids, tokenizer.vocab_size)
    detokenizer = IncrementalDetokenizer(tokenizer, params, stopping_criteria, skip_leading_space)
    return _stream(_generate_ids(runner, ids, params, tokenizer.end_tokens, seed), detokenizer)


def _stream(
    tokens: Generator[int, None, None], detokenizer: IncrementalDetokenizer
) -> Generator[str, None, None]:
    """Yield text as soon as it cannot belong to a stop string."""
    with closing(tokens):
        for token in tokens:
            piece = detokenizer.push(token)
            if piece:
                yield piece
            if detokenizer.ended:
                return
    rest = detokenizer.finish()
    if rest:
        yield rest


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
        **options: other fields of `SamplingParams`.

    Raises:
        AGI2Error: if an option is out of range, tokenizer and model do not match, or the model's
            logits are not finite.
    """
    if device is not None:
        model.to(select_device(str(device)))
    tokenizer = _check_tokenizer(tokenizer, model)
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
    return _prompt_text(prompt, tokenizer) + continuation if return_full_text else continuation


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
    returns for that prompt with the seed `seed + i`.

    Args:
        model: evaluated without dropout; its mode is not changed.
        prompts: texts or their token ids, of any lengths.
        max_length: as in `generate_text`.
        temperature: as in `generate_text`; above 0 if `n` is above 1.
        top_k: as in `generate_text`.
        top_p: as in `generate_text`.
        tokenizer: the model's.
        n: number of texts for each prompt.
        stopping_criteria: as in `generate_text`.
        model_seed: as in `generate_text`.
        seed: makes sampling reproducible; None for a random seed.
        return_full_text: return prompt and continuation, or the continuation alone.
        **options: other fields of `SamplingParams`.

    Returns:
        For each prompt its `n` texts.

    Raises:
        AGI2Error: as `generate_text`; and if `n` is above 1 in greedy decoding.
    """
    tokenizer = _check_tokenizer(tokenizer, model)
    params = _sampling_params(tokenizer, max_length, temperature, top_k, top_p, options)
    if n < 1:
        raise AGI2Error(f"n must be at least 1, not {n}")
    if n > 1 and params.is_greedy:
        raise AGI2Error(f"at temperature 0 all {n} texts would be equal: raise it, or ask for one")
    if params.speculative != "none":
        raise AGI2Error('speculative = "ngram" decodes one sequence at a time: remove it')
    if isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
        raise AGI2Error(
            f"prompts must be a list of texts or of token ids, not {safe_repr(prompts)}"
        )
    if isinstance(prompts, str):
        raise AGI2Error(f"prompts must be a list of texts, not one text: [{prompts!r}]")
    prompts = [convert(str | Sequence[int], "prompts", prompt) for prompt in prompts]
    if not prompts:
        return []
    ids = [_encode(prompt, tokenizer, model_seed) for prompt in prompts]
    for each in ids:
        check_prompt(each, tokenizer.vocab_size)
    detokenizers = [
        IncrementalDetokenizer(tokenizer, params, stopping_criteria)
        for _ in prompts
        for _ in range(n)
    ]
    generators = [
        random.Random(None if seed is None else seed + i) for _ in prompts for i in range(n)
    ]
    max_rows = max_batch_rows(model)
    rows_of_prompt = min(n, max_rows)  # texts of one prompt
    for some, start in product(
        _parts(range(len(ids)), max_rows // rows_of_prompt), range(0, n, rows_of_prompt)
    ):
        chosen = [i * n + j for i in some for j in range(start, min(n, start + rows_of_prompt))]
        _generate_rows(
            ModelRunner(model, tokenizer.vocab_size),
            [ids[i] for i in some],
            params,
            tokenizer,
            [detokenizers[row] for row in chosen],
            [generators[row] for row in chosen],
        )
    texts = [detokenizer.text for detokenizer in detokenizers]
    return [
        [
            (_prompt_text(prompt, tokenizer) if return_full_text else "") + text
            for text in texts[n * i : n * (i + 1)]
        ]
        for i, prompt in enumerate(prompts)
    ]


def _parts(numbers: range, size: int) -> list[range]:
    """Split a range into parts of at most `size` numbers."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _generate_rows(
    runner: ModelRunner,
    prompts: Sequence[Sequence[int]],
    options: SamplingParams,
    tokenizer: Tokenizer,
    detokenizers: Sequence[IncrementalDetokenizer],
    generators: Sequence[random.Random],
) -> None:
    """Generate one or more texts for each prompt, a row for each; finished rows leave the batch."""
    logits = runner.prefill(prompts)
    prompt_length = runner.tokens.size(1)
    each = len(detokenizers) // len(prompts)
    if each > 1:  # a prompt is prefilled once for all its texts
        rows = torch.arange(len(prompts), device=logits.device).repeat_interleave(each)
        runner.reorder(rows)
        logits = logits[rows]
    active = list(range(len(detokenizers)))
    for index in range(options.max_length):
        tokens = _next_tokens(
            runner,
            logits,
            options,
            prompt_length,
            tokenizer.end_tokens,
            [generators[row] for row in active],
        )
        unfinished = []
        for slot, token in enumerate(tokens.tolist()):
            detokenizer = detokenizers[active[slot]]
            if token not in (*tokenizer.end_tokens, NO_TOKEN):
                detokenizer.push(token)
                if not detokenizer.ended:
                    unfinished.append(slot)
        if not unfinished or index + 1 == options.max_length:
            break
        if len(unfinished) < len(active):
            rows_kept = torch.tensor(unfinished, device=tokens.device)
            runner.reorder(rows_kept)
            tokens = tokens[rows_kept]
            active = [active[slot] for slot in unfinished]
        logits = runner.decode(tokens)
    for detokenizer in detokenizers:
        detokenizer.finish()


@dataclass(frozen=True)
class Choice:
    """A generated token with its probability and the most probable alternatives."""

    token: int
    text: str
    """The characters that it completes; "" if the character takes more tokens."""
    probability: float
    """The model's probability of the token, before logits processors."""
    runners_up: list[tuple[int, float]]
    """The most probable other token ids with their probabilities, in descending order."""


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
    tokenizer = _check_tokenizer(tokenizer, model)
    params = _sampling_params(tokenizer, max_length, temperature, top_k, top_p, options)
    if params.speculative != "none":
        raise AGI2Error('speculative = "ngram" gives no probabilities: remove it')
    detokenizer = IncrementalDetokenizer(tokenizer, params)
    characters = StreamDecoder(tokenizer)
    choices_so_far: list[Choice] = []
    runner = ModelRunner(model, tokenizer.vocab_size)
    ids = _encode(prompt, tokenizer, model_seed)
    with closing(_sample_tokens(runner, ids, params, tokenizer.end_tokens, seed)) as choices:
        for token, logits in choices:
            probabilities = logits[0].float().softmax(dim=-1)
            best = probabilities.topk(min(runners_up + 1, probabilities.numel()))
            others = [
                (other, other_probability)
                for other, other_probability in zip(
                    best.indices.tolist(), best.values.tolist(), strict=True
                )
                if other != token
            ]
            text, probability = characters.push(token), float(probabilities[token])
            choices_so_far.append(Choice(token, text, probability, others[:runners_up]))
            detokenizer.push(token)
            if detokenizer.ended:
                break
    detokenizer.finish()
    return _truncate_choices(choices_so_far, detokenizer.text)


def _truncate_choices(choices: Sequence[Choice], text: str) -> list[Choice]:
    """Truncate choices to `text`: a prefix of their joined texts, perhaps ending in U+FFFD."""
    shown = []
    for choice in choices:
        if not text:
            break
        shown.append(replace(choice, text=text[: len(choice.text)]))
        text = text[len(choice.text) :]
    if text:  # U+FFFD for an incomplete character
        shown[-1] = replace(shown[-1], text=shown[-1].text + text)
    return shown


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
    tokenizer = _check_tokenizer(tokenizer, model)
    sizes = (beam_size, max_length, length_penalty)
    best = generate_beam_texts(model, prompt, *sizes, tokenizer, **options)[0]
    return _prompt_text(prompt, tokenizer) + best.text if return_full_text else best.text


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
        **options: those of `SamplingParams` that `sampling.beam_keys` names.

    Raises:
        AGI2Error: if an option is out of range, or tokenizer and model do not match.
    """
    tokenizer = _check_tokenizer(tokenizer, model)
    if not 1 <= results <= max(1, beam_size):
        raise AGI2Error(f"beam_results must be from 1 to beam_size {beam_size}, not {results}")
    check_beam_options(options)
    params = _sampling_params(tokenizer, max_length, 0.0, None, None, options)

    def detokenize(tokens: Sequence[int]) -> IncrementalDetokenizer:
        detokenizer = IncrementalDetokenizer(tokenizer, params)
        for token in tokens:
            detokenizer.push(token)
        return detokenizer

    hypotheses = beam_search(
        model,
        _encode(prompt, tokenizer),
        beam_size,
        max_length,
        length_penalty,
        early_stopping=early_stopping,
        groups=groups,
        diversity_penalty=diversity_penalty,
        end_token=tokenizer.end_tokens,
        vocab_size=tokenizer.vocab_size,
        is_finished=(
            (lambda tokens: detokenize(tokens).ended)
            if stop_strings(params.stop) or params.stop_at_sentence_end
            else None
        ),
        **non_sampling_options(params),
    )
    texts: dict[str, float] = {}
    for hypothesis in hypotheses:
        detokenizer = detokenize(hypothesis.tokens)
        detokenizer.finish()
        # Hypotheses may differ only in what is cut off: the text keeps its best score.
        texts.setdefault(detokenizer.text, hypothesis.score)
    return [BeamText(text, score) for text, score in texts.items()][:results]


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
    return stream_text(
        trained.model, prompt, tokenizer=trained.tokenizer, **generation_options(config)
    )


def check_options(tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
    """Check sampling options against a tokenizer, before anything is computed.

    Args:
        tokenizer: the model's.
        options: as returned by `sampling.sampling_keys`.

    Raises:
        AGI2Error: as `generate_text`.
    """
    names = ("max_length", "temperature", "top_k", "top_p")
    others = {key: value for key, value in options.items() if key not in names}
    length, temperature, top_k, top_p = (options[name] for name in names)
    _sampling_params(tokenizer, length, temperature, top_k, top_p, others)


def _sampling_params(
    tokenizer: Tokenizer,
    max_length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    others: dict[str, Any],
) -> SamplingParams:
    """Return checked sampling options, with the keys of `logit_bias` as token ids."""
    params = SamplingParams(max_length, temperature=temperature, top_k=top_k, top_p=top_p, **others)
    bias: dict[int, float] = {}
    for name, value in params.logit_bias.items():
        ids = tokenizer.encode(name) if isinstance(name, str) else [name]
        if len(ids) != 1:
            pieces = " + ".join(repr(tokenizer.decode([id])) for id in ids) or "no token"
            raise AGI2Error(f"logit_bias: {name!r} is not one token but {pieces}: name tokens")
        bias[ids[0]] = value
    params = replace(params, logit_bias=bias)
    _check_bias(params, tokenizer.vocab_size)
    return params


def _check_bias(options: SamplingParams, vocab_size: int) -> None:
    for token in options.logit_bias:
        if isinstance(token, str) or not 0 <= token < vocab_size:
            raise AGI2Error(f"logit_bias: {token!r} is not a token id below {vocab_size}")


def _encode(
    prompt: str | Sequence[int], tokenizer: Tokenizer, model_seed: str = ""
) -> Sequence[int]:
    """Return the token ids of `model_seed` and a prompt; if empty, the start-of-text token."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(model_seed + prompt)
    else:
        ids = [*tokenizer.encode(model_seed), *prompt]
    return ids or [tokenizer.start_of_text]


def _prompt_text(prompt: str | Sequence[int], tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(list(prompt))


def _check_tokenizer(tokenizer: Tokenizer | None, model: GPT2Model) -> Tokenizer:
    if tokenizer is None:
        raise AGI2Error("a tokenizer is needed: pass the one the model was trained with")
    check_vocabulary(tokenizer, model)
    return tokenizer
