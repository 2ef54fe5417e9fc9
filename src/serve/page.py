"""The endpoints that only the page needs."""

from __future__ import annotations

from .continuation import ContinuationBody, continue_reply
from .endpoints import Endpoint
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
from .page_models import PageModels, list_page_models
from .runs import CompareBody, RunComparison, RunDetails, RunList, compare_runs, list_runs, show_run
from .schemas import ChatChunk, ChatCompletion

PAGE_ENDPOINTS = (
    Endpoint("GET", "/api/models", list_page_models, result=PageModels),
    Endpoint("POST", "/api/prompt", show_prompt, PromptBody, PromptTokens),
    Endpoint("POST", "/api/continue", continue_reply, ContinuationBody, ChatCompletion, ChatChunk),
    Endpoint("POST", "/api/lens", show_lens, LensBody, LensResult),
    Endpoint("POST", "/api/attention", show_attention, TokensBody, AttentionResult),
    Endpoint("GET", "/api/runs", list_runs, result=RunList),
    Endpoint("POST", "/api/runs/compare", compare_runs, CompareBody, RunComparison),
    Endpoint("GET", "/api/runs/{run}", show_run, result=RunDetails),
)
