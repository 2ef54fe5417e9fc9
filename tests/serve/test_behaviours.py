"""The behaviours that the tests of llama.cpp's server check, in tables; on one model of bytes."""

import asyncio
import itertools

import httpx
import pytest

from tests.serve.clients import ADDRESS, Client, sources, wait_until
from tests.tiny_models import byte_tokenizer

TEXT, CHAT, REPLY = "/v1/completions", "/v1/chat/completions", "/v1/responses"
VECTOR, SPLIT, JOIN = "/v1/embeddings", "/tokenize", "/detokenize"
HELLO = [{"role": "user", "content": "hello"}]
BYTES = byte_tokenizer()
"""Its tokens are those of the model; they are bytes."""
HELLO_IDS = BYTES.encode("hello")
BASE = {
    TEXT: {"prompt": "hello", "max_tokens": 6, "seed": 1},
    CHAT: {"messages": HELLO, "max_tokens": 6, "seed": 1},
    REPLY: {"input": "hello", "max_output_tokens": 6, "seed": 1},
    VECTOR: {"input": "hello"},
    SPLIT: {"content": "hello"},
    JOIN: {"tokens": HELLO_IDS},
}
LIMIT = {TEXT: "max_tokens", CHAT: "max_completion_tokens", REPLY: "max_output_tokens"}
LONG = {"ignore_eos": True}


@pytest.fixture(scope="module")
def client(models):
    client = Client(sources(models, "chatty"))
    yield client
    client.close()


def body_of(path, **changes):
    """A body that is accepted, with changes; a key that is `...` is left out."""
    body = {"model": "chatty"} | BASE[path] | changes
    return {key: value for key, value in body.items() if value is not ...}


def answer(client, path, **changes):
    response = client.post(path, **body_of(path, **changes))
    assert response.status_code == 200, response.text
    return response.json()


def at(value, place):
    """What is at a place of JSON: `choices.0.text`."""
    for part in place.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


