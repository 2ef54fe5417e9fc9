import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from src.sampling import apply_repetition_penalty, apply_top_k, apply_top_p, sample

SEEDS = st.integers(0, 9999)
MANY = 40_000


def random_logits(seed: int, rows: int = 3, width: int = 17) -> torch.Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def frequencies(logits: torch.Tensor, **options) -> torch.Tensor:
    """How often each token is drawn for one row of logits."""
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(MANY, -1), generator=generator, **options)
    return torch.bincount(drawn, minlength=logits.size(-1)) / MANY


@given(seed=SEEDS, penalty=st.floats(0.1, 5))
@settings(deadline=None, max_examples=30)
def test_the_repetition_penalty_is_transformers(seed, penalty):
    logits = random_logits(seed)
    seen = torch.randint(17, (3, 6), generator=torch.Generator().manual_seed(seed))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    torch.testing.assert_close(apply_repetition_penalty(logits, seen, penalty), expected)


def test_a_repetition_penalty_makes_seen_tokens_alone_less_likely():
    logits = torch.tensor([[2.0, -2.0, 0.5, 1.0]])
    penalised = apply_repetition_penalty(logits, torch.tensor([[0, 1, 0]]), 2.0)
    assert penalised.tolist() == [[1.0, -4.0, 0.5, 1.0]]
    assert apply_repetition_penalty(logits, torch.tensor([[0, 1]]), 1.0).tolist() == logits.tolist()
    assert logits.tolist() == [[2.0, -2.0, 0.5, 1.0]]


@given(seed=SEEDS, k=st.integers(1, 25))
@settings(deadline=None, max_examples=30)
def test_top_k_is_transformers(seed, k):
    logits = random_logits(seed)
    kept = apply_top_k(logits, k)
    assert torch.equal(kept, TopKLogitsWarper(k)(None, logits.clone()))
    assert kept.isfinite().sum(-1).tolist() == [min(k, 17)] * 3


@given(seed=SEEDS, p=st.floats(0.01, 1))
@settings(deadline=None, max_examples=30)
def test_top_p_is_transformers(seed, p):
    logits = random_logits(seed)
    assert torch.equal(apply_top_p(logits, p), TopPLogitsWarper(p)(None, logits.clone()))


@given(seed=SEEDS, p=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=30)
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p):
    logits = random_logits(seed)
    shares = logits.double().softmax(-1)
    for row, kept in zip(shares, apply_top_p(logits, p).isfinite(), strict=True):
        inside = row[kept]
        assert float(inside.sum()) >= p - 1e-6
        assert float(inside.sum() - inside.min()) < p + 1e-6
        assert (~kept).sum() == 0 or float(row[~kept].max()) <= float(inside.min())


def test_no_limit_keeps_every_token():
    logits = random_logits(0)
    for limited in (
        apply_top_k(logits, None),
        apply_top_k(logits, 17),
        apply_top_k(logits, 10**9),
        apply_top_p(logits, None),
        apply_top_p(logits, 1.0),
    ):
        assert torch.equal(limited, logits)


def test_ties_with_the_kth_token_stay():
    kept = apply_top_k(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_tempered_softmax_says(temperature):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    expected = TemperatureLogitsWarper(temperature)(None, logits).softmax(-1)[0]
    found = frequencies(logits, temperature=temperature)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_limits_are_applied_after_the_temperature_first_k_then_p():
    logits = random_logits(0, rows=1)
    by_k, by_p = TopKLogitsWarper(6), TopPLogitsWarper(0.8)
    expected = by_p(None, by_k(None, logits / 1.7))
    assert not torch.equal(expected, by_k(None, by_p(None, logits / 1.7)))
    shares = expected.softmax(-1)[0]
    assert 1 < int((shares > 0).sum()) < 6
    found = frequencies(logits, temperature=1.7, top_k=6, top_p=0.8)
    torch.testing.assert_close(found, shares, atol=0.01, rtol=0)
    assert float(found[shares == 0].max()) == 0


@given(seed=SEEDS, temperature=st.sampled_from([0, 0.0, 5e-324, 1e-38, 1e-9, 1e-5]))
@settings(deadline=None, max_examples=30)
def test_temperature_0_and_what_is_next_to_it_take_the_likeliest(seed, temperature):
    logits = random_logits(seed)
    assert torch.equal(sample(logits, temperature), logits.argmax(-1))


def test_one_candidate_is_always_drawn():
    logits = random_logits(1)
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(sample(logits, 5.0, **options), logits.argmax(-1))


def test_a_generator_alone_decides_what_is_drawn():
    logits = random_logits(2, rows=50)
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        draws.append(sample(logits, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], sample(logits, generator=torch.Generator().manual_seed(8)))


def test_half_precision_logits_can_be_sampled():
    drawn = sample(random_logits(4).bfloat16(), 0.8, 5, 0.9)
    assert drawn.shape == (3,)
    assert bool(((drawn >= 0) & (drawn < 17)).all())
