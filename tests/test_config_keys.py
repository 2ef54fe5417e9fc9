"""The keys: defaults, types, bounds."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from src.config import Config
from src.config_keys import GenerationKeys, range_problem


def test_defaults_are_the_specification_s():
    config = Config()
    assert (config.epochs, config.batch_size, config.learning_rate) == (10, 12, 3e-4)
    assert (config.seq_len, config.model_positions, config.max_context_length) == (1024,) * 3
    assert (config.max_length, config.temperature, config.beam_size) == (100, 0.8, 5)
    assert (config.device, config.resume, config.model_seed) == ("auto", None, "")


@pytest.mark.parametrize("key", ["sources", "stop"])
def test_one_text_stands_for_a_list_of_one(key):
    assert Config(**{key: "a.txt"})[key] == ["a.txt"]
    assert Config(**{key: ["a", "b"]})[key] == ["a", "b"]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_are_named_as_pytorch_names_them(device):
    assert Config(device=device).device == device


def test_a_whole_number_is_a_number():
    assert Config(temperature=1).temperature == 1.0


def test_every_number_of_a_run_has_a_bound():
    for name, field in Config.model_fields.items():
        for kind, value in ((int, 10**15), (int, 10**300), (float, 10**400)):
            if field.annotation in (kind, kind | None) and not name.endswith("seed"):
                with pytest.raises(ValidationError, match=name):
                    Config(**{name: value})


NUMBERS = [name for name, field in GenerationKeys.model_fields.items() if field.metadata]


@given(
    key=st.sampled_from(NUMBERS),
    value=st.one_of(
        st.integers(-3, 3),
        st.integers(),
        st.floats(-2, 2),
        st.floats(),
        st.sampled_from([1024, 1025, 10**4, 10**12, 10**12 + 1, 2**30, 1e4, -1e4, 1e-4, 10**400]),
    ),
)
@settings(deadline=None)
def test_a_range_problem_is_what_the_configuration_refuses(key, value):
    annotation = GenerationKeys.model_fields[key].annotation
    if int in (annotation, *get_args(annotation)) and isinstance(value, float):
        return  # another type
    try:
        GenerationKeys(**{key: value})
        is_valid = True
    except ValidationError:
        is_valid = False
    assert (range_problem(key, value) is None) == is_valid
