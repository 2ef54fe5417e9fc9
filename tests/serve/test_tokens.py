"""`/tokenize`, `/detokenize` and `/v1/embeddings`."""

import base64

import numpy as np
import pytest
import torch

from src.formats.model_dir import load_model
from tests.serve.clients import Client, refusal, sources

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def chatty(models):
    return load_model(models / "chatty", verbose=False)


class TestTokenize:
    def test_ids_are_the_tokenizers(self, client, chatty):
        for text in ("hello é", "", "a" * 20_000):
            found = client.post("/tokenize", model="chatty", content=text).json()
            assert found == {"tokens": chatty.tokenizer.encode(text)}

    def test_pieces_are_text_or_bytes(self, client):
        found = client.post("/tokenize", model="chatty", content="aé", with_pieces=True).json()
        assert [each["piece"] for each in found["tokens"]] == ["a", [0xC3], [0xA9]]

    def test_special_tokens_are_text_unless_asked_for(self, client, chatty):
        body = {"model": "chatty", "content": "<|end|>"}
        assert len(client.post("/tokenize", **body).json()["tokens"]) == 7
        found = client.post("/tokenize", **body, parse_special=True, add_special=True).json()
        special = chatty.tokenizer.special_tokens
        assert found["tokens"] == [chatty.tokenizer.start_of_text, special["<|end|>"]]

    def test_model_is_the_first_by_default(self, client):
        assert client.post("/tokenize", content="ab").json() == {"tokens": [2, 3]}

    def test_detokenize_is_its_inverse(self, client):
        body = {"model": "chatty", "content": "hé<|end|>"}
        tokens = client.post("/tokenize", **body, parse_special=True).json()["tokens"]
        found = client.post("/detokenize", model="chatty", tokens=tokens).json()
        assert found == {"content": "hé<|end|>"}

    def test_tokens_outside_the_vocabulary_are_refused(self, client):
        for tokens in ([99], [-1], [2**40], ["a"]):
            refusal(client.post("/detokenize", model="plain", tokens=tokens))


class TestEmbeddings:
    def test_vector_is_the_mean_of_the_hidden_states(self, client, chatty):
        [found] = client.post(PATH, model="chatty", input="hello").json()["data"]
        with torch.no_grad():
            ids = torch.tensor([chatty.tokenizer.encode("hello")])
            mean = chatty.model.hidden_states(ids)[0].mean(0)
        expected = (mean / mean.norm()).tolist()
        assert found["embedding"] == pytest.approx(expected, abs=1e-4)
        assert np.linalg.norm(found["embedding"]) == pytest.approx(1, abs=1e-6)

    def test_a_text_has_the_same_vector_alone_and_among_others(self, client, chatty):
        texts = ["hello", "a", "hi there"]
        several = client.post(PATH, model="chatty", input=texts).json()
        assert [each["index"] for each in several["data"]] == [0, 1, 2]
        assert several["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
        for text, found in zip(texts, several["data"], strict=True):
            for given in (text, chatty.tokenizer.encode(text)):
                alone = client.post(PATH, model="chatty", input=given).json()
                assert alone["data"][0]["embedding"] == found["embedding"]

    def test_base64_has_the_same_numbers(self, client):
        body = {"model": "plain", "input": "abc", "dimensions": 32}
        floats = client.post(PATH, **body).json()["data"][0]["embedding"]
        found = client.post(PATH, encoding_format="base64", **body).json()["data"][0]["embedding"]
        assert np.frombuffer(base64.b64decode(found), "<f4").tolist() == floats

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({"input": ""}, "input"),
            ({"input": ["a", ""]}, "input"),
            ({"input": []}, "input"),
            ({"input": "a" * 49}, "input"),
            ({"input": [99]}, None),
            ({"dimensions": 31}, "dimensions"),
            ({"encoding_format": "int8"}, "encoding_format"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_refused_by_name(self, client, given, param):
        error = refusal(client.post(PATH, **{"model": "plain", "input": "a", **given}))
        assert error["param"] == param

    def test_a_deadline_ends_them(self, models):
        client = Client(sources(models, "plain"), deadline=0.001)  # less than loading takes
        error = refusal(client.post(PATH, model="plain", input="a"), 504)
        assert error["code"] == "deadline_exceeded"
        client.close()
