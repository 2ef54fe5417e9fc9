"""`/api/continue`: continues a reply token by token, also after one that a reader has chosen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from ..data.chat_context import TURN_END
from ..inference.model_runner import check_prompt
from .chat import ReplyWriter, check_logprobs
from .endpoints import Call
from .sampling import first_seed, make_sequences, sampling_options, token_limit
from .schemas import ReplyBody, TokenId
from .streaming import check_stream


class ContinuationBody(ReplyBody):
    """A request to continue a reply that has begun, or a text."""

    tokens: Annotated[list[TokenId], Field(min_length=1)]
    """The ids of the conversation and of what the reply has so far."""
    max_tokens: Annotated[int, Field(ge=1, le=2**30)] | None = None
    """Maximum number of new tokens; by default those that the model's positions leave."""


async def continue_reply(call: Call, body: ContinuationBody) -> Response:
    """Continue a reply from its token ids; the response is that of a chat.

    It ends as a reply does. Of ids that are more than the model's positions the last ones count.
    """
    check_stream(body.stream, body.stream_options)
    check_logprobs(body)
    served = await call.model(body.model)
    check_prompt(body.tokens, served.trained.tokenizer.vocab_size)
    left = served.positions - len(body.tokens)
    default = left if left > 0 else max(1, served.positions // 2)
    limit = token_limit(body.max_tokens, default, call.state.settings, param="max_tokens")
    turn_end = () if served.has_template else (TURN_END,)
    seed = first_seed(body, served)
    sequences = make_sequences(
        [body.tokens],
        body,
        served,
        sampling_options(body, served, limit, turn_end),
        seed,
        choices=body.n or 1,
        top=(body.top_logprobs or 0) if body.logprobs else None,
        end_tokens=served.chat.end_tokens,
        is_reply=True,
        is_continued=True,
    )
    writer = ReplyWriter(body, served, seed, is_continued=True)
    return await call.respond(served, sequences, writer, choices=body.n or 1, stream=body.stream)
