"""Models: listed, loaded on first use, unloaded when idle; and the figures of the server."""

import dataclasses

import pytest

from src.errors import AGI2Error
from src.serve.models import ModelRegistry
from src.serve.settings import ServeSettings
from tests.serve.clients import Client, refusal, sources


@pytest.fixture
def narrow(models):
    """A client of a server with memory for one of its two models."""
    found = sources(models)
    client = Client(found, model_memory=max(each.weight_bytes for each in found))
    yield client
    client.close()


def loaded(client):
    return {each["id"]: each["loaded"] for each in client.get("/v1/models").json()["data"]}


def complete(client, model):
    return client.post("/v1/completions", model=model, prompt="a", max_tokens=2, seed=1)


def test_models_are_described(client):
    plain, chatty = client.get("/v1/models").json()["data"]
    assert plain["id"] == "plain"
    assert plain["max_model_len"] == 48
    assert not plain["chat_template"]
    assert chatty["chat_template"]
    assert client.get("/v1/models/chatty").json().keys() == chatty.keys()
    error = refusal(client.get("/v1/models/none"), 404)
    assert error["code"] == "model_not_found"


def test_a_model_is_loaded_on_first_use_in_place_of_an_idle_one(narrow):
    assert loaded(narrow) == {"plain": False, "chatty": False}
    first = complete(narrow, "plain").json()["choices"]
    assert loaded(narrow) == {"plain": True, "chatty": False}
    assert complete(narrow, "chatty").status_code == 200
    assert loaded(narrow) == {"plain": False, "chatty": True}
    assert complete(narrow, "plain").json()["choices"] == first


def test_models_are_loaded_at_the_start_as_far_as_memory_goes(narrow):
    narrow.run(narrow.state.models.load_first())
    assert loaded(narrow) == {"plain": True, "chatty": False}


def test_a_model_in_use_is_not_unloaded(narrow):
    async def use_both():
        async with narrow.state.models.use("plain"):
            return await narrow.http.post(
                "/v1/completions", json={"model": "chatty", "prompt": "a"}
            )

    response = narrow.run(use_both())
    assert refusal(response, 503)["code"] == "model_not_loaded"
    assert "retry-after" in response.headers
    assert complete(narrow, "chatty").status_code == 200


def test_what_cannot_be_served_is_refused(models):
    plain, chatty = sources(models)
    settings = ServeSettings()
    for given in ([], [plain, plain], [plain, dataclasses.replace(chatty, name="plain")]):
        with pytest.raises(AGI2Error, match="at least one model"):
            ModelRegistry(given, settings)
    with pytest.raises(AGI2Error, match="--model-memory"):
        ModelRegistry([plain], ServeSettings(model_memory=1000))
    changed = plain.config.changed(temperature=0.0, speculative="ngram")
    client = Client([dataclasses.replace(plain, config=changed)])
    assert "speculative" in refusal(complete(client, "plain"))["message"]
    client.close()


def test_keys_of_the_configuration_are_the_defaults(models, client):
    plain = sources(models, "plain")[0]
    config = plain.config.changed(
        temperature=0.0, sampling_seed=9, stop=["q"], min_length=3, logit_bias={"b": 50.0}
    )
    changed = Client([dataclasses.replace(plain, config=config)])
    body = {"model": "plain", "prompt": "a"}
    found = changed.post("/v1/completions", **body).json()["choices"]
    given = {"temperature": 0, "seed": 9, "stop": "q", "min_tokens": 3, "logit_bias": {"3": 50}}
    assert found == client.post("/v1/completions", **body, **given).json()["choices"]
    changed.close()


def test_after_closing_nothing_is_accepted(models):
    client = Client(sources(models, "plain"))
    assert client.get("/health").json() == {"status": "ok"}
    complete(client, "plain")
    client.run(client.state.models.close(0.0))
    for response in (client.get("/health"), complete(client, "plain")):
        assert refusal(response, 503)["code"] == "closing"
    client.close()
    other = Client(sources(models, "plain"))
    other.run(other.state.models.close(0.0))  # before the model is loaded
    assert refusal(complete(other, "plain"), 503)["code"] == "closing"
    other.close()


def test_a_deadline_ends_a_request(models):
    client = Client(sources(models, "plain"), deadline=0.001)
    body = {"model": "plain", "prompt": "a", "max_tokens": 4000, "ignore_eos": True}
    error = refusal(client.post("/v1/completions", **body), 504)
    assert error["code"] == "deadline_exceeded"
    assert client.events("/v1/completions", **body)[-1]["error"]["code"] == "deadline_exceeded"
    client.close()


def test_a_failure_of_the_engine_is_an_error_of_the_server(client, monkeypatch):
    def fail(*_):
        raise AGI2Error("the logits are not finite")

    complete(client, "plain")
    monkeypatch.setattr("src.inference.engine.draw_tokens", fail)
    error = refusal(complete(client, "plain"), 500)
    assert error["code"] == "generation_failed"
    assert error["message"] == "the logits are not finite"
    monkeypatch.undo()
    assert complete(client, "plain").status_code == 200


def test_metrics_count_requests_and_tokens(models):
    client = Client(sources(models, "plain"))
    complete(client, "plain")
    client.get("/nowhere")
    client.get("/v1/models/plain")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'agi2_requests_total{path="/v1/completions",status="200"} 1.0',
        'agi2_requests_total{path="other",status="404"} 1.0',
        'agi2_requests_total{path="/v1/models/{model}",status="200"} 1.0',
        'agi2_generated_tokens_total{model="plain"} 2.0',
        'agi2_prompt_tokens_total{model="plain"} 1.0',
        'agi2_running{model="plain"} 0.0',
        'agi2_texts_total{reason="length"} 1.0',
        "agi2_first_token_seconds_count 1.0",
    ):
        assert line in lines
    client.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [("port", 70_000), ("max_rows", 0), ("deadline", 0), ("max_body", -1), ("host", 1)],
)
def test_settings_are_checked(key, value):
    with pytest.raises(AGI2Error, match=key):
        ServeSettings(**{key: value})
