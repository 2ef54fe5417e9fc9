"""`/v1/models` and `/health`: what is served, and whether it is."""

from __future__ import annotations

from typing import Literal

from starlette.responses import Response
from typing_extensions import TypedDict

from .endpoints import Call
from .errors import closing
from .models import ModelSource
from .streaming import JSONBody


class ModelCard(TypedDict):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["agi2"]
    max_model_len: int
    """Number of tokens that it can attend to."""
    chat_template: bool
    """Whether it was trained on conversations; if not, messages are turns of plain text."""
    loaded: bool
    """Whether it is in memory."""


class ModelList(TypedDict):
    """The models of a server."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(TypedDict):
    """Whether the server accepts requests."""

    status: Literal["ok"]


async def list_models(call: Call) -> Response:
    """List the models."""
    sources = call.state.models.sources.values()
    return JSONBody({"object": "list", "data": [_card(call, source) for source in sources]})


async def show_model(call: Call, model: str) -> Response:
    """Describe one model."""
    return JSONBody(_card(call, call.state.models.source(model)))


def _card(call: Call, source: ModelSource) -> ModelCard:
    return {
        "id": source.name,
        "object": "model",
        "created": source.created,
        "owned_by": "agi2",
        "max_model_len": source.config.model_positions,
        "chat_template": source.has_template,
        "loaded": call.state.models.is_loaded(source.name),
    }


async def show_health(call: Call) -> Response:
    """Say whether the server accepts requests."""
    if call.state.models.is_closed:
        raise closing()
    health: Health = {"status": "ok"}
    return JSONBody(health)
