"""The scaling law: its constants, its error, and the range in which it is valid."""

import importlib.util
import json
import math
from dataclasses import astuple, fields
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.train.scaling_law import FITTED, SCALING_LAW, ScalingLaw, effective_bytes
from tests.bounds import gamma, nearly

ROOT = Path(__file__).parents[2]


def is_rounded(written, exact):
    """Whether a number is another one, rounded to as many digits as it is written with."""
    last = Decimal(str(written)).as_tuple().exponent
    return abs(Decimal(exact) - Decimal(str(written))) <= Decimal(10) ** last / 2


def fitting():
    """The script that fits the constants."""
    spec = importlib.util.spec_from_file_location("fit_plan", ROOT / "benchmarks/fit_plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_constants_are_those_that_the_table_of_runs_gives():
    module = fitting()
    found = module.fit(module.load())
    assert all(map(is_rounded, astuple(SCALING_LAW), astuple(found)))


def test_the_runs_of_the_table_are_within_twice_the_stated_error():
    module = fitting()
    rows = module.load()
    wrong = [
        row["text"]
        for row in rows
        if abs(
            SCALING_LAW.bits_per_byte(
                row["entropy"], row["parameters"], row["train_bytes"], module.seen_bytes(row)
            )
            / row["bits_per_byte"]
            - 1
        )
        > 2 * SCALING_LAW.error
    ]
    assert len(wrong) <= 0.1 * len(rows)


def test_the_fit_finds_a_law_that_made_its_table():
    law = ScalingLaw(0.5, 3.0, 80.0, 0.4, 0.0)
    rows = []
    for text, entropy in (("a", 2.0), ("b", 2.5)):
        for parameters in (10**5, 10**6, 10**7):
            for steps in (100, 1000, 10_000):
                row = {"text": text, "entropy": entropy, "parameters": parameters}
                row |= {"steps": steps, "batch": 8, "context": 128}
                row |= {"train_bytes": 10**6, "train_tokens": 3 * 10**5}
                seen = fitting().seen_bytes(row)
                row["bits_per_byte"] = law.bits_per_byte(entropy, parameters, 10**6, seen)
                rows.append(row)
    found = fitting().fit(rows)
    # Least squares in float64: a few thousand roundings, which the fit's condition enlarges.
    assert astuple(found)[:4] == nearly(astuple(law)[:4], 10**7)
    assert found.error <= gamma(10**7, torch.float64)


@given(st.floats(1e3, 1e9), st.floats(0.01, 100))
def test_repeated_text_is_worth_less_than_fresh_text(size, epochs):
    worth = effective_bytes(size, epochs * size)
    # 15 texts by the difference of 1 and a power of e: 16 times the error of a few roundings.
    rounding = gamma(16 * 16, torch.float64)
    assert worth <= epochs * size * (1 + rounding)
    assert worth <= 16 * size
    if epochs <= 1:
        assert worth == epochs * size
    assert effective_bytes(size, 1.1 * epochs * size) > worth * (1 - rounding)


def test_the_table_names_no_place():
    rows = json.loads((ROOT / "benchmarks/results/planning_runs.json").read_text("utf-8"))["rows"]
    assert all("/" not in row["text"] for row in rows)
    assert all(math.isfinite(row["bits_per_byte"]) for row in rows)
    assert {field.name for field in fields(ScalingLaw)} == {
        *("irreducible", "size_coefficient", "data_coefficient", "data_exponent", "error")
    }


def test_the_range_is_that_of_the_table_of_runs():
    module = fitting()
    found = module.fitted_range(module.load())
    for ours, theirs in zip(astuple(FITTED), astuple(found), strict=True):
        assert all(map(is_rounded, ours, theirs))


INSIDE = {"text_bytes": 1e6, "parameters": 1e6, "epochs": 3.0, "entropy": 2.2}


def test_every_run_of_the_table_is_inside_the_range():
    module = fitting()
    for row in module.load():
        epochs = module.seen_bytes(row) / row["train_bytes"]
        found = (row["train_bytes"], row["parameters"], epochs, row["entropy"])
        assert not FITTED.why_outside(*found)


@pytest.mark.parametrize("key", INSIDE)
@pytest.mark.parametrize("factor", [0.49, 0.51, 1.99, 2.01])
def test_beyond_twice_the_runs_the_reason_is_named(key, factor):
    least, most = getattr(FITTED, key)
    value = factor * (least if factor < 1 else most)
    why = FITTED.why_outside(**{**INSIDE, key: value})
    words = {"text_bytes": "the text has", "parameters": "parameters", "epochs": "epochs"}
    assert (words.get(key, "a trigram model needs") in why) == (factor in (0.49, 2.01))


def test_the_reason_has_the_figures():
    why = FITTED.why_outside(**{**INSIDE, "text_bytes": 13})
    assert why == "the text has 13 B, those runs had 270.0 KB to 1.1 MB"
