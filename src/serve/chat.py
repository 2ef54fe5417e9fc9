"""`/v1/chat/completions`: replies to conversations."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from starlette.responses import Response

from ..data.chat_context import TURN_END
from ..data.chat_template import Message
from ..inference.sequence import Sequence as Request
from .choices import ChoiceReader, TokenEntry, TokenNames, read_deltas
from .completions import FINGERPRINT
from .endpoints import Call, in_thread_if_long
from .errors import RequestError
from .models import ServedModel
from .responses_schemas import InputMessage
from .sampling import (
    check_length,
    first_seed,
    make_sequences,
    sampling_options,
    token_limit,
)
from .schemas import (
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ContentLogprob,
    Delta,
    FinishReason,
    ReplyBody,
    SamplingKeys,
)
from .settings import ServeSettings
from .streaming import Generation, check_stream


async def create_chat_completion(call: Call, body: ChatBody) -> Response:
    """Reply to a conversation, as its model's chat template has it.

    For a model without one, messages are turns of plain text, and an empty line ends a reply.
    """
    check_stream(body.stream, body.stream_options)
    check_logprobs(body)
    served = await call.model(body.model)
    seed = first_seed(body, served)
    messages = as_messages(body.messages)
    sequences = await in_thread_if_long(
        sum(len(each.content) for each in messages),
        reply_sequences,
        messages,
        body,
        served,
        call.state.settings,
        seed,
        limit=_limit(body),
        choices=body.n or 1,
        top=(body.top_logprobs or 0) if body.logprobs else None,
    )
    writer = ReplyWriter(body, served, seed)
    return await call.respond(served, sequences, writer, choices=body.n or 1, stream=body.stream)


def check_logprobs(body: ReplyBody) -> None:
    """Check that options of log-probabilities are for a request that wants them."""
    for name in ("top_logprobs", "logprob_token_ids"):
        if getattr(body, name) is not None and not body.logprobs:
            raise RequestError(f"{name} is only for logprobs = true", param=name)


def as_messages(messages: Iterable[ChatMessage | InputMessage]) -> list[Message]:
    """Return the messages of a request as the chat template has them."""
    return [
        Message("system" if each.role == "developer" else each.role, each.text) for each in messages
    ]


def _limit(body: ChatBody) -> int | None:
    """Return the maximum number of new tokens that a request gives."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(
            f"max_tokens {old} is the earlier name of max_completion_tokens {new}: give one",
            param="max_tokens",
        )
    return old if new is None else new


def reply_sequences(
    messages: Sequence[Message],
    body: SamplingKeys,
    served: ServedModel,
    settings: ServeSettings,
    seed: int,
    *,
    limit: int | None,
    param: str = "max_completion_tokens",
    choices: int = 1,
    top: int | None = None,
) -> list[Request]:
    """Return the sequences of the replies to a conversation.

    Args:
        messages: oldest first.
        body: the sampling keys of the request.
        served: its model.
        settings: limits.
        seed: of the first reply.
        limit: maximum number of new tokens; None for what the model's positions leave.
        param: the request's name of the limit.
        choices: number of replies.
        top: as in `make_sequences`.

    Raises:
        RequestError: if the conversation is too long for the model.
    """
    ids = conversation_tokens(messages, served)
    left = max(1, served.positions - len(ids))
    limit = token_limit(limit, left, settings, param=param)
    turn_end = () if served.has_template else (TURN_END,)
    options = sampling_options(body, served, limit, turn_end)
    return make_sequences(
        [ids],
        body,
        served,
        options,
        seed,
        choices=choices,
        top=top,
        end_tokens=served.chat.end_tokens,
        skip_leading_space=True,
        is_reply=True,
    )


