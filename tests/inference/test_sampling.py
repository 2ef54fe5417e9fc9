import dataclasses
import itertools
import math
import random
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

from src.config import Config
from src.errors import AGI2Error
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
from src.inference.sampling import MASKED, NO_TOKEN, SamplingParams, sample, sampling_keys
from tests.bounds import (
    assert_within,
    by_chance,
    gamma,
    log_softmax_bound,
    rounding_in_float64,
)
from tests.conftest import raising

SEEDS = st.integers(0, 9999)
INSIDE = st.floats(0.01, 0.99)
WIDTH = 17
MANY = 40_000


def random_logits(seed: int, rows: int = 3, width: int = WIDTH) -> torch.Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def random_tokens(seed: int, length: int, rows: int = 3, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(width, (rows, length), generator=generator)


def uniforms(count: int, seed: int = 0) -> list[float]:
    numbers = random.Random(seed)
    return [numbers.random() for _ in range(count)]


def frequencies(logits: torch.Tensor) -> torch.Tensor:
    """How often each token is drawn for one row of processed logits."""
    drawn = sample(logits.expand(MANY, -1), uniforms(MANY))
    return torch.bincount(drawn, minlength=logits.size(-1)) / MANY


# --- bias, penalties and bans ---------------------------------------------------------------


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
@settings(deadline=None, max_examples=60)
def test_the_ban_of_repeated_ngrams_is_transformers(seed, length, size):
    logits, tokens = random_logits(seed, width=3), random_tokens(seed, length, width=3)
    expected = NoRepeatNGramLogitsProcessor(size)(tokens, logits.clone())
    assert torch.equal(apply_no_repeat_ngram(logits, tokens, size), expected)


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12), size=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_exactly_those_tokens_are_banned_that_would_repeat_an_ngram(tokens, size):
    def runs(text):
        return [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]

    kept = apply_no_repeat_ngram(torch.zeros(1, 3), torch.tensor([tokens]), size)
    for token, is_kept in enumerate(kept[0].isfinite().tolist()):
        grown = [*tokens, token]
        new = runs(grown)[-1:]
        assert is_kept == (not new or new[0] not in runs(tokens))


# --- limits ---------------------------------------------------------------------------------


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
@settings(deadline=None, max_examples=60)
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p, width):
    logits = random_logits(seed, width=width).double()
    for row, kept in zip(logits, apply_top_p(logits, p).isfinite(), strict=True):
        inside = row.softmax(-1)[kept]
        rounding = rounding_in_float64(inside)
        assert float(inside.sum()) >= p - rounding
        assert float(inside.sum() - inside.min()) < p + rounding
        assert kept.all() or row[~kept].max() <= row[kept].min()


@given(seed=SEEDS, p=INSIDE, few=st.integers(1, WIDTH - 1), step=st.sampled_from([0, 1, 4]))
@settings(deadline=None, max_examples=150)
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


# --- all of it ------------------------------------------------------------------------------


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
@settings(deadline=None, max_examples=100)
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
    given = SamplingParams(temperature=temperature, **options)
    found = process_logits(logits, tokens, given, prompt_length, end_token)
    assert torch.equal(found, theirs(tokens, logits.clone()))
    greedy = dataclasses.replace(given, temperature=0.0)
    found = process_logits(logits, tokens, greedy, prompt_length, end_token)
    assert torch.equal(found, LogitsProcessorList(theirs[:bans])(tokens, logits.clone()))
    assert torch.equal(logits, before)


def test_presence_and_frequency_penalties_count_the_new_text_alone():
    options = SamplingParams(temperature=0, presence_penalty=1.0, frequency_penalty=0.5)
    found = process_logits(torch.zeros(1, 4), torch.tensor([[0, 1, 1, 2, 1]]), options, 2)
    assert found.tolist() == [[0.0, -2.0, -1.5, 0.0]]


def test_greedy_without_options_hands_back_the_models_own_logits():
    logits = random_logits(0)
    options = SamplingParams(temperature=0, top_k=3, top_p=0.5)
    assert process_logits(logits, random_tokens(0, 4), options, 2, 1) is logits


def test_half_precision_logits_can_be_sampled():
    options = SamplingParams(temperature=0.8, top_k=5, top_p=0.9, frequency_penalty=0.1)
    logits = process_logits(random_logits(4).bfloat16(), random_tokens(0, 4), options, 2)
    drawn = sample(logits, uniforms(3))
    assert drawn.shape == (3,)
    assert bool(((drawn >= 0) & (drawn < WIDTH)).all())


# --- the draw -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_tempered_softmax_says(temperature):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    expected = TemperatureLogitsWarper(temperature)(None, logits).softmax(-1)[0]
    options = SamplingParams(temperature=temperature)
    found = frequencies(process_logits(logits, torch.zeros(1, 1).long(), options, 1))
    assert_within(found, expected, by_chance(expected, MANY))


def test_limits_are_applied_after_the_temperature_first_k_then_p():
    logits = random_logits(0, rows=1)
    by_k, by_p = TopKLogitsWarper(6), TopPLogitsWarper(0.8)
    expected = by_p(None, by_k(None, logits / 1.7))
    assert not torch.equal(expected, by_k(None, by_p(None, logits / 1.7)))
    shares = expected.softmax(-1)[0]
    assert 1 < int((shares > 0).sum()) < 6
    options = SamplingParams(temperature=1.7, top_k=6, top_p=0.8)
    found = frequencies(process_logits(logits, torch.zeros(1, 1).long(), options, 1))
    assert_within(found, shares, by_chance(shares, MANY))  # of none, none


