"""What requests are refused, and with which status and key, in tables."""

import pytest

from tests.serve.clients import KEY, Client, refusal, sources
from tests.serve.test_behaviours import (
    BASE,
    CHAT,
    HELLO,
    JOIN,
    LIMIT,
    REPLY,
    SPLIT,
    TEXT,
    VECTOR,
    answer,
    body_of,
)

ONE_MODEL = (TEXT, CHAT, REPLY, VECTOR)
"""The paths whose requests must name a model."""
# What every endpoint that generates refuses, with the key that is named.
GENERATING = {
    "model": ([None, 3, ["chatty"]], "model"),
    "temperature": ([-1, "1", [], True, {}], "temperature"),
    "top_p": ([0, 1.5, "a"], "top_p"),
    "top_k": ([-1, 1.5, "a"], "top_k"),
    "seed": ([-1, 1.5, "a", 2**64], "seed"),
    "stop": (["", [""], 3, [3], ["a"] * 17, {}], "stop"),
    "logit_bias": (
        [[], [[1, 2]], {"a": 1}, {"-1": 1}, {"01": 1}, {"1": None}, {"1": 1e5}],
        "logit_bias",
    ),
    "stream": (["true", 1], "stream"),
    "stream_options": ([{}, {"include_usage": True}], "stream_options"),
    "presence_penalty": ([101, "a"], "presence_penalty"),
    "frequency_penalty": ([-101, []], "frequency_penalty"),
    "ignore_eos": ([None, 1], "ignore_eos"),
}
# What llama.cpp's server has and this one has not: refused by name, not ignored.
FOREIGN = (
    "n_predict",
    "n_probs",
    "post_sampling_probs",
    "cache_prompt",
    "id_slot",
    "mirostat",
    "dynatemp_range",
    "xtc_probability",
    "dry_multiplier",
    "samplers",
    "grammar",
    "json_schema",
    "lora",
    "return_tokens",
    "return_progress",
    "response_fields",
    "timings_per_token",
    "chat_template_kwargs",
    "t_max_predict_ms",
)
REFUSED = [
    *(
        (path, {key: value}, 400, param)
        for path in (TEXT, CHAT, REPLY)
        for key, (values, param) in GENERATING.items()
        for value in values
    ),
    *((path, {key: 1}, 400, key) for path in (TEXT, CHAT, REPLY) for key in FOREIGN),
    *((path, {"model": "gpt-4"}, 404, "model") for path in BASE),
    *((path, {"model": ...}, 400, "model") for path in ONE_MODEL),
    *((path, {LIMIT[path]: value}, 400, LIMIT[path]) for path in LIMIT for value in (-1, "a", 0.5)),
    *((path, {"n": value}, 400, "n") for path in (TEXT, CHAT) for value in (0, 129, "2")),
    *(
        (TEXT, {"prompt": prompt}, 400, "prompt")
        for prompt in (..., None, 3, {}, [], [[]], [""] * 129, ["a", 3], [1.5], [[1], "a"], [-1])
    ),
    *((TEXT, {"logprobs": value}, 400, "logprobs") for value in (-1, 21, True, "a")),
    *(
        (CHAT, {"messages": messages}, 400, param)
        for messages, param in (
            (..., "messages"),
            (None, "messages"),
            ("string", "messages"),
            ([], "messages"),
            ([123], "messages[0]"),
            ([{}], "messages[0].role"),
            ([{"role": 123}], "messages[0].role"),
            ([{"role": "robot", "content": "a"}], "messages[0].role"),
            ([{"role": "system", "content": 123}], "messages[0].content"),
            ([*HELLO, {}], "messages[1].role"),
            ([{"content": "hello"}], "messages[0].role"),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}],
                "messages[0].content",
            ),
        )
    ),
    *(
        (CHAT, {key: value}, 400, param)
        for key, value, param in (
            ("response_format", {"type": "json_object"}, "response_format.type"),
            ("response_format", {"type": "sound"}, "response_format.type"),
            ("response_format", {"type": "text", "schema": 1}, "response_format.schema"),
            ("tools", [{"type": "function", "function": {"name": "a"}}], "tools"),
            ("tool_choice", "required", "tool_choice"),
            ("logprobs", 3, "logprobs"),
            ("top_logprobs", 5, "top_logprobs"),
        )
    ),
    *(
        (REPLY, {key: value}, 400, param)
        for key, value, param in (
            ("text", {"format": {"type": "json_schema", "name": "a"}}, "text.format.name"),
            ("text", {"format": {"type": "json_object"}}, "text.format.type"),
            ("tools", [{"type": "web_search"}], "tools"),
            ("store", True, "store"),
            ("background", True, "background"),
            ("previous_response_id", "resp_1", "previous_response_id"),
            ("reasoning", {"effort": "low"}, "reasoning"),
            ("truncation", "auto", "truncation"),
            ("input", [], "input"),
            ("input", ..., "input"),
        )
    ),
    *((VECTOR, {"input": value}, 400, "input") for value in (..., [], "", [""], 3, {"content": 1})),
    *(
        (VECTOR, {"input": value}, 400, "input")
        for value in ("a" * 49, [[1] * 49], ["a", "b" * 49])
    ),
    (VECTOR, {"encoding_format": "int8"}, 400, "encoding_format"),
    (VECTOR, {"dimensions": 3}, 400, "dimensions"),
    *((SPLIT, {"content": value}, 400, "content") for value in (..., None, 3, ["a"])),
    *((JOIN, {"tokens": value}, 400, "tokens") for value in (..., None, "a", 3)),
    (JOIN, {"tokens": [-1]}, 400, "tokens[0]"),
    *(
        (path, {key: value, "stream": stream}, 400, param)
        for stream in (False, True)
        for path, key, value, param in (
            (TEXT, "prompt", "a" * 49, "prompt"),
            (TEXT, "prompt", ["a", [1] * 49], "prompt"),
            (CHAT, "messages", HELLO * 10, "messages"),
            (REPLY, "input", "a" * 60, "messages"),
        )
    ),
]