def conversation_tokens(messages: Sequence[Message], served: ServedModel) -> list[int]:
    """Return the token ids after which the reply to a conversation is generated.

    Raises:
        RequestError: if they do not fit into the model's positions, or there is a system message
            for a model without a chat template.
    """
    template = served.chat.template
    if template is None and any(message.role == "system" for message in messages):
        raise RequestError(
            f"{served.name} has no chat template, and so no system message: send messages of the "
            "roles user and assistant",
            param="messages",
            code="no_chat_template",
        )
    ids = [token for message in messages for token in served.chat.encode(message)]
    prefix = served.source.config.model_seed
    if template is None:
        ids = served.chat.seed_tokens + ids
    else:
        if prefix and messages[0].role != "system":
            ids = served.chat.encode(Message("system", prefix)) + ids
        ids += template.reply_start
    check_length(ids, served, "messages")
    return ids


class ReplyWriter:
    """Writes the response to one request, whole or in events.

    Args:
        body: the request.
        served: its model.
        seed: of the first reply.
        is_continued: whether the replies have begun before: white space at their start is text.
    """

    def __init__(
        self, body: ReplyBody, served: ServedModel, seed: int, is_continued: bool = False
    ) -> None:
        self._body = body
        self._tokenizer = served.trained.tokenizer
        self._is_continued = is_continued
        self._names = TokenNames(self._tokenizer)
        self._seed = seed
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def response(self, generation: Generation) -> ChatCompletion:
        """Return the response to a generation that is finished."""
        choices: list[ChatChoice] = []
        for index, reader in enumerate(self._readers(generation)):
            text, entries, reason = reader.read()
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": self._logprobs(entries),
                    "finish_reason": reason,
                    "seed": self._seed + index,
                }
            )
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._body.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": generation.usage,
            "timings": generation.timings,
        }

    async def events(self, generation: Generation) -> AsyncIterator[tuple[str, ChatChunk]]:
        """Yield the events of a stream: roles, pieces of text, why each ended, perhaps usage."""
        readers = self._readers(generation)
        options = self._body.stream_options
        wants_usage = options is not None and options.include_usage

        def event(
            index: int, delta: Delta, entries: Sequence[TokenEntry], reason: FinishReason | None
        ) -> tuple[str, ChatChunk]:
            choice: ChatChunkChoice = {
                "index": index,
                "delta": delta,
                "logprobs": self._logprobs(entries) if entries else None,
                "finish_reason": reason,
                "seed": self._seed + index,
            }
            chunk = self._chunk([choice])
            return "", {**chunk, "usage": None} if wants_usage else chunk

        for index in range(len(readers)):
            yield event(index, {"role": "assistant", "content": ""}, [], None)
        async for index, text, entries, reason in read_deltas(generation, readers):
            if text or entries:
                yield event(index, {"content": text}, entries, None)
            if reason:
                yield event(index, {}, [], reason)
        if wants_usage:
            end = self._chunk([])
            yield "", {**end, "usage": generation.usage, "timings": generation.timings}

    def _readers(self, generation: Generation) -> list[ChoiceReader]:
        return [
            ChoiceReader(
                each,
                self._tokenizer,
                not self._is_continued,
                is_continued=self._is_continued,
                named_tokens=self._body.logprob_token_ids,
            )
            for each in generation.sequences
        ]

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._body.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        body = self._body
        found = content_logprobs(
            entries, self._names, body.top_logprobs or 0, bool(body.logprob_token_ids)
        )
        return {"content": found, "refusal": None}


def content_logprobs(
    entries: Sequence[TokenEntry], names: TokenNames, top: int, has_named: bool
) -> list[ContentLogprob]:
    """Return tokens of a reply with their log-probabilities.

    Args:
        entries: the tokens.
        names: their texts.
        top: number of most likely tokens to return for each.
        has_named: whether the request names tokens.
    """
    found: list[ContentLogprob] = []
    for entry in entries:
        content: ContentLogprob = {
            **names.logprob(entry.token, entry.logprob or 0.0),
            "top_logprobs": [names.logprob(*each) for each in entry.top[:top]],
        }
        if has_named:
            content["named_logprobs"] = [names.logprob(*each) for each in entry.named]
        found.append(content)
    return found
