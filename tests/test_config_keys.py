"""The keys: defaults, types, bounds."""

import math
from decimal import Decimal
from typing import get_args

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.arguments import describe_range
from src.config import Config
from src.config_keys import DataConfig, GenerationConfig, ModelConfig, TrainConfig
from src.config_loader import load_config
from src.errors import AGI2Error
from src.inference.sampling import sampling_config


def test_defaults_are_the_specification_s():
    config = Config()
    assert (config.epochs, config.batch_size, config.learning_rate) == (10, 12, 3e-4)
    assert (config.seq_len, config.model_positions, config.max_context_length) == (1024,) * 3
    assert (config.max_length, config.temperature, config.beam_size) == (100, 0.8, 5)
    assert (config.device, config.resume, config.model_seed) == ("auto", None, "")


@pytest.mark.parametrize("section", [DataConfig, ModelConfig, TrainConfig, GenerationConfig])
def test_a_section_alone_has_the_defaults_of_the_whole(section):
    alone, whole = section(), Config()
    assert {key: getattr(whole, key) for key in section.model_fields} == alone.model_dump()


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
                with pytest.raises(AGI2Error, match=name):
                    Config(**{name: value})


NUMBERS = [(name, field) for name, field in Config.model_fields.items() if field.metadata]


@given(
    number=st.sampled_from(NUMBERS),
    value=st.one_of(
        st.integers(-3, 3),
        st.integers(),
        st.floats(-2, 2),
        st.floats(),
        st.sampled_from([1024, 1025, 10**4, 10**12, 10**12 + 1, 2**30, 1e4, -1e4, 1e-4, 10**400]),
    ),
)
@settings(deadline=None)
def test_a_number_out_of_its_range_is_told_the_range(number, value):
    """The bounds in the message are those of the key: the first number inside is accepted."""
    key, field = number
    problems = [line for name, line in Config.problems({key: value}) if name is not None]
    if not problems:
        return
    is_integer = int in (field.annotation, *get_args(field.annotation))
    [line] = problems
    bounds = describe_range(field.metadata, value if isinstance(value, int) else None)
    if is_integer and isinstance(value, float):
        assert line.startswith(f"{key} must be an integer, not ") or value.is_integer()
    elif is_integer:
        assert line.startswith(f"{key} must be {bounds}, not ")
        kind, bound = bounds.rsplit(" ", 1)
        inside = int(bound.replace(",", ""))
        assert not [name for name, _ in Config.problems({key: inside}) if name is not None]
        outside = inside + (1 if kind == "at most" else -1)
        assert Config.problems({key: outside})[0][1].startswith(f"{key} must be {bounds}, not ")
    else:
        assert line.startswith(f"{key} must be {describe_range(field.metadata)}, not ")


# Wrong values of generation keys, as TOML writes them where it can, and what is said of them.
WRONG = [
    ("max_length", 0, "max_length must be at least 1, not 0"),
    ("max_length", 2**31, "max_length must be at most 1,073,741,824, not 2147483648"),
    ("max_length", 1.5, "max_length must be an integer, not 1.5"),
    ("max_length", True, "max_length must be an integer, not True"),
    ("max_length", "9", "max_length must be an integer, not '9'"),
    ("min_length", -1, "min_length must be at least 0, not -1"),
    ("temperature", -0.5, "temperature must be a number from 0 on, not -0.5"),
    ("temperature", -1, "temperature must be a number from 0 on, not -1"),
    ("temperature", math.nan, "temperature must be a number from 0 on, not nan"),
    ("temperature", math.inf, "temperature must be a number from 0 on, not inf"),
    ("temperature", "hot", "temperature must be a number, not 'hot'"),
    ("top_k", -1, "top_k must be at least 1, not -1"),
    ("top_k", False, "top_k must be an integer, not False"),
    ("top_p", 1.5, "top_p must be above 0 and at most 1, not 1.5"),
    ("min_p", 0.0, "min_p must be above 0 and at most 1, not 0.0"),
    ("typical_p", math.nan, "typical_p must be above 0 and at most 1, not nan"),
    ("repetition_penalty", 0, "repetition_penalty must be from 0.0001 to 10000, not 0"),
    ("presence_penalty", math.nan, "presence_penalty must be from -10000 to 10000, not nan"),
    ("frequency_penalty", math.inf, "frequency_penalty must be from -10000 to 10000, not inf"),
    ("no_repeat_ngram", 0, "no_repeat_ngram must be at least 1, not 0"),
    ("logit_bias", {"a": math.nan}, "logit_bias of 'a' must be from -10000 to 10000, not nan"),
    ("logit_bias", {"a": 1e5}, "logit_bias of 'a' must be from -10000 to 10000, not 100000.0"),
    ("logit_bias", {"a": "x"}, "logit_bias of 'a' must be a number, not 'x'"),
    ("logit_bias", ["a"], "logit_bias must be a mapping from tokens to numbers, not ['a']"),
    ("stop", ["a", 5], "stop[1] must be a string, not 5"),
    ("stop_at_sentence_end", 1, "stop_at_sentence_end must be True or False, not 1"),
    ("speculative", "tree", "speculative must be 'none' or 'ngram', not 'tree'"),
    (
        "min_length",
        101,
        "min_length 101 is above max_length 100: lower the one or raise the other",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=str)
def test_a_wrong_value_is_told_the_same_from_everywhere(key, value, message, tmp_path):
    """From Python, from a file, by --set and as a keyword of a function."""
    for make in (GenerationConfig, Config, sampling_config):
        with pytest.raises(AGI2Error) as caught:
            make(**{key: value})
        assert str(caught.value) == message
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({key: value}))
    with pytest.raises(AGI2Error) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:1: {message}"
    path.write_text("")
    written = tomli_w.dumps({"v": value}).removeprefix("v = ").removeprefix("[v]\n").strip()
    if isinstance(value, dict):
        written = "{" + written + "}"
    with pytest.raises(AGI2Error) as caught:
        load_config(path, overrides=[f"{key}={written}"])
    assert str(caught.value) == f"--set {key}: {message}"


