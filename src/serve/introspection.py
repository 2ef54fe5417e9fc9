"""How a model comes to a token: `/api/lens` and `/api/attention`, and the ids of a prompt.

The weights are those that serve requests, prepared or not: there is no second copy. A model
computes one of these at a time, in a thread beside its engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from ..inference.lens import LayerPrediction, last_attention, logit_lens
from ..inference.model_runner import check_prompt
from ..inference.requests import encode_prompt
from .bodies import Body
from .chat import as_messages, conversation_tokens
from .choices import TokenNames
from .endpoints import Call
from .errors import RequestError
from .models import ServedModel
from .schemas import ChatMessage, TokenId
from .streaming import JSONBody

_Result = TypeVar("_Result")
_DIGITS = 7
"""Decimal places of attention weights: there are layers x heads x tokens of them."""


class PromptBody(Body):
    """A request for the token ids of a prompt: of a conversation, or of text."""

    model: str
    """A name of `/v1/models`."""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)] | None = None
    """The conversation, oldest message first: the ids after which its reply is generated."""
    text: Annotated[str, Field(max_length=2**24)] | None = None
    """A text to continue."""


class PromptTokens(TypedDict):
    """The token ids of a prompt."""

    tokens: list[int]
    prefix: int
    """How many of them are the model's `model_seed`, which is put before every text."""


class TokensBody(Body):
    """A request about a token of a text."""

    model: str
    """A name of `/v1/models`."""
    tokens: Annotated[list[TokenId], Field(min_length=1)]
    """The token ids of the text."""
    position: Annotated[int, Field(ge=0)] | None = None
    """Index of the token from which the next is predicted; by default the last one."""


class LensBody(TokensBody):
    """A request for the predictions of each layer."""

    top: Annotated[int, Field(ge=1, le=50)] = 5
    """Number of tokens of each prediction."""


class NamedToken(TypedDict):
    """A token."""

    token_id: int
    token: str


class Predicted(NamedToken):
    """A token with its probability."""

    probability: float


class LayerResult(TypedDict):
    """The prediction of a layer; 0 for the embeddings."""

    layer: int
    top: list[Predicted]
    probability: float | None
    """The probability of the target, if there is one."""
    rank: int | None
    """Its rank: 1 for the most likely token."""


class LensResult(TypedDict):
    """The predictions of the token after a position, from each layer."""

    start: int
    """Index of the first token that fits into the model's positions."""
    position: int
    target: NamedToken | None
    """The token that is there, if the text does not end at the position."""
    layers: list[LayerResult]


class AttentionResult(TypedDict):
    """The attention of the token at a position."""

    start: int
    """Index of the first token that fits into the model's positions."""
    position: int
    tokens: list[str]
    """The tokens from `start` to the position."""
    weights: list[list[list[float]]]
    """Of each layer and head the weight of each of these tokens."""


async def show_prompt(call: Call, body: PromptBody) -> Response:
    """Return the token ids of a prompt, as a request with it has them."""
    if (body.messages is None) == (body.text is None):
        raise RequestError("give either messages or text", param="text")
    served = await call.model(body.model)
    prefix = 0
    if body.messages is not None:
        tokens = conversation_tokens(as_messages(body.messages), served)
    else:
        assert body.text is not None
        tokenizer, seed = served.trained.tokenizer, served.source.config.model_seed
        prefix = len(tokenizer.encode(seed))
        tokens = encode_prompt(body.text, tokenizer, seed)
    found: PromptTokens = {"tokens": tokens, "prefix": prefix}
    return JSONBody(found)


async def show_lens(call: Call, body: LensBody) -> Response:
    """Predict the token after a position from each layer: the logit lens.

    The final layer norm and the head are applied to the output of each layer. The last prediction
    is the model's own. Of a text that is longer than the model's positions the last tokens count.
    """
    served = await call.model(body.model)
    window = _Window(served, body)
    model, size = served.trained.model, served.trained.tokenizer.vocab_size
    layers = await _compute(
        served, lambda: logit_lens(model, window.tokens, body.top, window.target, size)
    )
    names = TokenNames(served.trained.tokenizer)
    found: LensResult = {
        "start": window.start,
        "position": window.position,
        "target": None if window.target is None else _named(window.target, names),
        "layers": [_layer(each, names) for each in layers],
    }
    return JSONBody(found)


async def show_attention(call: Call, body: TokensBody) -> Response:
    """Return the attention weights of the token at a position, of each layer and head.

    Of a text that is longer than the model's positions the last tokens count.
    """
    served = await call.model(body.model)
    window = _Window(served, body)
    model, size = served.trained.model, served.trained.tokenizer.vocab_size
    weights = await _compute(served, lambda: last_attention(model, window.tokens, size).tolist())
    names = TokenNames(served.trained.tokenizer)
    found: AttentionResult = {
        "start": window.start,
        "position": window.position,
        "tokens": [names.text(token) for token in window.tokens],
        "weights": [
            [[round(weight, _DIGITS) for weight in head] for head in heads] for heads in weights
        ],
    }
    return JSONBody(found)


class _Window:
    """The tokens of a request up to its position, as far as they fit into the model's positions.

    Raises:
        RequestError: if the position is behind the tokens.
        AGI2Error: if a token is not in the vocabulary.
    """

    def __init__(self, served: ServedModel, body: TokensBody) -> None:
        last = len(body.tokens) - 1
        self.position = last if body.position is None else body.position
        if self.position > last:
            raise RequestError(
                f"position {self.position} is behind the last of {last + 1} tokens",
                param="position",
            )
        check_prompt(body.tokens, served.trained.tokenizer.vocab_size)
        self.start = max(0, self.position + 1 - served.positions)
        self.tokens: Sequence[int] = body.tokens[self.start : self.position + 1]
        self.target = body.tokens[self.position + 1] if self.position < last else None


async def _compute(served: ServedModel, run: Callable[[], _Result]) -> _Result:
    """Run a computation of a model in a thread, one at a time."""
    async with served.embedding:
        return await asyncio.to_thread(run)


def _named(token: int, names: TokenNames) -> NamedToken:
    return {"token_id": token, "token": names.text(token)}


def _layer(found: LayerPrediction, names: TokenNames) -> LayerResult:
    return {
        "layer": found.layer,
        "top": [{**_named(token, names), "probability": share} for token, share in found.best],
        "probability": found.probability,
        "rank": found.rank,
    }
