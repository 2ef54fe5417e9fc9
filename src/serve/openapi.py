"""The OpenAPI description of the endpoints, and a page that shows it without scripts."""

from __future__ import annotations

import html
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from starlette.responses import HTMLResponse, Response

from .. import __version__
from .endpoints import Call, Endpoint
from .errors import ErrorBody
from .streaming import JSONBody

_REFERENCE = "#/components/schemas/{model}"


def describe(endpoints: Sequence[Endpoint], has_key: bool) -> dict[str, Any]:
    """Return the OpenAPI description of endpoints, as JSON values.

    Args:
        endpoints: the table of the application.
        has_key: whether requests must carry a key.
    """
    types: list[Any] = [ErrorBody]
    for each in endpoints:
        types += [kind for kind in (each.body, each.result, each.event) if kind is not None]
    unique = list(dict.fromkeys(types))
    inputs = {kind for kind in unique if any(each.body is kind for each in endpoints)}
    schemas, definitions = TypeAdapter.json_schemas(
        [
            (kind, "validation" if kind in inputs else "serialization", TypeAdapter(kind))
            for kind in unique
        ],
        ref_template=_REFERENCE,
    )
    found = {kind: schema for (kind, _), schema in schemas.items()}
    paths: dict[str, dict[str, Any]] = {}
    for each in endpoints:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, found, has_key)
    components: dict[str, Any] = {"schemas": definitions.get("$defs", {})}
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AGI2",
            "version": __version__,
            "description": "Generates text with models trained by AGI2, with OpenAI's API.",
        },
        "paths": paths,
        "components": components,
    }


def _operation(endpoint: Endpoint, schemas: dict[Any, Any], has_key: bool) -> dict[str, Any]:
    description = inspect.getdoc(endpoint.handler) or ""
    content: dict[str, Any] = {}
    if endpoint.result is not None:
        content["application/json"] = {"schema": schemas[endpoint.result]}
    else:
        content[endpoint.media_type] = {"schema": {"type": "string"}}
    if endpoint.event is not None:
        content["text/event-stream"] = {"schema": _event_of(schemas[endpoint.event])}
    error = {"schema": schemas[ErrorBody]}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": description.partition("\n")[0],
        "description": description,
        "responses": {
            "200": {"description": "The result.", "content": content},
            "default": {"description": "An error.", "content": {"application/json": error}},
        },
    }
    if names := [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[endpoint.body]}},
        }
    if has_key and not endpoint.is_public:
        operation["security"] = [{"key": []}]
    return operation


def _event_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a server-sent event, as OpenAPI 3.2 describes one."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    properties = {"event": {"type": "string"}, "data": data}
    return {"type": "object", "required": ["data"], "properties": properties}


async def show_openapi(call: Call) -> Response:
    """Return the OpenAPI description of this server."""
    return JSONBody(call.state.description)


async def show_docs(call: Call) -> Response:
    """Show the endpoints and their keys in a page."""
    return HTMLResponse(_page(call.state.description))


def _page(description: Mapping[str, Any]) -> str:
    """Return the description as HTML, without scripts and styles."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>AGI2: API</title></head><body><main><h1>AGI2: API</h1>"
        '<p><a href="/openapi.json">OpenAPI description</a></p>'
    ]
    definitions = description["components"]["schemas"]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2>{method.upper()} {html.escape(path)}</h2>")
            parts.append(f"<p>{html.escape(operation['description'])}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                parts.append(_table(body["schema"], definitions))
    return "".join(parts) + "</main></body></html>"


def _table(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a table of the keys of a body."""
    schema = definitions.get(schema.get("$ref", "").rpartition("/")[2], schema)
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><th scope='row'><code>{html.escape(name)}</code>"
        f"{' (required)' if name in required else ''}</th>"
        f"<td>{html.escape(_type(value))}</td>"
        f"<td>{html.escape(value.get('description', ''))}</td></tr>"
        for name, value in schema["properties"].items()
    )
    return f"<table><thead><tr><th>key</th><th>type</th><th></th></tr></thead>{rows}</table>"


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a key in a few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "$ref" in schema:
        return "object"
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of ({_type(schema.get('items', {}))})"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return " ".join([schema.get("type", "any value"), *bounds])