@pytest.mark.parametrize(
    ("key", "value", "plain"),
    [
        ("max_length", 50.0, 50),
        ("max_length", np.int8(5), 5),
        ("max_length", torch.tensor(5), 5),
        ("temperature", Decimal("0.5"), 0.5),
        ("temperature", np.float64(0.5), 0.5),
        ("top_k", 0, None),
        ("stop", None, []),
        ("stop", "a", ["a"]),
        ("stop", ("a", np.str_("b")), ["a", "b"]),
        ("stop", iter(["a"]), ["a"]),
        ("logit_bias", None, {}),
        ("logit_bias", {np.int64(3): torch.tensor(1.0), "a": 2}, {3: 1.0, "a": 2.0}),
    ],
)
def test_equivalent_values_of_python_are_converted(key, value, plain):
    found = getattr(GenerationConfig(**{key: value}), key)
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_length": torch.tensor(1, device="meta")}, "max_length must be an integer, not ten"),
        ({"logit_bias": {True: 1.0}}, "a token of logit_bias must be a string or an integer, not"),
        ({"stop": 5}, "stop must be a list of strings, not 5"),
        ({"stop": b"a"}, "stop must be a list of strings, not b'a'"),
        ({"temperature": None}, "temperature must be a number, not None"),
        ({"beam_early_stopping": "a"}, "beam_early_stopping must be True or False or 'never', not"),
        ({"temprature": 1}, "unknown key temprature; did you mean temperature?"),
        ({" ": 1}, "unknown key ' '; resources/default.toml lists every key"),
        ({"self": 1}, "unknown key self; resources/default.toml lists every key"),
    ],
)
def test_what_only_python_can_give_is_one_line(keys, message):
    with pytest.raises(AGI2Error) as caught:
        GenerationConfig(**keys)
    assert str(caught.value).startswith(message)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(AGI2Error) as caught:
        GenerationConfig(top_k=-1, top_p=2.0)
    assert str(caught.value).splitlines() == [
        "top_k must be at least 1, not -1",
        "top_p must be above 0 and at most 1, not 2.0",
    ]


def test_a_run_names_tokens_by_their_text_and_a_request_by_their_ids_too():
    assert GenerationConfig(logit_bias={3: 1.0}).logit_bias == {3: 1.0}
    with pytest.raises(AGI2Error, match=r"^logit_bias 3 is a token id: a configuration names"):
        Config(logit_bias={3: 1.0})


def test_the_section_of_a_configuration_is_the_one_that_its_keys_make():
    config = Config(epochs=3, temperature=0.25, stop="x", model_positions=64)
    keys = {"temperature": 0.25, "stop": ["x"], "max_context_length": 64}
    assert config.generation == GenerationConfig(**keys)
    assert type(config.generation) is GenerationConfig


@pytest.mark.parametrize("temperature", [0, 5e-324, 0.99e-5, 1e-5, 1.0])
def test_a_temperature_near_0_is_greedy(temperature):
    assert GenerationConfig(temperature=temperature).is_greedy == (temperature < 1e-5)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({}, False), ({"repetition_penalty": 1.1}, True), ({"no_repeat_ngram": 1}, True)],
)
def test_some_processors_depend_on_the_prompt(keys, expected):
    assert GenerationConfig(**keys).needs_prompt is expected
