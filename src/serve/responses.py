"""`/v1/responses`: replies to conversations, in the shape of Open Responses. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import Response

from ..config_keys import GenerationConfig
from ..data.chat_template import Message
from .chat import as_messages, content_logprobs, reply_sequences
from .choices import ChoiceReader, TokenEntry, TokenNames, read_deltas
from .endpoints import Call, in_thread_if_long
from .errors import RequestError, as_request_error
from .models import ServedModel
from .responses_schemas import (
    OutputMessage,
    OutputText,
    ResponseBody,
    ResponseEvent,
    ResponseObject,
    ResponseUsage,
    Status,
)
from .sampling import first_seed
from .schemas import ContentLogprob, FinishReason
from .streaming import Generation, check_stream


async def create_response(call: Call, body: ResponseBody) -> Response:
    """Reply to a conversation, in the shape of Open Responses.

    Nothing is stored: each request has the whole conversation.
    """
    check_stream(body.stream, body.stream_options)
    if body.logprob_token_ids is not None and body.top is None:
        raise RequestError(
            "logprob_token_ids is only for requests with top_logprobs", param="logprob_token_ids"
        )
    served = await call.model(body.model)
    seed = first_seed(body, served)
    messages = _messages(body)
    sequences = await in_thread_if_long(
        sum(len(each.content) for each in messages),
        reply_sequences,
        messages,
        body,
        served,
        call.state.settings,
        seed,
        limit=body.max_output_tokens,
        param="max_output_tokens",
        top=body.top,
    )
    writer = _Writer(body, served, seed, sequences[0].options)
    return await call.respond(served, sequences, writer, stream=body.stream)


def _messages(body: ResponseBody) -> list[Message]:
    """Return the conversation of a request."""
    messages = [] if body.instructions is None else [Message("system", body.instructions)]
    if isinstance(body.input, str):
        return [*messages, Message("user", body.input)]
    return messages + as_messages(body.input)


class _Writer:
    """Writes the response to one request, whole or in events."""

    def __init__(
        self, body: ResponseBody, served: ServedModel, seed: int, options: GenerationConfig
    ) -> None:
        self._body = body
        self._tokenizer = served.trained.tokenizer
        self._names = TokenNames(self._tokenizer)
        self._seed = seed
        self._options = options
        self._id = f"resp_{secrets.token_hex(24)}"
        self._item_id = f"msg_{secrets.token_hex(24)}"
        self._created = int(time.time())
        self._count = 0

    def response(self, generation: Generation) -> ResponseObject:
        """Return the response to a generation that is finished."""
        text, entries, reason = self._reader(generation).read()
        return self._finished(text, self._logprobs(entries), reason, generation)

    def _reader(self, generation: Generation) -> ChoiceReader:
        return ChoiceReader(
            generation.sequences[0],
            self._tokenizer,
            skip_leading_space=True,
            named_tokens=self._body.logprob_token_ids,
        )

    def _logprobs(self, entries: Sequence[TokenEntry]) -> list[ContentLogprob]:
        """Return tokens with their log-probabilities; none if the request does not ask for them."""
        if self._body.top is None:
            return []
        return content_logprobs(
            entries, self._names, self._body.top, bool(self._body.logprob_token_ids)
        )

    def _finished(
        self,
        text: str,
        logprobs: list[ContentLogprob],
        reason: FinishReason | None,
        generation: Generation,
    ) -> ResponseObject:
        """Return the response whose text is complete."""
        is_cut = reason == "length"
        response = self._response()
        status: Status = "incomplete" if is_cut else "completed"
        response["status"] = status
        response["completed_at"] = None if is_cut else int(time.time())
        response["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        response["output"] = [self._item(status, [_part(text, logprobs)])]
        response["usage"] = _usage(generation)
        return response

    async def events(self, generation: Generation) -> AsyncIterator[tuple[str, ResponseEvent]]:
        """Yield the events of a stream; the last has the whole response, or what has failed."""
        item: dict[str, Any] = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        yield self._event("created", response=self._response())
        yield self._event("in_progress", response=self._response())
        yield self._event("output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("content_part.added", **item, part=_part("", []))
        text, logprobs = "", list[ContentLogprob]()
        reason: FinishReason | None = None
        try:
            async for _, piece, entries, ended in read_deltas(
                generation, [self._reader(generation)]
            ):
                reason = ended
                found = self._logprobs(entries)
                text, logprobs = text + piece, logprobs + found
                if piece or found:
                    yield self._event("output_text.delta", **item, delta=piece, logprobs=found)
        except Exception as error:
            yield self._event("failed", response=self._failed(error))
            return
        yield self._event("output_text.done", **item, text=text, logprobs=logprobs)
        yield self._event("content_part.done", **item, part=_part(text, logprobs))
        response = self._finished(text, logprobs, reason, generation)
        yield self._event("output_item.done", output_index=0, item=response["output"][0])
        yield self._event(response["status"], response=response)

    def _event(self, kind: str, **keys: Any) -> tuple[str, ResponseEvent]:
        name, number = f"response.{kind}", self._count
        self._count += 1
        return name, {"type": name, "sequence_number": number, **keys}  # type: ignore[typeddict-item]

    def _failed(self, error: Exception) -> ResponseObject:
        found = as_request_error(error)
        response = self._response()
        response["status"] = "failed"
        response["error"] = {"code": found.code or "server_error", "message": str(found)}
        return response

    def _item(self, status: Status, content: list[OutputText]) -> OutputMessage:
        return {
            "type": "message",
            "id": self._item_id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self) -> ResponseObject:
        """Return the response before its text."""
        body, options = self._body, self._options
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": "in_progress",
            "incomplete_details": None,
            "error": None,
            "model": body.model,
            "instructions": body.instructions,
            "output": [],
            "usage": None,
            "max_output_tokens": body.max_output_tokens,
            "temperature": options.temperature,
            "top_p": 1.0 if options.top_p is None else options.top_p,
            "presence_penalty": options.presence_penalty,
            "frequency_penalty": options.frequency_penalty,
            "top_logprobs": body.top_logprobs or 0,
            "seed": self._seed,
            "text": {"format": {"type": "text"}},
            "metadata": body.metadata or {},
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
            "user": body.user,
            "store": False,
            "previous_response_id": None,
            "background": False,
            "truncation": "disabled",
            "tools": [],
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "max_tool_calls": body.max_tool_calls,
            "reasoning": None,
            "service_tier": "default",
        }


def _part(text: str, logprobs: list[ContentLogprob]) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(generation: Generation) -> ResponseUsage:
    return {
        "input_tokens": generation.prompt_tokens,
        "input_tokens_details": {"cached_tokens": generation.cached_tokens},
        "output_tokens": generation.new_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": generation.prompt_tokens + generation.new_tokens,
    }
