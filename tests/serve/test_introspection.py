"""`/api/lens`, `/api/attention`, `/api/prompt`: what they return is the model's own."""

import pytest
import torch

from src.formats.model_dir import load_model
from src.serve.choices import TokenNames
from tests.serve.clients import refusal

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def plain(models):
    return load_model(models / "plain", verbose=False)


def probabilities_of(trained, tokens):
    with torch.no_grad():
        logits = trained.model(torch.tensor([tokens]), last_only=True)
    return logits[0, -1, : trained.tokenizer.vocab_size].softmax(dim=-1)


def test_the_last_layer_is_the_prediction_of_the_model(client, plain):
    found = client.post("/api/lens", model="plain", tokens=TOKENS, position=5, top=3).json()
    own = probabilities_of(plain, TOKENS[:6])
    last = found["layers"][-1]
    assert [each["layer"] for each in found["layers"]] == [0, 1, 2]
    assert found["target"]["token_id"] == TOKENS[6]
    assert last["probability"] == pytest.approx(float(own[TOKENS[6]]), rel=1e-4)
    assert [each["token_id"] for each in last["top"]] == own.topk(3).indices.tolist()
    assert last["top"][0]["token"] == TokenNames(plain.tokenizer).text(int(own.argmax()))


def test_the_lens_predicts_what_a_completion_samples_from(client):
    body = {"model": "plain", "prompt": TOKENS, "max_tokens": 1, "seed": 1, "logprobs": 5}
    choice = client.post("/v1/completions", **body).json()["choices"][0]["logprobs"]
    token = choice["token_ids"][0]
    found = client.post("/api/lens", model="plain", tokens=[*TOKENS, token], position=7).json()
    expected = torch.tensor(choice["token_logprobs"][0]).exp()
    assert found["layers"][-1]["probability"] == pytest.approx(float(expected), rel=1e-4)


def test_without_a_token_behind_the_position_there_is_no_target(client):
    found = client.post("/api/lens", model="plain", tokens=TOKENS).json()
    assert found["position"] == 7
    assert found["target"] is None
    assert found["layers"][0]["rank"] is None


def test_attention_has_a_distribution_for_each_layer_and_head(client, plain):
    found = client.post("/api/attention", model="plain", tokens=TOKENS, position=4).json()
    weights, names = torch.tensor(found["weights"]), TokenNames(plain.tokenizer)
    assert weights.shape == (2, 2, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2), atol=1e-5, rtol=0)
    assert found["tokens"] == [names.text(token) for token in TOKENS[:5]]
    assert found["start"] == 0


def test_of_long_texts_the_last_tokens_count(client):
    tokens = [number % 20 for number in range(60)]
    found = client.post("/api/attention", model="plain", tokens=tokens).json()
    alone = client.post("/api/attention", model="plain", tokens=tokens[-48:]).json()
    assert found["start"] == 12
    assert found["weights"] == alone["weights"]


def test_the_ids_of_a_conversation_are_those_that_a_reply_follows(client):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    tokens = client.post("/api/prompt", model="chatty", messages=messages).json()["tokens"]
    reply = client.post(
        "/v1/chat/completions", model="chatty", messages=messages, max_completion_tokens=1
    )
    assert reply.json()["usage"]["prompt_tokens"] == len(tokens)


def test_the_ids_of_a_text_are_those_of_the_tokenizer(client, plain):
    found = client.post("/api/prompt", model="plain", text="hello").json()
    assert found == {"tokens": list(plain.tokenizer.encode("hello")), "prefix": 0}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/lens", {"tokens": [1], "position": 1}, "position 1 is behind the last of 1 tokens"),
        ("/api/lens", {"tokens": [1, 9999]}, "vocabulary"),
        ("/api/attention", {"tokens": [9999]}, "vocabulary"),
        ("/api/attention", {"tokens": []}, "tokens"),
        ("/api/prompt", {}, "either messages or text"),
        ("/api/prompt", {"text": "a", "messages": [{"role": "user", "content": "a"}]}, "either"),
        ("/api/continue", {"tokens": [9999]}, "vocabulary"),
        ("/api/continue", {"tokens": [1], "top_logprobs": 2}, "logprobs"),
    ],
)
def test_invalid_requests_are_refused(client, path, body, message):
    assert message in refusal(client.post(path, model="plain", **body))["message"]


# Continuing a reply


MESSAGES = [{"role": "user", "content": "Hi"}]


def reply(client, **body):
    body = {"model": "chatty", "messages": MESSAGES, "logprobs": True, "temperature": 0, **body}
    choice = client.post("/v1/chat/completions", **body).json()["choices"][0]
    return [entry["token_id"] for entry in choice["logprobs"]["content"]], choice


def test_a_continued_greedy_reply_is_the_reply(client):
    ids, choice = reply(client, max_completion_tokens=8)
    prompt = client.post("/api/prompt", model="chatty", messages=MESSAGES).json()["tokens"]
    body = {"model": "chatty", "tokens": [*prompt, *ids[:3]], "logprobs": True, "temperature": 0}
    rest = client.post("/api/continue", **body, max_tokens=5).json()["choices"][0]
    assert [each["token_id"] for each in rest["logprobs"]["content"]] == ids[3:8]
    assert choice["message"]["content"].endswith(rest["message"]["content"].strip())
    events = client.events("/api/continue", **body, max_tokens=5)
    streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert streamed == rest["message"]["content"]


def test_a_reply_that_is_cut_within_a_character_is_continued_with_its_rest(client):
    # The model's tokens are bytes: three for a snowman.
    snowman = client.post("/api/prompt", model="chatty", text="☃").json()["tokens"][-3:]
    keys = {"temperature": 0, "ignore_eos": True}
    only = [{"logit_bias": {str(token): 100}} for token in snowman]
    body = {"max_completion_tokens": 1, **keys, **only[0]}
    ids, choice = reply(client, **body)
    assert (ids, choice["message"]["content"]) == (snowman[:1], "")
    assert choice["finish_reason"] == "length"
    prompt = client.post("/api/prompt", model="chatty", messages=MESSAGES).json()["tokens"]
    for count, expected in ((1, ""), (2, "☃")):
        body = {"model": "chatty", "tokens": [*prompt, *snowman[:count]], "max_tokens": 1}
        body |= {"logprobs": True, **keys, **only[count]}
        found = client.post("/api/continue", **body).json()["choices"][0]
        assert found["message"]["content"] == expected
        assert [each["token_id"] for each in found["logprobs"]["content"]] == [snowman[count]]
        events = client.events("/api/continue", **body)
        deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
        assert "".join(deltas) == expected


def test_a_reply_that_fills_the_positions_continues_with_a_sliding_window(client):
    found = client.post(
        "/api/continue", model="chatty", tokens=[5] * 48, ignore_eos=True, seed=1
    ).json()
    assert found["usage"]["completion_tokens"] == 24


def test_a_reply_of_a_model_without_a_template_ends_with_its_turn(client):
    body = {"model": "plain", "tokens": TOKENS, "max_tokens": 4, "seed": 1}
    assert client.post("/api/continue", **body).json()["choices"][0]["finish_reason"] == "length"
