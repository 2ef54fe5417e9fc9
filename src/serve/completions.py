"""`/v1/completions`: continues texts."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from .. import __version__
from ..inference.requests import encode_prompt
from .choices import ChoiceReader, TokenEntry, TokenNames, make_readers, read_deltas
from .endpoints import Call
from .errors import RequestError
from .models import ServedModel
from .sampling import (
    as_texts,
    check_length,
    first_seed,
    make_sequences,
    max_new_tokens,
    sampling_options,
)
from .schemas import (
    MAX_CHOICES,
    Completion,
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
)
from .streaming import EventStream, Generation, JSONBody, check_stream

DEFAULT_MAX_TOKENS = 16
"""As in OpenAI's API."""
FINGERPRINT = f"agi2-{__version__}"


async def create_completion(call: Call, body: CompletionBody) -> Response:
    """Continue one text or several; `n` times each."""
    check_stream(body.stream, body.stream_options)
    served = await call.model(body.model)
    prompts = _prompts(body, served)
    limit = max_new_tokens(
        body.max_tokens, DEFAULT_MAX_TOKENS, call.state.settings, param="max_tokens"
    )
    seed = first_seed(body, served)
    sequences = make_sequences(
        prompts,
        body,
        served,
        sampling_options(body, served, limit),
        seed,
        choices=body.n or 1,
        top=body.logprobs,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    writer = _Writer(body, served, seed)
    generation = call.generate(served, sequences, body.n or 1)
    if body.stream:
        return EventStream(writer.events(generation), call.state.settings.keep_alive)
    await generation.finish()
    return JSONBody(writer.response(generation))


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
        for index, reader in enumerate(make_readers(generation.sequences, self._tokenizer)):
            text, entries, reason = reader.read()
            prompt, prompt_entries = self._echo(reader)
            choices.append(self._choice(index, prompt + text, [*prompt_entries, *entries], reason))
        return {
            **self._head(choices),
            "usage": generation.usage,
            "timings": generation.timings,
        }

    async def events(self, generation: Generation) -> AsyncIterator[tuple[str, Completion]]:
        """Yield the events of a stream."""
        readers = make_readers(generation.sequences, self._tokenizer)
        options = self._body.stream_options
        wants_usage = options is not None and options.include_usage

        def event(choices: list[CompletionChoice]) -> tuple[str, Completion]:
            head = self._head(choices)
            return "", {**head, "usage": None} if wants_usage else head

        if self._body.echo:
            for index, reader in enumerate(readers):
                prompt, entries = self._echo(reader)
                yield event([self._choice(index, prompt, entries, None)])
        async for delta in read_deltas(generation, readers):
            yield event([self._choice(*delta)])
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
        return self._tokenizer.decode(prompt), []

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
        return found
