"""`/v1/completions`: continues texts."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from starlette.responses import Response

from .. import __version__
from ..inference.requests import encode_prompt
from .choices import ChoiceReader, TokenEntry, TokenNames, read_deltas
from .endpoints import Call, in_thread_if_long
from .errors import RequestError
from .models import ServedModel
from .sampling import (
    as_texts,
    check_length,
    first_seed,
    make_sequences,
    sampling_options,
    token_limit,
)
from .schemas import (
    MAX_CHOICES,
    Completion,
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
)
from .streaming import Generation, check_stream

DEFAULT_MAX_TOKENS = 16
"""As in OpenAI's API."""
FINGERPRINT = f"agi2-{__version__}"


async def create_completion(call: Call, body: CompletionBody) -> Response:
    """Continue one text or several; `n` times each."""
    check_stream(body.stream, body.stream_options)
    if body.logprob_token_ids is not None and body.logprobs is None:
        raise RequestError(
            "logprob_token_ids is only for requests with logprobs", param="logprob_token_ids"
        )
    served = await call.model(body.model)
    prompts = await in_thread_if_long(_length(body), _prompts, body, served)
    limit = token_limit(
        body.max_tokens, DEFAULT_MAX_TOKENS, call.state.settings, param="max_tokens"
    )
    seed = first_seed(body, served)
    sequences = make_sequences(
        prompts,
        body,
        served,
        sampling_options(body, served, max(1, limit)),
        seed,
        choices=body.n or 1,
        top=body.logprobs,
        max_new_tokens=limit,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    writer = _Writer(body, served, seed)
    return await call.respond(served, sequences, writer, choices=body.n or 1, stream=body.stream)


def _length(body: CompletionBody) -> int:
    """Return the number of characters of the prompts that are texts."""
    return sum(len(each) for each in as_texts(body.prompt) if isinstance(each, str))


def _prompts(body: CompletionBody, served: ServedModel) -> list[list[int]]:
    """Return the token ids of each prompt.

    Raises:
        RequestError: if one is too long, or there are too many.
        AGI2Error: if a token is not in the vocabulary.
    """
    texts = as_texts(body.prompt)
    if len(texts) * (body.n or 1) > MAX_CHOICES:
        raise RequestError(
            f"{len(texts)} prompts, each continued {body.n or 1} times, are more than the "
            f"{MAX_CHOICES} texts of one request",
            param="prompt",
        )
    prefix = served.source.config.model_seed
    if prefix and body.echo:
        raise RequestError(
            "echo does not go with this model's model_seed, which is put before every prompt",
            param="echo",
        )
    prompts = [encode_prompt(each, served.trained.tokenizer, prefix) for each in texts]
    for ids in prompts:
        check_length(ids, served, "prompt")
    return prompts


class _Writer:
    """Writes the response to one request, whole or in events."""

    def __init__(self, body: CompletionBody, served: ServedModel, seed: int) -> None:
        self._body = body
        self._tokenizer = served.trained.tokenizer
        self._names = TokenNames(self._tokenizer)
        self._choices = body.n or 1
        self._seed = seed
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def response(self, generation: Generation) -> Completion:
        """Return the response to a generation that is finished."""
        choices = []
        for index, reader in enumerate(self._readers(generation)):
            text, entries, reason = reader.read()
            prompt, prompt_entries = self._echo(reader)
            entries = [*prompt_entries, *_moved(entries, len(prompt))]
            choices.append(self._choice(index, prompt + text, entries, reason))
        return {
            **self._head(choices),
            "usage": generation.usage,
            "timings": generation.timings,
        }

    async def events(self, generation: Generation) -> AsyncIterator[tuple[str, Completion]]:
        """Yield the events of a stream."""
        readers = self._readers(generation)
        options = self._body.stream_options
        wants_usage = options is not None and options.include_usage

        def event(choices: list[CompletionChoice]) -> tuple[str, Completion]:
            head = self._head(choices)
            return "", {**head, "usage": None} if wants_usage else head

        # The prompt of a choice is before its text: its log-probabilities are complete then.
        prompts: dict[int, str] = {}
        async for index, text, entries, reason in read_deltas(generation, readers):
            prompt, prompt_entries = "", list[TokenEntry]()
            if index not in prompts:
                prompt, prompt_entries = self._echo(readers[index])
                prompts[index] = prompt
            entries = [*prompt_entries, *_moved(entries, len(prompts[index]))]
            yield event([self._choice(index, prompt + text, entries, reason)])
        if wants_usage:
            yield (
                "",
                {
                    **self._head([]),
                    "usage": generation.usage,
                    "timings": generation.timings,
                },
            )

    def _head(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._body.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def _choice(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenEntry],
        reason: FinishReason | None,
    ) -> CompletionChoice:
        return {
            "index": index,
            "text": text,
            "logprobs": None if self._body.logprobs is None else self._logprobs(entries),
            "finish_reason": reason,
            "seed": self._seed + index % self._choices,
        }

    def _echo(self, reader: ChoiceReader) -> tuple[str, list[TokenEntry]]:
        """Return the text and the tokens of a prompt, if the request asks for them."""
        if not self._body.echo:
            return "", []
        sequence = reader.sequence
        prompt = sequence.tokens[: sequence.prompt_length]
        return self._tokenizer.decode(prompt), reader.prompt_entries()

    def _readers(self, generation: Generation) -> list[ChoiceReader]:
        named = self._body.logprob_token_ids
        return [
            ChoiceReader(each, self._tokenizer, named_tokens=named, has_end=True)
            for each in generation.sequences
        ]

    def _logprobs(self, entries: Sequence[TokenEntry]) -> CompletionLogprobs:
        """Return tokens as parallel lists; of equal texts the most likely token counts."""
        text = self._names.text
        found: CompletionLogprobs = {
            "tokens": [text(each.token) for each in entries],
            "token_ids": [each.token for each in entries],
            "token_logprobs": [each.logprob for each in entries],
            "top_logprobs": [],
            "text_offset": [each.offset for each in entries],
        }
        for each in entries:
            if each.logprob is None:
                found["top_logprobs"].append(None)
                continue
            likely = each.top[: self._body.logprobs]
            own = (each.token, each.logprob)
            found["top_logprobs"].append(
                {text(token): value for token, value in reversed([*likely, own])}
            )
        if self._body.logprob_token_ids:
            found["named_logprobs"] = [dict(_by_id(each.named)) or None for each in entries]
        return found


def _by_id(logprobs: Iterable[tuple[int, float]]) -> Iterator[tuple[str, float]]:
    """Yield log-probabilities with the keys of `logit_bias`."""
    return ((str(token), logprob) for token, logprob in logprobs)


def _moved(entries: Iterable[TokenEntry], offset: int) -> list[TokenEntry]:
    """Return tokens of a text that begins after `offset` characters."""
    return [each._replace(offset=each.offset + offset) for each in entries]
