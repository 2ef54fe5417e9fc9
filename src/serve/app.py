"""The ASGI application: the table of endpoints, behind the checks of `security`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Scope

from .catalog import Health, ModelCard, ModelList, list_models, show_health, show_model
from .chat import create_chat_completion
from .completions import create_completion
from .continuation import continue_reply
from .endpoints import Endpoint, EndpointApp, State
from .errors import http_exception
from .introspection import (
    AttentionResult,
    LensBody,
    LensResult,
    PromptBody,
    PromptTokens,
    TokensBody,
    show_attention,
    show_lens,
    show_prompt,
)
from .metrics import Metrics, show_metrics
from .models import ModelRegistry, ModelSource
from .page_models import PageModels, list_page_models
from .runs import CompareBody, RunComparison, RunDetails, RunList, compare_runs, list_runs, show_run
from .schemas import ChatBody, ChatChunk, ChatCompletion, Completion, CompletionBody, ContinuationBody
from .security import Guard
from .settings import ServeSettings
from .static_files import file_endpoints

ENDPOINTS = (
    Endpoint("GET", "/health", show_health, result=Health, is_public=True),
    Endpoint("GET", "/v1/models", list_models, result=ModelList),
    Endpoint("GET", "/v1/models/{model}", show_model, result=ModelCard),
    Endpoint(
        "POST", "/v1/completions", create_completion, CompletionBody, Completion, Completion
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        ChatBody,
        ChatCompletion,
        ChatChunk,
    ),
    Endpoint("GET", "/metrics", show_metrics),
    # What only the page needs.
    Endpoint("GET", "/api/models", list_page_models, result=PageModels),
    Endpoint("POST", "/api/prompt", show_prompt, PromptBody, PromptTokens),
    Endpoint(
        "POST", "/api/continue", continue_reply, ContinuationBody, ChatCompletion, ChatChunk
    ),
    Endpoint("POST", "/api/lens", show_lens, LensBody, LensResult),
    Endpoint("POST", "/api/attention", show_attention, TokensBody, AttentionResult),
    Endpoint("GET", "/api/runs", list_runs, result=RunList),
    Endpoint("POST", "/api/runs/compare", compare_runs, CompareBody, RunComparison),
    Endpoint("GET", "/api/runs/{run}", show_run, result=RunDetails),
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
    endpoints = [*endpoints, *file_endpoints()]
    models = ModelRegistry(sources, settings)
    metrics = Metrics(lambda: models.loaded)
    state = State(settings, models, metrics)

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