def text_of(found):
    """The first text of a response of any endpoint."""
    if found["object"] == "response":
        return found["output"][0]["content"][0]["text"]
    choice = found["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


ANSWERS = {
    "completion: object, model and fingerprint": (
        TEXT,
        {},
        {"object": "text_completion", "model": "chatty"},
    ),
    "completion: it ends at the limit": (TEXT, LONG, {"choices.0.finish_reason": "length"}),
    "completion: usage": (
        TEXT,
        LONG,
        {"usage.prompt_tokens": 5, "usage.completion_tokens": 6, "usage.total_tokens": 11},
    ),
    "completion: timings": (TEXT, LONG, {"timings.predicted_n": 6}),
    "completion: only the prompt": (
        TEXT,
        {"max_tokens": 0, "echo": True},
        {"choices.0.text": "hello", "usage.completion_tokens": 0},
    ),
    "completion: beyond the positions": (
        TEXT,
        {"max_tokens": 100, **LONG},
        {"usage.completion_tokens": 100, "choices.0.finish_reason": "length"},
    ),
    "completion: as many tokens as there are positions": (
        TEXT,
        {"prompt": "a" * 48, "max_tokens": 2, **LONG},
        {"usage.prompt_tokens": 48, "usage.completion_tokens": 2},
    ),
    "completion: a prompt of several bytes a character": (
        TEXT,
        {"prompt": "媽🤗"},
        {"usage.prompt_tokens": 7},
    ),
    "completion: no log-probabilities unless asked for": (TEXT, {}, {"choices.0.logprobs": None}),
    "completion: the seed": (TEXT, {"seed": 77}, {"choices.0.seed": 77}),
    "chat: object and role": (
        CHAT,
        {},
        {"object": "chat.completion", "choices.0.message.role": "assistant"},
    ),
    "chat: it ends at the limit": (
        CHAT,
        LONG,
        {"choices.0.finish_reason": "length", "usage.completion_tokens": 6},
    ),
    "chat: the newer name of the limit": (
        CHAT,
        {"max_tokens": ..., "max_completion_tokens": 3, **LONG},
        {"usage.completion_tokens": 3},
    ),
    "chat: a conversation of several turns": (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "Book"},
                *HELLO,
                {"role": "assistant", "content": "hi"},
                *HELLO,
            ]
        },
        {"choices.0.index": 0},
    ),
    "chat: a message without text": (
        CHAT,
        {"messages": [{"role": "user", "content": ""}]},
        {"choices.0.message.role": "assistant"},
    ),
    "response: object and status at the limit": (
        REPLY,
        LONG,
        {
            "object": "response",
            "status": "incomplete",
            "incomplete_details.reason": "max_output_tokens",
            "output.0.status": "incomplete",
            "usage.output_tokens": 6,
        },
    ),
    "response: keys are returned": (
        REPLY,
        {"temperature": 0.5, "metadata": {"a": "b"}, "instructions": "be kind"},
        {"temperature": 0.5, "metadata": {"a": "b"}, "instructions": "be kind"},
    ),
    "embedding: one": (VECTOR, {}, {"object": "list", "data.0.index": 0, "usage.total_tokens": 5}),
    "embedding: several": (
        VECTOR,
        {"input": ["a", "bc", "def"]},
        {"data.2.index": 2, "usage.prompt_tokens": 6},
    ),
    "embedding: token ids": (VECTOR, {"input": [12, 34, 56]}, {"usage.prompt_tokens": 3}),
    "tokenize: the first model without a name": (SPLIT, {"model": ...}, {"tokens": HELLO_IDS}),
    "tokenize: nothing": (SPLIT, {"content": ""}, {"tokens": []}),
    "detokenize: nothing": (JOIN, {"tokens": []}, {"content": ""}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(client, case):
    path, changes, expected = ANSWERS[case]
    found = answer(client, path, **changes)
    assert {place: at(found, place) for place in expected} == expected


# Requests that are the same in other words.
SAME = {
    "the same": (TEXT, {}, {}),
    "a null is a key that is missing": (
        TEXT,
        {},
        dict.fromkeys(("top_p", "stop", "n", "logit_bias", "stream", "user", "echo", "suffix")),
    ),
    "token ids": (TEXT, {}, {"prompt": HELLO_IDS}),
    "a list of one text": (TEXT, {}, {"prompt": ["hello"]}),
    "a list of one list of ids": (TEXT, {}, {"prompt": [HELLO_IDS]}),
    "one stop string": (TEXT, {"stop": "e"}, {"stop": ["e"]}),
    "no stop strings": (TEXT, {}, {"stop": []}),
    "a stop string that does not occur": (TEXT, {}, {"stop": ["a string that never occurs"]}),
    "no bias": (TEXT, {}, {"logit_bias": {}}),
    "a bias of 0": (TEXT, {}, {"logit_bias": {"1": 0}}),
    "greedy decoding with any seed": (TEXT, {"temperature": 0}, {"temperature": 0, "seed": 1}),
    "one token to sample from": (TEXT, {"temperature": 0}, {"top_k": 1}),
    "parts of a message": (
        CHAT,
        {},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}],
                }
            ]
        },
    ),
    "the name of a user": (CHAT, {}, {"messages": [{**HELLO[0], "name": "me"}], "user": "me"}),
    "an input that is a message": (REPLY, {}, {"input": HELLO}),
    "instructions are a system message": (
        REPLY,
        {"instructions": "Book"},
        {"input": [{"role": "system", "content": "Book"}, *HELLO]},
    ),
}
DIFFERENT = {
    **{
        f"seed {seed}": (path, {"seed": 0, **LONG}, {"seed": seed, **LONG})
        for path, seed in zip((TEXT, CHAT, REPLY), (1, 2, 3), strict=True)
    },
    "the prompt": (TEXT, LONG, {"prompt": "hellp", **LONG}),
    "an earlier turn": (
        CHAT,
        LONG,
        {"messages": [{"role": "system", "content": "a"}, *HELLO], **LONG},
    ),
    "the role": (
        CHAT,
        {"max_tokens": 30},
        {"max_tokens": 30, "messages": [{"role": "assistant", "content": "hello"}]},
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_same_requests_have_the_same_text(client, case):
    path, first, second = SAME[case]
    assert text_of(answer(client, path, **first)) == text_of(answer(client, path, **second))


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_requests_have_different_texts(client, case):
    path, first, second = DIFFERENT[case]
    assert text_of(answer(client, path, **first)) != text_of(answer(client, path, **second))


@pytest.mark.parametrize("path", [TEXT, CHAT, REPLY])
def test_biased_tokens_never_occur(client, path):
    letters = "aeiou"
    bias = {str(token): -10_000 for token in answer(client, SPLIT, content=letters)["tokens"]}
    limit = {LIMIT[path]: 30, "max_tokens": ...} if path == CHAT else {LIMIT[path]: 30}
    without = {seed: text_of(answer(client, path, seed=seed, **limit)) for seed in range(8)}
    assert any(letter in text for text in without.values() for letter in letters)
    for seed in without:
        text = text_of(answer(client, path, seed=seed, logit_bias=bias, **limit))
        assert not set(letters) & set(text)


STREAMS = [
    {},
    LONG,
    {"n": 3},
    {"n": 2, "stop": ["e", "t"]},
    {"temperature": 0},
    {"stream_options": {"include_usage": True}},
    {"logprobs": 3},
    {"logprobs": 0, "stop": "o"},
    {"logprobs": 2, "n": 2, "stream_options": {"include_usage": True}},
    {"logit_bias": {str(token): 60 for token in BYTES.encode("é")}, "max_tokens": 20},
]


def chat_form(changes):
    """The keys of a completion as those of a chat request."""
    changes = dict(changes)
    if "logprobs" in changes:
        changes |= {"logprobs": True, "top_logprobs": changes["logprobs"]}
    return changes


@pytest.mark.parametrize("changes", STREAMS, ids=str)
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_stream_is_the_whole_response_in_events(client, path, changes):
    changes = chat_form(changes) if path == CHAT else changes
    whole = answer(client, path, **{**changes, "stream_options": ...})
    events = client.events(path, **body_of(path, **changes))
    if "stream_options" in changes:
        last = events.pop()
        assert last["choices"] == []
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert last["usage"][key] == whole["usage"][key]
        assert last["timings"]["predicted_per_second"] >= 0
        assert all(event["usage"] is None for event in events)
    assert all("timings" not in event for event in events)
    assert len({event["id"] for event in events}) == 1
    assert {event["model"] for event in events} == {"chatty"}
    assert {event["system_fingerprint"] for event in events} == {whole["system_fingerprint"]}
    choices = [event["choices"][0] for event in events]
    for expected in whole["choices"]:
        check_choice([each for each in choices if each["index"] == expected["index"]], expected)


def check_choice(parts, expected):
    """Check the events of one choice against the whole one."""
    *before, last = parts
    assert {part["finish_reason"] for part in before} <= {None}
    assert last["finish_reason"] == expected["finish_reason"]
    if "message" in expected:
        first, *rest = (part["delta"] for part in parts)
        assert first == {"role": "assistant", "content": ""}
        assert not any("role" in delta for delta in rest)
        assert "content" not in rest[-1]
        text = "".join(delta.get("content", "") for delta in rest)
        assert text == expected["message"]["content"]
    else:
        assert "".join(part["text"] for part in parts) == expected["text"]
    found = [part["logprobs"] for part in parts if part["logprobs"]]
    for key, values in (expected["logprobs"] or {}).items():
        if key != "refusal":
            assert list(itertools.chain(*(each[key] for each in found))) == values, key


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_stop_strings_cut_where_they_first_occur(client, length):
    """Each token is a byte: a stop string of several characters spans as many tokens."""
    whole = text_of(answer(client, TEXT, max_tokens=20, **LONG))
    assert len(whole) > 10
    for start in range(len(whole) - length):
        stop = whole[start : start + length]
        body = {"max_tokens": 20, "stop": ["never", stop], **LONG}
        [choice] = answer(client, TEXT, **body)["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("character", ["é", "媽", "🤗"])
@pytest.mark.parametrize("seed", range(3))
def test_characters_of_several_tokens_are_whole(client, character, seed):
    bias = {str(token): 1000 for token in BYTES.encode(character)}
    body = {"max_tokens": 40, "seed": seed, "logit_bias": bias, "logprobs": 0, **LONG}
    [choice] = answer(client, TEXT, **body)["choices"]
    text = b"".join(map(BYTES.token_bytes, choice["logprobs"]["token_ids"])).decode(
        errors="replace"
    )
    assert choice["text"] == text
    assert character in text or character != "é"
    stopped = answer(client, TEXT, **body, stop=character)["choices"][0]
    assert stopped["text"] == text.partition(character)[0]
    assert stopped["finish_reason"] == ("stop" if character in text else "length")
    events = client.events(TEXT, **body_of(TEXT, **body))
    assert "".join(event["choices"][0]["text"] for event in events) == text


@pytest.mark.parametrize(("rows", "count"), [(1, 3), (2, 2), (2, 4), (4, 2), (4, 6)])
def test_rows_are_shared_by_requests(client, models, rows, count):
    """Whether there are fewer rows or more than requests, each has the text that it has alone."""
    bodies = [
        body_of(path, seed=number, stop="zz", **LONG)
        for number, path in zip(range(count), itertools.cycle([TEXT, CHAT]), strict=False)
    ]
    paths = [TEXT if "prompt" in body else CHAT for body in bodies]
    other = Client(sources(models, "chatty"), max_rows=rows, prefix_cache_bytes=0)

    async def send_all():
        sent = zip(paths, bodies, strict=True)
        return await asyncio.gather(*(other.http.post(path, json=body) for path, body in sent))

    try:
        for path, body, response in zip(paths, bodies, other.run(send_all()), strict=True):
            assert response.json()["choices"] == client.post(path, **body).json()["choices"]
        [served] = other.state.models.loaded
        assert served.engine.stats.running == served.engine.stats.waiting == 0
    finally:
        other.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [TEXT, CHAT, REPLY])
def test_a_cancelled_request_frees_its_row(client, path, stream):
    [served] = client.state.models.loaded
    limit = {LIMIT[path]: 4096, "max_tokens": ...} if path == CHAT else {LIMIT[path]: 4096}
    body = body_of(path, stream=stream, **limit, **LONG)
    before = served.engine.stats.generated_tokens

    async def cancel():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(client.app), base_url=ADDRESS
        ) as other:
            task = asyncio.create_task(other.post(path, json=body))
            while served.engine.stats.generated_tokens < before + 3:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            return task.cancelled()

    assert client.run(cancel())
    wait_until(lambda: served.engine.stats.running == 0)
    assert served.engine.stats.generated_tokens < before + 4096
    assert served.users == 0
    answer(client, path)
