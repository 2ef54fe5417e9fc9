"""The ASGI application: the table of endpoints, behind the checks of `security`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Scope

from .catalog import Health, ModelCard, ModelList, list_models, show_health, show_model
from .chat import create_chat_completion
from .completions import create_completion
from .endpoints import Endpoint, EndpointApp, State
from .errors import http_exception
from .metrics import Metrics, show_metrics
from .models import ModelRegistry, ModelSource
from .openapi import describe, show_docs, show_openapi
from .page import PAGE_ENDPOINTS
from .responses import create_response
from .responses_schemas import ResponseBody, ResponseEvent, ResponseObject
from .schemas import ChatBody, ChatChunk, ChatCompletion, Completion, CompletionBody
from .security import Guard
from .settings import ServeSettings
from .static_files import file_endpoints
from .tokens import (
    DetokenizeBody,
    Detokenized,
    EmbeddingBody,
    Embeddings,
    TokenizeBody,
    Tokens,
    create_embeddings,
    detokenize,
    tokenize,
)

ENDPOINTS = (
    Endpoint("GET", "/health", show_health, result=Health, is_public=True),
    Endpoint("GET", "/v1/models", list_models, result=ModelList),
    Endpoint("GET", "/v1/models/{model}", show_model, result=ModelCard),
    Endpoint("POST", "/v1/completions", create_completion, CompletionBody, Completion, Completion),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        ChatBody,
        ChatCompletion,
        ChatChunk,
    ),
    Endpoint("POST", "/v1/responses", create_response, ResponseBody, ResponseObject, ResponseEvent),
    Endpoint("POST", "/v1/embeddings", create_embeddings, EmbeddingBody, Embeddings),
    Endpoint("POST", "/tokenize", tokenize, TokenizeBody, Tokens),
    Endpoint("POST", "/detokenize", detokenize, DetokenizeBody, Detokenized),
    Endpoint("GET", "/metrics", show_metrics),
    *PAGE_ENDPOINTS,
    Endpoint("GET", "/openapi.json", show_openapi, result=dict[str, Any], is_public=True),
    Endpoint("GET", "/docs", show_docs, is_public=True, media_type="text/html"),
)


def create_app(
    sources: Sequence[ModelSource],
    settings: ServeSettings,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> Guard:
    """Return the application that serves models.

    Raises:
        AGI2Error: if there is no model, or two have the same name.
    """
    models = ModelRegistry(sources, settings)
    metrics = Metrics(lambda: models.loaded)
    state = State(settings, models, metrics, describe(endpoints, settings.api_key is not None))

    endpoints = [*endpoints, *file_endpoints()]  # the page's files are no part of the API

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await models.load_first()
        try:
            yield
        finally:
            await models.close(0.0)

    def observe(scope: Scope, status: int, seconds: float) -> None:
        found = scope.get("endpoint")
        path = found.endpoint.path if isinstance(found, EndpointApp) else "other"
        metrics.count_request(path, status, seconds)

    app = Starlette(
        routes=[
            Route(each.path, EndpointApp(each, state), methods=[each.method]) for each in endpoints
        ],
        exception_handlers={HTTPException: http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    public = {each.path for each in endpoints if each.is_public}
    return Guard(app, state, public, observe)
