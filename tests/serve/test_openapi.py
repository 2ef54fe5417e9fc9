"""The OpenAPI description: the bodies and the events of real responses are as it says."""

import pytest

BODIES = {
    "/v1/completions": {"prompt": "ab"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/api/continue": {"tokens": [1, 2]},
}


@pytest.fixture(scope="module")
def description(client):
    return client.get("/openapi.json").json()


def content_of(description, path):
    """The media types of the result of a POST, each with its schema."""
    content = description["paths"][path]["post"]["responses"]["200"]["content"]
    return {kind: each["schema"] for kind, each in content.items()}


def check(value, schema, components):
    """Check the keys of an object: the required ones are there, and it has no others."""
    schema = components[schema["$ref"].rpartition("/")[2]]
    assert set(schema["required"]) <= set(value) <= set(schema["properties"])


def test_every_stream_has_a_body_here(description):
    streams = {
        path
        for path, methods in description["paths"].items()
        if "post" in methods and "text/event-stream" in content_of(description, path)
    }
    assert streams == set(BODIES)


@pytest.mark.parametrize("path", BODIES)
def test_results_and_events_are_as_described(client, description, path):
    body = {"model": "chatty", **BODIES[path]}
    content, components = content_of(description, path), description["components"]["schemas"]
    check(client.post(path, **body).json(), content["application/json"], components)
    event = content["text/event-stream"]
    assert event["required"] == ["data"]
    for data in client.events(path, **body):
        check(data, event["properties"]["data"]["contentSchema"], components)
