"""`/v1/completions`: what it returns is what `generate_text` generates."""

import math

import pytest

from src.formats.model_dir import load_model
from src.generation import generate_text
from tests.serve.clients import refusal

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def plain(models):
    return load_model(models / "plain", verbose=False)


def generated(trained, prompt, **options):
    return generate_text(
        trained.model, prompt, tokenizer=trained.tokenizer, return_full_text=False, **options
    )


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_k": 3, "top_p": 0.9}, {"top_k": 3, "top_p": 0.9}),
        ({"min_p": 0.6}, {"min_p": 0.6}),
        ({"typical_p": 0.5}, {"typical_p": 0.5}),
        ({"presence_penalty": 2.0}, {"presence_penalty": 2.0}),
        ({"frequency_penalty": 2.0}, {"frequency_penalty": 2.0}),
        ({"repetition_penalty": 5.0}, {"repetition_penalty": 5.0}),
        ({"no_repeat_ngram": 1}, {"no_repeat_ngram": 1}),
        ({"logit_bias": {"5": 100}}, {"logit_bias": {5: 100.0}}),
        ({"min_tokens": 3}, {"min_length": 3}),
        ({"stop": "e"}, {"stop": ["e"]}),
        ({"stop": ["zzz", "a"]}, {"stop": ["zzz", "a"]}),
        ({"max_tokens": 60}, {"max_length": 60}),  # the window slides
    ],
    ids=str,
)
def test_text_is_that_of_generate_text_with_the_same_keys(client, plain, given, options):
    same = {"temperature": 1.3, "seed": 7}
    body = {"max_tokens": 30, "min_tokens": 30, **same, **given}
    expected = {"max_length": 30, "min_length": 30, **same, **options}
    response = client.post(PATH, model="plain", prompt="hello", **body).json()
    [choice] = response["choices"]
    assert choice["text"] == generated(plain, "hello", **expected)
    without = {"max_tokens": 30, "min_tokens": 30, **same}
    unchanged = client.post(PATH, model="plain", prompt="hello", **without).json()
    assert not given or choice["text"] != unchanged["choices"][0]["text"]  # the key has an effect


def test_response_has_all_that_openai_documents(client):
    response = client.post(PATH, model="plain", prompt="hello", max_tokens=5, ignore_eos=True)
    found = response.json()
    assert response.headers["content-type"] == "application/json"
    assert found["object"] == "text_completion"
    assert found["model"] == "plain"
    assert found["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": found["timings"]["cache_n"]},
    }
    assert found["timings"]["predicted_n"] == 5
    assert found["timings"]["prompt_n"] == 5 - found["timings"]["cache_n"]
    assert found["timings"]["prompt_ms"] > 0
    [choice] = found["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None


def test_default_is_16_tokens(client):
    found = client.post(PATH, model="plain", prompt="a", ignore_eos=True).json()
    assert found["usage"]["completion_tokens"] == 16


def test_seed_of_the_response_repeats_the_text(client):
    first = client.post(PATH, model="plain", prompt="a").json()["choices"][0]
    again = client.post(PATH, model="plain", prompt="a", seed=first["seed"]).json()["choices"][0]
    assert again["text"] == first["text"]


def test_choice_i_of_n_has_the_seed_plus_i(client):
    several = client.post(PATH, model="plain", prompt=["a", "b"], n=3, seed=5).json()
    assert [each["index"] for each in several["choices"]] == list(range(6))
    assert [each["seed"] for each in several["choices"]] == [5, 6, 7] * 2
    for place, prompt, seed in ((1, "a", 6), (5, "b", 7)):
        [alone] = client.post(PATH, model="plain", prompt=prompt, seed=seed).json()["choices"]
        assert several["choices"][place]["text"] == alone["text"]
    assert several["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("several", [False, True])
def test_token_ids_are_a_prompt(client, plain, several):
    ids = plain.tokenizer.encode("hello")
    by_text = client.post(PATH, model="plain", prompt="hello", seed=1).json()
    by_ids = client.post(PATH, model="plain", prompt=[ids] if several else ids, seed=1).json()
    assert by_ids["choices"] == by_text["choices"]


def test_empty_prompt_starts_a_text(client):
    found = client.post(PATH, model="plain", prompt="").json()
    assert found["usage"]["prompt_tokens"] == 1


def test_stop_string_is_not_in_the_text(client):
    whole = client.post(PATH, model="plain", prompt="ab", seed=1, max_tokens=20).json()
    text = whole["choices"][0]["text"]
    assert len(text) > 6
    found = client.post(PATH, model="plain", prompt="ab", seed=1, max_tokens=20, stop=text[3:5])
    [choice] = found.json()["choices"]
    assert choice["text"] == text[: text.index(text[3:5])]
    assert choice["finish_reason"] == "stop"


class TestStream:
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("model", ["plain", "chatty"])
    def test_pieces_joined_are_the_whole_text(self, client, model, n):
        body = {"model": model, "prompt": "abc", "seed": 3, "n": n, "max_tokens": 25}
        body |= {"temperature": 1.0, "stop": "q", "logprobs": 2}
        whole = client.post(PATH, **body).json()["choices"]
        events = client.events(PATH, **body)
        for choice in whole:
            parts = [
                part
                for event in events
                for part in event["choices"]
                if part["index"] == choice["index"]
            ]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
            assert parts[-1]["finish_reason"] == choice["finish_reason"]
            assert {part["seed"] for part in parts} == {choice["seed"]}
            for key, values in choice["logprobs"].items():
                assert [each for part in parts for each in part["logprobs"][key]] == values, key

    def test_usage_is_in_an_event_of_its_own(self, client):
        body = {"model": "plain", "prompt": "a", "seed": 1}
        *events, last = client.events(PATH, stream_options={"include_usage": True}, **body)
        assert {each["usage"] for each in events} == {None}
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 1 + last["usage"]["completion_tokens"]
        assert last["timings"]["predicted_n"] == last["usage"]["completion_tokens"]
        assert all("usage" not in each for each in client.events(PATH, **body))


def test_stream_options_without_a_stream_are_refused(client):
    error = refusal(client.post(PATH, model="plain", prompt="a", stream_options={}))
    assert error["param"] == "stream_options"
