"""`GPT2Config` and `Config`: validation, defaults, presets."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from src.config import ARCHITECTURE_KEYS, REQUIRED_KEYS, Config, GPT2Config
from src.config_checks import LARGEST_AUTO_VOCABULARY, PRESETS
from src.config_keys import LARGEST
from src.errors import AGI2Error
from src.model import GPT2Model
from tests.test_config_checks import TINY

# GPT2Config


def test_the_default_architecture_is_gpt2_small():
    config = GPT2Config()
    assert (config.n_layers, config.n_heads, config.d_model) == (12, 12, 768)
    assert (config.max_seq_len, config.vocab_size) == (1024, 50257)
    assert config.d_ff == 3072
    assert config == GPT2Config.preset("small")


def test_the_architecture_of_an_automatic_vocabulary_has_the_largest_one():
    config = Config(**{**TINY, "vocab_size": "auto"})
    largest = config.changed(vocab_size=LARGEST_AUTO_VOCABULARY)
    assert config.architecture == largest.architecture
    assert config.architecture.vocab_size == LARGEST_AUTO_VOCABULARY


def test_a_given_feed_forward_width_stays():
    assert GPT2Config(d_model=16, n_heads=2, d_ff=24).d_ff == 24


def test_head_dim_is_the_width_of_one_head():
    assert GPT2Config(d_model=48, n_heads=3).head_dim == 16


def test_the_architecture_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPT2Config().d_model = 1


@pytest.mark.parametrize("name", ["vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(name, value):
    with pytest.raises(AGI2Error, match=f"{name} must be an integer from 1 to "):
        GPT2Config(**{name: value})


def test_a_negative_feed_forward_width_is_an_error():
    with pytest.raises(AGI2Error, match="d_ff must be an integer from 0 to 1,048,576, not -4"):
        GPT2Config(d_ff=-4)


def test_heads_divide_the_width():
    with pytest.raises(AGI2Error, match="d_model 768 is not divisible by n_heads 7"):
        GPT2Config(n_heads=7)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_share(dropout):
    with pytest.raises(AGI2Error, match="dropout"):
        GPT2Config(dropout=dropout)


@pytest.mark.parametrize("name", ["activation", "norm_position", "position_embedding"])
def test_an_unknown_choice_lists_the_choices(name):
    choices = {"activation": "silu", "norm_position": "post", "position_embedding": "learned"}
    with pytest.raises(AGI2Error, match=f"{name} must be .*{choices[name]}.*, not 'other'"):
        GPT2Config(**{name: "other"})


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("small", 124_439_808),
        ("medium", 354_823_168),
        ("large", 774_030_080),
        ("xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(preset, parameters):
    with torch.device("meta"):
        model = GPT2Model(GPT2Config.preset(preset, position_embedding="learned"))
    assert model.num_parameters() == parameters
    assert sum(weights.numel() for weights in model.parameters()) == parameters


def test_a_preset_takes_changes():
    config = GPT2Config.preset("medium", n_layers=3, dropout=0.0)
    assert (config.n_layers, config.n_heads, config.d_model, config.dropout) == (3, 16, 1024, 0.0)


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(AGI2Error, match="small, medium, large, xl, not 'huge'"):
        GPT2Config.preset("huge")


def test_keys_and_fields_name_the_same_architecture():
    config = GPT2Config(vocab_size=50, max_seq_len=8, d_model=16, n_layers=2, n_heads=4, d_ff=20)
    keys = config.to_keys()
    assert keys["model_positions"] == 8
    assert keys["model_embd"] == 16
    assert keys["model_layer"] == 2
    assert keys["model_head"] == 4
    assert keys["model_ff"] == 20
    assert GPT2Config.from_mapping(keys) == config


def test_every_key_of_the_architecture_is_a_key_of_the_run_with_the_same_default():
    assert set(ARCHITECTURE_KEYS) <= set(Config.model_fields)
    assert Config().architecture == GPT2Config()


# Config


def test_required_keys_are_keys():
    assert {key for keys in REQUIRED_KEYS.values() for key in keys} <= set(Config.model_fields)


def test_a_configuration_is_a_mapping():
    config = Config(**TINY, epochs=3)
    assert config["epochs"] == config.epochs == 3
    assert "epochs" in config
    assert "epoch" not in config
    assert config.get("epoch", 7) == 7
    assert len(config) == len(list(config)) == len(Config.model_fields)
    assert dict(config)["model_embd"] == 16
    assert dict(config.items()) == dict(config)
    assert dict(**config) == dict(config)
    with pytest.raises(KeyError):
        config["changed"]  # an attribute, but no key


def test_a_mapping_of_a_configuration_makes_an_equal_one():
    config = Config(**TINY, preset="medium", max_steps=5)
    assert dict(Config(**config)) == dict(config)


def test_a_model_takes_a_configuration():
    model = GPT2Model(Config(**TINY))
    assert model.config == GPT2Config(
        vocab_size=50, max_seq_len=8, d_model=16, n_layers=2, n_heads=2
    )
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 50)


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().epochs = 4


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_the_sizes(preset):
    assert Config(preset=preset).architecture == GPT2Config.preset(preset)


def test_a_given_size_wins_over_the_preset():
    config = Config(preset="medium", model_layer=3)
    assert (config.model_layer, config.model_head, config.model_embd) == (3, 16, 1024)


@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_empty_mean_not_set(nothing):
    config = Config(**dict.fromkeys(Config.model_fields, nothing))
    assert dict(config) == dict(Config())
    assert config.model_fields_set == set()


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_unknown_key_is_an_error_even_when_empty(nothing):
    with pytest.raises(AGI2Error, match="temprature"):
        Config(temprature=nothing)


# Config.changed


def test_changed_is_a_validated_copy():
    config = Config(epochs=3, batch_size=4)
    changed = config.changed(epochs=5)
    assert (config.epochs, changed.epochs, changed.batch_size) == (3, 5, 4)
    with pytest.raises(AGI2Error, match="epoch"):
        config.changed(epoch=5)


def test_what_was_given_stays():
    with pytest.raises(AGI2Error, match="seq_len 1024 is above model_positions 64"):
        Config(seq_len=1024).changed(model_positions=64)
    assert Config(model_embd=24, model_head=2).changed(epochs=1).model_embd == 24


def test_only_what_was_given_or_preset_counts_as_set():
    assert Config(epochs=3, max_steps=None).model_fields_set == {"epochs"}
    preset = Config(preset="small", max_steps=2)
    assert preset.model_fields_set == {"preset", "max_steps", *PRESETS["small"]}


# Types and sizes of an architecture

SIZES = ["vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads", "d_ff"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "number", [np.int64(24), np.uint16(24), np.array(24), torch.tensor(24), 24.0]
)
def test_a_whole_number_of_any_type_is_a_size(name, number):
    config = GPT2Config(**{"d_model": 24, "n_heads": 2, name: number})
    assert getattr(config, name) == 24
    assert type(getattr(config, name)) is int


WRONG_SIZES = [2.5, "12", True, np.True_, None, [3], torch.tensor([1, 2]), 10**5000, "x" * 999]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", WRONG_SIZES, ids=range(len(WRONG_SIZES)))
def test_what_is_no_size_is_one_line_that_names_the_argument(name, value):
    with pytest.raises(AGI2Error, match=f"^{name} must be") as error:
        GPT2Config(**{name: value})
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize("name", SIZES)
def test_a_size_beyond_any_model_is_refused(name):
    with pytest.raises(
        AGI2Error, match=f"{name} must be an integer from . to {LARGEST[name]:,}, not"
    ):
        GPT2Config(**{name: LARGEST[name] + 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", "0.1"),
        ("dropout", True),
        ("dropout", None),
        ("bias", 1),
        ("tie_weights", "no"),
        ("gradient_checkpointing", None),
        ("activation", ["gelu"]),
        ("activation", 3),
        ("norm_position", None),
    ],
)
def test_what_is_no_option_is_one_line_that_names_the_argument(name, value):
    with pytest.raises(AGI2Error, match=f"^{name} must be"):
        GPT2Config(**{name: value})


def test_numbers_of_numpy_are_options():
    config = GPT2Config(dropout=np.float32(0.25), bias=np.False_)
    assert (config.dropout, config.bias) == (0.25, False)
    assert (type(config.dropout), type(config.bias)) == (float, bool)


@pytest.mark.parametrize("name", ["Small", None, ["small"]])
def test_a_preset_is_one_of_the_names(name):
    with pytest.raises(AGI2Error, match="preset must be one of"):
        GPT2Config.preset(name)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "vocab_size": st.integers(1, 40),
            "max_seq_len": st.integers(1, 20),
            "d_model": st.sampled_from([4, 8, 12]),
            "n_layers": st.integers(1, 3),
            "n_heads": st.sampled_from([1, 2, 4]),
            "d_ff": st.integers(1, 30),
            "bias": st.booleans(),
            "tie_weights": st.booleans(),
            "norm_position": st.sampled_from(["pre", "post"]),
            "position_embedding": st.sampled_from(["learned", "sinusoidal"]),
        }
    )
)
def test_an_architecture_knows_its_number_of_parameters(given):
    config = GPT2Config(**given)
    assert config.num_parameters == GPT2Model(config).num_parameters()


@pytest.mark.parametrize(
    ("key", "message"),
    [("d_model", "did you mean model_embd, or GPT2Config"), ("x", "unknown key")],
)
def test_an_architecture_has_no_unknown_keys(key, message):
    with pytest.raises(AGI2Error, match=message):
        GPT2Config.from_mapping({key: 64})
