"""The recipes of a sweep: parsing of `--try`, the default space, and the search."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.train.sweep_space import (
    Range,
    Values,
    default_space,
    draw_recipes,
    parse_space,
    space_from_json,
    space_to_json,
)
from tests.tiny_models import saved_model, tiny_config


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("learning_rate=1e-3,3e-3", Values((1e-3, 3e-3))),
        ("learning_rate = 1, 2", Values((1.0, 2.0))),
        ("dropout=0:0.3", Range(0.0, 0.3, False)),
        ("weight_decay=1:2", Range(1.0, 2.0, False)),
        ("batch_size=4:64", Range(4, 64, True)),
        ("vocab_size=auto,2048", Values(("auto", 2048))),
        ("vocab_size=300:400", Range(300, 400, True)),
        ("lr_schedule=linear,wsd", Values(("linear", "wsd"))),
        ('windows="stream","packed"', Values(("stream", "packed"))),
        ("bias=true,false", Values((True, False))),
        ("source_weights=[1,2],[2,1]", Values(([1, 2], [2, 1]))),
    ],
)
def test_values_and_ranges_are_parsed(argument, expected):
    config = tiny_config(sources=["a", "b"])
    [(key, choice)] = parse_space([argument], config).items()
    assert key == argument.partition("=")[0].strip()
    assert choice == expected


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["learning_rate"], "--try learning_rate: write KEY=VALUES, for example"),
        (["learning_rate="], "write KEY=VALUES"),
        (["lr=1"], "--try: unknown key lr; did you mean learning_rate?"),
        (["seed=1,2"], "--try seed: runs that differ in it cannot be compared"),
        (["val_fraction=0.1,0.2"], "cannot be compared"),
        (["temperature=0.1,0.2"], "cannot be compared"),
        (["max_steps=1,2"], "cannot be compared"),
        (["dropout=0.1,2"], "--try dropout=2: dropout must be "),
        (["dropout=0.1,,0.2"], "--try dropout=: a value is empty"),
        (["dropout=0.3:0.1"], "--try dropout=0.3:0.1: the range is empty"),
        (["dropout=0:1"], "--try dropout=1: dropout must be "),
        (["learning_rate=fast:slow"], "--try learning_rate=fast:slow: learning_rate must be"),
        (["dropout=0.1,0.1"], "a value is in it twice"),
        (["dropout=0.1", "dropout=0.2"], "--try dropout is given twice"),
        (["model_embd=15,16"], "--try model_embd: model_embd 15 is not divisible by model_head 2"),
        (['windows="stream'], "--try windows="),
    ],
)
def test_wrong_arguments_are_one_line(arguments, error):
    with pytest.raises(AGI2Error) as caught:
        parse_space(arguments, tiny_config())
    assert len(caught.value.args) == 1
    assert error in str(caught.value)


def test_a_value_may_need_another_that_is_tried():
    config = tiny_config()
    space = parse_space(["model_embd=15,16", "model_head=2,5"], config)
    recipes = draw_recipes(space, config, 10, 1)
    assert {tuple(recipe.values()) for recipe in recipes} == {(16, 2), (15, 5)}
    with pytest.raises(AGI2Error, match="no combination of the values is valid: model_embd 15"):
        draw_recipes(parse_space(["model_embd=15,17", "model_head=4,8"], config), config, 9, 1)


def test_sizes_are_those_of_the_model_to_start_from(tmp_path):
    saved_model(tmp_path / "model")
    config = tiny_config(init_from=str(tmp_path / "model"))
    with pytest.raises(AGI2Error, match="--try model_embd: it is that of the model of init_from"):
        parse_space(["model_embd=16,32"], config)
    assert "dropout" in parse_space(["dropout=0.1,0.2"], config)
    assert not {"model_embd", "model_layer"} & default_space(config).keys()


@given(
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 8, 12]),
    st.integers(1, 100),
    st.integers(1, 64),
    st.floats(0, 0.9),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.sampled_from(["adamw", "muon"]),
)
def test_the_default_space_is_valid_around_any_configuration(
    layers, heads, size, batch, dropout, decay, optimizer
):
    config = tiny_config(
        model_layer=layers,
        model_head=heads,
        model_embd=heads * size,
        batch_size=batch,
        dropout=dropout,
        weight_decay=decay,
        optimizer=optimizer,
    )
    space = default_space(config)
    assert ("muon_learning_rate" in space) == (optimizer == "muon")
    recipes = draw_recipes(space, config, 6, 1)
    assert len(recipes) == 6
    assert recipes[0] == {key: config[key] for key in space}
    assert len({json.dumps(recipe) for recipe in recipes}) == 6
    for recipe in recipes:
        changed = config.changed(**recipe)
        assert {key: changed[key] for key in recipe} == recipe
        assert 0.5 <= recipe["learning_rate"] / config.learning_rate <= 2
        assert recipe["model_embd"] / heads % 8 == 0 or size % 8


def test_more_recipes_begin_with_the_same_ones_and_a_seed_changes_them():
    config = tiny_config()
    space = default_space(config)
    recipes = draw_recipes(space, config, 20, 1)
    assert draw_recipes(space, config, 5, 1) == recipes[:5]
    assert draw_recipes(space, config, 5, 2)[0] == recipes[0]
    assert draw_recipes(space, config, 5, 2)[1:] != recipes[1:5]
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


def test_a_small_space_has_few_recipes():
    config = tiny_config(dropout=0.1)
    recipes = draw_recipes(parse_space(["dropout=0.1,0.2,0.3"], config), config, 12, 1)
    assert sorted(recipe["dropout"] for recipe in recipes) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("is_integer", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2, 6])
def test_the_search_covers_a_range_evenly(is_integer, dimensions):
    """Of 40 points, each of ten equal parts of the logarithm of a range has 1 to 8."""
    config = tiny_config()
    keys = ["weight_decay", "learning_rate", "muon_learning_rate", "lr_decay_fraction", "dropout"]
    space = {key: Range(0.01, 0.5, False) for key in keys[: dimensions - 1]}
    space["batch_size"] = Range(1, 2**10 - 1, True)
    if not is_integer:
        space["batch_size"] = Values((1,))
        space["adam_beta2"] = Range(0.01, 0.5, False)
    key = "batch_size" if is_integer else "adam_beta2"
    found = [recipe[key] for recipe in draw_recipes(space, config, 41, 5)[1:]]
    low, high = (1, 2**10) if is_integer else (0.01, 0.5)
    assert all(low <= value <= high for value in found)
    parts = [int(10 * math.log(value / low) / math.log(high / low)) for value in found]
    counts = [parts.count(part) for part in range(10)]
    # Integers near 1 are so few that some parts of their logarithm have none.
    checked = counts[3:] if is_integer else counts
    assert all(1 <= count <= 8 for count in checked), counts
