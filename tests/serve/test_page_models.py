"""`/api/models`: the sampling keys, as requests and configurations have them."""

import pytest

from src.serve.schemas import SamplingKeys
from tests.serve.clients import refusal


@pytest.fixture(scope="module")
def listed(client):
    return {each["name"]: each for each in client.get("/api/models").json()["models"]}


def test_every_model_is_listed(listed):
    assert listed["plain"]["positions"] == 48
    assert not listed["plain"]["chat_template"]
    assert listed["chatty"]["chat_template"]
    assert listed["chatty"]["max_length"] == 100


def test_every_sampling_key_of_a_request_is_shown(listed):
    shown = {key["name"] for key in listed["plain"]["sampling"]}
    assert shown == SamplingKeys.model_fields.keys() - {"logprob_token_ids"} | {"max_tokens"}


def test_defaults_are_those_of_the_configuration(listed):
    defaults = {key["name"]: key["default"] for key in listed["plain"]["sampling"]}
    assert defaults["temperature"] == 0.8
    assert defaults["top_k"] is None
    assert defaults["stop"] == []
    assert defaults["seed"] is None


def test_the_ends_of_each_range_are_accepted_and_what_is_beyond_is_refused(client, listed):
    body = {"model": "plain", "prompt": "a", "max_tokens": 1}
    for key in listed["plain"]["sampling"]:
        name, low, high = key["name"], key["minimum"], key["maximum"]
        if low is not None and name != "min_tokens":
            assert client.post("/v1/completions", **{**body, name: low}).status_code == 200, name
        if low is not None and name != "max_tokens":  # an OpenAI key of its own range
            refusal(client.post("/v1/completions", **{**body, name: low - 1}))
        if key["above"] is not None:
            refusal(client.post("/v1/completions", **{**body, name: key["above"]}))
        if high is not None:
            refusal(client.post("/v1/completions", **{**body, name: high + 1}))
