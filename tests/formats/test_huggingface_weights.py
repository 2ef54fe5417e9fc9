"""Weights in GPT-2's names and layout."""

import pytest

from src.formats.huggingface_weights import as_gpt2, to_hf_state_dict
from src.model import GPT2Model
from tests.bounds import assert_same_in_float64
from tests.formats.test_huggingface import SHAPES, some_tokens
from tests.tiny_models import (
    exact_logits,
    random_model,
    transformers_twin,
)


def test_each_weight_has_one_name_of_theirs_and_no_number_changes():
    model = random_model(position_embedding="learned", tie_weights=False)
    theirs = to_hf_state_dict(model.state_dict())
    twin = transformers_twin(model.config)
    assert theirs.keys() == twin.state_dict().keys()
    assert {key: value.shape for key, value in theirs.items()} == {
        key: value.shape for key, value in twin.state_dict().items()
    }


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_model_as_gpt2_has_the_same_logits(changes):
    model = random_model(**changes)
    config, weights = as_gpt2(model)
    assert (config.position_embedding, config.bias) == ("learned", True)
    same = GPT2Model(config).eval()
    same.load_state_dict(weights)
    tokens = some_tokens(model)
    assert_same_in_float64(exact_logits(same, tokens), exact_logits(model, tokens))
