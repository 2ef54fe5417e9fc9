"""The cases of Open Responses' compliance tests that do not depend on the model's answers."""

import pytest

from tests.serve.clients import parse_events, refusal
from tests.tiny_models import byte_tokenizer

PATH = "/v1/responses"
END = str(byte_tokenizer().end_of_text)
USER = {"type": "message", "role": "user", "content": "hello"}
CASES = {
    "a message of the user": [USER],
    "a system message": [{"type": "message", "role": "system", "content": "Be a pirate."}, USER],
    "several turns": [USER, {"type": "message", "role": "assistant", "content": "hi"}, USER],
    "parts of a message": [{**USER, "content": [{"type": "input_text", "text": "hello"}]}],
}
WHOLE, NUMBER, TEXT = (int,), (int, float), (str,)
NULL = type(None)
# The keys that a response must have, and their types.
RESPONSE = {
    **dict.fromkeys(("id", "object", "status", "model", "truncation", "service_tier"), TEXT),
    **dict.fromkeys(("previous_response_id", "instructions"), (str, NULL)),
    **dict.fromkeys(("safety_identifier", "prompt_cache_key", "user"), (str, NULL)),
    **dict.fromkeys(("created_at", "top_logprobs"), WHOLE),
    **dict.fromkeys(("completed_at", "max_output_tokens", "max_tool_calls"), (int, NULL)),
    **dict.fromkeys(("top_p", "temperature", "presence_penalty", "frequency_penalty"), NUMBER),
    **dict.fromkeys(("parallel_tool_calls", "store", "background"), (bool,)),
    **dict.fromkeys(("output", "tools"), (list,)),
    **dict.fromkeys(("text", "metadata"), (dict,)),
    **dict.fromkeys(("incomplete_details", "error", "reasoning", "usage"), (dict, NULL)),
    "tool_choice": (str, dict),
}
ITEM = {"type": TEXT, "id": TEXT, "role": TEXT, "status": TEXT, "content": (list,)}
PART = {"type": TEXT, "text": TEXT, "annotations": (list,), "logprobs": (list,)}
LOGPROB = {"token": TEXT, "logprob": NUMBER, "bytes": (list,), "top_logprobs": (list,)}
USAGE = {
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), WHOLE),
    **dict.fromkeys(("input_tokens_details", "output_tokens_details"), (dict,)),
}
IN_ITEM = {"output_index": WHOLE, "item_id": TEXT, "content_index": WHOLE}
# The keys that events must have in addition to `type` and `sequence_number`.
EVENTS = {
    **{
        f"response.{kind}": {"response": (dict,)}
        for kind in ("created", "in_progress", "completed", "incomplete")
    },
    "response.output_item.added": {"output_index": WHOLE, "item": (dict,)},
    "response.output_item.done": {"output_index": WHOLE, "item": (dict,)},
    "response.content_part.added": {**IN_ITEM, "part": (dict,)},
    "response.content_part.done": {**IN_ITEM, "part": (dict,)},
    "response.output_text.delta": {**IN_ITEM, "delta": TEXT, "logprobs": (list,)},
    "response.output_text.done": {**IN_ITEM, "text": TEXT, "logprobs": (list,)},
}


def check_keys(found, expected):
    """Check that all keys are there, with values of their types."""
    assert expected.keys() <= found.keys()
    for key, types in expected.items():
        is_number = types in (WHOLE, NUMBER, (int, NULL))
        assert isinstance(found[key], types), key
        assert not (is_number and isinstance(found[key], bool)), key


def check_response(found, is_finished=True):
    check_keys(found, RESPONSE)
    assert found["object"] == "response"
    assert found["tool_choice"] in ("none", "auto", "required")
    assert found["truncation"] in ("auto", "disabled")
    assert found["text"]["format"]["type"] == "text"
    assert found["error"] is None
    if not is_finished:
        assert found["status"] == "in_progress"
        assert found["output"] == []
        return
    check_keys(found["usage"], USAGE)
    usage = found["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    check_keys(usage["input_tokens_details"], {"cached_tokens": WHOLE})
    check_keys(usage["output_tokens_details"], {"reasoning_tokens": WHOLE})
    [item] = found["output"]
    check_item(item, found["status"])


def check_item(item, status):
    check_keys(item, ITEM)
    assert item["type"] == "message"
    assert item["role"] == "assistant"
    assert item["status"] == status
    for part in item["content"]:
        check_part(part)


def check_part(part):
    check_keys(part, PART)
    assert part["type"] == "output_text"
    for each in part["logprobs"]:
        check_keys(each, LOGPROB)


def body_of(case, is_completed, **more):
    """A request whose reply ends by itself or at the limit, whatever the model is."""
    end = {"logit_bias": {END: 10_000}} if is_completed else {"ignore_eos": True}
    return {"model": "chatty", "input": CASES[case], "max_output_tokens": 8, **end, **more}


@pytest.mark.parametrize("is_completed", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_response_has_the_keys_of_the_specification(client, case, is_completed):
    response = client.post(PATH, **body_of(case, is_completed, top_logprobs=2))
    assert response.status_code == 200, response.text
    found = response.json()
    check_response(found)
    assert found["status"] == ("completed" if is_completed else "incomplete")
    assert (found["completed_at"] is None) is not is_completed
    assert (found["incomplete_details"] is None) is is_completed


@pytest.mark.parametrize("is_completed", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_events_have_the_keys_of_the_specification(client, case, is_completed):
    response = client.post(PATH, **body_of(case, is_completed, stream=True, top_logprobs=1))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parse_events(response.text)
    for event in events:
        kind = event["type"]
        check_keys(event, EVENTS[kind])
        if "response" in event:
            check_response(event["response"], event is events[-1])
        if "item" in event:
            is_done = kind.endswith("done")
            check_item(
                event["item"], events[-1]["response"]["status"] if is_done else "in_progress"
            )
        if "part" in event:
            check_part(event["part"])
        for each in event.get("logprobs", []):
            check_keys(each, LOGPROB)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == ("response.completed" if is_completed else "response.incomplete")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{"type": "function", "name": "get_weather", "parameters": {}}]}, "tools"),
        ({"input": [{**USER, "content": [{"type": "input_image", "image_url": "a"}]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "a"}]}, "input"),
    ],
    ids=str,
)
def test_what_these_models_cannot_do_is_refused_by_name(client, changes, param):
    error = refusal(client.post(PATH, **{**body_of("several turns", True), **changes}))
    assert error["param"].startswith(param)
    assert error["message"]
