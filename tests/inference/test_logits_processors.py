"""Logits processors against `transformers` and their definitions."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from src.config_keys import GenerationConfig
from src.inference.logits_processors import (
    _FEW,
    apply_count_penalties,
    apply_logit_bias,
    apply_min_p,
    apply_no_repeat_ngram,
    apply_repetition_penalty,
    apply_top_k,
    apply_top_p,
    apply_typical_p,
    process_logits,
)
from tests.bounds import (
    assert_within,
    gamma,
    rounding_in_float64,
)
from tests.conftest import raising

SEEDS = st.integers(0, 9999)


INSIDE = st.floats(0.01, 0.99)


WIDTH = 17


def random_logits(seed: int, rows: int = 3, width: int = WIDTH) -> torch.Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def random_tokens(seed: int, length: int, rows: int = 3, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(width, (rows, length), generator=generator)


# From 1: some versions of transformers refuse a bias of token 0.
BIASES = st.dictionaries(st.integers(1, 16), st.floats(-9, 9), min_size=1)


@given(seed=SEEDS, bias=BIASES)
@settings(deadline=None, max_examples=30)
def test_the_logit_bias_is_transformers(seed, bias):
    logits = random_logits(seed)
    theirs = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    expected = theirs(random_tokens(seed, 3), logits.clone())
    assert torch.equal(apply_logit_bias(logits, bias), expected)


@given(seed=SEEDS, penalty=st.floats(0.1, 5))
@settings(deadline=None, max_examples=30)
def test_the_repetition_penalty_is_transformers(seed, penalty):
    logits, seen = random_logits(seed), random_tokens(seed, 6)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    assert torch.equal(apply_repetition_penalty(logits, seen, penalty), expected)


def test_a_repetition_penalty_makes_seen_tokens_alone_less_likely():
    logits = torch.tensor([[2.0, -2.0, 0.5, 1.0]])
    penalised = apply_repetition_penalty(logits, torch.tensor([[0, 1, 0]]), 2.0)
    assert penalised.tolist() == [[1.0, -4.0, 0.5, 1.0]]
    assert apply_repetition_penalty(logits, torch.tensor([[0, 1]]), 1.0) is logits
    assert logits.tolist() == [[2.0, -2.0, 0.5, 1.0]]


@given(seed=SEEDS, length=st.integers(0, 30), presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
@settings(deadline=None, max_examples=30)
def test_presence_and_frequency_penalties_are_their_definition(seed, length, presence, frequency):
    """`logit - frequency * count - presence * (count > 0)`, token by token."""
    logits, written = random_logits(seed), random_tokens(seed, length)
    expected = logits.double()
    size = expected.abs()  # of all that is added up
    for row, tokens in enumerate(written.tolist()):
        for token, count in Counter(tokens).items():
            expected[row, token] -= frequency * count + presence
            size[row, token] += abs(frequency) * count + abs(presence)
    found = apply_count_penalties(logits, written, presence, frequency)
    assert_within(found, expected, gamma(5) * size)  # both numbers, a product and two differences


@given(seed=SEEDS, length=st.integers(1, 30), size=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_the_ban_of_repeated_ngrams_is_transformers(seed, length, size):
    logits, tokens = random_logits(seed, width=3), random_tokens(seed, length, width=3)
    expected = NoRepeatNGramLogitsProcessor(size)(tokens, logits.clone())
    assert torch.equal(apply_no_repeat_ngram(logits, tokens, size), expected)


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12), size=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_exactly_those_tokens_are_banned_that_would_repeat_an_ngram(tokens, size):
    def runs(text):
        return [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]

    kept = apply_no_repeat_ngram(torch.zeros(1, 3), torch.tensor([tokens]), size)
    for token, is_kept in enumerate(kept[0].isfinite().tolist()):
        grown = [*tokens, token]
        new = runs(grown)[-1:]
        assert is_kept == (not new or new[0] not in runs(tokens))


@given(seed=SEEDS, k=st.integers(1, 25))
@settings(deadline=None, max_examples=30)
def test_top_k_is_transformers(seed, k):
    logits = random_logits(seed)
    kept = apply_top_k(logits, k)
    assert torch.equal(kept, TopKLogitsWarper(k)(None, logits.clone()))
    assert kept.isfinite().sum(-1).tolist() == [min(k, WIDTH)] * 3


@given(seed=SEEDS, p=st.floats(0.01, 0.999) | st.just(1.0))  # nearer, it is a matter of rounding
@settings(deadline=None, max_examples=30)
def test_top_p_is_transformers(seed, p):
    logits = random_logits(seed)
    assert torch.equal(apply_top_p(logits, p), TopPLogitsWarper(p)(None, logits.clone()))


@given(seed=SEEDS, p=st.floats(0.001, 1))
@settings(deadline=None, max_examples=30)
def test_min_p_is_transformers(seed, p):
    logits = random_logits(seed)
    assert torch.equal(apply_min_p(logits, p), MinPLogitsWarper(p)(None, logits.clone()))


@given(seed=SEEDS, p=INSIDE, k=st.integers(2, WIDTH))
@settings(deadline=None, max_examples=30)
def test_typical_p_is_transformers_also_where_tokens_are_excluded(seed, p, k):
    logits = apply_top_k(random_logits(seed), k)
    assert torch.equal(apply_typical_p(logits, p), TypicalLogitsWarper(p)(None, logits.clone()))


@given(seed=SEEDS, p=INSIDE, width=st.sampled_from([WIDTH, 4 * _FEW]))
@settings(deadline=None, max_examples=30)
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p, width):
    logits = random_logits(seed, width=width).double()
    for row, kept in zip(logits, apply_top_p(logits, p).isfinite(), strict=True):
        inside = row.softmax(-1)[kept]
        rounding = rounding_in_float64(inside)
        assert float(inside.sum()) >= p - rounding
        assert float(inside.sum() - inside.min()) < p + rounding
        assert kept.all() or row[~kept].max() <= row[kept].min()


@given(seed=SEEDS, p=INSIDE, few=st.integers(1, WIDTH - 1), step=st.sampled_from([0, 1, 4]))
@settings(deadline=None, max_examples=30)
def test_however_few_tokens_are_looked_at_first_the_same_stay(seed, p, few, step):
    logits = random_logits(seed)
    if step:  # many of equal rank
        logits = (logits / step).round() * step
    expected = [apply_top_p(logits, p), apply_typical_p(logits, p)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.inference.logits_processors._FEW", few)
        found = [apply_top_p(logits, p), apply_typical_p(logits, p)]
    assert all(map(torch.equal, found, expected))


def test_a_large_vocabulary_is_not_ordered_whole_where_few_tokens_make_up_the_share(monkeypatch):
    logits = random_logits(0, width=4 * _FEW)
    expected = apply_top_p(logits, 0.5)
    monkeypatch.setattr(torch.Tensor, "argsort", raising(AssertionError))
    assert torch.equal(apply_top_p(logits, 0.5), expected)


def test_no_limit_keeps_every_token():
    logits = random_logits(0)
    for limited in (
        apply_top_k(logits, None),
        apply_top_k(logits, WIDTH),
        apply_top_k(logits, 10**9),
        apply_top_p(logits, None),
        apply_top_p(logits, 1.0),
        apply_min_p(logits, None),
        apply_typical_p(logits, None),
        apply_typical_p(logits, 1.0),
        apply_no_repeat_ngram(logits, random_tokens(0, 9), None),
    ):
        assert limited is logits


def test_ties_with_the_kth_token_stay():
    kept = apply_top_k(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[True, True, True, False]]


@given(
    seed=SEEDS,
    temperature=st.floats(0.2, 3),
    options=st.fixed_dictionaries(
        {
            "top_k": st.none() | st.integers(3, 20),
            "top_p": st.none() | INSIDE,
            "min_p": st.none() | INSIDE,
            "typical_p": st.none() | INSIDE,
            "repetition_penalty": st.just(1.0) | st.floats(0.5, 2),
            "no_repeat_ngram": st.none() | st.integers(1, 3),
            "min_length": st.integers(0, 9),
            "logit_bias": st.dictionaries(st.integers(0, 16), st.floats(-3, 3)),
        }
    ),
)
@settings(deadline=None, max_examples=30)
def test_all_options_together_are_transformers_in_its_order(seed, temperature, options):
    prompt_length, end_token = 4, 5
    logits, tokens = random_logits(seed), random_tokens(seed, 8)
    theirs = LogitsProcessorList()
    if bias := options["logit_bias"]:
        theirs.append(SequenceBiasLogitsProcessor([[[t], v] for t, v in bias.items()]))
    theirs.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options["no_repeat_ngram"]:
        theirs.append(NoRepeatNGramLogitsProcessor(options["no_repeat_ngram"]))
    theirs.append(
        MinNewTokensLengthLogitsProcessor(prompt_length, options["min_length"], end_token)
    )
    bans = len(theirs)
    theirs.append(TemperatureLogitsWarper(temperature))
    for kind, key in (
        (TopKLogitsWarper, "top_k"),
        (TopPLogitsWarper, "top_p"),
        (MinPLogitsWarper, "min_p"),
        (TypicalLogitsWarper, "typical_p"),
    ):
        if options[key] is not None:
            theirs.append(kind(options[key]))
    before = logits.clone()
    given = GenerationConfig(temperature=temperature, **options)
    found = process_logits(logits, tokens, given, prompt_length, end_token)
    assert torch.equal(found, theirs(tokens, logits.clone()))
    greedy = given.model_copy(update={"temperature": 0.0})
    found = process_logits(logits, tokens, greedy, prompt_length, end_token)
    assert torch.equal(found, LogitsProcessorList(theirs[:bans])(tokens, logits.clone()))
    assert torch.equal(logits, before)


def test_presence_and_frequency_penalties_count_the_new_text_alone():
    options = GenerationConfig(temperature=0, presence_penalty=1.0, frequency_penalty=0.5)
    found = process_logits(torch.zeros(1, 4), torch.tensor([[0, 1, 1, 2, 1]]), options, 2)
    assert found.tolist() == [[0.0, -2.0, -1.5, 0.0]]


def test_greedy_without_options_hands_back_the_models_own_logits():
    logits = random_logits(0)
    options = GenerationConfig(temperature=0, top_k=3, top_p=0.5)
    assert process_logits(logits, random_tokens(0, 4), options, 2, 1) is logits
