"""Fixtures: tiny saved models with a BPE tokenizer."""

import pytest

from src.formats.model_dir import save_model
from src.tokenizer import BPETokenizer
from tests.conftest import make_text
from tests.tiny_models import random_model, tiny_config


@pytest.fixture(scope="session")
def byte_pairs():
    """A tokenizer trained on a few words and characters of several bytes."""
    tokenizer = BPETokenizer(vocab_size=320)
    tokenizer.fit([make_text() + " Über naïve 鯨魚 cafés cost 3.50 €, don't they?"])
    return tokenizer


@pytest.fixture
def saved(tmp_path, byte_pairs):
    """A function that saves a model of random weights, and gives it and its folder."""

    def make(name="run", tokenizer=byte_pairs, **changes):
        sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 32, "max_seq_len": 24}
        model = random_model(std=0.15, **{**sizes, **changes})
        folder = tmp_path / name
        save_model(model, tokenizer, tiny_config(), folder)
        return model, folder

    return make
