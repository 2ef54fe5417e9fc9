"""`/v1/chat/completions`: what it returns is what `InteractivePrompt` replies."""

import pytest

from src.formats.model_dir import load_model
from src.interactive import InteractivePrompt
from tests.serve.clients import Client, refusal, sources

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def conversation(models, name, **options):
    trained = load_model(models / name, verbose=False)
    return InteractivePrompt(trained.model, 48, trained.tokenizer, **options)


@pytest.mark.parametrize("name", ["plain", "chatty"])
def test_replies_are_those_of_interactive_prompt(client, models, name):
    prompt = conversation(models, name, max_length=8, temperature=1.0, seed=3)
    messages = []
    for turn, text in enumerate(["hi", "why"]):
        messages.append({"role": "user", "content": text})
        expected = "".join(prompt.stream_message(text))
        found = client.post(
            PATH, model=name, messages=messages, max_tokens=8, temperature=1.0, seed=3 + turn
        ).json()
        message = found["choices"][0]["message"]
        assert message == {"role": "assistant", "content": expected, "refusal": None}
        messages.append({"role": "assistant", "content": prompt.messages[-1]["content"]})
    assert found["usage"]["prompt_tokens"] == prompt.last_reply.context_tokens


def test_system_message_is_that_of_interactive_prompt(client, models):
    prompt = conversation(models, "chatty", max_length=8, seed=3, system="be kind")
    expected = "".join(prompt.stream_message("hello"))
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "be kind"}, *HELLO]
        found = client.post(PATH, model="chatty", messages=messages, max_tokens=8, seed=3).json()
        assert found["choices"][0]["message"]["content"] == expected


def test_parts_of_a_message_are_joined(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    in_parts = client.post(
        PATH, model="chatty", messages=[{"role": "user", "content": parts}], seed=1
    ).json()
    whole = client.post(PATH, model="chatty", messages=HELLO, seed=1).json()
    assert in_parts["choices"] == whole["choices"]


def test_reply_fills_what_the_positions_leave(client):
    found = client.post(PATH, model="chatty", messages=HELLO, ignore_eos=True).json()
    assert found["usage"]["total_tokens"] == 48
    assert found["choices"][0]["finish_reason"] == "length"


def test_a_model_without_template_has_no_system_message(client):
    messages = [{"role": "system", "content": "be kind"}, *HELLO]
    error = refusal(client.post(PATH, model="plain", messages=messages))
    assert error["code"] == "no_chat_template"


def test_conversation_that_is_too_long_is_refused(client):
    messages = [{"role": "user", "content": "a" * 60}]
    error = refusal(client.post(PATH, model="chatty", messages=messages))
    assert error["code"] == "context_length_exceeded"
    assert "66 tokens" in error["message"]
    assert "48" in error["message"]


@pytest.fixture(scope="module")
def seeded(models):
    found = sources(models)
    changed = [
        type(each)(each.name, each.config.changed(model_seed="be kind"), each.argument)
        for each in found
    ]
    client = Client(changed)
    yield client
    client.close()


class TestModelSeed:
    @pytest.mark.parametrize("name", ["plain", "chatty"])
    def test_it_is_before_the_conversation(self, seeded, models, name):
        prompt = conversation(models, name, max_length=8, seed=3, model_seed="be kind")
        expected = "".join(prompt.stream_message("hello"))
        found = seeded.post(PATH, model=name, messages=HELLO, max_tokens=8, seed=3).json()
        assert found["choices"][0]["message"]["content"] == expected

    def test_a_system_message_replaces_it(self, seeded, client):
        messages = [{"role": "system", "content": "be rude"}, *HELLO]
        body = {"model": "chatty", "messages": messages, "seed": 3}
        assert (
            seeded.post(PATH, **body).json()["choices"]
            == client.post(PATH, **body).json()["choices"]
        )

    def test_it_is_before_a_prompt(self, seeded, client):
        first = seeded.post("/v1/completions", model="chatty", prompt="a", seed=1).json()
        second = client.post("/v1/completions", model="chatty", prompt="be kinda", seed=1).json()
        assert first["choices"] == second["choices"]

    def test_echo_is_refused(self, seeded):
        error = refusal(seeded.post("/v1/completions", model="chatty", prompt="a", echo=True))
        assert error["param"] == "echo"


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", ["plain", "chatty"])
def test_stream_is_the_whole_reply_in_pieces(client, name, n):
    body = {"model": name, "messages": HELLO, "seed": 3, "n": n, "max_tokens": 20}
    body |= {"temperature": 1.2, "logprobs": True, "top_logprobs": 2}
    whole = client.post(PATH, **body).json()["choices"]
    events = client.events(PATH, **body)
    assert {each["object"] for each in events} == {"chat.completion.chunk"}
    assert len({each["id"] for each in events}) == 1
    for choice in whole:
        parts = [
            part
            for event in events
            for part in event["choices"]
            if part["index"] == choice["index"]
        ]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in part["delta"] for part in parts[1:])
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert text == choice["message"]["content"]
        assert parts[-1]["delta"] == {}
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        streamed = [
            each for part in parts if part["logprobs"] for each in part["logprobs"]["content"]
        ]
        assert streamed == choice["logprobs"]["content"]


def test_usage_is_in_an_event_of_its_own(client):
    body = {"model": "chatty", "messages": HELLO, "max_tokens": 4, "ignore_eos": True}
    *events, last = client.events(PATH, stream_options={"include_usage": True}, **body)
    assert {each["usage"] for each in events} == {None}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert all("usage" not in each for each in client.events(PATH, **body))


def test_logprobs_have_tokens_bytes_and_the_most_likely(client):
    body = {"model": "chatty", "messages": HELLO, "seed": 1, "max_tokens": 5, "ignore_eos": True}
    found = client.post(PATH, logprobs=True, top_logprobs=3, **body).json()["choices"][0]
    content = found["logprobs"]["content"]
    assert len(content) == 5
    for each in content:
        top = [other["logprob"] for other in each["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert each["logprob"] <= top[0] <= 0
    assert bytes(b for each in content for b in each["bytes"]).decode(
        "utf-8", "replace"
    ).strip() in (found["message"]["content"], found["message"]["content"].strip())
    none = client.post(PATH, logprobs=True, **body).json()["choices"][0]["logprobs"]["content"]
    assert [each["top_logprobs"] for each in none] == [[]] * 5
    assert client.post(PATH, **body).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprob_token_ids": [2]}, "logprob_token_ids"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"functions": []}, "functions"),
        ({"store": True}, "store"),
        ({"store": 0.0}, "store"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(client, given, param):
    error = refusal(client.post(PATH, **{"model": "chatty", "messages": HELLO, **given}))
    assert error["param"] == param
    assert param.rpartition(".")[2] in error["message"]


def test_both_names_of_the_limit_may_agree(client):
    found = client.post(
        PATH,
        model="chatty",
        messages=HELLO,
        max_tokens=2,
        max_completion_tokens=2,
        ignore_eos=True,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        store=False,
        user="me",
        metadata={"a": "b"},
    ).json()
    assert found["usage"]["completion_tokens"] == 2
