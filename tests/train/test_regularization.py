"""Dropout and weight decay that plans propose."""

import pytest

from src.train.regularization import regularization_for


@pytest.mark.parametrize(
    ("optimizer", "parameters", "text_tokens", "passes", "rates"),
    [
        ("muon", 1_334_016, 324_266, 1.6, (0.0, 0.1)),  # the runs in benchmarks/README.md
        ("muon", 1_334_016, 210_000, 6.8, (0.0, 0.5)),
        ("muon", 1_334_016, 324_266, 18.6, (0.0, 0.5)),
        ("muon", 1_000_000, 100_000, 18.0, (0.0, 1.2)),
        ("muon", 1_000_000, 20_000, 18.0, (0.1, 1.2)),
        ("adamw", 124_000_000, 1_000_000, 4.0, (0.0, 0.1)),  # hardly repeated
        ("adamw", 124_000_000, 1_000_000, 4.1, (0.2, 0.1)),
    ],
)
def test_text_that_can_be_learned_by_heart_is_regularized(
    optimizer, parameters, text_tokens, passes, rates
):
    assert regularization_for(optimizer, parameters, text_tokens, passes) == rates
