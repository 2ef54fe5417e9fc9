"""`/api/models`: what the page needs to know of the models: their sampling keys, and the ranges."""

from __future__ import annotations

import functools
from typing import Any, Literal

from starlette.responses import Response
from typing_extensions import TypedDict

from .endpoints import Call
from .models import ModelSource
from .schemas import SamplingKeys
from .streaming import JSONBody

_Kind = Literal["number", "integer", "boolean", "texts", "biases"]

# The keys that the page shows, in this order; with the key of the configuration that has the
# default, if it has another name.
_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "max_tokens": None,
    "seed": "sampling_seed",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "no_repeat_ngram": "no_repeat_ngram",
    "stop": "stop",
    "stop_at_sentence_end": "stop_at_sentence_end",
    "min_tokens": "min_length",
    "ignore_eos": None,
    "logit_bias": None,
}


class SamplingKey(TypedDict):
    """A sampling key of requests."""

    name: str
    kind: _Kind
    minimum: float | None
    """The least value, if there is one."""
    above: float | None
    """The value that it must be above, if there is one."""
    maximum: float | None
    """The greatest value, if there is one."""
    default: Any
    """What a request without the key gets; null for no limit, or a random seed."""
    description: str


class PageModel(TypedDict):
    """A model, as the page sees it."""

    name: str
    positions: int
    """Number of tokens that it can attend to."""
    chat_template: bool
    """Whether it was trained on conversations."""
    max_length: int
    """Number of new tokens of a text in the notebook."""
    sampling: list[SamplingKey]


class PageModels(TypedDict):
    """The models."""

    models: list[PageModel]


async def list_page_models(call: Call) -> Response:
    """List the models with their sampling keys: ranges, and defaults from their configurations."""
    limit = call.state.settings.max_tokens
    sources = call.state.models.sources.values()
    found: PageModels = {"models": [_describe(source, limit) for source in sources]}
    return JSONBody(found)


def _describe(source: ModelSource, max_tokens: int) -> PageModel:
    config = source.config
    return {
        "name": source.name,
        "positions": config.model_positions,
        "chat_template": source.has_template,
        "max_length": min(config.max_length, max_tokens),
        "sampling": sampling_keys(source, max_tokens),
    }


def sampling_keys(source: ModelSource, max_tokens: int) -> list[SamplingKey]:
    """Return the sampling keys of a model.

    Args:
        source: the model.
        max_tokens: maximum number of new tokens of a request.
    """
    config = source.config
    defaults = {name: None if key is None else config[key] for name, key in _KEYS.items()}
    defaults["ignore_eos"] = False
    # The tokens of a configuration's `logit_bias` are texts: those of a request replace them.
    defaults["logit_bias"] = {}
    keys = [{**_schema(name), "default": defaults[name]} for name in _KEYS]
    for key in keys:
        if key["name"] == "max_tokens":
            key["maximum"] = max_tokens
    return keys  # type: ignore[return-value]


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    """Return a key without its default: from the type of the request's key, and its docstring."""
    if name == "max_tokens":
        found: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 1}]}
        found["description"] = (
            "Maximum number of new tokens; by default what the model's positions leave, in the "
            "notebook its max_length."
        )
    else:
        found = SamplingKeys.model_json_schema()["properties"][name]
    kinds = found.get("anyOf", [found])
    kind = kinds[0]
    return {
        "name": name,
        "kind": {"stop": "texts", "logit_bias": "biases"}.get(name, kind["type"]),
        "minimum": kind.get("minimum"),
        "above": kind.get("exclusiveMinimum"),
        "maximum": kind.get("maximum"),
        "description": " ".join(found["description"].split()),
    }
