"""Texts survive tokens, vectors do not depend on what is beside them, events are in order."""

import base64
import itertools
import struct

import pytest

from tests.serve.clients import parse_events, refusal
from tests.serve.test_behaviours import (
    BYTES,
    JOIN,
    LONG,
    REPLY,
    SPLIT,
    VECTOR,
    answer,
    body_of,
    text_of,
)

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


@pytest.mark.parametrize("changes", [{}, LONG, {"top_logprobs": 2}, {"temperature": 0}], ids=str)
def test_events_of_a_response_are_in_order(client, changes):
    whole = answer(client, REPLY, **changes)
    response = client.post(REPLY, stream=True, **body_of(REPLY, **changes))
    events = parse_events(response.text)
    names = [event["type"] for event in events]
    status = whole["status"]
    assert [name for name, _ in itertools.groupby(names)] == [*EVENTS, f"response.{status}"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [line for line in response.text.split("\n") if line.startswith("event:")] == [
        f"event: {name}" for name in names
    ]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    text = "".join(event["delta"] for event in events if event["type"] == EVENTS[4])
    final = events[-1]["response"]
    assert text == text_of(final) == text_of(whole)
    assert events[-4]["text"] == text
    logprobs = itertools.chain(*(each["logprobs"] for each in events if each["type"] == EVENTS[4]))
    assert list(logprobs) == final["output"][0]["content"][0]["logprobs"]
    assert final["output"][0]["content"] == whole["output"][0]["content"]


TEXTS = [
    "What is the capital of France ?",
    "unicode 媽 and emoji 🤗",
    " leading and trailing ",
    "\n\t\r\n\x00\x7f",
    "<|endoftext|>",
    "e\u0301 \u200b \u202e",
    "a" * 1000,
    "",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_survive_tokens(client, text):
    tokens = answer(client, SPLIT, content=text)["tokens"]
    assert answer(client, JOIN, tokens=tokens)["content"] == text
    special = answer(client, SPLIT, content=text, add_special=True)["tokens"]
    assert special[1:] == tokens
    pieces = answer(client, SPLIT, content=text, with_pieces=True)["tokens"]
    assert [each["id"] for each in pieces] == tokens
    found = b"".join(
        bytes(each["piece"]) if isinstance(each["piece"], list) else each["piece"].encode()
        for each in pieces
    )
    assert found.decode() == text


def test_names_of_special_tokens_are_tokens_if_asked(client):
    plain = answer(client, SPLIT, content="<|endoftext|>")["tokens"]
    special = answer(client, SPLIT, content="<|endoftext|>", parse_special=True)["tokens"]
    assert len(plain) == len("<|endoftext|>")
    assert len(special) == 1


@pytest.mark.parametrize("tokens", [[0], [255], [195], [195, 169], [259], [260], [10**6]])
def test_any_tokens_are_a_text_or_refused(client, tokens):
    response = client.post(JOIN, model="chatty", tokens=tokens)
    if response.status_code != 200:
        assert str(tokens[0]) in refusal(response)["message"]
        assert tokens[0] > 255
    else:
        assert response.json()["content"]


def test_embeddings_have_length_1_and_are_those_of_each_alone(client):
    texts = ["hello", "a much longer text of many tokens", "hello"]
    vectors = [each["embedding"] for each in answer(client, VECTOR, input=texts)["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    for text, vector in zip(texts, vectors, strict=True):
        assert sum(each**2 for each in vector) == pytest.approx(1)
        assert answer(client, VECTOR, input=text)["data"][0]["embedding"] == vector
        assert answer(client, VECTOR, input=BYTES.encode(text))["data"][0]["embedding"] == vector
        [coded] = answer(client, VECTOR, input=text, encoding_format="base64")["data"]
        data = base64.b64decode(coded["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == vector