@given(seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_a_number_draws_the_token_at_which_the_cumulated_probability_passes_it(seed):
    logits, numbers = random_logits(seed), uniforms(3, seed)
    for row, number, token in zip(logits, numbers, sample(logits, numbers).tolist(), strict=True):
        sums = list(itertools.accumulate(row.double().softmax(-1).tolist(), initial=0.0))
        # Each share is a power of e of a log-probability, computed in float32; sums are float64's.
        rounding = math.expm1(log_softmax_bound(row))
        assert sums[token] <= number + rounding
        assert number < sums[token + 1] + rounding


def test_a_rows_draw_does_not_depend_on_its_neighbours():
    logits, numbers = random_logits(2, rows=50), uniforms(50)
    together = sample(logits, numbers)
    alone = [sample(logits[i : i + 1], numbers[i : i + 1]) for i in range(50)]
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together.tolist())) > 3


def test_an_excluded_token_is_never_drawn_even_by_the_extreme_numbers():
    logits = torch.tensor([[MASKED, 0.0, MASKED, 0.0, MASKED]])
    assert sample(logits, [0.0]).tolist() == [1]
    assert sample(logits, [0.5]).tolist() == [3]
    assert sample(logits, [1 - 2**-53]).tolist() == [3]


def test_tokens_of_tiny_probability_keep_their_share():
    """Ten thousand of one in ten million each: in single precision most would have none."""
    logits = torch.full((1, 10_001), math.log(1e-8))
    logits[0, 0] = 0.0
    drawn = sample(logits.expand(1000, -1), [1 - 1e-4 * (i + 0.5) / 1000 for i in range(1000)])
    assert len(set(drawn.tolist())) == 1000


@given(seed=SEEDS, temperature=st.sampled_from([0, 0.0, 5e-324, 1e-38, 1e-9, 0.99e-5]))
@settings(deadline=None, max_examples=30)
def test_temperature_0_and_what_is_next_to_it_take_the_likeliest(seed, temperature):
    logits = random_logits(seed)
    assert SamplingParams(temperature=temperature).is_greedy
    assert torch.equal(sample(logits, None), logits.argmax(-1))
    assert torch.equal(sample(logits.bfloat16(), None), logits.bfloat16().argmax(-1))


def test_one_candidate_is_always_drawn():
    logits, tokens = random_logits(1), torch.zeros(3, 1).long()
    for limit in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        options = SamplingParams(temperature=5.0, **limit)
        drawn = sample(process_logits(logits, tokens, options, 1), uniforms(3))
        assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("numbers", [None, [0.3, 0.3]])
def test_where_every_token_is_excluded_nothing_is_drawn(numbers):
    logits = torch.tensor([[MASKED, MASKED], [MASKED, 0.0]])
    assert sample(logits, numbers).tolist() == [NO_TOKEN, 1]
    options = SamplingParams(top_k=1, top_p=0.5, min_p=0.5, typical_p=0.5)
    logits = process_logits(logits, torch.zeros(2, 1).long(), options, 1)
    assert sample(logits, numbers).tolist() == [NO_TOKEN, 1]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("numbers", [None, [0.3, 0.3]])
def test_logits_that_are_not_finite_are_one_clear_line(broken, numbers):
    logits = random_logits(0, rows=2)
    logits[1, 3] = broken
    with pytest.raises(AGI2Error, match=r"^the model's logits are not finite: .*[^\n]*$"):
        sample(logits, numbers)


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"min_length": -1}, "min_length must be at least 0, not -1"),
        ({"temperature": -0.5}, "temperature must be a number from 0 on, not -0.5"),
        ({"temperature": math.nan}, "temperature must be a number from 0 on, not nan"),
        ({"top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"min_p": 0.0}, "min_p must be above 0 and at most 1, not 0.0"),
        ({"typical_p": math.nan}, "typical_p must be above 0 and at most 1, not nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be from 0.0001 to 10000, not 0"),
        ({"presence_penalty": math.nan}, "presence_penalty must be from -10000 to 10000, not nan"),
        (
            {"frequency_penalty": math.inf},
            "frequency_penalty must be from -10000 to 10000, not inf",
        ),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram must be at least 1, not 0"),
        (
            {"logit_bias": {3: math.nan}},
            "logit_bias must be made of numbers from -10000 to 10000, not {3: nan}",
        ),
        (
            {"min_length": 9, "max_length": 8},
            "min_length 9 is above max_length 8: lower the one or raise the other",
        ),
    ],
)
def test_options_out_of_range_or_in_contradiction_are_one_clear_line(options, message):
    with pytest.raises(AGI2Error) as caught:
        SamplingParams(**options)
    assert str(caught.value) == message


def test_every_option_is_a_key_of_the_configuration_and_means_the_same():
    given = {
        "max_length": 7,
        "min_length": 2,
        "temperature": 0.3,
        "top_k": 4,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "no_repeat_ngram": 3,
        "logit_bias": {"a": 1.0},
        "stop": ["x"],
        "stop_at_sentence_end": True,
        "speculative": "none",
    }
    assert sampling_keys(Config(**given)) == given
    assert dataclasses.asdict(SamplingParams(**given)) == given
    defaults = {**sampling_keys(Config()), "temperature": 1.0}
    assert dataclasses.asdict(SamplingParams()) == defaults


def test_a_bias_is_a_mapping_or_none():
    assert SamplingParams(5, logit_bias=None).logit_bias == {}
    with pytest.raises(AGI2Error, match="logit_bias must be a mapping"):
        SamplingParams(5, logit_bias=[1])
