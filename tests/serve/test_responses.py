"""`/v1/responses`: the replies of the chat, in the shape of Open Responses."""

import re

import pytest

from src.serve.responses_schemas import ResponseObject
from tests.serve.clients import refusal

PATH = "/v1/responses"
BODY = {"model": "chatty", "seed": 3, "max_output_tokens": 12, "temperature": 1.0}
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def text_of(response):
    return response["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"input": "hello"}, [("user", "hello")]),
        (
            {"input": "hello", "instructions": "be kind"},
            [("system", "be kind"), ("user", "hello")],
        ),
        (
            {
                "input": [
                    {"type": "message", "role": "developer", "content": "be kind"},
                    {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
                ]
            },
            [("system", "be kind"), ("user", "hello")],
        ),
    ],
    ids=range(3),
)
def test_reply_is_that_of_the_chat(client, given, messages):
    found = client.post(PATH, **BODY, **given).json()
    chat = client.post(
        "/v1/chat/completions",
        model="chatty",
        messages=[{"role": role, "content": text} for role, text in messages],
        seed=3,
        temperature=1.0,
        max_tokens=12,
    ).json()
    assert text_of(found) == chat["choices"][0]["message"]["content"]
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert found["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert found.keys() == ResponseObject.__annotations__.keys()
    assert found["instructions"] == given.get("instructions")


def test_output_can_be_sent_as_input(client):
    first = client.post(PATH, **{**BODY, "max_output_tokens": 2}, input="hi").json()
    history = [
        {"role": "user", "content": "hi"},
        *first["output"],
        {"role": "user", "content": "a"},
    ]
    assert client.post(PATH, **BODY, input=history).status_code == 200


def test_a_reply_that_is_cut_is_incomplete(client):
    found = client.post(PATH, **BODY, input="hello", ignore_eos=True).json()
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["completed_at"] is None
    body = {"model": "chatty", "content": "<|end|>", "parse_special": True}
    [end] = client.post("/tokenize", **body).json()["tokens"]
    ended = client.post(PATH, **BODY, input="hello", logit_bias={str(end): 1000}).json()
    assert ended["status"] == "completed"
    assert ended["incomplete_details"] is None
    assert ended["completed_at"] >= ended["created_at"]
    assert text_of(ended) == ""


def test_what_a_request_gives_is_returned(client):
    given = {
        "metadata": {"a": "b"},
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "user": "u",
        "top_p": 0.5,
        "presence_penalty": 1,
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "tool_choice": "none",
    }
    found = client.post(
        PATH, **BODY, **given, input="a", tools=[], text={"format": {"type": "text"}}
    )
    assert {key: found.json()[key] for key in given} == given


@pytest.mark.parametrize("model", ["plain", "chatty"])
def test_stream_has_the_events_of_the_specification(client, model):
    body = {**BODY, "model": model, "input": "hello", "top_logprobs": 1}
    whole = client.post(PATH, **body).json()
    events = client.events(PATH, **body)
    kinds = [each["type"] for each in events]
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert list(dict.fromkeys(kinds)) == [*EVENTS, f"response.{whole['status']}"]
    deltas = [each for each in events if each["type"] == "response.output_text.delta"]
    assert "".join(each["delta"] for each in deltas) == text_of(whole)
    final = events[-1]["response"]
    assert final["output"][0]["content"] == whole["output"][0]["content"]
    assert events[-2]["item"] == final["output"][0]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert {each["item_id"] for each in deltas} == {final["output"][0]["id"]}


def test_logprobs_are_returned_if_they_are_asked_for(client):
    body = {**BODY, "input": "hello", "ignore_eos": True}
    assert client.post(PATH, **body).json()["output"][0]["content"][0]["logprobs"] == []
    body["include"] = ["message.output_text.logprobs"]
    body["logprob_token_ids"] = [7]
    found = client.post(PATH, **body).json()["output"][0]["content"][0]["logprobs"]
    assert len(found) == 12
    assert [each["top_logprobs"] for each in found] == [[]] * 12
    assert [each["named_logprobs"][0]["token_id"] for each in found] == [7] * 12


def test_a_failure_is_the_last_event(client, monkeypatch):
    async def fail(_):
        raise KeyError("a bug")

    monkeypatch.setattr("src.serve.streaming.Generation.wait", fail)
    last = client.events(PATH, **BODY, input="hello")[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"background": 0.0}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input"),
        ({"input": "a" * 60}, "messages"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"stream_options": {}}, "stream_options"),
        ({"n": 2}, "n"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_supported_is_refused_by_name(client, given, param):
    error = refusal(client.post(PATH, **{"model": "chatty", "input": "hello", **given}))
    assert error["param"] == param
    assert not re.search(r"\b(True|False|None)\b", error["message"])  # JSON, not Python
