"""`/tokenize` and `/detokenize` in llama.cpp's shapes, and `/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from ..inference.requests import encode_prompt
from ..model import GPT2Model
from ..nn.dropout import evaluating
from .bodies import Body
from .choices import TokenNames
from .endpoints import Call
from .errors import RequestError
from .models import ServedModel
from .sampling import as_texts, check_length
from .schemas import Text, TokenId, Usage
from .streaming import JSONBody

_MAX_INPUTS = 2048


class TokenizeBody(Body):
    """A text to tokenize."""

    content: Text
    """The text."""
    model: str | None = None
    """A name of `/v1/models`; by default the first of them."""
    add_special: bool = False
    """Whether to begin with the token from which texts begin."""
    parse_special: bool = False
    """Whether names of special tokens in the text are these tokens."""
    with_pieces: bool = False
    """Whether to return the text of each token, or its bytes if they are no text."""


class TokenPiece(TypedDict):
    """A token, and its text or bytes."""

    id: int
    piece: str | list[int]


class Tokens(TypedDict):
    """The tokens of a text."""

    tokens: list[int] | list[TokenPiece]


class DetokenizeBody(Body):
    """Tokens to turn into text."""

    tokens: list[TokenId]
    """Their ids."""
    model: str | None = None
    """A name of `/v1/models`; by default the first of them."""


class Detokenized(TypedDict):
    """The text of tokens."""

    content: str


class EmbeddingBody(Body):
    """Texts to embed."""

    model: str
    """A name of `/v1/models`."""
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1, max_length=_MAX_INPUTS),
        ]
    )
    """A text or its token ids, or several of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers, or the bytes of float32 numbers, little endian, in base64."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only the model's own number."""
    user: str | None = None
    """Accepted, and not used."""


class Embedding(TypedDict):
    """A vector of length 1."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(TypedDict):
    """The vectors of texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


async def tokenize(call: Call, body: TokenizeBody) -> Response:
    """Return the token ids of a text."""
    served = await call.model(body.model or call.state.models.first)
    tokenizer = served.trained.tokenizer
    special = tokenizer.special_tokens if body.parse_special else ()
    ids = await asyncio.to_thread(tokenizer.encode, body.content, special)
    if body.add_special:
        ids = [tokenizer.start_of_text, *ids]
    if not body.with_pieces:
        return JSONBody({"tokens": ids})
    names = TokenNames(tokenizer)
    return JSONBody({"tokens": [{"id": id, "piece": _piece(names.bytes_of(id))} for id in ids]})


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


async def detokenize(call: Call, body: DetokenizeBody) -> Response:
    """Return the text of token ids; special tokens by their names."""
    served = await call.model(body.model or call.state.models.first)
    text = served.trained.tokenizer.decode(body.tokens, skip_special_tokens=False)
    return JSONBody({"content": text})


async def create_embeddings(call: Call, body: EmbeddingBody) -> Response:
    """Embed texts: the mean of the last hidden states of their tokens, of length 1."""
    served = await call.model(body.model)
    width = served.trained.model.config.d_model
    if body.dimensions not in (None, width):
        raise RequestError(
            f"the embeddings of {served.name} have {width} dimensions", param="dimensions"
        )
    inputs = _inputs(body, served)
    data: list[Embedding] = []
    async with served.embedding:  # one text at a time: the engine needs the processor, too
        for index, ids in enumerate(inputs):
            call.check_deadline()
            vector = await asyncio.to_thread(embed, served.trained.model, ids)
            data.append(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _encoded(vector, body.encoding_format),
                }
            )
    count = sum(map(len, inputs))
    return JSONBody(
        {
            "object": "list",
            "data": data,
            "model": served.name,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )


def _inputs(body: EmbeddingBody, served: ServedModel) -> list[list[int]]:
    """Return the token ids of the texts.

    Raises:
        RequestError: if one is empty or too long.
        AGI2Error: if a token is not in the vocabulary.
    """
    texts = as_texts(body.input)
    if "" in texts:
        raise RequestError("input has an empty text", param="input")
    inputs = [encode_prompt(each, served.trained.tokenizer) for each in texts]
    for ids in inputs:
        check_length(ids, served, "input")
    return inputs


@torch.inference_mode()
def embed(model: GPT2Model, ids: list[int]) -> torch.Tensor:
    """Return the mean of the last hidden states of a text, scaled to length 1: (C,), float32."""
    with evaluating():
        hidden = model.hidden_states(torch.tensor([ids], device=model.device))
    return F.normalize(hidden[0].float().mean(dim=0), dim=0).cpu()


def _encoded(vector: torch.Tensor, encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return [float(each) for each in vector.tolist()]
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
