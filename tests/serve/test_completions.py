"""`/v1/completions`: what it returns is what `generate_text` generates."""

import math
import re

import pytest
import torch

from src.formats.model_dir import load_model
from src.generation import generate_text
from src.serve.choices import TokenNames
from tests.serve.clients import refusal

INCLUDE = "stream_options.include_obfuscation"
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


BODY = {"model": "plain", "prompt": "hello", "seed": 2, "max_tokens": 6, "ignore_eos": True}


class TestLogprobs:
    def logprobs_of_model(self, plain, ids):
        with torch.no_grad():
            return plain.model(torch.tensor([ids]))[0].log_softmax(-1)

    def test_they_are_the_models(self, client, plain):
        [choice] = client.post(PATH, logprobs=3, **BODY).json()["choices"]
        found = choice["logprobs"]
        ids = plain.tokenizer.encode("hello")
        expected = self.logprobs_of_model(plain, [*ids, *found["token_ids"]])[len(ids) - 1 :]
        assert "".join(found["tokens"]) == choice["text"]
        assert found["text_offset"] == list(range(6))
        for place, token in enumerate(found["token_ids"]):
            assert found["token_logprobs"][place] == pytest.approx(
                expected[place, token].item(), abs=1e-4
            )
            top = found["top_logprobs"][place]
            assert top[found["tokens"][place]] == found["token_logprobs"][place]
            best = expected[place].topk(3)
            for other, value in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                assert top[TokenNames(plain.tokenizer).text(other)] == pytest.approx(
                    value, abs=1e-4
                )

    @pytest.mark.parametrize("max_tokens", [0, 4])
    def test_echo_has_those_of_the_prompt(self, client, plain, max_tokens):
        body = {**BODY, "max_tokens": max_tokens}
        [choice] = client.post(PATH, echo=True, logprobs=1, **body).json()["choices"]
        found = choice["logprobs"]
        ids = plain.tokenizer.encode("hello")
        assert choice["text"].startswith("hello")
        assert choice["text"] == "".join(found["tokens"])
        assert found["token_ids"][:5] == ids
        assert len(found["token_ids"]) == 5 + max_tokens
        assert found["text_offset"] == list(range(5 + max_tokens))
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        expected = self.logprobs_of_model(plain, found["token_ids"])
        for place in range(1, 5 + max_tokens):
            value = expected[place - 1, found["token_ids"][place]].item()
            assert found["token_logprobs"][place] == pytest.approx(value, abs=1e-4)
        assert choice["finish_reason"] == "length"

    def test_echo_without_them_is_prompt_and_text(self, client):
        [alone] = client.post(PATH, **BODY).json()["choices"]
        [echoed] = client.post(PATH, echo=True, **BODY).json()["choices"]
        assert echoed["text"] == "hello" + alone["text"]

    def test_stream_has_the_prompt_in_its_first_event(self, client):
        body = {**BODY, "echo": True, "logprobs": 1, "prompt": ["hello", "ab"]}
        whole = client.post(PATH, **body).json()["choices"]
        events = client.events(PATH, **body)
        for choice in whole:
            parts = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
            assert parts[0]["text"].startswith(["hello", "ab"][choice["index"]])
            assert "".join(part["text"] for part in parts) == choice["text"]
            for key, values in choice["logprobs"].items():
                assert [each for part in parts for each in part["logprobs"][key]] == values, key

    def test_named_tokens_have_theirs(self, client, plain):
        body = {**BODY, "logprobs": 0, "echo": True, "logprob_token_ids": [4, 9]}
        [choice] = client.post(PATH, **body).json()["choices"]
        found = choice["logprobs"]
        expected = self.logprobs_of_model(plain, found["token_ids"])
        assert found["named_logprobs"][0] is None
        for place, named in enumerate(found["named_logprobs"][1:]):
            assert named.keys() == {"4", "9"}
            for key, value in named.items():
                assert value == pytest.approx(expected[place, int(key)].item(), abs=1e-4)

    def test_named_tokens_need_logprobs_and_a_vocabulary(self, client):
        error = refusal(client.post(PATH, **BODY, logprob_token_ids=[4]))
        assert error["param"] == "logprob_token_ids"
        error = refusal(client.post(PATH, **BODY, logprobs=1, logprob_token_ids=[28]))
        assert "28" in error["message"]

    def test_end_token_has_one(self, client, plain):
        """`lm-eval` asks for one token and takes the last of the list for a generated one."""
        end = plain.tokenizer.end_of_text
        body = {**BODY, "ignore_eos": False, "max_tokens": 1, "logit_bias": {str(end): 1000}}
        [choice] = client.post(PATH, echo=True, logprobs=1, **body).json()["choices"]
        assert choice["text"] == "hello"
        assert choice["finish_reason"] == "stop"
        assert choice["logprobs"]["token_ids"] == [*plain.tokenizer.encode("hello"), end]
        assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
        assert math.isfinite(choice["logprobs"]["token_logprobs"][-1])

    def test_those_of_cut_tokens_are_not_returned(self, client):
        whole = client.post(PATH, **BODY, logprobs=0).json()["choices"][0]
        cut = client.post(PATH, **BODY, logprobs=0, stop=whole["text"][2:4]).json()
        [choice] = cut["choices"]
        length = whole["text"].index(whole["text"][2:4])
        assert choice["logprobs"]["tokens"] == whole["logprobs"]["tokens"][:length]

    def test_parts_of_characters_are_named_by_their_bytes(self, client):
        body = {"model": "chatty", "prompt": "é", "echo": True, "max_tokens": 0, "logprobs": 0}
        [choice] = client.post(PATH, **body).json()["choices"]
        assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]
        assert choice["logprobs"]["text_offset"] == [0, 0]
        assert choice["text"] == "é"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": "a" * 49}, "prompt"),
        ({"prompt": [[5] * 49]}, "prompt"),
        ({"prompt": [28]}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"3": "x"}}, "logit_bias"),
        ({"logit_bias": {"99": 1}}, None),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"best_of": 1.0}, "best_of"),
        ({"stream": True, "stream_options": {"include_obfuscation": 0}}, INCLUDE),
        ({"suffix": "b"}, "suffix"),
        ({"prompts": "b"}, "prompts"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_refused_by_name(client, given, param):
    error = refusal(client.post(PATH, **{"model": "plain", "prompt": "a", **given}))
    assert error["param"] == param
    assert not re.search(r"\b(True|False|None)\b", error["message"])  # JSON, not Python
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 320


def test_near_name_of_an_unknown_key_is_suggested(client):
    error = refusal(client.post(PATH, model="plain", prompt="a", temprature=1))
    assert error["message"] == "unknown key 'temprature'; did you mean temperature?"
    assert error["code"] == "unknown_parameter"


@pytest.mark.parametrize("lacking", ["model", "prompt"])
def test_a_key_that_is_missing_is_named(client, lacking):
    body = {"model": "plain", "prompt": "a"}
    del body[lacking]
    assert refusal(client.post(PATH, **body))["message"] == f"{lacking} is missing"


def test_extreme_numbers_are_answered(client):
    """Numbers at the limits of their ranges give a text, not an error of the server."""
    for key, value in (
        ("temperature", 1e308),
        ("temperature", 5e-324),
        ("presence_penalty", 100),
        ("frequency_penalty", -100),
        ("repetition_penalty", 1e4),
        ("top_k", 2**31),
        ("min_p", 1),
        ("typical_p", 1e-300),
        ("top_p", 5e-324),
        ("no_repeat_ngram", 2**31),
        ("seed", 2**62),
        ("logit_bias", {str(token): -10_000 for token in range(28)}),
    ):
        response = client.post(PATH, model="plain", prompt="abc", max_tokens=3, **{key: value})
        assert response.status_code == 200, (key, response.text)


@pytest.mark.parametrize("key", ["top_k", "min_p", "no_repeat_ngram"])
def test_zero_is_no_limit(client, key):
    body = {"model": "plain", "prompt": "abc", "seed": 3}
    without = client.post(PATH, **body).json()["choices"]
    assert client.post(PATH, **body, **{key: 0}).json()["choices"] == without


def test_every_token_masked_ends_the_text(client):
    body = {"model": "plain", "prompt": "abc", "no_repeat_ngram": 1, "max_tokens": 40}
    [choice] = client.post(PATH, **body, ignore_eos=True).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert len(set(choice["text"])) == len(choice["text"])
