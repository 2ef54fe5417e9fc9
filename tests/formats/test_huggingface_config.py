"""Architectures as a `config.json`."""

import pytest

from src.formats.huggingface_config import from_hf_config, to_hf_config
from src.formats.huggingface_weights import as_gpt2
from tests.formats.test_huggingface import SHAPES
from tests.tiny_models import (
    random_model,
)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_an_architecture_survives_their_config(changes):
    config, _ = as_gpt2(random_model(**changes))
    assert from_hf_config({"model_type": "gpt2", **to_hf_config(config)}, "x") == config