@pytest.mark.parametrize("path", BASE)
def test_refusals_have_a_status_and_the_name_of_the_key(client, path):
    for where, changes, status, param in REFUSED:
        if where == path:
            error = refusal(client.post(path, **body_of(path, **changes)), status)
            assert error["param"] == param, (changes, error)
            assert error["type"] == "invalid_request_error", changes
            assert "\n" not in error["message"], changes
    answer(client, path)  # the server is as before


OTHER = [
    ("GET", "/health", {}, 200),
    ("GET", "/v1/models", {}, 200),
    ("GET", "/v1/models/chatty", {}, 200),
    ("GET", "/metrics", {}, 200),
    ("GET", "/v1/models/none", {}, 404),
    ("GET", "/v1/none", {}, 404),
    ("GET", "/v1/completions/", {}, 404),
    ("GET", TEXT, {}, 405),
    ("PUT", TEXT, {}, 405),
    ("OPTIONS", CHAT, {}, 405),
    ("POST", "/health", {"json": {}}, 405),
    ("POST", TEXT, {"content": b"{}"}, 415),
    ("POST", TEXT, {"data": {"prompt": "a"}}, 415),
    *(
        ("POST", TEXT, {"content": content, "headers": {"Content-Type": "application/json"}}, 400)
        for content in (b"", b"{", b"[]", b"3", b"null", b'"a"', b"\xff", b'{"a": NaN}', b"[" * 999)
    ),
]


@pytest.mark.parametrize(("method", "path", "options", "status"), OTHER, ids=str)
def test_other_requests_have_a_status(client, method, path, options, status):
    response = client.send(method, path, **options)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    if status != 200:
        refusal(response, status)


AUTHORIZATIONS = [
    (None, 401),
    ("", 401),
    ("Bearer", 401),
    (f"Bearer {KEY[:-1]}", 401),
    (f"Bearer {KEY}x", 401),
    (f"Basic {KEY}", 401),
    (KEY, 401),
    (f"Bearer {KEY}", 200),
    (f"bearer {KEY}", 200),
]


def test_keys_open_all_but_the_public_paths(models):
    client = Client(sources(models, "chatty"), api_key=KEY)
    try:
        for authorization, status in AUTHORIZATIONS:
            headers = {} if authorization is None else {"Authorization": authorization}
            for path in (TEXT, CHAT, VECTOR, SPLIT):
                response = client.send("POST", path, json=body_of(path), headers=headers)
                assert response.status_code == status, (authorization, path)
            for path in ("/v1/models", "/metrics"):
                assert client.get(path, headers=headers).status_code == status
            for path in ("/health", "/openapi.json"):
                assert client.get(path, headers=headers).status_code == 200
            if status == 401:
                assert refusal(response, 401)["type"] == "authentication_error"
    finally:
        client.close()
