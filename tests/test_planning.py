"""A plan is a configuration that runs, and an expectation that its table bears out."""

import importlib.util
import json
import math
import re
import tomllib
from dataclasses import astuple, fields
from pathlib import Path

import pytest
import torch
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st

from src import planning
from src.config_loader import load_config, make_config
from src.errors import AGI2Error
from src.planning import (
    EXPECTATION,
    SHAPES,
    Corpus,
    Expectation,
    Speed,
    choose,
    dropout_for,
    effective_bytes,
    hardness_of,
    propose,
    to_toml,
    vocabulary_for,
)

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(make_text(2000), encoding="utf-8")
    return path


def fitting():
    """The script that fits the constants."""
    spec = importlib.util.spec_from_file_location("fit_plan", ROOT / "benchmarks/fit_plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_constants_are_those_that_the_table_of_runs_gives():
    module = fitting()
    found = module.fit(module.load())
    assert astuple(EXPECTATION) == pytest.approx(astuple(found), rel=2e-3)


def test_the_runs_of_the_table_are_within_twice_the_stated_error():
    module = fitting()
    rows = module.load()
    wrong = [
        row["text"]
        for row in rows
        if abs(
            EXPECTATION.bits_per_byte(
                row["compressed"], row["parameters"], row["train_bytes"], module.seen_bytes(row)
            )
            / row["bits_per_byte"]
            - 1
        )
        > 2 * EXPECTATION.error
    ]
    assert len(wrong) <= 0.1 * len(rows)


def test_the_fit_finds_a_law_that_made_its_table():
    law = Expectation(0.5, 3.0, 80.0, 0.4, 0.0)
    rows = []
    for text, hardness in (("a", 2.0), ("b", 2.5)):
        for parameters in (10**5, 10**6, 10**7):
            for steps in (100, 1000, 10_000):
                row = {"text": text, "compressed": hardness, "parameters": parameters}
                row |= {"steps": steps, "batch": 8, "context": 128}
                row |= {"train_bytes": 10**6, "train_tokens": 3 * 10**5}
                seen = fitting().seen_bytes(row)
                row["bits_per_byte"] = law.bits_per_byte(hardness, parameters, 10**6, seen)
                rows.append(row)
    found = fitting().fit(rows)
    assert astuple(found)[:4] == pytest.approx(astuple(law)[:4], rel=1e-2)
    assert found.error < 1e-3


@given(st.floats(1e3, 1e9), st.floats(0.01, 100))
def test_repeated_text_is_worth_less_than_fresh_text(size, passes):
    worth = effective_bytes(size, passes * size)
    assert worth <= passes * size * (1 + 1e-9)
    assert worth <= 16 * size
    if passes <= 1:
        assert worth == passes * size
    assert effective_bytes(size, 1.1 * passes * size) > worth * (1 - 1e-9)


def test_a_text_that_repeats_itself_is_easier():
    assert hardness_of(b"whale " * 1000) < 1 < hardness_of(bytes(range(256)) * 4)


def test_a_larger_text_has_a_larger_vocabulary():
    sizes = [vocabulary_for(size) for size in (10**5, 6 * 10**5, 10**6, 2 * 10**7, 10**9)]
    assert sizes == [1024, 2048, 4096, 8192, 32_000]


def test_a_proposal_is_written_and_told(text, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_MEASURED_SECONDS", 0)
    monkeypatch.setattr(planning, "SHAPES", SHAPES[:2])
    out = tmp_path / "mine.toml"
    lines = list(propose([str(text)], 0.5, out))
    config = load_config(out, "training")
    assert (config.model_name, config.sources) == ("mine", [str(text)])
    assert config.max_minutes == pytest.approx(0.475, abs=0.006)
    assert out.read_text("utf-8") in lines
    assert all(line.startswith("#") for line in lines if line != out.read_text("utf-8"))
    told = "\n".join(lines)
    assert re.search(r"expected: [\d,]+ steps of 1,024 tokens, [\d,]+ tokens", told)
    assert re.search(r"expected: \d\.\d\d bits per byte .* give or take \d\.\d\d", told)
    with pytest.raises(AGI2Error, match="exists: name another file with --out"):
        list(propose([str(text)], 0.5, out))


def speeds(monkeypatch, flops):
    """A machine that does so many operations a second, whatever the shape."""
    monkeypatch.setattr(
        planning, "_measure", lambda keys, corpus: Speed(flops / planning._flops(keys), 3.5)
    )


def test_more_time_and_a_faster_machine_make_a_larger_model(monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda device: 10**12)
    corpus = Corpus(["a.txt"], 1_200_000, 2.5, "")
    large = Corpus(["a.txt"], 2_000_000_000, 2.5, "")
    plans = []
    for flops, minutes, what in (
        (4e10, 1, corpus),
        (4e10, 30, corpus),
        (4e10, 600, corpus),
        (4e14, 600, large),
    ):
        speeds(monkeypatch, flops)
        plans.append(choose(what, minutes, CPU, "m"))
    sizes = [plan.parameters for plan in plans]
    assert sizes == sorted(set(sizes))
    assert plans[-1].parameters > 100_000_000
    assert [plan.keys["optimizer"] for plan in plans] == ["muon"] * 3 + ["adamw"]
    short, long = plans[0], plans[2]
    assert long.bits_per_byte < short.bits_per_byte
    assert long.keys["dropout"] > short.keys["dropout"] == 0


def test_what_a_plan_says_fits_together(monkeypatch):
    speeds(monkeypatch, 4e10)
    plan = choose(Corpus(["a.txt"], 1_200_000, 2.5, ""), 10, CPU, "m")
    config = make_config(plan.keys)
    assert plan.tokens == plan.steps * config.batch_size * config.seq_len
    assert plan.passes == pytest.approx(3.5 * plan.tokens / 1_080_000)
    assert 9 <= plan.steps / config.eval_interval <= 11


def test_no_shape_is_chosen_that_does_not_fit(monkeypatch):
    speeds(monkeypatch, 4e14)
    monkeypatch.setattr(planning, "available_memory", lambda device: 0)
    plan = choose(Corpus(["a.txt"], 2_000_000_000, 2.5, ""), 600, CPU, "m")
    assert plan.keys["model_embd"] == SHAPES[0].width


def test_every_shape_is_a_configuration():
    for shape in SHAPES:
        config = make_config(planning._keys(Corpus(["a"], 10**6, 2.0, ""), shape, "m"))
        assert config.model_embd % config.model_head == 0
    sizes = [shape.layers * shape.width**2 for shape in SHAPES]
    assert sizes == sorted(sizes)


def test_the_toml_holds_its_keys():
    keys = {"sources": ['a "b".txt', "ß"], "dropout": 0.1, "max_minutes": 9.5}
    written = to_toml(keys, 10)
    assert tomllib.loads(written) == keys
    assert written.count("#") == 4


def test_the_table_names_no_place():
    rows = json.loads((ROOT / "benchmarks/results/planning_runs.json").read_text("utf-8"))["rows"]
    assert all("/" not in row["text"] for row in rows)
    assert all(math.isfinite(row["bits_per_byte"]) for row in rows)
    assert {field.name for field in fields(Expectation)} == {
        *("floor", "size", "data", "data_exponent", "error")
    }


@pytest.mark.parametrize("minutes", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_one_line(tmp_path, minutes):
    with pytest.raises(AGI2Error, match=r"--minutes (nan|inf): name a number"):
        next(propose([], minutes, tmp_path / "my.toml"))


@pytest.mark.parametrize(
    ("parameters", "text_tokens", "passes", "rate"),
    [
        (370_432, 203_558, 9.8, 0.0),  # the runs in benchmarks/README.md
        (1_334_016, 324_266, 6.1, 0.1),
        (1_334_016, 324_266, 9.4, 0.1),
        (940_000, 93_000, 18.0, 0.1),
        (124_000_000, 1_000_000, 4.0, 0.0),  # hardly repeated
        (124_000_000, 1_000_000, 4.1, 0.2),
    ],
)
def test_dropout_is_for_text_that_can_be_learned_by_heart(parameters, text_tokens, passes, rate):
    assert dropout_for(parameters, text_tokens, passes) == rate
